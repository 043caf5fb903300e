// SPDX-License-Identifier: GPL-2.0-only
/*
 * What it costs to map memory for a device without an IOMMU, to find its physical
 * addresses and to unmap it, by kind of memory and by size
 *
 * vfio_noiommu_bench BDF [MIB], as root: takes the device from its driver, binds it
 * to vfio-pci and attaches it to an IOAS. It does no DMA. The sizes are the powers
 * of two from 2 MiB to MIB, 1024 by default.
 *
 * Prints layout,bytes,runs,operation,calls,ns. Where a kernel has no extents, calls
 * and ns are "-". Each operation is done once to warm up and then REPEAT times, of
 * which the fastest counts. What the kernel answers is compared with pagemap each
 * time, outside of what is timed.
 */
#include <err.h>
#include <stddef.h>
#include <time.h>

#include "kselftest.h"
#include "vfio_noiommu_util.h"
#include "../iommu/iommufd_noiommu_extents.h"

#define REPEAT 2

/* Aligned to the largest page, so that only the memory decides on the entries */
#define IOVA (4UL << 30)

#define MIB (1024 * 1024UL)
#define GIGANTIC_PAGE (1024 * MIB)
#define NR_HUGE "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"

#ifndef MAP_HUGE_SHIFT
#define MAP_HUGE_SHIFT 26
#endif

enum operation { MAP, GET_PA, EXTENTS, PAGEMAP, UNMAP, NR_OPERATIONS };

static const char * const names[NR_OPERATIONS] = {
	"map", "get_pa", "get_pa_extents", "pagemap", "unmap",
};

struct cost {
	size_t calls;
	uint64_t ns;
};

struct bench {
	int iommufd;
	int device;
	int pagemap;
	uint32_t ioas;
	size_t size;			/* the largest */
	bool has_extents;
	/* For as many pages as the largest size has */
	uint64_t *entries;
	struct iommu_noiommu_extent *runs;
	struct iommu_noiommu_extent *answer;
	size_t nr_runs;
};

static uint64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

/* A clock that only goes on with the timer interrupt would measure nothing */
static void check_clock(void)
{
	uint64_t start, step, least = UINT64_MAX;
	char name[32] = "?";
	int i;

	for (i = 0; i < 100; i++) {
		start = now();
		do {
			step = now() - start;
		} while (!step);
		if (step < least)
			least = step;
	}
	read_file("/sys/devices/system/clocksource/clocksource0/current_clocksource",
		  name, sizeof(name));
	fprintf(stderr, "clock: %s, two reads are %llu ns apart\n", name,
		(unsigned long long)least);
	if (least > 10000)
		errx(KSFT_FAIL, "the clock is too coarse");
}

/* The range in as many calls as it takes, each for all that is left */
static size_t get_pa_plain(struct bench *bench, size_t size)
{
	struct iommu_ioas_noiommu_get_pa cmd = {
		/* As programs for Linux 7.3 call it */
		.size = offsetof(struct iommu_ioas_noiommu_get_pa, nr_extents),
		.ioas_id = bench->ioas,
	};
	size_t offset, nr = 0;

	for (offset = 0; offset < size; offset += cmd.length) {
		cmd.iova = IOVA + offset;
		cmd.length = size - offset;
		if (ioctl(bench->iommufd, IOMMU_IOAS_NOIOMMU_GET_PA, &cmd))
			err(KSFT_FAIL, "GET_PA");
		bench->answer[nr].phys = cmd.out_phys;
		bench->answer[nr++].length = cmd.length;
	}
	return nr;
}

/* The errno of one call, with room for the worst case */
static int all_extents(struct bench *bench, size_t size, size_t *nr)
{
	struct iommu_ioas_noiommu_get_pa cmd = {
		.size = sizeof(cmd),
		.flags = IOMMU_NOIOMMU_GET_PA_EXTENTS,
		.ioas_id = bench->ioas,
		.iova = IOVA,
		.length = size,
		.nr_extents = size / PAGE,
		.extents = (uintptr_t)bench->answer,
	};
	int rc = ERRNO_OF(ioctl(bench->iommufd, IOMMU_IOAS_NOIOMMU_GET_PA, &cmd));

	*nr = cmd.nr_extents;
	return rc;
}

