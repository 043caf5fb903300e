// SPDX-License-Identifier: GPL-2.0-only
/*
 * The user ABI of cdev noiommu beyond that of Linux 7.3, case by case, on
 * devices without an IOMMU. vfio_noiommu_compat has the rest.
 *
 * Run as root. Takes the devices named in the fixture's variants away from
 * their drivers and binds them to vfio-pci. Those that are absent are skipped.
 */
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>

#include <linux/kvm.h>
#include <linux/pci_regs.h>
#include <linux/userfaultfd.h>

#include "kselftest_harness.h"
#include "vfio_noiommu_fixture.h"
#include "../iommu/iommufd_noiommu_extents.h"

/*
 * GET_PA beyond that of Linux 7.3
 */
TEST_F(noiommu, get_pa_extents_needs_rawio)
{
	char *mem = anon(PAGE, MAP_POPULATE);
	uint32_t hwpt, nr;

	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, mem, PAGE, IOVA, MAP_RW));
	/* However wrong the rest is */
	for (nr = 0; nr < 2; nr++) {
		IN_CHILD(EPERM, ({
			uint64_t length = nr * PAGE;

			drop_capability(CAP_SYS_RAWIO);
			get_pa_extents(self->iommufd, self->ioas, IOVA, &length, NULL, &nr);
		}));
		IN_CHILD(nr ? EFAULT : EINVAL, ({
			uint64_t length = PAGE;

			get_pa_extents(self->iommufd, self->ioas, IOVA, &length, NULL, &nr);
		}));
	}
}

TEST_F(noiommu, get_pa_at_the_last_iova)
{
	char *va = anon(PAGE, MAP_POPULATE);
	uint64_t length = ULLONG_MAX, phys;
	uint32_t hwpt;

	/* The page table grows by itself to the last IOVA */
	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, va, PAGE, -PAGE, MAP_RW));
	ASSERT_EQ(0, get_pa(self->iommufd, self->ioas, -PAGE + 5, &length, &phys));
	EXPECT_EQ(pagemap_pa(va) + 5, phys);
	EXPECT_EQ(PAGE - 5, length);
}

/* Kinds of memory in one area each, in one call with room for all and for less */
TEST_F(noiommu, get_pa_extents_of_each_memory)
{
	char *scattered = anon(64 * PAGE, 0), *huge = anon_huge(2 * HUGE_PAGE);
	uint32_t hwpt;

	touch_scattered(scattered, 64 * PAGE);
	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, scattered, 64 * PAGE, IOVA,
			      MAP_RW));
	check_pas_and_extents(_metadata, self->iommufd, self->ioas, scattered, IOVA,
			      64 * PAGE);
	if (!huge)
		SKIP(return, "no huge pages");
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, huge + 3 * PAGE,
			      2 * HUGE_PAGE - 5 * PAGE, 2 * IOVA + PAGE, MAP_RW));
	check_pas_and_extents(_metadata, self->iommufd, self->ioas, huge + 3 * PAGE,
			      2 * IOVA + PAGE, 2 * HUGE_PAGE - 5 * PAGE);
	munmap(huge, 2 * HUGE_PAGE);
}

/*
 * The page table of a noiommu HWPT is memory of whoever made it grow: its memory cgroup
 */
#define SCATTERED 256

/* Makes a cgroup with the memory controller below "root", and moves there */
static const char *enter_memory_cgroup(char *root, char *path, size_t size)
{
	static char text[600];

	if (!mkdtemp(root))
		return "no temporary directory";
	if (mount("none", root, "cgroup2", 0, NULL))
		return "no cgroup2 (CONFIG_CGROUPS)";
	snprintf(path, size, "%s/cgroup.controllers", root);
	if (read_file(path, text, sizeof(text)) || !strstr(text, "memory"))
		return "no memory controller in cgroup2 (CONFIG_MEMCG)";
	snprintf(path, size, "%s/cgroup.subtree_control", root);
	if (write_file(path, "+memory"))
		return "the memory controller can't be enabled";
	snprintf(path, size, "%s/noiommu-tables", root);
	if (mkdir(path, 0755))
		return "no cgroup can be made";
	snprintf(text, sizeof(text), "%s/cgroup.procs", path);
	return write_file(text, "0") ? "the cgroup can't be entered" : NULL;
}

static void leave_memory_cgroup(const char *root, const char *path)
{
	char procs[600];

	snprintf(procs, sizeof(procs), "%s/cgroup.procs", root);
	write_file(procs, "0");
	rmdir(path);
	umount2(root, MNT_DETACH);
	rmdir(root);
}

/* Page tables charged to the cgroup, once it says that many; statistics lag by seconds */
static long long tables_charged(const char *path, long long at_least)
{
	char stat[600];
	long long bytes;
	int i;

	snprintf(stat, sizeof(stat), "%s/memory.stat", path);
	for (i = 0; i < 50; i++) {
		bytes = read_field(stat, "sec_pagetables ");
		if (bytes >= at_least)
			break;
		usleep(100000);
	}
	return bytes;
}

TEST_F(noiommu, tables_are_charged)
{
	char root[] = "/tmp/noiommu-cgroup.XXXXXX", path[300], *va;
	long long tables = table_pages(), charged, expected;
	uint32_t hwpts[SCATTERED], hwpt;
	const char *lacking;
	int i;

	lacking = enter_memory_cgroup(root, path, sizeof(path));
	if (lacking) {
		leave_memory_cgroup(root, path);
		SKIP(return, "%s", lacking);
	}
	ASSERT_LE(0, tables);
	va = anon(SCATTERED * PAGE, MAP_POPULATE);
	charged = tables_charged(path, 0);
	ASSERT_LE(0, charged);
	/* The top of a table, with nothing mapped */
	for (i = 0; i < SCATTERED; i++)
		ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id, self->ioas, 0,
					&hwpts[i]));
	expected = (table_pages() - tables) * PAGE;
	EXPECT_LE(SCATTERED * (long long)PAGE, expected);
	EXPECT_LE(charged + expected, tables_charged(path, charged + expected));
	while (i--)
		EXPECT_EQ(0, destroy(self->iommufd, hwpts[i]));
	EXPECT_EQ(tables, table_pages());

	/* A page in each 2 MiB of IOVA, which is as much as the last level has a page for */
	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	for (i = 0; i < SCATTERED; i++)
		ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, va + i * PAGE, PAGE,
				      IOVA + i * HUGE_PAGE, MAP_RW));
	expected = (table_pages() - tables) * PAGE;
	EXPECT_LE(SCATTERED * (long long)PAGE, expected);
	EXPECT_LE(charged + expected, tables_charged(path, charged + expected));
	TH_LOG("%lld bytes of tables, %lld charged", expected,
	       tables_charged(path, charged + expected) - charged);
	leave_memory_cgroup(root, path);
}

/*
 * Extents. The answer does not depend on the device: most run once, with one that
 * there is.
 */

/* More than the kernel finds before it copies to the user */
#define STEP 256

