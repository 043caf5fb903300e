// SPDX-License-Identifier: GPL-2.0-only
/*
 * The user ABI of cdev noiommu as Linux 7.3 has it, case by case, on devices without an
 * IOMMU
 *
 * It is built with the user headers of Linux 7.3 or later ones, and passes on an
 * unpatched Linux 7.3 as on a kernel with extents, which is called ours here. Where the
 * two differ on purpose, a test named differs_* finds out which of them this is, and
 * expects the behaviour of that one.
 *
 * Run as root. Takes the devices named in the fixture's variants away from
 * their drivers and binds them to vfio-pci. Those that are absent are skipped.
 */
#include <assert.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <linux/pci_regs.h>

#include "kselftest_harness.h"
#include "vfio_noiommu_fixture.h"

/* Documentation/admin-guide/tainted-kernels.rst */
#define TAINT_USER 0x40

/* The argument of GET_PA in a program that was built for Linux 7.3 */
struct get_pa_7_3 {
	uint32_t size;
	uint32_t flags;
	uint32_t ioas_id;
	uint32_t reserved;
	uint64_t iova;
	uint64_t length;
	uint64_t out_phys;
};

#define GET_PA_7_3 _IO(';', 0x95)
/* Size of the members that the kernel with extents has after it */
#define EXTENSION 16

static_assert(sizeof(struct get_pa_7_3) == 40, "size of Linux 7.3");
static_assert(sizeof(struct get_pa_7_3) == GET_PA_SIZE, "members that precede extents");
static_assert(GET_PA_7_3 == IOMMU_IOAS_NOIOMMU_GET_PA, "number of Linux 7.3");

/*
 * Is this kernel ours? Linux 7.3 refuses a request for extents with E2BIG. There is no
 * IOAS 0.
 */
static bool is_ours(struct __test_metadata *_metadata, int iommufd)
{
	uint64_t extents[2];
	struct {
		struct get_pa_7_3 cmd;
		uint32_t nr_extents;
		uint32_t reserved;
		uint64_t extents;
	} probe = {
		.cmd.size = sizeof(probe),
		.cmd.flags = 1,
		.cmd.length = 1,
		.nr_extents = 1,
		.extents = (uintptr_t)extents,
	};
	int rc = ERRNO_OF(ioctl(iommufd, GET_PA_7_3, &probe));

	if (rc != E2BIG)
		ASSERT_EQ(ENOENT, rc);
	TH_LOG("%s", rc == ENOENT ? "ours" : "Linux 7.3");
	return rc == ENOENT;
}

/* Does the command line of the kernel have this option? */
static bool booted_with(const char *option)
{
	char line[4096];

	return !read_file("/proc/cmdline", line, sizeof(line)) && strstr(line, option);
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

	/* With group noiommu there is its node too */
	if (group_path(self->bdf, path, sizeof(path))) {
		ASSERT_EQ(0, stat(path, &node));
		EXPECT_TRUE(S_ISCHR(node.st_mode));
	}
}

TEST_F(noiommu, taint_and_log)
{
	char taint[32], line[400];
	int log;

	ASSERT_EQ(0, read_file("/proc/sys/kernel/tainted", taint, sizeof(taint)));
	EXPECT_NE(0, atol(taint) & TAINT_USER);

	/* Registered again, so that it is logged from here on */
	close(self->device);
	close(self->iommufd);
	device_unbind(self->bdf);
	log = log_open();
	ASSERT_LE(0, log);
	ASSERT_EQ(0, device_bind(self->bdf));
	ASSERT_EQ(0, open_bound(self->bdf, &self->device,
				&self->iommufd, &self->dev_id));
	snprintf(line, sizeof(line),
		 "%s: Adding kernel taint for vfio-noiommu cdev", self->bdf);
	EXPECT_TRUE(log_has(log, line));
	close(log);
}

TEST_F(noiommu, differs_open_is_logged)
{
	bool ours = is_ours(_metadata, self->iommufd);
	char line[400];
	int log;

	close(self->device);
	log = log_open();
	ASSERT_LE(0, log);
	self->device = cdev_open(self->bdf);
	ASSERT_LE(0, self->device);
	snprintf(line, sizeof(line), "%s: vfio-noiommu cdev opened by user (",
		 self->bdf);
	EXPECT_EQ(ours, log_has(log, line));
	close(log);
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
	/* Root of a new user namespace has every capability in it, and none outside */
	if (unshare(CLONE_NEWUSER)) {
		rc = errno;
		SKIP(return, "no user namespaces (errno %d)", rc);
	}
	EXPECT_EQ(EPERM, ERRNO_OF(cdev_open(self->bdf)));
}

