// SPDX-License-Identifier: GPL-2.0-only
/*
 * The user ABI of cdev noiommu, case by case, on devices without an IOMMU
 *
 * Run as root. Takes the devices named in the fixture's variants away from
 * their drivers and binds them to vfio-pci. Those that are absent are skipped.
 */
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <sys/klog.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <linux/kvm.h>
#include <linux/pci_regs.h>

#include "kselftest_harness.h"
#include "vfio_noiommu_util.h"

#define IOVA 0x10000000UL

/* Documentation/admin-guide/tainted-kernels.rst */
#define TAINT_USER 0x40

static int open_pinned_devices(const char *bdf, int *device, int *iommufd,
			       uint32_t *dev_id)
{
	*device = cdev_open(bdf);
	*iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (*device < 0 || *iommufd < 0)
		return errno;
	return bind_iommufd(*device, *iommufd, dev_id);
}

FIXTURE(noiommu)
{
	char bdf[256];
	int device;
	int iommufd;
	uint32_t dev_id;
	uint32_t ioas;
	long long pinned;
};

FIXTURE_VARIANT(noiommu)
{
	const char *vendor;
	const char *device;
};

FIXTURE_VARIANT_ADD(noiommu, nvme) { .vendor = "0x1b36", .device = "0x0010" };
FIXTURE_VARIANT_ADD(noiommu, edu) { .vendor = "0x1234", .device = "0x11e8" };
FIXTURE_VARIANT_ADD(noiommu, e1000e) { .vendor = "0x8086", .device = "0x10d3" };

FIXTURE_SETUP(noiommu)
{
	self->device = -1;
	self->iommufd = -1;
	if (!find_device(variant->vendor, variant->device, self->bdf,
			 sizeof(self->bdf)))
		SKIP(return, "no device %s:%s", variant->vendor, variant->device);
	if (device_has_iommu(self->bdf))
		SKIP(return, "%s has an IOMMU", self->bdf);
	ASSERT_EQ(0, noiommu_switch(true));
	ASSERT_EQ(0, ensure_bound(self->bdf));
	self->pinned = pinned_pages();
	ASSERT_EQ(0, open_pinned_devices(self->bdf, &self->device,
					 &self->iommufd, &self->dev_id));
	ASSERT_EQ(0, ioas_alloc(self->iommufd, &self->ioas));
}

FIXTURE_TEARDOWN(noiommu)
{
	close(self->device);
	close(self->iommufd);
	/* Whatever a test did and left behind, no pin is lost */
	EXPECT_EQ(self->pinned, pinned_pages());
}

/* A HWPT and the device attached to it, with nothing mapped */
static int attach_hwpt(struct _test_data_noiommu *self, uint32_t *hwpt)
{
	uint32_t pt_id;
	int rc = hwpt_alloc(self->iommufd, self->dev_id, self->ioas, 0, hwpt);

	pt_id = *hwpt;
	return rc ? rc : attach_pt(self->device, &pt_id);
}

/*
 * Nodes, the switch and who may open
 */
TEST_F(noiommu, node_names)
{
	char name[256], path[600], link[600];
	struct stat node;
	char dev[32], expected[32];

	ASSERT_TRUE(cdev_name(self->bdf, name, sizeof(name)));
	EXPECT_EQ(0, strncmp(name, "noiommu-vfio", 12));
	EXPECT_NE('\0', name[12]);
	EXPECT_EQ(strlen(name + 12), strspn(name + 12, "0123456789"));

	snprintf(path, sizeof(path), "/dev/vfio/devices/%s", name);
	ASSERT_EQ(0, stat(path, &node));
	EXPECT_TRUE(S_ISCHR(node.st_mode));
	snprintf(link, sizeof(link), "/sys/bus/pci/devices/%s/vfio-dev/%s/dev",
		 self->bdf, name);
	ASSERT_EQ(0, read_file(link, dev, sizeof(dev)));
	snprintf(expected, sizeof(expected), "%u:%u",
		 (unsigned int)(node.st_rdev >> 8 & 0xfff),
		 (unsigned int)(node.st_rdev & 0xff));
	EXPECT_STREQ(expected, dev);
}

TEST_F(noiommu, taint_and_log)
{
	static char log[1 << 20];
	char taint[32], line[400];
	int len;

	ASSERT_EQ(0, read_file("/proc/sys/kernel/tainted", taint, sizeof(taint)));
	EXPECT_NE(0, atol(taint) & TAINT_USER);

	/* Registered anew, as the old line may have left the log */
	close(self->device);
	close(self->iommufd);
	device_unbind(self->bdf);
	ASSERT_EQ(0, klogctl(5 /* SYSLOG_ACTION_CLEAR */, NULL, 0));
	ASSERT_EQ(0, device_bind(self->bdf));
	ASSERT_EQ(0, open_pinned_devices(self->bdf, &self->device,
					 &self->iommufd, &self->dev_id));
	len = klogctl(3 /* SYSLOG_ACTION_READ_ALL */, log, sizeof(log) - 1);
	ASSERT_LT(0, len);
	log[len] = 0;
	snprintf(line, sizeof(line),
		 "%s: Adding kernel taint for vfio-noiommu cdev", self->bdf);
	EXPECT_NE(NULL, strstr(log, line));
	snprintf(line, sizeof(line), "%s: vfio-noiommu cdev opened by user (",
		 self->bdf);
	EXPECT_NE(NULL, strstr(log, line));
}

TEST_F(noiommu, open_needs_rawio)
{
	close(self->device);
	IN_CHILD(0, ({ int fd = cdev_open(self->bdf); fd < 0 ? errno : 0; }));
	IN_CHILD(EPERM, ({
		drop_capability(CAP_SYS_RAWIO);
		ERRNO_OF(cdev_open(self->bdf));
	}));
	/* The refusal left no reference: an unbind would wait for it */
	device_unbind(self->bdf);
	ASSERT_EQ(0, device_bind(self->bdf));
	self->device = cdev_open(self->bdf);
	EXPECT_LE(0, self->device);
}

TEST_F(noiommu, open_needs_rawio_of_init_userns)
{
	int rc;

	close(self->device);
	self->device = -1;
	/* Root of a user namespace of its own has every capability there */
	if (unshare(CLONE_NEWUSER)) {
		rc = errno;
		SKIP(return, "no user namespaces (errno %d)", rc);
	}
	EXPECT_EQ(EPERM, ERRNO_OF(cdev_open(self->bdf)));
}

TEST_F(noiommu, switch_off_refuses_probe)
{
	char name[256];

	close(self->device);
	device_unbind(self->bdf);
	ASSERT_EQ(0, noiommu_switch(false));
	EXPECT_EQ(-EINVAL, device_bind(self->bdf));
	EXPECT_FALSE(cdev_name(self->bdf, name, sizeof(name)));
	ASSERT_EQ(0, noiommu_switch(true));
	EXPECT_EQ(0, device_bind(self->bdf));
	EXPECT_TRUE(cdev_name(self->bdf, name, sizeof(name)));
	self->device = -1;
}

TEST_F(noiommu, mode_is_kept_when_switched_off)
{
	uint32_t hwpt, ioas;

	close(self->device);
	close(self->iommufd);
	ASSERT_EQ(0, noiommu_switch(false));
	EXPECT_EQ(0, open_pinned_devices(self->bdf, &self->device,
					 &self->iommufd, &self->dev_id));
	EXPECT_EQ(0, ioas_alloc(self->iommufd, &ioas));
	EXPECT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id, ioas, 0, &hwpt));
	EXPECT_EQ(0, attach_pt(self->device, &hwpt));
	EXPECT_EQ(0, noiommu_switch(true));
}

