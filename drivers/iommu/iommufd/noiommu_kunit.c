// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of what iommufd_device_bind_noiommu() refuses. Included by
 * device_noiommu.c. The answers of the DMA layer are replaced, as no single
 * machine gives all of them; its own tests are kernel/dma/phys_kunit.c.
 */
#include <kunit/device.h>
#include <kunit/test.h>

static bool noiommu_answer_yes(struct device *dev)
{
	return true;
}

static bool noiommu_answer_no(struct device *dev)
{
	return false;
}

static bool noiommu_addr_is_phys(struct device *dev, const char **reason)
{
	return true;
}

static bool noiommu_addr_is_not_phys(struct device *dev, const char **reason)
{
	*reason = "the test says so";
	return false;
}

/* The test's device, made one that nothing is wrong with wherever this runs */
static struct device *noiommu_good_device(struct kunit *test)
{
	struct device *dev = kunit_device_register(test, "noiommu");

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, dev);
	kunit_activate_static_stub(test, dma_addr_is_phys, noiommu_addr_is_phys);
	kunit_activate_static_stub(test, noiommu_is_coherent,
				   noiommu_answer_yes);
	return dev;
}

static void noiommu_check_good(struct kunit *test)
{
	struct device *dev = noiommu_good_device(test);

	KUNIT_EXPECT_EQ(test, iommufd_noiommu_check_device(dev), 0);
}

static void noiommu_check_iommu(struct kunit *test)
{
	struct device *dev = noiommu_good_device(test);
	struct dev_iommu iommu = {};

	dev->iommu = &iommu;
	KUNIT_EXPECT_EQ(test, iommufd_noiommu_check_device(dev), -EINVAL);
	dev->iommu = NULL;
}

static void noiommu_check_dma_address(struct kunit *test)
{
	struct device *dev = noiommu_good_device(test);

	kunit_activate_static_stub(test, dma_addr_is_phys,
				   noiommu_addr_is_not_phys);
	KUNIT_EXPECT_EQ(test, iommufd_noiommu_check_device(dev), -EOPNOTSUPP);
}

/* As the DMA layer has it: a bus that ends below RAM */
static void noiommu_check_bus_limit(struct kunit *test)
{
	struct device *dev = noiommu_good_device(test);

	kunit_deactivate_static_stub(test, dma_addr_is_phys);
	dev->bus_dma_limit = SZ_1M - 1;
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

/* It is not enough that a device has no IOMMU: the driver has to say so */
static void noiommu_bind_is_not_the_default(struct kunit *test)
{
	struct device *dev = noiommu_good_device(test);
	struct iommufd_device *idev;
	struct iommufd_ctx *ictx;
	u32 id;

	/* The bind may allocate its object before it refuses the device */
	ictx = kunit_kzalloc(test, sizeof(*ictx), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, ictx);
	xa_init_flags(&ictx->objects, XA_FLAGS_ALLOC1);

	idev = iommufd_device_bind(ictx, dev, &id);
	KUNIT_EXPECT_PTR_EQ(test, idev, ERR_PTR(-EINVAL));
	KUNIT_EXPECT_TRUE(test, xa_empty(&ictx->objects));
	xa_destroy(&ictx->objects);
}

static struct kunit_case noiommu_check_cases[] = {
	KUNIT_CASE(noiommu_check_good),
	KUNIT_CASE(noiommu_check_iommu),
	KUNIT_CASE(noiommu_check_dma_address),
	KUNIT_CASE(noiommu_check_bus_limit),
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
