// SPDX-License-Identifier: GPL-2.0-only
/*
 * Long ranges: how long GET_PA, map and unmap of many gigabytes of IOVA take,
 * keep others waiting, and go on after a SIGKILL
 *
 * One huge page of 1 GiB is mapped over and over, so that terabytes of IOVA need
 * little memory. What has to hold is compared with the time of the whole
 * operation, so that it doesn't depend on the speed of the machine.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>

#include "kselftest_harness.h"
#include "vfio_noiommu_util.h"

#define GIB 0x40000000UL
#define IOVA 0x10000000000UL
#define SMALL_IOVA 0x40000000UL
/* As many as a slow kernel fills a domain with in seconds */
#define SLOW_AREAS 64

#ifndef MFD_HUGE_1GB
#define MFD_HUGE_1GB (30U << 26)
#endif

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

FIXTURE(range)
{
	int device;
	int iommufd;
	uint32_t dev_id;
	uint32_t ioas;
	uint32_t hwpt;
	int memfd;
	char *va;		/* all of the range, each GiB the same memory */
	uint64_t areas;
	uint64_t size;
	struct iommu_noiommu_extent *extents;	/* shared with children */
	long long pinned;
};

FIXTURE_VARIANT(range)
{
	uint64_t areas;
	uint64_t area_gib;
	bool small_entries;	/* a page table entry for each 4 KiB */
};

FIXTURE_VARIANT_ADD(range, areas) { .areas = 1024, .area_gib = 1 };
FIXTURE_VARIANT_ADD(range, areas_of_4k_entries) {
	.areas = 8, .area_gib = 1, .small_entries = true,
};
FIXTURE_VARIANT_ADD(range, one) { .areas = 1, .area_gib = 32 };
FIXTURE_VARIANT_ADD(range, one_of_4k_entries) {
	.areas = 1, .area_gib = 8, .small_entries = true,
};

FIXTURE_SETUP(range)
{
	static const char * const ids[3][2] = {
		{ "0x1b36", "0x0010" }, { "0x1234", "0x11e8" }, { "0x8086", "0x10d3" },
	};
	uint64_t offset;
	char bdf[256];
	char *gib;
	int i;

	self->device = -1;
	self->iommufd = -1;
	for (i = 0; i < 3; i++)
		if (find_device(ids[i][0], ids[i][1], bdf, sizeof(bdf)) &&
		    !device_has_iommu(bdf))
			break;
	if (i == 3)
		SKIP(return, "no device without an IOMMU");
	self->areas = variant->areas;
	/* To change domains meanwhile takes the square of their number */
	if (TEST_TIMEOUT_SCALE > 1 && self->areas > SLOW_AREAS)
		self->areas = SLOW_AREAS;
	self->size = self->areas * variant->area_gib * GIB;
	self->memfd = memfd_create("gib", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_1GB);
	if (self->memfd < 0 || ftruncate(self->memfd, GIB))
		SKIP(return, "no huge pages of 1 GiB");
	gib = mmap(NULL, GIB, PROT_READ | PROT_WRITE, MAP_SHARED, self->memfd, 0);
	if (gib == MAP_FAILED)
		SKIP(return, "no free huge page of 1 GiB (hugepagesz=1G hugepages=1)");
	*gib = 1;
	self->va = mmap(NULL, self->size + GIB, PROT_NONE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(MAP_FAILED, self->va);
	self->va = (char *)(((uintptr_t)self->va + GIB - 1) & ~(GIB - 1));
	for (offset = 0; offset < self->size; offset += GIB)
		ASSERT_EQ(self->va + offset,
			  mmap(self->va + offset, GIB, PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_FIXED, self->memfd, 0));
	self->extents = mmap(NULL, self->size / GIB * sizeof(*self->extents),
			     PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->extents);

	ASSERT_EQ(0, noiommu_switch(true));
	ASSERT_EQ(0, ensure_bound(bdf));
	self->pinned = pinned_pages();
	self->device = cdev_open(bdf);
	self->iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->device);
	ASSERT_LE(0, self->iommufd);
	ASSERT_EQ(0, bind_iommufd(self->device, self->iommufd, &self->dev_id));
	ASSERT_EQ(0, ioas_alloc(self->iommufd, &self->ioas));
	if (variant->small_entries)
		ASSERT_EQ(0, ioas_disable_huge_pages(self->iommufd, self->ioas));
	ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id, self->ioas, 0, &self->hwpt));
}