TEST_F(noiommu, get_pa_extents_errors)
{
	struct iommu_noiommu_extent extents[4], untouched[4];
	struct {
		struct iommu_ioas_noiommu_get_pa cmd;
		uint64_t tail[2];
	} buf, sent, good = {
		.cmd = {
			.size = sizeof(buf.cmd),
			.flags = IOMMU_NOIOMMU_GET_PA_EXTENTS,
			.ioas_id = self->ioas,
			.iova = IOVA,
			.length = PAGE,
			.nr_extents = 4,
			.extents = (uintptr_t)extents,
		},
	};
	char *mem = anon(PAGE, MAP_POPULATE);
	uint64_t phys;
	uint32_t hwpt, size;

/* The errno. On one nothing is changed, neither struct nor array. */
#define GET_PA(change) ({							\
	int rc;									\
										\
	buf = good;								\
	change;									\
	sent = buf;								\
	memset(extents, 0xa5, sizeof(extents));					\
	rc = ERRNO_OF(ioctl(self->iommufd, IOMMU_IOAS_NOIOMMU_GET_PA, &buf));	\
	if (rc) {								\
		EXPECT_EQ(0, memcmp(&sent, &buf, sizeof(buf)));			\
		EXPECT_EQ(0, memcmp(untouched, extents, sizeof(extents)));	\
	}									\
	rc;									\
})
	memset(untouched, 0xa5, sizeof(untouched));
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, mem, PAGE, IOVA, MAP_RW));
	EXPECT_EQ(EOPNOTSUPP, GET_PA());
	EXPECT_EQ(ENOENT, GET_PA(buf.cmd.iova += PAGE));
	ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id, self->ioas, 0, &hwpt));
	phys = pagemap_pa(mem);

	ASSERT_EQ(0, GET_PA());
	EXPECT_EQ(1, buf.cmd.nr_extents);
	EXPECT_EQ(phys, buf.cmd.out_phys);
	EXPECT_EQ(phys, extents[0].phys);
	EXPECT_EQ(PAGE, extents[0].length);
	EXPECT_EQ(0, memcmp(untouched, extents + 1, sizeof(*extents)));
	/* What only goes in stays */
	buf.cmd.out_phys = sent.cmd.out_phys;
	buf.cmd.nr_extents = sent.cmd.nr_extents;
	EXPECT_EQ(0, memcmp(&sent, &buf, sizeof(buf)));

	EXPECT_EQ(EOPNOTSUPP, GET_PA(buf.cmd.flags |= 1U << 1));
	EXPECT_EQ(EOPNOTSUPP, GET_PA(buf.cmd.flags |= 1U << 31));
	EXPECT_EQ(EOPNOTSUPP, GET_PA(buf.cmd.flags = 1U << 1));
	EXPECT_EQ(EOPNOTSUPP, GET_PA(buf.cmd.__reserved = 1));
	EXPECT_EQ(EOPNOTSUPP, GET_PA(buf.cmd.__reserved2 = 1));
	EXPECT_EQ(EOPNOTSUPP, GET_PA(buf.cmd.__reserved2 = 1U << 31));
	EXPECT_EQ(EINVAL, GET_PA(buf.cmd.nr_extents = 0));
	EXPECT_EQ(EINVAL, GET_PA(buf.cmd.length = 0));
	EXPECT_EQ(EOVERFLOW, GET_PA(buf.cmd.iova = ULONG_MAX));
	EXPECT_EQ(ENOENT, GET_PA(buf.cmd.iova = ULONG_MAX - 1));
	EXPECT_EQ(ENOENT, GET_PA(buf.cmd.iova = IOVA - 1));
	EXPECT_EQ(ENOENT, GET_PA(buf.cmd.iova = IOVA + PAGE));
	EXPECT_EQ(ENOENT, GET_PA(buf.cmd.ioas_id = 0));
	EXPECT_EQ(ENOENT, GET_PA(buf.cmd.ioas_id = 0xdead));
	EXPECT_EQ(ENOENT, GET_PA(buf.cmd.ioas_id = hwpt));
	EXPECT_EQ(ENOENT, GET_PA(buf.cmd.ioas_id = self->dev_id));

	/* The flag takes the whole struct, whatever is there */
	for (size = 0; size < sizeof(buf.cmd); size++) {
		EXPECT_EQ(EINVAL, GET_PA(buf.cmd.size = size)) TH_LOG("size %u", size);
		EXPECT_EQ(EINVAL, GET_PA(buf.cmd.size = size; buf.cmd.nr_extents = 0;
					 buf.cmd.extents = 0));
	}
	for (size = sizeof(buf.cmd); size <= sizeof(buf); size++) {
		EXPECT_EQ(0, GET_PA(buf.cmd.size = size)) TH_LOG("size %u", size);
		EXPECT_EQ(1, buf.cmd.nr_extents);
	}
	EXPECT_EQ(E2BIG, GET_PA(buf.cmd.size = sizeof(buf); buf.tail[0] = 1));
	EXPECT_EQ(E2BIG, GET_PA(buf.cmd.size = sizeof(buf);
				buf.tail[1] = 1ULL << 63));
	/* It is not the kernel's where the size says so */
	EXPECT_EQ(0, GET_PA(buf.tail[0] = 1));

	/* And without the flag nothing is there */
	good.cmd.flags = 0;
	EXPECT_EQ(EINVAL, GET_PA());
	EXPECT_EQ(EINVAL, GET_PA(buf.cmd.extents = 0));
	EXPECT_EQ(EINVAL, GET_PA(buf.cmd.nr_extents = 0));
	good.cmd.nr_extents = 0;
	good.cmd.extents = 0;
	EXPECT_EQ(0, GET_PA());
	EXPECT_EQ(phys, buf.cmd.out_phys);
	EXPECT_EQ(EINVAL, GET_PA(buf.cmd.__reserved2 = 1));
	EXPECT_EQ(EINVAL, GET_PA(buf.cmd.nr_extents = 1U << 31));
	EXPECT_EQ(EINVAL, GET_PA(buf.cmd.extents = 1ULL << 63));
	for (size = 0; size <= sizeof(buf); size++)
		EXPECT_EQ(size < offsetof(struct iommu_ioas_noiommu_get_pa,
					  nr_extents) ? EINVAL : 0,
			  GET_PA(buf.cmd.size = size)) TH_LOG("size %u", size);
	EXPECT_EQ(E2BIG, GET_PA(buf.cmd.size = sizeof(buf); buf.tail[1] = 1));
	EXPECT_EQ(EOPNOTSUPP, GET_PA(buf.cmd.flags = 1U << 1));
	EXPECT_EQ(EOPNOTSUPP, GET_PA(buf.cmd.__reserved = 1));
	EXPECT_EQ(EINVAL, GET_PA(buf.cmd.length = 0));
	EXPECT_EQ(EOVERFLOW, GET_PA(buf.cmd.iova = ULONG_MAX));
	EXPECT_EQ(ENOENT, GET_PA(buf.cmd.iova = IOVA + PAGE));
#undef GET_PA
}

TEST_F(noiommu, get_pa_extents)
{
	static const uint32_t rooms[] = { 1, 2, 3, 63, 64, 65, UINT32_MAX };
	struct iommu_noiommu_extent extents[2];
	char *va = anon(64 * PAGE, 0);
	uint32_t hwpt, nr = 2;
	uint64_t length;
	struct pa_map map;
	unsigned int i, to;

	touch_scattered(va, 64 * PAGE);
	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	/* Two areas, a hole between them and one behind */
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, va, 40 * PAGE, IOVA, MAP_RW));
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, va + 41 * PAGE, 23 * PAGE,
			      IOVA + 41 * PAGE, MAP_RW));
	map = pa_map_of(va, 64, IOVA);
	map.pas[40] = 0;
	for (i = 0; i < ARRAY_SIZE(rooms); i++)
		for (to = 1; to <= 66 * PAGE; to += PAGE / 2 - 1) {
			check_extents(_metadata, self->iommufd, self->ioas, &map, IOVA,
				      to, rooms[i]);
			check_extents(_metadata, self->iommufd, self->ioas, &map,
				      IOVA + 66 * PAGE - to, to, rooms[i]);
		}

	/* In parts of two extents, as far as there is something */
	for (i = 0; i < 40 * PAGE; i += length) {
		length = ULLONG_MAX;
		nr = 2;
		ASSERT_EQ(0, get_pa_extents(self->iommufd, self->ioas, IOVA + i,
					    &length, extents, &nr));
		EXPECT_EQ(map.pas[i / PAGE], extents[0].phys);
		EXPECT_EQ(length, extents[0].length + (nr > 1 ? extents[1].length : 0));
	}
	EXPECT_EQ(40 * PAGE, i);
	EXPECT_EQ(ENOENT, get_pa_extents(self->iommufd, self->ioas, IOVA + i, &length,
					 extents, &nr));
	free(map.pas);
}

FIXTURE(extents)
{
	int device;
	int iommufd;
	uint32_t dev_id;
	uint32_t hwpt;
	uint32_t ioas;			/* where the device is attached */
	uint32_t small;			/* with an entry for each page */
	long long pinned;
};

FIXTURE_SETUP(extents)
{
	static const char * const ids[3][2] = {
		{ "0x1b36", "0x0010" }, { "0x1234", "0x11e8" }, { "0x8086", "0x10d3" },
	};
	uint32_t hwpt;
	char bdf[256];
	int i;

	self->device = -1;
	self->iommufd = -1;
	for (i = 0; i < 3; i++)
		if (find_device(ids[i][0], ids[i][1], bdf, sizeof(bdf)) &&
		    !device_has_iommu(bdf))
			break;
	if (i == 3)
		SKIP(return, "no device without an IOMMU");
	ASSERT_EQ(0, noiommu_switch(true));
	ASSERT_EQ(0, ensure_bound(bdf));
	self->pinned = pinned_pages();
	ASSERT_EQ(0, open_bound(bdf, &self->device, &self->iommufd,
				&self->dev_id));
	ASSERT_EQ(0, ioas_alloc(self->iommufd, &self->ioas));
	ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id, self->ioas, 0,
				&self->hwpt));
	ASSERT_EQ(0, ioas_alloc(self->iommufd, &self->small));
	ASSERT_EQ(0, ioas_disable_huge_pages(self->iommufd, self->small));
	ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id, self->small, 0, &hwpt));
}

FIXTURE_TEARDOWN(extents)
{
	if (self->iommufd < 0)
		return;
	close(self->device);
	close(self->iommufd);
	EXPECT_EQ(self->pinned, pinned_pages());
}

#define map_at(ioas, va, size, iova)						\
	ASSERT_EQ(0, ioas_map(self->iommufd, ioas, va, size, iova, MAP_RW))