/* Run by itself on a kernel that is locked down, where no other test can open a cdev */
TEST(differs_open_under_lockdown)
{
	int iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC), device;
	char bdf[256];
	bool ours;

	if (lockdown_is("none"))
		SKIP(return, "the kernel is not locked down");
	if (!find_device("0x1b36", "0x0010", bdf, sizeof(bdf)) || device_has_iommu(bdf))
		SKIP(return, "no NVMe disk without an IOMMU");
	ASSERT_LE(0, iommufd);
	ours = is_ours(_metadata, iommufd);
	ASSERT_EQ(0, noiommu_switch(true));
	ASSERT_EQ(0, ensure_bound(bdf));
	device = cdev_open(bdf);
	if (ours) {
		EXPECT_GT(0, device);
		EXPECT_EQ(EPERM, errno);
	} else {
		EXPECT_LE(0, device);
		close(device);
	}
	close(iommufd);
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
	EXPECT_EQ(0, open_bound(self->bdf, &self->device,
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

/* Group noiommu works as it did before cdev noiommu existed */
TEST_F(noiommu, group_without_and_with_iommufd)
{
	struct vfio_device_info info = { .argsz = sizeof(info) };
	uint32_t pt_id = self->ioas;
	char path[600];
	int i;

	if (!group_path(self->bdf, path, sizeof(path)))
		SKIP(return, "no group noiommu");
	/* A detach has no effect on a later user of the group */
	ASSERT_EQ(0, attach_pt(self->device, &pt_id));
	ASSERT_EQ(0, detach_pt(self->device));
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
		ASSERT_EQ(0, command_write(device, PCI_COMMAND_MASTER));
		EXPECT_EQ(PCI_COMMAND_MASTER, command_read(device) & PCI_COMMAND_MASTER);
		close(device);
		close(group);
		close(container);
	}
}

/*
 * A device whose VFIO driver can't stop its DMA has no cdev in ours. The driver is
 * virtio_vfio_pci, which a virtio-net device can be bound to.
 */
TEST(differs_other_drivers)
{
	static const char driver[] = "/sys/bus/pci/drivers/virtio_vfio_pci";
	char bdf[256], name[256], path[600], was[256] = "";
	int iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC), device, rc;
	uint32_t dev_id, pt_id;
	ssize_t len;
	bool ours;

	if (access(driver, F_OK))
		SKIP(return, "no virtio_vfio_pci (CONFIG_VIRTIO_VFIO_PCI)");
	if (!find_device("0x1af4", "0x1041", bdf, sizeof(bdf)) || device_has_iommu(bdf))
		SKIP(return, "no virtio-net device (1af4:1041) without an IOMMU");
	ASSERT_LE(0, iommufd);
	ours = is_ours(_metadata, iommufd);
	ASSERT_EQ(0, noiommu_switch(true));
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/driver", bdf);
	len = readlink(path, was, sizeof(was) - 1);
	was[len > 0 ? len : 0] = 0;
	device_unbind(bdf);
	ASSERT_EQ(0, device_write(bdf, "driver_override", "virtio_vfio_pci"));
	snprintf(path, sizeof(path), "%s/bind", driver);
	rc = write_file(path, bdf);
	if (ours && rc) {
		/* Without group noiommu there is no node that it could have */
		EXPECT_EQ(-EINVAL, rc);
		EXPECT_FALSE(cdev_name(bdf, name, sizeof(name)));
	} else {
		ASSERT_EQ(0, rc);
		ASSERT_TRUE(cdev_name(bdf, name, sizeof(name)));
		EXPECT_EQ(0, strncmp(name, ours ? "vfio" : "noiommu-vfio", ours ? 4 : 12));
		device = cdev_open(bdf);
		if (ours) {
			EXPECT_GT(0, device);
			EXPECT_EQ(ENOENT, errno);
			ASSERT_TRUE(group_path(bdf, path, sizeof(path)));
			EXPECT_EQ(0, access(path, F_OK));
		} else {
			ASSERT_LE(0, device);
			EXPECT_EQ(0, bind_iommufd(device, iommufd, &dev_id));
			EXPECT_EQ(0, ioas_alloc(iommufd, &pt_id));
			EXPECT_EQ(0, attach_pt(device, &pt_id));
			close(device);
		}
	}
	device_unbind(bdf);
	device_write(bdf, "driver_override", "\n");
	if (was[0]) {
		snprintf(path, sizeof(path), "/sys/bus/pci/drivers%s/bind",
			 strrchr(was, '/'));
		EXPECT_EQ(0, write_file(path, bdf));
	}
	close(iommufd);
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
	/* The first file still works */
	EXPECT_EQ(0, attach_pt(self->device, &self->ioas));
}

TEST_F(noiommu, bind_bad_arguments)
{
	struct vfio_device_bind_iommufd bind = {
		.argsz = sizeof(bind),
		.flags = 1U << 31,
	};
	uint32_t dev_id;

	close(self->device);
	self->device = cdev_open(self->bdf);
	ASSERT_LE(0, self->device);
	EXPECT_EQ(EINVAL, bind_iommufd(self->device, -1, &dev_id));
	EXPECT_EQ(EBADFD, bind_iommufd(self->device, self->device, &dev_id));
	bind.iommufd = self->iommufd;
	EXPECT_EQ(EINVAL, ERRNO_OF(ioctl(self->device, VFIO_DEVICE_BIND_IOMMUFD, &bind)));
	bind.flags = 0;
	bind.argsz = 4;
	EXPECT_EQ(EINVAL, ERRNO_OF(ioctl(self->device, VFIO_DEVICE_BIND_IOMMUFD, &bind)));
	EXPECT_EQ(0, bind_iommufd(self->device, self->iommufd, &dev_id));
}

