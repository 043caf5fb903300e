// SPDX-License-Identifier: GPL-2.0-only
/* The DMA layer's answer to which devices can use physical addresses */
#define __DISABLE_EXPORTS
#include "iommufd_private.h"
#include "../../../kernel/dma/phys.c"
