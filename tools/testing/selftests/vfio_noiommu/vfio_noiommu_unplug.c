// SPDX-License-Identifier: GPL-2.0-only
/*
 * A device that is taken away while a program uses it
 *
 * The driver's remove waits until the program has let go of the device. The
 * program closes it when it is asked to, is killed, or goes on for a while and
 * exits. Then the device is gone and every page is returned, and when it comes
 * back it works again.
 *
 * Run as root. Plugging needs QEMU: NOIOMMU_QMP is a terminal that its monitor (QMP)
 * is connected to, and there are PCIe ports "rp-edu" and "rp-nvme", with devices
 * "hot-edu" and "hot-nvme" in them. NOIOMMU_ROUNDS is how often each test takes its
 * device away.
 */
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <termios.h>
#include <time.h>

#include <linux/pci_regs.h>

#include "kselftest_harness.h"
#include "vfio_noiommu_util.h"
#include "../iommu/iommufd_noiommu_extents.h"

#define IOVA 0x10000000UL
#define NR_PAGES 64
#define IOVA_HUGE 0x40000000UL
#define IOVA_BUSY 0x80000000UL

/* What user and test tell each other */
struct shared {
	bool ready;		/* DMA goes on */
	unsigned int requests;	/* to give the device back, as seen by the user */
	bool let_go;		/* the user has closed it */
	bool back;		/* it may be opened again */
	unsigned long dmas;
	unsigned long calls;
	int line;		/* where the user found something wrong */
};

enum manner { CLOSES, IS_KILLED, IS_BUSY };

/*
 * The user: a process of its own
 */
struct user {
	struct shared *shared;
	const struct device *dev;
	const char *bdf;
	enum manner manner;
	int iommufd;
	int device;
	int request;
	uint32_t dev_id;
	uint32_t ioas;
	uint32_t hwpt;
	char *va;
	char *huge;
	uint64_t pas[NR_PAGES];
	char *bar;
	size_t bar_size;
	uint32_t id;
	unsigned int nr;	/* of DMAs since the device was opened */
	bool pending;
};

/* Ends the user. SHARED is where the test finds the line. */
#define MUST(cond)							\
	do {								\
		if (!(cond)) {						\
			u->shared->line = __LINE__;			\
			_exit(KSFT_FAIL);				\
		}							\
	} while (0)

static uint64_t msecs(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000ULL + now.tv_nsec / 1000000;
}

/* Generous: the time limit of the test is what ends a hang */
#define WAIT_MS 600000

#define wait_for(cond)							\
	({								\
		uint64_t end_ms = msecs() + WAIT_MS;			\
		bool is_so;						\
									\
		while (!(is_so = (cond)) && msecs() < end_ms)		\
			usleep(2000);					\
		is_so;							\
	})

static uint32_t reg32(struct user *u, unsigned int reg)
{
	return read_once((uint32_t *)(u->bar + reg));
}

static void set_reg32(struct user *u, unsigned int reg, uint32_t value)
{
	write_once((uint32_t *)(u->bar + reg), value);
}

static void set_reg64(struct user *u, unsigned int reg, uint64_t value)
{
	write_once((uint64_t *)(u->bar + reg), value);
}

/* Devices: a DMA is started, and one day it is done and has changed memory */
struct device {
	const char *vendor;
	const char *device;
	const char *name;
	const char *args;	/* of QEMU's, besides id and bus */
	unsigned int id_reg;	/* reads the same while the device is there */
	void (*setup)(struct user *u);
	void (*start)(struct user *u);
	bool (*done)(struct user *u);
};

/*
 * edu copies between memory and a buffer of its own: QEMU, docs/specs/edu.rst. A
 * number goes in from one page, and out to another.
 */
static void edu_setup(struct user *u)
{
}

static void edu_start(struct user *u)
{
	bool out = u->nr & 1;

	if (!out)
		*(uint32_t *)(u->va + 5 * PAGE) = u->nr;
	set_reg64(u, 0x80, out ? 0x40000 : u->pas[5]);
	set_reg64(u, 0x88, out ? u->pas[42] : 0x40000);
	set_reg64(u, 0x90, PAGE / 2);
	set_reg64(u, 0x98, out ? 3 : 1);
}

