/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Devices without an IOMMU, their nodes and their memory, for the tests
 */
#ifndef __VFIO_NOIOMMU_UTIL_H
#define __VFIO_NOIOMMU_UTIL_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/capability.h>
#include <linux/iommufd.h>
#include <linux/vfio.h>

#define VFIO_SWITCH "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"

/* 0 or the errno of an ioctl, so that tests can compare with a table */
#define ERRNO_OF(call) ((call) < 0 ? errno : 0)

static inline int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY), rc;

	if (fd < 0)
		return -errno;
	rc = write(fd, text, strlen(text)) < 0 ? -errno : 0;
	close(fd);
	return rc;
}

static inline int read_file(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY);
	ssize_t len;

	if (fd < 0)
		return -errno;
	len = read(fd, text, size - 1);
	close(fd);
	if (len < 0)
		return -EIO;
	text[len] = 0;
	while (len && text[len - 1] == '\n')
		text[--len] = 0;
	return 0;
}

/* The value behind "name " in a file of name and value pairs, or -1 */
static inline long long read_field(const char *path, const char *name)
{
	char line[256], *end;
	long long value = -1;
	FILE *file = fopen(path, "r");

	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file)) {
		if (strncmp(line, name, strlen(name)))
			continue;
		value = strtoll(line + strlen(name), &end, 0);
		if (end != line + strlen(name))
			break;
	}
	fclose(file);
	return value;
}

/* The first entry of a directory that starts with prefix */
static inline bool find_entry(const char *path, const char *prefix, char *name,
			      size_t size)
{
	struct dirent *entry;
	bool found = false;
	DIR *dir = opendir(path);

	if (!dir)
		return false;
	while (!found && (entry = readdir(dir))) {
		if (entry->d_name[0] == '.' ||
		    strncmp(entry->d_name, prefix, strlen(prefix)))
			continue;
		snprintf(name, size, "%s", entry->d_name);
		found = true;
	}
	closedir(dir);
	return found;
}

/* The PCI address of the first device of these IDs */
static inline bool find_device(const char *vendor, const char *device,
			       char *bdf, size_t size)
{
	struct dirent *entry;
	char path[600], text[32];
	bool found = false;
	DIR *dir = opendir("/sys/bus/pci/devices");

	while (dir && !found && (entry = readdir(dir))) {
		snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vendor",
			 entry->d_name);
		if (entry->d_name[0] == '.' ||
		    read_file(path, text, sizeof(text)) || strcmp(text, vendor))
			continue;
		snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/device",
			 entry->d_name);
		if (read_file(path, text, sizeof(text)) || strcmp(text, device))
			continue;
		snprintf(bdf, size, "%s", entry->d_name);
		found = true;
	}
	if (dir)
		closedir(dir);
	return found;
}

static inline int device_write(const char *bdf, const char *file,
			       const char *text)
{
	char path[600];

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", bdf, file);
	return write_file(path, text);
}

static inline void device_unbind(const char *bdf)
{
	device_write(bdf, "driver/unbind", bdf);
}

static inline int device_bind(const char *bdf)
{
	int rc = device_write(bdf, "driver_override", "vfio-pci");

	return rc ? rc : write_file("/sys/bus/pci/drivers/vfio-pci/bind", bdf);
}

/* Group noiommu makes a group up, and names it */
static inline bool device_has_iommu(const char *bdf)
{
	char path[600], name[32];

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu_group", bdf);
	if (access(path, F_OK))
		return false;
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu_group/name", bdf);
	return read_file(path, name, sizeof(name)) || strcmp(name, "vfio-noiommu");
}

static inline int noiommu_switch(bool on)
{
	return write_file(VFIO_SWITCH, on ? "Y" : "N");
}

/* Name of the device's cdev, as in vfio-dev/ and in /dev/vfio/devices */
static inline bool cdev_name(const char *bdf, char *name, size_t size)
{
	char path[600];

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev", bdf);
	return find_entry(path, "", name, size);
}

/* To vfio-pci, from whatever driver has it, unless it is there already */
static inline int ensure_bound(const char *bdf)
{
	char name[256];

	if (cdev_name(bdf, name, sizeof(name)))
		return 0;
	device_unbind(bdf);
	return device_bind(bdf);
}

static inline int cdev_open(const char *bdf)
{
	char name[256], path[600];

	if (!cdev_name(bdf, name, sizeof(name))) {
		errno = ENODEV;
		return -1;
	}
	snprintf(path, sizeof(path), "/dev/vfio/devices/%s", name);
	return open(path, O_RDWR | O_CLOEXEC);
}

/* Path of the device's group noiommu node, if it is in an iommu_group */
static inline bool group_path(const char *bdf, char *path, size_t size)
{
	char link[600], target[256];
	ssize_t len;

	snprintf(link, sizeof(link), "/sys/bus/pci/devices/%s/iommu_group", bdf);
	len = readlink(link, target, sizeof(target) - 1);
	if (len < 0)
		return false;
	target[len] = 0;
	snprintf(path, size, "/dev/vfio/noiommu-%s", strrchr(target, '/') + 1);
	return true;
}

