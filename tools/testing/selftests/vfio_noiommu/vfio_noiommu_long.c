// SPDX-License-Identifier: GPL-2.0-only
/*
 * Long ranges: how long GET_PA, map and unmap of many gigabytes of IOVA take,
 * keep others waiting, and go on after a SIGKILL
 *
 * One huge page of 1 GiB is mapped over and over, so that terabytes of IOVA need
 * little memory. The times are printed. The verdicts count what others got done
 * during an operation and look at how far a killed one got, so that they don't
 * depend on the speed of the machine or on its load.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>

#include <sys/resource.h>

#include "kselftest_harness.h"
#include "vfio_noiommu_util.h"
#include "../iommu/iommufd_noiommu_extents.h"

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
	unsigned int *begun;	/* get_all() is about to call, shared too */
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
	self->begun = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->begun);

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

	__atomic_store_n(self->begun, 1, __ATOMIC_RELAXED);
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
	long switches;		/* to another thread during the operation */
};

static bool stopped(struct others *others)
{
	return __atomic_load_n(&others->stop, __ATOMIC_RELAXED);
}

static void add_one(unsigned int *count)
{
	__atomic_add_fetch(count, 1, __ATOMIC_RELAXED);
}

static unsigned int read_count(unsigned int *count)
{
	return __atomic_load_n(count, __ATOMIC_RELAXED);
}

/* Times that this thread lost the CPU without asking for it */
static long lost_cpu(void)
{
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	return usage.ru_nivcsw;
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
		add_one(&others->maps);
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
		add_one(&others->changes);
		usleep(1000);
	}
	return NULL;
}

