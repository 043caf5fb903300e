// SPDX-License-Identifier: GPL-2.0-only
/*
 * Helpers of the fixtures of the tests of the user ABI
 */
#include "kselftest.h"
#include "vfio_noiommu_fixture.h"

/* Of what the kernel logs from here on, or -1 */
int log_open(void)
{
	int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);

	if (fd >= 0)
		lseek(fd, 0, SEEK_END);
	return fd;
}

/* Has one of the records since log_open(), or since the last one found, this text? */
bool log_has(int fd, const char *text)
{
	char record[8192];
	ssize_t len;

	while ((len = read(fd, record, sizeof(record) - 1)) > 0 || errno == EPIPE) {
		record[len > 0 ? len : 0] = 0;
		if (strstr(record, text))
			return true;
	}
	return false;
}

/* Where a region is in the device file, or -1, and how large */
off_t region_offset(int device, unsigned int index, size_t *size)
{
	struct vfio_region_info region = {
		.argsz = sizeof(region),
		.index = index,
	};

	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region))
		return -1;
	if (size)
		*size = region.size;
	return region.offset;
}

/* A device without an IOMMU, and one behind an IOMMU */
bool find_one_of_each(char bdf[2][256])
{
	static const char * const ids[3][2] = {
		{ "0x1b36", "0x0010" }, { "0x1234", "0x11e8" }, { "0x8086", "0x10d3" },
	};
	char found[256];
	int i;

	bdf[0][0] = 0;
	bdf[1][0] = 0;
	for (i = 0; i < 3; i++)
		if (find_device(ids[i][0], ids[i][1], found, sizeof(found)))
			snprintf(bdf[device_has_iommu(found)], sizeof(found), "%s",
				 found);
	return bdf[0][0] && bdf[1][0];
}
