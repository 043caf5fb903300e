// SPDX-License-Identifier: GPL-2.0-only
/*
 * Fail each allocation and each injection point of what iommufd does for a device
 * without an IOMMU in turn: each failure has to leave all as it was before
 */
#include "iommufd_noiommu_mock.h"

FIXTURE(fail_nth)
{
	int proc;
	int fd;
	uint32_t ioas;
	char *va;
	long long pinned;
	long long accounted;
	unsigned int points;
};

FIXTURE_VARIANT(fail_nth)
{
	unsigned int limit;
};

FIXTURE_VARIANT_ADD(fail_nth, batches) { .limit = 65536 };
FIXTURE_VARIANT_ADD(fail_nth, small_batches) { .limit = 32 };

FIXTURE_SETUP(fail_nth)
{
	PAGE_SIZE = sysconf(_SC_PAGESIZE);
	self->fd = -1;
	if (PAGE_SIZE != PAGE)
		SKIP(return, "written for pages of 4K");
	self->proc = fail_nth_open();
	if (self->proc < 0)
		SKIP(return, "no fault injection (FAILSLAB, FAIL_PAGE_ALLOC, debugfs)");
	self->fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->fd);
	if (_test_ioctl_set_temp_memory_limit(self->fd, variant->limit)) {
		close(self->fd);
		self->fd = -1;
		SKIP(return, "no CONFIG_IOMMUFD_TEST");
	}
	self->va = anon(64 * PAGE, 0);
	touch_scattered(self->va, 64 * PAGE);
	self->pinned = pinned_pages();
	self->accounted = accounted();
	ASSERT_EQ(0, ioas_alloc(self->fd, &self->ioas));
}

FIXTURE_TEARDOWN(fail_nth)
{
	if (self->fd < 0)
		return;
	ASSERT_EQ(0, _test_ioctl_set_temp_memory_limit(self->fd, 65536));
	close(self->fd);
	EXPECT_EQ(self->pinned, pinned_pages());
	EXPECT_EQ(self->accounted, accounted());
	/* A test of failures without any proves nothing */
	EXPECT_LT(0, self->points);
}

/* So many pages pinned, and as many accounted */
static bool pins_are(struct _test_data_fail_nth *self, int pages)
{
	return pinned_pages() == self->pinned + pages &&
	       accounted() == self->accounted + pages * (long long)(PAGE / 1024);
}

static bool answers(struct _test_data_fail_nth *self, uint32_t ioas, uint64_t iova,
		    char *va)
{
	uint64_t length = 1, phys;

	return !get_pa(self->fd, ioas, iova, &length, &phys) &&
	       phys == pagemap_pa(va);
}

/* A bind makes no HWPT, and the automatic one goes with a failed attach */
TEST_F(fail_nth, bind_and_attach_to_ioas)
{
	struct mock dev;

	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, self->va, 64 * PAGE, IOVA, MAP_RW));
	FAIL_EACH("bind, attach to an IOAS", mock_noiommu(self->fd, self->ioas, &dev),
		  destroy(self->fd, dev.stdev),
		  get_pa_errno(self->fd, self->ioas, IOVA) == EOPNOTSUPP &&
		  pins_are(self, 0));
	EXPECT_TRUE(pins_are(self, 64));
	EXPECT_TRUE(answers(self, self->ioas, IOVA + 63 * PAGE, self->va + 63 * PAGE));
}

TEST_F(fail_nth, bind_and_attach_to_hwpt)
{
	struct mock dev, second;
	uint32_t hwpt;

	ASSERT_EQ(0, mock_noiommu(self->fd, self->ioas, &dev));
	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, self->va, 64 * PAGE, IOVA, MAP_RW));
	ASSERT_EQ(0, hwpt_alloc(self->fd, dev.idev, self->ioas, 0, &hwpt));
	/* A HWPT that something holds could not be destroyed */
	FAIL_EACH("bind, attach to a HWPT", mock_noiommu(self->fd, hwpt, &second),
		  destroy(self->fd, second.stdev),
		  !destroy(self->fd, hwpt) && pins_are(self, 64) &&
		  !hwpt_alloc(self->fd, dev.idev, self->ioas, 0, &hwpt));
	EXPECT_EQ(EBUSY, destroy(self->fd, hwpt));
}

