// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtual functions without an IOMMU: tokens, and that no page is given back while a
 * VF may still write to it, whatever happens to the VF and to its PF meanwhile
 *
 * Run as root, on an NVMe disk with SR-IOV, whose flexible resources go to the VFs.
 * Nothing is written to it. Takes all of the system's 2 MiB pages for as long as it
 * runs. NOIOMMU_ROUNDS in the environment is how often the tests that repeat something
 * do so.
 */
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>

#include "../kselftest_harness.h"
#include "vfio_noiommu_late.h"

#define ENABLE_SRIOV "/sys/module/vfio_pci/parameters/enable_sriov"

/* Virtualization Management [Base 5.28] */
#define NVME_ADMIN_VIRT_MGMT	0x1c
#define VIRT_PRIMARY_ALLOC	0x1
#define VIRT_SECONDARY_ASSIGN	0x8
#define VIRT_SECONDARY_ONLINE	0x9
#define VIRT_QUEUES		0
#define VIRT_INTERRUPTS		1

static const uint8_t token[16] = "a token of 16 by";
static const uint8_t wrong_token[16] = "another of 16 by";

/* The first disk that may have VFs, which have no sriov_totalvfs themselves */
static bool find_pf(char *bdf, size_t size)
{
	struct dirent *entry;
	bool found = false;
	char path[600], text[32];
	DIR *dir = opendir("/sys/bus/pci/devices");

	while (dir && !found && (entry = readdir(dir))) {
		if (entry->d_name[0] == '.' || !device_may_be_used(entry->d_name))
			continue;
		snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/class", entry->d_name);
		if (read_file(path, text, sizeof(text)) || strcmp(text, "0x010802"))
			continue;
		snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/sriov_totalvfs",
			 entry->d_name);
		if (read_file(path, text, sizeof(text)) || !atoi(text))
			continue;
		snprintf(bdf, size, "%s", entry->d_name);
		found = true;
	}
	if (dir)
		closedir(dir);
	return found;
}

static void vf_bdf(const char *pf, char *bdf, size_t size)
{
	char link[600], target[256];
	ssize_t len;

	snprintf(link, sizeof(link), "/sys/bus/pci/devices/%s/virtfn0", pf);
	len = readlink(link, target, sizeof(target) - 1);
	must(len > 0);
	target[len] = 0;
	snprintf(bdf, size, "%s", strrchr(target, '/') + 1);
}

/* Shared with children */
static struct late *late_of(const char *bdf)
{
	struct late *late = mmap(NULL, sizeof(*late), PROT_READ | PROT_WRITE,
				 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct late_device *device = late->devices;
	char path[600];

	must(late != MAP_FAILED);
	snprintf(device->bdf, sizeof(device->bdf), "%s", bdf);
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/config", bdf);
	device->sysfs = open(path, O_RDONLY | O_CLOEXEC);
	must(device->sysfs >= 0);
	device->fd = -1;
	late->nvme = device;
	late->nr = 1;
	late->iommufd = -1;
	return late;
}

static int bind_with_token(int device, int iommufd, const uint8_t *uuid, uint32_t *id)
{
	struct vfio_device_bind_iommufd bind = {
		.argsz = sizeof(bind),
		.flags = uuid ? VFIO_DEVICE_BIND_FLAG_TOKEN : 0,
		.iommufd = iommufd,
		.token_uuid_ptr = (uintptr_t)uuid,
	};
	int rc = ERRNO_OF(ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bind));

	*id = bind.out_devid;
	return rc;
}

/*
 * The PF, which has two pages for its admin queue
 */
static void pf_enable(struct late *pf)
{
	u32 cc = NVME_CC_IOSQES | NVME_CC_IOCQES;

	set_command(pf->nvme, PCI_COMMAND_MEMORY);
	nvme_disable(pf);
	set_command(pf->nvme, COMMAND_ON);
	nvme_queue_init(pf, &pf->admin, 0, MEM_ADMIN_SQ);
	nvme_write(pf, NVME_AQA, (DEPTH - 1) << 16 | (DEPTH - 1));
	nvme_write64(pf, NVME_ASQ, pf->pas[MEM_ADMIN_SQ]);
	nvme_write64(pf, NVME_ACQ, pf->pas[MEM_ADMIN_CQ]);
	nvme_write(pf, NVME_CC, cc | NVME_CC_EN);
	must(WAIT_FOR(nvme_read(pf, NVME_CSTS) & (NVME_CSTS_RDY | NVME_CSTS_CFS)));
	must(!(nvme_read(pf, NVME_CSTS) & NVME_CSTS_CFS));
}