TEST_F(noiommu, group_and_cdev_exclude_each_other)
{
	char path[600];
	int group;

	if (!group_path(self->bdf, path, sizeof(path)))
		SKIP(return, "no group noiommu");

	/* The cdev is bound */
	EXPECT_EQ(EBUSY, ERRNO_OF(open(path, O_RDWR)));
	close(self->device);
	group = open(path, O_RDWR);
	EXPECT_LE(0, group);
	/* An open cdev does nothing until it is bound */
	self->device = cdev_open(self->bdf);
	EXPECT_LE(0, self->device);
	EXPECT_EQ(EBUSY, bind_iommufd(self->device, self->iommufd, &self->dev_id));
	close(group);
	EXPECT_EQ(0, bind_iommufd(self->device, self->iommufd, &self->dev_id));
}

/* Group noiommu does what it did before there was a cdev */
TEST_F(noiommu, group_without_and_with_iommufd)
{
	struct vfio_device_info info = { .argsz = sizeof(info) };
	char path[600];
	int i;

	if (!group_path(self->bdf, path, sizeof(path)))
		SKIP(return, "no group noiommu");
	close(self->device);
	self->device = -1;
	for (i = 0; i < 2; i++) {
		int container = open(i ? "/dev/iommu" : "/dev/vfio/vfio", O_RDWR);
		int group, device;

		if (container < 0)
			SKIP(return, "no container");
		group = open(path, O_RDWR);
		ASSERT_LE(0, group);
		ASSERT_EQ(0, ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
		if (!i)
			ASSERT_EQ(0, ioctl(container, VFIO_SET_IOMMU,
					   VFIO_NOIOMMU_IOMMU));
		device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, self->bdf);
		ASSERT_LE(0, device);
		EXPECT_EQ(0, ioctl(device, VFIO_DEVICE_GET_INFO, &info));
		EXPECT_LE(VFIO_PCI_CONFIG_REGION_INDEX, info.num_regions);
		close(device);
		close(group);
		close(container);
	}
}

/*
 * Bind, attach, replace, detach
 */
TEST_F(noiommu, bind)
{
	uint32_t dev_id;
	int second;

	EXPECT_NE(0, self->dev_id);
	EXPECT_EQ(EINVAL, bind_iommufd(self->device, self->iommufd, &dev_id));
	second = cdev_open(self->bdf);
	ASSERT_LE(0, second);
	EXPECT_EQ(EINVAL, bind_iommufd(second, self->iommufd, &dev_id));
	close(second);
	/* The first is none the worse for it */
	EXPECT_EQ(0, attach_pt(self->device, &self->ioas));
}

TEST_F(noiommu, bind_bad_fd)
{
	uint32_t dev_id;

	close(self->device);
	self->device = cdev_open(self->bdf);
	ASSERT_LE(0, self->device);
	EXPECT_EQ(EINVAL, bind_iommufd(self->device, -1, &dev_id));
	EXPECT_EQ(EBADFD, bind_iommufd(self->device, self->device, &dev_id));
	EXPECT_EQ(0, bind_iommufd(self->device, self->iommufd, &dev_id));
}

TEST_F(noiommu, attach_bad_id)
{
	struct vfio_device_attach_iommufd_pt attach = {
		.argsz = sizeof(attach),
		.flags = 1U << 31,
		.pt_id = self->ioas,
	};
	struct vfio_device_detach_iommufd_pt detach = {
		.argsz = sizeof(detach),
		.flags = 1U << 31,
	};
	uint32_t id = 0xdead;

	EXPECT_EQ(ENOENT, attach_pt(self->device, &id));
	id = self->dev_id;
	EXPECT_EQ(EINVAL, attach_pt(self->device, &id));
	EXPECT_EQ(EINVAL, ERRNO_OF(ioctl(self->device,
					 VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach)));
	/* Detach of what is not attached, as with an IOMMU */
	EXPECT_EQ(0, detach_pt(self->device));
	EXPECT_EQ(EINVAL, ERRNO_OF(ioctl(self->device,
					 VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach)));
	detach.flags = 0;
	detach.argsz = 4;
	EXPECT_EQ(EINVAL, ERRNO_OF(ioctl(self->device,
					 VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach)));
	attach.flags = 0;
	attach.argsz = 4;
	EXPECT_EQ(EINVAL, ERRNO_OF(ioctl(self->device,
					 VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach)));
	EXPECT_EQ(0, attach_pt(self->device, &self->ioas));
}

TEST_F(noiommu, attach_pasid)
{
	struct vfio_device_attach_iommufd_pt attach = {
		.argsz = sizeof(attach),
		.flags = VFIO_DEVICE_ATTACH_PASID,
		.pasid = 1,
	};
	uint32_t ids[2] = { self->ioas };
	int i;

	ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id, self->ioas, 0, &ids[1]));
	for (i = 0; i < 2; i++) {
		attach.pt_id = ids[i];
		EXPECT_EQ(EINVAL,
			  ERRNO_OF(ioctl(self->device,
					 VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach)));
	}
	/* Nothing keeps the HWPT or the IOAS */
	EXPECT_EQ(0, destroy(self->iommufd, ids[1]));
	EXPECT_EQ(0, destroy(self->iommufd, self->ioas));
}

TEST_F(noiommu, attach_to_ioas_makes_a_hwpt)
{
	uint32_t pt_id = self->ioas, again = self->ioas;

	ASSERT_EQ(0, attach_pt(self->device, &pt_id));
	EXPECT_NE(self->ioas, pt_id);
	EXPECT_EQ(EBUSY, destroy(self->iommufd, pt_id));
	EXPECT_EQ(EBUSY, destroy(self->iommufd, self->ioas));
	/* Attaching to the same IOAS once more finds the same HWPT */
	ASSERT_EQ(0, attach_pt(self->device, &again));
	EXPECT_EQ(pt_id, again);
	ASSERT_EQ(0, detach_pt(self->device));
	/* It was made by attaching and went with it */
	EXPECT_EQ(ENOENT, destroy(self->iommufd, pt_id));
	EXPECT_EQ(0, destroy(self->iommufd, self->ioas));
}

TEST_F(noiommu, replace_in_every_direction)
{
	uint32_t ioas_b, pts[5], pa_ioas[5], from, to, pt_id;
	char *mem[2];
	uint64_t length, phys;

	/* Two IOASes, HWPTs in both, and each IOAS with memory of its own */
	ASSERT_EQ(0, ioas_alloc(self->iommufd, &ioas_b));
	pts[0] = self->ioas;
	pts[1] = ioas_b;
	ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id, self->ioas, 0, &pts[2]));
	ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id, self->ioas, 0, &pts[3]));
	ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id, ioas_b, 0, &pts[4]));
	for (from = 0; from < 5; from++)
		pa_ioas[from] = from % 3 == 1 ? ioas_b : self->ioas;
	mem[0] = anon(PAGE, MAP_POPULATE);
	mem[1] = anon(PAGE, MAP_POPULATE);
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, mem[0], PAGE, IOVA, MAP_RW));
	ASSERT_EQ(0, ioas_map(self->iommufd, ioas_b, mem[1], PAGE, IOVA, MAP_RW));

	for (from = 0; from < 5; from++) {
		for (to = 0; to < 5; to++) {
			pt_id = pts[from];
			ASSERT_EQ(0, attach_pt(self->device, &pt_id));
			pt_id = pts[to];
			ASSERT_EQ(0, attach_pt(self->device, &pt_id));
			if (to >= 2)
				EXPECT_EQ(pts[to], pt_id);
			/* The new one is in use, and the old one is not */
			EXPECT_EQ(EBUSY, destroy(self->iommufd, pt_id));
			length = PAGE;
			ASSERT_EQ(0, get_pa(self->iommufd, pa_ioas[to], IOVA,
					    &length, &phys));
			EXPECT_EQ(pagemap_pa(mem[pa_ioas[to] == ioas_b]), phys);
			ASSERT_EQ(0, detach_pt(self->device));
		}
	}
	for (from = 2; from < 5; from++)
		EXPECT_EQ(0, destroy(self->iommufd, pts[from]));
}