TEST_F(fail_nth, hwpt_alloc)
{
	struct mock dev;
	uint32_t other, hwpt;

	ASSERT_EQ(0, mock_noiommu(self->fd, self->ioas, &dev));
	ASSERT_EQ(0, ioas_alloc(self->fd, &other));
	ASSERT_EQ(0, ioas_map(self->fd, other, self->va, 64 * PAGE, IOVA, MAP_RW));
	FAIL_EACH("HWPT_ALLOC", hwpt_alloc(self->fd, dev.idev, other, 0, &hwpt),
		  destroy(self->fd, hwpt),
		  get_pa_errno(self->fd, other, IOVA) == EOPNOTSUPP &&
		  pins_are(self, 0));
	EXPECT_TRUE(answers(self, other, IOVA, self->va));
	/* A second one finds the pages pinned */
	FAIL_EACH("HWPT_ALLOC, second", hwpt_alloc(self->fd, dev.idev, other, 0, &hwpt),
		  destroy(self->fd, hwpt),
		  answers(self, other, IOVA, self->va) && pins_are(self, 64));
}

TEST_F(fail_nth, replace)
{
	struct mock dev;
	uint32_t other, hwpt[2], auto_hwpt;

	ASSERT_EQ(0, mock_noiommu(self->fd, self->ioas, &dev));
	auto_hwpt = dev.hwpt;
	ASSERT_EQ(0, ioas_alloc(self->fd, &other));
	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, self->va, 16 * PAGE, IOVA, MAP_RW));
	ASSERT_EQ(0, ioas_map(self->fd, other, self->va + 16 * PAGE, 48 * PAGE, IOVA,
			      MAP_RW));
	ASSERT_EQ(0, hwpt_alloc(self->fd, dev.idev, self->ioas, 0, &hwpt[0]));

	FAIL_EACH("replace by a HWPT", mock_replace(self->fd, &dev, hwpt[0]),
		  mock_replace(self->fd, &dev, self->ioas),
		  dev.hwpt != hwpt[0] && destroy(self->fd, dev.hwpt) == EBUSY &&
		  !destroy(self->fd, hwpt[0]) && pins_are(self, 16) &&
		  !hwpt_alloc(self->fd, dev.idev, self->ioas, 0, &hwpt[0]));
	EXPECT_EQ(hwpt[0], dev.hwpt);
	/* The automatic one went */
	EXPECT_EQ(ENOENT, destroy(self->fd, auto_hwpt));

	/* An IOAS whose HWPT has to be made and filled */
	FAIL_EACH("replace by another IOAS", mock_replace(self->fd, &dev, other),
		  mock_replace(self->fd, &dev, hwpt[0]),
		  dev.hwpt == hwpt[0] && destroy(self->fd, hwpt[0]) == EBUSY &&
		  get_pa_errno(self->fd, other, IOVA) == EOPNOTSUPP &&
		  answers(self, self->ioas, IOVA, self->va) && pins_are(self, 16));
	EXPECT_TRUE(answers(self, other, IOVA, self->va + 16 * PAGE));
	EXPECT_TRUE(pins_are(self, 64));

	/* A HWPT of the other kind fails at every point and without one */
	ASSERT_EQ(0, mock_replace(self->fd, &dev, hwpt[0]));
	ASSERT_EQ(0, hwpt_alloc(self->fd, dev.idev, other, 0, &hwpt[1]));
	FAIL_EACH("replace by a HWPT of another IOAS",
		  mock_replace(self->fd, &dev, hwpt[1]),
		  mock_replace(self->fd, &dev, hwpt[0]),
		  destroy(self->fd, hwpt[0]) == EBUSY &&
		  !destroy(self->fd, hwpt[1]) &&
		  !hwpt_alloc(self->fd, dev.idev, other, 0, &hwpt[1]));
	EXPECT_EQ(0, destroy(self->fd, hwpt[0]));
}

/* The other kind of device comes to an IOAS that one has already */
TEST_F(fail_nth, mixed)
{
	struct mock dev, iommu;

	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, self->va, 64 * PAGE, IOVA, MAP_RW));
	ASSERT_EQ(0, mock_noiommu(self->fd, self->ioas, &dev));
	FAIL_EACH("attach with an IOMMU after one without",
		  mock_add(self->fd, 0, self->ioas, &iommu),
		  destroy(self->fd, iommu.stdev),
		  answers(self, self->ioas, IOVA, self->va) && pins_are(self, 64));
	ASSERT_EQ(0, destroy(self->fd, dev.stdev));
	FAIL_EACH("attach without an IOMMU after one with",
		  mock_noiommu(self->fd, self->ioas, &dev),
		  destroy(self->fd, dev.stdev),
		  get_pa_errno(self->fd, self->ioas, IOVA) == EOPNOTSUPP &&
		  pins_are(self, 64));
	FAIL_EACH("map for both",
		  ioas_map(self->fd, self->ioas, self->va, 64 * PAGE,
			   IOVA + HUGE_PAGE, MAP_RW),
		  ioas_unmap(self->fd, self->ioas, IOVA + HUGE_PAGE, 64 * PAGE),
		  get_pa_errno(self->fd, self->ioas, IOVA + HUGE_PAGE) == ENOENT &&
		  pins_are(self, 64));
	FAIL_EACH("unmap for both",
		  ioas_unmap(self->fd, self->ioas, IOVA + HUGE_PAGE, 64 * PAGE),
		  ioas_map(self->fd, self->ioas, self->va, 64 * PAGE,
			   IOVA + HUGE_PAGE, MAP_RW),
		  answers(self, self->ioas, IOVA + HUGE_PAGE, self->va) &&
		  pins_are(self, 128));
}

