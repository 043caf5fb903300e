// SPDX-License-Identifier: GPL-2.0-only
/*
 * A userspace NVMe driver for a controller without an IOMMU
 *
 * An example of VFIO's cdev noiommu to copy from: it finds the device by its PCI
 * address, binds it to iommufd, maps and so pins memory, asks for physical
 * addresses, and programs the controller with them. With -w it then writes a
 * pattern to the first namespace, reads it back elsewhere and compares.
 *
 * That OVERWRITES the disk. Formats are those of the NVM Express Base
 * Specification, revision 2.0, cited as [Base SECTION], and of the NVM Command
 * Set Specification, revision 1.0, cited as [NVM SECTION].
 */
#include <ctype.h>
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <linux/iommufd.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>

/*
 * Order of memory and doorbells, and of completions and what they announce. What
 * is mapped from a BAR is no ordinary memory, so that C11 fences do not do.
 */
#if defined(__x86_64__) || defined(__i386__)
#define IO_WMB	""
#define IO_RMB	""
#elif defined(__aarch64__)
#define IO_WMB	"dmb oshst"
#define IO_RMB	"dmb oshld"
#elif defined(__riscv)
#define IO_WMB	"fence w, o"
#define IO_RMB	"fence r, r"
#else
#error "The barriers of this architecture are missing"
#endif

static inline void io_wmb(void)
{
	__asm__ __volatile__(IO_WMB ::: "memory");
}

static inline void io_rmb(void)
{
	__asm__ __volatile__(IO_RMB ::: "memory");
}

/* Exactly one access of this size, as registers and polled memory need */
#define read_once(ptr)		__atomic_load_n(ptr, __ATOMIC_RELAXED)
#define write_once(ptr, value)	__atomic_store_n(ptr, value, __ATOMIC_RELAXED)

#define PAGE		4096UL		/* of the controller, CC.MPS 0 */
#define HUGE_PAGE	(2UL << 20)
#define PRP_PER_LIST	(PAGE / sizeof(uint64_t))

static void __attribute__((noreturn, format(printf, 2, 3)))
die(const char *hint, const char *fmt, ...)
{
	int saved = errno;
	va_list args;

	fprintf(stderr, "noiommu-nvme: ");
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	if (saved)
		fprintf(stderr, ": %s", strerror(saved));
	fprintf(stderr, "%s%s\n", hint ? "\n  " : "", hint ? hint : "");
	exit(1);
}

/*
 * 1. The device: a cdev bound to an iommufd, attached to a HWPT
 */
struct noiommu_device {
	int iommufd;
	int fd;
	uint32_t ioas_id;
	uint32_t hwpt_id;
	void *bar0;
	size_t bar0_size;
};

static int noiommu_open_cdev(const char *address)
{
	char path[300], name[256] = "";
	struct dirent *entry;
	DIR *dir;
	int fd;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev", address);
	dir = opendir(path);
	if (!dir)
		die("Is it there, and bound to vfio-pci? See dmesg, and\n"
		    "  /sys/module/vfio/parameters/enable_unsafe_noiommu_mode, which has to be Y.",
		    "%s", path);
	while ((entry = readdir(dir)))
		if (entry->d_name[0] != '.')
			snprintf(name, sizeof(name), "%s", entry->d_name);
	closedir(dir);

	errno = 0;
	if (strncmp(name, "noiommu-", 8))
		die("Either it has an IOMMU, and takes IOVAs, which this driver does not know,\n"
		    "  or the kernel was built without noiommu cdevs.",
		    "%s has no noiommu cdev (vfio-dev/%s)", address, name);

	snprintf(path, sizeof(path), "/dev/vfio/devices/%s", name);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		die(errno == EPERM ?
		    "It takes CAP_SYS_RAWIO, in the initial user namespace, and no lockdown." :
		    NULL, "open %s", path);
	return fd;
}

