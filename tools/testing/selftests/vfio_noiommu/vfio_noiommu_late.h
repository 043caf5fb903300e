/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Devices without an IOMMU in the middle of DMA to memory that is about to be
 * given back: an NVMe disk with its queue full of reads, and QEMU's edu device,
 * which does its DMA 100 ms after it was told to. Nothing is written to the disk.
 *
 * The memory is all of the system's pool of huge pages, so that a page is free
 * exactly when the pool says so, and whoever takes all of them has the same ones.
 *
 * Where asserts of the harness are of no use, in children and threads, must() ends
 * the process.
 */
#ifndef __VFIO_NOIOMMU_LATE_H
#define __VFIO_NOIOMMU_LATE_H

#include <stddef.h>
#include <time.h>

#include <linux/compiler.h>
#include <linux/io.h>
#include <linux/pci_regs.h>

#include "vfio_noiommu_util.h"
#include "../vfio/lib/drivers/nvme/hw.h"

#define POOL		4			/* huge pages */
#define MEMORY		(POOL * HUGE_PAGE)
#define NR_PAGES	(MEMORY / PAGE)
#define IOVA		0x10000000UL
#define CANARY		0xa5a5a5a5a5a5a5a5ULL

#define must(condition)								\
	do {									\
		if (!(condition)) {						\
			fprintf(stderr, "# %s:%d: not so: %s (errno %d)\n",	\
				__func__, __LINE__, #condition, errno);		\
			_exit(KSFT_FAIL);					\
		}								\
	} while (0)

struct late_device {
	char bdf[256];
	int sysfs;		/* the real configuration space */
	int fd;
	uint32_t id;
	uint64_t config;	/* offset in fd */
	uint64_t bar0_offset;
	uint64_t bar0_size;
	void *bar0;
};

/* Depth of the queues, a page of submissions */
#define DEPTH		64

/*
 * Pages of the memory: queues, PRP lists; where the data starts, which is the
 * disk's, and which is edu's
 */
enum { MEM_ADMIN_SQ, MEM_ADMIN_CQ, MEM_SQ, MEM_CQ, MEM_PRP };
#define MEM_DATA	HUGE_PAGE
#define MEM_EDU		((POOL - 1) * HUGE_PAGE)

/* What a read takes: as large as is common, so that they last */
#define CHUNK		(128UL << 10)
#define NR_CHUNKS	((MEM_EDU - MEM_DATA) / CHUNK)
#define NR_PRPS		(CHUNK / PAGE)

struct nvme_queue {
	struct nvme_sqe *sq;
	struct nvme_cqe *cq;
	void *sq_doorbell, *cq_doorbell;
	unsigned int tail, head, phase;
};

/* In memory that is shared with children */
struct late {
	struct late_device *nvme, *edu;		/* NULL, or one of these */
	struct late_device devices[2];
	unsigned int nr;
	int iommufd;
	uint32_t ioas;
	int free_pages;				/* a file that says how many */
	char *mem;
	uint64_t pas[NR_PAGES];
	struct nvme_queue admin, io;
	bool ready;				/* DMA goes on */
	unsigned long submitted, completed;
};

static inline uint64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000ULL + now.tv_nsec / 1000000;
}

/* Generous: the time limit of the test is what ends a hang */
#define WAIT_MS 600000

#define WAIT_FOR(condition)							\
	({									\
		uint64_t end = now_ms() + WAIT_MS;				\
		bool good;							\
										\
		while (!(good = (condition)) && now_ms() < end)			\
			usleep(100);						\
		good;								\
	})

static inline unsigned int rounds(unsigned int by_default)
{
	const char *text = getenv("NOIOMMU_ROUNDS");

	return text && atoi(text) > 0 ? atoi(text) : by_default;
}

/*
 * The pool
 */
#define HUGE_PAGES "/sys/kernel/mm/hugepages/hugepages-2048kB/"

static inline int free_pages(const struct late *late)
{
	char text[32] = "";

	must(pread(late->free_pages, text, sizeof(text) - 1, 0) > 0);
	return atoi(text);
}

static char pool_was[32];
static pid_t pool_of;