FIXTURE_TEARDOWN(range)
{
	double start = seconds();

	if (self->iommufd < 0)
		return;
	close(self->device);
	close(self->iommufd);
	EXPECT_EQ(self->pinned, pinned_pages());
	TH_LOG("close: %.3f s", seconds() - start);
}

static int map_all(struct _test_data_range *self, uint64_t areas)
{
	uint64_t size = self->size / areas, i;
	int rc = 0;

	for (i = 0; i < areas && !rc; i++)
		rc = size == GIB ?
			/* The same, but sooner done */
			ioas_map_file(self->iommufd, self->ioas, self->memfd, 0, size,
				      IOVA + i * size) :
			ioas_map(self->iommufd, self->ioas, self->va, size, IOVA, MAP_RW);
	return rc;
}

static int unmap_all(struct _test_data_range *self)
{
	return ioas_unmap(self->iommufd, self->ioas, IOVA, self->size);
}

static uint64_t get_all(struct _test_data_range *self)
{
	uint64_t length = self->size;
	uint32_t nr = self->size / GIB;

	if (get_pa_extents(self->iommufd, self->ioas, IOVA, &length, self->extents, &nr))
		return 0;
	return length;
}

/*
 * Others, who share the IOAS or the CPU
 */
struct others {
	struct _test_data_range *self;
	bool stop;
	int rc;
	double longest;		/* of map_small */
	unsigned int maps;
	double gap;		/* of watch_cpu */
	unsigned int changes;	/* of change_option and change_domains */
};

static bool stopped(struct others *others)
{
	return __atomic_load_n(&others->stop, __ATOMIC_RELAXED);
}

static void *map_small(void *arg)
{
	struct others *others = arg;
	int fd = others->self->iommufd;
	uint32_t ioas = others->self->ioas;
	char *va = anon(PAGE, MAP_POPULATE);

	while (!stopped(others)) {
		double start = seconds(), wait;

		others->rc |= ioas_map(fd, ioas, va, PAGE, SMALL_IOVA, MAP_RW);
		others->rc |= ioas_unmap(fd, ioas, SMALL_IOVA, PAGE);
		wait = seconds() - start;
		if (wait > others->longest)
			others->longest = wait;
		others->maps++;
	}
	munmap(va, PAGE);
	return NULL;
}

/* Wants the locks of the domains for a moment, as an attach does at least */
static void *change_option(void *arg)
{
	struct others *others = arg;
	struct iommu_option option = {
		.size = sizeof(option),
		.option_id = IOMMU_OPTION_HUGE_PAGES,
		.op = IOMMU_OPTION_OP_GET,
		.object_id = others->self->ioas,
	};

	ioctl(others->self->iommufd, IOMMU_OPTION, &option);
	option.op = IOMMU_OPTION_OP_SET;
	while (!stopped(others)) {
		/* It is what it was */
		if (ioctl(others->self->iommufd, IOMMU_OPTION, &option))
			others->rc = errno;
		others->changes++;
		usleep(1000);
	}
	return NULL;
}

/* Fills a page table with all of the IOAS, and empties it */
static void *change_domains(void *arg)
{
	struct others *others = arg;
	int fd = others->self->iommufd;
	uint32_t hwpt;

	while (!stopped(others)) {
		others->rc |= hwpt_alloc(fd, others->self->dev_id, others->self->ioas, 0,
					 &hwpt);
		others->rc |= destroy(fd, hwpt);
		others->changes++;
		usleep(1000);
	}
	return NULL;
}

static void use_cpu(unsigned int cpu)
{
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(cpu, &cpus);
	sched_setaffinity(0, sizeof(cpus), &cpus);
}

static void use_any_cpu(void)
{
	cpu_set_t cpus;

	memset(&cpus, 0xff, sizeof(cpus));
	sched_setaffinity(0, sizeof(cpus), &cpus);
}