TEST_F(noiommu, failed_replace_changes_nothing)
{
	uint32_t hwpt, id = 0xdead;

	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	EXPECT_EQ(ENOENT, attach_pt(self->device, &id));
	id = self->dev_id;
	EXPECT_EQ(EINVAL, attach_pt(self->device, &id));
	EXPECT_EQ(EBUSY, destroy(self->iommufd, hwpt));
	ASSERT_EQ(0, detach_pt(self->device));
	EXPECT_EQ(0, destroy(self->iommufd, hwpt));
}

TEST_F(noiommu, several_hwpts_of_one_ioas)
{
	uint32_t hwpts[4];
	char *mem = anon(16 * PAGE, 0);
	int i;

	touch_scattered(mem, 16 * PAGE);
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, mem, 16 * PAGE, IOVA, MAP_RW));
	/* Nothing is pinned, and no physical address known, before the first */
	EXPECT_EQ(self->pinned, pinned_pages());
	EXPECT_EQ(EOPNOTSUPP, get_pa_errno(self->iommufd, self->ioas, IOVA));
	for (i = 0; i < 4; i++) {
		ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id, self->ioas,
					0, &hwpts[i]));
		EXPECT_EQ(self->pinned + 16, pinned_pages());
	}
	/* The first gone, the last, and those between: whoever stores the PFNs */
	EXPECT_EQ(0, destroy(self->iommufd, hwpts[0]));
	EXPECT_EQ(0, get_pa_errno(self->iommufd, self->ioas, IOVA + 15 * PAGE));
	EXPECT_EQ(0, destroy(self->iommufd, hwpts[3]));
	EXPECT_EQ(0, destroy(self->iommufd, hwpts[1]));
	EXPECT_EQ(0, get_pa_errno(self->iommufd, self->ioas, IOVA + 15 * PAGE));
	EXPECT_EQ(self->pinned + 16, pinned_pages());
	EXPECT_EQ(0, destroy(self->iommufd, hwpts[2]));
	EXPECT_EQ(EOPNOTSUPP, get_pa_errno(self->iommufd, self->ioas, IOVA));
	EXPECT_EQ(self->pinned, pinned_pages());
}

/*
 * What needs an IOMMU is refused
 */
TEST_F(noiommu, hwpt_flags_and_user_data)
{
	static const uint32_t flags[] = {
		IOMMU_HWPT_ALLOC_NEST_PARENT,
		IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
		IOMMU_HWPT_FAULT_ID_VALID,
		IOMMU_HWPT_ALLOC_PASID,
		IOMMU_HWPT_FAULT_ID_VALID | IOMMU_HWPT_ALLOC_PASID,
		1U << 31,
	};
	struct iommu_fault_alloc fault = { .size = sizeof(fault) };
	struct iommu_hwpt_alloc alloc = {
		.size = sizeof(alloc),
		.dev_id = self->dev_id,
		.pt_id = self->ioas,
	};
	uint64_t data = 0;
	unsigned int i;

	ASSERT_EQ(0, ioctl(self->iommufd, IOMMU_FAULT_QUEUE_ALLOC, &fault));
	alloc.fault_id = fault.out_fault_id;
	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		alloc.flags = flags[i];
		EXPECT_EQ(EOPNOTSUPP,
			  ERRNO_OF(ioctl(self->iommufd, IOMMU_HWPT_ALLOC, &alloc)))
			TH_LOG("flags %#x", flags[i]);
	}
	close(fault.out_fault_fd);

	alloc.flags = 0;
	alloc.__reserved = 1;
	EXPECT_EQ(EOPNOTSUPP, ERRNO_OF(ioctl(self->iommufd, IOMMU_HWPT_ALLOC, &alloc)));
	alloc.__reserved = 0;
	alloc.data_type = IOMMU_HWPT_DATA_VTD_S1;
	EXPECT_EQ(EINVAL, ERRNO_OF(ioctl(self->iommufd, IOMMU_HWPT_ALLOC, &alloc)));
	alloc.data_len = sizeof(data);
	alloc.data_uptr = (uintptr_t)&data;
	EXPECT_EQ(EOPNOTSUPP, ERRNO_OF(ioctl(self->iommufd, IOMMU_HWPT_ALLOC, &alloc)));
	/* Nesting */
	ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id, self->ioas, 0, &alloc.pt_id));
	EXPECT_EQ(EOPNOTSUPP, ERRNO_OF(ioctl(self->iommufd, IOMMU_HWPT_ALLOC, &alloc)));
	alloc.data_type = IOMMU_HWPT_DATA_NONE;
	alloc.data_len = 0;
	EXPECT_EQ(EOPNOTSUPP, ERRNO_OF(ioctl(self->iommufd, IOMMU_HWPT_ALLOC, &alloc)));
	/* Not a page table, and nothing at all */
	alloc.pt_id = self->dev_id;
	EXPECT_EQ(EINVAL, ERRNO_OF(ioctl(self->iommufd, IOMMU_HWPT_ALLOC, &alloc)));
	alloc.pt_id = 0xdead;
	EXPECT_EQ(EINVAL, ERRNO_OF(ioctl(self->iommufd, IOMMU_HWPT_ALLOC, &alloc)));
}

TEST_F(noiommu, iommu_objects)
{
	struct iommu_hw_info info = {
		.size = sizeof(info),
		.dev_id = self->dev_id,
	};
	struct iommu_viommu_alloc viommu = {
		.size = sizeof(viommu),
		.dev_id = self->dev_id,
	};
	struct iommu_veventq_alloc veventq = {
		.size = sizeof(veventq),
		.viommu_id = 0xdead,
		.type = IOMMU_VEVENTQ_TYPE_ARM_SMMUV3,
		.veventq_depth = 1,
	};
	struct iommu_hw_queue_alloc hw_queue = {
		.size = sizeof(hw_queue),
		.viommu_id = 0xdead,
		.type = IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV,
		.nesting_parent_iova = IOVA,
		.length = PAGE,
	};
	struct iommu_vdevice_alloc vdevice = {
		.size = sizeof(vdevice),
		.viommu_id = 0xdead,
		.dev_id = self->dev_id,
	};
	struct iommu_hwpt_set_dirty_tracking set_dirty = {
		.size = sizeof(set_dirty),
		.flags = IOMMU_HWPT_DIRTY_TRACKING_ENABLE,
	};
	uint64_t bitmap[8];
	struct iommu_hwpt_get_dirty_bitmap get_dirty = {
		.size = sizeof(get_dirty),
		.iova = IOVA,
		.length = PAGE,
		.page_size = PAGE,
		.data = (uintptr_t)bitmap,
	};
	struct iommu_hwpt_invalidate invalidate = { .size = sizeof(invalidate) };

	EXPECT_EQ(EOPNOTSUPP, ERRNO_OF(ioctl(self->iommufd, IOMMU_GET_HW_INFO, &info)));
	ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id, self->ioas, 0,
				&viommu.hwpt_id));
	for (viommu.type = 0; viommu.type < 16; viommu.type++)
		EXPECT_EQ(EOPNOTSUPP, ERRNO_OF(ioctl(self->iommufd,
						     IOMMU_VIOMMU_ALLOC, &viommu)));
	/* There can be no vIOMMU to hang these on */
	EXPECT_EQ(ENOENT,
		  ERRNO_OF(ioctl(self->iommufd, IOMMU_VDEVICE_ALLOC, &vdevice)));
	EXPECT_EQ(ENOENT,
		  ERRNO_OF(ioctl(self->iommufd, IOMMU_VEVENTQ_ALLOC, &veventq)));
	EXPECT_EQ(ENOENT,
		  ERRNO_OF(ioctl(self->iommufd, IOMMU_HW_QUEUE_ALLOC, &hw_queue)));
	set_dirty.hwpt_id = viommu.hwpt_id;
	EXPECT_EQ(EOPNOTSUPP, ERRNO_OF(ioctl(self->iommufd,
					     IOMMU_HWPT_SET_DIRTY_TRACKING, &set_dirty)));
	get_dirty.hwpt_id = viommu.hwpt_id;
	EXPECT_EQ(EOPNOTSUPP, ERRNO_OF(ioctl(self->iommufd,
					     IOMMU_HWPT_GET_DIRTY_BITMAP, &get_dirty)));
	invalidate.hwpt_id = viommu.hwpt_id;
	EXPECT_EQ(EINVAL, ERRNO_OF(ioctl(self->iommufd,
					 IOMMU_HWPT_INVALIDATE, &invalidate)));
}

