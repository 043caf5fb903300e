// SPDX-License-Identifier: GPL-2.0-only
/*
 * Fail each allocation and each injection point of what iommufd does for a device
 * without an IOMMU in turn: each failure has to leave all as it was before.
 *
 * Memory that gets lost is for kmemleak to find.
 */
#include "iommufd_noiommu_mock.h"

/* IOVAs so far apart have no table but the top one in common */
#define FAR (1024UL << 20)
/* And these, which fit the mock IOMMU's aperture, no table of the last level */
#define NEAR (4UL << 20)

FIXTURE(fail_nth)
{
	int proc;
	int fd;
	uint32_t ioas;
	struct mock dev;
	char *va;
	struct held held;
};

FIXTURE_VARIANT(fail_nth)
{
	/* Bytes of a batch of PFNs */
	unsigned int limit;
};

FIXTURE_VARIANT_ADD(fail_nth, batches) { .limit = 65536 };
FIXTURE_VARIANT_ADD(fail_nth, small_batches) { .limit = 32 };

FIXTURE_SETUP(fail_nth)
{
	int rc;

	self->proc = fail_nth_open();
	if (self->proc < 0)
		SKIP(return, "no fault injection (FAILSLAB, FAIL_PAGE_ALLOC, debugfs)");
	self->va = anon(64 * PAGE, 0);
	touch_scattered(self->va, 64 * PAGE);
	self->held = held_now();
	rc = mock_setup(&self->fd, &self->ioas, &self->dev, variant->limit);
	if (rc == ENOTTY || rc == EOPNOTSUPP)
		SKIP(return, "no CONFIG_IOMMUFD_TEST, noiommu or pages of 4K");
	ASSERT_EQ(0, rc);
}

FIXTURE_TEARDOWN(fail_nth)
{
	mock_teardown(_metadata, self->fd, &self->held);
}

/* So many pages pinned, and as many accounted */
static bool pins_are(struct _test_data_fail_nth *self, int pages)
{
	long long pinned = pinned_pages() - self->held.pinned;
	long long charged = (accounted() - self->held.accounted) * 1024 / PAGE;

	if (pinned == pages && charged == pages)
		return true;
	fprintf(stderr, "%lld pages pinned, %lld accounted, not %d\n", pinned,
		charged, pages);
	return false;
}

static bool answers(struct _test_data_fail_nth *self, uint32_t ioas, uint64_t iova,
		    char *va)
{
	uint64_t length = 1, phys = 0;
	int rc = get_pa(self->fd, ioas, iova, &length, &phys);

	if (!rc && phys == pagemap_pa(va))
		return true;
	fprintf(stderr, "GET_PA of %#llx: errno %d, PA %#llx\n",
		(unsigned long long)iova, rc, (unsigned long long)phys);
	return false;
}

/* GET_PA's errno, with what it was if it is another one */
static bool refuses(struct _test_data_fail_nth *self, uint32_t ioas, uint64_t iova,
		    int expected)
{
	int rc = get_pa_errno(self->fd, ioas, iova);

	if (rc == expected)
		return true;
	fprintf(stderr, "GET_PA of %#llx: errno %d, not %d\n",
		(unsigned long long)iova, rc, expected);
	return false;
}

/* All of the 64 pages are mapped for a HWPT to be filled with */
static int map_all(struct _test_data_fail_nth *self, uint32_t ioas)
{
	return ioas_map(self->fd, ioas, self->va, 64 * PAGE, IOVA, MAP_RW);
}

/* A failed attach takes the automatic HWPT with it */
TEST_F(fail_nth, bind_and_attach_to_ioas)
{
	struct mock dev;
	uint32_t other;

	ASSERT_EQ(0, ioas_alloc(self->fd, &other));
	ASSERT_EQ(0, map_all(self, other));
	FAIL_EACH("bind, attach to an IOAS", mock_noiommu(self->fd, other, &dev),
		  destroy(self->fd, dev.stdev),
		  refuses(self, other, IOVA, EOPNOTSUPP) && pins_are(self, 0));
	EXPECT_TRUE(pins_are(self, 64));
	EXPECT_TRUE(answers(self, other, IOVA + 63 * PAGE, self->va + 63 * PAGE));
}

