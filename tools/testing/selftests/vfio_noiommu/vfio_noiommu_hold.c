// SPDX-License-Identifier: GPL-2.0-only
/*
 * vfio_noiommu_hold PCI-ADDRESS: binds and attaches the device, with a page mapped,
 * says so, and holds it until stdin ends. For tests that are shell scripts.
 */
#include "kselftest.h"
#include "vfio_noiommu_util.h"

#define IOVA 0x10000000UL

int main(int argc, char **argv)
{
	int device, iommufd;
	uint32_t dev_id, ioas, pt_id;
	uint64_t length = 1, phys;
	char *va = anon(PAGE, 0);
	char byte;

	if (argc != 2)
		return KSFT_FAIL;
	iommufd = open("/dev/iommu", O_RDWR);
	device = cdev_open(argv[1]);
	if (iommufd < 0 || device < 0 || bind_iommufd(device, iommufd, &dev_id) ||
	    ioas_alloc(iommufd, &ioas))
		return KSFT_FAIL;
	pt_id = ioas;
	if (attach_pt(device, &pt_id) ||
	    ioas_map(iommufd, ioas, va, PAGE, IOVA, MAP_RW) ||
	    get_pa(iommufd, ioas, IOVA, &length, &phys) || phys != pagemap_pa(va))
		return KSFT_FAIL;
	puts("held");
	fflush(stdout);
	while (read(0, &byte, 1) == 1)
		;
	return KSFT_PASS;
}