#define check_at(ioas, map, iova, length, room)					\
	check_extents(_metadata, self->iommufd, ioas, map, iova, length, room)

/* Bytes that so many extents from an IOVA on describe, if there are so many */
static uint64_t length_of(const struct pa_map *map, uint64_t iova, uint32_t nr)
{
	struct iommu_noiommu_extent *extents = calloc(nr, sizeof(*extents));
	uint32_t found = nr;
	uint64_t length;

	if (!extents)
		abort();
	length = expect_extents(map, iova, ULLONG_MAX, extents, &found);
	free(extents);
	return found == nr ? length : 0;
}

/* What a program finds out, and the struct that one was built with for Linux 7.3 */
TEST_F(extents, probing)
{
	struct {
		uint32_t size, flags, ioas_id, reserved;
		uint64_t iova, length, out_phys;
		uint64_t behind[4];
	} old = {
		.size = 40,
		.ioas_id = self->ioas,
		.iova = IOVA + 5,
		.length = 2 * PAGE,
	};
	char *va = anon(16 * PAGE, 0);
	struct iommu_noiommu_extent extents[16];
	struct iommu_ioas_noiommu_get_pa cmd = {
		.size = sizeof(cmd),
		.flags = IOMMU_NOIOMMU_GET_PA_EXTENTS,
		.ioas_id = self->ioas,
		.iova = IOVA,
		.length = 16 * PAGE,
	};
	struct pa_map map;
	unsigned int i;

	touch_scattered(va, 16 * PAGE);
	map_at(self->ioas, va, 16 * PAGE, IOVA);
	map = pa_map_of(va, 16, IOVA);

	/* Linux 7.3 says EOPNOTSUPP to the flag, and E2BIG to what is behind */
	EXPECT_EQ(EINVAL, ERRNO_OF(ioctl(self->iommufd, IOMMU_IOAS_NOIOMMU_GET_PA, &cmd)));
	old.flags = 1;
	EXPECT_EQ(EINVAL, ERRNO_OF(ioctl(self->iommufd, _IO(';', 0x95), &old)));
	cmd.nr_extents = ARRAY_SIZE(extents);
	cmd.extents = (uintptr_t)extents;
	ASSERT_EQ(0, ERRNO_OF(ioctl(self->iommufd, IOMMU_IOAS_NOIOMMU_GET_PA, &cmd)));
	EXPECT_EQ(16 * PAGE, cmd.length);
	for (i = 0; i < 16; i++)
		EXPECT_NE(0, check_at(self->ioas, &map, IOVA + i * PAGE, PAGE, 1));

	/* Without, all is as it was, and nothing behind the struct is written */
	old.flags = 0;
	memset(old.behind, 0xa5, sizeof(old.behind));
	ASSERT_EQ(0, ERRNO_OF(ioctl(self->iommufd, _IO(';', 0x95), &old)));
	EXPECT_EQ(map.pas[0] + 5, old.out_phys);
	EXPECT_EQ(map.pas[1] == map.pas[0] + PAGE ? 2 * PAGE : PAGE - 5, old.length);
	for (i = 0; i < 4; i++)
		EXPECT_EQ(0xa5a5a5a5a5a5a5a5, old.behind[i]);
	free(map.pas);
}

/* Around what is copied at a time, and much more */
TEST_F(extents, any_number)
{
	static const uint32_t numbers[] = {
		1, 2, 3, STEP - 2, STEP - 1, STEP, STEP + 1, STEP + 2, 2 * STEP - 2,
		2 * STEP - 1, 2 * STEP, 2 * STEP + 1, 3 * STEP, 10 * STEP + 7, 4000,
	};
	size_t pages = 4096 + 32;
	struct pa_map map;
	unsigned int i;
	char *va;

	va = anon(pages * PAGE, 0);
	touch_scattered(va, pages * PAGE);
	map_at(self->ioas, va, pages * PAGE, IOVA);
	map = pa_map_of(va, pages, IOVA);
	for (i = 0; i < ARRAY_SIZE(numbers); i++) {
		uint32_t nr = numbers[i];
		uint64_t length = length_of(&map, IOVA, nr);

		ASSERT_NE(0, length);
		/* That many, just enough room for them, more and less */
		EXPECT_EQ(nr, check_at(self->ioas, &map, IOVA, length, nr));
		EXPECT_EQ(nr, check_at(self->ioas, &map, IOVA, length, nr + 1));
		EXPECT_EQ(nr, check_at(self->ioas, &map, IOVA, length, nr + STEP));
		EXPECT_EQ(nr, check_at(self->ioas, &map, IOVA, length, UINT32_MAX));
		EXPECT_EQ(nr, check_at(self->ioas, &map, IOVA, length + 1, nr));
		EXPECT_EQ(nr + 1, check_at(self->ioas, &map, IOVA, length + 1, nr + 1));
		EXPECT_EQ(nr, check_at(self->ioas, &map, IOVA, length - 1, nr));
		EXPECT_EQ(nr, check_at(self->ioas, &map, IOVA, ULLONG_MAX, nr));
		if (nr > 1)
			EXPECT_EQ(nr - 1, check_at(self->ioas, &map, IOVA, length,
						   nr - 1));
		EXPECT_EQ(nr, check_at(self->ioas, &map, IOVA + PAGE - 1,
				       length - PAGE + 1, nr));
	}
	/* Room is not memory, of which there isn't so much */
	EXPECT_EQ(1, check_at(self->ioas, &map, IOVA, 1, UINT32_MAX));
	EXPECT_EQ(1, check_at(self->ioas, &map, IOVA, 1, 1U << 31));
	free(map.pas);
}

/* However it was mapped, in whichever order, what touches is in one piece */
TEST_F(extents, contiguous_areas)
{
	char *huge = anon_huge(HUGE_PAGE), *va = anon(2 * STEP * PAGE, 0);
	const size_t half = HUGE_PAGE / 2;
	struct pa_map map, scattered;
	unsigned int small, order, i, at;
	uint32_t ioas;

	if (!huge)
		SKIP(return, "no huge pages");
	touch_scattered(va, 2 * STEP * PAGE);
	for (small = 0; small < 2; small++) {
		ioas = small ? self->small : self->ioas;
		for (order = 0; order < 2; order++) {
			/* The two halves, the first one first and last */
			for (i = 0; i < 2; i++)
				map_at(ioas, huge + (i ^ order) * half, half,
				       IOVA + (i ^ order) * half);
			map = pa_map_of(huge, 512, IOVA);
			EXPECT_EQ(1, check_at(ioas, &map, IOVA, HUGE_PAGE, 1));
			EXPECT_EQ(1, check_at(ioas, &map, IOVA, HUGE_PAGE, 9));
			EXPECT_EQ(1, check_at(ioas, &map, IOVA + half - 1, 2, 1));
			EXPECT_EQ(1, check_at(ioas, &map, IOVA + half - 1, 1, 1));
			EXPECT_EQ(1, check_at(ioas, &map, IOVA + half, 1, 1));
			EXPECT_EQ(1, check_at(ioas, &map, IOVA + 7, ULLONG_MAX, 2));
			ASSERT_EQ(0, ioas_unmap(self->iommufd, ioas, IOVA, HUGE_PAGE));

			/* And swapped, where they touch in IOVA only */
			for (i = 0; i < 2; i++)
				map_at(ioas, huge + (i ^ order) * half, half,
				       IOVA + (i ^ order ^ 1) * half);
			for (i = 0; i < 512; i++)
				map.pas[i] = pagemap_pa(huge + (i * PAGE ^ half));
			EXPECT_EQ(2, check_at(ioas, &map, IOVA, HUGE_PAGE, 9));
			EXPECT_EQ(1, check_at(ioas, &map, IOVA, HUGE_PAGE, 1));
			EXPECT_EQ(2, check_at(ioas, &map, IOVA + half - 1, 2, 2));
			ASSERT_EQ(0, ioas_unmap(self->iommufd, ioas, IOVA, HUGE_PAGE));
			free(map.pas);
		}

		/*
		 * A run of three areas from the first entries on to the last one
		 * that is kept for a copy, and to those behind it
		 */
		for (at = STEP - 4; at < STEP + 4; at++) {
			scattered = pa_map_of(va, 2 * STEP, IOVA);
			memmove(scattered.pas + at + 9, scattered.pas + at,
				(2 * STEP - 9 - at) * sizeof(uint64_t));
			for (i = 0; i < 9; i++)
				scattered.pas[at + i] = pagemap_pa(huge + i * PAGE);
			map_at(ioas, va, at * PAGE, IOVA);
			map_at(ioas, huge, 2 * PAGE, IOVA + at * PAGE);
			map_at(ioas, huge + 2 * PAGE, PAGE, IOVA + (at + 2) * PAGE);
			map_at(ioas, huge + 3 * PAGE, 6 * PAGE, IOVA + (at + 3) * PAGE);
			map_at(ioas, va + at * PAGE, (2 * STEP - 9 - at) * PAGE,
			       IOVA + (at + 9) * PAGE);
			for (i = at - 2; i < at + 4; i++) {
				EXPECT_EQ(i, check_at(ioas, &scattered, IOVA,
						      2 * STEP * PAGE, i));
				/* At the start of each entry, and in the run */
				check_at(ioas, &scattered, IOVA + 3 * PAGE,
					 2 * STEP * PAGE, i);
				check_at(ioas, &scattered, IOVA,
					 (at + 2) * PAGE + 99, i);
			}
			check_at(ioas, &scattered, IOVA, ULLONG_MAX, UINT32_MAX);
			ASSERT_EQ(0, ioas_unmap(self->iommufd, ioas, 0, ULLONG_MAX));
			free(scattered.pas);
		}
	}
	munmap(huge, HUGE_PAGE);
}