static bool edu_done(struct user *u)
{
	uint32_t *to = (void *)(u->va + 42 * PAGE);
	uint32_t command = reg32(u, 0x98);

	if (command & 1 || reg32(u, u->dev->id_reg) != u->id)
		return false;
	if (u->nr & 1)
		MUST(read_once(to) == u->nr - 1);
	return true;
}

static const struct device edu = {
	.vendor = "0x1234",
	.device = "0x11e8",
	.name = "edu",
	.args = "\"driver\": \"edu\", \"dma_mask\": 18446744073709551615",
	.id_reg = 0,
	.setup = edu_setup,
	.start = edu_start,
	.done = edu_done,
};

/*
 * NVMe: the admin queue alone, one Identify Controller after the other. NVM
 * Express Base Specification 2.0, 3.1.3 and 5.17. The queues are pages 0 and 1,
 * the data goes to page 7.
 */
#define NVME_DEPTH 32

static void nvme_setup(struct user *u)
{
	set_reg32(u, 0x14, 0);				/* CC: disable */
	MUST(wait_for(!(reg32(u, 0x1c) & 1)));		/* CSTS.RDY */
	memset(u->va, 0, 2 * PAGE);
	set_reg32(u, 0x24, (NVME_DEPTH - 1) << 16 | (NVME_DEPTH - 1));	/* AQA */
	set_reg64(u, 0x28, u->pas[0]);			/* ASQ */
	set_reg64(u, 0x30, u->pas[1]);			/* ACQ */
	set_reg32(u, 0x14, 4 << 20 | 6 << 16 | 1);	/* CC: entry sizes, enable */
	MUST(wait_for(reg32(u, 0x1c) & 1));
}

static void nvme_start(struct user *u)
{
	uint32_t *sqe = (void *)(u->va + u->nr % NVME_DEPTH * 64);

	memset(u->va + 7 * PAGE, 0, 4);
	memset(sqe, 0, 64);
	sqe[0] = (u->nr & 0xffff) << 16 | 0x06;		/* Identify */
	memcpy(&sqe[6], &u->pas[7], 8);			/* PRP1 */
	sqe[10] = 1;					/* CNS: controller */
	set_reg32(u, 0x1000, (u->nr + 1) % NVME_DEPTH);	/* SQ 0 tail */
}

static bool nvme_done(struct user *u)
{
	uint32_t *cqe = (void *)(u->va + PAGE + u->nr % NVME_DEPTH * 16);
	uint32_t status = read_once(&cqe[3]);
	bool phase = !(u->nr / NVME_DEPTH & 1);

	if (!!(status >> 16 & 1) != phase)
		return false;
	MUST(!(status >> 17));
	MUST(read_once((uint16_t *)(u->va + 7 * PAGE)) == 0x1b36);	/* VID */
	set_reg32(u, 0x1004, (u->nr + 1) % NVME_DEPTH);		/* CQ 0 head */
	return true;
}

static const struct device nvme = {
	.vendor = "0x1b36",
	.device = "0x0010",
	.name = "nvme",
	.args = "\"driver\": \"nvme\", \"serial\": \"hot\"",
	.id_reg = 0x08,		/* VS */
	.setup = nvme_setup,
	.start = nvme_start,
	.done = nvme_done,
};

static bool is_there(struct user *u)
{
	return reg32(u, u->dev->id_reg) == u->id;
}

/* One DMA after the other, none waited for longer than it takes to look */
static void dma_step(struct user *u)
{
	if (!is_there(u))
		return;
	if (u->pending && u->dev->done(u)) {
		u->pending = false;
		u->nr++;
		u->shared->dmas++;
	}
	if (!u->pending) {
		u->dev->start(u);
		u->pending = true;
	}
}