TEST_F(noiommu, nothing_before_bind)
{
	struct vfio_device_info info = { .argsz = sizeof(info) };
	uint32_t pt_id = self->ioas, dev_id;
	uint16_t word;

	close(self->device);
	self->device = cdev_open(self->bdf);
	ASSERT_LE(0, self->device);
	EXPECT_EQ(EINVAL, ERRNO_OF(ioctl(self->device, VFIO_DEVICE_GET_INFO, &info)));
	EXPECT_EQ(EINVAL, attach_pt(self->device, &pt_id));
	EXPECT_EQ(EINVAL, detach_pt(self->device));
	EXPECT_EQ(EINVAL, ERRNO_OF(pread(self->device, &word, sizeof(word), 0)));
	EXPECT_EQ(EINVAL, ERRNO_OF(pwrite(self->device, &word, sizeof(word), 0)));
	EXPECT_EQ(MAP_FAILED, mmap(NULL, PAGE, PROT_READ, MAP_SHARED, self->device, 0));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(0, bind_iommufd(self->device, self->iommufd, &dev_id));
	EXPECT_EQ(0, ERRNO_OF(ioctl(self->device, VFIO_DEVICE_GET_INFO, &info)));
	EXPECT_NE(0, info.flags & VFIO_DEVICE_FLAGS_PCI);
}

/* Run by itself on a kernel that bounces all DMA, where ours binds no device */
TEST(differs_bind_of_bounced_dma)
{
	int iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC), device, log;
	char bdf[256], line[400];
	uint32_t dev_id;
	bool ours;

	if (!booted_with("swiotlb=force"))
		SKIP(return, "the kernel was not booted with swiotlb=force");
	if (!find_device("0x1b36", "0x0010", bdf, sizeof(bdf)) || device_has_iommu(bdf))
		SKIP(return, "no NVMe disk without an IOMMU");
	ASSERT_LE(0, iommufd);
	ours = is_ours(_metadata, iommufd);
	ASSERT_EQ(0, noiommu_switch(true));
	ASSERT_EQ(0, ensure_bound(bdf));
	device = cdev_open(bdf);
	ASSERT_LE(0, device);
	log = log_open();
	ASSERT_LE(0, log);
	EXPECT_EQ(ours ? EOPNOTSUPP : 0, bind_iommufd(device, iommufd, &dev_id));
	snprintf(line, sizeof(line),
		 "%s: can't be used without an IOMMU: its DMA has to be bounced", bdf);
	EXPECT_EQ(ours, log_has(log, line));
	close(log);
	close(device);
	close(iommufd);
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
	/* Detach of a device that is not attached succeeds, as with an IOMMU */
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
	/* The failed attach holds no reference to the HWPT or the IOAS */
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
	/* A second attach to the same IOAS finds the same HWPT */
	ASSERT_EQ(0, attach_pt(self->device, &again));
	EXPECT_EQ(pt_id, again);
	ASSERT_EQ(0, detach_pt(self->device));
	/* The detach destroyed the HWPT that the attach had made */
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
			/* The new HWPT is in use, and the old one is not */
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
	/* Destroy the first, the last and the middle: each may be the one that stores PFNs */
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

/* Ours stops the device at detach, and does not switch bus mastering on again */
TEST_F(noiommu, differs_detach_stops_bus_mastering)
{
	bool ours = is_ours(_metadata, self->iommufd);
	uint16_t kept = ours ? 0 : PCI_COMMAND_MASTER;
	uint32_t pt_id = self->ioas;

	ASSERT_EQ(0, attach_pt(self->device, &pt_id));
	ASSERT_EQ(0, command_write(self->device, PCI_COMMAND_MASTER));
	EXPECT_EQ(PCI_COMMAND_MASTER, command_read(self->device) & PCI_COMMAND_MASTER);
	ASSERT_EQ(0, detach_pt(self->device));
	EXPECT_EQ(kept, command_read(self->device) & PCI_COMMAND_MASTER);
	ASSERT_EQ(0, command_write(self->device, 0));
	ASSERT_EQ(0, command_write(self->device, PCI_COMMAND_MASTER));
	EXPECT_EQ(kept, command_read(self->device) & PCI_COMMAND_MASTER);

	pt_id = self->ioas;
	ASSERT_EQ(0, attach_pt(self->device, &pt_id));
	EXPECT_EQ(kept, command_read(self->device) & PCI_COMMAND_MASTER);
	ASSERT_EQ(0, command_write(self->device, PCI_COMMAND_MASTER));
	EXPECT_EQ(PCI_COMMAND_MASTER, command_read(self->device) & PCI_COMMAND_MASTER);
}

/*
 * What needs an IOMMU is refused
 */