__attribute__((constructor)) static void pool_remember(void)
{
	pool_of = getpid();
	if (read_file(HUGE_PAGES "nr_hugepages", pool_was, sizeof(pool_was)))
		pool_was[0] = 0;
}

/* However the tests ended, but by a signal, and not when one of their processes does */
__attribute__((destructor)) static void pool_restore(void)
{
	if (getpid() == pool_of && pool_was[0])
		write_file(HUGE_PAGES "nr_hugepages", pool_was);
}

static inline void pool_init(struct late *late)
{
	char text[32];

	late->free_pages = open(HUGE_PAGES "free_hugepages", O_RDONLY | O_CLOEXEC);
	must(late->free_pages >= 0);
	/* Nobody else may use any; whoever was killed before may still be about to end */
	must(!read_file(HUGE_PAGES "nr_hugepages", text, sizeof(text)));
	must(WAIT_FOR(free_pages(late) == atoi(text)));
	snprintf(text, sizeof(text), "%u", POOL);
	must(!write_file(HUGE_PAGES "nr_hugepages", text));
	must(WAIT_FOR(free_pages(late) == POOL));
}

static inline void *pool_take_all(void)
{
	void *va = anon(MEMORY, MAP_HUGETLB | MAP_POPULATE);

	must(va);
	return va;
}

/* Are these the pages that the device was told? */
static inline bool same_pages(const struct late *late, char *va)
{
	unsigned int page, other;

	for (page = 0; page < POOL; page++) {
		uint64_t pa = pagemap_pa(va + page * HUGE_PAGE);

		for (other = 0; other < POOL; other++)
			if (pa && pa == late->pas[other * HUGE_PAGE / PAGE])
				break;
		if (other == POOL)
			return false;
	}
	return true;
}

static inline void canary_fill(void *va)
{
	uint64_t *word = va;
	size_t i;

	for (i = 0; i < MEMORY / 8; i++)
		WRITE_ONCE(word[i], CANARY);
}

/* How many words are no longer what they were filled with */
static inline size_t canary_lost(void *va)
{
	uint64_t *words = va, word;
	size_t i, lost = 0;

	for (i = 0; i < MEMORY / 8; i++) {
		word = READ_ONCE(words[i]);
		if (word == CANARY)
			continue;
		if (!lost++)
			fprintf(stderr, "# word %zu of the canary is %#llx\n", i,
				(unsigned long long)word);
	}
	return lost;
}

/*
 * Configuration space: as it is, and as the program sees and writes it
 */
static inline uint16_t real_command(const struct late_device *device)
{
	uint16_t command;

	must(pread(device->sysfs, &command, 2, PCI_COMMAND) == 2);
	return command;
}

static inline bool is_master(const struct late_device *device)
{
	return real_command(device) & PCI_COMMAND_MASTER;
}

/* Is any of them? */
static inline bool any_master(const struct late *late)
{
	unsigned int i;

	for (i = 0; i < late->nr; i++)
		if (is_master(&late->devices[i]))
			return true;
	return false;
}

static inline bool all_masters(const struct late *late)
{
	unsigned int i;

	for (i = 0; i < late->nr; i++)
		if (!is_master(&late->devices[i]))
			return false;
	return true;
}

static inline uint32_t config_read(const struct late_device *device,
				   unsigned int reg, unsigned int size)
{
	uint32_t value = 0;

	must(pread(device->fd, &value, size, device->config + reg) == size);
	return value;
}

static inline void config_write(const struct late_device *device, unsigned int reg,
				unsigned int size, uint32_t value)
{
	must(pwrite(device->fd, &value, size, device->config + reg) == size);
}

static inline void set_command(const struct late_device *device, uint16_t command)
{
	config_write(device, PCI_COMMAND, 2, command | PCI_COMMAND_INTX_DISABLE);
}

#define COMMAND_ON (PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER)

static inline void set_masters(const struct late *late)
{
	unsigned int i;

	for (i = 0; i < late->nr; i++)
		set_command(&late->devices[i], COMMAND_ON);
}

/*
 * The devices, to vfio-pci and opened
 */
