// SPDX-License-Identifier: GPL-2.0-only
/*
 * GET_PA while everything that it depends on comes and goes; maps while their
 * source does; the close of a fault queue while it is destroyed; devices without an
 * IOMMU while the switch is flipped, and while an IOMMU comes and goes
 *
 * Two threads ask for physical addresses all the time. Whatever happens meanwhile,
 * an answer is one of the errnos that fit, or made of addresses of memory that was
 * mapped there at some time: those that pagemap had for it, and has again in the end,
 * so that nothing moved. Then nothing is pinned. A race takes as long on a slow
 * kernel and gets less done. What is freed under a reader is for KASAN and lockdep to
 * see.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <time.h>

#include "kselftest_harness.h"
#include "vfio_noiommu_util.h"
#include "../iommu/iommufd_noiommu_extents.h"

#define IOVA 0x40000000UL
#define MSECS 700
/* As long for what resets a device each time */
#define RESETS 3
#define READERS 2

/* A descriptor that no open() takes by itself */
#define HIGH_FD 900

static uint64_t msecs(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000ULL + now.tv_nsec / 1000000;
}

#define get(p) __atomic_load_n(p, __ATOMIC_SEQ_CST)
#define set(p, value) __atomic_store_n(p, value, __ATOMIC_SEQ_CST)

/* Who asks, for what, and what came of it */
struct reader {
	pthread_t thread;
	int *fd;
	uint32_t *ioas;
	size_t pages;
	uint64_t *pas[2];	/* what may be mapped at IOVA */
	int errnos[4];		/* and what else may be the answer */
	bool stop;
	/* results */
	unsigned int answers[2];	/* that have pages of each, or are cut off */
	unsigned int failed[4];
	unsigned int wrong;
	char first_wrong[160];
};

static void is_wrong(struct reader *reader, const char *what, uint64_t a, uint64_t b)
{
	if (!reader->wrong++)
		snprintf(reader->first_wrong, sizeof(reader->first_wrong),
			 "%s: %#llx %#llx", what, (unsigned long long)a,
			 (unsigned long long)b);
}

/* A run of pages, which starts at a page's offset */
static void check_run(struct reader *reader, uint64_t iova, uint64_t phys,
		      uint64_t length, bool seen[2])
{
	uint64_t end = iova + length, i, page, offset;

	for (; iova < end; phys += PAGE - offset, iova += PAGE - offset) {
		page = (iova - IOVA) / PAGE;
		offset = iova % PAGE;
		if (page >= reader->pages) {
			is_wrong(reader, "beyond the end", iova, phys);
			return;
		}
		for (i = 0; i < 2; i++)
			if (reader->pas[i] && phys == reader->pas[i][page] + offset)
				break;
		if (i == 2) {
			is_wrong(reader, "nobody's address", iova, phys);
			return;
		}
		seen[i] = true;
	}
}

static void read_extents(struct reader *reader, struct iommu_noiommu_extent *extents,
			 unsigned int *seed)
{
	uint64_t iova = IOVA + rand_r(seed) % (reader->pages * PAGE);
	uint64_t left = IOVA + reader->pages * PAGE - iova, length, asked, done = 0, phys;
	bool with_extents = rand_r(seed) % 2, seen[2] = {};
	uint32_t nr = 1, room = 1, i;
	int rc;

	/* All of it, each other time, or just some */
	if (rand_r(seed) % 2) {
		iova = IOVA;
		left = reader->pages * PAGE;
	}
	asked = rand_r(seed) % 2 ? 2 * left : 1 + rand_r(seed) % left;
	length = asked;
	if (with_extents) {
		room = 1 + rand_r(seed) % reader->pages;
		nr = room;
		rc = get_pa_extents(get(reader->fd), get(reader->ioas), iova, &length,
				    extents, &nr);
	} else {
		rc = get_pa(get(reader->fd), get(reader->ioas), iova, &length, &phys);
		extents[0] = (struct iommu_noiommu_extent){ phys, length };
	}
	if (rc) {
		for (i = 0; i < ARRAY_SIZE(reader->errnos); i++) {
			if (reader->errnos[i] == rc) {
				reader->failed[i]++;
				return;
			}
		}
		is_wrong(reader, "errno", rc, iova);
		return;
	}
	if (!nr || nr > room || !length || length > asked)
		is_wrong(reader, "length", length, nr);
	for (i = 0; i < nr && i < room; i++) {
		check_run(reader, iova + done, extents[i].phys, extents[i].length, seen);
		done += extents[i].length;
	}
	if (done != length)
		is_wrong(reader, "sum of the lengths", done, length);
	reader->answers[0] += seen[0];
	reader->answers[1] += seen[1];
}

static void *read_pas(void *arg)
{
	struct reader *reader = arg;
	struct iommu_noiommu_extent *extents = calloc(reader->pages, sizeof(*extents));
	unsigned int seed = (uintptr_t)reader;

	while (!get(&reader->stop))
		read_extents(reader, extents, &seed);
	free(extents);
	return NULL;
}

FIXTURE(race)
{
	char bdf[256];
	char exporter[256];
	int holder;			/* the iommufd that keeps the memory in place */
	int device;
	int iommufd;
	uint32_t dev_id;
	uint32_t ioas;
	uint32_t pt_id;
	char *va[2];
	uint64_t *pas[2];
	size_t size;
	long long pinned;
	long long accounted;
	struct reader readers[READERS];
};

FIXTURE_VARIANT(race)
{
	size_t pages;
	bool no_large_pages;
};

FIXTURE_VARIANT_ADD(race, small) { .pages = 8 };
/* Several steps, and several page tables that are freed */
FIXTURE_VARIANT_ADD(race, large) { .pages = 1000, .no_large_pages = true };

static int open_all(struct _test_data_race *self, int fd)
{
	int rc;

	self->device = cdev_open(self->bdf);
	if (self->device < 0)
		return errno;
	self->iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (self->iommufd < 0)
		return errno;
	if (fd >= 0) {
		rc = dup2(self->iommufd, fd) < 0 ? errno : 0;
		close(self->iommufd);
		self->iommufd = fd;
		if (rc)
			return rc;
	}
	return bind_iommufd(self->device, self->iommufd, &self->dev_id);
}

static int new_ioas(struct _test_data_race *self, bool no_large_pages, uint32_t *id)
{
	uint32_t ioas;
	int rc = ioas_alloc(self->iommufd, &ioas);

	if (!rc && no_large_pages)
		rc = ioas_disable_huge_pages(self->iommufd, ioas);
	set(id, ioas);
	return rc;
}

FIXTURE_SETUP(race)
{
	static const char * const ids[3][2] = {
		{ "0x1234", "0x11e8" }, { "0x1b36", "0x0010" }, { "0x8086", "0x10d3" },
	};
	int i;

	self->device = -1;
	self->iommufd = -1;
	self->holder = -1;
	for (i = 0; i < 3; i++)
		if (find_device(ids[i][0], ids[i][1], self->bdf, sizeof(self->bdf)) &&
		    !device_has_iommu(self->bdf))
			break;
	if (i == 3)
		SKIP(return, "no device without an IOMMU");
	ASSERT_EQ(0, noiommu_switch(true));
	ASSERT_EQ(0, ensure_bound(self->bdf));
	self->size = variant->pages * PAGE;
	self->pinned = pinned_pages();
	self->accounted = read_field("/proc/self/status", "VmPin:");
	ASSERT_EQ(0, open_all(self, -1));
	ASSERT_EQ(0, new_ioas(self, variant->no_large_pages, &self->ioas));
	for (i = 0; i < 2; i++) {
		self->va[i] = anon(self->size, 0);
		touch_scattered(self->va[i], self->size);
		self->pas[i] = pa_map_of(self->va[i], variant->pages, IOVA).pas;
	}
}