TEST_F(noiommu, hwpt_flags_and_user_data)
{
	static const uint32_t flags[] = {
		IOMMU_HWPT_ALLOC_NEST_PARENT,
		IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
		IOMMU_HWPT_ALLOC_PASID,
		IOMMU_HWPT_FAULT_ID_VALID | IOMMU_HWPT_ALLOC_PASID,
		IOMMU_HWPT_FAULT_ID_VALID | IOMMU_HWPT_ALLOC_NEST_PARENT,
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
	/* An object that is no page table, and no object */
	alloc.pt_id = self->dev_id;
	EXPECT_EQ(EINVAL, ERRNO_OF(ioctl(self->iommufd, IOMMU_HWPT_ALLOC, &alloc)));
	alloc.pt_id = 0xdead;
	EXPECT_EQ(EINVAL, ERRNO_OF(ioctl(self->iommufd, IOMMU_HWPT_ALLOC, &alloc)));
	alloc.pt_id = self->ioas;
	alloc.dev_id = 0xdead;
	EXPECT_EQ(ENOENT, ERRNO_OF(ioctl(self->iommufd, IOMMU_HWPT_ALLOC, &alloc)));
	alloc.dev_id = self->ioas;
	EXPECT_EQ(ENOENT, ERRNO_OF(ioctl(self->iommufd, IOMMU_HWPT_ALLOC, &alloc)));
}

TEST_F(noiommu, differs_fault_queue_flag)
{
	struct iommu_fault_alloc fault = { .size = sizeof(fault) };
	bool ours = is_ours(_metadata, self->iommufd);
	struct iommu_hwpt_alloc alloc = {
		.size = sizeof(alloc),
		.flags = IOMMU_HWPT_FAULT_ID_VALID,
		.dev_id = self->dev_id,
		.pt_id = self->ioas,
	};

	ASSERT_EQ(0, ioctl(self->iommufd, IOMMU_FAULT_QUEUE_ALLOC, &fault));
	alloc.fault_id = fault.out_fault_id;
	EXPECT_EQ(ours ? EOPNOTSUPP : 0,
		  ERRNO_OF(ioctl(self->iommufd, IOMMU_HWPT_ALLOC, &alloc)));
	if (!ours)
		EXPECT_EQ(0, destroy(self->iommufd, alloc.out_hwpt_id));
	close(fault.out_fault_fd);
	EXPECT_EQ(0, destroy(self->iommufd, fault.out_fault_id));
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
	/* These need a vIOMMU, which the device cannot have */
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

/* Map, unmap and destroy fail as they do for a device behind an IOMMU */
TEST_F(noiommu, map_and_destroy_errors)
{
	char *va = anon(4 * PAGE, MAP_POPULATE);
	uint32_t hwpt;

	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	EXPECT_EQ(ENOENT, ioas_map(self->iommufd, 0xdead, va, PAGE, IOVA, MAP_RW));
	EXPECT_EQ(ENOENT, ioas_map(self->iommufd, hwpt, va, PAGE, IOVA, MAP_RW));
	EXPECT_EQ(EINVAL, ioas_map(self->iommufd, self->ioas, va, 0, IOVA, MAP_RW));
	EXPECT_EQ(EINVAL, ioas_map(self->iommufd, self->ioas, va, PAGE, IOVA + 1, MAP_RW));
	EXPECT_EQ(EOPNOTSUPP, ioas_map(self->iommufd, self->ioas, va, PAGE, IOVA, 1U << 31));
	ASSERT_EQ(0, munmap(va + 3 * PAGE, PAGE));
	EXPECT_EQ(EFAULT, ioas_map(self->iommufd, self->ioas, va, 4 * PAGE, IOVA, MAP_RW));
	EXPECT_EQ(self->pinned, pinned_pages());
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, va, 2 * PAGE, IOVA, MAP_RW));
	EXPECT_EQ(EEXIST, ioas_map(self->iommufd, self->ioas, va, PAGE, IOVA + PAGE, MAP_RW));
	EXPECT_EQ(ENOENT, ioas_unmap(self->iommufd, self->ioas, IOVA + PAGE, PAGE));
	EXPECT_EQ(ENOENT, ioas_unmap(self->iommufd, self->ioas, IOVA + HUGE_PAGE, PAGE));
	EXPECT_EQ(0, get_pa_errno(self->iommufd, self->ioas, IOVA + PAGE));
	EXPECT_EQ(EBUSY, destroy(self->iommufd, self->ioas));
	EXPECT_EQ(EBUSY, destroy(self->iommufd, hwpt));
	EXPECT_EQ(EBUSY, destroy(self->iommufd, self->dev_id));
	EXPECT_EQ(ENOENT, destroy(self->iommufd, 0xdead));
}

/*
 * IOMMU_IOAS_NOIOMMU_GET_PA
 */
