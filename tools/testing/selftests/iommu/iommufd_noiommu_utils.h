/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Calls of iommufd, memory of every kind and where it is physically, for the
 * tests of devices without an IOMMU. Include kselftest_harness.h first, or
 * kselftest.h for what asserts nothing. The user headers of Linux 7.3 are enough.
 */
#ifndef __IOMMUFD_NOIOMMU_UTILS_H
#define __IOMMUFD_NOIOMMU_UTILS_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/capability.h>
#include <linux/iommufd.h>

#define PAGE 4096UL
#define HUGE_PAGE (2UL << 20)

#ifndef MFD_HUGETLB
#define MFD_HUGETLB 4U
#endif

/* 0 or the errno of an ioctl, so that tests can compare with a table */
#define ERRNO_OF(call) ((call) < 0 ? errno : 0)

static inline int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY), rc;

	if (fd < 0)
		return -errno;
	rc = write(fd, text, strlen(text)) < 0 ? -errno : 0;
	close(fd);
	return rc;
}

static inline int read_file(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY);
	ssize_t len;

	if (fd < 0)
		return -errno;
	len = read(fd, text, size - 1);
	close(fd);
	if (len < 0)
		return -EIO;
	text[len] = 0;
	while (len && text[len - 1] == '\n')
		text[--len] = 0;
	return 0;
}

/* The value behind "name " in a file of name and value pairs, or -1 */
static inline long long read_field(const char *path, const char *name)
{
	char line[256], *end;
	long long value = -1;
	FILE *file = fopen(path, "r");

	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file)) {
		if (strncmp(line, name, strlen(name)))
			continue;
		value = strtoll(line + strlen(name), &end, 0);
		if (end != line + strlen(name))
			break;
	}
	fclose(file);
	return value;
}

/* For the rest of the process; tests call it in a child */
static inline int drop_capability(unsigned int cap)
{
	struct __user_cap_header_struct header = {
		.version = _LINUX_CAPABILITY_VERSION_3,
	};
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &header, data))
		return -errno;
	data[cap / 32].effective &= ~(1U << cap % 32);
	data[cap / 32].permitted &= ~(1U << cap % 32);
	return syscall(SYS_capset, &header, data) ? -errno : 0;
}

/*
 * Run code in a child, where capabilities or a uid are dropped; what it
 * returns is compared here.
 */
#define IN_CHILD(expected, code)					\
	do {								\
		int status;						\
		pid_t pid = fork();					\
									\
		ASSERT_LE(0, pid);					\
		if (!pid)						\
			_exit(code);					\
		ASSERT_EQ(pid, waitpid(pid, &status, 0));		\
		ASSERT_TRUE(WIFEXITED(status));				\
		EXPECT_EQ(expected, WEXITSTATUS(status));		\
	} while (0)

static inline int ioas_alloc(int iommufd, uint32_t *id)
{
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	int rc = ERRNO_OF(ioctl(iommufd, IOMMU_IOAS_ALLOC, &alloc));

	*id = alloc.out_ioas_id;
	return rc;
}

static inline int hwpt_alloc(int iommufd, uint32_t dev_id, uint32_t pt_id,
			     uint32_t flags, uint32_t *id)
{
	struct iommu_hwpt_alloc alloc = {
		.size = sizeof(alloc),
		.flags = flags,
		.dev_id = dev_id,
		.pt_id = pt_id,
	};
	int rc = ERRNO_OF(ioctl(iommufd, IOMMU_HWPT_ALLOC, &alloc));

	*id = alloc.out_hwpt_id;
	return rc;
}

static inline int destroy(int iommufd, uint32_t id)
{
	struct iommu_destroy cmd = { .size = sizeof(cmd), .id = id };

	return ERRNO_OF(ioctl(iommufd, IOMMU_DESTROY, &cmd));
}

#define MAP_RW (IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE)

static inline int ioas_map(int iommufd, uint32_t ioas, void *va, size_t length,
			   uint64_t iova, uint32_t prot)
{
	struct iommu_ioas_map map = {
		.size = sizeof(map),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | prot,
		.ioas_id = ioas,
		.user_va = (uintptr_t)va,
		.length = length,
		.iova = iova,
	};

	return ERRNO_OF(ioctl(iommufd, IOMMU_IOAS_MAP, &map));
}

