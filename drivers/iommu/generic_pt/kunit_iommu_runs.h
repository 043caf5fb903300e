/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Test read_runs() of every page table format. Included by kunit_iommu_pt.h.
 */
#ifndef __GENERIC_PT_KUNIT_IOMMU_RUNS_H
#define __GENERIC_PT_KUNIT_IOMMU_RUNS_H

struct kunit_run {
	pt_vaddr_t va;
	pt_oaddr_t oa;
	pt_vaddr_t len;
	bool ended;
};

struct kunit_runs {
	unsigned int nr;
	/* Refuse another one, or stop after the last that fits */
	unsigned int room;
	bool stop_early;
	unsigned int stopped;
	pt_vaddr_t total;
	struct kunit_run run[8];
};

static bool kunit_add_run(void *arg, dma_addr_t iova, phys_addr_t paddr,
			  u64 len, bool ended)
{
	struct kunit_runs *runs = arg;

	if (runs->nr == runs->room) {
		runs->stopped++;
		return false;
	}
	runs->run[runs->nr++] = (struct kunit_run){ iova, paddr, len, ended };
	runs->total += len;
	if (!runs->stop_early || runs->nr != runs->room || !ended)
		return true;
	runs->stopped++;
	return false;
}

static int __read_runs(struct kunit *test, struct kunit_runs *runs,
		       pt_vaddr_t va, pt_vaddr_t len, unsigned int max_tables)
{
	struct kunit_iommu_priv *priv = test->priv;

	return priv->iommu->ops->read_runs(priv->iommu, va, va + len - 1,
					   max_tables, kunit_add_run, runs);
}

/* How many bytes from va on are in runs, of which the first ones are in runs */
static size_t read_runs(struct kunit *test, struct kunit_runs *runs,
			pt_vaddr_t va, pt_vaddr_t len)
{
	int ret;

	*runs = (struct kunit_runs){ .room = ARRAY_SIZE(runs->run) };
	ret = __read_runs(test, runs, va, len, UINT_MAX);
	KUNIT_ASSERT_EQ(test, ret, runs->stopped ? -ECANCELED :
				   runs->total == len ? 0 : -ENOENT);
	/* It had the last word */
	KUNIT_ASSERT_LE(test, runs->stopped, 1);
	/* All but the last one, and that one before a hole */
	if (runs->nr && !runs->stopped)
		KUNIT_ASSERT_EQ(test, runs->run[runs->nr - 1].ended,
				ret == -ENOENT);
	return runs->total;
}

static void check_run(struct kunit *test, const struct kunit_runs *runs,
		      unsigned int nr, pt_vaddr_t va, pt_oaddr_t oa,
		      pt_vaddr_t len)
{
	KUNIT_ASSERT_LT(test, nr, runs->nr);
	KUNIT_ASSERT_EQ(test, runs->run[nr].va, va);
	KUNIT_ASSERT_EQ(test, runs->run[nr].oa, oa);
	KUNIT_ASSERT_EQ(test, runs->run[nr].len, len);
	if (nr + 1 < runs->nr)
		KUNIT_ASSERT_TRUE(test, runs->run[nr].ended);
}

/* [va, va + len) is one run, and that is all there is up to va + ask */
static void check_one_run(struct kunit *test, pt_vaddr_t va, pt_oaddr_t oa,
			  pt_vaddr_t len, pt_vaddr_t ask)
{
	struct kunit_runs runs;

	KUNIT_ASSERT_EQ(test, read_runs(test, &runs, va, ask), len);
	KUNIT_ASSERT_EQ(test, runs.nr, 1);
	check_run(test, &runs, 0, va, oa, len);
}

/* A VA that the smallest table maps, with something on either side */
static pt_vaddr_t runs_test_va(struct kunit *test)
{
	struct kunit_iommu_priv *priv = test->priv;

	return pt_top_range(priv->common).va + priv->smallest_pgsz * 256;
}

