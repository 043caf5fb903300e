// SPDX-License-Identifier: GPL-2.0-only
#include <dkms_build.h>

const char dkms_iommufd;
EXPORT_SYMBOL_NS_GPL(dkms_iommufd, "IOMMUFD");
