// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of what iommufd_device_bind_noiommu() refuses. Included by
 * device_noiommu.c, whose static functions are replaced: no one machine has
 * every kind of device.
 */
#include <kunit/device.h>
#include <kunit/test.h>
#include <linux/dma-direct.h>

static bool noiommu_answer_yes(struct device *dev)
{
	return true;
}

static bool noiommu_answer_no(struct device *dev)
{
	return false;
}

/* The test's device, made one that nothing is wrong with wherever this runs */
static struct device *noiommu_good_device(struct kunit *test)
{
	struct device *dev = kunit_device_register(test, "noiommu");

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, dev);
	kunit_activate_static_stub(test, noiommu_has_dma_ops,
				   noiommu_answer_no);
	kunit_activate_static_stub(test, noiommu_memory_is_encrypted,
				   noiommu_answer_no);
	kunit_activate_static_stub(test, noiommu_is_bounced,
				   noiommu_answer_no);
	kunit_activate_static_stub(test, noiommu_is_coherent,
				   noiommu_answer_yes);
	return dev;
}

static void noiommu_check_good(struct kunit *test)
{
	struct device *dev = noiommu_good_device(test);

	KUNIT_EXPECT_EQ(test, iommufd_noiommu_check_device(dev),
			IS_ENABLED(CONFIG_ARCH_HAS_PHYS_TO_DMA) ? -EOPNOTSUPP :
								  0);
}

static void noiommu_check_iommu(struct kunit *test)
{
	struct device *dev = noiommu_good_device(test);
	struct iommu_device iommu_dev = {};
	struct dev_iommu iommu = {};

	dev->iommu = &iommu;
	iommu.iommu_dev = &iommu_dev;
	KUNIT_EXPECT_EQ(test, iommufd_noiommu_check_device(dev), -EINVAL);
	dev->iommu = NULL;
}

static void noiommu_check_bus_offset(struct kunit *test)
{
	static const struct bus_dma_region map[] = {
		{ .cpu_start = 0, .dma_start = 0, .size = SZ_1G },
		{ .cpu_start = SZ_1G, .dma_start = SZ_2G, .size = SZ_1G },
		{}
	};
	struct device *dev = noiommu_good_device(test);

	dev->dma_range_map = map;
	KUNIT_EXPECT_EQ(test, iommufd_noiommu_check_device(dev), -EOPNOTSUPP);
	/* Freed with the device otherwise */
	dev->dma_range_map = NULL;
}

static void noiommu_check_bus_without_offset(struct kunit *test)
{
	static const struct bus_dma_region all[] = { { .size = U64_MAX }, {} };
	/* No machine that runs this has less */
	static const struct bus_dma_region part[] = { { .size = SZ_1M }, {} };
	struct device *dev = noiommu_good_device(test);

	dev->dma_range_map = all;
	KUNIT_EXPECT_EQ(test, iommufd_noiommu_check_device(dev),
			IS_ENABLED(CONFIG_ARCH_HAS_PHYS_TO_DMA) ? -EOPNOTSUPP :
								  0);
	dev->dma_range_map = part;
	KUNIT_EXPECT_EQ(test, iommufd_noiommu_check_device(dev), -EOPNOTSUPP);
	dev->dma_range_map = NULL;
}

static void noiommu_check_bus_limit(struct kunit *test)
{
	struct device *dev = noiommu_good_device(test);

	dev->bus_dma_limit = SZ_1M - 1;
	KUNIT_EXPECT_EQ(test, iommufd_noiommu_check_device(dev), -EOPNOTSUPP);
	dev->bus_dma_limit = U64_MAX;
	KUNIT_EXPECT_EQ(test, iommufd_noiommu_check_device(dev),
			IS_ENABLED(CONFIG_ARCH_HAS_PHYS_TO_DMA) ? -EOPNOTSUPP :
								  0);
}