TEST_F(fail_nth, bind_and_attach_to_hwpt)
{
	struct mock dev;
	uint32_t hwpt;

	ASSERT_EQ(0, map_all(self, self->ioas));
	ASSERT_EQ(0, hwpt_alloc(self->fd, self->dev.idev, self->ioas, 0, &hwpt));
	/* A HWPT that something holds could not be destroyed */
	FAIL_EACH("bind, attach to a HWPT", mock_noiommu(self->fd, hwpt, &dev),
		  destroy(self->fd, dev.stdev),
		  !destroy(self->fd, hwpt) && pins_are(self, 64) &&
		  !hwpt_alloc(self->fd, self->dev.idev, self->ioas, 0, &hwpt));
	EXPECT_EQ(EBUSY, destroy(self->fd, hwpt));
}

TEST_F(fail_nth, hwpt_alloc)
{
	uint32_t other, hwpt;

	ASSERT_EQ(0, ioas_alloc(self->fd, &other));
	ASSERT_EQ(0, map_all(self, other));
	FAIL_EACH("HWPT_ALLOC",
		  hwpt_alloc(self->fd, self->dev.idev, other, 0, &hwpt),
		  destroy(self->fd, hwpt),
		  refuses(self, other, IOVA, EOPNOTSUPP) && pins_are(self, 0));
	EXPECT_TRUE(answers(self, other, IOVA, self->va));
	/* A second one finds the pages pinned */
	FAIL_EACH("HWPT_ALLOC, second",
		  hwpt_alloc(self->fd, self->dev.idev, other, 0, &hwpt),
		  destroy(self->fd, hwpt),
		  answers(self, other, IOVA, self->va) && pins_are(self, 64));
}

TEST_F(fail_nth, replace)
{
	uint32_t other, hwpt[2], auto_hwpt = self->dev.hwpt;

	ASSERT_EQ(0, ioas_alloc(self->fd, &other));
	ASSERT_EQ(0, ioas_map(self->fd, self->ioas, self->va, 16 * PAGE, IOVA, MAP_RW));
	ASSERT_EQ(0, ioas_map(self->fd, other, self->va + 16 * PAGE, 48 * PAGE, IOVA,
			      MAP_RW));
	ASSERT_EQ(0, hwpt_alloc(self->fd, self->dev.idev, self->ioas, 0, &hwpt[0]));

	FAIL_EACH("replace by a HWPT", mock_replace(self->fd, &self->dev, hwpt[0]), ({
			int undone = mock_replace(self->fd, &self->dev, self->ioas);

			auto_hwpt = self->dev.hwpt;
			undone;
		  }),
		  destroy(self->fd, auto_hwpt) == EBUSY &&
		  !destroy(self->fd, hwpt[0]) && pins_are(self, 16) &&
		  !hwpt_alloc(self->fd, self->dev.idev, self->ioas, 0, &hwpt[0]));
	EXPECT_EQ(EBUSY, destroy(self->fd, hwpt[0]));
	/* The automatic one went */
	EXPECT_EQ(ENOENT, destroy(self->fd, auto_hwpt));

	/* An IOAS whose HWPT has to be made and filled */
	FAIL_EACH("replace by another IOAS",
		  mock_replace(self->fd, &self->dev, other),
		  mock_replace(self->fd, &self->dev, hwpt[0]),
		  destroy(self->fd, hwpt[0]) == EBUSY &&
		  refuses(self, other, IOVA, EOPNOTSUPP) &&
		  answers(self, self->ioas, IOVA, self->va) && pins_are(self, 16));
	EXPECT_TRUE(answers(self, other, IOVA, self->va + 16 * PAGE));
	EXPECT_TRUE(pins_are(self, 64));

	ASSERT_EQ(0, mock_replace(self->fd, &self->dev, hwpt[0]));
	ASSERT_EQ(0, hwpt_alloc(self->fd, self->dev.idev, other, 0, &hwpt[1]));
	FAIL_EACH("replace by a HWPT of another IOAS",
		  mock_replace(self->fd, &self->dev, hwpt[1]),
		  mock_replace(self->fd, &self->dev, hwpt[0]),
		  destroy(self->fd, hwpt[0]) == EBUSY && pins_are(self, 64) &&
		  !destroy(self->fd, hwpt[1]) &&
		  !hwpt_alloc(self->fd, self->dev.idev, other, 0, &hwpt[1]));
	EXPECT_EQ(0, destroy(self->fd, hwpt[0]));
}