TEST_F(noiommu, get_pa_errors)
{
	struct {
		struct get_pa_7_3 cmd;
		uint8_t tail[2 * EXTENSION];
	} buf, good = {
		.cmd = {
			.size = sizeof(buf.cmd),
			.ioas_id = self->ioas,
			.iova = IOVA,
			.length = PAGE,
		},
	};
	char *mem = anon(PAGE, MAP_POPULATE);
	uint32_t hwpt, size, i;

#define GET_PA(member, value) ({						\
	buf = good;								\
	buf.member = value;							\
	ERRNO_OF(ioctl(self->iommufd, GET_PA_7_3, &buf));			\
})
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, mem, PAGE, IOVA, MAP_RW));
	EXPECT_EQ(EOPNOTSUPP, GET_PA(cmd.length, 1));
	/* A missing mapping is noticed before a missing page table */
	EXPECT_EQ(ENOENT, GET_PA(cmd.iova, IOVA + PAGE));
	ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id, self->ioas, 0, &hwpt));

	EXPECT_EQ(0, GET_PA(cmd.length, PAGE));
	EXPECT_EQ(pagemap_pa(mem), buf.cmd.out_phys);
	for (i = 1; i < 32; i++)
		EXPECT_EQ(EOPNOTSUPP, GET_PA(cmd.flags, 1U << i)) TH_LOG("flag %u", i);
	EXPECT_EQ(EOPNOTSUPP, GET_PA(cmd.reserved, 1));
	EXPECT_EQ(EOPNOTSUPP, GET_PA(cmd.reserved, 1U << 31));
	EXPECT_EQ(EINVAL, GET_PA(cmd.length, 0));
	EXPECT_EQ(EOVERFLOW, GET_PA(cmd.iova, ULONG_MAX));
	EXPECT_EQ(ENOENT, GET_PA(cmd.iova, ULONG_MAX - 1));
	EXPECT_EQ(ENOENT, GET_PA(cmd.ioas_id, 0));
	EXPECT_EQ(ENOENT, GET_PA(cmd.ioas_id, 0xdead));
	EXPECT_EQ(ENOENT, GET_PA(cmd.ioas_id, hwpt));
	EXPECT_EQ(ENOENT, GET_PA(cmd.ioas_id, self->dev_id));
	EXPECT_EQ(ENOENT, GET_PA(cmd.iova, IOVA - 1));
	EXPECT_EQ(ENOENT, GET_PA(cmd.iova, IOVA + PAGE));
	for (size = 0; size < sizeof(buf.cmd); size++)
		EXPECT_EQ(EINVAL, GET_PA(cmd.size, size)) TH_LOG("size %u", size);
	/* A longer struct is fine if what follows is zero */
	for (size = sizeof(buf.cmd); size <= sizeof(buf); size++)
		EXPECT_EQ(0, GET_PA(cmd.size, size)) TH_LOG("size %u", size);
	good.cmd.size = sizeof(buf);
	for (i = EXTENSION; i < sizeof(buf.tail); i++)
		EXPECT_EQ(E2BIG, GET_PA(tail[i], 1)) TH_LOG("byte %u", i);
	good.cmd.size = sizeof(buf.cmd);
	/* Bytes that the size excludes are not looked at, nor written */
	EXPECT_EQ(0, GET_PA(tail[EXTENSION], 1));
	EXPECT_EQ(1, buf.tail[EXTENSION]);
	memset(good.tail, 0xa5, sizeof(good.tail));
	EXPECT_EQ(0, GET_PA(cmd.length, PAGE));
	EXPECT_EQ(0, memcmp(good.tail, buf.tail, sizeof(buf.tail)));
	/* No length is too long */
	EXPECT_EQ(0, GET_PA(cmd.length, ULLONG_MAX));
	EXPECT_EQ(PAGE, buf.cmd.length);
	EXPECT_EQ(0, GET_PA(cmd.length, ULONG_MAX - IOVA));
	EXPECT_EQ(PAGE, buf.cmd.length);
#undef GET_PA
}

/* Each way to find out whether a kernel has extents */
TEST_F(noiommu, differs_probing)
{
	bool ours = is_ours(_metadata, self->iommufd);
	uint64_t extents[2] = {};
	struct {
		struct get_pa_7_3 cmd;
		uint32_t nr_extents;
		uint32_t reserved;
		uint64_t extents;
	} buf, good = {
		.cmd = {
			.size = sizeof(buf),
			.flags = 1,
			.ioas_id = self->ioas,
			.iova = IOVA,
			.length = PAGE,
		},
		.nr_extents = 1,
		.extents = (uintptr_t)extents,
	};
	char *mem = anon(PAGE, MAP_POPULATE);
	uint32_t hwpt;

	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, mem, PAGE, IOVA, MAP_RW));
	buf = good;
	EXPECT_EQ(ours ? 0 : E2BIG, ERRNO_OF(ioctl(self->iommufd, GET_PA_7_3, &buf)));
	EXPECT_EQ(ours ? pagemap_pa(mem) : 0, extents[0]);
	EXPECT_EQ(ours ? PAGE : 0, extents[1]);
	/* The flag, and zeroes after out_phys */
	buf = good;
	buf.nr_extents = 0;
	buf.extents = 0;
	EXPECT_EQ(ours ? EINVAL : EOPNOTSUPP,
		  ERRNO_OF(ioctl(self->iommufd, GET_PA_7_3, &buf)));
	/* The flag, and nothing there */
	buf = good;
	buf.cmd.size = sizeof(buf.cmd);
	EXPECT_EQ(ours ? EINVAL : EOPNOTSUPP,
		  ERRNO_OF(ioctl(self->iommufd, GET_PA_7_3, &buf)));
	/* An array, and no flag */
	buf = good;
	buf.cmd.flags = 0;
	EXPECT_EQ(ours ? EINVAL : E2BIG, ERRNO_OF(ioctl(self->iommufd, GET_PA_7_3, &buf)));
}