/* What programs do without GET_PA: one read, and a loop that finds runs */
static void find_runs(struct bench *bench, char *va, size_t size)
{
	struct iommu_noiommu_extent *runs = bench->runs;
	size_t i, nr = size / PAGE, nr_runs = 0;
	uint64_t phys, end = 0;

	if (pread(bench->pagemap, bench->entries, nr * 8,
		  (uintptr_t)va / PAGE * 8) != (ssize_t)nr * 8)
		err(KSFT_FAIL, "pagemap");
	for (i = 0; i < nr; i++) {
		phys = (bench->entries[i] & ((1ULL << 55) - 1)) * PAGE;
		if (!(bench->entries[i] >> 63) || !phys)
			errx(KSFT_FAIL, "pagemap doesn't tell");
		if (phys == end)
			runs[nr_runs - 1].length += PAGE;
		else
			runs[nr_runs++] = (struct iommu_noiommu_extent){ phys, PAGE };
		end = phys + PAGE;
	}
	bench->nr_runs = nr_runs;
}

/* An answer may be in more pieces than there are runs */
static void check_answer(struct bench *bench, size_t nr)
{
	struct iommu_noiommu_extent *answer = bench->answer, *run = bench->runs;
	uint64_t done = 0;
	size_t i;

	for (i = 0; i < nr; i++) {
		if (run == bench->runs + bench->nr_runs ||
		    answer[i].phys != run->phys + done ||
		    answer[i].length > run->length - done)
			errx(KSFT_FAIL, "physical address %zu is wrong", i);
		done += answer[i].length;
		if (done == run->length) {
			run++;
			done = 0;
		}
	}
	if (run != bench->runs + bench->nr_runs)
		errx(KSFT_FAIL, "physical addresses are missing");
}

/* Each operation once, on memory that is faulted in */
static void one_round(struct bench *bench, char *va, size_t size,
		      struct cost cost[NR_OPERATIONS])
{
	uint64_t start;
	size_t nr;
	int i;

	for (i = 0; i < NR_OPERATIONS; i++)
		cost[i].calls = 1;

	start = now();
	if (ioas_map(bench->iommufd, bench->ioas, va, size, IOVA, MAP_RW))
		err(KSFT_FAIL, "map");
	cost[MAP].ns = now() - start;

	start = now();
	find_runs(bench, va, size);
	cost[PAGEMAP].ns = now() - start;

	start = now();
	nr = get_pa_plain(bench, size);
	cost[GET_PA].ns = now() - start;
	cost[GET_PA].calls = nr;
	check_answer(bench, nr);

	if (bench->has_extents) {
		start = now();
		if (all_extents(bench, size, &nr))
			err(KSFT_FAIL, "GET_PA with extents");
		cost[EXTENTS].ns = now() - start;
		check_answer(bench, nr);
	}

	start = now();
	if (ioas_unmap(bench->iommufd, bench->ioas, IOVA, size))
		err(KSFT_FAIL, "unmap");
	cost[UNMAP].ns = now() - start;
}

static void measure(struct bench *bench, const char *layout, char *va, size_t size)
{
	struct cost best[NR_OPERATIONS], cost[NR_OPERATIONS];
	int i, round;

	one_round(bench, va, size, cost);
	one_round(bench, va, size, best);
	for (round = 1; round < REPEAT; round++) {
		one_round(bench, va, size, cost);
		for (i = 0; i < NR_OPERATIONS; i++)
			if (cost[i].ns < best[i].ns)
				best[i] = cost[i];
	}
	for (i = 0; i < NR_OPERATIONS; i++) {
		printf("%s,%zu,%zu,%s,", layout, size, bench->nr_runs, names[i]);
		if (i == EXTENTS && !bench->has_extents)
			printf("-,-\n");
		else
			printf("%zu,%llu\n", best[i].calls,
			       (unsigned long long)best[i].ns);
	}
	fflush(stdout);
}

/*
 * Memory by kind, or NULL
 */
static char *hugetlb(size_t size, size_t page)
{
	return anon(size < page ? page : size, MAP_HUGETLB | MAP_POPULATE |
		    __builtin_ctzl(page) << MAP_HUGE_SHIFT);
}

static char *hugetlb_2m(size_t size)
{
	char text[32];

	snprintf(text, sizeof(text), "%zu", size / HUGE_PAGE);
	write_file(NR_HUGE, text);
	return hugetlb(size, HUGE_PAGE);
}

static char *hugetlb_1g(size_t size)
{
	return hugetlb(size, GIGANTIC_PAGE);
}

