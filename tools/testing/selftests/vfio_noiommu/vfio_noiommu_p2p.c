// SPDX-License-Identifier: GPL-2.0-only
/*
 * DMA from one device without an IOMMU to the memory of another
 *
 * The memory is a BAR that VFIO exports as a dma-buf, and QEMU's ivshmem has one
 * with RAM behind it. The device that does DMA is the one that libvfio is given,
 * and has to have a driver there.
 */
#include <linux/compiler.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>

#include <libvfio.h>

#include "../kselftest_harness.h"
#include "vfio_noiommu_util.h"

#define BAR 2

static const char *device_bdf;
static char exporter_bdf[256];

FIXTURE(p2p)
{
	struct iommu *iommu;
	struct iova_allocator *iova_allocator;
	struct vfio_pci_device *device;
	struct vfio_pci_device *exporter;
	struct dma_region memory;
	int dmabuf;
	uint64_t iova;		/* of the BAR */
	uint64_t bar_size;
	uint64_t size;		/* of a copy */
};

static int export_bar(struct vfio_pci_device *device, uint64_t size)
{
	struct {
		struct vfio_device_feature feature;
		struct vfio_device_feature_dma_buf dma_buf;
		struct vfio_region_dma_range range;
	} args = {
		.feature.argsz = sizeof(args),
		.feature.flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF,
		.dma_buf.region_index = BAR,
		.dma_buf.open_flags = O_RDWR | O_CLOEXEC,
		.dma_buf.nr_ranges = 1,
		.range.length = size,
	};

	return ioctl(device->fd, VFIO_DEVICE_FEATURE, &args);
}

/* The physical address of the BAR, as PCI has it */
static uint64_t bar_start(const char *bdf)
{
	char path[600], line[256];
	uint64_t start = 0;
	FILE *file;
	int i;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/resource", bdf);
	file = fopen(path, "r");
	if (!file)
		return 0;
	for (i = 0; i <= BAR && fgets(line, sizeof(line), file); i++)
		start = strtoull(line, NULL, 0);
	fclose(file);
	return start;
}

/* Words, and each once: one side of it is a device's memory */
static void fill(void *to, uint64_t size, uint32_t seed)
{
	uint32_t *word = to;
	uint64_t i;

	for (i = 0; i < size / 4; i++)
		WRITE_ONCE(word[i], seed + i * 0x9e3779b9);
}

static bool is_filled(void *from, uint64_t size, uint32_t seed)
{
	uint32_t *word = from;
	uint64_t i;

	for (i = 0; i < size / 4; i++)
		if (READ_ONCE(word[i]) != (uint32_t)(seed + i * 0x9e3779b9))
			return false;
	return true;
}