TEST_F(noiommu, get_pa_needs_rawio)
{
	char *mem = anon(PAGE, MAP_POPULATE);
	uint32_t hwpt;

	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, mem, PAGE, IOVA, MAP_RW));
	/* Even with files that a privileged process opened */
	IN_CHILD(0, get_pa_errno(self->iommufd, self->ioas, IOVA));
	IN_CHILD(EPERM, ({
		drop_capability(CAP_SYS_RAWIO);
		get_pa_errno(self->iommufd, self->ioas, IOVA);
	}));
	/* The capability is checked before the arguments */
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
	/* VA and IOVA are not aligned to the huge page */
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

	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	for (huge = 0; huge < 2; huge++) {
		size_t size = huge ? 2 * HUGE_PAGE : 64 * PAGE;
		int fd = syscall(SYS_memfd_create, "noiommu",
				 huge ? MFD_HUGETLB : 0);
		char *va;

		ASSERT_LE(0, fd);
		ASSERT_EQ(0, ftruncate(fd, size));
		va = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (huge && va == MAP_FAILED)
			SKIP(return, "no huge pages");
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
	/* Physically in one piece, with a hole between the IOVAs */
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, va, 5 * PAGE, IOVA, MAP_RW));
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, va + 6 * PAGE, PAGE,
			      IOVA + 6 * PAGE, MAP_RW));
	length = HUGE_PAGE;
	ASSERT_EQ(0, get_pa(self->iommufd, self->ioas, IOVA + 7, &length, &phys));
	EXPECT_EQ(5 * PAGE - 7, length);
	EXPECT_EQ(pagemap_pa(va) + 7, phys);
	EXPECT_EQ(ENOENT, get_pa_errno(self->iommufd, self->ioas, IOVA + 5 * PAGE));
	/* An unmap of a part of an area fails, and unmaps nothing */
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

TEST_F(noiommu, differs_get_pa_across_areas)
{
	bool ours = is_ours(_metadata, self->iommufd);
	uint64_t length, phys;
	uint32_t hwpt;
	char *va;

	va = anon_huge(HUGE_PAGE);
	if (!va)
		SKIP(return, "no huge pages");
	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	/* Contiguous IOVAs and physical memory, mapped by two calls */
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, va, 3 * PAGE, IOVA, MAP_RW));
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, va + 3 * PAGE, 2 * PAGE,
			      IOVA + 3 * PAGE, MAP_RW));
	length = HUGE_PAGE;
	ASSERT_EQ(0, get_pa(self->iommufd, self->ioas, IOVA + 7, &length, &phys));
	EXPECT_EQ((ours ? 5 : 3) * PAGE - 7, length);
	EXPECT_EQ(pagemap_pa(va) + 7, phys);
	length = HUGE_PAGE;
	ASSERT_EQ(0, get_pa(self->iommufd, self->ioas, IOVA + 3 * PAGE, &length, &phys));
	EXPECT_EQ(2 * PAGE, length);
	EXPECT_EQ(pagemap_pa(va) + 3 * PAGE, phys);
	munmap(va, HUGE_PAGE);
}

