// SPDX-License-Identifier: GPL-2.0-only
/*
 * DMA of a device without an IOMMU to memory no two pages of which are
 * neighbours, at any offset in them
 *
 * The device is the one that libvfio is given, and has to have a driver there.
 */
#include <linux/sizes.h>

#include <libvfio.h>

#include "../kselftest_harness.h"
#include "vfio_noiommu_util.h"

static const char *device_bdf;

FIXTURE(dma)
{
	struct iommu *iommu;
	struct iova_allocator *iova_allocator;
	struct vfio_pci_device *device;
	struct dma_region src;
	struct dma_region dst;
	char *expected;		/* what dst has to be */
	uint64_t max;		/* size of a copy */
};

static void map_scattered(struct iommu *iommu, struct iova_allocator *iova_allocator,
			  struct dma_region *region, uint64_t size)
{
	region->vaddr = anon(size, 0);
	touch_scattered(region->vaddr, size);
	region->size = size;
	/* With nothing mapped behind it */
	region->iova = iova_allocator_alloc(iova_allocator, 2 * size);
	iommu_map(iommu, region);
}

FIXTURE_SETUP(dma)
{
	uint64_t i;

	if (!device_may_be_used(device_bdf))
		SKIP(return, "VFIO_NOIOMMU_DEVICES does not name %s", device_bdf);
	ASSERT_EQ(0, ensure_bound(device_bdf));
	SKIP_MODE_MISMATCH(return, device_bdf, MODE_IOMMUFD_NOIOMMU);

	self->iommu = iommu_init(MODE_IOMMUFD_NOIOMMU);
	self->device = vfio_pci_device_init(device_bdf, self->iommu);
	if (!self->device->driver.ops)
		SKIP(return, "libvfio has no driver for %s", device_bdf);
	self->iova_allocator = iova_allocator_init(self->iommu);
	map_scattered(self->iommu, self->iova_allocator,
		      &self->device->driver.region, SZ_2M);
	vfio_pci_driver_init(self->device);
	if (self->device->driver.max_memcpy_size <= PAGE)
		SKIP(return, "its driver copies within one page");
	self->max = min_t(uint64_t, SZ_1M, self->device->driver.max_memcpy_size);

	/* With a page more at each end, which no copy may touch */
	map_scattered(self->iommu, self->iova_allocator, &self->src, SZ_2M);
	map_scattered(self->iommu, self->iova_allocator, &self->dst, SZ_2M);
	self->expected = anon(SZ_2M, 0);
	for (i = 0; i < SZ_2M; i++) {
		((char *)self->src.vaddr)[i] = i * 7 + (i >> 12);
		((char *)self->dst.vaddr)[i] = 0x5a;
		self->expected[i] = 0x5a;
	}
}

FIXTURE_TEARDOWN(dma)
{
	vfio_pci_device_cleanup(self->device);
	iova_allocator_cleanup(self->iova_allocator);
	iommu_cleanup(self->iommu);
}

static int copy(struct _test_data_dma *self, uint64_t dst, uint64_t src, uint64_t size)
{
	return vfio_pci_driver_memcpy(self->device, self->src.iova + src,
				      self->dst.iova + dst, size);
}

/* A copy between offsets, with all of the destination and around it compared */
static bool copies(struct _test_data_dma *self, uint64_t dst, uint64_t src,
		   uint64_t size)
{
	bool good;

	good = !copy(self, dst, src, size);
	memcpy(self->expected + dst, self->src.vaddr + src, size);
	good = good && !memcmp(self->dst.vaddr, self->expected, SZ_2M);
	memset(self->dst.vaddr + dst, 0x5a, size);
	memset(self->expected + dst, 0x5a, size);
	return good;
}

TEST_F(dma, most_at_once)
{
	EXPECT_TRUE(copies(self, PAGE, PAGE, self->max));
	EXPECT_TRUE(copies(self, 7 * PAGE, 3 * PAGE, self->max));
}

