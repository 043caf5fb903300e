// SPDX-License-Identifier: GPL-2.0-only
/*
 * iommufd for devices without an IOMMU, on mock devices: needs IOMMUFD_TEST and
 * no hardware
 */
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>

#include "iommufd_noiommu_mock.h"

FIXTURE(noiommu)
{
	int fd;
	uint32_t ioas;
	struct mock dev;
	struct held held;
};

FIXTURE_VARIANT(noiommu)
{
	/* Bytes of a batch of PFNs */
	unsigned int limit;
};

FIXTURE_VARIANT_ADD(noiommu, batches) { .limit = 65536 };
/* So that a few pages take several batches */
FIXTURE_VARIANT_ADD(noiommu, small_batches) { .limit = 32 };

FIXTURE_SETUP(noiommu)
{
	int rc;

	self->held = held_now();
	rc = mock_setup(&self->fd, &self->ioas, &self->dev, variant->limit);
	if (rc == ENOTTY || rc == EOPNOTSUPP)
		SKIP(return, "no CONFIG_IOMMUFD_TEST, noiommu or pages of 4K");
	ASSERT_EQ(0, rc);
}

/* Whatever a test did and left behind, nothing is lost */
FIXTURE_TEARDOWN(noiommu)
{
	mock_teardown(_metadata, self->fd, &self->held);
}

#define check_ioas(ioas, va, iova, size) \
	check_pas_and_extents(_metadata, self->fd, ioas, va, iova, size)

TEST_F(noiommu, automatic_hwpt)
{
	struct mock second;

	EXPECT_NE(self->ioas, self->dev.hwpt);
	EXPECT_EQ(EBUSY, destroy(self->fd, self->dev.hwpt));
	EXPECT_EQ(EBUSY, destroy(self->fd, self->dev.idev));
	EXPECT_EQ(EBUSY, destroy(self->fd, self->ioas));
	/* The next device of the kind shares it */
	ASSERT_EQ(0, mock_noiommu(self->fd, self->ioas, &second));
	EXPECT_EQ(self->dev.hwpt, second.hwpt);
	EXPECT_NE(self->dev.idev, second.idev);
	ASSERT_EQ(0, destroy(self->fd, self->dev.stdev));
	EXPECT_EQ(EBUSY, destroy(self->fd, second.hwpt));
	/* And it goes with the last one */
	ASSERT_EQ(0, destroy(self->fd, second.stdev));
	EXPECT_EQ(ENOENT, destroy(self->fd, second.hwpt));
	EXPECT_EQ(ENOENT, destroy(self->fd, second.idev));
	EXPECT_EQ(0, destroy(self->fd, self->ioas));
}

TEST_F(noiommu, explicit_hwpts)
{
	uint32_t hwpt[3], other;
	struct mock second;
	char *va = anon(16 * PAGE, 0);
	int i;

	touch_scattered(va, 16 * PAGE);
	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, va, 16 * PAGE, IOVA, MAP_RW));
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, hwpt_alloc(self->fd, self->dev.idev, self->ioas, 0,
					&hwpt[i]));
		EXPECT_NE(self->dev.hwpt, hwpt[i]);
		/* All of them map the IOAS, which is pinned once */
		EXPECT_EQ(self->held.pinned + 16, pinned_pages());
	}
	/* Made for one device, good for another */
	ASSERT_EQ(0, mock_noiommu(self->fd, hwpt[1], &second));
	EXPECT_EQ(hwpt[1], second.hwpt);
	EXPECT_EQ(EBUSY, destroy(self->fd, hwpt[1]));

	/* The answer is the same with any, all or the last of them */
	check_ioas(self->ioas, va, IOVA, 16 * PAGE);
	ASSERT_EQ(0, destroy(self->fd, self->dev.stdev));
	check_ioas(self->ioas, va, IOVA, 16 * PAGE);
	ASSERT_EQ(0, destroy(self->fd, hwpt[0]));
	check_ioas(self->ioas, va, IOVA, 16 * PAGE);
	ASSERT_EQ(0, destroy(self->fd, second.stdev));
	ASSERT_EQ(0, destroy(self->fd, hwpt[1]));
	check_ioas(self->ioas, va, IOVA, 16 * PAGE);
	ASSERT_EQ(0, destroy(self->fd, hwpt[2]));
	EXPECT_EQ(EOPNOTSUPP, get_pa_errno(self->fd, self->ioas, IOVA));
	EXPECT_EQ(self->held.pinned, pinned_pages());

	/* Without a device there is nobody to make a HWPT for */
	ASSERT_EQ(0, ioas_alloc(self->fd, &other));
	EXPECT_EQ(ENOENT, hwpt_alloc(self->fd, self->dev.idev, other, 0, &hwpt[0]));
}

TEST_F(noiommu, replace_in_every_direction)
{
	/* The two IOASes, and two HWPTs of each */
	uint32_t pts[6], ioas_of[6];
	char *va = anon(16 * PAGE, 0);
	int from, to, i;

	touch_scattered(va, 16 * PAGE);
	for (i = 0; i < 2; i++) {
		pts[0] = self->ioas;
		if (i)
			ASSERT_EQ(0, ioas_alloc(self->fd, &pts[3 * i]));
		ASSERT_EQ(0, ioas_map(self->fd, pts[3 * i], va, 16 * PAGE, IOVA,
				      MAP_RW));
		for (to = 0; to < 3; to++) {
			ioas_of[3 * i + to] = pts[3 * i];
			if (to)
				ASSERT_EQ(0, hwpt_alloc(self->fd, self->dev.idev,
							pts[3 * i], 0,
							&pts[3 * i + to]));
		}
	}
	for (from = 0; from < 6; from++) {
		for (to = 0; to < 6; to++) {
			ASSERT_EQ(0, mock_replace(self->fd, &self->dev, pts[from]));
			ASSERT_EQ(0, mock_replace(self->fd, &self->dev, pts[to]));
			if (pts[to] != ioas_of[to])
				EXPECT_EQ(pts[to], self->dev.hwpt);
			EXPECT_EQ(EBUSY, destroy(self->fd, self->dev.hwpt));
			check_ioas(ioas_of[to], va, IOVA, 16 * PAGE);
		}
	}
	/* What was replaced is held by nothing */
	ASSERT_EQ(0, mock_replace(self->fd, &self->dev, pts[5]));
	EXPECT_EQ(0, destroy(self->fd, pts[1]));
	EXPECT_EQ(0, destroy(self->fd, pts[2]));
	EXPECT_EQ(EOPNOTSUPP, get_pa_errno(self->fd, pts[0], IOVA));
	EXPECT_EQ(0, destroy(self->fd, pts[0]));
	check_ioas(pts[3], va, IOVA, 16 * PAGE);
}

/* A replace moves one device, not those that share its HWPT */
TEST_F(noiommu, replace_one_of_two)
{
	uint32_t other, shared = self->dev.hwpt;
	char *va = anon(16 * PAGE, 0);
	struct mock second;

	touch_scattered(va, 16 * PAGE);
	ASSERT_EQ(0, mock_noiommu(self->fd, self->ioas, &second));
	ASSERT_EQ(shared, second.hwpt);
	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, va, 16 * PAGE, IOVA, MAP_RW));
	ASSERT_EQ(0, ioas_alloc(self->fd, &other));
	ASSERT_EQ(0, mock_replace(self->fd, &self->dev, other));
	EXPECT_NE(shared, self->dev.hwpt);
	EXPECT_EQ(EBUSY, destroy(self->fd, shared));
	check_ioas(self->ioas, va, IOVA, 16 * PAGE);
	EXPECT_EQ(ENOENT, get_pa_errno(self->fd, other, IOVA));
	ASSERT_EQ(0, mock_replace(self->fd, &second, other));
	EXPECT_EQ(self->dev.hwpt, second.hwpt);
	EXPECT_EQ(ENOENT, destroy(self->fd, shared));
	EXPECT_EQ(EOPNOTSUPP, get_pa_errno(self->fd, self->ioas, IOVA));
}