/*
 * IOMMU_IOAS_NOIOMMU_GET_PA
 */
TEST_F(noiommu, get_pa_errors)
{
	struct {
		struct iommu_ioas_noiommu_get_pa cmd;
		uint64_t tail[2];
	} buf, good = {
		.cmd = {
			.size = sizeof(buf.cmd),
			.ioas_id = self->ioas,
			.iova = IOVA,
			.length = PAGE,
		},
	};
	char *mem = anon(PAGE, MAP_POPULATE);
	uint32_t hwpt;

#define GET_PA(member, value) ({						\
	buf = good;								\
	buf.member = value;							\
	ERRNO_OF(ioctl(self->iommufd, IOMMU_IOAS_NOIOMMU_GET_PA, &buf));	\
})
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, mem, PAGE, IOVA, MAP_RW));
	EXPECT_EQ(EOPNOTSUPP, GET_PA(cmd.length, 1));
	/* That nothing is mapped is seen before what would hold it */
	EXPECT_EQ(ENOENT, GET_PA(cmd.iova, IOVA + PAGE));
	ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id, self->ioas, 0, &hwpt));

	EXPECT_EQ(0, GET_PA(cmd.length, PAGE));
	EXPECT_EQ(EOPNOTSUPP, GET_PA(cmd.flags, 1U << 31));
	EXPECT_EQ(EOPNOTSUPP, GET_PA(cmd.flags, 1U << 1));
	EXPECT_EQ(EOPNOTSUPP, GET_PA(cmd.__reserved, 1));
	EXPECT_EQ(EINVAL, GET_PA(cmd.length, 0));
	EXPECT_EQ(EOVERFLOW, GET_PA(cmd.iova, ULONG_MAX));
	EXPECT_EQ(ENOENT, GET_PA(cmd.iova, ULONG_MAX - 1));
	EXPECT_EQ(ENOENT, GET_PA(cmd.ioas_id, 0));
	EXPECT_EQ(ENOENT, GET_PA(cmd.ioas_id, 0xdead));
	EXPECT_EQ(ENOENT, GET_PA(cmd.ioas_id, hwpt));
	EXPECT_EQ(ENOENT, GET_PA(cmd.ioas_id, self->dev_id));
	EXPECT_EQ(ENOENT, GET_PA(cmd.iova, IOVA - 1));
	EXPECT_EQ(ENOENT, GET_PA(cmd.iova, IOVA + PAGE));
	EXPECT_EQ(EINVAL, GET_PA(cmd.size, 0));
	EXPECT_EQ(EINVAL, GET_PA(cmd.size, sizeof(buf.cmd) - 1));
	/* A longer struct is fine if what is behind it is zero */
	EXPECT_EQ(0, GET_PA(cmd.size, sizeof(buf)));
	good.cmd.size = sizeof(buf);
	EXPECT_EQ(E2BIG, GET_PA(tail[1], 1));
	good.cmd.size = sizeof(buf.cmd);
	/* No length is too long */
	EXPECT_EQ(0, GET_PA(cmd.length, ULLONG_MAX));
	EXPECT_EQ(PAGE, buf.cmd.length);
	EXPECT_EQ(0, GET_PA(cmd.length, ULONG_MAX - IOVA));
	EXPECT_EQ(PAGE, buf.cmd.length);
#undef GET_PA
}

TEST_F(noiommu, get_pa_needs_rawio)
{
	char *mem = anon(PAGE, MAP_POPULATE);
	uint32_t hwpt;

	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, mem, PAGE, IOVA, MAP_RW));
	/* Also with fds that someone privileged opened */
	IN_CHILD(0, get_pa_errno(self->iommufd, self->ioas, IOVA));
	IN_CHILD(EPERM, ({
		drop_capability(CAP_SYS_RAWIO);
		get_pa_errno(self->iommufd, self->ioas, IOVA);
	}));
	/* Before anything else is looked at */
	IN_CHILD(EPERM, ({
		drop_capability(CAP_SYS_RAWIO);
		get_pa_errno(self->iommufd, 0xdead, ULONG_MAX);
	}));
}

TEST_F(noiommu, get_pa_scattered)
{
	size_t size = 512 * PAGE;
	char *va = anon(size, 0);
	uint32_t hwpt;

	touch_scattered(va, size);
	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, va, size, IOVA, MAP_RW));
	check_pas(_metadata, self->iommufd, self->ioas, va, IOVA, size);
}

TEST_F(noiommu, get_pa_mapped_before_the_hwpt)
{
	size_t size = 64 * PAGE;
	char *va = anon(size, 0);
	uint32_t hwpt;

	touch_scattered(va, size);
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, va, size, IOVA, MAP_RW));
	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	check_pas(_metadata, self->iommufd, self->ioas, va, IOVA, size);
}

TEST_F(noiommu, get_pa_thp)
{
	char *va = anon(3 * HUGE_PAGE, 0);
	uint32_t hwpt;

	va = (char *)(((uintptr_t)va + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));
	if (madvise(va, 2 * HUGE_PAGE, MADV_HUGEPAGE))
		SKIP(return, "no transparent huge pages");
	memset(va, 1, 2 * HUGE_PAGE);
	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	/* Unaligned in both: an IOVA that is no multiple of the huge page */
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, va + 3 * PAGE,
			      2 * HUGE_PAGE - 5 * PAGE, IOVA + PAGE, MAP_RW));
	check_pas(_metadata, self->iommufd, self->ioas, va + 3 * PAGE, IOVA + PAGE,
		  2 * HUGE_PAGE - 5 * PAGE);
}

TEST_F(noiommu, get_pa_hugetlb)
{
	uint64_t length = 2 * HUGE_PAGE, phys;
	uint32_t hwpt;
	char *va;

	va = anon_huge(2 * HUGE_PAGE);
	if (!va)
		SKIP(return, "no huge pages");
	memset(va, 1, 2 * HUGE_PAGE);
	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, va, 2 * HUGE_PAGE,
			      IOVA, MAP_RW));
	ASSERT_EQ(0, get_pa(self->iommufd, self->ioas, IOVA, &length, &phys));
	EXPECT_LE(HUGE_PAGE, length);
	EXPECT_EQ(0, phys % HUGE_PAGE);
	check_pas(_metadata, self->iommufd, self->ioas, va, IOVA, 2 * HUGE_PAGE);
	munmap(va, 2 * HUGE_PAGE);
}

TEST_F(noiommu, get_pa_file)
{
	unsigned int huge;
	uint32_t hwpt;

	want_huge_pages();
	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	for (huge = 0; huge < 2; huge++) {
		size_t size = huge ? 2 * HUGE_PAGE : 64 * PAGE;
		int fd = syscall(SYS_memfd_create, "noiommu",
				 huge ? MFD_HUGETLB : 0);
		char *va;

		ASSERT_LE(0, fd);
		ASSERT_EQ(0, ftruncate(fd, size));
		va = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		ASSERT_NE(MAP_FAILED, va);
		memset(va, 1, size);
		/* From the second page on: IOVA and file offset differ */
		ASSERT_EQ(0, ioas_map_file(self->iommufd, self->ioas, fd, PAGE,
					   size - PAGE, IOVA));
		check_pas(_metadata, self->iommufd, self->ioas, va + PAGE, IOVA, size - PAGE);
		ASSERT_EQ(0, ioas_unmap(self->iommufd, self->ioas, IOVA, size - PAGE));
		munmap(va, size);
		close(fd);
	}
}