TEST_F(fail_nth, map)
{
	struct mock dev;
	uint32_t hwpt;
	unsigned int i;
	/* Near, and where the table has to grow on top */
	static const uint64_t iovas[] = { IOVA, 1ULL << 39, 1ULL << 57, -64 * PAGE };

	ASSERT_EQ(0, mock_noiommu(self->fd, self->ioas, &dev));
	ASSERT_EQ(0, hwpt_alloc(self->fd, dev.idev, self->ioas, 0, &hwpt));
	for (i = 0; i < ARRAY_SIZE(iovas); i++) {
		FAIL_EACH("map", ioas_map(self->fd, self->ioas, self->va, 64 * PAGE,
					  iovas[i], MAP_RW),
			  ioas_unmap(self->fd, self->ioas, iovas[i], 64 * PAGE),
			  get_pa_errno(self->fd, self->ioas, iovas[i]) == ENOENT &&
			  pins_are(self, i * 64));
		EXPECT_TRUE(answers(self, self->ioas, iovas[i] + 63 * PAGE,
				    self->va + 63 * PAGE));
		EXPECT_TRUE(answers(self, self->ioas, iovas[0], self->va));
	}
}

TEST_F(fail_nth, files)
{
	struct mock dev;
	int dmabuf;

	ASSERT_EQ(0, mock_noiommu(self->fd, self->ioas, &dev));
	mfd_buffer = memfd_mmap(64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, &mfd);
	ASSERT_NE(MAP_FAILED, mfd_buffer);
	touch_scattered(mfd_buffer, 64 * PAGE);
	FAIL_EACH("map of a memfd",
		  ioas_map_file(self->fd, self->ioas, mfd, 0, 64 * PAGE, IOVA),
		  ioas_unmap(self->fd, self->ioas, IOVA, 64 * PAGE),
		  get_pa_errno(self->fd, self->ioas, IOVA) == ENOENT &&
		  pinned_pages() == self->pinned);
	EXPECT_TRUE(answers(self, self->ioas, IOVA, mfd_buffer));

	ASSERT_EQ(0, _test_cmd_get_dmabuf(self->fd, 8 * PAGE, &dmabuf));
	FAIL_EACH("map of a dma-buf",
		  ioas_map_file(self->fd, self->ioas, dmabuf, 0, 8 * PAGE,
				IOVA + HUGE_PAGE),
		  ioas_unmap(self->fd, self->ioas, IOVA + HUGE_PAGE, 8 * PAGE),
		  get_pa_errno(self->fd, self->ioas, IOVA + HUGE_PAGE) == ENOENT);
	FAIL_EACH("revocation of a dma-buf",
		  ERRNO_OF(_test_cmd_revoke_dmabuf(self->fd, dmabuf, true)), ({
			_test_cmd_revoke_dmabuf(self->fd, dmabuf, false);
			ioas_unmap(self->fd, self->ioas, IOVA + HUGE_PAGE, 8 * PAGE);
			ioas_map_file(self->fd, self->ioas, dmabuf, 0, 8 * PAGE,
				      IOVA + HUGE_PAGE);
		  }), !get_pa_errno(self->fd, self->ioas, IOVA + HUGE_PAGE));
	EXPECT_EQ(EOPNOTSUPP, get_pa_errno(self->fd, self->ioas, IOVA + HUGE_PAGE));
	close(dmabuf);
	close(mfd);
	munmap(mfd_buffer, 64 * PAGE);
}

TEST_F(fail_nth, copy)
{
	struct mock dev, second;
	uint32_t other;

	ASSERT_EQ(0, mock_noiommu(self->fd, self->ioas, &dev));
	ASSERT_EQ(0, ioas_alloc(self->fd, &other));
	ASSERT_EQ(0, mock_noiommu(self->fd, other, &second));
	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, self->va, 64 * PAGE, IOVA, MAP_RW));
	FAIL_EACH("copy", ioas_copy(self->fd, other, IOVA + PAGE, self->ioas, IOVA,
				    64 * PAGE),
		  ioas_unmap(self->fd, other, IOVA + PAGE, 64 * PAGE),
		  get_pa_errno(self->fd, other, IOVA + PAGE) == ENOENT &&
		  answers(self, self->ioas, IOVA, self->va) && pins_are(self, 64));
	/* The source goes, and its pages stay with the copy */
	FAIL_EACH("unmap of the source",
		  ioas_unmap(self->fd, self->ioas, IOVA, 64 * PAGE),
		  ioas_copy(self->fd, self->ioas, IOVA, other, IOVA + PAGE, 64 * PAGE),
		  answers(self, self->ioas, IOVA, self->va) && pins_are(self, 64));
	EXPECT_TRUE(answers(self, other, IOVA + PAGE, self->va));
	EXPECT_TRUE(pins_are(self, 64));
}