static int compare_pas(const void *a, const void *b)
{
	uint64_t left = pagemap_pa(*(char **)a), right = pagemap_pa(*(char **)b);

	return left < right ? -1 : left > right;
}

/*
 * Huge pages in the order of their PAs, which are contiguous, behind room for as
 * much as "before". NULL for lack of any.
 */
static char *contiguous(size_t before, size_t size)
{
	size_t want = size / HUGE_PAGE, nr = 3 * want, i, run = 1;
	char text[32], more[32], **pages = calloc(nr, sizeof(*pages)), *va;

	if (!pages || read_file("/proc/sys/vm/nr_hugepages", text, sizeof(text)))
		return NULL;
	snprintf(more, sizeof(more), "%zu", nr);
	if ((size_t)atoi(text) < nr)
		write_file("/proc/sys/vm/nr_hugepages", more);
	for (i = 0; i < nr; i++) {
		pages[i] = anon(HUGE_PAGE, MAP_HUGETLB | MAP_POPULATE);
		if (!pages[i])
			break;
	}
	nr = i;
	/* Those in use stay, and no more than there were before afterwards */
	write_file("/proc/sys/vm/nr_hugepages", text);
	qsort(pages, nr, sizeof(*pages), compare_pas);
	for (i = 1; i < nr && run < want; i++)
		run = pagemap_pa(pages[i]) == pagemap_pa(pages[i - 1]) + HUGE_PAGE ?
			      run + 1 : 1;
	va = anon(before + size + HUGE_PAGE, MAP_NORESERVE);
	va = (char *)(((uintptr_t)va + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1)) + before;
	for (nr = run < want ? 0 : i; run && nr; run--, nr--)
		if (mremap(pages[nr - 1], HUGE_PAGE, HUGE_PAGE,
			   MREMAP_MAYMOVE | MREMAP_FIXED,
			   va + (run - 1) * HUGE_PAGE) == MAP_FAILED)
			break;
	free(pages);
	return run ? NULL : va;
}

/* Memory to map as it is, or as a file */
struct pool {
	char *va;
	size_t pages;
	int fd;				/* -1 if mapped by VA */
	uint64_t *pas;
};

static struct pool pool_of_file(unsigned int flags, size_t size, bool scattered)
{
	struct pool pool = { .pages = size / PAGE };

	pool.fd = syscall(SYS_memfd_create, "noiommu", flags);
	if (pool.fd < 0 || ftruncate(pool.fd, size))
		return (struct pool){};
	pool.va = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, pool.fd, 0);
	if (pool.va == MAP_FAILED)
		return (struct pool){};
	if (scattered)
		touch_scattered(pool.va, size);
	else
		memset(pool.va, 1, size);
	return pool;
}

/* Pages that are one extent, though they have more tables than are read at a time */
static void many_page_tables(struct __test_metadata *_metadata,
			     struct _test_data_extents *self, uint32_t ioas, char *va,
			     size_t size)
{
	const size_t part = size / 16 * 15 + HUGE_PAGE / 2;
	struct pa_map map = pa_map_of(va, size / PAGE, IOVA);
	unsigned int i;

	map_at(ioas, va, size, IOVA);
	EXPECT_EQ(1, check_at(ioas, &map, IOVA, size, 1));
	EXPECT_EQ(1, check_at(ioas, &map, IOVA, size, 2));
	EXPECT_EQ(1, check_at(ioas, &map, IOVA, ULLONG_MAX, UINT32_MAX));
	EXPECT_EQ(1, check_at(ioas, &map, IOVA + 5, size - 99, 1));
	EXPECT_EQ(1, check_at(ioas, &map, IOVA + size / 2, size, 1));
	ASSERT_EQ(0, ioas_unmap(self->iommufd, ioas, IOVA, size));
	/* In three pieces, where no table begins */
	map.iova = IOVA + 3 * PAGE;
	map_at(ioas, va + part, size - part, map.iova + part);
	map_at(ioas, va + PAGE, part - PAGE, map.iova + PAGE);
	map_at(ioas, va, PAGE, map.iova);
	EXPECT_EQ(1, check_at(ioas, &map, map.iova, size, 1));
	EXPECT_EQ(1, check_at(ioas, &map, map.iova, size, 2));
	EXPECT_EQ(1, check_at(ioas, &map, map.iova + 7, ULLONG_MAX, 1));
	ASSERT_EQ(0, ioas_unmap(self->iommufd, ioas, 0, ULLONG_MAX));
	/* As the last entry that there is room for, behind another */
	map_at(ioas, va + HUGE_PAGE, PAGE, IOVA);
	map_at(ioas, va + 3 * PAGE, size - 3 * PAGE, IOVA + PAGE);
	map.pas[0] = map.pas[HUGE_PAGE / PAGE];
	memmove(map.pas + 1, map.pas + 3, (map.pages - 3) * sizeof(*map.pas));
	map.iova = IOVA;
	map.pages -= 2;
	for (i = 1; i < 4; i++)
		EXPECT_EQ(i == 1 ? 1 : 2, check_at(ioas, &map, IOVA, ULLONG_MAX, i));
	ASSERT_EQ(0, ioas_unmap(self->iommufd, ioas, 0, ULLONG_MAX));
	free(map.pas);
}

TEST_F(extents, many_page_tables)
{
	const size_t nr = 66, before = nr * HUGE_PAGE, size = 70 * HUGE_PAGE;
	struct pool page;
	struct pa_map map;
	unsigned int i, all;
	uint32_t room;
	char *va;

	page = pool_of_file(MFD_HUGETLB, HUGE_PAGE, false);
	va = contiguous(before, size);
	if (!page.va || !va)
		SKIP(return, "no %zu MiB of contiguous huge pages", size >> 20);
	many_page_tables(_metadata, self, self->ioas, va, size);
	many_page_tables(_metadata, self, self->small, va, size);

	/*
	 * As many tables with an extent each, the same page again and again, before it.
	 * The last of them is of its extent if that page happens to touch it
	 */
	all = pagemap_pa(page.va) + HUGE_PAGE == pagemap_pa(va) ? nr : nr + 1;
	va -= before;
	for (i = 0; i < nr; i++) {
		ASSERT_NE(MAP_FAILED, mmap(va + i * HUGE_PAGE, HUGE_PAGE,
					   PROT_READ | PROT_WRITE,
					   MAP_SHARED | MAP_FIXED | MAP_POPULATE,
					   page.fd, 0));
	}
	map_at(self->small, va, before + size, IOVA);
	map = pa_map_of(va, (before + size) / PAGE, IOVA);
	for (room = 1; room < nr + 3; room++) {
		/* Where what is read at a time ends with that extent, and where not */
		for (i = 0; i < (room < 55 ? 1 : 6); i++)
			EXPECT_EQ(room < all - i ? room : all - i,
				  check_at(self->small, &map, IOVA + i * HUGE_PAGE,
					   ULLONG_MAX, room));
		check_at(self->small, &map, IOVA + HUGE_PAGE - 1, before + size, room);
	}
	check_at(self->small, &map, IOVA + 5 * PAGE, before + size, UINT32_MAX);
	free(map.pas);
	close(page.fd);
	munmap(page.va, HUGE_PAGE);
	munmap(va, before + size);
}

TEST_F(extents, last_iovas)
{
	char *va = anon(16 * PAGE, 0);
	struct iommu_noiommu_extent extents[16];
	struct pa_map map;
	uint64_t length, iova;
	uint32_t room, nr;

	touch_scattered(va, 16 * PAGE);
	map_at(self->ioas, va, 8 * PAGE, -16 * PAGE);
	map_at(self->ioas, va + 8 * PAGE, 8 * PAGE, -8 * PAGE);
	/* What is at the other end does not follow */
	map_at(self->ioas, va, PAGE, 0);
	map = pa_map_of(va, 16, -16 * PAGE);
	for (room = 1; room < 18; room++) {
		for (iova = -16 * PAGE; iova; iova += PAGE / 2) {
			check_at(self->ioas, &map, iova, -iova - 1, room);
			check_at(self->ioas, &map, iova, -iova, room);
			check_at(self->ioas, &map, iova, -iova + 1, room);
			check_at(self->ioas, &map, iova, ULLONG_MAX, room);
		}
		EXPECT_EQ(1, check_at(self->ioas, &map, -2, ULLONG_MAX, room));
		EXPECT_EQ(1, check_at(self->ioas, &map, -2, 1, room));
		nr = room < 16 ? room : 16;
		length = 1;
		EXPECT_EQ(EOVERFLOW, get_pa_extents(self->iommufd, self->ioas, -1,
						    &length, extents, &nr));
	}
	free(map.pas);
}