FIXTURE_TEARDOWN(race)
{
	int i;

	if (self->size == 0)
		return;
	close(self->device);
	close(self->iommufd);
	for (i = 0; i < 2; i++) {
		/* Nothing has moved, or what was compared was wrong */
		struct pa_map now;

		if (!self->va[i])
			continue;
		now = pa_map_of(self->va[i], variant->pages, IOVA);
		EXPECT_EQ(0, memcmp(now.pas, self->pas[i], variant->pages * 8));
		free(now.pas);
	}
	EXPECT_EQ(self->pinned, pinned_pages());
	EXPECT_EQ(self->accounted, read_field("/proc/self/status", "VmPin:"));
}

static int map_either(struct _test_data_race *self, uint32_t ioas, unsigned int which)
{
	return ioas_map(self->iommufd, ioas, self->va[which], self->size, IOVA, MAP_RW);
}

static int unmap_it(struct _test_data_race *self, uint32_t ioas)
{
	return ioas_unmap(self->iommufd, ioas, IOVA, self->size);
}

/* To an IOAS or a HWPT */
static int attach(struct _test_data_race *self, uint32_t pt_id)
{
	return attach_pt(self->device, &pt_id);
}

/* Readers of an IOAS where either memory is mapped, with up to three errnos */
static void start_readers(struct _test_data_race *self, int err0, int err1, int err2)
{
	int i;

	for (i = 0; i < READERS; i++) {
		struct reader *reader = &self->readers[i];

		/* What differs is set before */
		reader->fd = reader->fd ?: &self->iommufd;
		reader->ioas = reader->ioas ?: &self->ioas;
		reader->pages = self->size / PAGE;
		if (!reader->pas[0] && !reader->pas[1])
			memcpy(reader->pas, self->pas, sizeof(self->pas));
		reader->errnos[0] = err0;
		reader->errnos[1] = err1;
		reader->errnos[2] = err2;
		if (pthread_create(&reader->thread, NULL, read_pas, reader))
			abort();
	}
}

static void stop_readers(struct __test_metadata *_metadata,
			 struct _test_data_race *self, unsigned int changes)
{
	int i, j;

	for (i = 0; i < READERS; i++)
		set(&self->readers[i].stop, true);
	for (i = 0; i < READERS; i++) {
		struct reader *reader = &self->readers[i];

		ASSERT_EQ(0, pthread_join(reader->thread, NULL));
		TH_LOG("%u changes, answers %u and %u, errno %d: %u, %d: %u, %d: %u", changes,
		       reader->answers[0], reader->answers[1],
		       reader->errnos[0], reader->failed[0], reader->errnos[1],
		       reader->failed[1], reader->errnos[2], reader->failed[2]);
		EXPECT_EQ(0, reader->wrong) TH_LOG("%s", reader->first_wrong);
		/* There was a race */
		for (j = 0; j < 2; j++)
			if (reader->pas[j])
				EXPECT_LT(0, reader->answers[j]);
		if (reader->errnos[0])
			EXPECT_LT(0, reader->failed[0]);
	}
	EXPECT_LT(1, changes);
}

/* Every reader has had all of the answers that there are */
static bool raced(struct _test_data_race *self)
{
	int i, j;

	for (i = 0; i < READERS; i++) {
		struct reader *reader = &self->readers[i];

		for (j = 0; j < 2; j++)
			if (reader->pas[j] && !get(&reader->answers[j]))
				return false;
		if (reader->errnos[0] && !get(&reader->failed[0]))
			return false;
	}
	return true;
}

/*
 * Changes for a while, and until the condition holds; the code sees how many there
 * were in "n". The time limit of the test ends it if that never is.
 */
#define RACE_UNTIL(time, condition, ...)					\
	({									\
		uint64_t start = msecs(), took;					\
		unsigned int n = 0;						\
										\
		do {								\
			__VA_ARGS__;						\
			n++;							\
			took = msecs() - start;					\
		} while (took < (time) || n < 4 || !(condition));		\
		n;								\
	})

#define RACE(...) RACE_UNTIL(MSECS, raced(self), __VA_ARGS__)

/* Lets the readers in */
static void pause_a_little(unsigned int n)
{
	if (n % 4 == 0)
		usleep(n % 64 * 20);
}

TEST_F_TIMEOUT(race, unmap_and_map, 120)
{
	unsigned int changes;

	ASSERT_EQ(0, attach(self, self->ioas));
	start_readers(self, ENOENT, 0, 0);
	changes = RACE({
		ASSERT_EQ(0, map_either(self, self->ioas, n % 2));
		pause_a_little(n);
		ASSERT_EQ(0, unmap_it(self, self->ioas));
	});
	stop_readers(_metadata, self, changes);
}

/* The HWPT goes with the last device */
TEST_F_TIMEOUT(race, detach_and_attach, 120)
{
	unsigned int changes;

	ASSERT_EQ(0, map_either(self, self->ioas, 0));
	self->readers[0].pas[0] = self->pas[0];
	self->readers[1].pas[0] = self->pas[0];
	start_readers(self, EOPNOTSUPP, 0, 0);
	changes = RACE({
		ASSERT_EQ(0, attach(self, self->ioas));
		pause_a_little(n);
		ASSERT_EQ(0, detach_pt(self->device));
	});
	stop_readers(_metadata, self, changes);
}

/* Whatever HWPT the device has, the answers are there */
TEST_F_TIMEOUT(race, replace_within_an_ioas, 120)
{
	unsigned int changes;
	uint32_t hwpt[3];
	int i;

	hwpt[2] = self->ioas;
	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id, self->ioas, 0,
					&hwpt[i]));
	ASSERT_EQ(0, map_either(self, self->ioas, 1));
	self->readers[0].pas[1] = self->pas[1];
	self->readers[1].pas[1] = self->pas[1];
	start_readers(self, 0, 0, 0);
	changes = RACE(ASSERT_EQ(0, attach(self, hwpt[n % 3])));
	stop_readers(_metadata, self, changes);
}

/* One memory in each, and a reader */
TEST_F_TIMEOUT(race, replace_between_ioases, 120)
{
	unsigned int changes;
	uint32_t ioas[2];
	int i;

	ioas[0] = self->ioas;
	ASSERT_EQ(0, new_ioas(self, variant->no_large_pages, &ioas[1]));
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, map_either(self, ioas[i], i));
		self->readers[i].ioas = &ioas[i];
		self->readers[i].pas[i] = self->pas[i];
	}
	start_readers(self, EOPNOTSUPP, 0, 0);
	changes = RACE({
		ASSERT_EQ(0, attach(self, ioas[n % 2]));
		pause_a_little(n);
	});
	stop_readers(_metadata, self, changes);
}

/* Always one at least, each being the one that stores the PFNs in turn */
TEST_F_TIMEOUT(race, hwpt_destroy, 120)
{
	unsigned int changes;
	uint32_t hwpt[2];

	ASSERT_EQ(0, map_either(self, self->ioas, 0));
	ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id, self->ioas, 0, &hwpt[1]));
	self->readers[0].pas[0] = self->pas[0];
	self->readers[1].pas[0] = self->pas[0];
	start_readers(self, 0, 0, 0);
	changes = RACE({
		ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id, self->ioas, 0,
					&hwpt[n % 2]));
		ASSERT_EQ(0, destroy(self->iommufd, hwpt[1 - n % 2]));
	});
	stop_readers(_metadata, self, changes);
}