TEST_F(noiommu, failed_replace_changes_nothing)
{
	char *va = anon(16 * PAGE, 0);
	struct mock second;
	uint32_t hwpt;

	touch_scattered(va, 16 * PAGE);
	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, va, 16 * PAGE, IOVA, MAP_RW));
	ASSERT_EQ(0, mock_add(self->fd, 0, self->ioas, &second));
	hwpt = self->dev.hwpt;
	EXPECT_EQ(ENOENT, mock_replace(self->fd, &self->dev, 0xdead));
	EXPECT_EQ(EINVAL, mock_replace(self->fd, &self->dev, self->dev.idev));
	EXPECT_EQ(EINVAL, mock_replace(self->fd, &self->dev, second.hwpt));
	EXPECT_EQ(EBUSY, destroy(self->fd, hwpt));
	/* Neither of the two that were not replaced has an IOAS of its own */
	ASSERT_EQ(0, destroy(self->fd, second.stdev));
	check_ioas(self->ioas, va, IOVA, 16 * PAGE);
	EXPECT_EQ(self->held.pinned + 16, pinned_pages());
}

/*
 * A device behind the mock IOMMU and one without in one IOAS
 */
TEST_F(noiommu, mixed_ioas_in_either_order)
{
	char *va = anon(16 * PAGE, 0);
	unsigned int mapped, order, leaves, all, i;
	struct mock dev[2];		/* noiommu first */
	uint32_t ioas;

	touch_scattered(va, 16 * PAGE);
	for (all = 0; all < 3 * 2 * 2; all++) {
		/* Before the first, between the two, after the second */
		mapped = all % 3;
		/* Which comes first, and which leaves first */
		order = all / 3 % 2;
		leaves = all / 6;
		ASSERT_EQ(0, ioas_alloc(self->fd, &ioas));
		for (i = 0; i < 3; i++) {
			if (mapped == i)
				ASSERT_EQ(0, ioas_map(self->fd, ioas, va, 16 * PAGE,
						      IOVA, MAP_RW));
			if (i == 2)
				break;
			ASSERT_EQ(0, mock_add(self->fd, i == order ?
					MOCK_FLAGS_DEVICE_NOIOMMU : 0,
					ioas, &dev[i != order]));
		}
		/* A domain of its own kind for each, pinned once */
		EXPECT_NE(dev[0].hwpt, dev[1].hwpt);
		EXPECT_EQ(self->held.pinned + 16, pinned_pages());
		check_ioas(ioas, va, IOVA, 16 * PAGE);
		EXPECT_EQ(0, mock_maps(self->fd, dev[1].hwpt, IOVA, va, 16 * PAGE));

		/* The answer goes with the noiommu device only */
		ASSERT_EQ(0, destroy(self->fd, dev[leaves].stdev));
		EXPECT_EQ(self->held.pinned + 16, pinned_pages());
		if (leaves) {
			check_ioas(ioas, va, IOVA, 16 * PAGE);
		} else {
			EXPECT_EQ(EOPNOTSUPP, get_pa_errno(self->fd, ioas, IOVA));
			EXPECT_EQ(0, mock_maps(self->fd, dev[1].hwpt, IOVA, va,
					       16 * PAGE));
		}
		ASSERT_EQ(0, destroy(self->fd, dev[!leaves].stdev));
		EXPECT_EQ(EOPNOTSUPP, get_pa_errno(self->fd, ioas, IOVA));
		EXPECT_EQ(self->held.pinned, pinned_pages());
		ASSERT_EQ(0, destroy(self->fd, ioas));
	}
}

TEST_F(noiommu, mixed_ioas_has_the_iommus_iovas)
{
	char *va = anon(16 * PAGE, 0);
	struct mock iommu;

	touch_scattered(va, 16 * PAGE);
	EXPECT_TRUE(all_iovas_allowed(self->fd, self->ioas));
	ASSERT_EQ(0, mock_add(self->fd, 0, self->ioas, &iommu));
	EXPECT_FALSE(all_iovas_allowed(self->fd, self->ioas));
	EXPECT_EQ(EINVAL, ioas_map(self->fd, self->ioas, va, 16 * PAGE,
				   MOCK_APERTURE_LAST + 1UL, MAP_RW));
	EXPECT_EQ(EINVAL, ioas_map(self->fd, self->ioas, va, 16 * PAGE,
				   MOCK_APERTURE_START - PAGE, MAP_RW));
	ASSERT_EQ(0, destroy(self->fd, iommu.stdev));
	/* Without it the noiommu device maps what the IOMMU can't. It stays out. */
	EXPECT_TRUE(all_iovas_allowed(self->fd, self->ioas));
	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, va, 16 * PAGE,
			      MOCK_APERTURE_LAST + 1UL, MAP_RW));
	EXPECT_EQ(EADDRINUSE, mock_add(self->fd, 0, self->ioas, &iommu));
	EXPECT_TRUE(all_iovas_allowed(self->fd, self->ioas));
	check_ioas(self->ioas, va, MOCK_APERTURE_LAST + 1UL, 16 * PAGE);
}

TEST_F(noiommu, hwpts_of_the_other_kind)
{
	struct mock iommu, refused;
	struct iommu_hwpt_selftest data = { .iotlb = IOMMU_TEST_IOTLB_DEFAULT };
	uint32_t hwpt[2], paged;	/* for noiommu, for the IOMMU */
	uint32_t nested, fault, fault_fd, faulting;

	ASSERT_EQ(0, mock_add(self->fd, 0, self->ioas, &iommu));
	ASSERT_EQ(0, hwpt_alloc(self->fd, self->dev.idev, self->ioas, 0, &hwpt[0]));
	ASSERT_EQ(0, hwpt_alloc(self->fd, iommu.idev, self->ioas, 0, &hwpt[1]));
	/* Attach, and replace */
	EXPECT_EQ(EINVAL, mock_noiommu(self->fd, hwpt[1], &refused));
	EXPECT_EQ(EINVAL, mock_add(self->fd, 0, hwpt[0], &refused));
	EXPECT_EQ(EINVAL, mock_replace(self->fd, &self->dev, hwpt[1]));
	EXPECT_EQ(EINVAL, mock_replace(self->fd, &iommu, hwpt[0]));
	/* One that can be nested on is of the IOMMU's kind too */
	ASSERT_EQ(0, hwpt_alloc(self->fd, iommu.idev, self->ioas,
				IOMMU_HWPT_ALLOC_NEST_PARENT, &paged));
	EXPECT_EQ(EINVAL, mock_replace(self->fd, &self->dev, paged));
	/* So is one nested on it, and one with a fault queue */
	ASSERT_EQ(0, _test_cmd_hwpt_alloc(self->fd, iommu.idev, paged, 0, 0, &nested,
					  IOMMU_HWPT_DATA_SELFTEST, &data,
					  sizeof(data)));
	EXPECT_EQ(EINVAL, mock_noiommu(self->fd, nested, &refused));
	EXPECT_EQ(EINVAL, mock_replace(self->fd, &self->dev, nested));
	ASSERT_EQ(0, _test_ioctl_fault_alloc(self->fd, &fault, &fault_fd));
	ASSERT_EQ(0, _test_cmd_hwpt_alloc(self->fd, iommu.idev, self->ioas, fault,
					  IOMMU_HWPT_FAULT_ID_VALID, &faulting,
					  IOMMU_HWPT_DATA_NONE, NULL, 0));
	EXPECT_EQ(EINVAL, mock_noiommu(self->fd, faulting, &refused));
	EXPECT_EQ(EINVAL, mock_replace(self->fd, &self->dev, faulting));
	/* What was refused holds nothing */
	EXPECT_EQ(0, destroy(self->fd, faulting));
	close(fault_fd);
	EXPECT_EQ(0, destroy(self->fd, fault));
	EXPECT_EQ(0, destroy(self->fd, nested));
	EXPECT_EQ(0, destroy(self->fd, paged));
	EXPECT_EQ(0, destroy(self->fd, hwpt[0]));
	EXPECT_EQ(0, destroy(self->fd, hwpt[1]));
	/* A replace by the IOAS finds the right kind among its HWPTs */
	paged = self->dev.hwpt;
	EXPECT_EQ(0, mock_replace(self->fd, &self->dev, self->ioas));
	EXPECT_EQ(paged, self->dev.hwpt);
	paged = iommu.hwpt;
	EXPECT_EQ(0, mock_replace(self->fd, &iommu, self->ioas));
	EXPECT_EQ(paged, iommu.hwpt);
}