TEST_F(noiommu, get_pa_shared_and_read_only)
{
	size_t size = 32 * PAGE;
	char *shared = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char *ro = anon(size, MAP_POPULATE);
	uint32_t hwpt;

	ASSERT_NE(MAP_FAILED, shared);
	memset(shared, 1, size);
	memset(ro, 1, size);
	ASSERT_EQ(0, mprotect(ro, size, PROT_READ));
	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, shared, size, IOVA, MAP_RW));
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, ro, size, IOVA + HUGE_PAGE,
			      IOMMU_IOAS_MAP_READABLE));
	check_pas(_metadata, self->iommufd, self->ioas, shared, IOVA, size);
	check_pas(_metadata, self->iommufd, self->ioas, ro, IOVA + HUGE_PAGE, size);
}

TEST_F(noiommu, get_pa_without_large_pages)
{
	uint32_t hwpt;
	char *va;

	va = anon_huge(HUGE_PAGE);
	if (!va)
		SKIP(return, "no huge pages");
	ASSERT_EQ(0, ioas_disable_huge_pages(self->iommufd, self->ioas));
	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, va, HUGE_PAGE, IOVA, MAP_RW));
	check_pas(_metadata, self->iommufd, self->ioas, va, IOVA, HUGE_PAGE);
	munmap(va, HUGE_PAGE);
}

TEST_F(noiommu, get_pa_stops_at_a_hole)
{
	uint64_t length, phys;
	uint32_t hwpt;
	char *va;

	va = anon_huge(HUGE_PAGE);
	if (!va)
		SKIP(return, "no huge pages");
	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	/* Physically all one piece; in IOVAs two areas, a hole, one area */
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, va, 3 * PAGE, IOVA, MAP_RW));
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, va + 3 * PAGE, 2 * PAGE,
			      IOVA + 3 * PAGE, MAP_RW));
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, va + 6 * PAGE, PAGE,
			      IOVA + 6 * PAGE, MAP_RW));
	length = HUGE_PAGE;
	ASSERT_EQ(0, get_pa(self->iommufd, self->ioas, IOVA + 7, &length, &phys));
	EXPECT_EQ(5 * PAGE - 7, length);
	EXPECT_EQ(pagemap_pa(va) + 7, phys);
	/* Part of an area can't be unmapped, and stays all there */
	EXPECT_EQ(ENOENT, ioas_unmap(self->iommufd, self->ioas, IOVA, PAGE));
	EXPECT_EQ(0, get_pa_errno(self->iommufd, self->ioas, IOVA));
	/* Areas that touch in IOVA but not physically */
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, va + 9 * PAGE, PAGE,
			      IOVA + 5 * PAGE, MAP_RW));
	length = HUGE_PAGE;
	ASSERT_EQ(0, get_pa(self->iommufd, self->ioas, IOVA, &length, &phys));
	EXPECT_EQ(5 * PAGE, length);
	munmap(va, HUGE_PAGE);
}

TEST_F(noiommu, get_pa_at_the_ends)
{
	static const uint64_t iovas[] = {
		0, 1ULL << 30, 1ULL << 39, 1ULL << 48, 1ULL << 57, 1ULL << 63,
		-PAGE, -2 * PAGE,
	};
	char *va = anon(PAGE, MAP_POPULATE);
	uint64_t length, phys;
	uint32_t hwpt;
	unsigned int i;

	/* The page table grows by itself to the last IOVA */
	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	for (i = 0; i < ARRAY_SIZE(iovas); i++)
		ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, va, PAGE,
				      iovas[i], MAP_RW));
	for (i = 0; i < ARRAY_SIZE(iovas); i++) {
		length = ULLONG_MAX;
		ASSERT_EQ(0, get_pa(self->iommufd, self->ioas, iovas[i] + 5,
				    &length, &phys));
		EXPECT_EQ(pagemap_pa(va) + 5, phys);
		EXPECT_EQ(PAGE - 5, length);
	}
}

TEST_F(noiommu, no_iova_is_reserved)
{
	struct iommu_iova_range range;
	struct iommu_ioas_iova_ranges ranges = {
		.size = sizeof(ranges),
		.ioas_id = self->ioas,
		.num_iovas = 1,
		.allowed_iovas = (uintptr_t)&range,
	};
	struct iommu_ioas_map map = {
		.size = sizeof(map),
		.flags = MAP_RW,
		.ioas_id = self->ioas,
		.length = PAGE,
	};
	char *va = anon(PAGE, MAP_POPULATE);
	uint64_t length = PAGE, phys;
	uint32_t hwpt;

	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	ASSERT_EQ(0, ioctl(self->iommufd, IOMMU_IOAS_IOVA_RANGES, &ranges));
	EXPECT_EQ(1, ranges.num_iovas);
	EXPECT_EQ(0, range.start);
	EXPECT_EQ(ULONG_MAX, range.last);
	EXPECT_EQ(PAGE, ranges.out_iova_alignment);
	/* The IOVA may be iommufd's choice too */
	map.user_va = (uintptr_t)va;
	ASSERT_EQ(0, ioctl(self->iommufd, IOMMU_IOAS_MAP, &map));
	ASSERT_EQ(0, get_pa(self->iommufd, self->ioas, map.iova, &length, &phys));
	EXPECT_EQ(pagemap_pa(va), phys);
}

TEST_F(noiommu, unmap_and_copy_while_attached)
{
	const uint64_t dst = 5 * HUGE_PAGE;
	char *va = anon(16 * PAGE, 0);
	uint64_t length, phys;
	uint32_t hwpt, hwpt2, other;

	touch_scattered(va, 16 * PAGE);
	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, va, 16 * PAGE, IOVA, MAP_RW));
	ASSERT_EQ(0, ioas_alloc(self->iommufd, &other));
	ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id, other, 0, &hwpt2));
	ASSERT_EQ(0, ioas_copy(self->iommufd, other, dst, self->ioas, IOVA,
			       16 * PAGE));
	/* Pinned once for both */
	EXPECT_EQ(self->pinned + 16, pinned_pages());

	ASSERT_EQ(0, ioas_unmap(self->iommufd, self->ioas, IOVA, 16 * PAGE));
	EXPECT_EQ(ENOENT, get_pa_errno(self->iommufd, self->ioas, IOVA));
	length = PAGE;
	ASSERT_EQ(0, get_pa(self->iommufd, other, dst + 7 * PAGE, &length, &phys));
	EXPECT_EQ(pagemap_pa(va + 7 * PAGE), phys);
	EXPECT_EQ(self->pinned + 16, pinned_pages());
	ASSERT_EQ(0, ioas_unmap(self->iommufd, other, 0, ULLONG_MAX));
	EXPECT_EQ(self->pinned, pinned_pages());
}

/*
 * Accounting and pins, in every order of going away
 */
TEST_F(noiommu, pins_return_in_every_order_of_close)
{
	enum { DEVICE_FIRST, IOMMUFD_FIRST, DETACH, UNMAP, DESTROY, NR_ORDERS };
	int order;

	close(self->device);
	close(self->iommufd);
	for (order = 0; order < NR_ORDERS; order++) {
		char *va = anon(64 * PAGE, MAP_POPULATE);
		uint32_t pt_id;

		ASSERT_EQ(0, open_pinned_devices(self->bdf, &self->device,
						 &self->iommufd, &self->dev_id));
		ASSERT_EQ(0, ioas_alloc(self->iommufd, &self->ioas));
		pt_id = self->ioas;
		ASSERT_EQ(0, attach_pt(self->device, &pt_id));
		ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, va, 64 * PAGE,
				      IOVA, MAP_RW));
		EXPECT_EQ(self->pinned + 64, pinned_pages());
		EXPECT_EQ(256, read_field("/proc/self/status", "VmPin:"));

		switch (order) {
		case DEVICE_FIRST:
			close(self->device);
			break;
		case IOMMUFD_FIRST:
			close(self->iommufd);
			/* The device still holds the iommufd */
			EXPECT_EQ(self->pinned + 64, pinned_pages());
			break;
		case DETACH:
			EXPECT_EQ(0, detach_pt(self->device));
			EXPECT_EQ(self->pinned, pinned_pages());
			break;
		case UNMAP:
			EXPECT_EQ(0, ioas_unmap(self->iommufd, self->ioas, IOVA,
						64 * PAGE));
			EXPECT_EQ(self->pinned, pinned_pages());
			break;
		case DESTROY:
			EXPECT_EQ(0, detach_pt(self->device));
			EXPECT_EQ(0, destroy(self->iommufd, self->ioas));
			break;
		}
		if (order != DEVICE_FIRST)
			close(self->device);
		if (order != IOMMUFD_FIRST)
			close(self->iommufd);
		EXPECT_EQ(self->pinned, pinned_pages());
		EXPECT_EQ(0, read_field("/proc/self/status", "VmPin:"));
		munmap(va, 64 * PAGE);
	}
	self->device = -1;
	self->iommufd = -1;
}