/* The other kind of device comes to an IOAS that one has already */
TEST_F(fail_nth, mixed)
{
	struct mock iommu, dev;
	uint64_t iova = 0;
	uint32_t other;

	ASSERT_EQ(0, map_all(self, self->ioas));
	/* An aperture that stays would keep IOVAs from being mapped */
	FAIL_EACH("attach with an IOMMU after one without",
		  mock_add(self->fd, 0, self->ioas, &iommu),
		  destroy(self->fd, iommu.stdev),
		  answers(self, self->ioas, IOVA, self->va) && pins_are(self, 64) &&
		  all_iovas_allowed(self->fd, self->ioas));
	EXPECT_EQ(0, mock_maps(self->fd, iommu.hwpt, IOVA, self->va, 64 * PAGE));
	ASSERT_EQ(0, destroy(self->fd, self->dev.stdev));

	FAIL_EACH("attach without an IOMMU after one with",
		  mock_noiommu(self->fd, self->ioas, &dev),
		  destroy(self->fd, dev.stdev),
		  refuses(self, self->ioas, IOVA, EOPNOTSUPP) && pins_are(self, 64) &&
		  !mock_maps(self->fd, iommu.hwpt, IOVA, self->va, 64 * PAGE));
	FAIL_EACH_AT("map for both", iova = IOVA + nth * NEAR,
		     ioas_map(self->fd, self->ioas, self->va, 64 * PAGE, iova, MAP_RW),
		     ioas_unmap(self->fd, self->ioas, iova, 64 * PAGE),
		     refuses(self, self->ioas, iova, ENOENT) && pins_are(self, 64) &&
		     mock_maps(self->fd, iommu.hwpt, iova, self->va, PAGE));
	EXPECT_EQ(0, mock_maps(self->fd, iommu.hwpt, iova, self->va, 64 * PAGE));
	FAIL_EACH("unmap for both",
		  ioas_unmap(self->fd, self->ioas, iova, 64 * PAGE),
		  ioas_map(self->fd, self->ioas, self->va, 64 * PAGE, iova, MAP_RW),
		  answers(self, self->ioas, iova, self->va) && pins_are(self, 128) &&
		  !mock_maps(self->fd, iommu.hwpt, iova, self->va, 64 * PAGE));

	/* What the IOMMU can't map keeps its device out, and nothing else */
	ASSERT_EQ(0, ioas_alloc(self->fd, &other));
	ASSERT_EQ(0, mock_noiommu(self->fd, other, &dev));
	ASSERT_EQ(0, ioas_map(self->fd, other, self->va, 64 * PAGE, FAR * FAR, MAP_RW));
	REFUSED("attach with an IOMMU beside what it can't map", ({
		struct mock refused;

		mock_add(self->fd, 0, other, &refused);
	}));
	EXPECT_TRUE(answers(self, other, FAR * FAR, self->va));
	EXPECT_TRUE(all_iovas_allowed(self->fd, other));
}

TEST_F(fail_nth, map)
{
	uint64_t iova = 0;
	uint32_t hwpt;

	ASSERT_EQ(0, hwpt_alloc(self->fd, self->dev.idev, self->ioas, 0, &hwpt));
	FAIL_EACH_AT("map for two HWPTs", iova = IOVA + nth * FAR,
		     ioas_map(self->fd, self->ioas, self->va, 64 * PAGE, iova, MAP_RW),
		     ioas_unmap(self->fd, self->ioas, iova, 64 * PAGE),
		     refuses(self, self->ioas, iova, ENOENT) && pins_are(self, 0));
	EXPECT_TRUE(answers(self, self->ioas, iova + 63 * PAGE, self->va + 63 * PAGE));
	FAIL_EACH("unmap", ioas_unmap(self->fd, self->ioas, iova, 64 * PAGE),
		  ioas_map(self->fd, self->ioas, self->va, 64 * PAGE, iova, MAP_RW),
		  answers(self, self->ioas, iova, self->va) && pins_are(self, 64));
	EXPECT_TRUE(pins_are(self, 0));
}