/*
 * Access objects
 */
TEST_F(noiommu, access_pins_the_same_area)
{
	char *va = anon(64 * PAGE, 0);
	uint32_t access, whole, part;
	int first;

	touch_scattered(va, 64 * PAGE);
	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, va, 64 * PAGE, IOVA, MAP_RW));
	ASSERT_EQ(0, _test_cmd_create_access(self->fd, self->ioas, &access,
					     MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES));
	for (first = 0; first < 2; first++) {
		/* The second time with the access first */
		if (first) {
			ASSERT_EQ(0, destroy(self->fd, self->dev.stdev));
			EXPECT_EQ(self->held.pinned, pinned_pages());
		}
		ASSERT_EQ(0, access_pin(self->fd, access, IOVA, va, 64 * PAGE,
					&whole));
		ASSERT_EQ(0, access_pin(self->fd, access, IOVA + 5 * PAGE,
					va + 5 * PAGE, 7 * PAGE, &part));
		if (first) {
			EXPECT_EQ(EOPNOTSUPP,
				  get_pa_errno(self->fd, self->ioas, IOVA));
			ASSERT_EQ(0, mock_noiommu(self->fd, self->ioas, &self->dev));
		}
		check_ioas(self->ioas, va, IOVA, 64 * PAGE);
		ASSERT_EQ(0, _test_cmd_destroy_access_pages(self->fd, access, whole));
		check_ioas(self->ioas, va, IOVA, 64 * PAGE);
		/* The device goes, and leaves the access what it has pinned */
		ASSERT_EQ(0, destroy(self->fd, self->dev.stdev));
		EXPECT_EQ(self->held.pinned + 7, pinned_pages());
		ASSERT_EQ(0, access_pin(self->fd, access, IOVA + 5 * PAGE,
					va + 5 * PAGE, 7 * PAGE, &whole));
		ASSERT_EQ(0, _test_cmd_destroy_access_pages(self->fd, access, whole));
		ASSERT_EQ(0, mock_noiommu(self->fd, self->ioas, &self->dev));
		check_ioas(self->ioas, va, IOVA, 64 * PAGE);
		ASSERT_EQ(0, _test_cmd_destroy_access_pages(self->fd, access, part));
		EXPECT_EQ(self->held.pinned + 64, pinned_pages());
	}
	/* An unmap takes the access's pins with it */
	ASSERT_EQ(0, access_pin(self->fd, access, IOVA, va, 64 * PAGE, &whole));
	ASSERT_EQ(0, ioas_unmap(self->fd, self->ioas, IOVA, 64 * PAGE));
	EXPECT_EQ(self->held.pinned, pinned_pages());
	EXPECT_EQ(-1, _test_cmd_destroy_access_pages(self->fd, access, whole));
	close(access);
}

/* However many areas there are, each being unpinned at the first try */
TEST_F(noiommu, access_pins_many_areas)
{
	char *va = anon(120 * PAGE, MAP_POPULATE);
	uint32_t access, pin;
	int i;

	ASSERT_EQ(0, _test_cmd_create_access(self->fd, self->ioas, &access,
					     MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES));
	for (i = 0; i < 120; i++) {
		ASSERT_EQ(0, ioas_map(self->fd, self->ioas, va + i * PAGE, PAGE,
				      IOVA + i * PAGE, MAP_RW));
		ASSERT_EQ(0, access_pin(self->fd, access, IOVA + i * PAGE, va + i * PAGE,
					PAGE, &pin));
	}
	EXPECT_EQ(0, ioas_unmap(self->fd, self->ioas, IOVA, 120 * PAGE));
	EXPECT_EQ(self->held.pinned, pinned_pages());
	close(access);
}

/* The same of an access and both kinds of domain, where each may hold the pages */
TEST_F(noiommu, access_beside_both_domains)
{
	char *va = anon(64 * PAGE, 0);
	uint32_t access, item;
	struct mock iommu;
	int leaves;

	touch_scattered(va, 64 * PAGE);
	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, va, 64 * PAGE, IOVA, MAP_RW));
	ASSERT_EQ(0, _test_cmd_create_access(self->fd, self->ioas, &access,
					     MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES));
	ASSERT_EQ(0, access_pin(self->fd, access, IOVA + 3 * PAGE, va + 3 * PAGE,
				50 * PAGE, &item));
	for (leaves = 0; leaves < 2; leaves++) {
		ASSERT_EQ(0, mock_add(self->fd, 0, self->ioas, &iommu));
		EXPECT_EQ(0, mock_maps(self->fd, iommu.hwpt, IOVA, va, 64 * PAGE));
		check_ioas(self->ioas, va, IOVA, 64 * PAGE);
		if (leaves) {
			ASSERT_EQ(0, destroy(self->fd, iommu.stdev));
			check_ioas(self->ioas, va, IOVA, 64 * PAGE);
			continue;
		}
		ASSERT_EQ(0, destroy(self->fd, self->dev.stdev));
		EXPECT_EQ(0, mock_maps(self->fd, iommu.hwpt, IOVA, va, 64 * PAGE));
		ASSERT_EQ(0, mock_noiommu(self->fd, self->ioas, &self->dev));
		check_ioas(self->ioas, va, IOVA, 64 * PAGE);
		ASSERT_EQ(0, destroy(self->fd, iommu.stdev));
	}
	EXPECT_EQ(self->held.pinned + 64, pinned_pages());
	close(access);
}

TEST_F(noiommu, access_reads_what_is_mapped)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_ACCESS_RW,
		.access_rw = { .iova = IOVA + 123, .length = 3 * PAGE },
	};
	char *va = anon(8 * PAGE, 0), *copy = anon(4 * PAGE, 0);
	unsigned int i;

	touch_scattered(va, 8 * PAGE);
	for (i = 0; i < 8 * PAGE; i++)
		va[i] = i * 7;
	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, va, 8 * PAGE, IOVA, MAP_RW));
	ASSERT_EQ(0, _test_cmd_create_access(self->fd, self->ioas, &cmd.id, 0));
	cmd.access_rw.uptr = (uintptr_t)copy;
	ASSERT_EQ(0, ioctl(self->fd, IOMMU_TEST_CMD, &cmd));
	EXPECT_EQ(0, memcmp(copy, va + 123, 3 * PAGE));
	/* Through the pages that the domain holds, not through the process */
	cmd.access_rw.flags = MOCK_ACCESS_RW_SLOW_PATH | MOCK_ACCESS_RW_WRITE;
	memset(copy, 0x5a, 3 * PAGE);
	ASSERT_EQ(0, ioctl(self->fd, IOMMU_TEST_CMD, &cmd));
	EXPECT_EQ(0, memcmp(copy, va + 123, 3 * PAGE));
	EXPECT_EQ((char)(122 * 7), va[122]);
	close(cmd.id);
}

/*
 * Map, copy, unmap
 */
TEST_F(noiommu, copy_between_ioases)
{
	struct mock second, iommu;
	char *va = anon(16 * PAGE, 0);
	uint32_t other;

	touch_scattered(va, 16 * PAGE);
	ASSERT_EQ(0, ioas_alloc(self->fd, &other));
	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, va, 16 * PAGE, IOVA, MAP_RW));
	/* Into one with a noiommu device, and then one behind an IOMMU too */
	ASSERT_EQ(0, mock_noiommu(self->fd, other, &second));
	ASSERT_EQ(0, ioas_copy(self->fd, other, IOVA + 3 * PAGE, self->ioas, IOVA,
			       16 * PAGE));
	ASSERT_EQ(0, mock_add(self->fd, 0, other, &iommu));
	ASSERT_EQ(0, ioas_copy(self->fd, other, IOVA + HUGE_PAGE, self->ioas,
			       IOVA + 2 * PAGE, 9 * PAGE));
	/* Within one */
	ASSERT_EQ(0, ioas_copy(self->fd, other, IOVA + 2 * HUGE_PAGE, other,
			       IOVA + 3 * PAGE, 16 * PAGE));
	EXPECT_EQ(self->held.pinned + 16, pinned_pages());
	/* The first goes; the copies keep the pages */
	ASSERT_EQ(0, destroy(self->fd, self->dev.stdev));
	ASSERT_EQ(0, ioas_unmap(self->fd, self->ioas, IOVA, 16 * PAGE));
	check_ioas(other, va, IOVA + 3 * PAGE, 16 * PAGE);
	check_ioas(other, va + 2 * PAGE, IOVA + HUGE_PAGE, 9 * PAGE);
	check_ioas(other, va, IOVA + 2 * HUGE_PAGE, 16 * PAGE);
	EXPECT_EQ(0, mock_maps(self->fd, iommu.hwpt, IOVA + 3 * PAGE, va, 16 * PAGE));
	EXPECT_EQ(0, mock_maps(self->fd, iommu.hwpt, IOVA + HUGE_PAGE, va + 2 * PAGE,
			       9 * PAGE));
	EXPECT_EQ(self->held.pinned + 16, pinned_pages());
	ASSERT_EQ(0, ioas_unmap(self->fd, other, IOVA + 3 * PAGE, 16 * PAGE));
	ASSERT_EQ(0, ioas_unmap(self->fd, other, IOVA + 2 * HUGE_PAGE, 16 * PAGE));
	check_ioas(other, va + 2 * PAGE, IOVA + HUGE_PAGE, 9 * PAGE);
	EXPECT_EQ(self->held.pinned + 9, pinned_pages());
}