TEST_F(noiommu, pins_return_after_sigkill)
{
	int ready[2], status;
	uint32_t dev_id;
	char byte;
	pid_t pid;

	close(self->device);
	close(self->iommufd);
	ASSERT_EQ(0, pipe(ready));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		int device, iommufd;
		uint32_t ioas, pt_id;
		char *va = anon(64 * PAGE, MAP_POPULATE);

		if (open_pinned_devices(self->bdf, &device, &iommufd, &dev_id) ||
		    ioas_alloc(iommufd, &ioas))
			_exit(1);
		pt_id = ioas;
		if (attach_pt(device, &pt_id) ||
		    ioas_map(iommufd, ioas, va, 64 * PAGE, IOVA, MAP_RW))
			_exit(1);
		if (write(ready[1], "", 1) != 1)
			_exit(1);
		pause();
		_exit(0);
	}
	close(ready[1]);
	ASSERT_EQ(1, read(ready[0], &byte, 1));
	EXPECT_EQ(self->pinned + 64, pinned_pages());
	ASSERT_EQ(0, kill(pid, SIGKILL));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status));
	EXPECT_EQ(self->pinned, pinned_pages());
	/* The device is free again */
	ASSERT_EQ(0, open_pinned_devices(self->bdf, &self->device,
					 &self->iommufd, &self->dev_id));
}

/* As a user without CAP_IPC_LOCK, who may lock 64 pages */
static int map_as_user(struct _test_data_noiommu *self, char *va, size_t pages)
{
	struct rlimit limit = { 64 * PAGE, 64 * PAGE };

	if (setrlimit(RLIMIT_MEMLOCK, &limit) || setuid(12345))
		return 255;
	return ioas_map(self->iommufd, self->ioas, va, pages * PAGE, IOVA, MAP_RW);
}

TEST_F(noiommu, locked_memory_is_accounted)
{
	char *va = anon(65 * PAGE, MAP_POPULATE);
	uint32_t hwpt;

	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	IN_CHILD(ENOMEM, map_as_user(self, va, 65));
	EXPECT_EQ(self->pinned, pinned_pages());
	/* The limit is that of the user: used up, and free after the unmap */
	IN_CHILD(0, map_as_user(self, va, 64));
	EXPECT_EQ(self->pinned + 64, pinned_pages());
	IN_CHILD(ENOMEM, ({
		struct rlimit limit = { 64 * PAGE, 64 * PAGE };

		setrlimit(RLIMIT_MEMLOCK, &limit) || setuid(12345) ? 255 :
			ioas_map(self->iommufd, self->ioas, va, PAGE,
				 IOVA + HUGE_PAGE, MAP_RW);
	}));
	EXPECT_EQ(0, ioas_unmap(self->iommufd, self->ioas, IOVA, 64 * PAGE));
	IN_CHILD(0, map_as_user(self, va, 64));
	EXPECT_EQ(0, ioas_unmap(self->iommufd, self->ioas, IOVA, 64 * PAGE));
	EXPECT_EQ(self->pinned, pinned_pages());
}

/*
 * The device itself
 */
#define read_once(ptr)		__atomic_load_n(ptr, __ATOMIC_RELAXED)
#define write_once(ptr, value)	__atomic_store_n(ptr, value, __ATOMIC_SEQ_CST)

static off_t region_offset(int device, unsigned int index, size_t *size)
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

TEST_F(noiommu, bus_mastering_is_off_after_close)
{
	off_t config = region_offset(self->device, VFIO_PCI_CONFIG_REGION_INDEX, NULL);
	uint16_t command;
	char path[600];
	int fd;

	ASSERT_LE(0, config);
	ASSERT_EQ(2, pread(self->device, &command, 2, config + PCI_COMMAND));
	EXPECT_EQ(0, command & PCI_COMMAND_MASTER);
	command |= PCI_COMMAND_MASTER | PCI_COMMAND_MEMORY;
	ASSERT_EQ(2, pwrite(self->device, &command, 2, config + PCI_COMMAND));
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/config", self->bdf);
	fd = open(path, O_RDONLY);
	ASSERT_LE(0, fd);
	ASSERT_EQ(2, pread(fd, &command, 2, PCI_COMMAND));
	EXPECT_NE(0, command & PCI_COMMAND_MASTER);
	close(self->device);
	self->device = -1;
	ASSERT_EQ(2, pread(fd, &command, 2, PCI_COMMAND));
	EXPECT_EQ(0, command & PCI_COMMAND_MASTER);
	close(fd);
}

/*
 * edu copies between memory and a buffer of its own: QEMU, docs/specs/edu.rst.
 * Half a page, as some versions of QEMU refuse the last byte of the buffer.
 */
TEST_F(noiommu, edu_dma)
{
	char *va = anon(64 * PAGE, 0);
	uint64_t length = PAGE, from, to;
	uint64_t *bar;
	uint16_t command;
	uint32_t hwpt;
	off_t offset;
	size_t size = 0;
	int i;

	if (strcmp(variant->device, "0x11e8"))
		SKIP(return, "not edu");

	touch_scattered(va, 64 * PAGE);
	memset(va + 5 * PAGE, 0xa5, PAGE);
	memset(va + 42 * PAGE, 0, PAGE);
	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, va, 64 * PAGE, IOVA, MAP_RW));
	ASSERT_EQ(0, get_pa(self->iommufd, self->ioas, IOVA + 5 * PAGE, &length, &from));
	length = PAGE;
	ASSERT_EQ(0, get_pa(self->iommufd, self->ioas, IOVA + 42 * PAGE, &length, &to));

	offset = region_offset(self->device, VFIO_PCI_CONFIG_REGION_INDEX, NULL);
	command = PCI_COMMAND_MASTER | PCI_COMMAND_MEMORY;
	ASSERT_EQ(2, pwrite(self->device, &command, 2, offset + PCI_COMMAND));
	offset = region_offset(self->device, VFIO_PCI_BAR0_REGION_INDEX, &size);
	bar = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, self->device, offset);
	ASSERT_NE(MAP_FAILED, bar);

	/* Into the device, and out of it elsewhere */
	for (i = 0; i < 2; i++) {
		int tries = 1000;

		write_once(&bar[0x80 / 8], i ? 0x40000 : from);
		write_once(&bar[0x88 / 8], i ? to : 0x40000);
		write_once(&bar[0x90 / 8], PAGE / 2);
		write_once(&bar[0x98 / 8], i ? 3 : 1);
		while (read_once(&bar[0x98 / 8]) & 1 && --tries)
			usleep(1000);
		ASSERT_NE(0, tries);
	}
	EXPECT_EQ(0, memcmp(va + 5 * PAGE, va + 42 * PAGE, PAGE / 2));
	EXPECT_EQ(0, va[42 * PAGE + PAGE / 2]);
	munmap(bar, size);
}

/*
 * Two devices in one iommufd
 */
