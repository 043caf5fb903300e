// SPDX-License-Identifier: GPL-2.0-only
/*
 * Fail every allocation of bind, HWPT_ALLOC, attach, replace, map, GET_PA and
 * detach in turn: each failure has to leave all as it was before.
 */
#include "kselftest_harness.h"
#include "vfio_noiommu_util.h"

#define IOVA 0x10000000UL

FIXTURE(fail_nth)
{
	char bdf[256];
	int proc;
	int iommufd;
	int device;
	long long pinned;
};

FIXTURE_SETUP(fail_nth)
{
	self->proc = fail_nth_open();
	if (self->proc < 0)
		SKIP(return, "no fault injection (FAILSLAB, FAIL_PAGE_ALLOC, debugfs)");
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

static bool pins_are(struct _test_data_fail_nth *self, int pages)
{
	return pinned_pages() == self->pinned + pages;
}

TEST_F(fail_nth, bind)
{
	uint32_t dev_id;

	/* A bind is undone by closing the device */
	FAIL_EACH("bind", bind_iommufd(self->device, self->iommufd, &dev_id), ({
		close(self->device);
		self->device = cdev_open(self->bdf);
		self->device < 0;
	}), pins_are(self, 0));
}

TEST_F(fail_nth, all_but_bind)
{
	uint32_t dev_id, ioas, other, hwpt, hwpt2, pt_id;
	char *va = anon(64 * PAGE, MAP_POPULATE);
	uint64_t iova = 0;

	ASSERT_EQ(0, bind_iommufd(self->device, self->iommufd, &dev_id));
	ASSERT_EQ(0, ioas_alloc(self->iommufd, &ioas));
	ASSERT_EQ(0, ioas_alloc(self->iommufd, &other));
	ASSERT_EQ(0, ioas_map(self->iommufd, ioas, va, 16 * PAGE, IOVA, MAP_RW));
	ASSERT_EQ(0, ioas_map(self->iommufd, other, va, 16 * PAGE, IOVA, MAP_RW));

	/* An attach to an IOAS allocates a HWPT and fills it */
	FAIL_EACH("attach to an IOAS", ({
		pt_id = ioas;
		attach_pt(self->device, &pt_id);
	}), detach_pt(self->device), pins_are(self, 0));
	EXPECT_TRUE(pins_are(self, 16));

	FAIL_EACH("HWPT_ALLOC", hwpt_alloc(self->iommufd, dev_id, ioas, 0, &hwpt),
		  destroy(self->iommufd, hwpt), pins_are(self, 16));
	ASSERT_EQ(0, hwpt_alloc(self->iommufd, dev_id, other, 0, &hwpt2));

	/* What failed leaves the device attached to what it was */
	FAIL_EACH("replace by a HWPT", ({
		pt_id = hwpt;
		attach_pt(self->device, &pt_id);
	}), ({
		pt_id = ioas;
		attach_pt(self->device, &pt_id);
	}), !destroy(self->iommufd, hwpt) &&
	    !hwpt_alloc(self->iommufd, dev_id, ioas, 0, &hwpt));
	FAIL_EACH("replace by another IOAS", ({
		pt_id = other;
		attach_pt(self->device, &pt_id);
	}), ({
		pt_id = hwpt;
		attach_pt(self->device, &pt_id);
	}), destroy(self->iommufd, hwpt) == EBUSY);
	EXPECT_EQ(0, get_pa_errno(self->iommufd, other, IOVA));

	/* So far apart that the tables of an earlier attempt are no use */
	FAIL_EACH_AT("map", iova = (uint64_t)nth << 30,
		     ioas_map(self->iommufd, other, va + 16 * PAGE, 48 * PAGE, iova,
			      MAP_RW),
		     ioas_unmap(self->iommufd, other, iova, 48 * PAGE),
		     get_pa_errno(self->iommufd, other, iova) == ENOENT &&
		     pins_are(self, 32));
	FAIL_EACH("GET_PA", get_pa_errno(self->iommufd, other, IOVA), 0, true);
	FAIL_EACH("unmap", ioas_unmap(self->iommufd, other, iova, 48 * PAGE),
		  ioas_map(self->iommufd, other, va + 16 * PAGE, 48 * PAGE, iova,
			   MAP_RW),
		  !get_pa_errno(self->iommufd, other, iova + 47 * PAGE) &&
		  pins_are(self, 80));
	CANT_FAIL("detach", detach_pt(self->device), ({
		pt_id = other;
		attach_pt(self->device, &pt_id);
	}));
	EXPECT_EQ(0, destroy(self->iommufd, hwpt));
	EXPECT_EQ(0, destroy(self->iommufd, hwpt2));
}

TEST_HARNESS_MAIN