/* From an IOAS that no noiommu domain holds, with an IOMMU and with nothing */
TEST_F(noiommu, copy_from_elsewhere)
{
	char *va = anon(16 * PAGE, 0);
	uint32_t iommus, nobodys;
	struct mock iommu;

	touch_scattered(va, 16 * PAGE);
	ASSERT_EQ(0, ioas_alloc(self->fd, &iommus));
	ASSERT_EQ(0, ioas_alloc(self->fd, &nobodys));
	ASSERT_EQ(0, mock_add(self->fd, 0, iommus, &iommu));
	ASSERT_EQ(0, ioas_map(self->fd, iommus, va, 16 * PAGE, IOVA, MAP_RW));
	ASSERT_EQ(0, ioas_map(self->fd, nobodys, va, 16 * PAGE, IOVA, MAP_RW));
	ASSERT_EQ(0, ioas_copy(self->fd, self->ioas, IOVA, iommus, IOVA, 16 * PAGE));
	EXPECT_EQ(self->held.pinned + 16, pinned_pages());
	check_ioas(self->ioas, va, IOVA, 16 * PAGE);
	ASSERT_EQ(0, ioas_copy(self->fd, self->ioas, IOVA + HUGE_PAGE, nobodys,
			       IOVA + PAGE, 15 * PAGE));
	check_ioas(self->ioas, va + PAGE, IOVA + HUGE_PAGE, 15 * PAGE);
	/* The IOMMU's goes, and then the copy that took its pages */
	ASSERT_EQ(0, destroy(self->fd, iommu.stdev));
	ASSERT_EQ(0, ioas_unmap(self->fd, iommus, 0, ULLONG_MAX));
	check_ioas(self->ioas, va, IOVA, 16 * PAGE);
	ASSERT_EQ(0, ioas_unmap(self->fd, self->ioas, 0, ULLONG_MAX));
	EXPECT_EQ(self->held.pinned, pinned_pages());
}

/*
 * Map one huge page several times, so that no entry continues the previous one, and
 * start a copy inside of each entry. The pages before the copy are unpinned, up to the
 * middle of the entry, but the domain unmaps the entry as a whole.
 */
TEST_F(noiommu, copy_from_inside_of_an_entry)
{
	const unsigned int times = 5;
	size_t size = times * HUGE_PAGE;
	char *va = mmap(NULL, size + HUGE_PAGE, PROT_NONE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct mock second;
	uint32_t other;
	unsigned int i;
	int fd;

	ASSERT_NE(MAP_FAILED, (void *)va);
	va = (char *)(((uintptr_t)va + HUGE_PAGE - 1) & -HUGE_PAGE);
	fd = memfd_create("hugetlb", MFD_HUGETLB);
	if (fd < 0 || ftruncate(fd, HUGE_PAGE))
		SKIP(return, "no huge pages");
	for (i = 0; i < times; i++)
		if (mmap(va + i * HUGE_PAGE, HUGE_PAGE, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
			SKIP(return, "no huge page is free");
	ASSERT_EQ(0, ioas_alloc(self->fd, &other));
	ASSERT_EQ(0, mock_noiommu(self->fd, other, &second));

	for (i = 0; i < times; i++) {
		size_t start = i * HUGE_PAGE + (1 + 100 * i) * PAGE;

		ASSERT_EQ(0, ioas_map(self->fd, self->ioas, va, size, IOVA, MAP_RW));
		ASSERT_EQ(0, ioas_copy(self->fd, other, IOVA + start, self->ioas,
				       IOVA + start, size - start));
		ASSERT_EQ(0, ioas_unmap(self->fd, self->ioas, IOVA, size));
		EXPECT_EQ(ENOENT, get_pa_errno(self->fd, self->ioas, IOVA + start));
		EXPECT_EQ(self->held.pinned + (size - start) / PAGE, pinned_pages());
		check_ioas(other, va + start, IOVA + start, size - start);
		ASSERT_EQ(0, ioas_unmap(self->fd, other, 0, ULLONG_MAX));
		EXPECT_EQ(self->held.pinned, pinned_pages());
	}
	munmap(va, size);
	close(fd);
}

TEST_F(noiommu, unmap_while_attached)
{
	char *va = anon(32 * PAGE, 0);
	unsigned int i;

	touch_scattered(va, 32 * PAGE);
	for (i = 0; i < 4; i++)
		ASSERT_EQ(0, ioas_map(self->fd, self->ioas, va + i * 8 * PAGE,
				      8 * PAGE, IOVA + i * 8 * PAGE, MAP_RW));
	check_ioas(self->ioas, va, IOVA, 32 * PAGE);
	/* Not a part of an area, but any number of whole ones */
	EXPECT_EQ(ENOENT, ioas_unmap(self->fd, self->ioas, IOVA, 7 * PAGE));
	ASSERT_EQ(0, ioas_unmap(self->fd, self->ioas, IOVA + 8 * PAGE, 16 * PAGE));
	EXPECT_EQ(self->held.pinned + 16, pinned_pages());
	for (i = 0; i < 32; i++)
		EXPECT_EQ(i >= 8 && i < 24 ? ENOENT : 0,
			  get_pa_errno(self->fd, self->ioas, IOVA + i * PAGE));
	/* The room can be used again, for other pages */
	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, va, 16 * PAGE, IOVA + 8 * PAGE,
			      MAP_RW));
	check_ioas(self->ioas, va, IOVA + 8 * PAGE, 16 * PAGE);
	ASSERT_EQ(0, ioas_unmap(self->fd, self->ioas, 0, ULLONG_MAX));
	EXPECT_EQ(self->held.pinned, pinned_pages());
	EXPECT_EQ(self->held.accounted, accounted());
}

/* IOVAs whose tables are there already, or partly, or not */
TEST_F(noiommu, map_and_unmap_again)
{
	char *va = anon(64 * PAGE, 0);
	unsigned int i;

	touch_scattered(va, 64 * PAGE);
	for (i = 0; i < 64; i++) {
		uint64_t iova = IOVA + i * (1UL << 21) + i * PAGE;

		ASSERT_EQ(0, ioas_map(self->fd, self->ioas, va, (i + 1) * PAGE,
				      iova, MAP_RW));
		EXPECT_EQ(0, get_pa_errno(self->fd, self->ioas, iova + i * PAGE));
		ASSERT_EQ(0, ioas_unmap(self->fd, self->ioas, iova, (i + 1) * PAGE));
		EXPECT_EQ(ENOENT, get_pa_errno(self->fd, self->ioas, iova));
	}
	EXPECT_EQ(self->held.pinned, pinned_pages());
}

/*
 * Kinds of memory
 */
TEST_F(noiommu, scattered)
{
	char *va = anon(512 * PAGE, 0);

	touch_scattered(va, 512 * PAGE);
	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, va, 512 * PAGE, IOVA, MAP_RW));
	check_ioas(self->ioas, va, IOVA, 512 * PAGE);
}