static void pf_virt_mgmt(struct late *pf, unsigned int controller, unsigned int action,
			 unsigned int resource, unsigned int nr)
{
	struct nvme_sqe cmd = {
		.opcode = NVME_ADMIN_VIRT_MGMT,
		.cdw10 = controller << 16 | resource << 8 | action,
		.cdw11 = nr,
	};

	nvme_admin(pf, &cmd);
}

static void pf_set_token(struct late *pf)
{
	struct {
		struct vfio_device_feature feature;
		uint8_t uuid[16];
	} args = {
		.feature.argsz = sizeof(args),
		.feature.flags = VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_PCI_VF_TOKEN,
	};

	memcpy(args.uuid, token, sizeof(token));
	must(!ioctl(pf->nvme->fd, VFIO_DEVICE_FEATURE, &args));
}

static void pf_open(struct late *pf)
{
	uint64_t length, page;

	late_open(pf, false);
	pf->mem = anon(2 * PAGE, MAP_POPULATE);
	must(!ioas_map(pf->iommufd, pf->ioas, pf->mem, 2 * PAGE, IOVA, MAP_RW));
	late_attach(pf, pf->ioas);
	for (page = 0; page < 2; page++) {
		length = PAGE;
		must(!get_pa(pf->iommufd, pf->ioas, IOVA + page * PAGE, &length,
			     &pf->pas[page]));
	}
	bar0_map(pf->nvme);
	pf_enable(pf);
	pf_set_token(pf);

	/* The flexible resources leave the PF, which takes effect at a reset */
	pf_virt_mgmt(pf, 0, VIRT_PRIMARY_ALLOC, VIRT_QUEUES, 0);
	pf_virt_mgmt(pf, 0, VIRT_PRIMARY_ALLOC, VIRT_INTERRUPTS, 0);
	must(!ioctl(pf->nvme->fd, VFIO_DEVICE_RESET));
	pf_enable(pf);
}

/*
 * One VF, with an admin and an I/O queue, which vfio-pci has. From here on the close of
 * the PF does not reset it, as a device may not be resettable: the VF goes on. (QEMU 7.2
 * removes VFs when it resets their PF, and leaves VF Enable set, so that they stay away.)
 */
static struct late *pf_add_vf(struct late *pf)
{
	struct late *vf;
	char bdf[256];

	must(!device_write(pf->nvme->bdf, "reset_method", "\n"));
	must(!device_write(pf->nvme->bdf, "sriov_numvfs", "1"));
	pf_virt_mgmt(pf, 1, VIRT_SECONDARY_ASSIGN, VIRT_INTERRUPTS, 1);
	pf_virt_mgmt(pf, 1, VIRT_SECONDARY_ASSIGN, VIRT_QUEUES, 2);
	pf_virt_mgmt(pf, 1, VIRT_SECONDARY_ONLINE, 0, 0);
	vf_bdf(pf->nvme->bdf, bdf, sizeof(bdf));
	must(!ensure_bound(bdf));
	vf = late_of(bdf);
	pool_init(vf);
	return vf;
}

/*
 * The VF
 */

/* From nothing to DMA */
static void vf_begin(struct late *vf)
{
	struct late_device *device = vf->nvme;

	device->fd = cdev_open(device->bdf);
	vf->iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	must(device->fd >= 0 && vf->iommufd >= 0);
	must(!bind_with_token(device->fd, vf->iommufd, token, &device->id));
	device->bar0 = NULL;
	device_open(device);
	must(!ioas_alloc(vf->iommufd, &vf->ioas));
	vf->mem = pool_take_all();
	late_map(vf);
	late_attach(vf, vf->ioas);
	late_get_pas(vf);
	late_enable(vf);
}

/* No more VFs, and the PF can be reset again */
static void pf_remove_vfs(const char *pf_bdf)
{
	device_write(pf_bdf, "sriov_numvfs", "0");
	must(!device_write(pf_bdf, "reset_method", "default"));
}

/* A VF that was removed is no bus master, nor is one that no longer answers */
static bool vf_is_master(const struct late *vf)
{
	uint16_t command;

	if (pread(vf->nvme->sysfs, &command, 2, PCI_COMMAND) != 2) {
		must(errno == ENODEV);
		return false;
	}
	return command != 0xffff && command & PCI_COMMAND_MASTER;
}