static inline bool late_find_one(struct late *late, struct late_device **which,
				 const char *vendor, const char *id)
{
	struct late_device *device = &late->devices[late->nr];
	char path[600];

	if (!find_device(vendor, id, device->bdf, sizeof(device->bdf)) ||
	    device_has_iommu(device->bdf))
		return false;
	must(!noiommu_switch(true));
	must(!ensure_bound(device->bdf));
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/config", device->bdf);
	device->sysfs = open(path, O_RDONLY | O_CLOEXEC);
	must(device->sysfs >= 0);
	device->fd = -1;
	late->nr++;
	*which = device;
	return true;
}

/* NULL if one is absent */
static inline struct late *late_init(bool nvme, bool edu)
{
	struct late *late = mmap(NULL, sizeof(*late), PROT_READ | PROT_WRITE,
				 MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	must(late != MAP_FAILED);
	if ((nvme && !late_find_one(late, &late->nvme, "0x1b36", "0x0010")) ||
	    (edu && !late_find_one(late, &late->edu, "0x1234", "0x11e8")))
		return NULL;
	late->iommufd = -1;
	pool_init(late);
	return late;
}

static inline void device_open(struct late_device *device)
{
	struct vfio_region_info config = {
		.argsz = sizeof(config),
		.index = VFIO_PCI_CONFIG_REGION_INDEX,
	};

	must(!ioctl(device->fd, VFIO_DEVICE_GET_REGION_INFO, &config));
	device->config = config.offset;
}

/* In the order of the file descriptors that is asked for */
static inline void late_open(struct late *late, bool iommufd_first)
{
	unsigned int i;

	if (iommufd_first)
		late->iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	for (i = 0; i < late->nr; i++)
		late->devices[i].fd = cdev_open(late->devices[i].bdf);
	if (!iommufd_first)
		late->iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	must(late->iommufd >= 0);
	for (i = 0; i < late->nr; i++) {
		struct late_device *device = &late->devices[i];

		must(device->fd >= 0);
		must(!bind_iommufd(device->fd, late->iommufd, &device->id));
		device->bar0 = NULL;
		device_open(device);
	}
	must(!ioas_alloc(late->iommufd, &late->ioas));
}

static inline void bar0_map(struct late_device *device)
{
	struct vfio_region_info bar = {
		.argsz = sizeof(bar),
		.index = VFIO_PCI_BAR0_REGION_INDEX,
	};

	must(!ioctl(device->fd, VFIO_DEVICE_GET_REGION_INFO, &bar));
	device->bar0_size = bar.size;
	device->bar0_offset = bar.offset;
	device->bar0 = mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED,
			    device->fd, bar.offset);
	must(device->bar0 != MAP_FAILED);
}

static inline void bar0_unmap(struct late_device *device)
{
	must(!munmap(device->bar0, device->bar0_size));
	device->bar0 = NULL;
}

static inline void late_unmap_bars(struct late *late)
{
	unsigned int i;

	for (i = 0; i < late->nr; i++)
		bar0_unmap(&late->devices[i]);
}

/* Once something is attached, or a HWPT allocated, there are addresses */
static inline void late_get_pas(struct late *late)
{
	uint64_t done, length, phys, i;

	for (done = 0; done < MEMORY; done += length) {
		length = MEMORY - done;
		must(!get_pa(late->iommufd, late->ioas, IOVA + done, &length, &phys));
		for (i = 0; i < length; i += PAGE)
			late->pas[(done + i) / PAGE] = phys + i;
	}
}

static inline void late_attach(struct late *late, uint32_t to)
{
	unsigned int i;

	for (i = 0; i < late->nr; i++) {
		uint32_t pt_id = to;

		must(!attach_pt(late->devices[i].fd, &pt_id));
	}
}

static inline void late_detach(struct late *late)
{
	unsigned int i;

	for (i = 0; i < late->nr; i++)
		must(!detach_pt(late->devices[i].fd));
}

static inline void late_map(struct late *late)
{
	must(!ioas_map(late->iommufd, late->ioas, late->mem, MEMORY, IOVA, MAP_RW));
}