/* An array that can't be written, or only its beginning, which may be enough */
TEST_F(extents, bad_array)
{
	static const uint32_t numbers[] = { 1, 2, STEP - 1, STEP, STEP + 1, 2 * STEP };
	static const uint32_t rooms[] = { 1, STEP, STEP + 1, 2 * STEP, UINT32_MAX };
	char *va = anon(3 * STEP * PAGE, 0), *room = anon(5 * PAGE, MAP_POPULATE);
	char *end = room + 3 * PAGE, *readonly = room + 4 * PAGE;
	const uint64_t bad[] = {
		0, 1, PAGE - 1, (uintptr_t)end, (uintptr_t)end + 8,
		(uintptr_t)readonly, (uintptr_t)readonly + PAGE - 1,
		/* The kernel's, on x86 and elsewhere, and what is neither's */
		0xffff888000000000, 0xffffffff81000000, 0xff11000000000000,
		1ULL << 63, 1ULL << 47, (1ULL << 56) - PAGE,
		/* From the end of the address space to its start */
		-1, -16, -PAGE, -2 * PAGE + 8,
	};
	unsigned int i, j, shift;
	struct pa_map map;
	uint64_t length;
	uint32_t nr;

	touch_scattered(va, 3 * STEP * PAGE);
	map_at(self->ioas, va, 3 * STEP * PAGE, IOVA);
	map = pa_map_of(va, 3 * STEP, IOVA);
	ASSERT_EQ(0, munmap(end, PAGE));
	ASSERT_EQ(0, mprotect(readonly, PAGE, PROT_READ));

	for (i = 0; i < ARRAY_SIZE(bad); i++)
		for (j = 0; j < ARRAY_SIZE(rooms); j++)
			for (shift = 0; shift < 2; shift++) {
				length = shift ? 3 * STEP * PAGE : 1;
				nr = rooms[j];
				EXPECT_EQ(EFAULT, get_pa_extents(self->iommufd,
								 self->ioas, IOVA,
								 &length,
								 (void *)bad[i], &nr))
					TH_LOG("array %#llx room %u",
					       (unsigned long long)bad[i], rooms[j]);
				EXPECT_EQ(shift ? 3 * STEP * PAGE : 1, length);
				EXPECT_EQ(rooms[j], nr);
			}
	/* That there is nothing to write is seen first */
	length = 1;
	nr = 1;
	EXPECT_EQ(ENOENT, get_pa_extents(self->iommufd, self->ioas, IOVA - 1, &length,
					 NULL, &nr));

	for (i = 0; i < ARRAY_SIZE(numbers); i++) {
		length = length_of(&map, IOVA, numbers[i]);
		ASSERT_NE(0, length);
		/* Where the last entry begins or ends, and where it can't */
		for (shift = 0; shift <= 16; shift += 4) {
			char *array = end - numbers[i] * 16 + shift;
			uint64_t asked = length;

			nr = UINT32_MAX;
			EXPECT_EQ(shift ? EFAULT : 0,
				  get_pa_extents(self->iommufd, self->ioas, IOVA,
						 &asked, array, &nr))
				TH_LOG("%u extents, shift %u", numbers[i], shift);
			EXPECT_EQ(shift ? UINT32_MAX : numbers[i], nr);
			asked = length + 1;
			nr = UINT32_MAX;
			EXPECT_EQ(EFAULT, get_pa_extents(self->iommufd, self->ioas,
							 IOVA, &asked, array, &nr));
			asked = length;
			nr = numbers[i] - 1;
			if (nr && shift)
				EXPECT_EQ(0, get_pa_extents(self->iommufd, self->ioas,
							    IOVA, &asked, array, &nr));
		}
	}
	check_at(self->ioas, &map, IOVA, ULLONG_MAX, UINT32_MAX);
	free(map.pas);
}

TEST_F(extents, unaligned_array)
{
	const size_t size = (2 * STEP + 4) * 16;
	char *va = anon(2 * STEP * PAGE, 0), *array = anon(size, 0);
	struct iommu_noiommu_extent *expected = calloc(2 * STEP, sizeof(*expected));
	uint64_t length = 2 * STEP * PAGE;
	uint32_t nr, nr_expected = 2 * STEP;
	struct pa_map map;
	unsigned int at;
	size_t i;

	ASSERT_NE(NULL, expected);
	touch_scattered(va, 2 * STEP * PAGE);
	map_at(self->ioas, va, 2 * STEP * PAGE, IOVA);
	map = pa_map_of(va, 2 * STEP, IOVA);
	expect_extents(&map, IOVA, length, expected, &nr_expected);
	for (at = 1; at < 16; at++) {
		memset(array, 0xa5, size);
		nr = 2 * STEP;
		length = 2 * STEP * PAGE;
		ASSERT_EQ(0, get_pa_extents(self->iommufd, self->ioas, IOVA, &length,
					    array + at, &nr));
		ASSERT_EQ(nr_expected, nr);
		EXPECT_EQ(0, memcmp(expected, array + at, nr * sizeof(*expected)));
		for (i = 0; i < size; i++)
			if (i < at || i >= at + nr * sizeof(*expected))
				ASSERT_EQ((char)0xa5, array[i]);
	}
	free(expected);
	free(map.pas);
}

TEST_F(extents, array_in_what_is_looked_up)
{
	const size_t pages = 2 * STEP + 99;
	struct iommu_noiommu_extent *expected = calloc(pages, sizeof(*expected));
	char *va = anon(pages * PAGE, 0);
	struct pa_map map;
	unsigned int at;

	ASSERT_NE(NULL, expected);
	touch_scattered(va, pages * PAGE);
	map_at(self->ioas, va, pages * PAGE, IOVA);
	map = pa_map_of(va, pages, IOVA);
	for (at = 0; at < 4; at++) {
		uint32_t nr = pages, nr_expected = pages;
		uint64_t length = pages * PAGE;

		expect_extents(&map, IOVA, length, expected, &nr_expected);
		ASSERT_EQ(0, get_pa_extents(self->iommufd, self->ioas, IOVA, &length,
					    va + at * (PAGE - 24), &nr));
		ASSERT_EQ(nr_expected, nr);
		EXPECT_EQ(pages * PAGE, length);
		EXPECT_EQ(0, memcmp(expected, va + at * (PAGE - 24),
				    nr * sizeof(*expected)));
	}
	free(expected);
	free(map.pas);
}

/*
 * Random ranges of random mixes of memory. The seed is in the log;
 * "NOIOMMU_SEED=seed vfio_noiommu_abi -r extents.random" has the same IOVAs,
 * lengths and kinds of memory again, on other physical addresses.
 */
static uint64_t random_state;

static uint64_t rnd(uint64_t below)
{
	/* Marsaglia, "Xorshift RNGs", 2003 */
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (random_state >> 11) % below;
}

/* From 1 to max; each power of two has the same chance */
static uint64_t rnd_size(uint64_t max)
{
	uint64_t size = 1ULL << rnd(64 - __builtin_clzll(max));

	size += rnd(size);
	return size < max ? size : max;
}

#define NR_POOLS 7

/* Of each kind a few MiB; without huge pages fewer */
static unsigned int make_pools(struct pool pools[NR_POOLS])
{
	struct pool *pool = pools;
	size_t size;
	char *va;

	/* Pages that are all over the place, and pages as they come */
	size = 1024 * PAGE;
	*pool = (struct pool){ anon(size, 0), 1024, -1 };
	touch_scattered(pool++->va, size);
	*pool = (struct pool){ anon(size, 0), 1024, -1 };
	madvise(pool->va, size, MADV_NOHUGEPAGE);
	memset(pool++->va, 1, size);
	/* Files: scattered, contiguous or not, huge */
	*pool = pool_of_file(0, 512 * PAGE, true);
	pool += !!pool->va;
	*pool = pool_of_file(0, 512 * PAGE, false);
	pool += !!pool->va;
	*pool = pool_of_file(MFD_HUGETLB, HUGE_PAGE, false);
	pool += !!pool->va;
	/* Transparent huge pages if there are any */
	va = anon(3 * HUGE_PAGE, 0);
	va = (char *)(((uintptr_t)va + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));
	madvise(va, 2 * HUGE_PAGE, MADV_HUGEPAGE);
	memset(va, 1, 2 * HUGE_PAGE);
	*pool++ = (struct pool){ va, 1024, -1 };
	va = anon_huge(2 * HUGE_PAGE);
	if (va)
		*pool++ = (struct pool){ va, 1024, -1 };
	return pool - pools;
}