TEST_F(fail_nth, access)
{
	uint32_t access, item;
	struct mock dev;

	ASSERT_EQ(0, mock_noiommu(self->fd, self->ioas, &dev));
	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, self->va, 64 * PAGE, IOVA, MAP_RW));
	ASSERT_EQ(0, _test_cmd_create_access(self->fd, self->ioas, &access,
					     MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES));
	FAIL_EACH("access to what a domain holds",
		  access_pin(self->fd, access, IOVA, self->va, 64 * PAGE, &item),
		  _test_cmd_destroy_access_pages(self->fd, access, item),
		  answers(self, self->ioas, IOVA, self->va) && pins_are(self, 64));
	/* The device goes; what it had moves to the access */
	ASSERT_EQ(0, destroy(self->fd, dev.stdev));
	EXPECT_TRUE(pins_are(self, 64));
	FAIL_EACH("attach to what an access holds",
		  mock_noiommu(self->fd, self->ioas, &dev),
		  destroy(self->fd, dev.stdev), pins_are(self, 64));
	EXPECT_TRUE(answers(self, self->ioas, IOVA + 63 * PAGE, self->va + 63 * PAGE));
	close(access);
}

TEST_F(fail_nth, detach)
{
	struct mock dev, second;

	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, self->va, 64 * PAGE, IOVA, MAP_RW));
	ASSERT_EQ(0, mock_noiommu(self->fd, self->ioas, &second));
	ASSERT_EQ(0, mock_noiommu(self->fd, self->ioas, &dev));
	FAIL_EACH("detach", destroy(self->fd, dev.stdev),
		  mock_noiommu(self->fd, self->ioas, &dev),
		  answers(self, self->ioas, IOVA, self->va) && pins_are(self, 64));
	FAIL_EACH("detach of the last", destroy(self->fd, second.stdev),
		  mock_noiommu(self->fd, self->ioas, &second),
		  answers(self, self->ioas, IOVA, self->va) && pins_are(self, 64));
	EXPECT_TRUE(pins_are(self, 0));
}

TEST_F(fail_nth, get_pa)
{
	struct mock dev;

	ASSERT_EQ(0, mock_noiommu(self->fd, self->ioas, &dev));
	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, self->va, 64 * PAGE, IOVA, MAP_RW));
	FAIL_EACH("GET_PA", get_pa_errno(self->fd, self->ioas, IOVA), 0,
		  pins_are(self, 64));
}

/* A refusal stays one, whatever else fails */
TEST_F(fail_nth, refusals)
{
	uint32_t fault, fault_fd, hwpt;
	struct mock dev, iommu;

	ASSERT_EQ(0, mock_noiommu(self->fd, self->ioas, &dev));
	ASSERT_EQ(0, mock_add(self->fd, 0, self->ioas, &iommu));
	ASSERT_EQ(0, hwpt_alloc(self->fd, iommu.idev, self->ioas, 0, &hwpt));
	ASSERT_EQ(0, _test_ioctl_fault_alloc(self->fd, &fault, &fault_fd));
#define REFUSED(call) ((call) ? 0 : EBADE)
	FAIL_EACH("replace by a HWPT of the other kind",
		  REFUSED(mock_replace(self->fd, &dev, hwpt)), 0, false);
	FAIL_EACH("HWPT_ALLOC with a fault queue",
		  REFUSED(_test_cmd_hwpt_alloc(self->fd, dev.idev, self->ioas, fault,
					       IOMMU_HWPT_FAULT_ID_VALID, &hwpt,
					       IOMMU_HWPT_DATA_NONE, NULL, 0)),
		  0, false);
	FAIL_EACH("attach to a HWPT of the other kind", ({
		struct mock refused;

		REFUSED(mock_noiommu(self->fd, hwpt, &refused));
	}), 0, false);
#undef REFUSED
	/* Nothing holds what was refused */
	EXPECT_EQ(0, destroy(self->fd, hwpt));
	close(fault_fd);
	EXPECT_EQ(0, destroy(self->fd, fault));
}

TEST_HARNESS_MAIN
