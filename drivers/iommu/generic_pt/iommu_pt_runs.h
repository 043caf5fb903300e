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
	size_t taken;
	unsigned int tables_left;
};

static bool pass_on_run(struct pt_read_runs_args *runs)
{
	if (!runs->len)
		return true;
	if (!runs->fn(runs->arg, runs->va, runs->oa, runs->len))
		return false;
	runs->taken += runs->len;
	return true;
}

static __always_inline int __do_read_runs(struct pt_range *range, void *arg,
					  unsigned int level,
					  struct pt_table_p *table,
					  pt_level_fn_t descend_fn)
{
	struct pt_state pts = pt_init(range, level, table);
	struct pt_read_runs_args *runs = arg;
	int ret;

	for_each_pt_level_entry(&pts) {
		pt_vaddr_t va = range->va;
		pt_vaddr_t last;
		pt_oaddr_t oa;

		if (pts.type == PT_ENTRY_TABLE) {
			if (!runs->tables_left)
				return -EAGAIN;
			runs->tables_left--;
			ret = pt_descend(&pts, arg, descend_fn);
			if (ret)
				return ret;
			continue;
		}
		if (pts.type != PT_ENTRY_OA)
			return -ENOENT;

		/* The range may start and end inside of an entry */
		oa = pt_entry_oa_exact(&pts);
		last = min(log2_set_mod_max(va, pt_entry_oa_lg2sz(&pts)),
			   range->last_va);
		if (!runs->len || oa != runs->oa + runs->len) {
			if (!pass_on_run(runs)) {
				runs->len = 0;
				return -ECANCELED;
			}
			runs->va = va;
			runs->oa = oa;
			runs->len = 0;
		}
		runs->len += last - va + 1;
	}
	return 0;
}
PT_MAKE_LEVELS(__read_runs, __do_read_runs);

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

static size_t NS(read_runs)(struct pt_iommu *iommu_table, dma_addr_t iova,
			    dma_addr_t len, unsigned int max_tables,
			    pt_iommu_run_fn_t fn, void *arg)
{
	struct pt_read_runs_args runs = {
		.fn = fn,
		.arg = arg,
		.tables_left = max_tables,
	};
	struct pt_range range;

	if (make_range_no_check(common_from_iommu(iommu_table), &range, iova,
				len) ||
	    clamp_range_to_table(&range))
		return 0;

	/* Why the walk ended makes no difference to the run before */
	pt_walk_range(&range, __read_runs, &runs);
	pass_on_run(&runs);
	return runs.taken;
}

#endif