TEST_F_TIMEOUT(race, last_hwpt_destroy, 120)
{
	unsigned int changes;
	uint32_t hwpt;

	ASSERT_EQ(0, map_either(self, self->ioas, 0));
	self->readers[0].pas[0] = self->pas[0];
	self->readers[1].pas[0] = self->pas[0];
	start_readers(self, EOPNOTSUPP, 0, 0);
	changes = RACE({
		ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id, self->ioas, 0, &hwpt));
		pause_a_little(n);
		ASSERT_EQ(0, destroy(self->iommufd, hwpt));
	});
	stop_readers(_metadata, self, changes);
}

/* A GET_PA holds the IOAS for as long as it takes */
TEST_F_TIMEOUT(race, ioas_destroy, 120)
{
	unsigned int changes, busy = 0;
	uint32_t hwpt;
	int rc;

	ASSERT_EQ(0, destroy(self->iommufd, self->ioas));
	start_readers(self, ENOENT, EOPNOTSUPP, 0);
	changes = RACE_UNTIL(MSECS, raced(self) && busy, {
		ASSERT_EQ(0, new_ioas(self, variant->no_large_pages, &self->ioas));
		ASSERT_EQ(0, map_either(self, self->ioas, n % 2));
		ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id, self->ioas, 0, &hwpt));
		pause_a_little(n);
		ASSERT_EQ(EBUSY, destroy(self->iommufd, self->ioas));
		ASSERT_EQ(0, destroy(self->iommufd, hwpt));
		while ((rc = destroy(self->iommufd, self->ioas)) == EBUSY)
			busy++;
		ASSERT_EQ(0, rc);
	});
	TH_LOG("%u times too busy to be destroyed", busy);
	EXPECT_LT(0, busy);
	stop_readers(_metadata, self, changes);
}

TEST_F_TIMEOUT(race, iommufd_close, 120)
{
	unsigned int changes;

	close(self->device);
	close(self->iommufd);
	self->iommufd = HIGH_FD;
	start_readers(self, EBADF, ENOENT, EOPNOTSUPP);
	changes = RACE_UNTIL(RESETS * MSECS, raced(self), {
		ASSERT_EQ(0, open_all(self, HIGH_FD));
		ASSERT_EQ(0, new_ioas(self, variant->no_large_pages, &self->ioas));
		ASSERT_EQ(0, map_either(self, self->ioas, n % 2));
		ASSERT_EQ(0, attach(self, self->ioas));
		pause_a_little(n);
		/* Whichever is last lets all go */
		if (n % 4 < 2)
			close(self->device);
		close(self->iommufd);
		if (n % 4 >= 2)
			close(self->device);
	});
	stop_readers(_metadata, self, changes);
	ASSERT_EQ(0, open_all(self, -1));
}

struct unbinder {
	const char *bdf;
	bool begins;
	bool is_done;
};

static void *unbind_main(void *arg)
{
	struct unbinder *unbinder = arg;

	set(&unbinder->begins, true);
	device_unbind(unbinder->bdf);
	set(&unbinder->is_done, true);
	return NULL;
}

/* An unbind from the driver waits for the close */
TEST_F_TIMEOUT(race, device_close_and_unbind, 120)
{
	unsigned int changes;
	pthread_t thread;
	bool unbinds;

	ASSERT_EQ(0, map_either(self, self->ioas, 0));
	self->readers[0].pas[0] = self->pas[0];
	self->readers[1].pas[0] = self->pas[0];
	close(self->device);
	start_readers(self, EOPNOTSUPP, 0, 0);
	changes = RACE_UNTIL(RESETS * MSECS, raced(self), {
		struct unbinder unbinder = { .bdf = self->bdf };

		self->device = cdev_open(self->bdf);
		ASSERT_LE(0, self->device);
		ASSERT_EQ(0, bind_iommufd(self->device, self->iommufd, &self->dev_id));
		ASSERT_EQ(0, attach(self, self->ioas));
		unbinds = n % 4 == 0;
		if (unbinds) {
			ASSERT_EQ(0, pthread_create(&thread, NULL, unbind_main,
						    &unbinder));
			while (!get(&unbinder.begins))
				sched_yield();
			usleep(2000);
			EXPECT_FALSE(get(&unbinder.is_done));
		}
		pause_a_little(n);
		close(self->device);
		self->device = -1;
		if (unbinds) {
			ASSERT_EQ(0, pthread_join(thread, NULL));
			ASSERT_EQ(0, device_bind(self->bdf));
		}
	});
	stop_readers(_metadata, self, changes);
}

static int set_option(int fd, uint32_t id, uint32_t object, uint64_t value)
{
	struct iommu_option option = {
		.size = sizeof(option),
		.option_id = id,
		.op = IOMMU_OPTION_OP_SET,
		.object_id = object,
		.val64 = value,
	};

	return ERRNO_OF(ioctl(fd, IOMMU_OPTION, &option));
}

TEST_F_TIMEOUT(race, options, 120)
{
	unsigned int changes;

	ASSERT_EQ(0, attach(self, self->ioas));
	start_readers(self, ENOENT, 0, 0);
	changes = RACE({
		ASSERT_EQ(0, set_option(self->iommufd, IOMMU_OPTION_HUGE_PAGES, self->ioas,
					n / 2 % 2));
		ASSERT_EQ(0, map_either(self, self->ioas, n % 2));
		ASSERT_EQ(n / 2 % 2 ? EINVAL : 0,
			  set_option(self->iommufd, IOMMU_OPTION_HUGE_PAGES, self->ioas, 0));
		ASSERT_EQ(EBUSY, set_option(self->iommufd, IOMMU_OPTION_RLIMIT_MODE, 0, 1));
		pause_a_little(n);
		ASSERT_EQ(0, set_option(self->iommufd, IOMMU_OPTION_HUGE_PAGES, self->ioas, 1));
		ASSERT_EQ(0, unmap_it(self, self->ioas));
	});
	stop_readers(_metadata, self, changes);
}

/* Someone who maps and unmaps an IOAS all the time */
struct mapper {
	pthread_t thread;
	struct _test_data_race *self;
	uint32_t ioas;
	bool stop;
	int rc;
};

static void *map_and_unmap(void *arg)
{
	struct mapper *mapper = arg;
	unsigned int n;

	for (n = 0; !get(&mapper->stop); n++) {
		mapper->rc |= map_either(mapper->self, mapper->ioas, n % 2);
		pause_a_little(n);
		mapper->rc |= unmap_it(mapper->self, mapper->ioas);
	}
	return NULL;
}

/* From an IOAS that changes to another; a reader at each end */
TEST_F_TIMEOUT(race, copy, 120)
{
	struct mapper mapper = { .self = self, .ioas = self->ioas };
	unsigned int changes, copied = 0, nothing = 0;
	uint32_t other, hwpt;

	ASSERT_EQ(0, attach(self, self->ioas));
	ASSERT_EQ(0, new_ioas(self, variant->no_large_pages, &other));
	ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id, other, 0, &hwpt));
	self->readers[1].ioas = &other;
	start_readers(self, ENOENT, 0, 0);
	ASSERT_EQ(0, pthread_create(&mapper.thread, NULL, map_and_unmap, &mapper));
	changes = RACE_UNTIL(MSECS, raced(self) && copied && nothing, {
		int rc = ioas_copy(self->iommufd, other, IOVA, self->ioas, IOVA, self->size);

		if (rc) {
			ASSERT_EQ(ENOENT, rc);
			nothing++;
		} else {
			copied++;
			pause_a_little(n);
			ASSERT_EQ(0, unmap_it(self, other));
		}
	});
	set(&mapper.stop, true);
	ASSERT_EQ(0, pthread_join(mapper.thread, NULL));
	EXPECT_EQ(0, mapper.rc);
	EXPECT_LT(0, copied);
	EXPECT_LT(0, nothing);
	stop_readers(_metadata, self, changes);
}