TEST_F(noiommu, get_pa_at_the_ends)
{
	static const uint64_t iovas[] = {
		0, 1ULL << 30, 1ULL << 39, 1ULL << 48, 1ULL << 57, 1ULL << 63,
		-2 * PAGE,
	};
	char *va = anon(PAGE, MAP_POPULATE);
	uint64_t length, phys;
	uint32_t hwpt;
	unsigned int i;

	/* The page table grows on demand */
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

/* Physical address of a BAR, or 0 */
static uint64_t bar_start(const char *bdf, unsigned int bar)
{
	char path[600], text[2048], *line = text;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/resource", bdf);
	if (read_file(path, text, sizeof(text)))
		return 0;
	while (bar-- && line)
		line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL;
	return line ? strtoull(line, NULL, 16) : 0;
}

TEST_F(noiommu, get_pa_of_a_revoked_dmabuf)
{
	struct {
		struct vfio_device_feature feature;
		struct vfio_device_feature_dma_buf dma_buf;
		struct vfio_region_dma_range range;
	} args = {
		.feature.argsz = sizeof(args),
		.feature.flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF,
		.dma_buf.region_index = VFIO_PCI_BAR2_REGION_INDEX,
		.dma_buf.open_flags = O_RDWR | O_CLOEXEC,
		.dma_buf.nr_ranges = 1,
		.range.length = 16 * PAGE,
	};
	uint64_t length = 16 * PAGE, phys;
	uint32_t hwpt, dev_id;
	int exporter, dmabuf;
	char bdf[256];

	if (!find_device("0x1af4", "0x1110", bdf, sizeof(bdf)) || device_has_iommu(bdf))
		SKIP(return, "no ivshmem device (1af4:1110), whose BAR has memory");
	ASSERT_EQ(0, ensure_bound(bdf));
	exporter = cdev_open(bdf);
	ASSERT_LE(0, exporter);
	ASSERT_EQ(0, bind_iommufd(exporter, self->iommufd, &dev_id));
	ASSERT_EQ(0, command_write(exporter, PCI_COMMAND_MEMORY));
	dmabuf = ioctl(exporter, VFIO_DEVICE_FEATURE, &args);
	if (dmabuf < 0 && errno == ENOTTY) {
		close(exporter);
		SKIP(return, "VFIO exports no dma-buf (CONFIG_PCI_P2PDMA)");
	}
	ASSERT_LE(0, dmabuf);
	ASSERT_EQ(0, attach_hwpt(self, &hwpt));
	ASSERT_EQ(0, ioas_map_file(self->iommufd, self->ioas, dmabuf, 0, 16 * PAGE, IOVA));
	ASSERT_EQ(0, get_pa(self->iommufd, self->ioas, IOVA, &length, &phys));
	EXPECT_EQ(bar_start(bdf, 2), phys);
	EXPECT_EQ(16 * PAGE, length);
	/* An exporter whose memory is disabled revokes the dma-buf */
	ASSERT_EQ(0, command_write(exporter, 0));
	EXPECT_EQ(EINVAL, get_pa_errno(self->iommufd, self->ioas, IOVA));
	EXPECT_EQ(EINVAL, get_pa_errno(self->iommufd, self->ioas, IOVA + 15 * PAGE));
	EXPECT_EQ(ENOENT, get_pa_errno(self->iommufd, self->ioas, IOVA + 16 * PAGE));
	close(exporter);
	EXPECT_EQ(EINVAL, get_pa_errno(self->iommufd, self->ioas, IOVA));
	EXPECT_EQ(0, ioas_unmap(self->iommufd, self->ioas, IOVA, 16 * PAGE));
	close(dmabuf);
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
	/* Without FIXED_IOVA iommufd chooses the IOVA */
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
 * Accounting and pins, in every order of close, detach, unmap and destroy
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

		ASSERT_EQ(0, open_bound(self->bdf, &self->device,
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

		if (open_bound(self->bdf, &device, &iommufd, &dev_id) ||
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
	/* The device can be opened again */
	ASSERT_EQ(0, open_bound(self->bdf, &self->device,
				&self->iommufd, &self->dev_id));
}

/* Map as a user without CAP_IPC_LOCK who may lock 64 pages */
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

	/* Into the device, and out of it to another page */
	for (i = 0; i < 2; i++) {
		write_once(&bar[0x80 / 8], i ? 0x40000 : from);
		write_once(&bar[0x88 / 8], i ? to : 0x40000);
		write_once(&bar[0x90 / 8], PAGE / 2);
		write_once(&bar[0x98 / 8], i ? 3 : 1);
		while (read_once(&bar[0x98 / 8]) & 1)
			usleep(1000);
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
	long long pinned = pinned_pages();
	char bdf[2][256];
	int device[2], i;

	for (i = 0; i < 2; i++) {
		if (!find_device(ids[i][0], ids[i][1], bdf[i], sizeof(bdf[i])))
			SKIP(return, "needs NVMe and edu");
		if (device_has_iommu(bdf[i]))
			SKIP(return, "%s has an IOMMU", bdf[i]);
	}
	ASSERT_LE(0, iommufd);
	ASSERT_EQ(0, ioas_alloc(iommufd, &ioas));
	ASSERT_EQ(0, ioas_alloc(iommufd, &other));
	ASSERT_EQ(0, noiommu_switch(true));
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, ensure_bound(bdf[i]));
		device[i] = cdev_open(bdf[i]);
		ASSERT_LE(0, device[i]);
		ASSERT_EQ(0, bind_iommufd(device[i], iommufd, &dev_id[i]));
		pt_id[i] = ioas;
		ASSERT_EQ(0, attach_pt(device[i], &pt_id[i]));
	}
	EXPECT_NE(dev_id[0], dev_id[1]);
	/* Both devices share the HWPT that the attach made, and its pins */
	EXPECT_EQ(pt_id[0], pt_id[1]);
	ASSERT_EQ(0, ioas_map(iommufd, ioas, va, PAGE, IOVA, MAP_RW));
	EXPECT_EQ(pinned + 1, pinned_pages());
	/* A HWPT allocated for one device can be attached to the other */
	ASSERT_EQ(0, hwpt_alloc(iommufd, dev_id[1], other, 0, &pt_id[0]));
	EXPECT_EQ(0, attach_pt(device[0], &pt_id[0]));
	EXPECT_EQ(0, get_pa_errno(iommufd, ioas, IOVA));
	EXPECT_EQ(EBUSY, destroy(iommufd, pt_id[0]));
	/* Closing the first device leaves the second attached */
	close(device[0]);
	EXPECT_EQ(0, destroy(iommufd, pt_id[0]));
	EXPECT_EQ(0, get_pa_errno(iommufd, ioas, IOVA));
	close(device[1]);
	EXPECT_EQ(pinned, pinned_pages());
	/* Closing the last device destroys the HWPT */
	EXPECT_EQ(EOPNOTSUPP, get_pa_errno(iommufd, ioas, IOVA));
	close(iommufd);
}

/*
 * One IOAS, and a device behind an IOMMU beside the one without
 */
TEST_F(mixed, noiommu_comes_first)
{
	uint64_t length, phys;
	uint32_t pt_id[2];
	int i, offset;

	for (i = 0; i < 2; i++) {
		pt_id[i] = self->ioas;
		ASSERT_EQ(0, attach_pt(self->device[i], &pt_id[i]));
	}
	/* A domain of its own kind for each, and the pages pinned once */
	EXPECT_NE(pt_id[0], pt_id[1]);
	EXPECT_EQ(self->pinned + 16, pinned_pages());
	for (offset = 0; offset < 16; offset++) {
		length = PAGE;
		ASSERT_EQ(0, get_pa(self->iommufd, self->ioas, IOVA + offset * PAGE,
				    &length, &phys));
		EXPECT_EQ(pagemap_pa(self->va + offset * PAGE), phys);
	}
	/* Map and unmap reach both */
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas, self->va + PAGE, PAGE,
			      IOVA + HUGE_PAGE, MAP_RW));
	EXPECT_EQ(0, get_pa_errno(self->iommufd, self->ioas, IOVA + HUGE_PAGE));
	ASSERT_EQ(0, ioas_unmap(self->iommufd, self->ioas, IOVA + HUGE_PAGE, PAGE));
	EXPECT_EQ(ENOENT, get_pa_errno(self->iommufd, self->ioas, IOVA + HUGE_PAGE));
	/* The addresses are known for as long as the noiommu device is attached */
	ASSERT_EQ(0, detach_pt(self->device[0]));
	EXPECT_EQ(EOPNOTSUPP, get_pa_errno(self->iommufd, self->ioas, IOVA));
	ASSERT_EQ(0, detach_pt(self->device[1]));
	EXPECT_EQ(EOPNOTSUPP, get_pa_errno(self->iommufd, self->ioas, IOVA));
}