#define LAYOUT_PAGES 6144UL

/* Areas and holes up to the last page. Pages are pinned where pagemap has them. */
static void random_layout(struct __test_metadata *_metadata, int iommufd, uint32_t ioas,
			  struct pool *pools, unsigned int nr_pools, struct pa_map *map)
{
	unsigned int i, nr_areas = 0;
	size_t start = 0, at, pages;
	struct pool *pool = NULL;
	struct {
		struct pool *pool;
		size_t at, start, pages;
	} areas[LAYOUT_PAGES];

	memset(map->pas, 0, map->pages * sizeof(*map->pas));
	for (at = rnd(2) * rnd(9); at < map->pages; at += pages) {
		uint64_t iova = map->iova + at * PAGE;
		unsigned int what = rnd(8);

		pages = rnd_size(1024);
		if (pages > map->pages - at)
			pages = map->pages - at;
		if (!what) {
			pool = NULL;
			continue;
		}
		/* On with the memory before it, or somewhere else */
		if (what > 3 || !pool || start == pool->pages) {
			pool = pools + rnd(nr_pools);
			start = rnd(3) ? rnd(pool->pages) : 0;
		}
		if (pages > pool->pages - start)
			pages = pool->pages - start;
		if (pool->fd < 0) {
			ASSERT_EQ(0, ioas_map(iommufd, ioas, pool->va + start * PAGE,
					      pages * PAGE, iova, MAP_RW));
		} else {
			ASSERT_EQ(0, ioas_map_file(iommufd, ioas, pool->fd,
						   start * PAGE, pages * PAGE, iova));
		}
		areas[nr_areas].pool = pool;
		areas[nr_areas].at = at;
		areas[nr_areas].start = start;
		areas[nr_areas++].pages = pages;
		start += pages;
	}
	for (i = 0; i < nr_pools; i++)
		pagemap_pas(pools[i].va, pools[i].pages, pools[i].pas);
	for (i = 0; i < nr_areas; i++)
		memcpy(map->pas + areas[i].at, areas[i].pool->pas + areas[i].start,
		       areas[i].pages * sizeof(*map->pas));
}

TEST_F_TIMEOUT(extents, random, 60)
{
	static const uint64_t iovas[] = {
		IOVA, IOVA + 7 * PAGE, (1UL << 39) - LAYOUT_PAGES / 2 * PAGE,
		-LAYOUT_PAGES * PAGE,
	};
	const unsigned int per_layout = 100, want = 10000;
	unsigned long ranges = 0, extents = 0, holes = 0, full = 0, whole = 0, ended = 0;
	unsigned long many = 0, exact = 0, layouts = 0;
	const char *seed = getenv("NOIOMMU_SEED");
	static struct iommu_noiommu_extent all[LAYOUT_PAGES];
	struct pool pools[NR_POOLS];
	struct pa_map map = { .pages = LAYOUT_PAGES };
	unsigned int nr_pools, i;

	random_state = seed ? strtoull(seed, NULL, 0) : time(NULL) ^ (uint64_t)getpid() << 32;
	random_state = random_state ?: 1;
	TH_LOG("NOIOMMU_SEED=%llu", (unsigned long long)random_state);
	nr_pools = make_pools(pools);
	for (i = 0; i < nr_pools; i++) {
		pools[i].pas = calloc(pools[i].pages, sizeof(uint64_t));
		ASSERT_NE(NULL, pools[i].pas);
	}
	map.pas = calloc(map.pages, sizeof(*map.pas));
	ASSERT_NE(NULL, map.pas);

	for (; ranges < want && layouts < 2 * want / per_layout; layouts++) {
		uint32_t ioas = rnd(2) ? self->small : self->ioas;

		map.iova = iovas[rnd(ARRAY_SIZE(iovas))];
		random_layout(_metadata, self->iommufd, ioas, pools, nr_pools, &map);
		for (i = 0; i < per_layout; i++) {
			uint64_t offset = rnd(map.pages) * PAGE + rnd(2) * rnd(PAGE);
			uint64_t length = rnd_size(2 * map.pages * PAGE), described;
			uint32_t nr_all = map.pages, room, nr;

			if (!rnd(8))
				length = ULLONG_MAX;
			else if (!rnd(4) && length > PAGE)
				length -= length % PAGE;
			described = expect_extents(&map, map.iova + offset, length, all,
						   &nr_all);
			switch (rnd(4)) {
			case 0:
				room = rnd_size(8);
				break;
			case 1:
				room = rnd_size(map.pages);
				break;
			case 2:
				room = nr_all + rnd(3);
				room = room > 1 ? room - 1 : 1;
				break;
			default:
				room = rnd(2) ? UINT32_MAX : nr_all + rnd(99) + 1;
			}
			nr = check_extents(_metadata, self->iommufd, ioas, &map,
					   map.iova + offset, length, room);
			if (!nr) {
				holes++;
				continue;
			}
			ranges++;
			extents += nr;
			many += nr > STEP;
			exact += nr == nr_all && nr == room;
			full += nr < nr_all;
			if (nr == nr_all && described == length)
				whole++;
			else if (nr == nr_all)
				ended++;
			/* An entry in the middle by itself, as the plain call has it */
			if (nr > 2) {
				uint32_t pick = 1 + rnd(nr - 2), before;
				uint64_t phys;

				for (before = 0; before < pick; before++) {
					offset += all[before].length;
					length -= all[before].length;
				}
				ASSERT_EQ(0, get_pa(self->iommufd, ioas,
						    map.iova + offset, &length, &phys));
				ASSERT_EQ(all[pick].phys, phys);
				ASSERT_EQ(all[pick].length, length);
			}
		}
		ASSERT_EQ(0, ioas_unmap(self->iommufd, ioas, 0, ULLONG_MAX));
	}
	TH_LOG("%lu layouts of %u kinds of memory, %lu ranges, %lu extents", layouts,
	       nr_pools, ranges, extents);
	TH_LOG("whole %lu, to a hole %lu, from a hole %lu", whole, ended, holes);
	TH_LOG("array full %lu, exactly %lu, over %u extents %lu", full, exact, STEP,
	       many);
	EXPECT_LE(want, ranges);
	EXPECT_LE(10 * want, extents);
	EXPECT_LE(want / 20, whole);
	EXPECT_LE(want / 20, ended);
	EXPECT_LE(want / 20, full);
	EXPECT_LE(want / 50, exact);
	EXPECT_LE(want / 50, many);
	EXPECT_LE(want / 100, holes);
}

/*
 * What changes meanwhile
 */
struct remapper {
	int iommufd;
	uint32_t ioas;
	uint64_t iova;
	char *va[2];
	size_t size;
	int uffd;
	unsigned int nr;
	int rc;
	bool stop;
};

static void *remap(void *arg)
{
	struct remapper *remapper = arg;
	int rc = 0;

	while (!rc && !__atomic_load_n(&remapper->stop, __ATOMIC_RELAXED)) {
		rc = ioas_unmap(remapper->iommufd, remapper->ioas, remapper->iova,
				remapper->size);
		if (!rc)
			rc = ioas_map(remapper->iommufd, remapper->ioas,
				      remapper->va[++remapper->nr % 2],
				      remapper->size, remapper->iova, MAP_RW);
		/* Long enough for whole answers too, in the end on any machine */
		usleep(remapper->nr % 4 * (300 + remapper->nr));
	}
	remapper->rc = rc;
	return NULL;
}

/* The pages of extents that begin and end with one; more than max if one doesn't */
static size_t expand_extents(const struct iommu_noiommu_extent *extents, uint32_t nr,
			     uint64_t *pas, size_t max)
{
	size_t pages = 0;
	uint64_t at;

	for (; nr; nr--, extents++) {
		if (!extents->length || extents->length % PAGE)
			return max + 1;
		for (at = 0; at < extents->length; at += PAGE) {
			if (pages == max)
				return max + 1;
			pas[pages++] = extents->phys + at;
		}
	}
	return pages;
}