/*
 * A BAR as a dma-buf, that is revoked
 */
static int export_bar(int device, uint64_t size)
{
	struct {
		struct vfio_device_feature feature;
		struct vfio_device_feature_dma_buf dma_buf;
		struct vfio_region_dma_range range;
	} args = {
		.feature.argsz = sizeof(args),
		.feature.flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF,
		.dma_buf.region_index = VFIO_PCI_BAR2_REGION_INDEX,
		.dma_buf.open_flags = O_RDWR | O_CLOEXEC,
		.dma_buf.nr_ranges = 1,
		.range.length = size,
	};

	return ioctl(device, VFIO_DEVICE_FEATURE, &args);
}

static uint64_t bar2_start(const char *bdf)
{
	char path[600], text[600];
	int i;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/resource", bdf);
	if (read_file(path, text, sizeof(text)))
		return 0;
	for (i = 0; i < 2 && strchr(text, '\n'); i++)
		memmove(text, strchr(text, '\n') + 1, strlen(strchr(text, '\n') + 1) + 1);
	return strtoull(text, NULL, 16);
}

static int set_memory(int device, bool on)
{
	return command_write(device, on ? PCI_COMMAND_MEMORY : 0);
}

TEST_F_TIMEOUT(race, dmabuf_revoked, 120)
{
	int dmabuf, exporter;
	unsigned int changes;
	uint64_t *pas, i;
	uint32_t dev_id;

	if (!find_device("0x1af4", "0x1110", self->exporter, sizeof(self->exporter)))
		SKIP(return, "no ivshmem device (1af4:1110), whose BAR has memory");
	ASSERT_EQ(0, ensure_bound(self->exporter));
	exporter = cdev_open(self->exporter);
	ASSERT_LE(0, exporter);
	ASSERT_EQ(0, bind_iommufd(exporter, self->iommufd, &dev_id));
	ASSERT_EQ(0, set_memory(exporter, true));
	pas = calloc(variant->pages, sizeof(*pas));
	ASSERT_NE(NULL, pas);
	pas[0] = bar2_start(self->exporter);
	ASSERT_NE(0, pas[0]);
	for (i = 1; i < variant->pages; i++)
		pas[i] = pas[0] + i * PAGE;
	dmabuf = export_bar(exporter, 4UL << 20);
	if (dmabuf < 0 && errno == ENOTTY)
		SKIP(return, "VFIO exports no dma-buf (CONFIG_PCI_P2PDMA)");
	ASSERT_LE(0, dmabuf);
	/* One that lives with another domain, which is filled as well */
	ASSERT_EQ(0, attach(self, self->ioas));
	self->readers[0].pas[0] = pas;
	self->readers[1].pas[0] = pas;
	start_readers(self, EINVAL, ENOENT, 0);
	changes = RACE({
		uint32_t hwpt = 0;

		ASSERT_EQ(0, ioas_map_file(self->iommufd, self->ioas, dmabuf, 0, self->size,
					   IOVA));
		if (n % 3 == 1)
			ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id, self->ioas, 0,
						&hwpt));
		pause_a_little(n);
		ASSERT_EQ(0, set_memory(exporter, false));
		ASSERT_EQ(EINVAL, get_pa_errno(self->iommufd, self->ioas, IOVA));
		if (n % 3 == 1)
			ASSERT_EQ(0, destroy(self->iommufd, hwpt));
		pause_a_little(n);
		ASSERT_EQ(0, unmap_it(self, self->ioas));
		ASSERT_EQ(0, set_memory(exporter, true));
	});
	stop_readers(_metadata, self, changes);
	close(dmabuf);
	close(exporter);
	free(pas);
}

/*
 * A device that loses its state while it sleeps gets back what it had before, which may
 * be from before a detach. Meanwhile its interrupt is masked, which reads, modifies and
 * writes the same register.
 */
struct masker {
	pthread_t thread;
	int device;
	bool stop;
	unsigned int turns;
};

static void *mask_all_the_time(void *arg)
{
	struct masker *masker = arg;

	while (!read_once(&masker->stop)) {
		if (set_intx(masker->device, VFIO_IRQ_SET_ACTION_MASK, -1) ||
		    set_intx(masker->device, VFIO_IRQ_SET_ACTION_UNMASK, -1))
			abort();
		write_once(&masker->turns, masker->turns + 1);
	}
	return NULL;
}

/* Not what VFIO shows of it */
static bool is_master(const char *bdf)
{
	uint16_t command = 0;
	char path[600];
	int fd;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/config", bdf);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (pread(fd, &command, 2, PCI_COMMAND) != 2)
		abort();
	close(fd);
	return command & PCI_COMMAND_MASTER;
}

TEST_F_TIMEOUT(race, wake_up_while_detached, 120)
{
	unsigned int changes, looks, pm, on = 0;
	uint16_t power, awake, asleep;
	struct masker masker = {};
	uint32_t dev_id;
	off_t control;
	int event;

	if (!find_device("0x8086", "0x10d3", self->exporter, sizeof(self->exporter)) ||
	    device_has_iommu(self->exporter) || !strcmp(self->exporter, self->bdf))
		SKIP(return, "no e1000e (8086:10d3) besides, which loses its state in D3hot");
	ASSERT_EQ(0, ensure_bound(self->exporter));
	masker.device = cdev_open(self->exporter);
	ASSERT_LE(0, masker.device);
	ASSERT_EQ(0, bind_iommufd(masker.device, self->iommufd, &dev_id));
	pm = find_pm(masker.device);
	ASSERT_NE(0, pm);
	control = command_offset(masker.device) - PCI_COMMAND + pm + PCI_PM_CTRL;
	ASSERT_EQ(2, pread(masker.device, &power, 2, control));
	ASSERT_EQ(0, power & PCI_PM_CTRL_NO_SOFT_RESET);
	awake = power & ~PCI_PM_CTRL_STATE_MASK;
	asleep = awake | 3;
	event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ASSERT_LE(0, event);
	ASSERT_EQ(0, set_intx(masker.device, VFIO_IRQ_SET_ACTION_TRIGGER, event));
	ASSERT_EQ(0, pthread_create(&masker.thread, NULL, mask_all_the_time, &masker));
	changes = RACE_UNTIL(3 * MSECS, on && read_once(&masker.turns) > 100, {
		uint32_t pt_id = self->ioas;

		ASSERT_EQ(0, attach_pt(masker.device, &pt_id));
		ASSERT_EQ(0, command_write(masker.device,
					   PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER));
		on += is_master(self->exporter);
		ASSERT_EQ(2, pwrite(masker.device, &asleep, 2, control));
		ASSERT_EQ(0, detach_pt(masker.device));
		ASSERT_EQ(2, pwrite(masker.device, &awake, 2, control));
		/* Whoever had read the register before has written it by then */
		for (looks = 0; looks < 20; looks++)
			if (is_master(self->exporter))
				break;
		ASSERT_EQ(20, looks);
	});
	write_once(&masker.stop, true);
	ASSERT_EQ(0, pthread_join(masker.thread, NULL));
	/* Whoever masks an interrupt may lose the bit as well */
	EXPECT_LT(0, on);
	TH_LOG("woke up %u times, %u of them with bus mastering saved, interrupt masked %u times",
	       changes, on, masker.turns);
	close(masker.device);
	close(event);
}