/*
 * The disk
 */
static inline uint32_t nvme_read(struct late *late, unsigned int reg)
{
	return readl(late->nvme->bar0 + reg);
}

static inline void nvme_write(struct late *late, unsigned int reg, uint32_t value)
{
	writel(value, late->nvme->bar0 + reg);
}

static inline void nvme_write64(struct late *late, unsigned int reg, uint64_t value)
{
	nvme_write(late, reg, value);
	nvme_write(late, reg + 4, value >> 32);
}

static inline void nvme_disable(struct late *late)
{
	nvme_write(late, NVME_CC, nvme_read(late, NVME_CC) & ~NVME_CC_EN);
	must(WAIT_FOR(!(nvme_read(late, NVME_CSTS) & NVME_CSTS_RDY)));
}

static inline void nvme_queue_init(struct late *late, struct nvme_queue *q,
				   unsigned int id, unsigned int page)
{
	uint64_t cap = nvme_read(late, NVME_CAP) |
		       (uint64_t)nvme_read(late, NVME_CAP + 4) << 32;

	must((cap & 0xffff) + 1 >= DEPTH && !NVME_CAP_MPSMIN(cap));
	memset(q, 0, sizeof(*q));
	q->sq = (void *)late->mem + page * PAGE;
	q->cq = (void *)late->mem + (page + 1) * PAGE;
	q->sq_doorbell = late->nvme->bar0 + NVME_SQ_DOORBELL(id, NVME_CAP_DSTRD(cap));
	q->cq_doorbell = late->nvme->bar0 + NVME_CQ_DOORBELL(id, NVME_CAP_DSTRD(cap));
	q->phase = NVME_CQE_PHASE;
	memset(q->cq, 0, PAGE);
}

/* Take what completed, all of which has to be good */
static inline unsigned int nvme_reap(struct nvme_queue *q)
{
	unsigned int nr = 0;
	uint16_t status;

	for (;;) {
		status = READ_ONCE(q->cq[q->head].status);
		if ((status & NVME_CQE_PHASE) != q->phase)
			break;
		must(!NVME_CQE_STATUS(status));
		q->head = (q->head + 1) % DEPTH;
		if (!q->head)
			q->phase ^= NVME_CQE_PHASE;
		nr++;
	}
	if (nr)
		writel(q->head, q->cq_doorbell);
	return nr;
}

static inline void nvme_ring(struct nvme_queue *q, unsigned int nr)
{
	q->tail = (q->tail + nr) % DEPTH;
	writel(q->tail, q->sq_doorbell);
}

static inline void nvme_admin(struct late *late, const struct nvme_sqe *cmd)
{
	late->admin.sq[late->admin.tail] = *cmd;
	nvme_ring(&late->admin, 1);
	must(WAIT_FOR(nvme_reap(&late->admin)));
}

