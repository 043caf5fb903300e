/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * GET_PA with extents, which Linux 7.3 does not have, and what it has to answer
 */
#ifndef __IOMMUFD_NOIOMMU_EXTENTS_H
#define __IOMMUFD_NOIOMMU_EXTENTS_H

#include "iommufd_noiommu_utils.h"

/* GET_PA with extents. *nr is the room for them, and returns the entries written */
static inline int get_pa_extents(int iommufd, uint32_t ioas, uint64_t iova,
				 uint64_t *length, void *extents, uint32_t *nr)
{
	struct iommu_ioas_noiommu_get_pa cmd = {
		.size = sizeof(cmd),
		.flags = IOMMU_NOIOMMU_GET_PA_EXTENTS,
		.ioas_id = ioas,
		.iova = iova,
		.length = *length,
		.nr_extents = *nr,
		.extents = (uintptr_t)extents,
	};
	int rc = ERRNO_OF(ioctl(iommufd, IOMMU_IOAS_NOIOMMU_GET_PA, &cmd));
	struct iommu_noiommu_extent first;

	*length = cmd.length;
	*nr = cmd.nr_extents;
	if (rc)
		return rc;
	/* The array may be unaligned */
	memcpy(&first, extents, sizeof(first));
	return first.phys == cmd.out_phys ? 0 : EBADMSG;
}

/*
 * The extents that GET_PA has to report, computed from @map page by page, and the
 * bytes that they describe. *nr is the room in extents, and returns the entries used.
 */
static inline uint64_t expect_extents(const struct pa_map *map, uint64_t iova,
				      uint64_t length,
				      struct iommu_noiommu_extent *extents,
				      uint32_t *nr)
{
	uint64_t done = 0;
	uint32_t used = 0;

	while (done < length) {
		uint64_t offset = iova - map->iova + done, phys, bytes;

		if (offset / PAGE >= map->pages || !map->pas[offset / PAGE])
			break;
		phys = map->pas[offset / PAGE] + offset % PAGE;
		bytes = PAGE - offset % PAGE;
		if (bytes > length - done)
			bytes = length - done;
		if (used && extents[used - 1].phys + extents[used - 1].length == phys)
			extents[used - 1].length += bytes;
		else if (used < *nr)
			extents[used++] = (struct iommu_noiommu_extent){ phys, bytes };
		else
			break;
		done += bytes;
	}
	*nr = used;
	return done;
}

#ifdef __KSELFTEST_HARNESS_H
/* Entries around an array that have to stay as they are */
#define GUARD 8

/*
 * GET_PA with room for so many extents, against what it has to say; the plain
 * call has to agree about the first and the last of them. How many there are: 0
 * if nothing is mapped at the IOVA.
 */
static inline uint32_t check_extents(struct __test_metadata *_metadata, int iommufd,
				     uint32_t ioas, const struct pa_map *map,
				     uint64_t iova, uint64_t length, uint32_t room)
{
	static struct iommu_noiommu_extent *guarded, *expected;
	static size_t size;
	struct iommu_noiommu_extent *extents;
	uint64_t described, answer = length, phys, before = 0;
	uint32_t nr = room, nr_expected = room, i;
	unsigned char *byte;
	int rc;

#define WHERE TH_LOG("IOVA %#llx length %#llx room %u", (unsigned long long)iova,	\
		     (unsigned long long)length, room)
	if (size < map->pages + 2 * GUARD) {
		size = map->pages + 2 * GUARD;
		guarded = realloc(guarded, size * sizeof(*guarded));
		expected = realloc(expected, size * sizeof(*expected));
		ASSERT_TRUE(guarded && expected);
	}
	described = expect_extents(map, iova, length, expected, &nr_expected);
	memset(guarded, 0xa5, (nr_expected + 2 * GUARD) * sizeof(*guarded));
	extents = guarded + GUARD;

	rc = get_pa_extents(iommufd, ioas, iova, &answer, extents, &nr);
	if (!described) {
		ASSERT_EQ(ENOENT, rc) WHERE;
		ASSERT_EQ(length, answer) WHERE;
		ASSERT_EQ(room, nr) WHERE;
	} else {
		ASSERT_EQ(0, rc) WHERE;
		for (i = 0; i < nr && i < nr_expected; i++) {
			ASSERT_EQ(expected[i].phys, extents[i].phys) {
				TH_LOG("entry %u", i);
				WHERE;
			}
			ASSERT_EQ(expected[i].length, extents[i].length) {
				TH_LOG("entry %u", i);
				WHERE;
			}
		}
		ASSERT_EQ(nr_expected, nr) WHERE;
		ASSERT_EQ(described, answer) WHERE;
	}
	for (byte = (void *)guarded; byte < (unsigned char *)extents; byte++)
		ASSERT_EQ(0xa5, *byte) WHERE;
	byte = (void *)(extents + nr_expected);
	for (i = 0; i < GUARD * sizeof(*extents); i++)
		ASSERT_EQ(0xa5, byte[i]) WHERE;

	/* Contiguous is the same thing to both, also where the array was full */
	for (i = 0; i < nr_expected; i++) {
		uint64_t left = length - before;

		if ((!i || i == nr_expected - 1) && iova + before != UINT64_MAX) {
			ASSERT_EQ(0, get_pa(iommufd, ioas, iova + before, &left,
					    &phys)) WHERE;
			ASSERT_EQ(expected[i].phys, phys) WHERE;
			ASSERT_EQ(expected[i].length, left) WHERE;
		}
		before += expected[i].length;
	}
#undef WHERE
	return nr_expected;
}

/*
 * check_pas(), then the whole range in one call, with room for as many extents as
 * there are and for less.
 */
static inline void check_pas_and_extents(struct __test_metadata *_metadata, int iommufd,
					 uint32_t ioas, char *va, uint64_t iova,
					 size_t size)
{
	struct pa_map map;
	uint32_t nr, room;

	check_pas(_metadata, iommufd, ioas, va, iova, size);
	map = pa_map_of(va, size / PAGE, iova);
	nr = check_extents(_metadata, iommufd, ioas, &map, iova, size, UINT32_MAX);
	ASSERT_LT(0, nr);
	/* Room for all but one, for just as many, and for one more */
	for (room = nr > 1 ? nr - 1 : 1; room <= nr + 1; room++) {
		check_extents(_metadata, iommufd, ioas, &map, iova, size, room);
		check_extents(_metadata, iommufd, ioas, &map, iova + 0x123,
			      size - 0x456, room);
	}
	free(map.pas);
}
#endif

#endif