/*
 * What is mapped, while its source changes
 */
struct source {
	pthread_t thread;
	char *va;		/* what is mapped */
	char *from[2];		/* and what may be there, here meanwhile */
	size_t size;
	bool stop;
	unsigned int changes;
	int rc;
};

static void *fork_all_the_time(void *arg)
{
	struct source *source = arg;

	while (!get(&source->stop)) {
		pid_t pid = fork();
		int status;

		if (!pid) {
			/* A child's write must not take the page from its parent */
			source->va[source->changes * PAGE % source->size] = 1;
			_exit(0);
		}
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
			source->rc = 1;
		source->changes++;
	}
	return NULL;
}

/* Mapped is what the process has there, and it stays so whatever it writes */
TEST_F_TIMEOUT(race, fork_while_mapping, 120)
{
	char *va = anon(self->size, 0);
	struct iommu_noiommu_extent *extents = calloc(variant->pages, sizeof(*extents));
	struct source source = { .va = va, .size = self->size };
	struct reader reader = { .pages = variant->pages };
	unsigned int changes, moved = 0;
	uint64_t length, last = 0, i;
	struct pa_map map;
	bool seen[2];
	uint32_t nr;

	ASSERT_NE(NULL, extents);

	memset(va, 1, self->size);
	ASSERT_EQ(0, attach(self, self->ioas));
	ASSERT_EQ(0, pthread_create(&source.thread, NULL, fork_all_the_time, &source));
	changes = RACE_UNTIL(MSECS, moved > 1 && get(&source.changes) > 1, {
		ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, va, self->size, IOVA,
				      MAP_RW));
		memset(va, n, self->size);
		map = pa_map_of(va, variant->pages, IOVA);
		moved += map.pas[0] != last;
		last = map.pas[0];
		reader.pas[0] = map.pas;
		nr = variant->pages;
		length = self->size;
		ASSERT_EQ(0, get_pa_extents(self->iommufd, self->ioas, IOVA, &length,
					    extents, &nr));
		ASSERT_EQ(self->size, length);
		for (i = 0, length = 0; i < nr; length += extents[i++].length)
			check_run(&reader, IOVA + length, extents[i].phys,
				  extents[i].length, seen);
		ASSERT_EQ(self->size, length);
		ASSERT_EQ(0, reader.wrong) TH_LOG("%s", reader.first_wrong);
		free(map.pas);
		ASSERT_EQ(0, unmap_it(self, self->ioas));
		/* Unpinned, a page that a child shares is copied for the parent */
		memset(va, n, self->size);
	});
	set(&source.stop, true);
	ASSERT_EQ(0, pthread_join(source.thread, NULL));
	TH_LOG("%u maps, %u forks, moved %u times", changes, source.changes, moved);
	EXPECT_EQ(0, source.rc);
	EXPECT_LT(1, source.changes);
	EXPECT_LT(1, moved);
	munmap(va, self->size);
	free(extents);
}

#define FAR_AWAY ((char *)0x100000000000)

/* Either memory, or a hole */
static void *move_all_the_time(void *arg)
{
	struct source *source = arg;

	for (; !get(&source->stop); source->changes++) {
		char *from = source->from[source->changes % 2];

		if (mremap(from, source->size, source->size, MREMAP_MAYMOVE | MREMAP_FIXED,
			   source->va) != source->va)
			source->rc = 1;
		pause_a_little(source->changes);
		if (mremap(source->va, source->size, source->size,
			   MREMAP_MAYMOVE | MREMAP_FIXED, from) != from)
			source->rc = 1;
	}
	return NULL;
}

TEST_F_TIMEOUT(race, mremap_of_the_source, 120)
{
	struct source source = { .size = self->size };
	unsigned int changes, maps = 0, faults = 0;
	int i;

	ASSERT_EQ(0, attach(self, self->ioas));
	/* Where nobody else's memory comes to lie in the holes that are left behind */
	source.va = FAR_AWAY;
	for (i = 0; i < 2; i++) {
		char *to = FAR_AWAY + (i + 1) * (1UL << 30);

		ASSERT_EQ(to, mremap(self->va[i], self->size, self->size,
				     MREMAP_MAYMOVE | MREMAP_FIXED, to));
		source.from[i] = to;
		self->va[i] = to;
	}
	start_readers(self, ENOENT, 0, 0);
	ASSERT_EQ(0, pthread_create(&source.thread, NULL, move_all_the_time, &source));
	changes = RACE_UNTIL(MSECS, raced(self) && maps && faults, {
		int rc = ioas_map(self->iommufd, self->ioas, source.va, self->size, IOVA,
				  MAP_RW);

		if (rc) {
			ASSERT_EQ(EFAULT, rc);
			faults++;
		} else {
			maps++;
			pause_a_little(n);
			ASSERT_EQ(0, unmap_it(self, self->ioas));
		}
	});
	set(&source.stop, true);
	ASSERT_EQ(0, pthread_join(source.thread, NULL));
	TH_LOG("%u maps, %u faults, moved %u times", maps, faults, source.changes);
	EXPECT_EQ(0, source.rc);
	EXPECT_LT(0, maps);
	EXPECT_LT(0, faults);
	stop_readers(_metadata, self, changes);
}

static void *drop_all_the_time(void *arg)
{
	struct source *source = arg;

	for (; !get(&source->stop); source->changes++) {
		if (source->changes % 2) {
			if (madvise(source->va, source->size, MADV_DONTNEED))
				source->rc = 1;
		} else if (mmap(source->va, source->size, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
			   source->va) {
			source->rc = 1;
		}
	}
	return NULL;
}

/* What the source has lost stays pinned where it is, and is nobody else's */
TEST_F_TIMEOUT(race, munmap_of_the_source, 120)
{
	struct iommu_noiommu_extent *extents = calloc(2 * variant->pages, sizeof(*extents));
	struct iommu_noiommu_extent *again = extents + variant->pages;
	struct source source = { .size = self->size };
	char *other = anon(self->size, 0);
	unsigned int changes;
	struct pa_map map;
	uint64_t i, j;

	ASSERT_NE(NULL, extents);
	ASSERT_EQ(0, attach(self, self->ioas));
	source.va = anon(self->size, 0);
	ASSERT_EQ(0, pthread_create(&source.thread, NULL, drop_all_the_time, &source));
	changes = RACE_UNTIL(MSECS, get(&source.changes) > 1, {
		uint64_t length[2] = { self->size, self->size };
		uint32_t nr[2] = { variant->pages, variant->pages };

		ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, source.va, self->size,
				      IOVA, MAP_RW));
		ASSERT_EQ(0, get_pa_extents(self->iommufd, self->ioas, IOVA, &length[0],
					    extents, &nr[0]));
		ASSERT_EQ(self->size, length[0]);
		/* Memory that is taken meanwhile is other memory */
		madvise(other, self->size, MADV_DONTNEED);
		memset(other, n, self->size);
		map = pa_map_of(other, variant->pages, 0);
		for (i = 0; i < variant->pages && i < 64; i++)
			for (j = 0; j < nr[0]; j++)
				ASSERT_FALSE(map.pas[i] >= extents[j].phys &&
					     map.pas[i] - extents[j].phys < extents[j].length);
		free(map.pas);
		ASSERT_EQ(0, get_pa_extents(self->iommufd, self->ioas, IOVA, &length[1],
					    again, &nr[1]));
		ASSERT_EQ(length[0], length[1]);
		ASSERT_EQ(nr[0], nr[1]);
		ASSERT_EQ(0, memcmp(extents, again, nr[0] * sizeof(*extents)));
		ASSERT_EQ(0, unmap_it(self, self->ioas));
	});
	set(&source.stop, true);
	ASSERT_EQ(0, pthread_join(source.thread, NULL));
	TH_LOG("%u maps, dropped %u times", changes, source.changes);
	EXPECT_EQ(0, source.rc);
	EXPECT_LT(1, source.changes);
	munmap(source.va, self->size);
	munmap(other, self->size);
	free(extents);
}