static void noiommu_map_bar0(struct noiommu_device *dev)
{
	struct vfio_region_info region = {
		.argsz = sizeof(region),
		.index = VFIO_PCI_BAR0_REGION_INDEX,
	};
	void *bar;

	if (ioctl(dev->fd, VFIO_DEVICE_GET_REGION_INFO, &region))
		die(NULL, "VFIO_DEVICE_GET_REGION_INFO of BAR 0");
	bar = mmap(NULL, region.size, PROT_READ | PROT_WRITE, MAP_SHARED,
		   dev->fd, region.offset);
	if (bar == MAP_FAILED)
		die(NULL, "mmap of BAR 0");
	dev->bar0 = bar;
	dev->bar0_size = region.size;
}

/* VFIO gives the device with bus mastering off, and turns it off at close */
static void noiommu_set_master(struct noiommu_device *dev, bool on)
{
	struct vfio_region_info region = {
		.argsz = sizeof(region),
		.index = VFIO_PCI_CONFIG_REGION_INDEX,
	};
	uint16_t command;

	if (ioctl(dev->fd, VFIO_DEVICE_GET_REGION_INFO, &region) ||
	    pread(dev->fd, &command, 2, region.offset + PCI_COMMAND) != 2)
		die(NULL, "read of PCI_COMMAND");
	command = htole16((le16toh(command) & ~PCI_COMMAND_MASTER) |
			  PCI_COMMAND_MEMORY | (on ? PCI_COMMAND_MASTER : 0));
	if (pwrite(dev->fd, &command, 2, region.offset + PCI_COMMAND) != 2)
		die(NULL, "write of PCI_COMMAND");
}

static void noiommu_open(struct noiommu_device *dev, const char *address)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind) };
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach) };
	struct iommu_ioas_alloc ioas = { .size = sizeof(ioas) };
	struct iommu_hwpt_alloc hwpt = { .size = sizeof(hwpt) };

	dev->fd = noiommu_open_cdev(address);
	dev->iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (dev->iommufd < 0)
		die("Was the kernel built with CONFIG_IOMMUFD, or is its module not loaded?",
		    "open /dev/iommu");

	bind.iommufd = dev->iommufd;
	if (ioctl(dev->fd, VFIO_DEVICE_BIND_IOMMUFD, &bind))
		die(errno == EOPNOTSUPP ? "Physical addresses would be wrong for it: see dmesg." :
		    errno == EBUSY ? "Its group /dev/vfio/noiommu-* is open." : NULL,
		    "VFIO_DEVICE_BIND_IOMMUFD");

	if (ioctl(dev->iommufd, IOMMU_IOAS_ALLOC, &ioas))
		die(NULL, "IOMMU_IOAS_ALLOC");
	dev->ioas_id = ioas.out_ioas_id;

	/*
	 * Attaching to the IOAS would allocate a HWPT by itself. With one of
	 * its own a program can map and look up before it attaches.
	 */
	hwpt.dev_id = bind.out_devid;
	hwpt.pt_id = dev->ioas_id;
	if (ioctl(dev->iommufd, IOMMU_HWPT_ALLOC, &hwpt))
		die(NULL, "IOMMU_HWPT_ALLOC");
	dev->hwpt_id = hwpt.out_hwpt_id;

	attach.pt_id = dev->hwpt_id;
	if (ioctl(dev->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach))
		die(NULL, "VFIO_DEVICE_ATTACH_IOMMUFD_PT");

	noiommu_map_bar0(dev);
}

/*
 * An unmap stops nothing: stop the device, then return the memory. A detach stops
 * it, for PCI, and when the program is killed the kernel closes in this order.
 */
static void noiommu_close(struct noiommu_device *dev)
{
	struct vfio_device_detach_iommufd_pt detach = { .argsz = sizeof(detach) };
	struct iommu_destroy destroy = { .size = sizeof(destroy) };

	noiommu_set_master(dev, false);
	munmap(dev->bar0, dev->bar0_size);
	if (ioctl(dev->fd, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach))
		die(NULL, "VFIO_DEVICE_DETACH_IOMMUFD_PT");
	close(dev->fd);
	destroy.id = dev->hwpt_id;
	if (ioctl(dev->iommufd, IOMMU_DESTROY, &destroy))
		die(NULL, "IOMMU_DESTROY of the HWPT");
	destroy.id = dev->ioas_id;
	if (ioctl(dev->iommufd, IOMMU_DESTROY, &destroy))
		die(NULL, "IOMMU_DESTROY of the IOAS");
	close(dev->iommufd);
}