/*
 * Wait until all of the pages are free. The VF must not be able to write while any
 * page is free, and no device may write to a free page.
 */
static void expect_no_late_dma(struct __test_metadata *_metadata, const struct late *vf)
{
	bool master = false;

	ASSERT_TRUE(WAIT_FOR({
		int nr = free_pages(vf);

		master |= nr && vf_is_master(vf);
		nr == POOL;
	}));
	EXPECT_FALSE(master) TH_LOG("a page is free, bus mastering on");
	EXPECT_EQ(0, late_watch(vf, EDU_MS));
}

static void vf_give_back(struct late *vf)
{
	must(!ioas_unmap(vf->iommufd, vf->ioas, IOVA, MEMORY));
	must(!munmap(vf->mem, MEMORY));
}

/* KiB that are pinned for this process */
static long long vm_pin(void)
{
	return read_field("/proc/self/status", "VmPin:");
}

FIXTURE(sriov)
{
	char pf_bdf[256];
	struct late *pf;
	struct late *vf;
};

FIXTURE_SETUP(sriov)
{
	if (access(ENABLE_SRIOV, F_OK))
		SKIP(return, "vfio-pci has no SR-IOV (CONFIG_PCI_IOV)");
	if (!find_pf(self->pf_bdf, sizeof(self->pf_bdf)))
		SKIP(return, "no NVMe disk with SR-IOV");
	if (device_has_iommu(self->pf_bdf))
		SKIP(return, "%s is behind an IOMMU", self->pf_bdf);
	ASSERT_EQ(0, noiommu_switch(true));
	ASSERT_EQ(0, write_file(ENABLE_SRIOV, "Y"));
	ASSERT_EQ(0, ensure_bound(self->pf_bdf));
	pf_remove_vfs(self->pf_bdf);
	self->pf = late_of(self->pf_bdf);
	pf_open(self->pf);
	self->vf = pf_add_vf(self->pf);
}

FIXTURE_TEARDOWN(sriov)
{
	if (!self->pf)
		return;
	if (self->vf)
		late_close(self->vf);
	pf_remove_vfs(self->pf_bdf);
	late_close(self->pf);
}

TEST_F_TIMEOUT(sriov, token, 120)
{
	struct late *vf = self->vf;
	int device, iommufd;
	char name[256];
	uint32_t id;

	ASSERT_TRUE(cdev_name(vf->nvme->bdf, name, sizeof(name)));
	EXPECT_EQ(0, strncmp(name, "noiommu-vfio", 12)) TH_LOG("%s", name);
	device = cdev_open(vf->nvme->bdf);
	ASSERT_LE(0, device);
	iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, iommufd);
	EXPECT_EQ(EACCES, bind_with_token(device, iommufd, NULL, &id));
	EXPECT_EQ(EACCES, bind_with_token(device, iommufd, wrong_token, &id));
	/* A bind that failed changes nothing */
	EXPECT_EQ(0, bind_with_token(device, iommufd, token, &id));
	close(device);
	close(iommufd);

	vf_begin(vf);
	EXPECT_TRUE(dma_works(vf));
}

/* The PF has a table and pins of its own */
TEST_F_TIMEOUT(sriov, pf_is_detached, 120)
{
	struct late *vf = self->vf;
	long long pinned;

	vf_begin(vf);
	pinned = vm_pin();
	EXPECT_EQ((MEMORY + 2 * PAGE) / 1024, pinned);
	late_pump(vf);
	ASSERT_EQ(0, detach_pt(self->pf->nvme->fd));
	EXPECT_FALSE(is_master(self->pf->nvme));
	EXPECT_TRUE(is_master(vf->nvme));
	EXPECT_EQ(pinned - 2 * (long long)PAGE / 1024, vm_pin());
	EXPECT_TRUE(dma_works(vf));

	late_pump(vf);
	late_detach(vf);
	EXPECT_FALSE(is_master(vf->nvme));
	vf_give_back(vf);
	expect_no_late_dma(_metadata, vf);
}

