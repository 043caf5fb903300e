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
#include <linux/device.h>
#include <linux/dma-map-ops.h>
#include <linux/iommu.h>

#include "iommufd_private.h"

static bool noiommu_is_coherent(struct device *dev)
{
	KUNIT_STATIC_STUB_REDIRECT(noiommu_is_coherent, dev);
	return dev_is_dma_coherent(dev);
}

/**
 * iommufd_noiommu_check_device() - Can this device use physical addresses?
 * @dev: Physical device
 *
 * Logs the reason in one line if it can't.
 *
 * Context: Process context, before @dev is bound. An IOMMU that probes @dev after
 * this, with @dev in no iommu_group, is not noticed.
 * Return: 0; -EINVAL if @dev is behind an IOMMU after all; -EOPNOTSUPP if a
 * physical address is not what @dev must be programmed with or the CPU's caches
 * don't see its DMA.
 */
int iommufd_noiommu_check_device(struct device *dev)
{
	const char *reason = "DMA is not cache coherent";

	/* Only the pointer: a probe that fails meanwhile frees what it points to */
	if (READ_ONCE(dev->iommu))
		return -EINVAL;

	if (dma_addr_is_phys(dev, &reason) && noiommu_is_coherent(dev))
		return 0;

	dev_warn_ratelimited(dev, "can't be used without an IOMMU: %s\n", reason);
	return -EOPNOTSUPP;
}

#if IS_ENABLED(CONFIG_IOMMUFD_NOIOMMU_KUNIT_TEST)
#include "noiommu_kunit.c"
#endif