/* For the rest of the process; tests call it in a child */
static inline int drop_capability(unsigned int cap)
{
	struct __user_cap_header_struct header = {
		.version = _LINUX_CAPABILITY_VERSION_3,
	};
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &header, data))
		return -errno;
	data[cap / 32].effective &= ~(1U << cap % 32);
	data[cap / 32].permitted &= ~(1U << cap % 32);
	return syscall(SYS_capset, &header, data) ? -errno : 0;
}

static inline int bind_iommufd(int device, int iommufd, uint32_t *id)
{
	struct vfio_device_bind_iommufd bind = {
		.argsz = sizeof(bind),
		.iommufd = iommufd,
	};
	int rc = ERRNO_OF(ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bind));

	*id = bind.out_devid;
	return rc;
}

static inline int attach_pt(int device, uint32_t *pt_id)
{
	struct vfio_device_attach_iommufd_pt attach = {
		.argsz = sizeof(attach),
		.pt_id = *pt_id,
	};
	int rc = ERRNO_OF(ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach));

	*pt_id = attach.pt_id;
	return rc;
}

static inline int detach_pt(int device)
{
	struct vfio_device_detach_iommufd_pt detach = { .argsz = sizeof(detach) };

	return ERRNO_OF(ioctl(device, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach));
}

static inline int ioas_alloc(int iommufd, uint32_t *id)
{
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	int rc = ERRNO_OF(ioctl(iommufd, IOMMU_IOAS_ALLOC, &alloc));

	*id = alloc.out_ioas_id;
	return rc;
}

static inline int hwpt_alloc(int iommufd, uint32_t dev_id, uint32_t pt_id,
			     uint32_t flags, uint32_t *id)
{
	struct iommu_hwpt_alloc alloc = {
		.size = sizeof(alloc),
		.flags = flags,
		.dev_id = dev_id,
		.pt_id = pt_id,
	};
	int rc = ERRNO_OF(ioctl(iommufd, IOMMU_HWPT_ALLOC, &alloc));

	*id = alloc.out_hwpt_id;
	return rc;
}

static inline int destroy(int iommufd, uint32_t id)
{
	struct iommu_destroy cmd = { .size = sizeof(cmd), .id = id };

	return ERRNO_OF(ioctl(iommufd, IOMMU_DESTROY, &cmd));
}

#define MAP_RW (IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE)

static inline int ioas_map(int iommufd, uint32_t ioas, void *va, size_t length,
			   uint64_t iova, uint32_t prot)
{
	struct iommu_ioas_map map = {
		.size = sizeof(map),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | prot,
		.ioas_id = ioas,
		.user_va = (uintptr_t)va,
		.length = length,
		.iova = iova,
	};

	return ERRNO_OF(ioctl(iommufd, IOMMU_IOAS_MAP, &map));
}

static inline int ioas_map_file(int iommufd, uint32_t ioas, int fd,
				uint64_t start, size_t length, uint64_t iova)
{
	struct iommu_ioas_map_file map = {
		.size = sizeof(map),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | MAP_RW,
		.ioas_id = ioas,
		.fd = fd,
		.start = start,
		.length = length,
		.iova = iova,
	};

	return ERRNO_OF(ioctl(iommufd, IOMMU_IOAS_MAP_FILE, &map));
}

static inline int ioas_unmap(int iommufd, uint32_t ioas, uint64_t iova,
			     uint64_t length)
{
	struct iommu_ioas_unmap unmap = {
		.size = sizeof(unmap),
		.ioas_id = ioas,
		.iova = iova,
		.length = length,
	};

	return ERRNO_OF(ioctl(iommufd, IOMMU_IOAS_UNMAP, &unmap));
}

static inline int get_pa(int iommufd, uint32_t ioas, uint64_t iova,
			 uint64_t *length, uint64_t *phys)
{
	struct iommu_ioas_noiommu_get_pa cmd = {
		.size = sizeof(cmd),
		.ioas_id = ioas,
		.iova = iova,
		.length = *length,
	};
	int rc = ERRNO_OF(ioctl(iommufd, IOMMU_IOAS_NOIOMMU_GET_PA, &cmd));

	*length = cmd.length;
	*phys = cmd.out_phys;
	return rc;
}

/* Just the errno for one byte */
static inline int get_pa_errno(int iommufd, uint32_t ioas, uint64_t iova)
{
	uint64_t length = 1, phys;

	return get_pa(iommufd, ioas, iova, &length, &phys);
}

/* Documentation/admin-guide/mm/pagemap.rst: bit 63 present, bits 0-54 PFN */
static inline uint64_t pagemap_pa(const void *va)
{
	size_t page = sysconf(_SC_PAGESIZE);
	int fd = open("/proc/self/pagemap", O_RDONLY);
	uint64_t entry = 0;

	if (fd < 0)
		return 0;
	if (pread(fd, &entry, 8, (uintptr_t)va / page * 8) != 8)
		entry = 0;
	close(fd);
	if (!(entry >> 63))
		return 0;
	return (entry & ((1ULL << 55) - 1)) * page + (uintptr_t)va % page;
}

/* Pages that are pinned for DMA right now, by anyone */
static inline long long pinned_pages(void)
{
	/* The counters are per CPU; this sums them up */
	write_file("/proc/sys/vm/stat_refresh", "1");
	return read_field("/proc/vmstat", "nr_foll_pin_acquired ") -
	       read_field("/proc/vmstat", "nr_foll_pin_released ");
}

#endif