TEST_F(noiommu, hugetlb)
{
	char *va = anon_huge(2 * HUGE_PAGE);
	uint64_t length = HUGE_PAGE, phys;

	if (!va)
		SKIP(return, "no huge pages");
	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, va, 2 * HUGE_PAGE, IOVA, MAP_RW));
	check_ioas(self->ioas, va, IOVA, 2 * HUGE_PAGE);
	ASSERT_EQ(0, get_pa(self->fd, self->ioas, IOVA, &length, &phys));
	EXPECT_EQ(HUGE_PAGE, length);
	ASSERT_EQ(0, ioas_unmap(self->fd, self->ioas, IOVA, 2 * HUGE_PAGE));
	/* At an IOVA that no large entry fits */
	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, va + PAGE, HUGE_PAGE - PAGE,
			      IOVA + 3 * PAGE, MAP_RW));
	check_ioas(self->ioas, va + PAGE, IOVA + 3 * PAGE, HUGE_PAGE - PAGE);
	munmap(va, 2 * HUGE_PAGE);
}

TEST_F(noiommu, huge_pages_option_off)
{
	char *huge = anon_huge(HUGE_PAGE), *va = anon(16 * PAGE, 0);
	uint64_t length = HUGE_PAGE, phys;
	struct mock second;
	long long tables;
	uint32_t small;

	if (!huge)
		SKIP(return, "no huge pages");
	touch_scattered(va, 16 * PAGE);
	ASSERT_EQ(0, ioas_alloc(self->fd, &small));
	ASSERT_EQ(0, ioas_disable_huge_pages(self->fd, small));
	ASSERT_EQ(0, mock_noiommu(self->fd, small, &second));
	/* A table more than the one entry takes that the option allows */
	tables = table_pages();
	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, huge, HUGE_PAGE, IOVA, MAP_RW));
	tables = table_pages() - tables;
	ASSERT_EQ(0, ioas_map(self->fd, small, huge, HUGE_PAGE, IOVA, MAP_RW));
	EXPECT_EQ(self->held.tables + 2 + 2 * tables + 1, table_pages());
	check_ioas(small, huge, IOVA, HUGE_PAGE);
	/* Entries of a page each are one contiguous run all the same */
	ASSERT_EQ(0, get_pa(self->fd, small, IOVA, &length, &phys));
	EXPECT_EQ(HUGE_PAGE, length);
	/* Page by page up to the last IOVA */
	ASSERT_EQ(0, ioas_map(self->fd, small, va, 16 * PAGE, -16 * PAGE, MAP_RW));
	check_ioas(small, va, -16 * PAGE, 16 * PAGE);
	munmap(huge, HUGE_PAGE);
}

TEST_F(noiommu, memfd)
{
	size_t size = 64 * PAGE;
	struct mock second;
	uint32_t other;

	mfd_buffer = memfd_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, &mfd);
	ASSERT_NE(MAP_FAILED, mfd_buffer);
	touch_scattered(mfd_buffer, size);
	ASSERT_EQ(0, ioas_map_file(self->fd, self->ioas, mfd, 3 * PAGE,
				   size - 3 * PAGE, IOVA));
	check_ioas(self->ioas, mfd_buffer + 3 * PAGE, IOVA, size - 3 * PAGE);
	/* A copy, the file closed, and the process's mapping gone */
	ASSERT_EQ(0, ioas_alloc(self->fd, &other));
	ASSERT_EQ(0, mock_noiommu(self->fd, other, &second));
	ASSERT_EQ(0, ioas_copy(self->fd, other, IOVA + PAGE, self->ioas, IOVA,
			       size - 3 * PAGE));
	close(mfd);
	ASSERT_EQ(0, destroy(self->fd, self->dev.stdev));
	ASSERT_EQ(0, ioas_unmap(self->fd, self->ioas, IOVA, size - 3 * PAGE));
	check_ioas(other, mfd_buffer + 3 * PAGE, IOVA + PAGE, size - 3 * PAGE);
	munmap(mfd_buffer, size);
	EXPECT_EQ(0, get_pa_errno(self->fd, other, IOVA + PAGE));
}

TEST_F(noiommu, dmabuf)
{
	uint64_t length = ULLONG_MAX, phys, again;
	size_t size = 8 * PAGE;
	struct mock iommu;
	uint32_t hwpt;
	int fd;

	ASSERT_EQ(0, _test_cmd_get_dmabuf(self->fd, size, &fd));
	ASSERT_EQ(0, ioas_map_file(self->fd, self->ioas, fd, 0, size, IOVA));
	/* The mock dma-buf is contiguous memory of the kernel's */
	ASSERT_EQ(0, get_pa(self->fd, self->ioas, IOVA, &length, &phys));
	EXPECT_EQ(size, length);
	EXPECT_EQ(0, phys % PAGE);
	length = 1;
	ASSERT_EQ(0, get_pa(self->fd, self->ioas, IOVA + 5 * PAGE + 7, &length,
			    &again));
	EXPECT_EQ(phys + 5 * PAGE + 7, again);
	/* It is not pinned memory of the process */
	EXPECT_EQ(self->held.pinned, pinned_pages());

	/* Its owner takes it back. There is no address any more */
	ASSERT_EQ(0, _test_cmd_revoke_dmabuf(self->fd, fd, true));
	EXPECT_EQ(EINVAL, get_pa_errno(self->fd, self->ioas, IOVA));
	EXPECT_EQ(EINVAL, get_pa_errno(self->fd, self->ioas, IOVA + 7 * PAGE));
	EXPECT_EQ(ENODEV, ioas_map_file(self->fd, self->ioas, fd, 0, size,
					IOVA + HUGE_PAGE));
	/* A domain that comes later has none either */
	ASSERT_EQ(0, hwpt_alloc(self->fd, self->dev.idev, self->ioas, 0, &hwpt));
	ASSERT_EQ(0, mock_add(self->fd, 0, self->ioas, &iommu));
	EXPECT_EQ(EINVAL, get_pa_errno(self->fd, self->ioas, IOVA));
	ASSERT_EQ(0, mock_replace(self->fd, &self->dev, hwpt));
	EXPECT_EQ(EINVAL, get_pa_errno(self->fd, self->ioas, IOVA));
	ASSERT_EQ(0, ioas_unmap(self->fd, self->ioas, IOVA, size));

	/* And gives it out again, for new maps */
	ASSERT_EQ(0, _test_cmd_revoke_dmabuf(self->fd, fd, false));
	ASSERT_EQ(0, ioas_map_file(self->fd, self->ioas, fd, 2 * PAGE, 3 * PAGE,
				   IOVA));
	length = ULLONG_MAX;
	ASSERT_EQ(0, get_pa(self->fd, self->ioas, IOVA, &length, &again));
	EXPECT_EQ(3 * PAGE, length);
	EXPECT_EQ(phys + 2 * PAGE, again);
	close(fd);
	EXPECT_EQ(0, get_pa_errno(self->fd, self->ioas, IOVA));
}

TEST_F(noiommu, iovas_up_to_the_last)
{
	/* The table starts with 39 bits, and grows to 48, 57 and 64 */
	static const uint64_t iovas[] = {
		0, (1ULL << 39) - 8 * PAGE, 1ULL << 40, (1ULL << 48) - 8 * PAGE,
		1ULL << 57, 1ULL << 63, -16 * PAGE,
	};
	uint64_t length, phys;
	char *va = anon(16 * PAGE, 0);
	unsigned int i, j;

	touch_scattered(va, 16 * PAGE);
	for (i = 0; i < ARRAY_SIZE(iovas); i++) {
		ASSERT_EQ(0, ioas_map(self->fd, self->ioas, va, 16 * PAGE, iovas[i],
				      MAP_RW));
		/* A table that grew on top still holds what was below */
		for (j = 0; j <= i; j++)
			check_ioas(self->ioas, va, iovas[j], 16 * PAGE);
	}
	/* No length is too long */
	length = ULLONG_MAX;
	ASSERT_EQ(0, get_pa(self->fd, self->ioas, -PAGE + 5, &length, &phys));
	EXPECT_EQ(PAGE - 5, length);
	EXPECT_EQ(EOVERFLOW, ioas_map(self->fd, self->ioas, va, 16 * PAGE,
				      -8 * PAGE, MAP_RW));
	EXPECT_EQ(EEXIST, ioas_map(self->fd, self->ioas, va, PAGE, -PAGE, MAP_RW));
	/* Off the top and the bottom; the middle stays */
	ASSERT_EQ(0, ioas_unmap(self->fd, self->ioas, -16 * PAGE, 16 * PAGE));
	ASSERT_EQ(0, ioas_unmap(self->fd, self->ioas, 0, 16 * PAGE));
	EXPECT_EQ(ENOENT, get_pa_errno(self->fd, self->ioas, 0));
	check_ioas(self->ioas, va, (1ULL << 48) - 8 * PAGE, 16 * PAGE);
	ASSERT_EQ(0, ioas_unmap(self->fd, self->ioas, 0, ULLONG_MAX));
}