/* Also out of a fatal error. Then every entry of the queue is a read. */
static inline void nvme_enable(struct late *late)
{
	struct nvme_sqe cmd = {
		.opcode = NVME_ADMIN_SET_FEATURES,
		.cdw10 = NVME_FEAT_NUM_QUEUES,
	};
	u32 cc = NVME_CC_IOSQES | NVME_CC_IOCQES;
	unsigned int chunk, i;
	uint64_t *prps;

	nvme_disable(late);
	nvme_queue_init(late, &late->admin, 0, MEM_ADMIN_SQ);
	nvme_queue_init(late, &late->io, 1, MEM_SQ);
	nvme_write(late, NVME_AQA, (DEPTH - 1) << 16 | (DEPTH - 1));
	nvme_write64(late, NVME_ASQ, late->pas[MEM_ADMIN_SQ]);
	nvme_write64(late, NVME_ACQ, late->pas[MEM_ADMIN_CQ]);
	nvme_write(late, NVME_CC, cc | NVME_CC_EN);
	must(WAIT_FOR(nvme_read(late, NVME_CSTS) & (NVME_CSTS_RDY | NVME_CSTS_CFS)));
	must(!(nvme_read(late, NVME_CSTS) & NVME_CSTS_CFS));

	nvme_admin(late, &cmd);
	cmd.opcode = NVME_ADMIN_CREATE_CQ;
	cmd.prp1 = late->pas[MEM_CQ];
	cmd.cdw10 = NVME_QUEUE_CDW10(1, DEPTH);
	cmd.cdw11 = NVME_QUEUE_PC;
	nvme_admin(late, &cmd);
	cmd.opcode = NVME_ADMIN_CREATE_SQ;
	cmd.prp1 = late->pas[MEM_SQ];
	cmd.cdw11 = NVME_QUEUE_PC | NVME_SQ_CQID(1);
	nvme_admin(late, &cmd);

	for (i = 0; i < DEPTH; i++) {
		chunk = i % NR_CHUNKS;
		prps = (void *)late->mem + MEM_PRP * PAGE;
		late->io.sq[i] = (struct nvme_sqe) {
			.opcode = NVME_CMD_READ,
			.cid = i,
			.nsid = 1,
			.prp1 = late->pas[(MEM_DATA + chunk * CHUNK) / PAGE],
			.prp2 = late->pas[MEM_PRP + chunk * NR_PRPS * 8 / PAGE] +
				chunk * NR_PRPS * 8 % PAGE,
			.cdw10 = chunk * CHUNK / 512,
			.cdw12 = CHUNK / 512 - 1,
		};
	}
	for (chunk = 0; chunk < NR_CHUNKS; chunk++)
		for (i = 1; i < NR_PRPS; i++)
			prps[chunk * NR_PRPS + i - 1] =
				late->pas[(MEM_DATA + chunk * CHUNK) / PAGE + i];
}

/*
 * edu: docs/specs/edu.rst of QEMU. Its buffer is at 0x40000 of addresses of its own.
 */
#define EDU_DMA_SRC	0x80
#define EDU_DMA_DST	0x88
#define EDU_DMA_COUNT	0x90
#define EDU_DMA_CMD	0x98
#define EDU_DMA_RUN	1
#define EDU_DMA_TO_RAM	2
#define EDU_BUFFER	0x40000
#define EDU_BYTES	2048			/* of a page; all of it QEMU refuses */
#define EDU_MS		100

static inline bool edu_idle(const struct late *late)
{
	return !(readq(late->edu->bar0 + EDU_DMA_CMD) & EDU_DMA_RUN);
}

static inline void edu_dma(struct late *late, uint64_t src, uint64_t dst, uint64_t cmd)
{
	writeq(src, late->edu->bar0 + EDU_DMA_SRC);
	writeq(dst, late->edu->bar0 + EDU_DMA_DST);
	writeq(EDU_BYTES, late->edu->bar0 + EDU_DMA_COUNT);
	writeq(cmd | EDU_DMA_RUN, late->edu->bar0 + EDU_DMA_CMD);
}

/* It writes what is in its buffer, 0x11 */
static inline void edu_enable(struct late *late)
{
	/* What it was told by someone before */
	must(WAIT_FOR(edu_idle(late)));
	memset(late->mem + MEM_EDU, 0x11, EDU_BYTES);
	edu_dma(late, late->pas[MEM_EDU / PAGE], EDU_BUFFER, 0);
	must(WAIT_FOR(edu_idle(late)));
}

static inline void edu_start(struct late *late)
{
	edu_dma(late, EDU_BUFFER, late->pas[MEM_EDU / PAGE], EDU_DMA_TO_RAM);
}

/*
 * All of them
 */
static inline void late_enable(struct late *late)
{
	unsigned int i;

	late->submitted = 0;
	late->completed = 0;
	for (i = 0; i < late->nr; i++)
		if (!late->devices[i].bar0)
			bar0_map(&late->devices[i]);
	/* What was told a device before must not be done with memory of now */
	if (late->nvme) {
		set_command(late->nvme, PCI_COMMAND_MEMORY);
		nvme_disable(late);
		set_command(late->nvme, COMMAND_ON);
		nvme_enable(late);
	}
	if (late->edu) {
		must(WAIT_FOR(edu_idle(late)));
		set_command(late->edu, COMMAND_ON);
		edu_enable(late);
	}
}

