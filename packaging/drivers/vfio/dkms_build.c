// SPDX-License-Identifier: GPL-2.0-only
#include <dkms_build.h>

const char dkms_vfio;
EXPORT_SYMBOL_GPL(dkms_vfio);

static const char *const needs_iommufd __used = &dkms_iommufd;