static void *change_nothing(void *arg)
{
	struct others *others = arg;

	while (!stopped(others)) {
		add_one(&others->changes);
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
		add_one(&others->changes);
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

/*
 * An operation with others, and how long it took. The counts are of what others
 * completed during it.
 */
#define WITH_OTHERS(who, call, ...)						\
	({									\
		void *(*functions[])(void *) = { __VA_ARGS__ };			\
		pthread_t threads[ARRAY_SIZE(functions)];			\
		unsigned int th, maps, changes;					\
		double start;							\
		long lost;							\
										\
		*(who) = (struct others){ .self = self };			\
		for (th = 0; th < ARRAY_SIZE(functions); th++)			\
			ASSERT_EQ(0, pthread_create(&threads[th], NULL,		\
						    functions[th], who));	\
		while ((functions[0] == map_small && !read_count(&(who)->maps)) || \
		       (th > 1 && !read_count(&(who)->changes)))		\
			sched_yield();						\
		maps = read_count(&(who)->maps);				\
		changes = read_count(&(who)->changes);				\
		lost = lost_cpu();						\
		start = seconds();						\
		call;								\
		start = seconds() - start;					\
		maps = read_count(&(who)->maps) - maps;				\
		changes = read_count(&(who)->changes) - changes;		\
		lost = lost_cpu() - lost;					\
		__atomic_store_n(&(who)->stop, true, __ATOMIC_RELAXED);	\
		for (th = 0; th < ARRAY_SIZE(functions); th++)			\
			ASSERT_EQ(0, pthread_join(threads[th], NULL));		\
		EXPECT_EQ(0, (who)->rc);					\
		(who)->maps = maps;						\
		(who)->changes = changes;					\
		(who)->switches = lost;						\
		start;								\
	})

/* A shorter operation may end before others get the CPU */
#define LONG_ENOUGH_TO_WAIT 0.5

/* Calls of others that have to complete. One may at either end of any operation. */
#define SOME 3

/* An attempt where the signal or the scheduler is early or late proves nothing */
#define TRIES 20

/*
 * Whether others completed calls during it. An operation that is short ends before they get
 * the CPU, and tells nothing.
 */
#define others_went_on(what, took)						\
	({									\
		TH_LOG("%-6s %8.3f s, longest wait %.3f s, %u maps, %u changes", \
		       what, took, others.longest, others.maps, others.changes); \
		(took) <= LONG_ENOUGH_TO_WAIT || others.maps >= SOME;		\
	})

/*
 * No call waits for all of several areas. A single area is the bound: a change of
 * the domains waits for it, and all later calls wait for the change.
 */
static void wait_for_each(struct __test_metadata *_metadata, struct _test_data_range *self,
			  void *(*change)(void *))
{
	bool is_one = self->areas == 1;
	/* Calls that may wait for a whole area, or for a domain to be filled, are not checked */
	bool map_ok = is_one && change != change_nothing;
	bool get_ok = map_ok || change == change_domains;
	bool unmap_ok = get_ok;
	struct others others = {};
	unsigned int tries;
	double took;

	for (tries = 0; !tries || (tries < TRIES && !(map_ok && get_ok && unmap_ok)); tries++) {
		took = WITH_OTHERS(&others, ASSERT_EQ(0, map_all(self, self->areas)),
				   map_small, change);
		map_ok |= others_went_on("map", took);
		took = WITH_OTHERS(&others, ASSERT_EQ(self->size, get_all(self)),
				   map_small, change);
		get_ok |= others_went_on("GET_PA", took);
		took = WITH_OTHERS(&others, ASSERT_EQ(0, unmap_all(self)),
				   map_small, change);
		unmap_ok |= others_went_on("unmap", took);
	}
	EXPECT_TRUE(map_ok);
	EXPECT_TRUE(get_ok);
	EXPECT_TRUE(unmap_ok);
}

TEST_F_TIMEOUT(range, waits, 600)
{
	wait_for_each(_metadata, self, change_nothing);
	TH_LOG("while the option changes");
	wait_for_each(_metadata, self, change_option);
	/* To fill a domain of small entries takes all the time there is */
	if (!variant->small_entries) {
		TH_LOG("while the domains change");
		wait_for_each(_metadata, self, change_domains);
	}
}

/* A change gets the locks between two areas */
TEST_F_TIMEOUT(range, changes_between_areas, 600)
{
	struct others others = {};
	unsigned int tries;
	double took;

	if (self->areas == 1 || !variant->small_entries)
		SKIP(return, "a single area, or areas that are unmapped in no time");
	for (tries = 0; tries < TRIES && others.changes < SOME; tries++) {
		ASSERT_EQ(0, map_all(self, self->areas));
		took = WITH_OTHERS(&others, ASSERT_EQ(0, unmap_all(self)),
				   map_small, change_option);
		TH_LOG("unmap  %8.3f s, longest wait %.3f s, %u maps, %u changes",
		       took, others.longest, others.maps, others.changes);
	}
	EXPECT_LE(SOME, others.changes);
}

#define show_gap(what, took)							\
	do {									\
		TH_LOG("%-6s %8.3f s, longest gap %.3f s, %ld switches", what, took, \
		       others.gap, others.switches);				\
		if ((took) > LONG_ENOUGH_TO_WAIT)				\
			EXPECT_LE(SOME, others.switches);			\
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

static bool has_exited(pid_t pid)
{
	siginfo_t info = {};

	return waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT) || info.si_pid;
}

/*
 * A child that shares the iommufd makes a call, and is killed when a sign of
 * progress shows that it is within the call. Returns the time that it takes to
 * die, or -1 if the call was complete before.
 */
#define KILLED(call, is_within)							\
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
		while (!(is_within) && !has_exited(pid))			\
			sched_yield();						\
		start = seconds();						\
		ASSERT_EQ(0, kill(pid, SIGKILL));				\
		ASSERT_EQ(pid, waitpid(pid, &status, 0));			\
		WIFSIGNALED(status) ? seconds() - start : -1;			\
	})

static uint64_t touch_all(struct _test_data_range *self)
{
	uint64_t offset, sum = 0;

	for (offset = 0; offset < self->size; offset += GIB)
		sum += read_once(self->va + offset);
	memset(self->extents, 0, self->size / GIB * sizeof(*self->extents));
	return sum;
}

/*
 * The progress of GET_PA can't be seen before it ends. The delay before the kill is
 * found by trying: the extents show afterwards whether it was too short or too long.
 */
TEST_F_TIMEOUT(range, get_pa_killed, 600)
{
	unsigned int delay = 0, tries, i;
	uint64_t length = 0;
	double took;

	if (!variant->small_entries)
		SKIP(return, "too short to be killed within");
	ASSERT_EQ(0, map_all(self, self->areas));
	for (tries = 0; tries < TRIES; tries++) {
		*self->begun = 0;
		took = KILLED((touch_all(self), get_all(self)),
			      read_count(self->begun) && !usleep(delay));
		for (length = 0, i = 0; i < self->size / GIB; i++)
			length += self->extents[i].length;
		if (length && length < self->size)
			break;
		delay = length ? delay / 2 : delay * 2 + 50;
	}
	TH_LOG("GET_PA killed: %.3f s, %.2f of %llu GiB, try %u", took,
	       (double)length / GIB, (unsigned long long)(self->size / GIB), tries);
	EXPECT_LT(0, length);
	EXPECT_GT(self->size, length);
}