/* An entry of each size, which most formats make of several items for some */
static void test_runs_sizes(struct kunit *test)
{
	struct kunit_iommu_priv *priv = test->priv;
	pt_vaddr_t va = runs_test_va(test);
	unsigned int pgsz_lg2;

	for (pgsz_lg2 = 0; pgsz_lg2 != PT_VADDR_MAX_LG2; pgsz_lg2++) {
		pt_oaddr_t oa = log2_set_mod(priv->test_oa, 0, pgsz_lg2);
		pt_vaddr_t len = log2_to_int(pgsz_lg2);
		pt_vaddr_t middle = len / 2 + 1;

		if (!(priv->safe_pgsize_bitmap & len))
			continue;

		va = ALIGN(va, len);
		do_map(test, va, oa, len);
		check_one_run(test, va, oa, len, len);
		/* The range ends, starts, or does both inside of the entry */
		check_one_run(test, va, oa, 1, 1);
		check_one_run(test, va, oa, len - 1, len - 1);
		check_one_run(test, va + 1, oa + 1, len - 1, len - 1);
		check_one_run(test, va + middle, oa + middle, len - middle,
			      len - middle);
		check_one_run(test, va + middle, oa + middle, 1, 1);
		check_one_run(test, va + len - 1, oa + len - 1, 1, 1);
		do_unmap(test, va, len);
		va += len;
	}
}

/* Every size that alignment calls for, up and down again, is one run */
static void test_runs_merge(struct kunit *test)
{
	struct kunit_iommu_priv *priv = test->priv;
	pt_vaddr_t sizes = priv->safe_pgsize_bitmap % SZ_16G;
	pt_vaddr_t largest = log2_to_int(vafls(sizes) - 1);
	pt_vaddr_t pgsz = priv->smallest_pgsz;
	pt_vaddr_t va = ALIGN(runs_test_va(test), largest);
	pt_oaddr_t oa = log2_set_mod(priv->test_oa, 0, vafls(sizes) - 1);
	pt_vaddr_t len = largest * 2 - pgsz * 2;
	struct kunit_runs runs;

	if (largest == pgsz || IS_32BIT)
		kunit_skip(test, "Test needs two page sizes and 64 bits");

	do_map(test, va + pgsz, oa + pgsz, len);
	KUNIT_ASSERT_GT(test, count_valids(test), 2);
	check_one_run(test, va + pgsz, oa + pgsz, len, len);
	check_one_run(test, va + pgsz + 5, oa + pgsz + 5, len - 5 - 7,
		      len - 5 - 7);

	/* Contiguous in VA alone, and on the other side in nothing */
	do_map(test, va, oa + pgsz, pgsz);
	KUNIT_ASSERT_EQ(test, read_runs(test, &runs, va, pgsz * 3), pgsz * 3);
	KUNIT_ASSERT_EQ(test, runs.nr, 2);
	check_run(test, &runs, 0, va, oa + pgsz, pgsz);
	check_run(test, &runs, 1, va + pgsz, oa + pgsz, pgsz * 2);
	KUNIT_ASSERT_EQ(test, read_runs(test, &runs, va, largest * 2),
			pgsz + len);
	check_run(test, &runs, 1, va + pgsz, oa + pgsz, len);
}