/*
 * The process that is charged for what is pinned changes. All that is mapped has to
 * be files.
 */
static int change_process(int fd)
{
	struct iommu_ioas_change_process cmd = { .size = sizeof(cmd) };

	return ERRNO_OF(ioctl(fd, IOMMU_IOAS_CHANGE_PROCESS, &cmd));
}

struct changer {
	pthread_t thread;
	int fd;
	bool stop;
	unsigned int changed;
	unsigned int busy;
	int rc;
};

static void *change_all_the_time(void *arg)
{
	struct changer *changer = arg;

	while (!get(&changer->stop)) {
		int rc = change_process(changer->fd);

		if (!rc)
			changer->changed++;
		else if (rc == EBUSY)
			changer->busy++;
		else
			changer->rc = rc;
	}
	return NULL;
}

static long long my_pinned(void)
{
	return read_field("/proc/self/status", "VmPin:");
}

/* Without CAP_IPC_LOCK it counts against a limit, and so in other places */
static int lose_ipc_lock(void)
{
	struct rlimit limit = { RLIM_INFINITY, RLIM_INFINITY };

	return setrlimit(RLIMIT_MEMLOCK, &limit) ? errno : drop_capability(CAP_IPC_LOCK);
}

static void do_change_process(struct __test_metadata *_metadata,
			      struct _test_data_race *self, size_t pages)
{
	struct { struct changer changer; long long pinned; } *child;
	struct changer changer = { .fd = self->iommufd };
	int memfd[2], to[2], from[2], i, status;
	long long before = my_pinned();
	unsigned int changes;
	char byte;
	pid_t pid;

	child = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, child);
	child->changer.fd = self->iommufd;
	for (i = 0; i < 2; i++) {
		char *va;

		memfd[i] = memfd_create("race", MFD_CLOEXEC);
		ASSERT_EQ(0, ftruncate(memfd[i], self->size));
		va = mmap(NULL, self->size, PROT_READ | PROT_WRITE, MAP_SHARED, memfd[i], 0);
		ASSERT_NE(MAP_FAILED, va);
		touch_scattered(va, self->size);
		free(self->pas[i]);
		self->pas[i] = pa_map_of(va, pages, IOVA).pas;
		self->va[i] = va;
	}
	ASSERT_EQ(0, attach(self, self->ioas));
	ASSERT_EQ(0, pipe(to));
	ASSERT_EQ(0, pipe(from));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		close(to[1]);
		change_all_the_time(&child->changer);
		/* When all is still, it takes over what is mapped, and says how much */
		if (read(to[0], &byte, 1) != 1 || change_process(self->iommufd))
			_exit(1);
		child->pinned = my_pinned();
		if (write(from[1], "", 1) != 1 || read(to[0], &byte, 1) != 1)
			_exit(1);
		_exit(my_pinned() != 0);
	}
	start_readers(self, ENOENT, 0, 0);
	ASSERT_EQ(0, pthread_create(&changer.thread, NULL, change_all_the_time, &changer));
	changes = RACE_UNTIL(MSECS, raced(self) && get(&changer.changed) &&
			     get(&child->changer.changed), {
		ASSERT_EQ(0, ioas_map_file(self->iommufd, self->ioas, memfd[n % 2], 0,
					   self->size, IOVA));
		pause_a_little(n);
		ASSERT_EQ(0, unmap_it(self, self->ioas));
	});
	set(&changer.stop, true);
	set(&child->changer.stop, true);
	ASSERT_EQ(0, pthread_join(changer.thread, NULL));
	stop_readers(_metadata, self, changes);
	TH_LOG("process changed %u and %u times, busy %u and %u", changer.changed,
	       child->changer.changed, changer.busy, child->changer.busy);
	EXPECT_EQ(0, changer.rc);
	EXPECT_EQ(0, child->changer.rc);
	EXPECT_LT(0, changer.changed);
	EXPECT_LT(0, child->changer.changed);
	EXPECT_EQ(before, my_pinned());

	ASSERT_EQ(0, ioas_map_file(self->iommufd, self->ioas, memfd[0], 0, self->size, IOVA));
	EXPECT_EQ(before + (long long)self->size / 1024, my_pinned());
	ASSERT_EQ(1, write(to[1], "", 1));
	ASSERT_EQ(1, read(from[0], &byte, 1));
	EXPECT_EQ(before, my_pinned());
	EXPECT_EQ((long long)self->size / 1024, child->pinned);
	ASSERT_EQ(0, unmap_it(self, self->ioas));
	ASSERT_EQ(1, write(to[1], "", 1));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFEXITED(status));
	EXPECT_EQ(0, WEXITSTATUS(status));
	for (i = 0; i < 2; i++) {
		close(memfd[i]);
		close(to[i]);
		close(from[i]);
	}
}

TEST_F_TIMEOUT(race, change_process, 120)
{
	do_change_process(_metadata, self, variant->pages);
}

TEST_F_TIMEOUT(race, change_process_and_user, 120)
{
	ASSERT_EQ(0, lose_ipc_lock());
	do_change_process(_metadata, self, variant->pages);
}

/* Charged as VFIO's containers do */
TEST_F_TIMEOUT(race, change_process_and_locked, 120)
{
	ASSERT_EQ(0, lose_ipc_lock());
	close(self->device);
	close(self->iommufd);
	self->iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->iommufd);
	ASSERT_EQ(0, set_option(self->iommufd, IOMMU_OPTION_RLIMIT_MODE, 0, 1));
	self->device = cdev_open(self->bdf);
	ASSERT_EQ(0, bind_iommufd(self->device, self->iommufd, &self->dev_id));
	ASSERT_EQ(0, new_ioas(self, variant->no_large_pages, &self->ioas));
	do_change_process(_metadata, self, variant->pages);
	EXPECT_EQ(0, read_field("/proc/self/status", "VmLck:"));
}

/* All of a process, in the middle of it all */
TEST_F_TIMEOUT(race, sigkill, 120)
{
	unsigned int changes;
	int status;

	close(self->device);
	close(self->iommufd);
	self->device = -1;
	self->iommufd = -1;
	changes = RACE_UNTIL(RESETS * MSECS, raced(self), {
		pid_t pid = fork();

		ASSERT_LE(0, pid);
		if (!pid) {
			struct mapper mapper = { .self = self };
			unsigned int i;

			if (open_all(self, -1) ||
			    new_ioas(self, variant->no_large_pages, &self->ioas) ||
			    attach(self, self->ioas))
				_exit(1);
			mapper.ioas = self->ioas;
			start_readers(self, ENOENT, EOPNOTSUPP, 0);
			pthread_create(&mapper.thread, NULL, map_and_unmap, &mapper);
			for (i = 0;; i++)
				if (detach_pt(self->device) || attach(self, self->ioas))
					_exit(1);
		}
		usleep(10000 + n * 7919 % 30000);
		ASSERT_EQ(0, kill(pid, SIGKILL));
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		ASSERT_TRUE(WIFSIGNALED(status));
		ASSERT_EQ(self->pinned, pinned_pages());
	});
	TH_LOG("killed %u times", changes);
	EXPECT_LT(1, changes);
}