static void open_device(struct user *u)
{
	struct {
		struct vfio_irq_set set;
		int fd;
	} irq = {
		.set.argsz = sizeof(irq),
		.set.flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
		.set.index = VFIO_PCI_REQ_IRQ_INDEX,
		.set.count = 1,
	};
	struct vfio_region_info region = { .argsz = sizeof(region) };
	uint16_t command = PCI_COMMAND_MASTER | PCI_COMMAND_MEMORY;

	u->device = cdev_open(u->bdf);
	MUST(u->device >= 0);
	MUST(!bind_iommufd(u->device, u->iommufd, &u->dev_id));

	u->request = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	irq.fd = u->request;
	MUST(!ioctl(u->device, VFIO_DEVICE_SET_IRQS, &irq));

	region.index = VFIO_PCI_CONFIG_REGION_INDEX;
	MUST(!ioctl(u->device, VFIO_DEVICE_GET_REGION_INFO, &region));
	MUST(pwrite(u->device, &command, 2, region.offset + PCI_COMMAND) == 2);
	region.index = VFIO_PCI_BAR0_REGION_INDEX;
	MUST(!ioctl(u->device, VFIO_DEVICE_GET_REGION_INFO, &region));
	u->bar_size = region.size;
	u->bar = mmap(NULL, region.size, PROT_READ | PROT_WRITE, MAP_SHARED,
		      u->device, region.offset);
	MUST(u->bar != MAP_FAILED);
}

static void start_dma(struct user *u)
{
	unsigned long before = u->shared->dmas;
	uint64_t length, end = msecs() + WAIT_MS;
	int i;

	for (i = 0; i < NR_PAGES; i++) {
		length = PAGE;
		MUST(!get_pa(u->iommufd, u->ioas, IOVA + i * PAGE, &length,
			     &u->pas[i]));
		MUST(u->pas[i] == pagemap_pa(u->va + i * PAGE));
	}
	u->nr = 0;
	u->pending = false;
	u->id = reg32(u, u->dev->id_reg);
	MUST(u->id && u->id != UINT32_MAX);
	u->dev->setup(u);
	while (u->shared->dmas < before + 2 && msecs() < end)
		dma_step(u);
	MUST(u->shared->dmas >= before + 2);
}

static bool requested(struct user *u)
{
	uint64_t count;

	if (read(u->request, &count, sizeof(count)) == sizeof(count))
		u->shared->requests += count;
	return u->shared->requests;
}

/* Asked to, it lets go of the device and keeps its memory, until that is back */
static void close_and_reopen(struct user *u)
{
	uint64_t length = PAGE, phys;
	uint32_t pt_id = u->ioas, dev_id;
	int device;

	while (!requested(u))
		dma_step(u);
	/* It is the user's still, but nobody else's any more */
	device = cdev_open(u->bdf);
	MUST(device < 0);
	MUST(bind_iommufd(u->device, u->iommufd, &dev_id) == EINVAL);
	dma_step(u);

	/* A mapped BAR is a use of the device as well */
	close(u->device);
	usleep(50000);
	dma_step(u);
	u->shared->let_go = true;
	munmap(u->bar, u->bar_size);

	/* The HWPT holds the pages on, and tells where they are */
	MUST(!get_pa(u->iommufd, u->ioas, IOVA, &length, &phys));
	MUST(phys == u->pas[0] && length == PAGE);
	MUST(destroy(u->iommufd, u->dev_id) == ENOENT);
	/* With it goes the answer, and not what is mapped */
	MUST(!destroy(u->iommufd, u->hwpt));
	MUST(get_pa_errno(u->iommufd, u->ioas, IOVA) == EOPNOTSUPP);
	MUST(!ioas_map(u->iommufd, u->ioas, u->va, PAGE, IOVA_BUSY, MAP_RW));
	MUST(get_pa_errno(u->iommufd, u->ioas, IOVA_BUSY) == EOPNOTSUPP);
	MUST(!ioas_unmap(u->iommufd, u->ioas, IOVA_BUSY, PAGE));
	MUST(get_pa_errno(u->iommufd, u->ioas, IOVA_BUSY) == ENOENT);

	MUST(wait_for(u->shared->back));
	open_device(u);
	MUST(!attach_pt(u->device, &pt_id));
	start_dma(u);
}

/* Calls that go on whatever happens to the device */
static void *loop_get_pa(void *arg)
{
	struct iommu_noiommu_extent extents[NR_PAGES];
	struct user *u = arg;
	uint64_t length, phys;
	uint32_t nr;
	int rc;

	for (;;) {
		length = HUGE_PAGE;
		rc = get_pa(u->iommufd, u->ioas, IOVA_HUGE, &length, &phys);
		MUST(!rc);
		MUST(length == HUGE_PAGE);
		length = NR_PAGES * PAGE;
		nr = NR_PAGES;
		MUST(!get_pa_extents(u->iommufd, u->ioas, IOVA, &length, extents, &nr));
		MUST(length == NR_PAGES * PAGE);
		u->shared->calls++;
	}
}