/* A hole ends the walk, be it an entry, a table or most of the table */
static void test_runs_holes(struct kunit *test)
{
	struct kunit_iommu_priv *priv = test->priv;
	pt_vaddr_t pgsz = priv->smallest_pgsz;
	pt_vaddr_t va = runs_test_va(test);
	pt_oaddr_t oa = log2_set_mod(priv->test_oa, 0, 40);
	struct kunit_runs runs;

	/* Nothing at all */
	KUNIT_ASSERT_EQ(test, read_runs(test, &runs, va, pgsz), 0);
	KUNIT_ASSERT_EQ(test, runs.nr, 0);

	do_map(test, va, oa, pgsz * 2);
	do_map(test, va + pgsz * 3, oa + pgsz * 3, pgsz);
	check_one_run(test, va, oa, pgsz * 2, SZ_1G);
	check_one_run(test, va + pgsz * 2 - 1, oa + pgsz * 2 - 1, 1, pgsz * 8);
	check_one_run(test, va + pgsz * 3, oa + pgsz * 3, pgsz, SZ_1G);
	KUNIT_ASSERT_EQ(test, read_runs(test, &runs, va - 1, pgsz), 0);
	KUNIT_ASSERT_EQ(test, read_runs(test, &runs, va + pgsz * 2, pgsz * 2),
			0);
	KUNIT_ASSERT_EQ(test, read_runs(test, &runs, va + SZ_512M, pgsz), 0);
	KUNIT_ASSERT_EQ(test, runs.nr, 0);

	/* What was mapped leaves an empty table behind */
	do_unmap(test, va, pgsz * 2);
	KUNIT_ASSERT_EQ(test, read_runs(test, &runs, va, pgsz * 4), 0);
}

/* The sink has the last word */
static void test_runs_stop(struct kunit *test)
{
	struct kunit_iommu_priv *priv = test->priv;
	pt_vaddr_t pgsz = priv->smallest_pgsz;
	pt_vaddr_t va = runs_test_va(test);
	pt_oaddr_t oa = log2_set_mod(priv->test_oa, 0, 40);
	struct kunit_runs runs;
	unsigned int i;

	/* Backwards, so that no neighbours are contiguous */
	for (i = 0; i != 6; i++)
		do_map(test, va + pgsz * i, oa + pgsz * (6 - i), pgsz);
	for (i = 0; i != 12; i++) {
		runs = (struct kunit_runs){
			.room = i / 2,
			.stop_early = i % 2,
		};
		KUNIT_ASSERT_EQ(test, __read_runs(test, &runs, va, pgsz * 6,
						  UINT_MAX), -ECANCELED);
		KUNIT_ASSERT_EQ(test, runs.stopped, 1);
		KUNIT_ASSERT_EQ(test, runs.nr, i / 2);
		KUNIT_ASSERT_EQ(test, runs.total, pgsz * (i / 2));
		if (runs.nr)
			check_run(test, &runs, runs.nr - 1,
				  va + pgsz * (runs.nr - 1),
				  oa + pgsz * (7 - runs.nr), pgsz);
	}
	KUNIT_ASSERT_EQ(test, read_runs(test, &runs, va, pgsz * 6), pgsz * 6);
	KUNIT_ASSERT_EQ(test, runs.nr, 6);
}

/* With a limit on tables the walk comes in pieces, and misses nothing */
static void test_runs_max_tables(struct kunit *test)
{
	struct kunit_iommu_priv *priv = test->priv;
	struct pt_range top = pt_top_range(priv->common);
	pt_vaddr_t pgsz = priv->smallest_pgsz;
	unsigned int levels = top.top_level + 1;
	pt_oaddr_t oa = log2_set_mod(priv->test_oa, 0, 40);
	/* As many smallest pages as some tables hold, none contiguous */
	pt_vaddr_t len = pgsz * 512 * 8;
	pt_vaddr_t va = ALIGN(runs_test_va(test), SZ_1G);
	unsigned int pieces = 0;
	struct kunit_runs runs;
	pt_vaddr_t done = 0;

	if (priv->safe_pgsize_bitmap % SZ_1G == pgsz || IS_32BIT)
		kunit_skip(test, "Test needs two page sizes and 64 bits");
	priv->domain.pgsize_bitmap = pgsz;
	do_map(test, va + pgsz, oa, len - pgsz);

	check_one_run(test, va + pgsz, oa, len - pgsz, len);
	while (done != len - pgsz) {
		int ret;

		/* Room for the run, which is no reason to stop where it goes on */
		runs = (struct kunit_runs){ .room = 1, .stop_early = true };
		ret = __read_runs(test, &runs, va + pgsz + done,
				  len - pgsz - done, levels + pieces);
		check_run(test, &runs, 0, va + pgsz + done, oa + done,
			  runs.total);
		KUNIT_ASSERT_FALSE(test, runs.run[0].ended);
		/* No room is one, at the end of a piece too */
		runs.nr = 0;
		runs.room = 0;
		KUNIT_ASSERT_EQ(test, __read_runs(test, &runs,
						  va + pgsz + done,
						  len - pgsz - done, levels),
				-ECANCELED);
		done += runs.total;
		KUNIT_ASSERT_EQ(test, ret, done == len - pgsz ? 0 : -EAGAIN);
		pieces++;
	}
	KUNIT_ASSERT_GT(test, pieces, 1);
}

