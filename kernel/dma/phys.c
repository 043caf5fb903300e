// SPDX-License-Identifier: GPL-2.0-only
/*
 * Devices whose DMA addresses are physical addresses
 *
 * A kernel driver maps memory and programs its device with the DMA address that
 * it gets. A driver in userspace that has pinned memory only, and no IOMMU to map
 * it in, can do no better than physical addresses. Whether those will do depends
 * on the bus of the device and on the platform.
 */
#include <kunit/static_stub.h>
#include <linux/cc_platform.h>
#include <linux/device.h>
#include <linux/dma-direct.h>
#include <linux/dma-map-ops.h>
#include <linux/export.h>
#include <linux/iommu-dma.h>
#include <linux/ioport.h>
#include <linux/swiotlb.h>

/* Device trees also have maps of buses whose addresses are those of the CPU */
static bool bus_has_offset(struct device *dev)
{
	const struct bus_dma_region *map = dev->dma_range_map;

	for (; map && map->size; map++)
		if (map->cpu_start != map->dma_start)
			return true;
	return false;
}

static int res_is_out_of_reach(struct resource *res, void *arg)
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
 * dma_direct_all_ram_mapped() knows the map only. User memory is RAM and, through
 * device-dax, persistent memory. A resource that spans two regions of the map
 * counts as out of reach.
 */
static bool bus_is_limited(struct device *dev)
{
	if (!dev->bus_dma_limit && !dev->dma_range_map)
		return false;
	/* No System RAM resource at all means the tree can't be trusted */
	return walk_iomem_res_desc(IORES_DESC_NONE,
				   IORESOURCE_SYSTEM_RAM | IORESOURCE_BUSY, 0,
				   U64_MAX, dev, res_is_out_of_reach) ||
	       walk_iomem_res_desc(IORES_DESC_PERSISTENT_MEMORY, IORESOURCE_MEM,
				   0, U64_MAX, dev, res_is_out_of_reach) == 1;
}

/* An SME host sets an encryption bit in each DMA address */
static bool memory_is_encrypted(struct device *dev)
{
	KUNIT_STATIC_STUB_REDIRECT(memory_is_encrypted, dev);
	return cc_platform_has(CC_ATTR_MEM_ENCRYPT);
}

/* Xen's machine frames, and IOMMUs outside the IOMMU subsystem */
static bool has_dma_ops(struct device *dev)
{
	KUNIT_STATIC_STUB_REDIRECT(has_dma_ops, dev);
	return get_dma_ops(dev);
}

/**
 * dma_addr_is_phys() - Is a physical address the DMA address of the same memory?
 * @dev: Device that is programmed with it
 * @reason: Set to what prevents that, in words for a log, if it is not
 *
 * The answer is for RAM and persistent memory that userspace can have, all of it,
 * and for as far as the device itself can address. Hotplugged memory, memory
 * reserved for device-dax by firmware or CXL, and BARs are not checked. It says
 * nothing of caches, see dev_is_dma_coherent().
 *
 * Kernel drivers have the DMA API and no use for this.
 *
 * Context: Process context. @dev has been configured for DMA.
 * Return: True if it is, false if it is not or not known to be.
 */
bool dma_addr_is_phys(struct device *dev, const char **reason)
{
	KUNIT_STATIC_STUB_REDIRECT(dma_addr_is_phys, dev, reason);

	if (use_dma_iommu(dev))
		*reason = "an IOMMU translates its DMA";
	else if (has_dma_ops(dev))
		*reason = "DMA is translated outside the IOMMU subsystem";
	/* The platform's phys_to_dma() may do anything, for any address */
	else if (IS_ENABLED(CONFIG_ARCH_HAS_PHYS_TO_DMA))
		*reason = "the platform has DMA addresses of its own";
	else if (memory_is_encrypted(dev))
		*reason = "memory is encrypted";
	/* A restricted-dma-pool, or a guest's memory that is private */
	else if (is_swiotlb_force_bounce(dev))
		*reason = "its DMA has to be bounced";
	else if (bus_has_offset(dev))
		*reason = "its bus has a DMA offset";
	else if (bus_is_limited(dev))
		*reason = "its bus does not reach all of memory";
	else
		return true;
	return false;
}
EXPORT_SYMBOL_GPL(dma_addr_is_phys);

#if IS_ENABLED(CONFIG_DMA_ADDR_IS_PHYS_KUNIT_TEST)
#include "phys_kunit.c"
#endif
