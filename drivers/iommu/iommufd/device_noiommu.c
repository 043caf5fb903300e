// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which devices may be bound without an IOMMU
 *
 * A noiommu device is programmed with physical addresses, which is right only
 * where a physical address is the address that reaches that memory from the
 * device, and where the CPU sees what the device writes. iommufd always maps
 * with IOMMU_CACHE, and userspace has no way to make up for a device that is
 * not coherent.
 */
#include <kunit/static_stub.h>
#include <linux/cc_platform.h>
#include <linux/device.h>
#include <linux/dma-direct.h>
#include <linux/dma-map-ops.h>
#include <linux/iommu.h>
#include <linux/ioport.h>
#include <linux/swiotlb.h>

#include "iommufd_private.h"

/* Device trees describe a bus whose addresses are the CPU's by a map as well */
static bool noiommu_has_bus_offset(struct device *dev)
{
	const struct bus_dma_region *map = dev->dma_range_map;

	for (; map && map->size; map++)
		if (map->cpu_start != map->dma_start)
			return true;
	return false;
}

static int noiommu_is_out_of_reach(struct resource *res, void *arg)
{
	struct device *dev = arg;
	const struct bus_dma_region *map = dev->dma_range_map;

	if (dev->bus_dma_limit && res->end > dev->bus_dma_limit)
		return 1;
	if (!map)
		return 0;
	for (; map->size; map++)
		if (res->start >= map->cpu_start &&
		    res->end - map->cpu_start < map->size)
			return 0;
	return 1;
}

/*
 * How far the device reaches its user knows, but nothing tells of a bridge. User
 * memory comes from RAM, be it in one region of a map each, and by device-dax
 * from persistent memory. What is plugged in later is not looked at, nor what
 * firmware or CXL sets aside for device-dax, nor BARs.
 */
static bool noiommu_bus_is_limited(struct device *dev)
{
	if (!dev->bus_dma_limit && !dev->dma_range_map)
		return false;
	/* That there is no RAM is not to be believed */
	return walk_iomem_res_desc(IORES_DESC_NONE,
				   IORESOURCE_SYSTEM_RAM | IORESOURCE_BUSY, 0,
				   U64_MAX, dev, noiommu_is_out_of_reach) ||
	       walk_iomem_res_desc(IORES_DESC_PERSISTENT_MEMORY, IORESOURCE_MEM,
				   0, U64_MAX, dev,
				   noiommu_is_out_of_reach) == 1;
}

/* An SME host sets an encryption bit in each DMA address */
static bool noiommu_memory_is_encrypted(struct device *dev)
{
	KUNIT_STATIC_STUB_REDIRECT(noiommu_memory_is_encrypted, dev);
	return cc_platform_has(CC_ATTR_MEM_ENCRYPT);
}

/*
 * DMA reaches a pool of memory only, where a confidential guest's memory is
 * private and where the device has a restricted-dma-pool
 */
static bool noiommu_is_bounced(struct device *dev)
{
	KUNIT_STATIC_STUB_REDIRECT(noiommu_is_bounced, dev);
	return is_swiotlb_force_bounce(dev);
}

/* Xen's machine frames, and IOMMUs that are not under the IOMMU subsystem */
static bool noiommu_has_dma_ops(struct device *dev)
{
	KUNIT_STATIC_STUB_REDIRECT(noiommu_has_dma_ops, dev);
	return get_dma_ops(dev);
}

static bool noiommu_is_coherent(struct device *dev)
{
	KUNIT_STATIC_STUB_REDIRECT(noiommu_is_coherent, dev);
	return dev_is_dma_coherent(dev);
}

/**
 * iommufd_noiommu_check_device() - Can this device use physical addresses?
 * @dev: Physical device
 *
 * What keeps a device from it is said in one line in the log.
 *
 * Context: Process context, before @dev is bound.
 * Return: 0; -EINVAL if @dev is behind an IOMMU after all; -EOPNOTSUPP if a
 * physical address is not what @dev must be programmed with or the CPU's caches
 * don't see its DMA.
 */
int iommufd_noiommu_check_device(struct device *dev)
{
	struct dev_iommu *iommu = READ_ONCE(dev->iommu);
	const char *reason;

	if (iommu && iommu->iommu_dev)
		return -EINVAL;

	if (noiommu_has_bus_offset(dev))
		reason = "its bus has a DMA offset";
	else if (IS_ENABLED(CONFIG_ARCH_HAS_PHYS_TO_DMA))
		reason = "the platform has DMA addresses of its own";
	else if (noiommu_has_dma_ops(dev))
		reason = "DMA is translated outside the IOMMU subsystem";
	else if (noiommu_memory_is_encrypted(dev))
		reason = "memory is encrypted";
	else if (noiommu_is_bounced(dev))
		reason = "its DMA has to be bounced";
	else if (noiommu_bus_is_limited(dev))
		reason = "its bus does not reach all of memory";
	else if (!noiommu_is_coherent(dev))
		reason = "DMA is not cache coherent";
	else
		return 0;

	dev_warn_ratelimited(dev, "can't be used without an IOMMU: %s\n", reason);
	return -EOPNOTSUPP;
}

#if IS_ENABLED(CONFIG_IOMMUFD_NOIOMMU_KUNIT_TEST)
#include "noiommu_kunit.c"
#endif