TEST(two_devices)
{
	static const char * const ids[2][2] = {
		{ "0x1b36", "0x0010" }, { "0x1234", "0x11e8" },
	};
	int iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	uint32_t dev_id[2], pt_id[2], ioas, other;
	char *va = anon(PAGE, MAP_POPULATE);
	int device[2], i;
	char bdf[256];
	long long pinned = pinned_pages();

	ASSERT_LE(0, iommufd);
	ASSERT_EQ(0, ioas_alloc(iommufd, &ioas));
	ASSERT_EQ(0, ioas_alloc(iommufd, &other));
	ASSERT_EQ(0, noiommu_switch(true));
	for (i = 0; i < 2; i++) {
		if (!find_device(ids[i][0], ids[i][1], bdf, sizeof(bdf)))
			SKIP(return, "needs NVMe and edu");
		if (device_has_iommu(bdf))
			SKIP(return, "%s has an IOMMU", bdf);
		ASSERT_EQ(0, ensure_bound(bdf));
		device[i] = cdev_open(bdf);
		ASSERT_LE(0, device[i]);
		ASSERT_EQ(0, bind_iommufd(device[i], iommufd, &dev_id[i]));
		pt_id[i] = ioas;
		ASSERT_EQ(0, attach_pt(device[i], &pt_id[i]));
	}
	EXPECT_NE(dev_id[0], dev_id[1]);
	/* Two devices of one kind share the IOAS's own HWPT, and its pins */
	EXPECT_EQ(pt_id[0], pt_id[1]);
	ASSERT_EQ(0, ioas_map(iommufd, ioas, va, PAGE, IOVA, MAP_RW));
	EXPECT_EQ(pinned + 1, pinned_pages());
	/* A HWPT made for one serves the other */
	ASSERT_EQ(0, hwpt_alloc(iommufd, dev_id[1], other, 0, &pt_id[0]));
	EXPECT_EQ(0, attach_pt(device[0], &pt_id[0]));
	EXPECT_EQ(0, get_pa_errno(iommufd, ioas, IOVA));
	EXPECT_EQ(EBUSY, destroy(iommufd, pt_id[0]));
	/* The first device gone, the second keeps what it has */
	close(device[0]);
	EXPECT_EQ(0, destroy(iommufd, pt_id[0]));
	EXPECT_EQ(0, get_pa_errno(iommufd, ioas, IOVA));
	close(device[1]);
	EXPECT_EQ(pinned, pinned_pages());
	/* The HWPT went with the last device */
	EXPECT_EQ(EOPNOTSUPP, get_pa_errno(iommufd, ioas, IOVA));
	close(iommufd);
}

/*
 * Hot reset of a cdev goes by ownership of the affected devices. For lack of an
 * iommu_group that is by device ID only.
 */
TEST_F(noiommu, hot_reset)
{
	union {
		struct vfio_pci_hot_reset_info info;
		char room[sizeof(struct vfio_pci_hot_reset_info) +
			  16 * sizeof(struct vfio_pci_dependent_device)];
	} buf = { .info = { .argsz = sizeof(buf) } };
	struct vfio_pci_hot_reset reset = { .argsz = sizeof(reset) };
	bool found = false;
	unsigned int i;

	if (ERRNO_OF(ioctl(self->device, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO,
			   &buf)) == ENODEV)
		SKIP(return, "no hot reset of this device");
	EXPECT_NE(0, buf.info.flags & VFIO_PCI_HOT_RESET_FLAG_DEV_ID);
	EXPECT_NE(0, buf.info.flags & VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED);
	for (i = 0; i < buf.info.count; i++)
		found |= buf.info.devices[i].devid == self->dev_id;
	EXPECT_TRUE(found);
	EXPECT_EQ(0, ERRNO_OF(ioctl(self->device, VFIO_DEVICE_PCI_HOT_RESET, &reset)));
}

/* KVM takes VFIO files to know what is assigned; a cdev has no group to ask */
TEST_F(noiommu, kvm)
{
	struct kvm_create_device device = { .type = KVM_DEV_TYPE_VFIO };
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm, fd;
	struct kvm_device_attr attr = {
		.group = KVM_DEV_VFIO_FILE,
		.attr = KVM_DEV_VFIO_FILE_ADD,
		.addr = (uintptr_t)&fd,
	};
	struct vfio_device_info info = { .argsz = sizeof(info) };
	uint32_t dev_id;

	if (kvm < 0)
		SKIP(return, "no KVM");
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	ASSERT_LE(0, vm);
	ASSERT_EQ(0, ioctl(vm, KVM_CREATE_DEVICE, &device));

	/* Added before it is bound, as VMMs do */
	close(self->device);
	self->device = cdev_open(self->bdf);
	ASSERT_LE(0, self->device);
	fd = self->device;
	EXPECT_EQ(0, ioctl(device.fd, KVM_SET_DEVICE_ATTR, &attr));
	EXPECT_EQ(0, bind_iommufd(self->device, self->iommufd, &dev_id));
	EXPECT_EQ(0, ioctl(self->device, VFIO_DEVICE_GET_INFO, &info));
	attr.attr = KVM_DEV_VFIO_FILE_DEL;
	EXPECT_EQ(0, ioctl(device.fd, KVM_SET_DEVICE_ATTR, &attr));
	/* And after */
	attr.attr = KVM_DEV_VFIO_FILE_ADD;
	EXPECT_EQ(0, ioctl(device.fd, KVM_SET_DEVICE_ATTR, &attr));
	close(device.fd);
	close(vm);
	close(kvm);
}

/*
 * A device behind an IOMMU and one without in one iommufd
 */
FIXTURE(mixed)
{
	int iommufd;
	int device[2];			/* without and with an IOMMU */
	uint32_t dev_id[2];
	uint32_t ioas;
	char *va;
	long long pinned;
};

FIXTURE_SETUP(mixed)
{
	static const char * const ids[3][2] = {
		{ "0x1b36", "0x0010" }, { "0x1234", "0x11e8" }, { "0x8086", "0x10d3" },
	};
	char bdf[2][256] = {}, found[256], name[256];
	int i;

	self->iommufd = -1;
	for (i = 0; i < 3; i++) {
		if (!find_device(ids[i][0], ids[i][1], found, sizeof(found)))
			continue;
		snprintf(bdf[device_has_iommu(found)], sizeof(bdf[0]), "%s",
			 found);
	}
	if (!bdf[0][0] || !bdf[1][0])
		SKIP(return, "needs a device behind an IOMMU and one without");

	/* Emulated IOMMUs isolate no MSIs */
	write_file("/sys/module/iommufd/parameters/allow_unsafe_interrupts", "Y");
	ASSERT_EQ(0, noiommu_switch(true));
	self->pinned = pinned_pages();
	self->iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->iommufd);
	ASSERT_EQ(0, ioas_alloc(self->iommufd, &self->ioas));
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, ensure_bound(bdf[i]));
		ASSERT_TRUE(cdev_name(bdf[i], name, sizeof(name)));
		EXPECT_EQ(0, strncmp(name, i ? "vfio" : "noiommu-vfio", i ? 4 : 12));
		self->device[i] = cdev_open(bdf[i]);
		ASSERT_LE(0, self->device[i]);
		ASSERT_EQ(0, bind_iommufd(self->device[i], self->iommufd,
					  &self->dev_id[i]));
	}
	self->va = anon(16 * PAGE, 0);
	touch_scattered(self->va, 16 * PAGE);
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, self->va, 16 * PAGE, IOVA,
			      MAP_RW));
}

FIXTURE_TEARDOWN(mixed)
{
	if (self->iommufd < 0)
		return;
	close(self->device[0]);
	close(self->device[1]);
	close(self->iommufd);
	EXPECT_EQ(self->pinned, pinned_pages());
}

