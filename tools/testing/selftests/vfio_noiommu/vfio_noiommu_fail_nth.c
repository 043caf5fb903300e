// SPDX-License-Identifier: GPL-2.0-only
/*
 * Fail every allocation of bind, HWPT_ALLOC, attach, replace, map, GET_PA and
 * detach in turn: each failure has to leave all as it was before.
 *
 * Documentation/fault-injection/fault-injection.rst, /proc/self/fail-nth
 */
#include "kselftest_harness.h"
#include "vfio_noiommu_util.h"

#define PAGE 4096UL
#define IOVA 0x10000000UL

FIXTURE(fail_nth)
{
	char bdf[256];
	int proc;
	int iommufd;
	int device;
	long long pinned;
	unsigned int points;
};

FIXTURE_SETUP(fail_nth)
{
	self->proc = open("/proc/self/fail-nth", O_RDWR);
	if (self->proc < 0 ||
	    write_file("/sys/kernel/debug/failslab/ignore-gfp-wait", "N") ||
	    write_file("/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait", "N"))
		SKIP(return, "no fault injection (FAILSLAB, FAIL_PAGE_ALLOC, debugfs)");
	/* Page tables are single pages */
	write_file("/sys/kernel/debug/fail_page_alloc/min-order", "0");
	write_file("/sys/kernel/debug/fail_page_alloc/verbose", "0");
	write_file("/sys/kernel/debug/failslab/verbose", "0");
	if (!find_device("0x1b36", "0x0010", self->bdf, sizeof(self->bdf)))
		SKIP(return, "no NVMe controller");
	if (device_has_iommu(self->bdf))
		SKIP(return, "%s has an IOMMU", self->bdf);
	ASSERT_EQ(0, noiommu_switch(true));
	ASSERT_EQ(0, ensure_bound(self->bdf));
	self->iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->iommufd);
	self->device = cdev_open(self->bdf);
	ASSERT_LE(0, self->device);
	self->pinned = pinned_pages();
}

FIXTURE_TEARDOWN(fail_nth)
{
	if (!self->bdf[0])
		return;
	close(self->device);
	close(self->iommufd);
	EXPECT_EQ(self->pinned, pinned_pages());
}

static void set_nth(struct _test_data_fail_nth *self, int nth)
{
	char text[16];

	snprintf(text, sizeof(text), "%d", nth);
	if (pwrite(self->proc, text, strlen(text), 0) < 0)
		abort();
}

/* Was there an nth allocation that could be failed? */
static bool nth_was_hit(struct _test_data_fail_nth *self)
{
	char text[16] = "";

	if (pread(self->proc, text, sizeof(text) - 1, 0) < 0)
		abort();
	set_nth(self, 0);
	return !atoi(text);
}

/*
 * Repeat a call until its nth allocation does not exist. The errno is that of
 * the point: iommufd adds some that are not allocations, such as the lookup of an
 * ID. A call may succeed in spite of one. Then it is undone and the next failed.
 */
#define FAIL_EACH(name, call, undo)						\
	do {									\
		unsigned int nth;						\
										\
		for (nth = 1; nth < 1000; nth++) {				\
			int rc;							\
			bool hit;						\
										\
			set_nth(self, nth);					\
			rc = (call);						\
			hit = nth_was_hit(self);				\
			if (!hit) {						\
				ASSERT_EQ(0, rc);				\
				break;						\
			}							\
			if (!rc)						\
				ASSERT_EQ(0, (undo)) TH_LOG("point %u", nth);	\
		}								\
		ASSERT_GT(1000, nth);						\
		TH_LOG(name ": %u points", nth - 1);				\
		self->points += nth - 1;					\
	} while (0)

TEST_F(fail_nth, bind)
{
	uint32_t dev_id;

	/* A bind is undone by closing the device */
	FAIL_EACH("bind", bind_iommufd(self->device, self->iommufd, &dev_id), ({
		close(self->device);
		self->device = cdev_open(self->bdf);
		self->device < 0;
	}));
	EXPECT_LT(0, self->points);
}

TEST_F(fail_nth, all_but_bind)
{
	uint32_t dev_id, ioas, other, hwpt, hwpt2, pt_id;
	char *va = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	ASSERT_NE(MAP_FAILED, va);
	ASSERT_EQ(0, bind_iommufd(self->device, self->iommufd, &dev_id));
	ASSERT_EQ(0, ioas_alloc(self->iommufd, &ioas));
	ASSERT_EQ(0, ioas_alloc(self->iommufd, &other));
	ASSERT_EQ(0, ioas_map(self->iommufd, ioas, va, 16 * PAGE, IOVA, MAP_RW));
	ASSERT_EQ(0, ioas_map(self->iommufd, other, va, 16 * PAGE, IOVA, MAP_RW));

	/* An attach to an IOAS allocates a HWPT and fills it */
	FAIL_EACH("attach to an IOAS", ({
		pt_id = ioas;
		attach_pt(self->device, &pt_id);
	}), detach_pt(self->device));
	EXPECT_EQ(self->pinned + 16, pinned_pages());

	FAIL_EACH("HWPT_ALLOC", hwpt_alloc(self->iommufd, dev_id, ioas, 0, &hwpt),
		  destroy(self->iommufd, hwpt));
	ASSERT_EQ(0, hwpt_alloc(self->iommufd, dev_id, other, 0, &hwpt2));

	/* What failed leaves the device attached to what it was */
	FAIL_EACH("replace by a HWPT", ({
		pt_id = hwpt;
		attach_pt(self->device, &pt_id);
	}), ({
		pt_id = ioas;
		attach_pt(self->device, &pt_id);
	}));
	FAIL_EACH("replace by another IOAS", ({
		pt_id = other;
		attach_pt(self->device, &pt_id);
	}), ({
		pt_id = hwpt;
		attach_pt(self->device, &pt_id);
	}));
	EXPECT_EQ(0, get_pa_errno(self->iommufd, other, IOVA));

	FAIL_EACH("map", ioas_map(self->iommufd, other, va + 16 * PAGE, 48 * PAGE,
				  1ULL << 60, MAP_RW),
		  ioas_unmap(self->iommufd, other, 1ULL << 60, 48 * PAGE));
	FAIL_EACH("GET_PA", get_pa_errno(self->iommufd, other, IOVA), 0);
	FAIL_EACH("unmap", ioas_unmap(self->iommufd, other, 1ULL << 60, 48 * PAGE),
		  ioas_map(self->iommufd, other, va + 16 * PAGE, 48 * PAGE,
			   1ULL << 60, MAP_RW));
	FAIL_EACH("detach", detach_pt(self->device), ({
		pt_id = other;
		attach_pt(self->device, &pt_id);
	}));
	EXPECT_EQ(0, destroy(self->iommufd, hwpt));
	EXPECT_EQ(0, destroy(self->iommufd, hwpt2));
	/* Attach to an IOAS, HWPT_ALLOC, replace and map allocate at least */
	EXPECT_LT(10, self->points);
}

TEST_HARNESS_MAIN