/* A table that grows keeps what it has, and what it can't map is a hole */
static void test_runs_increase_level(struct kunit *test)
{
	struct kunit_iommu_priv *priv = test->priv;
	struct pt_common *common = priv->common;
	pt_oaddr_t oa = log2_set_mod(priv->test_oa, 0, 40);
	pt_vaddr_t pgsz = priv->smallest_pgsz;
	struct kunit_runs runs;

	if (!pt_feature(common, PT_FEAT_DYNAMIC_TOP))
		kunit_skip(test, "PT_FEAT_DYNAMIC_TOP not set for this format");
	if (IS_32BIT)
		kunit_skip(test, "Unable to test on 32bit");
	if (common->max_vasz_lg2 <= pt_top_range(common).max_vasz_lg2)
		kunit_skip(test,
			   "max_vasz_lg2 fits in starting level, no growth possible");

	while (common->max_vasz_lg2 != pt_top_range(common).max_vasz_lg2) {
		struct pt_range top = pt_top_range(common);
		pt_vaddr_t next = top.last_va + 1;
		pt_vaddr_t va = next - pgsz;

		if (top.va)
			kunit_skip(test, "Grows downwards");
		do_map(test, va, oa, pgsz);
		KUNIT_ASSERT_EQ(test, pt_top_range(common).top_level,
				top.top_level);
		check_one_run(test, va, oa, pgsz, pgsz * 2);
		check_one_run(test, va, oa, pgsz, PT_VADDR_MAX - va);
		KUNIT_ASSERT_EQ(test, read_runs(test, &runs, next, pgsz), 0);
		KUNIT_ASSERT_EQ(test, read_runs(test, &runs, PT_VADDR_MAX, 1),
				0);

		do_map(test, next, oa + pgsz, pgsz);
		KUNIT_ASSERT_EQ(test, pt_top_range(common).top_level,
				top.top_level + 1);
		check_one_run(test, va, oa, pgsz * 2, pgsz * 3);
	}
}

static void check_runs_at_end(struct kunit *test, pt_vaddr_t last_va)
{
	struct kunit_iommu_priv *priv = test->priv;
	pt_oaddr_t oa = log2_set_mod(priv->test_oa, 0, 40);
	pt_vaddr_t pgsz = priv->smallest_pgsz;
	pt_vaddr_t va = last_va - pgsz * 3 + 1;
	struct kunit_runs runs;

	do_map(test, va, oa, pgsz);
	do_map(test, va + pgsz, oa + SZ_1G, pgsz * 2);
	KUNIT_ASSERT_EQ(test, read_runs(test, &runs, va, pgsz * 3), pgsz * 3);
	KUNIT_ASSERT_EQ(test, runs.nr, 2);
	check_run(test, &runs, 0, va, oa, pgsz);
	check_run(test, &runs, 1, va + pgsz, oa + SZ_1G, pgsz * 2);
	check_one_run(test, last_va, oa + SZ_1G + pgsz * 2 - 1, 1, 1);

	/* Behind the table, if there is anything */
	if (last_va == PT_VADDR_MAX)
		return;
	KUNIT_ASSERT_EQ(test, read_runs(test, &runs, va, pgsz * 4), pgsz * 3);
	KUNIT_ASSERT_EQ(test, runs.nr, 2);
	KUNIT_ASSERT_EQ(test, read_runs(test, &runs, last_va + 1, pgsz), 0);
}