TEST_F(mixed, one_ioas_in_either_order)
{
	uint64_t length, phys;
	uint32_t pt_id[2];
	int first, offset;

	for (first = 0; first < 2; first++) {
		pt_id[0] = self->ioas;
		pt_id[1] = self->ioas;
		ASSERT_EQ(0, attach_pt(self->device[first], &pt_id[first]));
		if (first)
			EXPECT_EQ(EOPNOTSUPP, get_pa_errno(self->iommufd, self->ioas, IOVA));
		ASSERT_EQ(0, attach_pt(self->device[!first], &pt_id[!first]));
		/* A domain of its own kind for each, and the pages pinned once */
		EXPECT_NE(pt_id[0], pt_id[1]);
		EXPECT_EQ(self->pinned + 16, pinned_pages());
		for (offset = 0; offset < 16; offset++) {
			length = PAGE;
			ASSERT_EQ(0, get_pa(self->iommufd, self->ioas,
					    IOVA + offset * PAGE, &length, &phys));
			EXPECT_EQ(pagemap_pa(self->va + offset * PAGE), phys);
		}
		/* Map and unmap reach both */
		ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, self->va + PAGE,
				      PAGE, IOVA + HUGE_PAGE, MAP_RW));
		EXPECT_EQ(0, get_pa_errno(self->iommufd, self->ioas, IOVA + HUGE_PAGE));
		ASSERT_EQ(0, ioas_unmap(self->iommufd, self->ioas, IOVA + HUGE_PAGE,
					PAGE));
		EXPECT_EQ(ENOENT, get_pa_errno(self->iommufd, self->ioas,
					       IOVA + HUGE_PAGE));
		/* The physical addresses go with the noiommu device, not the other */
		ASSERT_EQ(0, detach_pt(self->device[first]));
		if (!first) {
			EXPECT_EQ(EOPNOTSUPP, get_pa_errno(self->iommufd,
							   self->ioas, IOVA));
		} else {
			length = PAGE;
			ASSERT_EQ(0, get_pa(self->iommufd, self->ioas,
					    IOVA + 3 * PAGE, &length, &phys));
			EXPECT_EQ(pagemap_pa(self->va + 3 * PAGE), phys);
		}
		ASSERT_EQ(0, detach_pt(self->device[!first]));
		EXPECT_EQ(EOPNOTSUPP, get_pa_errno(self->iommufd, self->ioas, IOVA));
	}
}

TEST_F(mixed, hwpts_of_the_other_kind)
{
	uint32_t hwpt[2], pt_id;
	int i;

	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id[i], self->ioas,
					0, &hwpt[i]));
	for (i = 0; i < 2; i++) {
		pt_id = hwpt[!i];
		EXPECT_EQ(EINVAL, attach_pt(self->device[i], &pt_id));
		pt_id = hwpt[i];
		ASSERT_EQ(0, attach_pt(self->device[i], &pt_id));
		/* As a replace too, which leaves the old one in place */
		pt_id = hwpt[!i];
		EXPECT_EQ(EINVAL, attach_pt(self->device[i], &pt_id));
		EXPECT_EQ(EBUSY, destroy(self->iommufd, hwpt[i]));
	}
	EXPECT_EQ(0, get_pa_errno(self->iommufd, self->ioas, IOVA));
	for (i = 0; i < 2; i++) {
		EXPECT_EQ(0, detach_pt(self->device[i]));
		EXPECT_EQ(0, destroy(self->iommufd, hwpt[i]));
	}
}

TEST_F(mixed, reserved_iovas_survive_a_failed_replace)
{
	/* x86's MSI window is reserved for what is behind an IOMMU */
	const uint64_t msi = 0xfee00000;
	uint32_t hwpt[2], pt_id;
	int i;

	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id[i], self->ioas,
					0, &hwpt[i]));
	/* A refused attach leaves none behind */
	pt_id = hwpt[0];
	EXPECT_EQ(EINVAL, attach_pt(self->device[1], &pt_id));
	EXPECT_EQ(0, ioas_map(self->iommufd, self->ioas, self->va, PAGE, msi, MAP_RW));
	ASSERT_EQ(0, ioas_unmap(self->iommufd, self->ioas, msi, PAGE));

	pt_id = hwpt[1];
	ASSERT_EQ(0, attach_pt(self->device[1], &pt_id));
	if (ioas_map(self->iommufd, self->ioas, self->va, PAGE, msi, MAP_RW) == 0)
		SKIP(return, "no reserved MSI window");
	pt_id = hwpt[0];
	EXPECT_EQ(EINVAL, attach_pt(self->device[1], &pt_id));
	EXPECT_NE(0, ioas_map(self->iommufd, self->ioas, self->va, PAGE, msi, MAP_RW));
	/* Without an IOMMU no IOVA is special */
	ASSERT_EQ(0, detach_pt(self->device[1]));
	pt_id = hwpt[0];
	ASSERT_EQ(0, attach_pt(self->device[0], &pt_id));
	EXPECT_EQ(0, ioas_map(self->iommufd, self->ioas, self->va, PAGE, msi, MAP_RW));
}

/* The same of a replace by a HWPT of the right kind that fails halfway */
TEST_F(mixed, reserved_iovas_survive_a_failed_allocation)
{
	int proc = open("/proc/self/fail-nth", O_RDWR), nth, cur = 0, failed = 0;
	const uint64_t msi = 0xfee00000;
	uint32_t hwpt[2], pt_id;
	char text[16];

	if (proc < 0 ||
	    write_file("/sys/kernel/debug/failslab/ignore-gfp-wait", "N"))
		SKIP(return, "no fault injection (CONFIG_FAILSLAB, debugfs)");
	for (nth = 0; nth < 2; nth++)
		ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id[1], self->ioas,
					0, &hwpt[nth]));
	pt_id = hwpt[0];
	ASSERT_EQ(0, attach_pt(self->device[1], &pt_id));

	for (nth = 1; nth < 100; nth++) {
		int rc;

		snprintf(text, sizeof(text), "%d", nth);
		ASSERT_LT(0, pwrite(proc, text, strlen(text), 0));
		pt_id = hwpt[!cur];
		rc = attach_pt(self->device[1], &pt_id);
		memset(text, 0, sizeof(text));
		ASSERT_LT(0, pread(proc, text, sizeof(text) - 1, 0));
		ASSERT_EQ(1, pwrite(proc, "0", 1, 0));
		if (rc)
			failed++;
		else
			cur = !cur;
		EXPECT_NE(0, ioas_map(self->iommufd, self->ioas, self->va, PAGE,
				      msi, MAP_RW)) TH_LOG("point %d", nth);
		if (atoi(text))
			break;
	}
	EXPECT_LT(0, failed);
	close(proc);
}

/*
 * A mediated device has no IOMMU either, and does no DMA of its own: it keeps
 * its plain name and its group.
 */
TEST(mdev_is_not_noiommu)
{
	static const char uuid[] = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
	static const char parent[] = "/sys/devices/virtual/mtty/mtty";
	char path[600], name[256], target[256];
	ssize_t len;

	snprintf(path, sizeof(path), "%s/mdev_supported_types/mtty-1/create", parent);
	ASSERT_EQ(0, noiommu_switch(true));
	if (write_file(path, uuid))
		SKIP(return, "no sample mtty");
	snprintf(path, sizeof(path), "%s/%s/vfio-dev", parent, uuid);
	ASSERT_TRUE(find_entry(path, "", name, sizeof(name)));
	EXPECT_EQ(0, strncmp(name, "vfio", 4));
	snprintf(path, sizeof(path), "/dev/vfio/devices/%s", name);
	EXPECT_EQ(0, access(path, F_OK));
	snprintf(path, sizeof(path), "%s/%s/iommu_group", parent, uuid);
	len = readlink(path, target, sizeof(target) - 1);
	ASSERT_LT(0, len);
	target[len] = 0;
	snprintf(path, sizeof(path), "/dev/vfio/%s", strrchr(target, '/') + 1);
	EXPECT_EQ(0, access(path, F_OK));
	snprintf(path, sizeof(path), "%s/%s/remove", parent, uuid);
	EXPECT_EQ(0, write_file(path, "1"));
}

TEST_HARNESS_MAIN