/* In Linux 7.3 it shares the page table of the IOMMU, which GET_PA does not read */
TEST_F(mixed, differs_noiommu_comes_second)
{
	bool ours = is_ours(_metadata, self->iommufd);
	uint64_t length, phys;
	uint32_t pt_id[2];
	int i, offset;

	for (i = 1; i >= 0; i--) {
		EXPECT_EQ(EOPNOTSUPP, get_pa_errno(self->iommufd, self->ioas, IOVA));
		pt_id[i] = self->ioas;
		ASSERT_EQ(0, attach_pt(self->device[i], &pt_id[i]));
	}
	EXPECT_EQ(ours, pt_id[0] != pt_id[1]);
	EXPECT_EQ(self->pinned + 16, pinned_pages());
	/* With both attached, then with the noiommu device alone */
	for (i = 0; i < 2; i++) {
		for (offset = 0; offset < 16; offset++) {
			length = PAGE;
			phys = 0;
			ASSERT_EQ(ours ? 0 : EOPNOTSUPP,
				  get_pa(self->iommufd, self->ioas, IOVA + offset * PAGE,
					 &length, &phys));
			if (ours)
				EXPECT_EQ(pagemap_pa(self->va + offset * PAGE), phys);
		}
		ASSERT_EQ(0, detach_pt(self->device[!i]));
	}
	EXPECT_EQ(EOPNOTSUPP, get_pa_errno(self->iommufd, self->ioas, IOVA));
}

/* Attach and replace with a HWPT that was allocated for the other device */
TEST_F(mixed, differs_hwpts_of_the_other_kind)
{
	bool ours = is_ours(_metadata, self->iommufd);
	uint32_t hwpt[2], pt_id;
	int i;

	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id[i], self->ioas,
					0, &hwpt[i]));
	/* The device without an IOMMU */
	pt_id = hwpt[1];
	EXPECT_EQ(ours ? EINVAL : 0, attach_pt(self->device[0], &pt_id));
	EXPECT_EQ(0, detach_pt(self->device[0]));
	pt_id = hwpt[0];
	ASSERT_EQ(0, attach_pt(self->device[0], &pt_id));
	pt_id = hwpt[1];
	EXPECT_EQ(ours ? EINVAL : 0, attach_pt(self->device[0], &pt_id));
	/* A refused replace leaves the old one in place */
	EXPECT_EQ(ours ? EBUSY : 0, destroy(self->iommufd, hwpt[0]));
	EXPECT_EQ(ours ? 0 : EBUSY, destroy(self->iommufd, hwpt[1]));
	EXPECT_EQ(0, detach_pt(self->device[0]));
	EXPECT_EQ(0, destroy(self->iommufd, hwpt[!ours]));

	/* The device behind an IOMMU, which both kernels refuse */
	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, hwpt_alloc(self->iommufd, self->dev_id[i], self->ioas,
					0, &hwpt[i]));
	pt_id = hwpt[0];
	EXPECT_EQ(EINVAL, attach_pt(self->device[1], &pt_id));
	pt_id = hwpt[1];
	ASSERT_EQ(0, attach_pt(self->device[1], &pt_id));
	pt_id = hwpt[0];
	EXPECT_EQ(ours ? EINVAL : ENODEV, attach_pt(self->device[1], &pt_id));
	EXPECT_EQ(EBUSY, destroy(self->iommufd, hwpt[1]));
	EXPECT_EQ(0, detach_pt(self->device[1]));
	EXPECT_EQ(0, destroy(self->iommufd, hwpt[0]));
	EXPECT_EQ(0, destroy(self->iommufd, hwpt[1]));
}

/* Replace by the IOAS that a noiommu device is attached to */
TEST_F(mixed, differs_replace_beside_noiommu)
{
	bool ours = is_ours(_metadata, self->iommufd);
	uint32_t other, pt_id[2];

	ASSERT_EQ(0, ioas_alloc(self->iommufd, &other));
	pt_id[0] = self->ioas;
	ASSERT_EQ(0, attach_pt(self->device[0], &pt_id[0]));
	pt_id[1] = other;
	ASSERT_EQ(0, attach_pt(self->device[1], &pt_id[1]));
	pt_id[1] = self->ioas;
	EXPECT_EQ(ours ? 0 : ENODEV, attach_pt(self->device[1], &pt_id[1]));
	EXPECT_EQ(0, get_pa_errno(self->iommufd, self->ioas, IOVA));
	ASSERT_EQ(0, detach_pt(self->device[1]));
	/* In neither kernel is the other IOAS in use any more */
	EXPECT_EQ(0, destroy(self->iommufd, other));
	EXPECT_EQ(0, get_pa_errno(self->iommufd, self->ioas, IOVA));
}

TEST_HARNESS_MAIN
