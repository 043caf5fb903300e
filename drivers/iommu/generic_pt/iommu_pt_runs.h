/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Read back what a page table maps, as runs of contiguous output address.
 * Included by iommu_pt.h, which is compiled for every page table format.
 */
#ifndef __GENERIC_PT_IOMMU_PT_RUNS_H
#define __GENERIC_PT_IOMMU_PT_RUNS_H

struct pt_read_runs_args {
	pt_iommu_run_fn_t fn;
	void *arg;
	/* The run that was found and not passed on yet, none if len is 0 */
	pt_vaddr_t va;
	pt_oaddr_t oa;
	pt_vaddr_t len;
	unsigned int tables_left;
};

static bool pass_on_run(const struct pt_read_runs_args *runs, bool ended)
{
	return !runs->len ||
	       runs->fn(runs->arg, runs->va, runs->oa, runs->len, ended);
}

static int __read_leaf_runs(struct pt_range *range, void *arg,
			    unsigned int level, struct pt_table_p *table);
static int __read_runs(struct pt_range *range, void *arg, unsigned int level,
		       struct pt_table_p *table);

/*
 * There are no holes to skip, so that range->va can follow the walk by adding
 * up what was found, and index and end of a table are made from it.
 */
static __always_inline int __do_read_runs(struct pt_range *range, void *arg,
					  unsigned int level,
					  struct pt_table_p *table)
{
	struct pt_state pts = pt_init(range, level, table);
	struct pt_read_runs_args *runs = arg;
	int ret;

	pts.index = pt_range_to_index(&pts);
	do {
		unsigned int oasz_lg2;
		pt_vaddr_t len;
		pt_oaddr_t oa;

		pts.type = pt_load_entry_raw(&pts);
		if (pts.type == PT_ENTRY_TABLE) {
			if (!runs->tables_left)
				return -EAGAIN;
			runs->tables_left--;
			pts.table_lower = pt_table_ptr(&pts);
			ret = pt_descend(&pts, arg, level == 1 ?
							    __read_leaf_runs :
							    __read_runs);
			if (ret)
				return ret;
			continue;
		}
		if (pts.type != PT_ENTRY_OA)
			return -ENOENT;

		/* The range may start and end inside of an entry */
		oasz_lg2 = pt_entry_oa_lg2sz(&pts);
		oa = _pt_entry_oa_fast(&pts) | log2_mod(range->va, oasz_lg2);
		len = min(log2_set_mod_max(range->va, oasz_lg2),
			  range->last_va) - range->va + 1;
		if (!runs->len || oa != runs->oa + runs->len) {
			if (!pass_on_run(runs, true))
				return -ECANCELED;
			runs->va = range->va;
			runs->oa = oa;
			runs->len = 0;
		}
		runs->len += len;
		range->va += len;
		if (range->va - 1 == range->last_va)
			return -ENODATA;
		/* The top's does not come back to 0, its end ends the range */
	} while ((pts.index = pt_range_to_index(&pts)) != 0);
	return 0;
}

/*
 * Almost all entries are in level 0. It gets a loop of its own, without calls
 * even where the compiler optimizes for size.
 */
static __flatten int __read_leaf_runs(struct pt_range *range, void *arg,
				      unsigned int level,
				      struct pt_table_p *table)
{
	return __do_read_runs(range, arg, 0, table);
}

static int __read_runs(struct pt_range *range, void *arg, unsigned int level,
		       struct pt_table_p *table)
{
	return __do_read_runs(range, arg, level, table);
}

/* Cut off what is behind the last VA that the table maps now */
static int clamp_range_to_table(struct pt_range *range)
{
	unsigned int vasz_lg2 = range->max_vasz_lg2;

	/* Each half is a stretch of VA of its own */
	if (pt_feature(range->common, PT_FEAT_SIGN_EXTEND))
		vasz_lg2--;
	range->last_va = min(range->last_va,
			     fvalog2_set_mod_max(range->va, vasz_lg2));
	return pt_check_range(range);
}

static int NS(read_runs)(struct pt_iommu *iommu_table, dma_addr_t iova,
			 dma_addr_t last_iova, unsigned int max_tables,
			 pt_iommu_run_fn_t fn, void *arg)
{
	struct pt_range range =
		pt_make_range(common_from_iommu(iommu_table), iova,
			      min_t(u64, last_iova, PT_VADDR_MAX));
	struct pt_read_runs_args runs = {
		.fn = fn,
		.arg = arg,
		.tables_left = max_tables,
	};
	int ret;

	if (range.va != iova || clamp_range_to_table(&range))
		return -ENOENT;

	ret = pt_walk_range(&range, __read_runs, &runs);
	if (ret == -ENODATA)
		ret = range.last_va == last_iova ? 0 : -ENOENT;
	if (ret == -ECANCELED || !pass_on_run(&runs, ret == -ENOENT))
		return -ECANCELED;
	return ret;
}

#endif