static void *loop_map(void *arg)
{
	struct user *u = arg;

	for (;;) {
		MUST(!ioas_map(u->iommufd, u->ioas, u->va, NR_PAGES * PAGE, IOVA_BUSY,
			       MAP_RW));
		MUST(!get_pa_errno(u->iommufd, u->ioas, IOVA_BUSY + 5 * PAGE));
		MUST(!ioas_unmap(u->iommufd, u->ioas, IOVA_BUSY, NR_PAGES * PAGE));
		u->shared->calls++;
	}
	return NULL;
}

static void *loop_attach(void *arg)
{
	struct user *u = arg;
	uint32_t pt_id;

	for (;;) {
		MUST(!detach_pt(u->device));
		pt_id = u->ioas;
		MUST(!attach_pt(u->device, &pt_id));
		pt_id = u->hwpt;
		MUST(!attach_pt(u->device, &pt_id));
		u->shared->calls++;
	}
	return NULL;
}

static void go_on_and_exit(struct user *u)
{
	void *(*const loops[])(void *) = { loop_get_pa, loop_map, loop_attach };
	pthread_t thread;
	unsigned int i;
	uint64_t end;

	for (i = 0; i < ARRAY_SIZE(loops); i++)
		MUST(!pthread_create(&thread, NULL, loops[i], u));
	while (!requested(u))
		usleep(10000);
	for (end = msecs() + 300; msecs() < end; usleep(1000)) {
		/* A reset can't have the device, and must not wait for it */
		MUST(ioctl(u->device, VFIO_DEVICE_RESET) == -1);
		MUST(errno == EAGAIN || errno == EINVAL || errno == ENOTTY);
	}
	u->shared->let_go = true;
}

static void user(struct user *u)
{
	uint32_t pt_id;

	u->iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	MUST(u->iommufd >= 0);
	MUST(!ioas_alloc(u->iommufd, &u->ioas));
	u->va = anon(NR_PAGES * PAGE, 0);
	touch_scattered(u->va, NR_PAGES * PAGE);
	u->huge = anon_huge(HUGE_PAGE);
	MUST(u->huge);
	MUST(!ioas_map(u->iommufd, u->ioas, u->va, NR_PAGES * PAGE, IOVA, MAP_RW));
	MUST(!ioas_map(u->iommufd, u->ioas, u->huge, HUGE_PAGE, IOVA_HUGE, MAP_RW));
	open_device(u);
	MUST(!hwpt_alloc(u->iommufd, u->dev_id, u->ioas, 0, &u->hwpt));
	pt_id = u->hwpt;
	MUST(!attach_pt(u->device, &pt_id));
	start_dma(u);
	u->shared->ready = true;

	switch (u->manner) {
	case CLOSES:
		close_and_reopen(u);
		break;
	case IS_BUSY:
		go_on_and_exit(u);
		break;
	case IS_KILLED:
		for (;;) {
			requested(u);
			dma_step(u);
		}
	}
	_exit(KSFT_PASS);
}

/*
 * QEMU's monitor: docs/interop/qmp-spec.txt. A byte of 0xff makes it forget what
 * the terminal may have echoed to it.
 */
static int qmp_open(void)
{
	const char *path = getenv("NOIOMMU_QMP");
	struct termios tty;
	int fd = path ? open(path, O_RDWR | O_NOCTTY | O_CLOEXEC) : -1;

	if (fd < 0)
		return -1;
	if (!tcgetattr(fd, &tty)) {
		cfmakeraw(&tty);
		tty.c_cc[VMIN] = 0;
		tty.c_cc[VTIME] = 10;
		tcsetattr(fd, TCSANOW, &tty);
	}
	dprintf(fd, "\xff\n{\"execute\": \"qmp_capabilities\"}\n");
	return fd;
}