/* A table as it is at first, with something mapped low, so that it has to grow */
static int fresh_ioas(struct _test_data_fail_nth *self, uint32_t *ioas,
		      uint32_t hwpt[2])
{
	int rc = 0, i;

	if (*ioas) {
		for (i = 0; i < 2; i++)
			rc = rc ?: destroy(self->fd, hwpt[i]);
		rc = rc ?: ioas_unmap(self->fd, *ioas, 0, UINT64_MAX);
		rc = rc ?: destroy(self->fd, *ioas);
	}
	rc = rc ?: ioas_alloc(self->fd, ioas);
	for (i = 0; i < 2; i++)
		rc = rc ?: hwpt_alloc(self->fd, self->dev.idev, *ioas, 0, &hwpt[i]);
	return rc ?: ioas_map(self->fd, *ioas, self->va, PAGE, IOVA, MAP_RW);
}

TEST_F(fail_nth, map_where_the_table_grows)
{
	static const uint64_t iovas[] = { 1ULL << 39, 1ULL << 57, -64 * PAGE };
	uint32_t ioas = 0, hwpt[2];
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(iovas); i++) {
		FAIL_EACH_AT("map where the table grows",
			     ASSERT_EQ(0, fresh_ioas(self, &ioas, hwpt)),
			     ioas_map(self->fd, ioas, self->va, 64 * PAGE, iovas[i],
				      MAP_RW),
			     0,
			     refuses(self, ioas, iovas[i], ENOENT) &&
			     answers(self, ioas, IOVA, self->va) && pins_are(self, 1));
		EXPECT_TRUE(answers(self, ioas, iovas[i] + 63 * PAGE - 1,
				    self->va + 63 * PAGE - 1));
		EXPECT_TRUE(answers(self, ioas, IOVA, self->va));
	}
}

TEST_F(fail_nth, map_without_huge_pages)
{
	char *huge = anon_huge(HUGE_PAGE);
	uint64_t iova = 0;

	if (!huge)
		SKIP(return, "no huge pages");
	ASSERT_EQ(0, ioas_disable_huge_pages(self->fd, self->ioas));
	/* Two tables of the last level, so that the second fails halfway */
	FAIL_EACH_AT("map without huge pages", iova = nth * FAR - HUGE_PAGE / 2,
		     ioas_map(self->fd, self->ioas, huge, HUGE_PAGE, iova, MAP_RW),
		     ioas_unmap(self->fd, self->ioas, iova, HUGE_PAGE),
		     refuses(self, self->ioas, iova, ENOENT) && pins_are(self, 0));
	EXPECT_TRUE(answers(self, self->ioas, iova + HUGE_PAGE - PAGE,
			    huge + HUGE_PAGE - PAGE));
	munmap(huge, HUGE_PAGE);
}