/* The VF does not notice, and its pages are its own */
TEST_F_TIMEOUT(sriov, pf_is_closed, 300)
{
	unsigned int nr = rounds(4), round;
	struct late *vf = self->vf;

	for (round = 0; round < nr; round++) {
		vf_begin(vf);
		late_start(vf);
		late_close(self->pf);
		EXPECT_EQ(MEMORY / 1024, vm_pin());
		EXPECT_EQ(0, free_pages(vf));
		EXPECT_TRUE(dma_works(vf));
		late_start(vf);
		if (round % 2) {
			late_detach(vf);
			vf_give_back(vf);
			expect_no_late_dma(_metadata, vf);
			late_close(vf);
		} else {
			must(!munmap(vf->mem, MEMORY));
			late_close(vf);
			expect_no_late_dma(_metadata, vf);
		}

		pf_remove_vfs(self->pf_bdf);
		pf_open(self->pf);
		vf = pf_add_vf(self->pf);
		self->vf = vf;
	}
	vf_begin(vf);
	EXPECT_TRUE(dma_works(vf));
}

/* The VF is reset with it. QEMU's does not come back, and a reset of it would wait */
TEST_F_TIMEOUT(sriov, pf_is_reset, 120)
{
	struct late *vf = self->vf;

	ASSERT_EQ(0, device_write(vf->nvme->bdf, "reset_method", "\n"));
	vf_begin(vf);
	late_start(vf);
	ASSERT_EQ(0, device_write(self->pf_bdf, "reset_method", "default"));
	ASSERT_EQ(0, ioctl(self->pf->nvme->fd, VFIO_DEVICE_RESET));
	EXPECT_EQ((MEMORY + 2 * PAGE) / 1024, vm_pin());
	EXPECT_EQ(0, free_pages(vf));
	must(!munmap(vf->mem, MEMORY));
	late_close(vf);
	expect_no_late_dma(_metadata, vf);
}

TEST_F_TIMEOUT(sriov, vf_is_detached, 300)
{
	unsigned int nr = rounds(8), round;
	struct late *vf = self->vf;

	vf_begin(vf);
	for (round = 0; round < nr; round++) {
		late_start(vf);
		late_detach(vf);
		EXPECT_FALSE(is_master(vf->nvme));
		/* Nor by a write of the program's */
		set_command(vf->nvme, COMMAND_ON);
		EXPECT_FALSE(is_master(vf->nvme));
		vf_give_back(vf);
		expect_no_late_dma(_metadata, vf);

		vf->mem = pool_take_all();
		late_map(vf);
		late_attach(vf, vf->ioas);
		late_get_pas(vf);
		late_enable(vf);
	}
	EXPECT_TRUE(dma_works(vf));
}

/*
 * A process that has the VF, and the PF too if it was not closed before
 */
static pid_t child_start(struct late *vf)
{
	pid_t pid;

	vf->ready = false;
	pid = fork();
	must(pid >= 0);
	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	vf_begin(vf);
	for (;;) {
		late_pump(vf);
		WRITE_ONCE(vf->ready, true);
	}
}

static bool child_is_ready(struct late *vf, pid_t pid)
{
	return WAIT_FOR(READ_ONCE(vf->ready) || waitpid(pid, NULL, WNOHANG)) &&
	       READ_ONCE(vf->ready);
}

