// SPDX-License-Identifier: GPL-2.0-only
/* The span iterator, which a kernel without iommufd is built without */
#define __DISABLE_EXPORTS
#include "../../../lib/interval_tree.c"