static inline int ioas_map_file(int iommufd, uint32_t ioas, int fd,
				uint64_t start, size_t length, uint64_t iova)
{
	struct iommu_ioas_map_file map = {
		.size = sizeof(map),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | MAP_RW,
		.ioas_id = ioas,
		.fd = fd,
		.start = start,
		.length = length,
		.iova = iova,
	};

	return ERRNO_OF(ioctl(iommufd, IOMMU_IOAS_MAP_FILE, &map));
}

static inline int ioas_unmap(int iommufd, uint32_t ioas, uint64_t iova,
			     uint64_t length)
{
	struct iommu_ioas_unmap unmap = {
		.size = sizeof(unmap),
		.ioas_id = ioas,
		.iova = iova,
		.length = length,
	};

	return ERRNO_OF(ioctl(iommufd, IOMMU_IOAS_UNMAP, &unmap));
}

static inline int ioas_copy(int fd, uint32_t dst_ioas, uint64_t dst,
			    uint32_t src_ioas, uint64_t src, uint64_t length)
{
	struct iommu_ioas_copy copy = {
		.size = sizeof(copy),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | MAP_RW,
		.dst_ioas_id = dst_ioas,
		.dst_iova = dst,
		.src_ioas_id = src_ioas,
		.src_iova = src,
		.length = length,
	};

	return ERRNO_OF(ioctl(fd, IOMMU_IOAS_COPY, &copy));
}

/* The IOVAs that may be mapped are all there are, as without an IOMMU */
static inline bool all_iovas_allowed(int fd, uint32_t ioas)
{
	struct iommu_iova_range range = {};
	struct iommu_ioas_iova_ranges ranges = {
		.size = sizeof(ranges),
		.ioas_id = ioas,
		.num_iovas = 1,
		.allowed_iovas = (uintptr_t)&range,
	};

	return !ioctl(fd, IOMMU_IOAS_IOVA_RANGES, &ranges) &&
	       !range.start && range.last == UINT64_MAX;
}

static inline int ioas_disable_huge_pages(int fd, uint32_t ioas)
{
	struct iommu_option option = {
		.size = sizeof(option),
		.option_id = IOMMU_OPTION_HUGE_PAGES,
		.op = IOMMU_OPTION_OP_SET,
		.object_id = ioas,
	};

	return ERRNO_OF(ioctl(fd, IOMMU_OPTION, &option));
}

/* The struct of Linux 7.3 ends with out_phys; the members after it are for extents */
#define GET_PA_SIZE (offsetof(struct iommu_ioas_noiommu_get_pa, out_phys) + 8)

static inline int get_pa(int iommufd, uint32_t ioas, uint64_t iova,
			 uint64_t *length, uint64_t *phys)
{
	struct iommu_ioas_noiommu_get_pa cmd = {
		.size = GET_PA_SIZE,
		.ioas_id = ioas,
		.iova = iova,
		.length = *length,
	};
	int rc = ERRNO_OF(ioctl(iommufd, IOMMU_IOAS_NOIOMMU_GET_PA, &cmd));

	*length = cmd.length;
	*phys = cmd.out_phys;
	return rc;
}

/* Just the errno for one byte */
static inline int get_pa_errno(int iommufd, uint32_t ioas, uint64_t iova)
{
	uint64_t length = 1, phys;

	return get_pa(iommufd, ioas, iova, &length, &phys);
}

/* Documentation/admin-guide/mm/pagemap.rst: bit 63 present, bits 0-54 PFN */
static inline uint64_t pagemap_pa(const void *va)
{
	size_t page = sysconf(_SC_PAGESIZE);
	int fd = open("/proc/self/pagemap", O_RDONLY);
	uint64_t entry = 0;

	if (fd < 0)
		return 0;
	if (pread(fd, &entry, 8, (uintptr_t)va / page * 8) != 8)
		entry = 0;
	close(fd);
	if (!(entry >> 63))
		return 0;
	return (entry & ((1ULL << 55) - 1)) * page + (uintptr_t)va % page;
}

/* The same of many pages at once, with 0 for those that are not there */
static inline void pagemap_pas(const void *va, size_t pages, uint64_t *pas)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	size_t i;

	if (fd < 0 || pread(fd, pas, pages * 8, (uintptr_t)va / PAGE * 8) !=
			      (ssize_t)pages * 8)
		memset(pas, 0, pages * 8);
	for (i = 0; i < pages; i++)
		pas[i] = pas[i] >> 63 ? (pas[i] & ((1ULL << 55) - 1)) * PAGE : 0;
	if (fd >= 0)
		close(fd);
}