TEST_F(noiommu, last_iovas_of_an_empty_table)
{
	char *va = anon(16 * PAGE, 0);

	touch_scattered(va, 16 * PAGE);
	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, va, 16 * PAGE, -16 * PAGE, MAP_RW));
	check_ioas(self->ioas, va, -16 * PAGE, 16 * PAGE);
	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, va, 16 * PAGE, 0, MAP_RW));
	check_ioas(self->ioas, va, 0, 16 * PAGE);
	check_ioas(self->ioas, va, -16 * PAGE, 16 * PAGE);
}

/*
 * Extents, besides those of each kind of memory by itself
 */
static uint32_t check_all(struct __test_metadata *_metadata, int fd, uint32_t ioas,
			  const struct pa_map *map)
{
	uint32_t nr = check_extents(_metadata, fd, ioas, map, map->iova, ULLONG_MAX,
				    UINT32_MAX);
	uint32_t room;

	for (room = 1; room <= nr + 1; room++)
		check_extents(_metadata, fd, ioas, map, map->iova + 9,
			      map->pages * PAGE, room);
	return nr;
}

/* Memory, a file, a dma-buf and a huge page side by side, for both kinds of device */
TEST_F(noiommu, extents_of_everything)
{
	char *huge = anon_huge(HUGE_PAGE), *va = anon(16 * PAGE, 0);
	struct pa_map map = { IOVA, 64, calloc(64, sizeof(uint64_t)) };
	struct mock dev[2];		/* noiommu first */
	unsigned int order, small, i;
	uint64_t length, phys;
	uint32_t ioas, hwpt;
	int dmabuf;

	if (!huge)
		SKIP(return, "no huge pages");
	ASSERT_NE(NULL, map.pas);
	touch_scattered(va, 16 * PAGE);
	mfd_buffer = memfd_mmap(16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, &mfd);
	ASSERT_NE(MAP_FAILED, mfd_buffer);
	touch_scattered(mfd_buffer, 16 * PAGE);

	for (order = 0; order < 4; order++) {
		small = order / 2;
		ASSERT_EQ(0, _test_cmd_get_dmabuf(self->fd, 16 * PAGE, &dmabuf));
		ASSERT_EQ(0, ioas_alloc(self->fd, &ioas));
		if (small)
			ASSERT_EQ(0, ioas_disable_huge_pages(self->fd, ioas));
		for (i = 0; i < 2; i++)
			ASSERT_EQ(0, mock_add(self->fd, i == order % 2 ?
					      MOCK_FLAGS_DEVICE_NOIOMMU : 0, ioas,
					      &dev[i != order % 2]));
		ASSERT_EQ(0, ioas_map(self->fd, ioas, va, 16 * PAGE, IOVA, MAP_RW));
		ASSERT_EQ(0, ioas_map_file(self->fd, ioas, mfd, 0, 16 * PAGE,
					   IOVA + 16 * PAGE));
		ASSERT_EQ(0, ioas_map_file(self->fd, ioas, dmabuf, 0, 16 * PAGE,
					   IOVA + 32 * PAGE));
		/* Two areas that touch */
		ASSERT_EQ(0, ioas_map(self->fd, ioas, huge + 9 * PAGE, 6 * PAGE,
				      IOVA + 48 * PAGE, MAP_RW));
		ASSERT_EQ(0, ioas_map(self->fd, ioas, huge + 15 * PAGE, 10 * PAGE,
				      IOVA + 54 * PAGE, MAP_RW));
		pagemap_pas(va, 16, map.pas);
		pagemap_pas(mfd_buffer, 16, map.pas + 16);
		pagemap_pas(huge + 9 * PAGE, 16, map.pas + 48);
		/* The mock dma-buf is contiguous, and the plain call knows where */
		length = 16 * PAGE;
		ASSERT_EQ(0, get_pa(self->fd, ioas, IOVA + 32 * PAGE, &length, &phys));
		ASSERT_EQ(16 * PAGE, length);
		for (i = 0; i < 16; i++)
			map.pas[32 + i] = phys + i * PAGE;
		EXPECT_LT(2, check_all(_metadata, self->fd, ioas, &map));

		/* Whichever domain keeps what */
		ASSERT_EQ(0, destroy(self->fd, dev[1].stdev));
		EXPECT_LT(2, check_all(_metadata, self->fd, ioas, &map));
		ASSERT_EQ(0, hwpt_alloc(self->fd, dev[0].idev, ioas, 0, &hwpt));
		EXPECT_LT(2, check_all(_metadata, self->fd, ioas, &map));
		ASSERT_EQ(0, destroy(self->fd, dev[0].stdev));
		EXPECT_LT(2, check_all(_metadata, self->fd, ioas, &map));

		/* The dma-buf is gone, what is before and behind it is not */
		ASSERT_EQ(0, _test_cmd_revoke_dmabuf(self->fd, dmabuf, true));
		memset(map.pas + 32, 0, 16 * sizeof(*map.pas));
		EXPECT_LT(2, check_all(_metadata, self->fd, ioas, &map));
		EXPECT_EQ(1, check_extents(_metadata, self->fd, ioas, &map,
					   IOVA + 48 * PAGE, ULLONG_MAX, 2));
		for (i = 32; i < 48; i++) {
			struct iommu_noiommu_extent extents[64];
			uint32_t nr = 64;

			length = ULLONG_MAX;
			EXPECT_EQ(EINVAL, get_pa_extents(self->fd, ioas,
							 IOVA + i * PAGE, &length,
							 extents, &nr));
			EXPECT_EQ(ULLONG_MAX, length);
			EXPECT_EQ(64, nr);
		}
		ASSERT_EQ(0, destroy(self->fd, hwpt));
		EXPECT_EQ(EOPNOTSUPP, get_pa_errno(self->fd, ioas, IOVA));
		ASSERT_EQ(0, ioas_unmap(self->fd, ioas, 0, ULLONG_MAX));
		ASSERT_EQ(0, destroy(self->fd, ioas));
		close(dmabuf);
	}
	close(mfd);
	munmap(mfd_buffer, 16 * PAGE);
	munmap(huge, HUGE_PAGE);
	free(map.pas);
}

struct changer {
	int fd;
	uint32_t ioas;
	uint32_t idev;
	uint32_t hwpt;
	int dmabuf;
	unsigned int nr;
	int rc;
	bool stop;
};

static bool changer_stopped(struct changer *changer)
{
	return changer->rc || __atomic_load_n(&changer->stop, __ATOMIC_RELAXED);
}

