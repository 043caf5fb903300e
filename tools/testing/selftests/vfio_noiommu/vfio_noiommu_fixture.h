/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Fixtures of the tests of the user ABI: a device without an IOMMU of each kind that
 * QEMU emulates, and one beside a device behind an IOMMU
 *
 * The harness registers fixtures and tests for each program, so that the fixtures are
 * here and their helpers in vfio_noiommu_fixture.c. Include kselftest_harness.h first,
 * or kselftest.h for the helpers alone.
 */
#ifndef __VFIO_NOIOMMU_FIXTURE_H
#define __VFIO_NOIOMMU_FIXTURE_H

#include "vfio_noiommu_util.h"

#define IOVA 0x10000000UL

int log_open(void);
bool log_has(int fd, const char *text);
off_t region_offset(int device, unsigned int index, size_t *size);
bool find_one_of_each(char bdf[2][256]);

#ifdef __KSELFTEST_HARNESS_H
FIXTURE(noiommu)
{
	char bdf[256];
	int device;
	int iommufd;
	uint32_t dev_id;
	uint32_t ioas;
	long long pinned;
};

FIXTURE_VARIANT(noiommu)
{
	const char *vendor;
	const char *device;
};

FIXTURE_VARIANT_ADD(noiommu, nvme) { .vendor = "0x1b36", .device = "0x0010" };
FIXTURE_VARIANT_ADD(noiommu, edu) { .vendor = "0x1234", .device = "0x11e8" };
FIXTURE_VARIANT_ADD(noiommu, e1000e) { .vendor = "0x8086", .device = "0x10d3" };

FIXTURE_SETUP(noiommu)
{
	self->device = -1;
	self->iommufd = -1;
	if (!find_device(variant->vendor, variant->device, self->bdf,
			 sizeof(self->bdf)))
		SKIP(return, "no device %s:%s", variant->vendor, variant->device);
	if (device_has_iommu(self->bdf))
		SKIP(return, "%s has an IOMMU", self->bdf);
	ASSERT_EQ(0, noiommu_switch(true));
	ASSERT_EQ(0, ensure_bound(self->bdf));
	self->pinned = pinned_pages();
	ASSERT_EQ(0, open_bound(self->bdf, &self->device,
				&self->iommufd, &self->dev_id));
	ASSERT_EQ(0, ioas_alloc(self->iommufd, &self->ioas));
}

FIXTURE_TEARDOWN(noiommu)
{
	close(self->device);
	close(self->iommufd);
	/* Whatever a test did and left behind, no pin is lost */
	EXPECT_EQ(self->pinned, pinned_pages());
}

/* A HWPT and the device attached to it, with nothing mapped */
static inline int attach_hwpt(struct _test_data_noiommu *self, uint32_t *hwpt)
{
	uint32_t pt_id;
	int rc = hwpt_alloc(self->iommufd, self->dev_id, self->ioas, 0, hwpt);

	pt_id = *hwpt;
	return rc ? rc : attach_pt(self->device, &pt_id);
}

/*
 * A device behind an IOMMU and one without in one iommufd
 */
#define UNSAFE_INTERRUPTS "/sys/module/iommufd/parameters/allow_unsafe_interrupts"

FIXTURE(mixed)
{
	char unsafe[8];			/* what that was */
	int iommufd;
	int device[2];			/* without and with an IOMMU */
	uint32_t dev_id[2];
	uint32_t ioas;
	char *va;
	long long pinned;
};

FIXTURE_SETUP(mixed)
{
	char bdf[2][256], name[256];
	int i;

	self->iommufd = -1;
	if (!find_one_of_each(bdf))
		SKIP(return, "needs a device behind an IOMMU and one without");

	/* Emulated IOMMUs isolate no MSIs */
	ASSERT_EQ(0, read_file(UNSAFE_INTERRUPTS, self->unsafe, sizeof(self->unsafe)));
	write_file(UNSAFE_INTERRUPTS, "Y");
	ASSERT_EQ(0, noiommu_switch(true));
	self->pinned = pinned_pages();
	self->iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->iommufd);
	ASSERT_EQ(0, ioas_alloc(self->iommufd, &self->ioas));
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, ensure_bound(bdf[i]));
		ASSERT_TRUE(cdev_name(bdf[i], name, sizeof(name)));
		EXPECT_EQ(0, strncmp(name, i ? "vfio" : "noiommu-vfio", i ? 4 : 12));
		self->device[i] = cdev_open(bdf[i]);
		ASSERT_LE(0, self->device[i]);
		ASSERT_EQ(0, bind_iommufd(self->device[i], self->iommufd,
					  &self->dev_id[i]));
	}
	self->va = anon(16 * PAGE, 0);
	touch_scattered(self->va, 16 * PAGE);
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, self->va, 16 * PAGE, IOVA,
			      MAP_RW));
}

FIXTURE_TEARDOWN(mixed)
{
	if (self->unsafe[0])
		write_file(UNSAFE_INTERRUPTS, self->unsafe);
	if (self->iommufd < 0)
		return;
	close(self->device[0]);
	close(self->device[1]);
	close(self->iommufd);
	EXPECT_EQ(self->pinned, pinned_pages());
}
#endif

#endif