static void test_runs_end_of_va(struct kunit *test)
{
	struct kunit_iommu_priv *priv = test->priv;
	struct pt_common *common = priv->common;

	if (IS_32BIT)
		kunit_skip(test, "Unable to test on 32bit");

	/*
	 * Of a half, if it has halves. In the table the upper one begins where
	 * the lower one ends.
	 */
	if (pt_feature(common, PT_FEAT_SIGN_EXTEND))
		do_map(test, fvalog2_set_mod(PT_VADDR_MAX, 0,
					     common->max_vasz_lg2 - 1),
		       log2_set_mod(priv->test_oa, 0, 40) + SZ_1G +
			       priv->smallest_pgsz * 2,
		       priv->smallest_pgsz);
	check_runs_at_end(test, pt_feature(common, PT_FEAT_DYNAMIC_TOP) ?
			  priv->domain.geometry.aperture_end :
			  pt_top_range(common).last_va);
	if (pt_feature(common, PT_FEAT_SIGN_EXTEND))
		check_runs_at_end(test, pt_upper_range(common).last_va);
}

/* What the runs say against one lookup for each smallest page */
static void test_runs_random(struct kunit *test)
{
	struct kunit_iommu_priv *priv = test->priv;
	pt_vaddr_t pgsz = priv->smallest_pgsz;
	pt_vaddr_t va = ALIGN(runs_test_va(test), SZ_1G);
	pt_vaddr_t span = pgsz * 2048;
	unsigned int iter;

	for (iter = 0; iter != 200; iter++) {
		pt_vaddr_t offset = pgsz * get_random_u32_below(2048);
		pt_vaddr_t len = pgsz * get_random_u32_inclusive(1, 1024);
		pt_oaddr_t oa = ALIGN(oalog2_mod(get_random_u64(), 40), pgsz);
		struct kunit_runs runs;
		unsigned int i;
		size_t taken;

		/* As often as not as aligned as large entries need it */
		if (get_random_u32_below(2))
			oa = log2_set_mod(oa, log2_mod(offset, 30), 30);
		len = min(len, span - offset);
		/* Some of it goes, in full entries, as far as nothing lacks */
		if (iter % 2)
			iommu_unmap(&priv->domain,
				    va + pgsz * get_random_u32_below(2048),
				    pgsz * get_random_u32_inclusive(1, 64));
		/* Where it is taken it fails, and what it mapped is undone */
		iommu_map(&priv->domain, va + offset, oa, len,
			  IOMMU_READ | IOMMU_WRITE, GFP_KERNEL);

		offset = get_random_u32_below(span);
		len = get_random_u32_inclusive(1, span - offset);
		taken = read_runs(test, &runs, va + offset, len);
		KUNIT_ASSERT_LE(test, taken, len);
		for (i = 0; i != runs.nr; i++) {
			struct kunit_run *run = &runs.run[i];
			pt_vaddr_t at;

			KUNIT_ASSERT_EQ(test, run->va, va + offset);
			for (at = 0; at < run->len; at += pgsz)
				KUNIT_ASSERT_EQ(test,
						iommu_iova_to_phys(&priv->domain,
								   run->va + at),
						(phys_addr_t)run->oa + at);
			/* It could not be longer */
			offset += run->len;
			taken -= run->len;
			len -= run->len;
			if (len)
				KUNIT_ASSERT_NE(test,
						iommu_iova_to_phys(&priv->domain,
								   va + offset),
						(phys_addr_t)run->oa + run->len);
		}
		KUNIT_ASSERT_EQ(test, taken, 0);
		if (len && i != ARRAY_SIZE(runs.run))
			KUNIT_ASSERT_EQ(test,
					iommu_iova_to_phys(&priv->domain,
							   va + offset),
					0);
	}
}

#endif