static uint64_t msecs(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

TEST_F(extents, mapped_anew_meanwhile)
{
	/* An area that comes, goes and changes, between two that stay */
	const size_t before = 8, between = 2 * STEP + 50, all = before + between + 8;
	const size_t pages = 2 * between + 16;
	unsigned int reads = 0, whole = 0, cut = 0, mixed = 0, first[2] = {}, gone = 0;
	bool seen_all = false;
	struct iommu_noiommu_extent *extents = calloc(all, sizeof(*extents));
	char *va = anon(pages * PAGE, 0);
	uint64_t length, end, *pas, answer[all];
	struct remapper remapper = {
		.iommufd = self->iommufd,
		.ioas = self->ioas,
		.iova = IOVA + before * PAGE,
		.va = { va, va + between * PAGE },
		.size = between * PAGE,
	};
	struct pa_map map;
	pthread_t thread;
	size_t found, i;
	uint32_t nr;

	ASSERT_NE(NULL, extents);
	touch_scattered(va, pages * PAGE);
	/* All that is ever mapped there stays where it is, by a pin of its own */
	map_at(self->ioas, va, pages * PAGE, 2UL << 30);
	map = pa_map_of(va, pages, 0);
	pas = map.pas;
	map_at(self->ioas, va + 2 * between * PAGE, before * PAGE, IOVA);
	map_at(self->ioas, va, between * PAGE, remapper.iova);
	map_at(self->ioas, va + (2 * between + before) * PAGE, 8 * PAGE,
	       remapper.iova + remapper.size);
	ASSERT_EQ(0, pthread_create(&thread, NULL, remap, &remapper));
	/* On a slow machine it takes longer until all has been seen */
	for (end = msecs() + 1500; msecs() < end || !seen_all; reads++) {
		bool seen[2] = {}, inside = reads % 4 == 3;
		uint64_t at = inside ? before + 5 : 0;
		int rc;

		length = all * PAGE;
		nr = all;
		rc = get_pa_extents(self->iommufd, self->ioas, IOVA + at * PAGE, &length,
				    extents, &nr);
		if (inside && rc == ENOENT) {
			gone++;
			continue;
		}
		ASSERT_EQ(0, rc);
		found = expand_extents(extents, nr, answer, all);
		ASSERT_EQ(length, found * PAGE);
		for (i = 0; i < found; i++, at++) {
			if (at < before) {
				ASSERT_EQ(pas[2 * between + at], answer[i]);
			} else if (at >= before + between) {
				ASSERT_EQ(pas[between + at], answer[i]);
			} else if (answer[i] == pas[at - before]) {
				seen[0] = true;
			} else {
				ASSERT_EQ(pas[at - before + between], answer[i]);
				seen[1] = true;
			}
		}
		ASSERT_LE(before, at);
		whole += at == all;
		cut += at < all;
		mixed += seen[0] && seen[1];
		first[0] += seen[0];
		first[1] += seen[1];
		seen_all = (whole && cut && gone && first[0] && first[1]) ||
			   __atomic_load_n(&remapper.rc, __ATOMIC_RELAXED);
	}
	__atomic_store_n(&remapper.stop, true, __ATOMIC_RELAXED);
	ASSERT_EQ(0, pthread_join(thread, NULL));
	EXPECT_EQ(0, remapper.rc);
	TH_LOG("%u answers while mapped anew %u times: %u whole, %u cut off, %u ENOENT",
	       reads, remapper.nr, whole, cut, gone);
	TH_LOG("of either memory %u and %u, of both %u", first[0], first[1], mixed);
	EXPECT_LT(0, whole);
	EXPECT_LT(0, cut);
	EXPECT_LT(0, gone);
	EXPECT_LT(0, first[0]);
	EXPECT_LT(0, first[1]);
	free(map.pas);
	free(extents);
}

/*
 * Whoever handles a fault on the array may need what GET_PA locks: at the first one
 * it maps other memory, at the next it unmaps it.
 */
static void *handle_faults(void *arg)
{
	struct remapper *remapper = arg;
	struct pollfd pollfd = { .fd = remapper->uffd, .events = POLLIN };
	struct uffdio_zeropage zero = { .range.len = PAGE };
	struct uffd_msg msg;

	while (!__atomic_load_n(&remapper->stop, __ATOMIC_RELAXED)) {
		if (poll(&pollfd, 1, 10) != 1 ||
		    read(remapper->uffd, &msg, sizeof(msg)) != sizeof(msg))
			continue;
		if (remapper->nr < 2)
			remapper->rc |= ioas_unmap(remapper->iommufd, remapper->ioas,
						   remapper->iova, remapper->size);
		if (!remapper->nr++)
			remapper->rc |= ioas_map(remapper->iommufd, remapper->ioas,
						 remapper->va[1], remapper->size,
						 remapper->iova, MAP_RW);
		zero.range.start = msg.arg.pagefault.address & ~(PAGE - 1);
		remapper->rc |= ERRNO_OF(ioctl(remapper->uffd, UFFDIO_ZEROPAGE, &zero));
	}
	return NULL;
}

TEST_F(extents, fault_handler_maps_and_unmaps)
{
	const size_t pages = 4 * STEP;
	char *va = anon(2 * pages * PAGE, 0), *array = anon(pages * 16, 0);
	struct iommu_noiommu_extent *expected = calloc(pages, sizeof(*expected));
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = {
		.range = { .start = (uintptr_t)array, .len = pages * 16 },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct remapper remapper = {
		.iommufd = self->iommufd,
		.ioas = self->ioas,
		.iova = IOVA,
		.va = { va, va + pages * PAGE },
		.size = pages * PAGE,
	};
	uint64_t length, answer[pages];
	uint32_t nr, nr_expected;
	struct pa_map map;
	pthread_t thread;
	size_t i;

	ASSERT_NE(NULL, expected);
	remapper.uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (remapper.uffd < 0)
		SKIP(return, "no userfaultfd (errno %d)", errno);
	ASSERT_EQ(0, ioctl(remapper.uffd, UFFDIO_API, &api));
	touch_scattered(va, 2 * pages * PAGE);
	map_at(self->ioas, va, 2 * pages * PAGE, 2UL << 30);
	map = pa_map_of(va, 2 * pages, IOVA);

	/* An answer that was complete before */
	map_at(self->ioas, va, pages * PAGE, IOVA);
	ASSERT_EQ(0, ioctl(remapper.uffd, UFFDIO_REGISTER, &range));
	ASSERT_EQ(0, pthread_create(&thread, NULL, handle_faults, &remapper));
	length = 9 * PAGE;
	nr = pages;
	nr_expected = pages;
	ASSERT_EQ(0, get_pa_extents(self->iommufd, self->ioas, IOVA, &length, array, &nr));
	EXPECT_EQ(1, remapper.nr);
	EXPECT_EQ(9 * PAGE, expect_extents(&map, IOVA, length, expected, &nr_expected));
	EXPECT_EQ(nr_expected, nr);
	EXPECT_EQ(0, memcmp(expected, array, nr * sizeof(*expected)));
	/* The handler's memory is there now, which the next fault finds gone */
	length = 9 * PAGE;
	nr = pages - STEP;
	nr_expected = pages;
	ASSERT_EQ(0, get_pa_extents(self->iommufd, self->ioas, IOVA, &length,
				    array + PAGE, &nr));
	EXPECT_EQ(2, remapper.nr);
	map.iova = IOVA - pages * PAGE;
	expect_extents(&map, IOVA, 9 * PAGE, expected, &nr_expected);
	EXPECT_EQ(nr_expected, nr);
	EXPECT_EQ(0, memcmp(expected, array + PAGE, nr * sizeof(*expected)));
	EXPECT_EQ(ENOENT, get_pa_errno(self->iommufd, self->ioas, IOVA));

	/* One in the making goes on with what is there then, to where it is gone */
	map_at(self->ioas, va, pages * PAGE, IOVA);
	ASSERT_EQ(0, madvise(array, pages * 16, MADV_DONTNEED));
	__atomic_store_n(&remapper.nr, 0, __ATOMIC_SEQ_CST);
	length = pages * PAGE;
	nr = pages;
	ASSERT_EQ(0, get_pa_extents(self->iommufd, self->ioas, IOVA, &length, array, &nr));
	EXPECT_LE(2, remapper.nr);
	EXPECT_EQ(0, remapper.rc);
	ASSERT_EQ(length, expand_extents((void *)array, nr, answer, pages) * PAGE);
	length /= PAGE;
	for (i = 0; i < length && answer[i] == map.pas[i]; i++)
		;
	TH_LOG("%zu pages of the first, %llu in all, %u extents", i,
	       (unsigned long long)length, nr);
	EXPECT_LT(0, i);
	EXPECT_LT(i, length);
	EXPECT_GT(pages, length);
	for (; i < length; i++)
		ASSERT_EQ(map.pas[pages + i], answer[i]);
	EXPECT_EQ(ENOENT, get_pa_errno(self->iommufd, self->ioas, IOVA));

	__atomic_store_n(&remapper.stop, true, __ATOMIC_RELAXED);
	ASSERT_EQ(0, pthread_join(thread, NULL));
	close(remapper.uffd);
	free(expected);
	free(map.pas);
}

/*
 * Hot reset of a cdev goes by ownership of the affected devices. For lack of an
 * iommu_group that is by device ID only.
 */
TEST_F(noiommu, hot_reset)
{
	union {
		struct vfio_pci_hot_reset_info info;
		char room[sizeof(struct vfio_pci_hot_reset_info) +
			  16 * sizeof(struct vfio_pci_dependent_device)];
	} buf = { .info = { .argsz = sizeof(buf) } };
	struct vfio_pci_hot_reset reset = { .argsz = sizeof(reset) };
	uint32_t pt_id = self->ioas;
	bool found = false;
	unsigned int i;

	if (ERRNO_OF(ioctl(self->device, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO,
			   &buf)) == ENODEV)
		SKIP(return, "no hot reset of this device");
	EXPECT_NE(0, buf.info.flags & VFIO_PCI_HOT_RESET_FLAG_DEV_ID);
	EXPECT_NE(0, buf.info.flags & VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED);
	for (i = 0; i < buf.info.count; i++)
		found |= buf.info.devices[i].devid == self->dev_id;
	EXPECT_TRUE(found);
	EXPECT_EQ(0, ERRNO_OF(ioctl(self->device, VFIO_DEVICE_PCI_HOT_RESET, &reset)));

	/* What restores its registers leaves a detached device's bus mastering off */
	ASSERT_EQ(0, attach_pt(self->device, &pt_id));
	ASSERT_EQ(0, command_write(self->device, PCI_COMMAND_MASTER));
	EXPECT_EQ(PCI_COMMAND_MASTER, command_read(self->device) & PCI_COMMAND_MASTER);
	ASSERT_EQ(0, detach_pt(self->device));
	EXPECT_EQ(0, ERRNO_OF(ioctl(self->device, VFIO_DEVICE_PCI_HOT_RESET, &reset)));
	EXPECT_EQ(0, command_read(self->device) & PCI_COMMAND_MASTER);
}

/* KVM takes VFIO files to know what is assigned; a cdev has no group to ask */
TEST_F(noiommu, kvm)
{
	struct kvm_create_device device = { .type = KVM_DEV_TYPE_VFIO };
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm, fd;
	struct kvm_device_attr attr = {
		.group = KVM_DEV_VFIO_FILE,
		.attr = KVM_DEV_VFIO_FILE_ADD,
		.addr = (uintptr_t)&fd,
	};
	struct vfio_device_info info = { .argsz = sizeof(info) };
	uint32_t dev_id;

	if (kvm < 0)
		SKIP(return, "no KVM");
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	ASSERT_LE(0, vm);
	ASSERT_EQ(0, ioctl(vm, KVM_CREATE_DEVICE, &device));

	/* Added before it is bound, as VMMs do */
	close(self->device);
	self->device = cdev_open(self->bdf);
	ASSERT_LE(0, self->device);
	fd = self->device;
	EXPECT_EQ(0, ioctl(device.fd, KVM_SET_DEVICE_ATTR, &attr));
	EXPECT_EQ(0, bind_iommufd(self->device, self->iommufd, &dev_id));
	EXPECT_EQ(0, ioctl(self->device, VFIO_DEVICE_GET_INFO, &info));
	attr.attr = KVM_DEV_VFIO_FILE_DEL;
	EXPECT_EQ(0, ioctl(device.fd, KVM_SET_DEVICE_ATTR, &attr));
	/* And after */
	attr.attr = KVM_DEV_VFIO_FILE_ADD;
	EXPECT_EQ(0, ioctl(device.fd, KVM_SET_DEVICE_ATTR, &attr));
	close(device.fd);
	close(vm);
	close(kvm);
}

TEST_F(mixed, reserved_iovas_survive_a_failed_replace)
{
	/* x86's MSI window is reserved for what is behind an IOMMU */
	const uint64_t msi = 0xfee00000;
	uint32_t hwpt[2], pt_id;
	int i;

	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id[i], self->ioas,
					0, &hwpt[i]));
	/* A refused attach leaves none behind */
	pt_id = hwpt[0];
	EXPECT_EQ(EINVAL, attach_pt(self->device[1], &pt_id));
	EXPECT_EQ(0, ioas_map(self->iommufd, self->ioas, self->va, PAGE, msi, MAP_RW));
	ASSERT_EQ(0, ioas_unmap(self->iommufd, self->ioas, msi, PAGE));

	pt_id = hwpt[1];
	ASSERT_EQ(0, attach_pt(self->device[1], &pt_id));
	if (ioas_map(self->iommufd, self->ioas, self->va, PAGE, msi, MAP_RW) == 0)
		SKIP(return, "no reserved MSI window");
	pt_id = hwpt[0];
	EXPECT_EQ(EINVAL, attach_pt(self->device[1], &pt_id));
	EXPECT_NE(0, ioas_map(self->iommufd, self->ioas, self->va, PAGE, msi, MAP_RW));
	/* Without an IOMMU no IOVA is special */
	ASSERT_EQ(0, detach_pt(self->device[1]));
	pt_id = hwpt[0];
	ASSERT_EQ(0, attach_pt(self->device[0], &pt_id));
	EXPECT_EQ(0, ioas_map(self->iommufd, self->ioas, self->va, PAGE, msi, MAP_RW));
}