/* What it answers to this command; answers to others and events are passed over */
static bool qmp(int fd, const char *name, const char *args)
{
	static unsigned int nr;
	char line[2000], id[40];
	uint64_t end = msecs() + WAIT_MS;
	size_t len = 0;

	snprintf(id, sizeof(id), "\"%d-%u\"", getpid(), ++nr);
	dprintf(fd, "{\"execute\": \"%s\", \"id\": %s, \"arguments\": {%s}}\n", name, id,
		args);
	while (msecs() < end) {
		if (read(fd, line + len, 1) != 1)
			continue;
		if (line[len] != '\n' && len < sizeof(line) - 2) {
			len++;
			continue;
		}
		line[len] = 0;
		len = 0;
		if (!strstr(line, id))
			continue;
		if (strstr(line, "\"return\""))
			return true;
		printf("# %s: %s\n", name, line);
		return false;
	}
	printf("# %s: no answer\n", name);
	return false;
}

/*
 * Ways to take the device away. The first two block who does it, so that they get
 * a process, the others a thread of the kernel.
 */
enum way { UNBIND, REMOVE, DEL, SURPRISE };

FIXTURE(unplug)
{
	char bdf[256];
	char id[32];
	char port[32];
	int qmp;
	unsigned int rounds;
	long long pinned;
	long long tables;
	long long huge;
	struct shared *shared;
	pid_t user;
	pid_t operator;
};

FIXTURE_VARIANT(unplug)
{
	const struct device *dev;
	enum way way;
};

FIXTURE_VARIANT_ADD(unplug, edu_unbind) { .dev = &edu, .way = UNBIND };
FIXTURE_VARIANT_ADD(unplug, edu_remove) { .dev = &edu, .way = REMOVE };
FIXTURE_VARIANT_ADD(unplug, edu_device_del) { .dev = &edu, .way = DEL };
FIXTURE_VARIANT_ADD(unplug, edu_surprise) { .dev = &edu, .way = SURPRISE };
FIXTURE_VARIANT_ADD(unplug, nvme_unbind) { .dev = &nvme, .way = UNBIND };
FIXTURE_VARIANT_ADD(unplug, nvme_remove) { .dev = &nvme, .way = REMOVE };
FIXTURE_VARIANT_ADD(unplug, nvme_device_del) { .dev = &nvme, .way = DEL };
FIXTURE_VARIANT_ADD(unplug, nvme_surprise) { .dev = &nvme, .way = SURPRISE };

static bool exists(struct _test_data_unplug *self)
{
	char path[300];

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s", self->bdf);
	return !access(path, F_OK);
}

/*
 * The disk gets a medium of its own each time: sometimes QEMU 7.2 keeps a disk
 * that was ejected while it was used, and with it what was in it.
 */
static bool plug(struct _test_data_unplug *self, const struct device *dev)
{
	char args[300], drive[100] = "";
	static unsigned int nr;

	if (dev == &nvme) {
		snprintf(drive, sizeof(drive), "\"drive\": \"hot-%d-%u\", ", getpid(), ++nr);
		snprintf(args, sizeof(args),
			 "\"driver\": \"null-co\", \"read-zeroes\": true, \"node-name\": \"hot-%d-%u\"",
			 getpid(), nr);
		if (!qmp(self->qmp, "blockdev-add", args))
			return false;
	}
	snprintf(args, sizeof(args), "%s%s, \"id\": \"hot-%s\", \"bus\": \"rp-%s\"",
		 drive, dev->args, dev->name, dev->name);
	return qmp(self->qmp, "device_add", args);
}

/* The port's config space, and where its Slot Control is */
static int open_slot(const char *port, off_t *control)
{
	char path[300];
	uint8_t cap, id;
	int fd;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/config", port);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || pread(fd, &cap, 1, PCI_CAPABILITY_LIST) != 1)
		return -1;
	while (cap && pread(fd, &id, 1, cap) == 1 && id != PCI_CAP_ID_EXP)
		if (pread(fd, &cap, 1, cap + 1) != 1)
			return -1;
	*control = cap + PCI_EXP_SLTCTL;
	return cap ? fd : -1;
}

/* Both fields at their highest */
#define SLOT_IS_OFF (PCI_EXP_SLTCTL_PCC | PCI_EXP_SLTCTL_PWR_IND_OFF)
#define SLOT_IS_ON PCI_EXP_SLTCTL_PWR_IND_ON