TEST_F(dma, offsets_and_sizes)
{
	static const uint64_t offsets[] = { 0, 4, 508, 2052, PAGE - 4 };
	static const uint64_t sizes[] = { 1, 2, 3, 64, 65 };
	unsigned int dst, src, size;
	uint64_t block = 512;

	/* Disks copy whole blocks */
	if (copy(self, PAGE, PAGE, block))
		block = PAGE;
	else
		memset(self->dst.vaddr + PAGE, 0x5a, block);
	for (dst = 0; dst < ARRAY_SIZE(offsets); dst++)
		for (src = 0; src < ARRAY_SIZE(offsets); src++)
			for (size = 0; size < ARRAY_SIZE(sizes); size++)
				EXPECT_TRUE(copies(self, PAGE + offsets[dst],
						   PAGE + offsets[src],
						   min(self->max, sizes[size] * block)))
					TH_LOG("%llu blocks from %llu to %llu",
					       (unsigned long long)sizes[size],
					       (unsigned long long)offsets[src],
					       (unsigned long long)offsets[dst]);
	/* As much as goes, with a first and a last piece of a page */
	EXPECT_TRUE(copies(self, PAGE + 4, 2 * PAGE - 4, self->max));
}

/* Not every device can have an address that is no multiple of 4: right, or not at all */
TEST_F(dma, odd_offsets)
{
	unsigned int odd;

	for (odd = 1; odd < 4; odd++) {
		if (!copy(self, PAGE, PAGE + odd, 2 * PAGE))
			memcpy(self->expected + PAGE, self->src.vaddr + PAGE + odd,
			       2 * PAGE);
		EXPECT_EQ(0, memcmp(self->dst.vaddr, self->expected, SZ_2M));
		if (!copy(self, PAGE + odd, PAGE, 2 * PAGE))
			memcpy(self->expected + PAGE + odd, self->src.vaddr + PAGE,
			       2 * PAGE);
		EXPECT_EQ(0, memcmp(self->dst.vaddr, self->expected, SZ_2M));
	}
}

/* What can't be copied is refused, and nothing of it is done */
TEST_F(dma, refused)
{
	/* Ends, and starts, where nothing is mapped */
	EXPECT_NE(0, copy(self, PAGE, SZ_2M - PAGE, 2 * PAGE));
	EXPECT_NE(0, copy(self, SZ_2M - PAGE, PAGE, 2 * PAGE));
	EXPECT_NE(0, copy(self, SZ_2M - self->max + PAGE, PAGE, self->max));
	EXPECT_NE(0, copy(self, SZ_2M, PAGE, PAGE));
	EXPECT_NE(0, copy(self, PAGE, SZ_2M, PAGE));
	EXPECT_EQ(0, memcmp(self->dst.vaddr, self->expected, SZ_2M));
	iommu_unmap(self->iommu, &self->src);
	EXPECT_NE(0, copy(self, PAGE, PAGE, PAGE));
	EXPECT_EQ(0, memcmp(self->dst.vaddr, self->expected, SZ_2M));
}

TEST_F(dma, one_address)
{
	uint64_t iova = self->src.iova, offset;
	u64 addr, contiguous;

	for (offset = 0; offset < SZ_2M; offset += PAGE) {
		ASSERT_EQ(0, iommu_dma_addr(self->iommu, iova + offset + 8, PAGE - 8,
					    &addr));
		ASSERT_EQ(pagemap_pa(self->src.vaddr + offset) + 8, addr);
	}
	/* Not for all of it, as it is not in one piece */
	EXPECT_EQ(-E2BIG, iommu_dma_addr(self->iommu, iova, SZ_2M, &addr));
	EXPECT_EQ(0, __iommu_dma_addr(self->iommu, iova, SZ_2M, &addr, &contiguous));
	EXPECT_LT(contiguous, (u64)SZ_2M);
	EXPECT_EQ(0, contiguous % PAGE);
	iommu_unmap(self->iommu, &self->src);
	EXPECT_EQ(-ENOENT, iommu_dma_addr(self->iommu, iova, PAGE, &addr));
}

int main(int argc, char *argv[])
{
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}