TEST_F(fail_nth, files)
{
	struct mock second;
	uint64_t iova = 0;
	uint32_t hwpt;
	int dmabuf;

	mfd_buffer = memfd_mmap(64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, &mfd);
	ASSERT_NE(MAP_FAILED, mfd_buffer);
	touch_scattered(mfd_buffer, 64 * PAGE);
	ASSERT_EQ(0, _test_cmd_get_dmabuf(self->fd, 8 * PAGE, &dmabuf));

	FAIL_EACH_AT("map of a memfd", iova = IOVA + nth * FAR,
		     ioas_map_file(self->fd, self->ioas, mfd, 0, 64 * PAGE, iova),
		     ioas_unmap(self->fd, self->ioas, iova, 64 * PAGE),
		     refuses(self, self->ioas, iova, ENOENT) && pins_are(self, 0));
	EXPECT_TRUE(answers(self, self->ioas, iova, mfd_buffer));
	FAIL_EACH("HWPT_ALLOC that has a memfd to map",
		  hwpt_alloc(self->fd, self->dev.idev, self->ioas, 0, &hwpt),
		  destroy(self->fd, hwpt), answers(self, self->ioas, iova, mfd_buffer));
	ASSERT_EQ(0, destroy(self->fd, hwpt));
	ASSERT_EQ(0, ioas_unmap(self->fd, self->ioas, iova, 64 * PAGE));

	/*
	 * Of small batches the last pages that are pinned together are fewer than
	 * those before, and a table is missing for the first of them
	 */
	FAIL_EACH_AT("map of a memfd across tables",
		     iova = IOVA + nth * FAR + HUGE_PAGE - 60 * PAGE,
		     ioas_map_file(self->fd, self->ioas, mfd, 0, 63 * PAGE, iova),
		     ioas_unmap(self->fd, self->ioas, iova, 63 * PAGE),
		     refuses(self, self->ioas, iova, ENOENT) && pins_are(self, 0));
	EXPECT_TRUE(answers(self, self->ioas, iova, mfd_buffer));
	ASSERT_EQ(0, ioas_unmap(self->fd, self->ioas, iova, 63 * PAGE));

	FAIL_EACH_AT("map of a dma-buf", iova = IOVA + nth * FAR,
		     ioas_map_file(self->fd, self->ioas, dmabuf, 0, 8 * PAGE, iova),
		     ioas_unmap(self->fd, self->ioas, iova, 8 * PAGE),
		     refuses(self, self->ioas, iova, ENOENT));
	EXPECT_TRUE(refuses(self, self->ioas, iova + 7 * PAGE, 0));
	FAIL_EACH("HWPT_ALLOC that has a dma-buf to map",
		  hwpt_alloc(self->fd, self->dev.idev, self->ioas, 0, &hwpt),
		  destroy(self->fd, hwpt), refuses(self, self->ioas, iova, 0));
	ASSERT_EQ(0, destroy(self->fd, self->dev.stdev));
	ASSERT_EQ(0, destroy(self->fd, hwpt));
	FAIL_EACH("attach to an IOAS that has a dma-buf to map",
		  mock_noiommu(self->fd, self->ioas, &second),
		  destroy(self->fd, second.stdev),
		  refuses(self, self->ioas, iova, EOPNOTSUPP));
	EXPECT_TRUE(refuses(self, self->ioas, iova + 7 * PAGE, 0));

	CANT_FAIL("revocation of a dma-buf",
		  ERRNO_OF(_test_cmd_revoke_dmabuf(self->fd, dmabuf, true)), 0);
	EXPECT_TRUE(refuses(self, self->ioas, iova, EINVAL));
	FAIL_EACH("unmap of a dma-buf that was revoked",
		  ioas_unmap(self->fd, self->ioas, iova, 8 * PAGE), EBADE,
		  refuses(self, self->ioas, iova, EINVAL));
	close(dmabuf);
	close(mfd);
	munmap(mfd_buffer, 64 * PAGE);
}

TEST_F(fail_nth, copy)
{
	struct mock second;
	uint64_t iova = 0;
	uint32_t other;

	ASSERT_EQ(0, ioas_alloc(self->fd, &other));
	ASSERT_EQ(0, mock_noiommu(self->fd, other, &second));
	ASSERT_EQ(0, map_all(self, self->ioas));
	FAIL_EACH_AT("copy", iova = nth * FAR + PAGE,
		     ioas_copy(self->fd, other, iova, self->ioas, IOVA, 64 * PAGE),
		     ioas_unmap(self->fd, other, iova, 64 * PAGE),
		     refuses(self, other, iova, ENOENT) &&
		     answers(self, self->ioas, IOVA, self->va) && pins_are(self, 64));
	/* The source goes, and its pages stay with the copy */
	FAIL_EACH("unmap of the source",
		  ioas_unmap(self->fd, self->ioas, IOVA, 64 * PAGE),
		  ioas_copy(self->fd, self->ioas, IOVA, other, iova, 64 * PAGE),
		  answers(self, self->ioas, IOVA, self->va) && pins_are(self, 64));
	EXPECT_TRUE(answers(self, other, iova, self->va));
	EXPECT_TRUE(pins_are(self, 64));
}