/*
 * The last thing that the close of a fault queue does is to drop the reference that
 * keeps IOMMU_DESTROY from freeing the queue. One CPU runs the thread that closes and,
 * with a higher priority, the thread that destroys. The test wakes the latter from
 * another CPU, later if the queue was still busy and sooner if it was not, so that the
 * wakeups gather around that moment.
 */
#define CLOSE_DELAY 10000

struct queue {
	pthread_t closer;
	pthread_t destroyer;
	int iommufd;
	int cpu;
	int wakeup;		/* eventfd that the destroyer reads */
	uint32_t id;
	int fd;			/* to be closed, then -1 */
	bool tried;		/* the destroyer has set rc */
	bool stop;
	int rc;
};

static int run_on(int cpu)
{
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(cpu, &cpus);
	return sched_setaffinity(0, sizeof(cpus), &cpus);
}

static void *close_queue(void *arg)
{
	struct queue *queue = arg;
	int fd, i;

	if (run_on(queue->cpu))
		abort();
	while (!get(&queue->stop)) {
		fd = get(&queue->fd);
		if (fd < 0)
			continue;
		/* Longer than a wakeup takes, so that one can come too early */
		for (i = 0; i < CLOSE_DELAY; i++)
			get(&queue->fd);
		close(fd);
		set(&queue->fd, -1);
	}
	return NULL;
}

static void *destroy_queue(void *arg)
{
	struct sched_param param = { .sched_priority = 1 };
	struct queue *queue = arg;
	uint64_t count;

	if (run_on(queue->cpu) || sched_setscheduler(0, SCHED_FIFO, &param))
		abort();
	while (read(queue->wakeup, &count, sizeof(count)) == sizeof(count) &&
	       !get(&queue->stop)) {
		queue->rc = destroy(queue->iommufd, queue->id);
		set(&queue->tried, true);
	}
	return NULL;
}

TEST_F_TIMEOUT(race, fault_queue_close_and_destroy, 120)
{
	struct queue queue = { .iommufd = self->iommufd, .fd = -1 };
	unsigned int changes, early = 0, late = 0;
	unsigned long delay = CLOSE_DELAY, i;
	const uint64_t one = 1;
	int cpus[2], nr = 0;
	cpu_set_t allowed;

	ASSERT_EQ(0, sched_getaffinity(0, sizeof(allowed), &allowed));
	for (i = 0; i < CPU_SETSIZE && nr < 2; i++)
		if (CPU_ISSET(i, &allowed))
			cpus[nr++] = i;
	if (nr < 2)
		SKIP(return, "needs two CPUs");
	queue.wakeup = eventfd(0, EFD_CLOEXEC);
	ASSERT_LE(0, queue.wakeup);
	queue.cpu = cpus[0];
	ASSERT_EQ(0, pthread_create(&queue.closer, NULL, close_queue, &queue));
	ASSERT_EQ(0, pthread_create(&queue.destroyer, NULL, destroy_queue, &queue));
	ASSERT_EQ(0, run_on(cpus[1]));

	changes = RACE_UNTIL(RESETS * MSECS, early && late, {
		struct iommu_fault_alloc fault = { .size = sizeof(fault) };

		ASSERT_EQ(0, ioctl(self->iommufd, IOMMU_FAULT_QUEUE_ALLOC, &fault));
		queue.id = fault.out_fault_id;
		set(&queue.tried, false);
		set(&queue.fd, (int)fault.out_fault_fd);
		for (i = 0; i < delay; i++)
			get(&queue.fd);
		ASSERT_EQ(sizeof(one), write(queue.wakeup, &one, sizeof(one)));
		while (!get(&queue.tried) || get(&queue.fd) >= 0)
			;
		if (queue.rc == EBUSY) {
			early++;
			delay += delay / 64 + 1;
			ASSERT_EQ(0, destroy(self->iommufd, queue.id));
		} else {
			late++;
			delay -= delay / 64;
			ASSERT_EQ(0, queue.rc);
		}
	});
	set(&queue.stop, true);
	ASSERT_EQ(sizeof(one), write(queue.wakeup, &one, sizeof(one)));
	ASSERT_EQ(0, pthread_join(queue.closer, NULL));
	ASSERT_EQ(0, pthread_join(queue.destroyer, NULL));
	close(queue.wakeup);
	TH_LOG("%u queues, %u times too early, %u times after the close, delay %lu", changes,
	       early, late, delay);
	EXPECT_LT(0, early);
	EXPECT_LT(0, late);
}

/*
 * Registration decides whether a device is noiommu, and nothing that changes later
 * changes that: neither the switch nor an IOMMU that comes
 */
FIXTURE(decision)
{
	char bdf[256];
	char viommu[256];	/* an IOMMU's name on the virtio bus */
	bool viommu_was_bound;
	bool has_group;		/* group noiommu is configured */
	char *va;
	long long pinned;
};

FIXTURE_SETUP(decision)
{
	if (!find_device("0x1b36", "0x0010", self->bdf, sizeof(self->bdf)))
		SKIP(return, "no NVMe disk (1b36:0010)");
	self->pinned = pinned_pages();
	self->va = anon(PAGE, MAP_POPULATE);
	ASSERT_EQ(0, noiommu_switch(true));
}

/* Of each time that it is opened, which resets it */
#define ATTACHES 1000

#define VIRTIO_IOMMU "/sys/bus/virtio/drivers/virtio_iommu/"

FIXTURE_TEARDOWN(decision)
{
	noiommu_switch(true);
	if (self->viommu_was_bound) {
		device_unbind(self->bdf);
		/* It fails where the test ended with the driver bound */
		write_file(VIRTIO_IOMMU "bind", self->viommu);
	}
	EXPECT_EQ(self->pinned, pinned_pages());
}

/*
 * A program from open to close, which attaches the device so many times: NULL, or the
 * call that failed and its errno, as a text to log
 */
static const char *use_device(struct _test_data_decision *self, unsigned int times)
{
	uint32_t dev_id = 0, ioas = 0, hwpt = 0, pt_id;
	uint64_t length = 1, phys = 0;
	int device, iommufd, rc = 0;
	const char *what = NULL;
	static char text[80];

#define DO(call)								\
	do {									\
		if (!what) {							\
			rc = (call);						\
			what = rc ? #call : NULL;				\
		}								\
	} while (0)
	DO(open_bound(self->bdf, &device, &iommufd, &dev_id));
	DO(ioas_alloc(iommufd, &ioas));
	DO(ioas_map(iommufd, ioas, self->va, PAGE, IOVA, MAP_RW));
	while (times-- && !what) {
		DO(hwpt_alloc(iommufd, dev_id, ioas, 0, &hwpt));
		pt_id = hwpt;
		DO(attach_pt(device, &pt_id));
		pt_id = ioas;
		DO(attach_pt(device, &pt_id));
		DO(get_pa(iommufd, ioas, IOVA, &length, &phys));
		DO(phys == pagemap_pa(self->va) ? 0 : EBADMSG);
		DO(detach_pt(device));
		DO(destroy(iommufd, hwpt));
	}
#undef DO
	close(device);
	close(iommufd);
	if (what)
		snprintf(text, sizeof(text), "%s: errno %d", what, rc);
	return what ? text : NULL;
}