/*
 * The port's power goes off and on again behind the back of the hotplug driver,
 * which sees that the card is not there any more.
 */
static bool pull_out(const char *port)
{
	uint16_t control, off;
	off_t at;
	int fd = open_slot(port, &at);
	bool done;

	if (fd < 0)
		return false;
	done = pread(fd, &control, 2, at) == 2;
	off = (control & ~PCI_EXP_SLTCTL_HPIE) | SLOT_IS_OFF;
	done = done && pwrite(fd, &off, 2, at) == 2 && pwrite(fd, &control, 2, at) == 2;
	close(fd);
	return done;
}

/*
 * The last that the hotplug driver does is to set the indicator. It blinks while
 * the driver is busy. QEMU ejects what is in a slot that is off.
 */
static bool slot_is(const char *port, uint16_t state)
{
	uint16_t control;
	off_t at;
	int fd = open_slot(port, &at);
	bool is_so;

	if (fd < 0)
		return false;
	is_so = pread(fd, &control, 2, at) == 2 && (control & SLOT_IS_OFF) == state;
	close(fd);
	return is_so;
}

/* Where the device is. A test that failed may have left it out. */
static bool find_plugged(struct _test_data_unplug *self, const struct device *dev)
{
	char path[300], target[300];
	ssize_t len;

	if (!find_device(dev->vendor, dev->device, self->bdf, sizeof(self->bdf)) &&
	    (self->qmp < 0 || !plug(self, dev) ||
	     !wait_for(find_device(dev->vendor, dev->device, self->bdf,
				   sizeof(self->bdf)))))
		return false;
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s", self->bdf);
	len = readlink(path, target, sizeof(target) - 1);
	if (len < 0)
		return false;
	target[len] = 0;
	*strrchr(target, '/') = 0;
	snprintf(self->port, sizeof(self->port), "%.31s", strrchr(target, '/') + 1);
	snprintf(self->id, sizeof(self->id), "\"id\": \"hot-%s\"", dev->name);
	return true;
}

static struct shared *shared_page(void)
{
	void *va = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	return va == MAP_FAILED ? NULL : va;
}

FIXTURE_SETUP(unplug)
{
	self->qmp = -1;
	if (variant->way >= DEL) {
		self->qmp = qmp_open();
		if (self->qmp < 0)
			SKIP(return, "no NOIOMMU_QMP");
	}
	if (!find_plugged(self, variant->dev))
		SKIP(return, "no device %s", variant->dev->name);
	if (device_has_iommu(self->bdf))
		SKIP(return, "%s has an IOMMU", self->bdf);

	self->rounds = getenv("NOIOMMU_ROUNDS") ? atoi(getenv("NOIOMMU_ROUNDS")) : 1;
	ASSERT_EQ(0, noiommu_switch(true));
	ASSERT_EQ(0, ensure_bound(self->bdf));
	self->shared = shared_page();
	ASSERT_NE(NULL, self->shared);
	self->pinned = pinned_pages();
	self->tables = table_pages();
	self->huge = read_field("/proc/meminfo", "HugePages_Free:");
}

FIXTURE_TEARDOWN(unplug)
{
	if (self->user > 0)
		kill(self->user, SIGKILL);
	if (self->qmp >= 0)
		close(self->qmp);
}

static void take_away(struct __test_metadata *_metadata, struct _test_data_unplug *self,
		      enum way way)
{
	switch (way) {
	case UNBIND:
	case REMOVE:
		self->operator = fork();
		ASSERT_LE(0, self->operator);
		if (!self->operator)
			_exit(way == UNBIND ?
			      device_write(self->bdf, "driver/unbind", self->bdf) :
			      device_write(self->bdf, "remove", "1"));
		break;
	case DEL:
		ASSERT_TRUE(wait_for(slot_is(self->port, SLOT_IS_ON)));
		ASSERT_TRUE(qmp(self->qmp, "device_del", self->id));
		break;
	case SURPRISE:
		ASSERT_TRUE(pull_out(self->port));
		break;
	}
}