static uint64_t msecs(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/*
 * For some time, and on until enough has been seen, however slow the machine is.
 * Nothing more happens once the other thread has failed.
 */
static bool changes_go_on(struct changer *changer, uint64_t end, bool enough)
{
	if (msecs() < end)
		return true;
	if (changer_stopped(changer))
		return false;
	return !enough || __atomic_load_n(&changer->nr, __ATOMIC_RELAXED) <= 5;
}

/* There is a noiommu domain all the time, but never for long */
static void *change_domains(void *arg)
{
	struct changer *changer = arg;
	struct mock iommu;
	uint32_t old;

	while (!changer_stopped(changer)) {
		old = changer->hwpt;
		changer->rc = hwpt_alloc(changer->fd, changer->idev, changer->ioas, 0,
					 &changer->hwpt);
		changer->rc = changer->rc ?: destroy(changer->fd, old);
		if (!changer->rc && changer->nr++ % 4 == 0) {
			changer->rc = mock_add(changer->fd, 0, changer->ioas, &iommu);
			changer->rc = changer->rc ?: destroy(changer->fd, iommu.stdev);
		}
	}
	return NULL;
}

TEST_F(noiommu, extents_while_domains_change)
{
	char *va = anon(600 * PAGE, 0);
	struct changer changer = { .fd = self->fd, .idev = self->dev.idev };
	unsigned int answers = 0;
	struct pa_map map;
	pthread_t thread;
	uint64_t end;

	/* What the device is attached to would stay */
	touch_scattered(va, 600 * PAGE);
	ASSERT_EQ(0, ioas_alloc(self->fd, &changer.ioas));
	ASSERT_EQ(0, hwpt_alloc(self->fd, self->dev.idev, changer.ioas, 0,
				&changer.hwpt));
	ASSERT_EQ(0, ioas_map(self->fd, changer.ioas, va, 300 * PAGE, IOVA, MAP_RW));
	ASSERT_EQ(0, ioas_map(self->fd, changer.ioas, va + 300 * PAGE, 300 * PAGE,
			      IOVA + 300 * PAGE, MAP_RW));
	map = pa_map_of(va, 600, IOVA);
	ASSERT_EQ(0, pthread_create(&thread, NULL, change_domains, &changer));
	for (end = msecs() + 700; changes_go_on(&changer, end, answers > 5); answers++)
		check_extents(_metadata, self->fd, changer.ioas, &map,
			      IOVA + answers % 600 * PAGE, 600 * PAGE, UINT32_MAX);
	__atomic_store_n(&changer.stop, true, __ATOMIC_RELAXED);
	ASSERT_EQ(0, pthread_join(thread, NULL));
	EXPECT_EQ(0, changer.rc);
	TH_LOG("%u answers while domains changed %u times", answers, changer.nr);
	EXPECT_LT(5, answers);
	EXPECT_LT(5, changer.nr);
	free(map.pas);
}

static void *revoke_dmabuf(void *arg)
{
	struct changer *changer = arg;
	int fd = changer->fd, rc;

	for (; !changer_stopped(changer); changer->nr++) {
		rc = ERRNO_OF(_test_cmd_revoke_dmabuf(fd, changer->dmabuf, true));
		rc = rc ?: ioas_unmap(fd, changer->ioas, IOVA + 8 * PAGE, 8 * PAGE);
		rc = rc ?: ERRNO_OF(_test_cmd_revoke_dmabuf(fd, changer->dmabuf, false));
		changer->rc = rc ?: ioas_map_file(fd, changer->ioas, changer->dmabuf, 0,
						  8 * PAGE, IOVA + 8 * PAGE);
		usleep(changer->nr % 4 * 100);
	}
	return NULL;
}

/* It is all there or not at all, and no address is left to what was revoked */
TEST_F(noiommu, extents_while_dmabuf_is_revoked)
{
	char *va = anon(16 * PAGE, 0);
	struct changer changer = { .fd = self->fd, .ioas = self->ioas };
	struct iommu_noiommu_extent extents[24], expected[24];
	unsigned int with = 0, without = 0, i;
	uint64_t length, phys, end;
	uint32_t nr, nr_with, nr_without;
	struct pa_map map;
	pthread_t thread;

	touch_scattered(va, 16 * PAGE);
	ASSERT_EQ(0, _test_cmd_get_dmabuf(self->fd, 8 * PAGE, &changer.dmabuf));
	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, va, 8 * PAGE, IOVA, MAP_RW));
	ASSERT_EQ(0, ioas_map_file(self->fd, self->ioas, changer.dmabuf, 0, 8 * PAGE,
				   IOVA + 8 * PAGE));
	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, va + 8 * PAGE, 8 * PAGE,
			      IOVA + 16 * PAGE, MAP_RW));
	map = pa_map_of(va, 24, IOVA);
	memmove(map.pas + 16, map.pas + 8, 8 * sizeof(*map.pas));
	length = 8 * PAGE;
	ASSERT_EQ(0, get_pa(self->fd, self->ioas, IOVA + 8 * PAGE, &length, &phys));
	for (i = 0; i < 8; i++)
		map.pas[8 + i] = phys + i * PAGE;
	nr_with = 24;
	nr_without = 24;
	expect_extents(&map, IOVA, 8 * PAGE, expected, &nr_without);
	expect_extents(&map, IOVA, 24 * PAGE, expected, &nr_with);

	ASSERT_EQ(0, pthread_create(&thread, NULL, revoke_dmabuf, &changer));
	for (end = msecs() + 700; changes_go_on(&changer, end, with && without);) {
		nr = 24;
		length = ULLONG_MAX;
		ASSERT_EQ(0, get_pa_extents(self->fd, self->ioas, IOVA, &length,
					    extents, &nr));
		if (length == 8 * PAGE) {
			without++;
			ASSERT_EQ(nr_without, nr);
		} else {
			with++;
			ASSERT_EQ(24 * PAGE, length);
			ASSERT_EQ(nr_with, nr);
		}
		ASSERT_EQ(0, memcmp(expected, extents, nr * sizeof(*extents)));
	}
	__atomic_store_n(&changer.stop, true, __ATOMIC_RELAXED);
	ASSERT_EQ(0, pthread_join(thread, NULL));
	EXPECT_EQ(0, changer.rc);
	TH_LOG("%u answers with a dma-buf, %u without, while revoked %u times", with,
	       without, changer.nr);
	EXPECT_LT(0, with);
	EXPECT_LT(0, without);
	EXPECT_LT(5, changer.nr);
	close(changer.dmabuf);
	free(map.pas);
}

/*
 * What a device without an IOMMU can't have
 */
TEST_F(noiommu, hwpt_flags)
{
	static const uint32_t flags[] = {
		IOMMU_HWPT_ALLOC_NEST_PARENT, IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
		IOMMU_HWPT_FAULT_ID_VALID, IOMMU_HWPT_ALLOC_PASID, 1U << 31,
	};
	uint32_t fault, fault_fd, hwpt, all;
	struct mock iommu;
	unsigned int i;

	ASSERT_EQ(0, _test_ioctl_fault_alloc(self->fd, &fault, &fault_fd));
	/* The mock IOMMU takes each that there is, so that a refusal is the device's */
	ASSERT_EQ(0, mock_add(self->fd, MOCK_FLAGS_DEVICE_PASID, self->ioas, &iommu));
	for (i = 0; i < ARRAY_SIZE(flags) - 1; i++) {
		ASSERT_EQ(0, _test_cmd_hwpt_alloc(self->fd, iommu.idev, self->ioas,
						  fault, flags[i], &hwpt,
						  IOMMU_HWPT_DATA_NONE, NULL, 0))
			TH_LOG("flags %#x", flags[i]);
		ASSERT_EQ(0, destroy(self->fd, hwpt));
	}
	/* Every combination: no flag makes another one right */
	for (all = 1; all < 1U << ARRAY_SIZE(flags); all++) {
		uint32_t some = 0;

		for (i = 0; i < ARRAY_SIZE(flags); i++)
			if (all & 1U << i)
				some |= flags[i];
		EXPECT_EQ(EOPNOTSUPP,
			  ERRNO_OF(_test_cmd_hwpt_alloc(self->fd, self->dev.idev,
							self->ioas, fault, some,
							&hwpt, IOMMU_HWPT_DATA_NONE,
							NULL, 0)))
			TH_LOG("flags %#x", some);
	}
	close(fault_fd);
	EXPECT_EQ(0, destroy(self->fd, fault));
}