/* Opens the device by its group, with iommufd as the container */
static bool use_group(struct _test_data_decision *self)
{
	int iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC), group, device = -1;
	char path[600] = "";

	group_path(self->bdf, path, sizeof(path));
	group = open(path, O_RDWR | O_CLOEXEC);
	if (group >= 0 && !ioctl(group, VFIO_GROUP_SET_CONTAINER, &iommufd))
		device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, self->bdf);
	close(device);
	close(group);
	close(iommufd);
	return device >= 0;
}

static const char *use_both_ways(struct _test_data_decision *self)
{
	const char *failed = use_device(self, 2);

	if (!failed && self->has_group && !use_group(self))
		failed = "the group";
	return failed;
}

static bool has_group_node(const char *bdf)
{
	char path[600];

	return group_path(bdf, path, sizeof(path)) && !access(path, F_OK);
}

struct flipper {
	pthread_t thread;
	bool stop;
	unsigned int flips;
};

static void *flip_switch(void *arg)
{
	struct flipper *flipper = arg;

	while (!get(&flipper->stop))
		if (noiommu_switch(++flipper->flips % 2))
			abort();
	return NULL;
}

TEST_F_TIMEOUT(decision, switch_flipped_while_bound, 120)
{
	unsigned int registered = 0, refused = 0, rounds;
	struct flipper flipper = {};
	char name[256];
	const char *failed;

	if (device_has_iommu(self->bdf))
		SKIP(return, "%s has an IOMMU", self->bdf);
	ASSERT_EQ(0, ensure_bound(self->bdf));
	self->has_group = has_group_node(self->bdf);
	ASSERT_EQ(0, pthread_create(&flipper.thread, NULL, flip_switch, &flipper));
	rounds = RACE_UNTIL(20 * MSECS, registered >= 64 && refused, {
		int rc;

		device_unbind(self->bdf);
		rc = device_bind(self->bdf);
		if (rc) {
			/* As a whole: it left no node */
			ASSERT_EQ(-EINVAL, rc);
			ASSERT_FALSE(cdev_name(self->bdf, name, sizeof(name)));
			refused++;
		} else {
			ASSERT_TRUE(cdev_name(self->bdf, name, sizeof(name)));
			ASSERT_EQ(0, strncmp(name, "noiommu-vfio", 12)) TH_LOG("%s", name);
			ASSERT_EQ(self->has_group, has_group_node(self->bdf));
			/* A use takes as long as many registrations */
			failed = registered++ % 16 ? NULL : use_both_ways(self);
			ASSERT_EQ(NULL, failed) TH_LOG("%s", failed);
		}
	});
	set(&flipper.stop, true);
	ASSERT_EQ(0, pthread_join(flipper.thread, NULL));
	TH_LOG("%u flips, %u rounds: %u registered, %u refused", flipper.flips,
	       rounds, registered, refused);
	ASSERT_EQ(0, noiommu_switch(true));
	ASSERT_EQ(0, ensure_bound(self->bdf));
}

/*
 * The driver of an IOMMU is bound and unbound all the time. It probes each device, and
 * one that has a driver already stays what it is. Meanwhile dev->iommu is set for some
 * instructions.
 */
struct iommu_driver {
	pthread_t thread;
	const char *bdf;
	const char *viommu;
	bool stop;
	unsigned int turns;
	int rc;
};

/* A device that the IOMMU serves, if there is one */
static bool serves(const char *bdf, char *name, size_t size)
{
	char path[600];

	snprintf(path, sizeof(path), "/sys/class/iommu/%s/devices", bdf);
	return find_entry(path, "", name, size);
}

static void *come_and_go(void *arg)
{
	struct iommu_driver *driver = arg;
	char name[256];

	while (!get(&driver->stop) && !driver->rc) {
		driver->rc = write_file(VIRTIO_IOMMU "bind", driver->viommu);
		if (!driver->rc && serves(driver->bdf, name, sizeof(name)))
			driver->rc = -EBUSY;
		if (!driver->rc)
			driver->rc = write_file(VIRTIO_IOMMU "unbind", driver->viommu);
		set(&driver->turns, driver->turns + 1);
	}
	return NULL;
}

TEST_F_TIMEOUT(decision, iommu_driver_comes_and_goes, 240)
{
	char bdf[256], path[600], name[256];
	struct iommu_driver driver = { .bdf = bdf, .viommu = self->viommu };
	const char *failed;
	unsigned int used;

	if (!find_device("0x1af4", "0x1057", bdf, sizeof(bdf)))
		SKIP(return, "no virtio-iommu (1af4:1057)");
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s", bdf);
	if (access(VIRTIO_IOMMU, F_OK) ||
	    !find_entry(path, "virtio", self->viommu, sizeof(self->viommu)))
		SKIP(return, "no driver of virtio-iommu (CONFIG_VIRTIO_IOMMU)");
	snprintf(path, sizeof(path), VIRTIO_IOMMU "%s", self->viommu);
	self->viommu_was_bound = !access(path, F_OK);
	if (self->viommu_was_bound) {
		/* virtio_iommu oopses when it is unbound while it serves a device */
		while (serves(bdf, name, sizeof(name))) {
			if (!device_may_be_used(name))
				SKIP(return, "%s is behind the IOMMU too", name);
			ASSERT_EQ(0, device_write(name, "remove", "1"));
		}
		ASSERT_EQ(0, write_file(VIRTIO_IOMMU "unbind", self->viommu));
		ASSERT_EQ(0, write_file("/sys/bus/pci/rescan", "1"));
	}
	ASSERT_FALSE(device_has_iommu(self->bdf));
	ASSERT_EQ(0, ensure_bound(self->bdf));
	if (group_path(self->bdf, path, sizeof(path)))
		SKIP(return, "with group noiommu the device has a group, and IOMMUs leave it");
	ASSERT_EQ(NULL, use_device(self, 1));

	ASSERT_EQ(0, pthread_create(&driver.thread, NULL, come_and_go, &driver));
	used = RACE_UNTIL(20 * MSECS, get(&driver.turns) >= 200 || get(&driver.rc), {
		failed = use_device(self, ATTACHES);
		ASSERT_EQ(NULL, failed) TH_LOG("turn %u, %s", get(&driver.turns), failed);
		ASSERT_FALSE(device_has_iommu(self->bdf));
	});
	set(&driver.stop, true);
	ASSERT_EQ(0, pthread_join(driver.thread, NULL));
	EXPECT_EQ(0, driver.rc) TH_LOG("-16: it serves a device that has no driver");
	TH_LOG("opened %u times, attached %u times each, while the driver came %u times", used,
	       ATTACHES, driver.turns);

	/* And when it has come for good */
	ASSERT_EQ(0, write_file(VIRTIO_IOMMU "bind", self->viommu));
	EXPECT_EQ(NULL, use_device(self, 1));
	/* The IOMMU is for a device that is added after it */
	ASSERT_EQ(0, device_write(self->bdf, "remove", "1"));
	ASSERT_EQ(0, write_file("/sys/bus/pci/rescan", "1"));
	EXPECT_TRUE(device_has_iommu(self->bdf));
	ASSERT_EQ(0, device_bind(self->bdf));
	ASSERT_TRUE(cdev_name(self->bdf, name, sizeof(name)));
	EXPECT_EQ(0, strncmp(name, "vfio", 4));
	device_unbind(self->bdf);
}

TEST_HARNESS_MAIN
