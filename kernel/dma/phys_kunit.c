// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of dma_addr_is_phys(). Included by phys.c, whose questions to the
 * platform are replaced: no single machine has every kind of device.
 */
#include <kunit/device.h>
#include <kunit/test.h>

static bool answer_yes(struct device *dev)
{
	return true;
}

static bool answer_no(struct device *dev)
{
	return false;
}

static struct device *dma_phys_device(struct kunit *test)
{
	struct device *dev = kunit_device_register(test, "dma_addr_is_phys");

	if (IS_ENABLED(CONFIG_ARCH_HAS_PHYS_TO_DMA))
		kunit_skip(test, "every device is refused here");
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, dev);
	kunit_activate_static_stub(test, has_dma_ops, answer_no);
	kunit_activate_static_stub(test, memory_is_encrypted, answer_no);
#ifdef CONFIG_SWIOTLB
	/* The machine's own may be forced */
	dev->dma_io_tlb_mem = NULL;
#endif
	return dev;
}

static void expect_yes(struct kunit *test, struct device *dev)
{
	const char *reason = "none";

	KUNIT_EXPECT_TRUE_MSG(test, dma_addr_is_phys(dev, &reason), "%s", reason);
}

static void expect_no(struct kunit *test, struct device *dev, const char *why)
{
	const char *reason = "none";

	KUNIT_EXPECT_FALSE(test, dma_addr_is_phys(dev, &reason));
	KUNIT_EXPECT_NOT_NULL_MSG(test, strstr(reason, why), "%s", reason);
}

static void dma_phys_plain(struct kunit *test)
{
	expect_yes(test, dma_phys_device(test));
}

static void dma_phys_iommu(struct kunit *test)
{
	struct device *dev = dma_phys_device(test);

	if (!IS_ENABLED(CONFIG_IOMMU_DMA))
		kunit_skip(test, "no IOMMU translates for the DMA API");
	dev_assign_dma_iommu(dev, true);
	expect_no(test, dev, "an IOMMU");
	dev_assign_dma_iommu(dev, false);
}

static void dma_phys_dma_ops(struct kunit *test)
{
	struct device *dev = dma_phys_device(test);

	kunit_activate_static_stub(test, has_dma_ops, answer_yes);
	expect_no(test, dev, "outside the IOMMU subsystem");
}

static void dma_phys_encrypted(struct kunit *test)
{
	struct device *dev = dma_phys_device(test);

	kunit_activate_static_stub(test, memory_is_encrypted, answer_yes);
	expect_no(test, dev, "encrypted");
}

static void dma_phys_bounced(struct kunit *test)
{
#ifdef CONFIG_SWIOTLB
	struct device *dev = dma_phys_device(test);
	struct io_tlb_mem mem = {};

	dev->dma_io_tlb_mem = &mem;
	expect_yes(test, dev);
	mem.force_bounce = true;
	expect_no(test, dev, "bounced");
	dev->dma_io_tlb_mem = NULL;
#else
	kunit_skip(test, "nothing is bounced without SWIOTLB");
#endif
}

static void dma_phys_offset(struct kunit *test)
{
	static const struct bus_dma_region map[] = {
		{ .cpu_start = 0, .dma_start = 0, .size = SZ_1G },
		{ .cpu_start = SZ_1G, .dma_start = SZ_2G, .size = SZ_1G },
		{}
	};
	struct device *dev = dma_phys_device(test);

	dev->dma_range_map = map;
	expect_no(test, dev, "offset");
	/* Freed with the device otherwise */
	dev->dma_range_map = NULL;
}

static void dma_phys_map_without_offset(struct kunit *test)
{
	static const struct bus_dma_region all[] = { { .size = U64_MAX }, {} };
	/* No machine that runs this has less */
	static const struct bus_dma_region part[] = { { .size = SZ_1M }, {} };
	struct device *dev = dma_phys_device(test);

	dev->dma_range_map = all;
	expect_yes(test, dev);
	dev->dma_range_map = part;
	expect_no(test, dev, "reach");
	dev->dma_range_map = NULL;
}

static void dma_phys_limit(struct kunit *test)
{
	struct device *dev = dma_phys_device(test);

	dev->bus_dma_limit = SZ_1M - 1;
	expect_no(test, dev, "reach");
	dev->bus_dma_limit = U64_MAX;
	expect_yes(test, dev);
}

/* A resource halfway to the last address, beyond all RAM */
static void dma_phys_persistent_memory(struct kunit *test)
{
	struct device *dev = dma_phys_device(test);
	struct resource res = {
		.name = "dma_addr_is_phys",
		.start = iomem_resource.end / 2 + 1,
		.end = iomem_resource.end / 2 + SZ_1M,
		.flags = IORESOURCE_MEM,
		.desc = IORES_DESC_PERSISTENT_MEMORY,
	};
	const char *reason;

	dev->bus_dma_limit = res.start - 1;
	if (!dma_addr_is_phys(dev, &reason) ||
	    request_resource(&iomem_resource, &res))
		kunit_skip(test, "there is something in the middle");
	expect_no(test, dev, "reach");
	dev->bus_dma_limit = res.end;
	expect_yes(test, dev);
	release_resource(&res);
}

static struct kunit_case dma_phys_cases[] = {
	KUNIT_CASE(dma_phys_plain),
	KUNIT_CASE(dma_phys_iommu),
	KUNIT_CASE(dma_phys_dma_ops),
	KUNIT_CASE(dma_phys_encrypted),
	KUNIT_CASE(dma_phys_bounced),
	KUNIT_CASE(dma_phys_offset),
	KUNIT_CASE(dma_phys_map_without_offset),
	KUNIT_CASE(dma_phys_limit),
	KUNIT_CASE(dma_phys_persistent_memory),
	{}
};

static struct kunit_suite dma_phys_suite = {
	.name = "dma_addr_is_phys",
	.test_cases = dma_phys_cases,
};

kunit_test_suite(dma_phys_suite);