/* The operator's write has returned, or the device is not there any more */
static bool is_gone(struct _test_data_unplug *self, enum way way)
{
	siginfo_t info = {};

	if (way != UNBIND && exists(self))
		return false;
	if (way > REMOVE)
		return true;
	return !waitid(P_PID, self->operator, &info, WEXITED | WNOHANG | WNOWAIT) &&
	       info.si_pid == self->operator;
}

static void give_back(struct __test_metadata *_metadata, struct _test_data_unplug *self,
		      const struct device *dev, enum way way)
{
	char name[256];
	int status;

	if (way <= REMOVE) {
		ASSERT_EQ(self->operator, waitpid(self->operator, &status, 0));
		EXPECT_EQ(0, status);
	}
	switch (way) {
	case UNBIND:
		break;
	case REMOVE:
		ASSERT_EQ(0, write_file("/sys/bus/pci/rescan", "1"));
		break;
	case DEL:
	case SURPRISE:
		ASSERT_TRUE(wait_for(slot_is(self->port, SLOT_IS_OFF)));
		/*
		 * The hotplug driver looks once more whether there is a card, and
		 * switches one that is put in too early on and, for the button that
		 * was pressed, off again. Then put it in once more. QEMU refuses
		 * while it is tidying up, and while the card is in.
		 */
		usleep(300000);
		ASSERT_TRUE(wait_for(exists(self) ||
				     (slot_is(self->port, SLOT_IS_OFF) &&
				      (plug(self, dev), usleep(100000), false))));
		break;
	}
	ASSERT_TRUE(wait_for(exists(self)));
	/* It is probed some time after that, by vfio-pci if the override came first */
	ASSERT_TRUE(wait_for(!device_bind(self->bdf) ||
			     cdev_name(self->bdf, name, sizeof(name))));
}

static void round_trip(struct __test_metadata *_metadata, struct _test_data_unplug *self,
		       const struct device *dev, enum way way, enum manner manner,
		       unsigned int round)
{
	struct user u = {
		.shared = self->shared,
		.dev = dev,
		.bdf = self->bdf,
		.manner = manner,
	};
	char name[256], path[600];
	int status;

	memset(self->shared, 0, sizeof(*self->shared));
	ASSERT_TRUE(cdev_name(self->bdf, name, sizeof(name)));
	snprintf(path, sizeof(path), "/dev/vfio/devices/%s", name);
	self->user = fork();
	ASSERT_LE(0, self->user);
	if (!self->user)
		user(&u);
	ASSERT_TRUE(wait_for(self->shared->ready || self->shared->line));
	ASSERT_EQ(0, self->shared->line);

	take_away(_metadata, self, way);
	/* Killed before it is asked, while it is, or after; a button takes 5 s */
	if (manner == IS_KILLED && round & 1)
		usleep((way == DEL ? 4900000 : 0) + rand() % 300000);
	else
		ASSERT_TRUE(wait_for(self->shared->requests || self->shared->line));
	if (manner == IS_KILLED) {
		if (self->shared->requests) {
			usleep(20000);
			EXPECT_FALSE(is_gone(self, way));
		}
		kill(self->user, SIGKILL);
	} else {
		while (!self->shared->let_go && !self->shared->line)
			EXPECT_TRUE(!is_gone(self, way) || self->shared->let_go);
	}
	if (manner != CLOSES) {
		ASSERT_EQ(self->user, waitpid(self->user, &status, 0));
		ASSERT_EQ(0, self->shared->line);
		EXPECT_EQ(manner == IS_KILLED ? SIGKILL : 0, status);
		self->user = 0;
		EXPECT_EQ(self->pinned, pinned_pages());
	}
	ASSERT_TRUE(wait_for(is_gone(self, way) || self->shared->line));
	ASSERT_EQ(0, self->shared->line);
	EXPECT_NE(0, access(path, F_OK));

	give_back(_metadata, self, dev, way);
	if (manner == CLOSES) {
		self->shared->back = true;
		ASSERT_EQ(self->user, waitpid(self->user, &status, 0));
		ASSERT_EQ(0, self->shared->line);
		EXPECT_EQ(0, status);
		self->user = 0;
	}
	EXPECT_EQ(self->pinned, pinned_pages());
	EXPECT_EQ(self->tables, table_pages());
	EXPECT_EQ(self->huge, read_field("/proc/meminfo", "HugePages_Free:"));
}

