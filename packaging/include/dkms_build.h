/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Modules of two builds must not mix, and without MODVERSIONS the kernel would let them.
 * A symbol whose name only this build has keeps its modules from loading on others, and
 * the namespace of vfio's symbols those of others from loading on it. What the names are
 * defined to in dkms_build_id.h says what is wrong in "Unknown symbol".
 */
#ifndef DKMS_BUILD_H
#define DKMS_BUILD_H

#include <linux/module.h>
#include <dkms_build_id.h>

extern const char dkms_iommufd;
extern const char dkms_vfio;

#endif