static void child_kill(pid_t pid)
{
	int status;

	must(!kill(pid, SIGKILL));
	must(waitpid(pid, &status, 0) == pid);
	must(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* The last one to have either, so that both are closed by its exit */
TEST_F_TIMEOUT(sriov, both_are_killed, 120)
{
	struct late *vf = self->vf;
	pid_t pid = child_start(vf);

	ASSERT_TRUE(child_is_ready(vf, pid));
	late_close(self->pf);
	must(!kill(pid, SIGKILL));
	expect_no_late_dma(_metadata, vf);
	must(waitpid(pid, NULL, 0) == pid);
}

/*
 * VFs that are removed while they are open
 */
static void *remove_vfs(void *pf_bdf)
{
	return (void *)(intptr_t)device_write(pf_bdf, "sriov_numvfs", "0");
}

static void set_request(int device, int eventfd)
{
	struct {
		struct vfio_irq_set set;
		int32_t fd;
	} args = {
		.set.argsz = sizeof(args),
		.set.flags = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD,
		.set.index = VFIO_PCI_REQ_IRQ_INDEX,
		.set.count = 1,
		.fd = eventfd,
	};

	must(!ioctl(device, VFIO_DEVICE_SET_IRQS, &args));
}

static bool vf_is_there(const struct late *vf)
{
	char path[600];

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s", vf->nvme->bdf);
	return !access(path, F_OK);
}

TEST_F_TIMEOUT(sriov, removed_and_closed, 300)
{
	unsigned int nr = rounds(4), round;
	struct late *vf = self->vf;

	for (round = 0; round < nr; round++) {
		struct pollfd request = {
			.fd = eventfd(0, EFD_CLOEXEC), .events = POLLIN,
		};
		pthread_t thread;
		void *rc;

		vf_begin(vf);
		set_request(vf->nvme->fd, request.fd);
		late_start(vf);
		ASSERT_EQ(0, pthread_create(&thread, NULL, remove_vfs, self->pf_bdf));
		ASSERT_EQ(1, poll(&request, 1, 60000));
		/* The removal asks for the VF, and waits */
		EXPECT_TRUE(vf_is_there(vf));
		EXPECT_EQ((MEMORY + 2 * PAGE) / 1024, vm_pin());
		EXPECT_TRUE(dma_works(vf));
		late_start(vf);
		if (round % 2) {
			late_detach(vf);
			EXPECT_FALSE(is_master(vf->nvme));
			vf_give_back(vf);
			expect_no_late_dma(_metadata, vf);
			late_close(vf);
		} else {
			must(!munmap(vf->mem, MEMORY));
			late_close(vf);
			expect_no_late_dma(_metadata, vf);
		}
		ASSERT_EQ(0, pthread_join(thread, &rc));
		EXPECT_EQ(NULL, rc);
		EXPECT_FALSE(vf_is_there(vf));
		close(request.fd);
		vf = pf_add_vf(self->pf);
		self->vf = vf;
	}
}

TEST_F_TIMEOUT(sriov, removed_and_killed, 120)
{
	struct late *vf = self->vf;
	pid_t pid = child_start(vf);
	unsigned long completed;
	pthread_t thread;
	void *rc;

	ASSERT_TRUE(child_is_ready(vf, pid));
	ASSERT_EQ(0, pthread_create(&thread, NULL, remove_vfs, self->pf_bdf));
	/* The child's DMA goes on, whether or not the removal has begun to wait */
	completed = READ_ONCE(vf->completed);
	ASSERT_TRUE(WAIT_FOR(READ_ONCE(vf->completed) > completed + 2 * DEPTH));
	child_kill(pid);
	expect_no_late_dma(_metadata, vf);
	ASSERT_EQ(0, pthread_join(thread, &rc));
	EXPECT_EQ(NULL, rc);
	EXPECT_FALSE(vf_is_there(vf));
}

/*
 * A VF whose PF has a driver that keeps no tokens
 */
#define PF_STUB "/sys/bus/pci/drivers/pci-pf-stub"

TEST(pf_of_another_driver)
{
	uint64_t length = PAGE, phys;
	int device, iommufd;
	char pf[256], vf[256];
	uint32_t id, ioas;
	char *va;

	if (access(PF_STUB, F_OK))
		SKIP(return, "no driver pci-pf-stub (CONFIG_PCI_PF_STUB)");
	if (!find_pf(pf, sizeof(pf)) || device_has_iommu(pf))
		SKIP(return, "no NVMe disk with SR-IOV and without an IOMMU");
	ASSERT_EQ(0, noiommu_switch(true));
	device_write(pf, "sriov_numvfs", "0");
	device_unbind(pf);
	ASSERT_EQ(0, device_write(pf, "driver_override", "pci-pf-stub"));
	ASSERT_EQ(0, write_file(PF_STUB "/bind", pf));
	ASSERT_EQ(0, device_write(pf, "sriov_numvfs", "1"));
	vf_bdf(pf, vf, sizeof(vf));
	EXPECT_EQ(0, ensure_bound(vf));

	device = cdev_open(vf);
	EXPECT_LE(0, device);
	iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	EXPECT_LE(0, iommufd);
	/* There is no token to compare it with */
	EXPECT_EQ(EINVAL, bind_with_token(device, iommufd, token, &id));
	EXPECT_EQ(0, bind_with_token(device, iommufd, NULL, &id));
	va = anon(PAGE, MAP_POPULATE);
	EXPECT_EQ(0, ioas_alloc(iommufd, &ioas));
	id = ioas;
	EXPECT_EQ(0, attach_pt(device, &id));
	EXPECT_EQ(0, ioas_map(iommufd, ioas, va, PAGE, IOVA, MAP_RW));
	EXPECT_EQ(0, get_pa(iommufd, ioas, IOVA, &length, &phys));
	EXPECT_EQ(pagemap_pa(va), phys);
	close(device);
	close(iommufd);

	EXPECT_EQ(0, device_write(pf, "sriov_numvfs", "0"));
	device_unbind(pf);
	EXPECT_EQ(0, device_bind(pf));
}

TEST_HARNESS_MAIN