static void all_rounds(struct __test_metadata *_metadata, struct _test_data_unplug *self,
		       const struct device *dev, enum way way, enum manner manner)
{
	unsigned long dmas = 0, calls = 0;
	unsigned int i, requests = 0;

	for (i = 0; i < self->rounds; i++) {
		round_trip(_metadata, self, dev, way, manner, i);
		dmas += self->shared->dmas;
		calls += self->shared->calls;
		requests += self->shared->requests;
	}
	TH_LOG("%u times, %lu DMAs, %u requests, %lu rounds of other calls", i, dmas,
	       requests, calls);
}

/* The limit is that of a hundred rounds; it ends what hangs */
TEST_F_TIMEOUT(unplug, user_closes, 1200)
{
	all_rounds(_metadata, self, variant->dev, variant->way, CLOSES);
}

TEST_F_TIMEOUT(unplug, user_is_killed, 1200)
{
	all_rounds(_metadata, self, variant->dev, variant->way, IS_KILLED);
}

TEST_F_TIMEOUT(unplug, user_is_busy, 1200)
{
	all_rounds(_metadata, self, variant->dev, variant->way, IS_BUSY);
}

/*
 * One program has two devices. While it has not yet given back the one, it resets
 * the other, which is to be removed next.
 */
static void reset_one_of_two(struct user users[2])
{
	struct user *u = &users[0];
	int i;

	users[0].iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	users[1].iommufd = users[0].iommufd;
	for (i = 0; i < 2; i++)
		open_device(&users[i]);
	u->shared->ready = true;
	while (!requested(u))
		usleep(10000);
	MUST(wait_for(u->shared->back));
	ioctl(users[1].device, VFIO_DEVICE_RESET);
	u->shared->let_go = true;
	_exit(KSFT_PASS);
}

FIXTURE(two)
{
	struct _test_data_unplug slots[2];
	struct shared *shared;
	pid_t user;
};

FIXTURE_SETUP(two)
{
	static const struct device * const devs[2] = { &nvme, &edu };
	int i, qmp_fd = qmp_open();

	if (qmp_fd < 0)
		SKIP(return, "no NOIOMMU_QMP");
	for (i = 0; i < 2; i++) {
		self->slots[i].qmp = qmp_fd;
		if (!find_plugged(&self->slots[i], devs[i]))
			SKIP(return, "no device %s", devs[i]->name);
		ASSERT_EQ(0, noiommu_switch(true));
		ASSERT_EQ(0, ensure_bound(self->slots[i].bdf));
	}
	self->shared = shared_page();
	ASSERT_NE(NULL, self->shared);
}

FIXTURE_TEARDOWN(two)
{
	if (self->user > 0)
		kill(self->user, SIGKILL);
}

TEST_F_TIMEOUT(two, reset_of_one_while_the_other_is_removed, 200)
{
	struct user users[2] = {
		{ .shared = self->shared, .dev = &nvme, .bdf = self->slots[0].bdf },
		{ .shared = self->shared, .dev = &edu, .bdf = self->slots[1].bdf },
	};
	int i, status;

	self->user = fork();
	ASSERT_LE(0, self->user);
	if (!self->user)
		reset_one_of_two(users);
	ASSERT_TRUE(wait_for(self->shared->ready || self->shared->line));
	ASSERT_EQ(0, self->shared->line);
	take_away(_metadata, &self->slots[0], DEL);
	ASSERT_TRUE(wait_for(self->shared->requests));
	take_away(_metadata, &self->slots[1], DEL);
	/* That the button was pressed is believed after 5 s */
	sleep(7);
	self->shared->back = true;
	ASSERT_TRUE(wait_for(self->shared->let_go || self->shared->line));
	ASSERT_EQ(0, self->shared->line);
	ASSERT_EQ(self->user, waitpid(self->user, &status, 0));
	EXPECT_EQ(0, status);
	self->user = 0;
	for (i = 0; i < 2; i++) {
		ASSERT_TRUE(wait_for(is_gone(&self->slots[i], DEL)));
		give_back(_metadata, &self->slots[i], users[i].dev, DEL);
	}
}

TEST_HARNESS_MAIN