/* The same of a replace by a HWPT of the right kind that fails halfway */
TEST_F(mixed, reserved_iovas_survive_a_failed_allocation)
{
	int proc = open("/proc/self/fail-nth", O_RDWR), nth, cur = 0, failed = 0;
	const uint64_t msi = 0xfee00000;
	uint32_t hwpt[2], pt_id;
	char text[16];

	if (proc < 0 ||
	    write_file("/sys/kernel/debug/failslab/ignore-gfp-wait", "N"))
		SKIP(return, "no fault injection (CONFIG_FAILSLAB, debugfs)");
	for (nth = 0; nth < 2; nth++)
		ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id[1], self->ioas,
					0, &hwpt[nth]));
	pt_id = hwpt[0];
	ASSERT_EQ(0, attach_pt(self->device[1], &pt_id));

	for (nth = 1; nth < 100; nth++) {
		int rc;

		snprintf(text, sizeof(text), "%d", nth);
		ASSERT_LT(0, pwrite(proc, text, strlen(text), 0));
		pt_id = hwpt[!cur];
		rc = attach_pt(self->device[1], &pt_id);
		memset(text, 0, sizeof(text));
		ASSERT_LT(0, pread(proc, text, sizeof(text) - 1, 0));
		ASSERT_EQ(1, pwrite(proc, "0", 1, 0));
		if (rc)
			failed++;
		else
			cur = !cur;
		EXPECT_NE(0, ioas_map(self->iommufd, self->ioas, self->va, PAGE,
				      msi, MAP_RW)) TH_LOG("point %d", nth);
		if (atoi(text))
			break;
	}
	EXPECT_LT(0, failed);
	close(proc);
}

/* Whoever runs the tests keeps the devices that he did not name */
TEST(only_devices_that_are_named)
{
	char bdf[256];

	setenv("VFIO_NOIOMMU_DEVICES", "10000:01:00.0 0000:02:00.0,0000:03:00.0", 1);
	EXPECT_TRUE(device_may_be_used("0000:02:00.0"));
	EXPECT_TRUE(device_may_be_used("0000:03:00.0"));
	EXPECT_FALSE(device_may_be_used("0000:01:00.0"));
	unsetenv("VFIO_NOIOMMU_DEVICES");
	EXPECT_FALSE(find_device("0x1b36", "0x0010", bdf, sizeof(bdf)));
}

/*
 * A mediated device has no IOMMU either, and does no DMA of its own: it keeps
 * its plain name and its group.
 */
TEST(mdev_is_not_noiommu)
{
	static const char uuid[] = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
	static const char parent[] = "/sys/devices/virtual/mtty/mtty";
	char path[600], name[256], target[256];
	ssize_t len;

	snprintf(path, sizeof(path), "%s/mdev_supported_types/mtty-1/create", parent);
	if (!device_may_be_used("mtty") || access(path, W_OK))
		SKIP(return, "no sample mtty, or VFIO_NOIOMMU_DEVICES does not name it");
	ASSERT_EQ(0, noiommu_switch(true));
	ASSERT_EQ(0, write_file(path, uuid));
	snprintf(path, sizeof(path), "%s/%s/vfio-dev", parent, uuid);
	ASSERT_TRUE(find_entry(path, "", name, sizeof(name)));
	EXPECT_EQ(0, strncmp(name, "vfio", 4));
	snprintf(path, sizeof(path), "/dev/vfio/devices/%s", name);
	EXPECT_EQ(0, access(path, F_OK));
	snprintf(path, sizeof(path), "%s/%s/iommu_group", parent, uuid);
	len = readlink(path, target, sizeof(target) - 1);
	ASSERT_LT(0, len);
	target[len] = 0;
	snprintf(path, sizeof(path), "/dev/vfio/%s", strrchr(target, '/') + 1);
	EXPECT_EQ(0, access(path, F_OK));
	snprintf(path, sizeof(path), "%s/%s/remove", parent, uuid);
	EXPECT_EQ(0, write_file(path, "1"));
}

TEST_HARNESS_MAIN