TEST_F(fail_nth, access)
{
	uint32_t access, item;
	struct mock dev;

	ASSERT_EQ(0, map_all(self, self->ioas));
	ASSERT_EQ(0, _test_cmd_create_access(self->fd, self->ioas, &access,
					     MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES));
	FAIL_EACH("access to what a domain holds",
		  access_pin(self->fd, access, IOVA, self->va, 64 * PAGE, &item),
		  _test_cmd_destroy_access_pages(self->fd, access, item),
		  answers(self, self->ioas, IOVA, self->va) && pins_are(self, 64));
	/* The device goes; what it had moves to the access */
	ASSERT_EQ(0, destroy(self->fd, self->dev.stdev));
	EXPECT_TRUE(pins_are(self, 64));
	FAIL_EACH("attach to what an access holds",
		  mock_noiommu(self->fd, self->ioas, &dev),
		  destroy(self->fd, dev.stdev),
		  refuses(self, self->ioas, IOVA, EOPNOTSUPP) && pins_are(self, 64));
	EXPECT_TRUE(answers(self, self->ioas, IOVA + 63 * PAGE, self->va + 63 * PAGE));
	ASSERT_EQ(0, destroy(self->fd, dev.stdev));
	ASSERT_EQ(0, _test_cmd_destroy_access_pages(self->fd, access, item));
	EXPECT_TRUE(pins_are(self, 0));
	FAIL_EACH("access to what nobody holds",
		  access_pin(self->fd, access, IOVA, self->va, 64 * PAGE, &item),
		  _test_cmd_destroy_access_pages(self->fd, access, item),
		  pins_are(self, 0));
	/* An unmap takes the access's pages too */
	FAIL_EACH("unmap of what an access holds",
		  ioas_unmap(self->fd, self->ioas, IOVA, 64 * PAGE),
		  map_all(self, self->ioas) ?:
		  access_pin(self->fd, access, IOVA, self->va, 64 * PAGE, &item),
		  pins_are(self, 64));
	EXPECT_TRUE(pins_are(self, 0));
	close(access);
}

TEST_F(fail_nth, detach)
{
	struct mock last;

	ASSERT_EQ(0, map_all(self, self->ioas));
	ASSERT_EQ(0, mock_noiommu(self->fd, self->ioas, &last));
	CANT_FAIL("detach", destroy(self->fd, self->dev.stdev),
		  mock_noiommu(self->fd, self->ioas, &self->dev));
	EXPECT_TRUE(answers(self, self->ioas, IOVA, self->va));
	CANT_FAIL("detach of the last", destroy(self->fd, last.stdev),
		  mock_noiommu(self->fd, self->ioas, &last));
	EXPECT_TRUE(pins_are(self, 0));
}

TEST_F(fail_nth, get_pa)
{
	ASSERT_EQ(0, map_all(self, self->ioas));
	FAIL_EACH("GET_PA", get_pa_errno(self->fd, self->ioas, IOVA), 0,
		  pins_are(self, 64));
}

TEST_F(fail_nth, get_pa_extents)
{
	static struct iommu_noiommu_extent extents[64], untouched[64];
	const uint32_t rooms[] = { 1, 64, UINT32_MAX };
	unsigned int i, no_memory;
	uint64_t length;
	uint32_t nr = 0;

	ASSERT_EQ(0, map_all(self, self->ioas));
	memset(untouched, 0xa5, sizeof(untouched));
	for (i = 0; i < ARRAY_SIZE(rooms); i++) {
		no_memory = 0;
		/* The array that it keeps is lost to nobody; the user's has nothing */
		EACH_POINT(({
				nr = rooms[i];
				length = 64 * PAGE;
				memcpy(extents, untouched, sizeof(extents));
			   }),
			   get_pa_extents(self->fd, self->ioas, IOVA, &length, extents,
					  &nr), ({
			no_memory += rc == ENOMEM;
			if (rc) {
				ASSERT_EQ(rooms[i], nr) TH_LOG("point %u", nth);
				ASSERT_EQ(64 * PAGE, length);
				ASSERT_EQ(0, memcmp(untouched, extents,
						    sizeof(extents)));
			}
			ASSERT_TRUE(pins_are(self, 64));
			ASSERT_TRUE(answers(self, self->ioas, IOVA, self->va));
		}));
		EXPECT_LT(0, no_memory);
		ASSERT_LT(0, nr);
		EXPECT_EQ(pagemap_pa(self->va), extents[0].phys);
	}
	/* The plain call needs none */
	EACH_POINT((void)0, get_pa_errno(self->fd, self->ioas, IOVA),
		   ASSERT_NE(ENOMEM, rc));
}