/*
 * 2. Memory for DMA: mapped, pinned, and its physical addresses known
 */
struct dma_buffer {
	void *va;
	size_t size;
	const char *kind;
	size_t nr_extents;		/* contiguous pieces it consists of */
	uint64_t *pa;			/* of each PAGE */
};

/*
 * Touch 4K pages in a random order: a long-running system's memory is scattered,
 * and a driver that is right only on fresh memory is wrong.
 */
static void dma_touch_scattered(char *va, size_t size)
{
	size_t nr = size / PAGE, i, j, t;
	size_t *order = calloc(nr, sizeof(*order));

	if (!order)
		die(NULL, "calloc");
	for (i = 0; i < nr; i++)
		order[i] = i;
	for (i = nr - 1; i; i--) {
		j = random() % (i + 1);
		t = order[i];
		order[i] = order[j];
		order[j] = t;
	}
	for (i = 0; i < nr; i++)
		va[order[i] * PAGE] = 0;
	free(order);
}

static void dma_alloc(struct noiommu_device *dev, struct dma_buffer *buf,
		      size_t size, bool want_huge)
{
	struct iommu_ioas_map map = {
		.size = sizeof(map),
		.flags = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
		.ioas_id = dev->ioas_id,
	};
	size_t done = 0, i;

	/* A huge page is one contiguous piece, which makes PRPs simple */
	buf->va = MAP_FAILED;
	buf->size = (size + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
	buf->kind = "hugetlb";
	if (want_huge)
		buf->va = mmap(NULL, buf->size, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (buf->va == MAP_FAILED) {
		buf->kind = "4K pages";
		buf->size = (size + PAGE - 1) & ~(PAGE - 1);
		buf->va = mmap(NULL, buf->size, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (buf->va == MAP_FAILED)
			die(NULL, "mmap of %zu bytes", buf->size);
		madvise(buf->va, buf->size, MADV_NOHUGEPAGE);
		dma_touch_scattered(buf->va, buf->size);
	}

	/* The IOVA is just this mapping's name: the device never sees it */
	map.user_va = (uintptr_t)buf->va;
	map.length = buf->size;
	if (ioctl(dev->iommufd, IOMMU_IOAS_MAP, &map))
		die("Is RLIMIT_MEMLOCK too small? What is mapped is pinned and counts.",
		    "IOMMU_IOAS_MAP of %zu bytes", buf->size);

	buf->pa = calloc(buf->size / PAGE, sizeof(*buf->pa));
	if (!buf->pa)
		die(NULL, "calloc");
	buf->nr_extents = 0;
	while (done < buf->size) {
		struct iommu_ioas_noiommu_get_pa get_pa = {
			.size = sizeof(get_pa),
			.ioas_id = dev->ioas_id,
			.iova = map.iova + done,
			.length = buf->size - done,
		};

		if (ioctl(dev->iommufd, IOMMU_IOAS_NOIOMMU_GET_PA, &get_pa))
			die(NULL, "IOMMU_IOAS_NOIOMMU_GET_PA");
		for (i = 0; i < get_pa.length; i += PAGE)
			buf->pa[(done + i) / PAGE] = get_pa.out_phys + i;
		done += get_pa.length;
		buf->nr_extents++;
	}
}

/* offset is a multiple of PAGE */
static uint64_t dma_pa(const struct dma_buffer *buf, size_t offset)
{
	return buf->pa[offset / PAGE];
}

/*
 * 3. NVMe. Everything is little endian.
 */

/* Controller properties [Base 3.1.3] */
#define NVME_CAP	0x00
#define NVME_CC		0x14
#define NVME_CSTS	0x1c
#define NVME_AQA	0x24
#define NVME_ASQ	0x28
#define NVME_ACQ	0x30
#define NVME_DOORBELLS	0x1000		/* [PCIe transport 3.1.2] */

#define NVME_CAP_NVM	(1ULL << 37)	/* CSS: the NVM command set */
#define NVME_CC_EN	(1U << 0)
#define NVME_CC_IOSQES	(6U << 16)	/* 64 byte submission entries */
#define NVME_CC_IOCQES	(4U << 20)	/* 16 byte completion entries */
#define NVME_CSTS_RDY	(1U << 0)
#define NVME_CSTS_CFS	(1U << 1)

/* Admin commands [Base 5] and NVM commands [NVM 3] */
#define NVME_ADMIN_CREATE_SQ	0x01
#define NVME_ADMIN_CREATE_CQ	0x05
#define NVME_ADMIN_IDENTIFY	0x06
#define NVME_ADMIN_SET_FEATURES	0x09
#define NVME_FEAT_NUM_QUEUES	0x07
#define NVME_CMD_FLUSH		0x00
#define NVME_CMD_WRITE		0x01
#define NVME_CMD_READ		0x02

/* Submission queue entry [Base 3.3.3.1] */
struct nvme_sqe {
	uint8_t opcode;
	uint8_t flags;
	uint16_t cid;
	uint32_t nsid;
	uint64_t rsvd;
	uint64_t mptr;
	uint64_t prp1;
	uint64_t prp2;
	uint32_t cdw10[6];
};

/* Completion queue entry [Base 3.3.3.2] */
struct nvme_cqe {
	uint32_t result;
	uint32_t rsvd;
	uint16_t sq_head;
	uint16_t sq_id;
	uint16_t cid;
	uint16_t status;		/* bit 0 is the phase tag */
};

#define NVME_DEPTH 16			/* entries of each queue, all in a PAGE */

struct nvme_queue {
	struct nvme_sqe *sq;
	struct nvme_cqe *cq;
	uint32_t *sq_doorbell, *cq_doorbell;
	unsigned int tail, head, phase;
	unsigned int busy;		/* a bit for each command ID */
};

struct nvme {
	struct noiommu_device dev;
	/* Pages: admin SQ, CQ, I/O SQ, CQ, identify data, PRP lists */
	struct dma_buffer mem;
	struct nvme_queue admin, io;
	uint64_t nr_blocks;
	uint32_t block_size;
	size_t max_transfer;
	unsigned int timeout_ms;
};

enum { MEM_ADMIN_SQ, MEM_ADMIN_CQ, MEM_IO_SQ, MEM_IO_CQ, MEM_IDENTIFY, MEM_PRP };

static uint32_t nvme_read32(struct nvme *nvme, unsigned int reg)
{
	return le32toh(read_once((uint32_t *)(nvme->dev.bar0 + reg)));
}

static void nvme_write32(struct nvme *nvme, unsigned int reg, uint32_t value)
{
	write_once((uint32_t *)(nvme->dev.bar0 + reg), htole32(value));
}

/* Two 32-bit accesses are always allowed [PCIe 3.1] */
static void nvme_write64(struct nvme *nvme, unsigned int reg, uint64_t value)
{
	nvme_write32(nvme, reg, value);
	nvme_write32(nvme, reg + 4, value >> 32);
}

static uint64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000ULL + now.tv_nsec / 1000000;
}

static void nvme_wait_ready(struct nvme *nvme, uint32_t ready)
{
	uint64_t end = now_ms() + nvme->timeout_ms;
	uint32_t csts;

	errno = 0;
	for (;;) {
		csts = nvme_read32(nvme, NVME_CSTS);
		if (csts == UINT32_MAX)
			die(NULL, "the controller is gone (CSTS reads as all ones)");
		if ((csts & NVME_CSTS_RDY) == ready)
			break;
		/* A reset is what clears it */
		if (ready && csts & NVME_CSTS_CFS)
			die(NULL, "the controller reports a fatal error (CSTS %#x)", csts);
		if (now_ms() > end)
			die(NULL, "the controller is not %s after %u ms (CSTS %#x)",
			    ready ? "ready" : "reset", nvme->timeout_ms, csts);
		usleep(1000);
	}
}

/* No field but EN may change while it does [Base 3.1.3.5] */
static void nvme_disable(struct nvme *nvme)
{
	nvme_write32(nvme, NVME_CC, nvme_read32(nvme, NVME_CC) & ~NVME_CC_EN);
	nvme_wait_ready(nvme, 0);
}

static void nvme_init_queue(struct nvme *nvme, struct nvme_queue *q,
			    unsigned int id, unsigned int page, unsigned int stride)
{
	q->sq = nvme->mem.va + page * PAGE;
	q->cq = nvme->mem.va + (page + 1) * PAGE;
	q->sq_doorbell = nvme->dev.bar0 + NVME_DOORBELLS + 2 * id * stride;
	q->cq_doorbell = nvme->dev.bar0 + NVME_DOORBELLS + (2 * id + 1) * stride;
	q->phase = 1;
}

static void nvme_submit(struct nvme_queue *q, const struct nvme_sqe *cmd)
{
	q->sq[q->tail] = *cmd;
	/* Unique among the commands that are outstanding */
	q->sq[q->tail].cid = htole16(q->tail);
	q->busy |= 1U << q->tail;
	q->tail = (q->tail + 1) % NVME_DEPTH;
	/* The entry has to be in memory before the controller is told */
	io_wmb();
	write_once(q->sq_doorbell, htole32(q->tail));
}

/* Wait for the next completion: of any outstanding command, and a good one */
static void nvme_complete(struct nvme *nvme, struct nvme_queue *q,
			  const char *what)
{
	struct nvme_cqe *cqe = &q->cq[q->head];
	uint64_t end = now_ms() + nvme->timeout_ms;
	uint16_t status, cid;

	errno = 0;
	while (((status = le16toh(read_once(&cqe->status))) & 1) != q->phase)
		if (now_ms() > end)
			die("Does DMA reach memory? Is bus mastering on?",
			    "%s: no completion after %u ms", what, nvme->timeout_ms);
	/* What the command wrote may be read only behind its completion */
	io_rmb();
	cid = le16toh(cqe->cid);
	if (cid >= NVME_DEPTH || !(q->busy & 1U << cid))
		die(NULL, "%s: completion of command %u, which is not outstanding",
		    what, cid);
	q->busy &= ~(1U << cid);
	if (status >> 1)
		die("Status code type and status code: [Base 3.3.3.2.1].",
		    "%s: type %u, code %#x", what, status >> 9 & 7, status >> 1 & 0xff);

	q->head = (q->head + 1) % NVME_DEPTH;
	if (!q->head)
		q->phase ^= 1;
	write_once(q->cq_doorbell, htole32(q->head));
}

static void nvme_admin(struct nvme *nvme, const struct nvme_sqe *cmd,
		       const char *what)
{
	nvme_submit(&nvme->admin, cmd);
	nvme_complete(nvme, &nvme->admin, what);
}

/* Text fields are padded with spaces, and not terminated */
static void nvme_print_text(const char *label, const char *text, size_t len)
{
	while (len && (text[len - 1] == ' ' || !text[len - 1]))
		len--;
	printf("%s%.*s\n", label, (int)len, text);
}

/* Identify Controller [Base 5.17.2.1] and Namespace [NVM 4.1.5.1] */
static void nvme_identify(struct nvme *nvme)
{
	struct nvme_sqe cmd = {
		.opcode = NVME_ADMIN_IDENTIFY,
		.prp1 = htole64(dma_pa(&nvme->mem, MEM_IDENTIFY * PAGE)),
		.cdw10 = { htole32(1) },
	};
	const uint8_t *data = nvme->mem.va + MEM_IDENTIFY * PAGE;
	uint8_t mdts, format;
	uint32_t lbaf;

	nvme_admin(nvme, &cmd, "Identify Controller");
	nvme_print_text("  model      ", (const char *)data + 24, 40);
	nvme_print_text("  serial     ", (const char *)data + 4, 20);
	mdts = data[77];

	cmd.nsid = htole32(1);
	cmd.cdw10[0] = htole32(0);
	nvme_admin(nvme, &cmd, "Identify Namespace");
	memcpy(&nvme->nr_blocks, data, 8);
	nvme->nr_blocks = le64toh(nvme->nr_blocks);
	format = (data[26] & 0xf) | (data[26] >> 1 & 0x30);
	memcpy(&lbaf, data + 128 + 4 * format, 4);
	lbaf = le32toh(lbaf);
	errno = 0;
	/* Metadata would be transferred beyond the PRPs that are given here */
	if (!nvme->nr_blocks || lbaf & 0xffff ||
	    (lbaf >> 16 & 0xff) < 9 || (lbaf >> 16 & 0xff) > 12)
		die("It has to be there, with blocks of 512 to 4096 bytes, no metadata.",
		    "namespace 1 is not one that this example can use");
	nvme->block_size = 1U << (lbaf >> 16 & 0xff);
	printf("  capacity   %llu blocks of %u bytes, %llu MiB\n",
	       (unsigned long long)nvme->nr_blocks, nvme->block_size,
	       (unsigned long long)(nvme->nr_blocks * nvme->block_size >> 20));

	/* One PRP list page, and the pages that PRP1 and the block size allow */
	nvme->max_transfer = PRP_PER_LIST * PAGE;
	if (mdts && mdts < 20 && (PAGE << mdts) < nvme->max_transfer)
		nvme->max_transfer = PAGE << mdts;
	if (nvme->max_transfer > 65536UL * nvme->block_size)
		nvme->max_transfer = 65536UL * nvme->block_size;
}

/* [Base 3.5.1] Memory-based controller initialization */
static void nvme_init(struct nvme *nvme, const char *address)
{
	struct nvme_sqe cmd = {};
	unsigned int stride, mpsmin;
	uint64_t cap;

	noiommu_open(&nvme->dev, address);
	printf("noiommu-nvme: %s\n", address);
	dma_alloc(&nvme->dev, &nvme->mem, (MEM_PRP + NVME_DEPTH) * PAGE, true);

	/*
	 * Should VFIO have been unable to reset the controller, it still knows
	 * the queues of whoever had it before: no DMA before it is disabled.
	 */
	noiommu_set_master(&nvme->dev, false);
	cap = nvme_read32(nvme, NVME_CAP) |
	      (uint64_t)nvme_read32(nvme, NVME_CAP + 4) << 32;
	stride = 4 << (cap >> 32 & 0xf);
	mpsmin = cap >> 48 & 0xf;
	/* In units of 500 ms, and at least 5 s for emulated disks */
	nvme->timeout_ms = (cap >> 24 & 0xff) * 500 + 5000;
	errno = 0;
	if (NVME_DOORBELLS + 4 * stride > nvme->dev.bar0_size)
		die(NULL, "the doorbells of two queue pairs are not in BAR 0");
	if (!(cap & NVME_CAP_NVM))
		die(NULL, "the controller has no NVM command set");
	if (mpsmin)
		die(NULL, "the controller can't use pages of %lu bytes", PAGE);
	if ((cap & 0xffff) + 1 < NVME_DEPTH)
		die(NULL, "the controller's queues are too short");

	nvme_disable(nvme);

	nvme_init_queue(nvme, &nvme->admin, 0, MEM_ADMIN_SQ, stride);
	nvme_init_queue(nvme, &nvme->io, 1, MEM_IO_SQ, stride);
	nvme_write32(nvme, NVME_AQA, (NVME_DEPTH - 1) << 16 | (NVME_DEPTH - 1));
	nvme_write64(nvme, NVME_ASQ, dma_pa(&nvme->mem, MEM_ADMIN_SQ * PAGE));
	nvme_write64(nvme, NVME_ACQ, dma_pa(&nvme->mem, MEM_ADMIN_CQ * PAGE));
	noiommu_set_master(&nvme->dev, true);
	nvme_write32(nvme, NVME_CC, NVME_CC_IOSQES | NVME_CC_IOCQES | NVME_CC_EN);
	nvme_wait_ready(nvme, NVME_CSTS_RDY);

	nvme_identify(nvme);

	/* Ask for one I/O queue pair; both counts are 0's based [Base 5.27.1.5] */
	cmd.opcode = NVME_ADMIN_SET_FEATURES;
	cmd.cdw10[0] = htole32(NVME_FEAT_NUM_QUEUES);
	nvme_admin(nvme, &cmd, "Set Features, Number of Queues");

	/* One I/O queue pair: polled, physically contiguous [Base 5.4, 5.5] */
	cmd.opcode = NVME_ADMIN_CREATE_CQ;
	cmd.prp1 = htole64(dma_pa(&nvme->mem, MEM_IO_CQ * PAGE));
	cmd.cdw10[0] = htole32((NVME_DEPTH - 1) << 16 | 1);
	cmd.cdw10[1] = htole32(1);
	nvme_admin(nvme, &cmd, "Create I/O Completion Queue");
	cmd.opcode = NVME_ADMIN_CREATE_SQ;
	cmd.prp1 = htole64(dma_pa(&nvme->mem, MEM_IO_SQ * PAGE));
	cmd.cdw10[1] = htole32(1 << 16 | 1);
	nvme_admin(nvme, &cmd, "Create I/O Submission Queue");
}

static void nvme_exit(struct nvme *nvme)
{
	nvme_disable(nvme);
	noiommu_close(&nvme->dev);
}

/*
 * Physical Region Pages [Base 4.1.1]: the first page, and either the second or a
 * list of the rest.
 */
static void nvme_set_prps(struct nvme *nvme, struct nvme_sqe *cmd,
			  const struct dma_buffer *buf, size_t offset, size_t len)
{
	size_t list = (MEM_PRP + nvme->io.tail) * PAGE, i;
	uint64_t *prps = nvme->mem.va + list;

	cmd->prp1 = htole64(dma_pa(buf, offset));
	if (len > 2 * PAGE) {
		for (i = PAGE; i < len; i += PAGE)
			*prps++ = htole64(dma_pa(buf, offset + i));
		cmd->prp2 = htole64(dma_pa(&nvme->mem, list));
	} else if (len > PAGE) {
		cmd->prp2 = htole64(dma_pa(buf, offset + PAGE));
	}
}

/* Move all of buf to or from the disk, a batch of commands at a time */
static unsigned int nvme_io(struct nvme *nvme, uint8_t opcode,
			    const struct dma_buffer *buf, uint64_t lba, size_t size)
{
	const char *what = opcode == NVME_CMD_WRITE ? "Write" : "Read";
	unsigned int nr = 0, batch;
	size_t done = 0;

	while (done < size) {
		for (batch = 0; done < size && batch < NVME_DEPTH - 1; batch++) {
			size_t len = size - done < nvme->max_transfer ?
				     size - done : nvme->max_transfer;
			uint64_t slba = lba + done / nvme->block_size;
			struct nvme_sqe cmd = {
				.opcode = opcode,
				.nsid = htole32(1),
				.cdw10 = { htole32(slba), htole32(slba >> 32),
					   htole32(len / nvme->block_size - 1) },
			};

			nvme_set_prps(nvme, &cmd, buf, done, len);
			nvme_submit(&nvme->io, &cmd);
			done += len;
		}
		for (nr += batch; batch; batch--)
			nvme_complete(nvme, &nvme->io, what);
	}
	return nr;
}

/*
 * 4. The demonstration
 */

/* splitmix64 (Steele, Lea, Flood, OOPSLA 2014) of the seed and the position */
static void fill_pattern(uint64_t *words, size_t size, uint64_t seed)
{
	size_t i;

	for (i = 0; i < size / sizeof(*words); i++) {
		uint64_t z = seed + (i + 1) * 0x9e3779b97f4a7c15ULL;

		z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
		z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
		words[i] = htole64(z ^ z >> 31);
	}
}

static int print_pattern(size_t size, uint64_t seed)
{
	uint64_t *words = malloc(size);

	if (!words)
		die(NULL, "malloc");
	fill_pattern(words, size, seed);
	if (fwrite(words, size, 1, stdout) != 1 || fflush(stdout))
		die(NULL, "write of the pattern");
	return 0;
}

static uint64_t parse(const char *text, uint64_t max)
{
	unsigned long long value;
	char *end;

	errno = 0;
	value = strtoull(text, &end, 0);
	if (end == text || *end || errno || value > max || !isdigit((unsigned char)*text)) {
		errno = 0;
		die(NULL, "%s is not a number up to %#llx", text, (unsigned long long)max);
	}
	return value;
}

int main(int argc, char *argv[])
{
	struct nvme_sqe flush = { .opcode = NVME_CMD_FLUSH, .nsid = htole32(1) };
	size_t size = 8UL << 20, first, last;
	struct dma_buffer out, in;
	uint64_t seed = 1, lba = 0;
	struct nvme nvme = {};
	unsigned int nr;
	bool pattern = false, overwrite = false, usage = false;
	int opt;

	setvbuf(stdout, NULL, _IOLBF, 0);
	while ((opt = getopt(argc, argv, "l:m:ps:w")) != -1) {
		switch (opt) {
		case 'l':
			lba = parse(optarg, UINT64_MAX);
			break;
		case 'm':
			size = parse(optarg, SIZE_MAX >> 20) << 20;
			break;
		case 'p':
			pattern = true;
			break;
		case 's':
			seed = parse(optarg, UINT64_MAX);
			break;
		case 'w':
			overwrite = true;
			break;
		default:
			usage = true;
		}
	}
	if (usage || !size || (pattern && overwrite) || optind != argc - !pattern) {
		fprintf(stderr,
			"usage: noiommu-nvme PCI-ADDRESS\n"
			"           brings the controller up and tells which disk it is\n"
			"       noiommu-nvme -w [-m MIB] [-s SEED] [-l LBA] PCI-ADDRESS\n"
			"           writes and verifies a pattern, OVERWRITING the disk\n"
			"       noiommu-nvme -p [-m MIB] [-s SEED]\n"
			"           prints the pattern, to compare a disk with\n");
		return 2;
	}
	if (pattern)
		return print_pattern(size, seed);

	nvme_init(&nvme, argv[optind]);
	errno = 0;
	if (!overwrite) {
		nvme_exit(&nvme);
		printf("  unharmed   -w would overwrite %zu MiB from block %llu on\n",
		       size >> 20, (unsigned long long)lba);
		return 0;
	}
	if (lba > nvme.nr_blocks || size / nvme.block_size > nvme.nr_blocks - lba)
		die("See -m and -l.", "the disk is too small for %zu MiB", size >> 20);

	dma_alloc(&nvme.dev, &out, size, false);
	dma_alloc(&nvme.dev, &in, size, true);
	fill_pattern(out.va, size, seed);

	nr = nvme_io(&nvme, NVME_CMD_WRITE, &out, lba, size);
	nvme_submit(&nvme.io, &flush);
	nvme_complete(&nvme, &nvme.io, "Flush");
	printf("  written    %zu bytes in %u commands from %zu extents (%s)\n",
	       size, nr, out.nr_extents, out.kind);

	nr = nvme_io(&nvme, NVME_CMD_READ, &in, lba, size);
	printf("  read       %zu bytes in %u commands to %zu extents (%s)\n",
	       size, nr, in.nr_extents, in.kind);

	if (memcmp(in.va, out.va, size)) {
		for (first = 0; !memcmp(in.va + first, out.va + first, PAGE);)
			first += PAGE;
		for (last = size - PAGE; !memcmp(in.va + last, out.va + last, PAGE);)
			last -= PAGE;
		errno = 0;
		die(NULL, "what was read differs, in the pages from %#zx to %#zx",
		    first, last);
	}
	nvme_exit(&nvme);
	printf("  compared   equal\n");
	return 0;
}