static int get_first_gib(struct _test_data_range *self,
			 struct iommu_ioas_noiommu_get_pa *cmd)
{
	*cmd = (struct iommu_ioas_noiommu_get_pa){
		.size = sizeof(*cmd),
		.ioas_id = self->ioas,
		.iova = IOVA,
		.length = GIB,
	};
	__atomic_store_n(self->begun, 1, __ATOMIC_RELAXED);
	return ioctl(self->iommufd, IOMMU_IOAS_NOIOMMU_GET_PA, cmd);
}

/* Without extents the length shows it, in memory shared with the child */
TEST_F_TIMEOUT(range, plain_get_pa_killed, 600)
{
	struct iommu_ioas_noiommu_get_pa *cmd;
	unsigned int delay = 0, tries;
	double took;

	if (!variant->small_entries)
		SKIP(return, "too short to be killed within");
	cmd = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, cmd);
	ASSERT_EQ(0, map_all(self, self->areas));
	for (tries = 0; tries < TRIES; tries++) {
		*self->begun = 0;
		cmd->out_phys = 0;
		took = KILLED((touch_all(self), get_first_gib(self, cmd)),
			      read_count(self->begun) && !usleep(delay));
		if (cmd->out_phys && cmd->length < GIB)
			break;
		delay = cmd->out_phys ? delay / 2 : delay * 2 + 50;
	}
	TH_LOG("plain GET_PA killed: %.3f s, %llu of 1024 MiB, try %u", took,
	       (unsigned long long)cmd->length >> 20, tries);
	EXPECT_NE(0, cmd->out_phys);
	EXPECT_GT(GIB, cmd->length);
	munmap(cmd, PAGE);
}

/* A map that is killed is not finished, but undone */
TEST_F_TIMEOUT(range, map_killed, 600)
{
	unsigned int tries;
	bool cut = false;
	double took;

	if (self->areas > 1)
		SKIP(return, "each of the areas is too short to be killed within");
	for (tries = 0; tries < TRIES && !cut; tries++) {
		/* The fast path of GUP pins what has been touched, ... */
		took = KILLED((touch_all(self), map_all(self, 1)),
			      pinned_pages() > self->pinned);
		/* ... and doesn't look at signals */
		cut = get_pa_errno(self->iommufd, self->ioas, IOVA) == ENOENT;
		ASSERT_EQ(0, ioas_unmap(self->iommufd, self->ioas, 0, UINT64_MAX));
		EXPECT_EQ(self->pinned, pinned_pages());
	}
	TH_LOG("map killed: %.3f s, try %u", took, tries);
	EXPECT_TRUE(cut);
}

/* An unmap that is killed is finished: others that share the file see no half of it */
TEST_F_TIMEOUT(range, unmap_killed, 600)
{
	uint64_t offset;
	double took;

	ASSERT_EQ(0, map_all(self, self->areas));
	/* The first area is gone as soon as the unmap has started */
	took = KILLED(unmap_all(self), get_pa_errno(self->iommufd, self->ioas, IOVA));
	TH_LOG("unmap killed: %.3f s", took);
	for (offset = 0; offset < self->size; offset += GIB)
		EXPECT_EQ(ENOENT, get_pa_errno(self->iommufd, self->ioas, IOVA + offset));
	EXPECT_EQ(self->pinned, pinned_pages());
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

static int destroy_until_done(int fd, uint32_t id)
{
	int rc;

	/* The parent's look at it makes it busy */
	do {
		rc = destroy(fd, id);
	} while (rc == EBUSY);
	return rc;
}

/* What has begun is done, or the kernel warns about what is left */
TEST(destroy_killed)
{
	double took;
	uint32_t ioas;
	char *va;
	int fd;

	fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, fd);
	va = anon(PAGE, MAP_POPULATE);
	ASSERT_EQ(0, ioas_of_many(fd, va, &ioas));
	ASSERT_NE(ENOENT, get_pa_errno(fd, ioas, 0));
	/* Its id is gone before its areas are */
	took = KILLED(destroy_until_done(fd, ioas), get_pa_errno(fd, ioas, 0) == ENOENT);
	TH_LOG("destroy killed: %.3f s", took);
	EXPECT_EQ(ENOENT, destroy(fd, ioas));
	close(fd);
}

TEST_HARNESS_MAIN
