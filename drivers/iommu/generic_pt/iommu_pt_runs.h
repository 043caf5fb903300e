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
	/* Run found so far and not passed on yet, none if len is 0 */
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

/*
 * A hole ends the walk, so range->va advances by the length of each entry, and
 * the index is computed from it. for_each_pt_level_entry() computes the VA from
 * the index instead, for which each entry costs a quarter more.
 */
static __always_inline int __do_read_runs(struct pt_range *range, void *arg,
					  unsigned int level,
					  struct pt_table_p *table,
					  pt_level_fn_t descend_fn)
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
			ret = pt_descend(&pts, arg, descend_fn);
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
		/* The index wraps to 0 at the end of all tables but the top one */
	} while ((pts.index = pt_range_to_index(&pts)) != 0);
	return 0;
}

PT_MAKE_LEVELS(__read_runs, __do_read_runs);

/* Clamp the range to what the current top level can map */
static int clamp_range_to_table(struct pt_range *range)
{
	unsigned int vasz_lg2 = range->max_vasz_lg2;

	/* A range can't extend from the lower half into the upper one */
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