/* What device-dax maps, halfway to the last address, beyond all RAM */
static void noiommu_check_persistent_memory(struct kunit *test)
{
	struct device *dev = noiommu_good_device(test);
	struct resource res = {
		.name = "iommufd_noiommu_kunit",
		.start = iomem_resource.end / 2 + 1,
		.end = iomem_resource.end / 2 + SZ_1M,
		.flags = IORESOURCE_MEM,
		.desc = IORES_DESC_PERSISTENT_MEMORY,
	};

	dev->bus_dma_limit = res.start - 1;
	if (iommufd_noiommu_check_device(dev) ||
	    request_resource(&iomem_resource, &res))
		kunit_skip(test, "there is something in the middle");
	KUNIT_EXPECT_EQ(test, iommufd_noiommu_check_device(dev), -EOPNOTSUPP);
	dev->bus_dma_limit = res.end;
	KUNIT_EXPECT_EQ(test, iommufd_noiommu_check_device(dev), 0);
	release_resource(&res);
}

static void noiommu_check_bounced(struct kunit *test)
{
	struct device *dev = noiommu_good_device(test);

	kunit_activate_static_stub(test, noiommu_is_bounced,
				   noiommu_answer_yes);
	KUNIT_EXPECT_EQ(test, iommufd_noiommu_check_device(dev), -EOPNOTSUPP);
}

static void noiommu_check_dma_ops(struct kunit *test)
{
	struct device *dev = noiommu_good_device(test);

	kunit_activate_static_stub(test, noiommu_has_dma_ops,
				   noiommu_answer_yes);
	KUNIT_EXPECT_EQ(test, iommufd_noiommu_check_device(dev), -EOPNOTSUPP);
}

static void noiommu_check_memory_encryption(struct kunit *test)
{
	struct device *dev = noiommu_good_device(test);

	kunit_activate_static_stub(test, noiommu_memory_is_encrypted,
				   noiommu_answer_yes);
	KUNIT_EXPECT_EQ(test, iommufd_noiommu_check_device(dev), -EOPNOTSUPP);
}

static void noiommu_check_coherency(struct kunit *test)
{
	struct device *dev = noiommu_good_device(test);

	kunit_activate_static_stub(test, noiommu_is_coherent,
				   noiommu_answer_no);
	KUNIT_EXPECT_EQ(test, iommufd_noiommu_check_device(dev), -EOPNOTSUPP);
}

/* The bind asks before it looks at the iommufd */
static void noiommu_bind_refuses(struct kunit *test)
{
	struct device *dev = noiommu_good_device(test);
	struct iommufd_device *idev;
	u32 id;

	kunit_activate_static_stub(test, noiommu_is_coherent,
				   noiommu_answer_no);
	idev = iommufd_device_bind_noiommu(NULL, dev, &id);
	KUNIT_EXPECT_PTR_EQ(test, idev, ERR_PTR(-EOPNOTSUPP));
}

/* That a device has no IOMMU is not enough: the driver has to say so */
static void noiommu_bind_is_not_the_default(struct kunit *test)
{
	struct device *dev = noiommu_good_device(test);
	struct iommufd_device *idev;
	u32 id;

	idev = iommufd_device_bind(NULL, dev, &id);
	KUNIT_EXPECT_PTR_EQ(test, idev, ERR_PTR(-EINVAL));
}

static struct kunit_case noiommu_check_cases[] = {
	KUNIT_CASE(noiommu_check_good),
	KUNIT_CASE(noiommu_check_iommu),
	KUNIT_CASE(noiommu_check_bus_offset),
	KUNIT_CASE(noiommu_check_bus_without_offset),
	KUNIT_CASE(noiommu_check_bus_limit),
	KUNIT_CASE(noiommu_check_persistent_memory),
	KUNIT_CASE(noiommu_check_bounced),
	KUNIT_CASE(noiommu_check_dma_ops),
	KUNIT_CASE(noiommu_check_memory_encryption),
	KUNIT_CASE(noiommu_check_coherency),
	KUNIT_CASE(noiommu_bind_refuses),
	KUNIT_CASE(noiommu_bind_is_not_the_default),
	{}
};

static struct kunit_suite noiommu_check_suite = {
	.name = "iommufd_noiommu_check_device",
	.test_cases = noiommu_check_cases,
};

kunit_test_suite(noiommu_check_suite);