/* Keep the queue full, and edu busy */
static inline void late_pump(struct late *late)
{
	unsigned int room;

	if (late->nvme) {
		late->completed += nvme_reap(&late->io);
		room = DEPTH - 1 - (late->submitted - late->completed);
		late->submitted += room;
		if (room)
			nvme_ring(&late->io, room);
	} else if (edu_idle(late)) {
		late->completed = late->submitted++;
	}
	if (late->edu && edu_idle(late))
		edu_start(late);
}

/*
 * The same without looking at the memory, which may be gone: entries of the queue
 * once more, and completions unseen
 */
static inline void late_pump_blind(struct late *late)
{
	struct nvme_queue *q = &late->io;

	if (late->nvme) {
		nvme_ring(q, DEPTH / 2);
		q->head = (q->head + DEPTH / 2) % DEPTH;
		writel(q->head, q->cq_doorbell);
	}
	if (late->edu && edu_idle(late))
		edu_start(late);
}

/* Does DMA reach memory? For edu after what it was told before */
static inline bool nvme_works(struct late *late)
{
	char *mem = late->mem + MEM_DATA;

	must(WAIT_FOR((late->completed += nvme_reap(&late->io)) == late->submitted));
	WRITE_ONCE(*mem, 0x5a);
	late->submitted += DEPTH - 1;
	nvme_ring(&late->io, DEPTH - 1);
	return WAIT_FOR(READ_ONCE(*mem) != 0x5a);
}

static inline bool edu_works(struct late *late)
{
	char *mem = late->mem + MEM_EDU;

	must(WAIT_FOR(edu_idle(late)));
	WRITE_ONCE(*mem, 0x5a);
	edu_start(late);
	return WAIT_FOR(READ_ONCE(*mem) == 0x11);
}

static inline bool dma_works(struct late *late)
{
	return (!late->nvme || nvme_works(late)) && (!late->edu || edu_works(late));
}

/* DMA that certainly comes later, if nobody stops it */
static inline void late_start(struct late *late)
{
	late_pump(late);
	if (late->edu) {
		must(WAIT_FOR(edu_idle(late)));
		edu_start(late);
	}
	if (late->nvme)
		late_pump(late);
}

/* From nothing to DMA, in as many calls as a program makes */
static inline void late_begin(struct late *late, bool iommufd_first)
{
	late_open(late, iommufd_first);
	late->mem = pool_take_all();
	late_map(late);
	late_attach(late, late->ioas);
	late_get_pas(late);
	late_enable(late);
}

static inline void late_close_device(struct late_device *device)
{
	if (device->bar0)
		bar0_unmap(device);
	if (device->fd >= 0)
		close(device->fd);
	device->fd = -1;
}

static inline void late_close(struct late *late)
{
	unsigned int i;

	for (i = 0; i < late->nr; i++)
		late_close_device(&late->devices[i]);
	if (late->iommufd >= 0)
		close(late->iommufd);
	late->iommufd = -1;
}

/*
 * Wait until all of the pages are free. May a device write while any of them is?
 * That is a late DMA, whether or not it happens to be caught.
 */
static inline bool late_wait_free(const struct late *late, bool *master)
{
	uint64_t end = now_ms() + WAIT_MS;
	int nr;

	*master = false;
	do {
		nr = free_pages(late);
		if (nr && any_master(late))
			*master = true;
	} while (nr < POOL && now_ms() < end);
	return nr == POOL;
}

/* Take the pages, and see for so long that nobody writes to them: words lost */
static inline size_t late_watch(const struct late *late, unsigned int ms)
{
	void *va = pool_take_all();
	size_t lost;

	must(same_pages(late, va));
	canary_fill(va);
	usleep(ms * 1000);
	lost = canary_lost(va);
	munmap(va, MEMORY);
	return lost;
}

/* For as long as DMA may take to come, now and then; else not for long */
static inline unsigned int late_watch_ms(const struct late *late, unsigned int round)
{
	return late->edu || !(round % 16) ? EDU_MS + 20 : random() % 3;
}

#endif