/* How long it has not been running */
static void *watch_cpu(void *arg)
{
	struct others *others = arg;
	double before, now = seconds();

	use_cpu(0);
	while (!stopped(others)) {
		before = now;
		now = seconds();
		if (now - before > others->gap)
			others->gap = now - before;
	}
	return NULL;
}

/* An operation with others, and how long it took */
#define WITH_OTHERS(who, call, ...)						\
	({									\
		void *(*functions[])(void *) = { __VA_ARGS__ };			\
		pthread_t threads[ARRAY_SIZE(functions)];			\
		unsigned int th;						\
		double start;							\
										\
		*(who) = (struct others){ .self = self };			\
		for (th = 0; th < ARRAY_SIZE(functions); th++)			\
			ASSERT_EQ(0, pthread_create(&threads[th], NULL,		\
						    functions[th], who));	\
		while (functions[0] == map_small &&				\
		       !__atomic_load_n(&(who)->maps, __ATOMIC_RELAXED))	\
			sched_yield();						\
		start = seconds();						\
		call;								\
		start = seconds() - start;					\
		__atomic_store_n(&(who)->stop, true, __ATOMIC_RELAXED);	\
		for (th = 0; th < ARRAY_SIZE(functions); th++)			\
			ASSERT_EQ(0, pthread_join(threads[th], NULL));		\
		EXPECT_EQ(0, (who)->rc);					\
		start;								\
	})

/* What takes less may well be over before others get the CPU */
#define LONG_ENOUGH_TO_WAIT 0.5

/*
 * Of several areas nobody waits for them all. One alone is the bound, where who
 * changes the domains waits for it, and everyone else behind that one.
 */
#define show(what, took, is_one)						\
	do {									\
		TH_LOG("%-6s %8.3f s, longest wait %.3f s of %u maps", what,	\
		       took, others.longest, others.maps);			\
		if ((took) > LONG_ENOUGH_TO_WAIT && !(is_one))			\
			EXPECT_GT((took) / 2, others.longest);			\
	} while (0)

TEST_F_TIMEOUT(range, waits, 600)
{
	bool is_one = self->areas == 1;
	struct others others = {};
	double took;
	int turn;

	took = WITH_OTHERS(&others, ASSERT_EQ(0, map_all(self, self->areas)),
			   map_small);
	show("map", took, false);
	took = WITH_OTHERS(&others, ASSERT_EQ(self->size, get_all(self)), map_small);
	show("GET_PA", took, false);
	took = WITH_OTHERS(&others, ASSERT_EQ(0, unmap_all(self)), map_small);
	show("unmap", took, false);

	/* To fill a domain of small entries takes all the time there is */
	for (turn = 0; turn < (variant->small_entries ? 1 : 2); turn++) {
		void *(*change)(void *) = turn ? change_domains : change_option;

		TH_LOG("while the %s changes", turn ? "domains" : "option");
		took = WITH_OTHERS(&others, ASSERT_EQ(0, map_all(self, self->areas)),
				   map_small, change);
		show("map", took, is_one);
		took = WITH_OTHERS(&others, ASSERT_EQ(self->size, get_all(self)),
				   map_small, change);
		/* A domain that is filled meanwhile is as long as a map */
		show("GET_PA", took, is_one || turn);
		took = WITH_OTHERS(&others, ASSERT_EQ(0, unmap_all(self)),
				   map_small, change);
		show("unmap", took, is_one || turn);
		/* Who waits for the locks gets them between two areas */
		if (!is_one && variant->small_entries)
			EXPECT_GT(took / 2, others.longest);
	}
}

#define show_gap(what, took)							\
	do {									\
		TH_LOG("%-6s %8.3f s, longest gap %.3f s", what, took,		\
		       others.gap);						\
		if ((took) > LONG_ENOUGH_TO_WAIT)				\
			EXPECT_GT((took) / 2, others.gap);			\
	} while (0)

/* Where the kernel preempts what it does, as on x86, that alone keeps this short */
TEST_F_TIMEOUT(range, cpu, 600)
{
	struct others others;
	double took;

	use_cpu(0);
	took = WITH_OTHERS(&others, ASSERT_EQ(0, map_all(self, self->areas)), watch_cpu);
	show_gap("map", took);
	took = WITH_OTHERS(&others, ASSERT_EQ(self->size, get_all(self)), watch_cpu);
	show_gap("GET_PA", took);
	took = WITH_OTHERS(&others, ASSERT_EQ(0, unmap_all(self)), watch_cpu);
	show_gap("unmap", took);
	use_any_cpu();
}

