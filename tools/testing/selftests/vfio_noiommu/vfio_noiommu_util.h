/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Devices without an IOMMU, their nodes and their memory, for the tests
 */
#ifndef __VFIO_NOIOMMU_UTIL_H
#define __VFIO_NOIOMMU_UTIL_H

#include <dirent.h>
#include <sys/socket.h>

#include <linux/pci_regs.h>
#include <linux/vfio.h>

#include "../iommu/iommufd_noiommu_utils.h"

#define VFIO_SWITCH "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"

#define LOCKDOWN "/sys/kernel/security/lockdown"

/* Of a device, in the order of the code */
#define read_once(ptr)		__atomic_load_n(ptr, __ATOMIC_RELAXED)
#define write_once(ptr, value)	__atomic_store_n(ptr, value, __ATOMIC_SEQ_CST)

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

/*
 * The tests take a device from its driver and overwrite what is on it. So they use
 * none but those that VFIO_NOIOMMU_DEVICES in the environment names by address, or
 * "all", on a machine that is there for nothing else.
 */
static inline bool device_may_be_used(const char *bdf)
{
	const char *given = getenv("VFIO_NOIOMMU_DEVICES");
	char list[4096], *device, *rest = list;

	if (!given)
		return false;
	snprintf(list, sizeof(list), "%s", given);
	while ((device = strsep(&rest, " ,")))
		if (!strcmp(device, bdf) || !strcmp(device, "all"))
			return true;
	return false;
}

/* The PCI address of the first device of these IDs that may be used */
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
		if (entry->d_name[0] == '.' || !device_may_be_used(entry->d_name) ||
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

/* "none [integrity] confidentiality": what is in force is in brackets */
static inline bool lockdown_is(const char *what)
{
	char text[128], state[80];

	if (read_file(LOCKDOWN, text, sizeof(text)))
		return !strcmp(what, "none");
	snprintf(state, sizeof(state), "[%s]", what);
	return strstr(text, state);
}

static char noiommu_switch_was[8];
static pid_t noiommu_switch_of;

__attribute__((constructor)) static void noiommu_switch_remember(void)
{
	noiommu_switch_of = getpid();
	if (read_file(VFIO_SWITCH, noiommu_switch_was, sizeof(noiommu_switch_was)))
		noiommu_switch_was[0] = 0;
}

/* Not when a child ends */
__attribute__((destructor)) static void noiommu_switch_restore(void)
{
	if (getpid() == noiommu_switch_of && noiommu_switch_was[0])
		write_file(VFIO_SWITCH, noiommu_switch_was);
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

/* Both files, and the device bound */
static inline int open_bound(const char *bdf, int *device, int *iommufd,
			     uint32_t *dev_id)
{
	*device = cdev_open(bdf);
	*iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (*device < 0 || *iommufd < 0)
		return errno;
	return bind_iommufd(*device, *iommufd, dev_id);
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

/* Where the command register of PCI is in the file, or -1 */
static inline off_t command_offset(int device)
{
	struct vfio_region_info info = {
		.argsz = sizeof(info), .index = VFIO_PCI_CONFIG_REGION_INDEX,
	};

	return ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info) ? -1 :
	       (off_t)(info.offset + PCI_COMMAND);
}

static inline int command_write(int device, uint16_t command)
{
	return pwrite(device, &command, 2, command_offset(device)) == 2 ? 0 : errno;
}

/* As the program sees it, or 0xffff */
static inline uint16_t command_read(int device)
{
	uint16_t command;

	return pread(device, &command, 2, command_offset(device)) == 2 ? command : 0xffff;
}

/* Where the registers of power management are in the configuration space, or 0 */
static inline unsigned int find_pm(int device)
{
	off_t config = command_offset(device) - PCI_COMMAND;
	unsigned int reg = PCI_CAPABILITY_LIST - PCI_CAP_LIST_NEXT;
	uint8_t cap[2];

	do {
		if (pread(device, &cap[1], 1, config + reg + PCI_CAP_LIST_NEXT) != 1)
			return 0;
		reg = cap[1];
	} while (reg && (pread(device, &cap[0], 1, config + reg) != 1 ||
			 cap[0] != PCI_CAP_ID_PM));
	return reg;
}

/* With the eventfd that a trigger has, or -1 */
static inline int set_intx(int device, uint32_t action, int fd)
{
	struct {
		struct vfio_irq_set set;
		int32_t fd;
	} args = {
		.set.argsz = sizeof(args),
		.set.flags = action | (fd < 0 ? VFIO_IRQ_SET_DATA_NONE :
						VFIO_IRQ_SET_DATA_EVENTFD),
		.set.index = VFIO_PCI_INTX_IRQ_INDEX,
		.set.count = 1,
		.fd = fd,
	};

	return ERRNO_OF(ioctl(device, VFIO_DEVICE_SET_IRQS, &args));
}

/* Files in a message (SCM_RIGHTS), and a number */
#define MOST_FDS 8

static inline int send_fds(int socket, const int *fds, unsigned int nr, uint32_t number)
{
	char control[CMSG_SPACE(MOST_FDS * sizeof(int))] = {};
	struct iovec data = { .iov_base = &number, .iov_len = sizeof(number) };
	struct msghdr msg = {
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = CMSG_SPACE(nr * sizeof(int)),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(nr * sizeof(int));
	memcpy(CMSG_DATA(cmsg), fds, nr * sizeof(int));
	return sendmsg(socket, &msg, 0) == sizeof(number) ? 0 : errno;
}

static inline int receive_fds(int socket, int *fds, unsigned int nr, uint32_t *number)
{
	char control[CMSG_SPACE(MOST_FDS * sizeof(int))] = {};
	struct iovec data = { .iov_base = number, .iov_len = sizeof(*number) };
	struct msghdr msg = {
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg;

	if (recvmsg(socket, &msg, MSG_CMSG_CLOEXEC) != sizeof(*number))
		return EPROTO;
	cmsg = CMSG_FIRSTHDR(&msg);
	if (!cmsg || cmsg->cmsg_len != CMSG_LEN(nr * sizeof(int)))
		return EPROTO;
	memcpy(fds, CMSG_DATA(cmsg), nr * sizeof(int));
	return 0;
}

static inline int detach_pt(int device)
{
	struct vfio_device_detach_iommufd_pt detach = { .argsz = sizeof(detach) };

	return ERRNO_OF(ioctl(device, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach));
}

#endif