static void map_memory(struct iommu *iommu, struct iova_allocator *iova_allocator,
		       struct dma_region *region, uint64_t size)
{
	region->vaddr = mmap(NULL, size, PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	VFIO_ASSERT_NE(region->vaddr, MAP_FAILED);
	region->size = size;
	region->iova = iova_allocator_alloc(iova_allocator, size);
	iommu_map(iommu, region);
}

static int map_bar(struct iommu *iommu, int dmabuf, uint64_t iova, uint64_t size)
{
	return ioas_map_file(iommu->iommufd, iommu->ioas_id, dmabuf, 0, size, iova);
}

static int unmap_bar(struct iommu *iommu, uint64_t iova, uint64_t size)
{
	return ioas_unmap(iommu->iommufd, iommu->ioas_id, iova, size);
}

static int bar_errno(struct iommu *iommu, uint64_t iova)
{
	return get_pa_errno(iommu->iommufd, iommu->ioas_id, iova);
}

FIXTURE_SETUP(p2p)
{
	self->dmabuf = -1;
	if (!find_device("0x1af4", "0x1110", exporter_bdf, sizeof(exporter_bdf)))
		SKIP(return, "no ivshmem device (1af4:1110), whose BAR has memory");
	if (!device_may_be_used(device_bdf))
		SKIP(return, "VFIO_NOIOMMU_DEVICES does not name %s", device_bdf);
	ASSERT_EQ(0, ensure_bound(exporter_bdf));
	ASSERT_EQ(0, ensure_bound(device_bdf));
	SKIP_MODE_MISMATCH(return, device_bdf, MODE_IOMMUFD_NOIOMMU);
	SKIP_MODE_MISMATCH(return, exporter_bdf, MODE_IOMMUFD_NOIOMMU);

	self->iommu = iommu_init(MODE_IOMMUFD_NOIOMMU);
	self->device = vfio_pci_device_init(device_bdf, self->iommu);
	if (!self->device->driver.ops)
		SKIP(return, "libvfio has no driver for %s", device_bdf);
	self->exporter = vfio_pci_device_init(exporter_bdf, self->iommu);
	self->iova_allocator = iova_allocator_init(self->iommu);

	/* With memory off its BARs are revoked from the start */
	vfio_pci_config_writew(self->exporter, PCI_COMMAND, PCI_COMMAND_MEMORY);
	self->bar_size = self->exporter->bars[BAR].info.size;
	self->dmabuf = export_bar(self->exporter, self->bar_size);
	if (self->dmabuf < 0 && errno == ENOTTY)
		SKIP(return, "VFIO exports no dma-buf (CONFIG_PCI_P2PDMA)");
	ASSERT_LE(0, self->dmabuf);

	self->iova = iova_allocator_alloc(self->iova_allocator, self->bar_size);
	ASSERT_EQ(0, map_bar(self->iommu, self->dmabuf, self->iova, self->bar_size));

	map_memory(self->iommu, self->iova_allocator, &self->device->driver.region, SZ_2M);
	vfio_pci_driver_init(self->device);
	self->size = min_t(uint64_t, self->bar_size, self->device->driver.max_memcpy_size);
	map_memory(self->iommu, self->iova_allocator, &self->memory, self->size);
}

/* What a test closed is NULL */
static void close_device(struct vfio_pci_device **device)
{
	if (*device)
		vfio_pci_device_cleanup(*device);
	*device = NULL;
}

static void close_iommu(struct iommu **iommu)
{
	if (*iommu)
		iommu_cleanup(*iommu);
	*iommu = NULL;
}

FIXTURE_TEARDOWN(p2p)
{
	close_device(&self->device);
	close_device(&self->exporter);
	close_iommu(&self->iommu);
	iova_allocator_cleanup(self->iova_allocator);
	close(self->dmabuf);
}

TEST_F(p2p, address)
{
	uint64_t start = bar_start(exporter_bdf), length, phys;

	ASSERT_NE(0, start);

	length = self->bar_size;
	ASSERT_EQ(0, get_pa(self->iommu->iommufd, self->iommu->ioas_id, self->iova,
			    &length, &phys));
	EXPECT_EQ(start, phys);
	EXPECT_EQ(self->bar_size, length);

	length = self->bar_size;
	ASSERT_EQ(0, get_pa(self->iommu->iommufd, self->iommu->ioas_id,
			    self->iova + 4097, &length, &phys));
	EXPECT_EQ(start + 4097, phys);
	EXPECT_EQ(self->bar_size - 4097, length);
}

TEST_F(p2p, device_writes_bar)
{
	void *bar = self->exporter->bars[BAR].vaddr;

	fill(bar, self->size, 1);
	fill(self->memory.vaddr, self->size, 2);
	ASSERT_EQ(0, vfio_pci_driver_memcpy(self->device, self->memory.iova,
					    self->iova, self->size));
	EXPECT_TRUE(is_filled(bar, self->size, 2));
}

TEST_F(p2p, device_reads_bar)
{
	/* From the end, so that an offset which is lost shows */
	uint64_t offset = self->bar_size - self->size;

	fill(self->memory.vaddr, self->size, 3);
	fill(self->exporter->bars[BAR].vaddr + offset, self->size, 4);
	ASSERT_EQ(0, vfio_pci_driver_memcpy(self->device, self->iova + offset,
					    self->memory.iova, self->size));
	EXPECT_TRUE(is_filled(self->memory.vaddr, self->size, 4));
}

/* The mapping holds the dma-buf, not its file descriptor */
TEST_F(p2p, close_dmabuf)
{
	ASSERT_EQ(0, close(self->dmabuf));
	self->dmabuf = -1;

	fill(self->memory.vaddr, self->size, 5);
	ASSERT_EQ(0, vfio_pci_driver_memcpy(self->device, self->memory.iova,
					    self->iova, self->size));
	EXPECT_TRUE(is_filled(self->exporter->bars[BAR].vaddr, self->size, 5));
}

/* What is no longer the exporter's to give has no address */
TEST_F(p2p, close_exporter)
{
	ASSERT_EQ(0, bar_errno(self->iommu, self->iova));
	close_device(&self->exporter);
	EXPECT_EQ(EINVAL, bar_errno(self->iommu, self->iova));
	EXPECT_NE(0, vfio_pci_driver_memcpy(self->device, self->memory.iova,
					    self->iova, self->size));
	EXPECT_NE(0, vfio_pci_driver_memcpy(self->device, self->iova,
					    self->memory.iova, self->size));

	EXPECT_EQ(0, unmap_bar(self->iommu, self->iova, self->bar_size));
	EXPECT_EQ(ENOENT, bar_errno(self->iommu, self->iova));

	/* It is over for this dma-buf, and the other memory is as it was */
	EXPECT_EQ(ENODEV, map_bar(self->iommu, self->dmabuf, self->iova, self->bar_size));
	EXPECT_EQ(0, vfio_pci_driver_memcpy(self->device, self->memory.iova,
					    self->memory.iova, self->size));
}

/* Turning its memory off revokes a BAR as closing the device does */
TEST_F(p2p, disable_memory)
{
	vfio_pci_config_writew(self->exporter, PCI_COMMAND, 0);
	EXPECT_EQ(EINVAL, bar_errno(self->iommu, self->iova));

	/* That it is back doesn't bring the mapping back, but allows another */
	vfio_pci_config_writew(self->exporter, PCI_COMMAND, PCI_COMMAND_MEMORY);
	EXPECT_EQ(EINVAL, bar_errno(self->iommu, self->iova));
	EXPECT_EQ(0, unmap_bar(self->iommu, self->iova, self->bar_size));
	EXPECT_EQ(0, map_bar(self->iommu, self->dmabuf, self->iova, self->bar_size));
	EXPECT_EQ(0, bar_errno(self->iommu, self->iova));
}

TEST_F(p2p, close_importer)
{
	void *bar = self->exporter->bars[BAR].vaddr;
	int dmabuf;

	close_device(&self->device);
	fill(bar, self->size, 6);
	EXPECT_TRUE(is_filled(bar, self->size, 6));

	/* The exporter is bound to this iommufd, and keeps it */
	close_iommu(&self->iommu);
	dmabuf = export_bar(self->exporter, self->bar_size);
	EXPECT_LE(0, dmabuf);
	close(dmabuf);
	EXPECT_TRUE(is_filled(bar, self->size, 6));
}

TEST_F(p2p, unmap)
{
	void *bar = self->exporter->bars[BAR].vaddr;

	EXPECT_EQ(0, unmap_bar(self->iommu, self->iova, self->bar_size));
	EXPECT_EQ(ENOENT, bar_errno(self->iommu, self->iova));
	EXPECT_NE(0, vfio_pci_driver_memcpy(self->device, self->memory.iova,
					    self->iova, self->size));
	fill(bar, self->size, 7);
	EXPECT_TRUE(is_filled(bar, self->size, 7));

	EXPECT_EQ(0, map_bar(self->iommu, self->dmabuf, self->iova, self->bar_size));
	fill(self->memory.vaddr, self->size, 8);
	ASSERT_EQ(0, vfio_pci_driver_memcpy(self->device, self->memory.iova,
					    self->iova, self->size));
	EXPECT_TRUE(is_filled(bar, self->size, 8));
}

int main(int argc, char *argv[])
{
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}