TEST_F(noiommu, nesting_and_viommu)
{
	struct iommu_hwpt_selftest data = { .iotlb = IOMMU_TEST_IOTLB_DEFAULT };
	struct iommu_hwpt_selftest paging = {};
	uint32_t parent, viommu, id = 0, veventq, veventq_fd;
	struct mock iommu;

#define alloc_nested(dev, pt, user_data)					\
	ERRNO_OF(_test_cmd_hwpt_alloc(self->fd, dev, pt, 0, 0, &id,		\
				      IOMMU_HWPT_DATA_SELFTEST, &(user_data),	\
				      sizeof(user_data)))
	ASSERT_EQ(0, mock_add(self->fd, 0, self->ioas, &iommu));
	ASSERT_EQ(0, hwpt_alloc(self->fd, iommu.idev, self->ioas,
				IOMMU_HWPT_ALLOC_NEST_PARENT, &parent));
	ASSERT_EQ(0, _test_cmd_viommu_alloc(self->fd, iommu.idev, parent, 0,
					    IOMMU_VIOMMU_TYPE_SELFTEST, NULL, 0,
					    &viommu));
	/* The mock IOMMU can do these, so that a refusal is the device's */
	ASSERT_EQ(0, alloc_nested(iommu.idev, parent, data));
	ASSERT_EQ(0, destroy(self->fd, id));
	ASSERT_EQ(0, alloc_nested(iommu.idev, self->ioas, paging));
	ASSERT_EQ(0, destroy(self->fd, id));

	EXPECT_EQ(EOPNOTSUPP, alloc_nested(self->dev.idev, parent, data));
	EXPECT_EQ(EINVAL, alloc_nested(self->dev.idev, viommu, data));
	EXPECT_EQ(EOPNOTSUPP, alloc_nested(self->dev.idev, self->dev.hwpt, data));
	EXPECT_EQ(EOPNOTSUPP, alloc_nested(self->dev.idev, self->ioas, paging));
	/* Nor is a noiommu HWPT a parent for one that could */
	EXPECT_EQ(EINVAL, alloc_nested(iommu.idev, self->dev.hwpt, data));
#undef alloc_nested

	EXPECT_EQ(EOPNOTSUPP,
		  ERRNO_OF(_test_cmd_viommu_alloc(self->fd, self->dev.idev, parent,
						  0, IOMMU_VIOMMU_TYPE_SELFTEST,
						  NULL, 0, &id)));
	EXPECT_EQ(EINVAL,
		  ERRNO_OF(_test_cmd_viommu_alloc(self->fd, iommu.idev,
						  self->dev.hwpt, 0,
						  IOMMU_VIOMMU_TYPE_SELFTEST,
						  NULL, 0, &id)));
	EXPECT_EQ(EINVAL,
		  ERRNO_OF(_test_cmd_vdevice_alloc(self->fd, viommu,
						   self->dev.idev, 0x99, &id)));
	/* The vIOMMU is none the worse for it */
	ASSERT_EQ(0, _test_cmd_vdevice_alloc(self->fd, viommu, iommu.idev, 0x99, &id));
	ASSERT_EQ(0, _test_cmd_veventq_alloc(self->fd, viommu,
					     IOMMU_VEVENTQ_TYPE_SELFTEST, 1,
					     &veventq, &veventq_fd));
	EXPECT_EQ(ENOENT, ERRNO_OF(_test_cmd_trigger_vevents(self->fd,
							     self->dev.idev, 1)));
	close(veventq_fd);
}

TEST_F(noiommu, dirty_tracking)
{
	uint64_t bitmap[8] = {};
	struct iommu_hwpt_set_dirty_tracking set = {
		.size = sizeof(set),
		.flags = IOMMU_HWPT_DIRTY_TRACKING_ENABLE,
		.hwpt_id = self->dev.hwpt,
	};
	struct iommu_hwpt_get_dirty_bitmap get = {
		.size = sizeof(get),
		.hwpt_id = self->dev.hwpt,
		.iova = IOVA,
		.length = PAGE,
		.page_size = PAGE,
		.data = (uintptr_t)bitmap,
	};

	EXPECT_EQ(EOPNOTSUPP,
		  ERRNO_OF(ioctl(self->fd, IOMMU_HWPT_SET_DIRTY_TRACKING, &set)));
	set.flags = 0;
	EXPECT_EQ(EOPNOTSUPP,
		  ERRNO_OF(ioctl(self->fd, IOMMU_HWPT_SET_DIRTY_TRACKING, &set)));
	EXPECT_EQ(EOPNOTSUPP,
		  ERRNO_OF(ioctl(self->fd, IOMMU_HWPT_GET_DIRTY_BITMAP, &get)));
}

TEST_F(noiommu, pasid)
{
	struct mock iommu;
	uint32_t hwpt;

	ASSERT_EQ(0, mock_add(self->fd, MOCK_FLAGS_DEVICE_PASID, self->ioas, &iommu));
	ASSERT_EQ(0, hwpt_alloc(self->fd, iommu.idev, self->ioas,
				IOMMU_HWPT_ALLOC_PASID, &hwpt));
	/* The mock IOMMU can, so that a refusal is the device's */
	ASSERT_EQ(0, mock_replace(self->fd, &iommu, hwpt));
	ASSERT_EQ(0, ERRNO_OF(_test_cmd_pasid_attach(self->fd, iommu.stdev, 1, hwpt)));
	EXPECT_EQ(EINVAL, ERRNO_OF(_test_cmd_pasid_attach(self->fd, self->dev.stdev,
							  1, hwpt)));
	EXPECT_EQ(EINVAL, ERRNO_OF(_test_cmd_pasid_attach(self->fd, self->dev.stdev,
							  1, self->dev.hwpt)));
	EXPECT_EQ(EINVAL, ERRNO_OF(_test_cmd_pasid_attach(self->fd, self->dev.stdev,
							  1, self->ioas)));
	EXPECT_EQ(EINVAL, ERRNO_OF(_test_cmd_pasid_replace(self->fd, self->dev.stdev,
							   1, self->dev.hwpt)));
	/* A noiommu HWPT for a PASID of the other */
	EXPECT_EQ(EINVAL, ERRNO_OF(_test_cmd_pasid_attach(self->fd, iommu.stdev, 2,
							  self->dev.hwpt)));
	EXPECT_EQ(EINVAL, ERRNO_OF(_test_cmd_pasid_replace(self->fd, iommu.stdev, 1,
							   self->dev.hwpt)));
	EXPECT_EQ(EINVAL, ERRNO_OF(test_cmd_pasid_check_hwpt(self->fd, self->dev.stdev,
							     1, hwpt)));
	ASSERT_EQ(0, ERRNO_OF(_test_cmd_pasid_detach(self->fd, iommu.stdev, 1)));
	/* Nothing holds what was refused */
	ASSERT_EQ(0, destroy(self->fd, iommu.stdev));
	EXPECT_EQ(0, destroy(self->fd, hwpt));
}

/* A fault that has no IOMMU to come from */
TEST_F(noiommu, page_fault)
{
	EXPECT_EQ(EINVAL, ERRNO_OF(_test_cmd_trigger_iopf(self->fd, self->dev.idev, 0,
							  -1)));
}

TEST_F(noiommu, hw_info)
{
	struct iommu_test_hw_info data;
	struct iommu_hw_info info = {
		.size = sizeof(info),
		.dev_id = self->dev.idev,
		.data_uptr = (uintptr_t)&data,
		.data_len = sizeof(data),
	};

	EXPECT_EQ(EOPNOTSUPP, ERRNO_OF(ioctl(self->fd, IOMMU_GET_HW_INFO, &info)));
	info.flags = IOMMU_HW_INFO_FLAG_INPUT_TYPE;
	info.in_data_type = IOMMU_HW_INFO_TYPE_SELFTEST;
	EXPECT_EQ(EOPNOTSUPP, ERRNO_OF(ioctl(self->fd, IOMMU_GET_HW_INFO, &info)));
}

TEST_F(noiommu, killed_with_everything_open)
{
	char *va = anon(64 * PAGE, 0);
	int status;
	pid_t pid;

	touch_scattered(va, 64 * PAGE);
	close(self->fd);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		int fd = open("/dev/iommu", O_RDWR);
		uint32_t ioas, access, item;
		struct mock dev[2];

		if (ioas_alloc(fd, &ioas) ||
		    mock_noiommu(fd, ioas, &dev[0]) || mock_add(fd, 0, ioas, &dev[1]) ||
		    ioas_map(fd, ioas, va, 64 * PAGE, IOVA, MAP_RW) ||
		    _test_cmd_create_access(fd, ioas, &access,
					    MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES) ||
		    access_pin(fd, access, IOVA, va, 64 * PAGE, &item) ||
		    get_pa_errno(fd, ioas, IOVA))
			_exit(1);
		kill(getpid(), SIGKILL);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status));
	EXPECT_EQ(self->held.pinned, pinned_pages());
	self->fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->fd);
}

TEST_HARNESS_MAIN
