// SPDX-License-Identifier: GPL-2.0-only
/*
 * The page table of iommufd_noiommu, in iommufd itself: a stock kernel's AMDV1, where
 * it has one, can't read back runs.
 */
#define __DISABLE_EXPORTS
#include "../generic_pt/fmt/iommu_amdv1.c"