static char *thp(size_t size)
{
	uintptr_t va = (uintptr_t)anon(size + HUGE_PAGE, 0);
	size_t i;

	va = (va + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
	madvise((char *)va, size, MADV_HUGEPAGE);
	for (i = 0; i < size; i += PAGE)
		((char *)va)[i] = 1;
	return (char *)va;
}

static char *scattered(size_t size)
{
	char *va = anon(size, 0);

	touch_scattered(va, size);
	return va;
}

static const struct layout {
	const char *name;
	char *(*make)(size_t size);
	size_t page;			/* contiguous, and no more of it if PAGE */
	bool small_entries;		/* the page table holds it by PAGE */
} layouts[] = {
	{ "hugetlb-2M", hugetlb_2m, HUGE_PAGE },
	{ "contiguous-4K", hugetlb_2m, HUGE_PAGE, true },
	{ "thp-2M", thp, HUGE_PAGE },
	{ "scattered-4K", scattered, PAGE },
	/* Slices of one page: the size doubles, and stays one entry */
	{ "hugetlb-1G", hugetlb_1g, GIGANTIC_PAGE },
};

/* Is the memory what the layout's name says? */
static bool fits(struct bench *bench, const struct layout *layout, size_t size)
{
	size_t nr = (size + layout->page - 1) / layout->page;

	if (layout->page == PAGE)
		return bench->nr_runs == nr;
	return bench->nr_runs <= nr;
}

static void *array(size_t nr, size_t size)
{
	/* Faulted in, so as not to be timed */
	return anon(nr * size, MAP_POPULATE);
}

static void set_up(struct bench *bench, const char *bdf, const struct layout *layout)
{
	uint32_t dev_id, pt_id;
	size_t nr;

	bench->iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	bench->device = cdev_open(bdf);
	bench->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (bench->iommufd < 0 || bench->device < 0 || bench->pagemap < 0)
		err(KSFT_FAIL, "iommufd, %s or pagemap", bdf);
	errno = bind_iommufd(bench->device, bench->iommufd, &dev_id);
	if (!errno)
		errno = ioas_alloc(bench->iommufd, &bench->ioas);
	if (!errno && layout->small_entries)
		errno = ioas_disable_huge_pages(bench->iommufd, bench->ioas);
	pt_id = bench->ioas;
	if (!errno)
		errno = attach_pt(bench->device, &pt_id);
	if (errno)
		err(KSFT_FAIL, "%s", bdf);

	nr = bench->size / PAGE;
	bench->entries = array(nr, sizeof(*bench->entries));
	bench->runs = array(nr, sizeof(*bench->runs));
	bench->answer = array(nr, sizeof(*bench->answer));
}

static bool probe_extents(struct bench *bench, char *va)
{
	size_t nr;
	int rc;

	if (ioas_map(bench->iommufd, bench->ioas, va, PAGE, IOVA, MAP_RW))
		err(KSFT_FAIL, "map");
	rc = all_extents(bench, PAGE, &nr);
	if (rc && rc != E2BIG && rc != EOPNOTSUPP)
		errx(KSFT_FAIL, "GET_PA with extents: %s", strerror(rc));
	if (ioas_unmap(bench->iommufd, bench->ioas, IOVA, PAGE))
		err(KSFT_FAIL, "unmap");
	return !rc;
}

static int measure_layout(struct bench *bench, const char *bdf,
			  const struct layout *layout)
{
	size_t size;
	char *va;

	set_up(bench, bdf, layout);
	va = layout->make(bench->size);
	if (!va) {
		fprintf(stderr, "%s: left out, there is no such memory\n", layout->name);
		return KSFT_SKIP;
	}
	find_runs(bench, va, bench->size);
	if (!fits(bench, layout, bench->size)) {
		fprintf(stderr, "%s: left out, as it is in %zu runs\n", layout->name,
			bench->nr_runs);
		return KSFT_SKIP;
	}
	bench->has_extents = probe_extents(bench, va);
	for (size = HUGE_PAGE; size <= bench->size; size *= 2)
		measure(bench, layout->name, va, size);
	return KSFT_PASS;
}

int main(int argc, char **argv)
{
	struct bench bench = { .size = (argc > 2 ? atoi(argv[2]) : 1024) * MIB };
	char huge_pages[32] = "";
	int status, rc = KSFT_PASS;
	unsigned int i;
	pid_t pid;

	if (argc < 2 || bench.size < HUGE_PAGE || bench.size > GIGANTIC_PAGE)
		errx(KSFT_FAIL, "usage: %s BDF [MIB, 2 to 1024]", argv[0]);
	check_clock();
	if (noiommu_switch(true) || ensure_bound(argv[1]))
		errx(KSFT_FAIL, "%s can't be bound", argv[1]);
	read_file(NR_HUGE, huge_pages, sizeof(huge_pages));

	/* Each in a process of its own, whose end gives the memory back */
	for (i = 0; i < ARRAY_SIZE(layouts); i++) {
		pid = fork();
		if (pid < 0)
			err(KSFT_FAIL, "fork");
		if (!pid)
			exit(measure_layout(&bench, argv[1], &layouts[i]));
		if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
			errx(KSFT_FAIL, "%s died", layouts[i].name);
		write_file(NR_HUGE, huge_pages);
		if (WEXITSTATUS(status) != KSFT_PASS)
			rc = KSFT_FAIL;
	}
	return rc;
}