/* A refusal stays one, whatever else fails */
TEST_F(fail_nth, refusals)
{
	struct iommu_hwpt_selftest data = { .iotlb = IOMMU_TEST_IOTLB_DEFAULT };
	uint32_t fault, fault_fd, hwpt, parent, viommu, nested, id;
	struct iommu_hwpt_set_dirty_tracking set_dirty = {
		.size = sizeof(set_dirty),
		.flags = IOMMU_HWPT_DIRTY_TRACKING_ENABLE,
		.hwpt_id = self->dev.hwpt,
	};
	struct mock iommu, mock;

	ASSERT_EQ(0, mock_add(self->fd, 0, self->ioas, &iommu));
	ASSERT_EQ(0, hwpt_alloc(self->fd, iommu.idev, self->ioas, 0, &hwpt));
	ASSERT_EQ(0, hwpt_alloc(self->fd, iommu.idev, self->ioas,
				IOMMU_HWPT_ALLOC_NEST_PARENT, &parent));
	ASSERT_EQ(0, _test_cmd_viommu_alloc(self->fd, iommu.idev, parent, 0,
					    IOMMU_VIOMMU_TYPE_SELFTEST, NULL, 0,
					    &viommu));
	ASSERT_EQ(0, _test_ioctl_fault_alloc(self->fd, &fault, &fault_fd));
	ASSERT_EQ(0, _test_cmd_hwpt_alloc(self->fd, iommu.idev, parent, 0, 0, &nested,
					  IOMMU_HWPT_DATA_SELFTEST, &data,
					  sizeof(data)));

	REFUSED("attach to a HWPT of the other kind",
		mock_noiommu(self->fd, hwpt, &mock));
	REFUSED("replace by a HWPT of the other kind",
		mock_replace(self->fd, &self->dev, hwpt));
	REFUSED("replace by a nested HWPT", mock_replace(self->fd, &self->dev, nested));
	REFUSED("attach with an IOMMU to a HWPT for none",
		mock_add(self->fd, 0, self->dev.hwpt, &mock));
	REFUSED("HWPT_ALLOC with a fault queue",
		_test_cmd_hwpt_alloc(self->fd, self->dev.idev, self->ioas, fault,
				     IOMMU_HWPT_FAULT_ID_VALID, &id,
				     IOMMU_HWPT_DATA_NONE, NULL, 0));
	REFUSED("HWPT_ALLOC with dirty tracking",
		hwpt_alloc(self->fd, self->dev.idev, self->ioas,
			   IOMMU_HWPT_ALLOC_DIRTY_TRACKING, &id));
	REFUSED("HWPT_ALLOC, nested on an IOMMU's",
		_test_cmd_hwpt_alloc(self->fd, self->dev.idev, parent, 0, 0, &id,
				     IOMMU_HWPT_DATA_SELFTEST, &data, sizeof(data)));
	REFUSED("HWPT_ALLOC, nested on one for none",
		_test_cmd_hwpt_alloc(self->fd, self->dev.idev, self->dev.hwpt, 0, 0,
				     &id, IOMMU_HWPT_DATA_SELFTEST, &data,
				     sizeof(data)));
	REFUSED("HWPT_ALLOC of a vIOMMU",
		_test_cmd_hwpt_alloc(self->fd, self->dev.idev, viommu, 0, 0, &id,
				     IOMMU_HWPT_DATA_SELFTEST, &data, sizeof(data)));
	REFUSED("VIOMMU_ALLOC",
		_test_cmd_viommu_alloc(self->fd, self->dev.idev, parent, 0,
				       IOMMU_VIOMMU_TYPE_SELFTEST, NULL, 0, &id));
	REFUSED("VDEVICE_ALLOC",
		_test_cmd_vdevice_alloc(self->fd, viommu, self->dev.idev, 0x99, &id));
	REFUSED("attach to a PASID",
		_test_cmd_pasid_attach(self->fd, self->dev.stdev, 1, self->ioas));
	REFUSED("start of dirty tracking",
		ioctl(self->fd, IOMMU_HWPT_SET_DIRTY_TRACKING, &set_dirty));

	/* Nothing holds what was refused */
	EXPECT_EQ(0, destroy(self->fd, hwpt));
	EXPECT_EQ(0, destroy(self->fd, nested));
	close(fault_fd);
	EXPECT_EQ(0, destroy(self->fd, fault));
	ASSERT_EQ(0, destroy(self->fd, viommu));
	EXPECT_EQ(0, destroy(self->fd, parent));
}

TEST_HARNESS_MAIN