/* The pages mapped from an IOVA on, 0 for a hole. A hole follows the last one. */
struct pa_map {
	uint64_t iova;
	size_t pages;
	uint64_t *pas;
};

static inline struct pa_map pa_map_of(const void *va, size_t pages, uint64_t iova)
{
	struct pa_map map = { iova, pages, calloc(pages, sizeof(*map.pas)) };

	if (!map.pas)
		abort();
	pagemap_pas(va, pages, map.pas);
	return map;
}

/* Pages that are pinned for DMA right now, by anyone */
static inline long long pinned_pages(void)
{
	/* The counters are per CPU; this sums them up */
	write_file("/proc/sys/vm/stat_refresh", "1");
	return read_field("/proc/vmstat", "nr_foll_pin_acquired ") -
	       read_field("/proc/vmstat", "nr_foll_pin_released ");
}

/* Pages of IOMMU page tables right now, anyone's */
static inline long long table_pages(void)
{
	write_file("/proc/sys/vm/stat_refresh", "1");
	return read_field("/proc/vmstat", "nr_iommu_pages ");
}

static inline void *anon(size_t size, int flags)
{
	void *va = mmap(NULL, size, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

	if (va != MAP_FAILED)
		return va;
	/* Huge pages may lack, and then the test is skipped */
	if (flags & MAP_HUGETLB)
		return NULL;
	perror("mmap");
	exit(KSFT_FAIL);
}

/* Of those that the system has set aside: 16 are enough for each of the tests */
static inline void *anon_huge(size_t size)
{
	return anon(size, MAP_HUGETLB | MAP_POPULATE);
}

/*
 * Pages whose neighbours are elsewhere, by being touched in steps through the
 * range: a power of two of pages, or a few less. A test on memory that happens to
 * be contiguous would prove little.
 */
static inline void touch_scattered(char *va, size_t size)
{
	size_t nr = 1, i, breaks = 0;

	while (nr * PAGE < size)
		nr *= 2;
	madvise(va, size, MADV_NOHUGEPAGE);
	for (i = 0; i < nr; i++)
		if (i * 37 % nr * PAGE < size)
			va[i * 37 % nr * PAGE] = i;
	for (i = PAGE; i < size; i += PAGE)
		breaks += pagemap_pa(va + i) != pagemap_pa(va + i - PAGE) + PAGE;
	if (size > PAGE && !breaks) {
		fprintf(stderr, "%zu pages in one piece\n", size / PAGE);
		exit(KSFT_FAIL);
	}
}

#ifdef __KSELFTEST_HARNESS_H
/*
 * Every page of [va, va + size), mapped at iova, against pagemap; then the whole
 * in as few calls as it takes: each run has to be contiguous, and the longest.
 */
static inline void check_pas(struct __test_metadata *_metadata, int iommufd,
			     uint32_t ioas, char *va, uint64_t iova, size_t size)
{
	uint64_t phys, length, expected, next;
	size_t offset;

	for (offset = 0; offset < size; offset += PAGE) {
		expected = pagemap_pa(va + offset);
		ASSERT_NE(0, expected);
		length = PAGE;
		ASSERT_EQ(0, get_pa(iommufd, ioas, iova + offset,
				    &length, &phys));
		ASSERT_EQ(expected, phys) TH_LOG("page %zu", offset / PAGE);
		ASSERT_EQ(PAGE, length);
		/* From the middle of the page, to its end and not beyond */
		length = PAGE - 0x123;
		ASSERT_EQ(0, get_pa(iommufd, ioas,
				    iova + offset + 0x123, &length, &phys));
		ASSERT_EQ(expected + 0x123, phys);
		ASSERT_EQ(PAGE - 0x123, length);
		length = 1;
		if (iova + offset + PAGE - 1 == UINT64_MAX) {
			/* It can be mapped, but not asked for */
			ASSERT_EQ(EOVERFLOW,
				  get_pa_errno(iommufd, ioas, UINT64_MAX));
			continue;
		}
		ASSERT_EQ(0, get_pa(iommufd, ioas,
				    iova + offset + PAGE - 1, &length, &phys));
		ASSERT_EQ(expected + PAGE - 1, phys);
		ASSERT_EQ(1, length);
	}

	for (offset = 0; offset < size; offset += length) {
		length = size - offset;
		ASSERT_EQ(0, get_pa(iommufd, ioas, iova + offset,
				    &length, &phys));
		ASSERT_EQ(0, length % PAGE);
		ASSERT_GE(size - offset, length);
		for (next = 0; next < length; next += PAGE)
			ASSERT_EQ(pagemap_pa(va + offset + next), phys + next);
		if (offset + length < size)
			ASSERT_NE(pagemap_pa(va + offset + length), phys + length);
	}
}
#endif

/*
 * Fault injection: Documentation/fault-injection/fault-injection.rst,
 * /proc/self/fail-nth. The file, or -1 where the kernel can't.
 */
static inline int fail_nth_open(void)
{
	static const char * const attrs[] = {
		"failslab", "fail_page_alloc", "fail_iommufd",
	};
	int proc = open("/proc/self/fail-nth", O_RDWR);
	char path[64];
	unsigned int i;

	if (proc < 0 ||
	    write_file("/sys/kernel/debug/failslab/ignore-gfp-wait", "N") ||
	    write_file("/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait", "N"))
		return -1;
	/* Page tables are single pages */
	write_file("/sys/kernel/debug/fail_page_alloc/min-order", "0");
	for (i = 0; i < ARRAY_SIZE(attrs); i++) {
		snprintf(path, sizeof(path), "/sys/kernel/debug/%s/verbose",
			 attrs[i]);
		write_file(path, "0");
	}
	return proc;
}

/* The nth point from here on fails; 0 is none */
static inline void fail_nth_set(int proc, unsigned int nth)
{
	char text[16];

	snprintf(text, sizeof(text), "%u", nth);
	if (pwrite(proc, text, strlen(text), 0) < 0)
		abort();
}

/* Was there an nth point? None fails any more. */
static inline bool fail_nth_was_hit(int proc)
{
	char text[16] = "";

	if (pread(proc, text, sizeof(text) - 1, 0) < 0)
		abort();
	fail_nth_set(proc, 0);
	return !atoi(text);
}

/*
 * Repeat a call with its nth point failing, until there is no nth point. Before
 * each, "prepare" makes what the call is to find untouched, such as IOVAs without
 * tables that an earlier attempt left. "then" runs after each that had a point,
 * and sees rc and nth. The errno is that of the point: with IOMMUFD_TEST there are
 * some that are not allocations, such as the lookup of an ID.
 */
#define EACH_POINT(prepare, call, then)						\
	({									\
		unsigned int nth;						\
										\
		for (nth = 1; nth < 1000; nth++) {				\
			int rc;							\
			bool hit;						\
										\
			prepare;						\
			fail_nth_set(self->proc, nth);				\
			rc = (call);						\
			hit = fail_nth_was_hit(self->proc);			\
			if (!hit) {						\
				ASSERT_EQ(0, rc);				\
				break;						\
			}							\
			then;							\
		}								\
		ASSERT_GT(1000, nth);						\
		nth - 1;							\
	})

/*
 * A call that fails has to leave all as it was, which "unchanged" finds out. One
 * that succeeds in spite of the point is undone and the next point failed. In the
 * end the call was made.
 */
#define FAIL_EACH(name, call, undo, unchanged)					\
	FAIL_EACH_AT(name, (void)0, call, undo, unchanged)

/* With "prepare" */
#define FAIL_EACH_AT(name, prepare, call, undo, unchanged)			\
	do {									\
		unsigned int points, failed = 0;				\
										\
		points = EACH_POINT(prepare, call, ({				\
			if (rc) {						\
				failed++;					\
				ASSERT_TRUE(unchanged) TH_LOG("point %u", nth);	\
			} else {						\
				ASSERT_EQ(0, undo) TH_LOG("point %u", nth);	\
			}							\
		}));								\
		TH_LOG(name ": %u points, %u of them failed the call", points,	\
		       failed);							\
		ASSERT_LT(0, failed);						\
	} while (0)

/* The same of a call that has to succeed whatever fails, as what frees must */
#define CANT_FAIL(name, call, undo)						\
	do {									\
		unsigned int points = EACH_POINT((void)0, call, ({			\
			ASSERT_EQ(0, rc) TH_LOG("point %u", nth);		\
			ASSERT_EQ(0, undo) TH_LOG("point %u", nth);		\
		}));								\
										\
		TH_LOG(name ": %u points, none of them fails the call", points);	\
	} while (0)

/* And of one that is refused whatever else fails */
#define REFUSED(name, call)							\
	do {									\
		unsigned int points = EACH_POINT((void)0, (call) ? 0 : EBADE, ({	\
			ASSERT_EQ(0, rc) TH_LOG("point %u", nth);		\
		}));								\
										\
		TH_LOG(name ": %u points, refused at each", points);		\
	} while (0)

#endif