/* A child that shares the iommufd is killed after a while; how long it takes to die */
#define KILLED(call, after)							\
	({									\
		pid_t pid = fork();						\
		double start;							\
		int status;							\
										\
		ASSERT_LE(0, pid);						\
		if (!pid) {							\
			(void)!(call);						\
			_exit(0);						\
		}								\
		usleep((after) * 1e6);						\
		start = seconds();						\
		ASSERT_EQ(0, kill(pid, SIGKILL));				\
		ASSERT_EQ(pid, waitpid(pid, &status, 0));			\
		start = seconds() - start;					\
		EXPECT_TRUE(WIFSIGNALED(status));				\
		start;								\
	})

/* What takes less is over before the signal comes */
#define LONG_ENOUGH 0.03

TEST_F_TIMEOUT(range, killed, 600)
{
	double map, get, unmap, took;
	uint64_t length = 0;
	unsigned int i;
	bool mapped;

	map = seconds();
	ASSERT_EQ(0, map_all(self, self->areas));
	map = seconds() - map;
	get = seconds();
	ASSERT_EQ(self->size, get_all(self));
	get = seconds() - get;
	if (get > LONG_ENOUGH) {
		memset(self->extents, 0, self->size / GIB * sizeof(*self->extents));
		took = KILLED(get_all(self), get / 4);
		for (i = 0; i < self->size / GIB; i++)
			length += self->extents[i].length;
		TH_LOG("GET_PA %.3f s, killed: %.3f s, %llu of %llu GiB", get, took,
		       (unsigned long long)(length / GIB),
		       (unsigned long long)(self->size / GIB));
		if (variant->small_entries)
			EXPECT_GT(self->size, length);
	}
	unmap = seconds();
	ASSERT_EQ(0, unmap_all(self));
	unmap = seconds() - unmap;

	took = KILLED(map_all(self, self->areas), map / 4);
	TH_LOG("map %.3f s, killed: %.3f s", map, took);
	EXPECT_GT(map / 2, took);
	ASSERT_EQ(0, ioas_unmap(self->iommufd, self->ioas, 0, UINT64_MAX));
	EXPECT_EQ(self->pinned, pinned_pages());

	if (unmap < LONG_ENOUGH)
		return;
	ASSERT_EQ(0, map_all(self, self->areas));
	took = KILLED(unmap_all(self), unmap / 4);
	mapped = !get_pa_errno(self->iommufd, self->ioas, IOVA + self->size - 1);
	TH_LOG("unmap %.3f s, killed: %.3f s, the rest is %s", unmap, took,
	       mapped ? "mapped" : "gone");
	/* Others who hold the file keep what has not been unmapped */
	if (self->areas > 1 && variant->small_entries)
		EXPECT_TRUE(mapped);
}

#define MANY 0x8000UL

static int ioas_of_many(int fd, void *va, uint32_t *ioas)
{
	uint64_t size;
	int rc = ioas_alloc(fd, ioas);

	rc = rc ?: ioas_map(fd, *ioas, va, PAGE, 0, MAP_RW);
	for (size = PAGE; size < MANY * PAGE && !rc; size *= 2)
		rc = ioas_copy(fd, *ioas, size, *ioas, 0, size);
	return rc;
}

/* What has begun is done, or the kernel warns about what is left */
TEST(destroy_killed)
{
	double took, killed;
	uint32_t ioas;
	char *va;
	int fd;

	fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, fd);
	va = anon(PAGE, MAP_POPULATE);
	ASSERT_EQ(0, ioas_of_many(fd, va, &ioas));
	took = seconds();
	ASSERT_EQ(0, destroy(fd, ioas));
	took = seconds() - took;
	ASSERT_EQ(0, ioas_of_many(fd, va, &ioas));
	killed = KILLED(destroy(fd, ioas), took / 4);
	TH_LOG("destroy %.3f s, killed: %.3f s", took, killed);
	EXPECT_EQ(ENOENT, destroy(fd, ioas));
	close(fd);
}

TEST_HARNESS_MAIN
