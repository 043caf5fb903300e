// SPDX-License-Identifier: GPL-2.0-only
/*
 * A driver for NVMe controllers of any make, recognised by their class
 *
 * A memcpy is a Write of the source to a scratch area of the disk, and then a
 * Read from there to the destination. The scratch area is the start of
 * namespace 1: what is on the disk is LOST. The driver takes a device only if
 *
 *     VFIO_SELFTESTS_NVME_SCRATCH="segment:bus:device.function ..."
 *
 * in the environment names it as one whose contents nobody needs.
 *
 * The device works on one command at a time, and memcpy_wait() issues the next.
 * So what goes on between memcpy_start() and memcpy_wait() is one Write: the
 * reads from the source, or the first part of them.
 */
#include <poll.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <linux/align.h>
#include <linux/compiler.h>
#include <linux/errno.h>
#include <linux/io.h>
#include <linux/sizes.h>

#include <libvfio.h>

#include "hw.h"

/* Entries of each queue. One command at a time, and a full queue has one free. */
#define NVME_DEPTH	2

/* Copies of more than a controller's transfer size take several commands. */
#define NVME_MAX_MEMCPY_SIZE	SZ_1M

/* What an emulated controller does in a few seconds */
#define NVME_MAX_MEMCPY_COUNT	64

/*
 * memcpy() must not raise interrupts, and has a queue that doesn't. The admin
 * queue always does, at vector 0 [Base 3.3.3.2], and send_msi() is a command on it.
 */
enum { NVME_ADMIN_QUEUE, NVME_MEMCPY_QUEUE, NVME_NR_QUEUES };

/* Each takes one page of the controller's size */
enum {
	NVME_PAGE_SQ,
	NVME_PAGE_CQ = NVME_PAGE_SQ + NVME_NR_QUEUES,
	NVME_PAGE_PRP_LIST = NVME_PAGE_CQ + NVME_NR_QUEUES,
	NVME_PAGE_DATA,
	NVME_NR_PAGES,
};

struct nvme_queue {
	struct nvme_sqe *sq;
	struct nvme_cqe *cq;
	u32 *sq_doorbell;
	u32 *cq_doorbell;
	u16 tail;
	u16 head;
	u16 phase;
	u16 cid;
	struct timespec deadline;
};

struct nvme_state {
	struct nvme_queue queues[NVME_NR_QUEUES];
	void *pages;

	u64 cap;
	u64 page_size;
	u64 max_transfer;
	u32 block_size;
	u32 irq_index;

	/* The ongoing memcpy operations, and the command of them that is. */
	iova_t src;
	iova_t dst;
	u64 size;
	u64 count;
	u64 offset;
	u64 len;
	u8 opcode;
};

static inline struct nvme_state *to_nvme_state(struct vfio_pci_device *device)
{
	return device->driver.region.vaddr;
}

static void *nvme_page(struct nvme_state *nvme, int page)
{
	return nvme->pages + page * nvme->page_size;
}

static u64 nvme_page_addr(struct vfio_pci_device *device, int page)
{
	struct nvme_state *nvme = to_nvme_state(device);
	u64 addr;

	addr = to_dma_addr(device, nvme_page(nvme, page), nvme->page_size);
	VFIO_ASSERT_TRUE(IS_ALIGNED(addr, nvme->page_size));

	return addr;
}

static u32 nvme_read(struct vfio_pci_device *device, unsigned int reg)
{
	return readl(device->bars[0].vaddr + reg);
}

static void nvme_write(struct vfio_pci_device *device, unsigned int reg, u32 value)
{
	writel(value, device->bars[0].vaddr + reg);
}

/* Aligned 32-bit accesses are always allowed [PCIe 3.1] */
static u64 nvme_read64(struct vfio_pci_device *device, unsigned int reg)
{
	return nvme_read(device, reg) | (u64)nvme_read(device, reg + 4) << 32;
}

static void nvme_write64(struct vfio_pci_device *device, unsigned int reg, u64 value)
{
	nvme_write(device, reg, value);
	nvme_write(device, reg + 4, value >> 32);
}

static bool nvme_is_scratch(struct vfio_pci_device *device)
{
	const char *scratch = getenv("VFIO_SELFTESTS_NVME_SCRATCH");
	size_t length = strlen(device->bdf);

	while (scratch && *scratch) {
		size_t word = strcspn(scratch, " ");

		if (word == length && !strncmp(scratch, device->bdf, length))
			return true;
		scratch += word;
		scratch += strspn(scratch, " ");
	}
	return false;
}

static int nvme_probe(struct vfio_pci_device *device)
{
	static bool told;

	if (vfio_pci_config_readl(device, PCI_CLASS_REVISION) >> 8 != NVME_PCI_CLASS)
		return -EINVAL;

	if (!nvme_is_scratch(device)) {
		if (!told)
			dev_err(device, "nvme: The driver overwrites the disk. If nobody needs what is on it:\n"
				"    export VFIO_SELFTESTS_NVME_SCRATCH=%s\n", device->bdf);
		told = true;
		return -EINVAL;
	}

	if (!device->bars[0].vaddr) {
		dev_err(device, "nvme: BAR0 can't be mapped\n");
		return -EINVAL;
	}

	if (!(nvme_read64(device, NVME_CAP) & NVME_CAP_NVM)) {
		dev_err(device, "nvme: No NVM command set\n");
		return -EINVAL;
	}

	return 0;
}

static struct timespec nvme_deadline(struct nvme_state *nvme)
{
	struct timespec deadline;

	clock_gettime(CLOCK_MONOTONIC, &deadline);

	/* At least 5 s, for emulated controllers on busy machines */
	deadline.tv_sec += max_t(u64, NVME_CAP_TO(nvme->cap) / 2 + 1, 5);

	return deadline;
}

static bool nvme_expired(const struct timespec *deadline)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);

	return now.tv_sec > deadline->tv_sec ||
	       (now.tv_sec == deadline->tv_sec && now.tv_nsec > deadline->tv_nsec);
}

static void nvme_wait_ready(struct vfio_pci_device *device, u32 ready)
{
	struct timespec deadline = nvme_deadline(to_nvme_state(device));
	u32 csts;

	for (;;) {
		csts = nvme_read(device, NVME_CSTS);
		VFIO_ASSERT_NE(csts, UINT32_MAX, "nvme: The controller is gone\n");

		if ((csts & NVME_CSTS_RDY) == ready)
			break;

		VFIO_ASSERT_FALSE(ready && csts & NVME_CSTS_CFS,
				  "nvme: Fatal error (CSTS 0x%x)\n", csts);
		VFIO_ASSERT_FALSE(nvme_expired(&deadline),
				  "nvme: Timeout (CSTS 0x%x)\n", csts);
		usleep(1000);
	}
}

/*
 * A reset of all but the admin queue's registers, also out of a fatal error. There
 * is no shutdown before it: what the disk keeps of the scratch area is of no matter.
 */
static void nvme_disable(struct vfio_pci_device *device)
{
	nvme_write(device, NVME_CC, nvme_read(device, NVME_CC) & ~NVME_CC_EN);
	nvme_wait_ready(device, 0);
}

/* Wait for an interrupt without taking it from the eventfd */
static void nvme_wait_msi(struct vfio_pci_device *device)
{
	struct pollfd pollfd = {
		.fd = device->msi_eventfds[device->driver.msi],
		.events = POLLIN,
	};

	VFIO_ASSERT_EQ(poll(&pollfd, 1, 5000), 1, "nvme: No interrupt\n");
}

static void nvme_submit(struct vfio_pci_device *device, int qid, const struct nvme_sqe *cmd)
{
	struct nvme_state *nvme = to_nvme_state(device);
	struct nvme_queue *q = &nvme->queues[qid];
	struct nvme_sqe *sqe = &q->sq[q->tail];

	*sqe = *cmd;
	sqe->cid = ++q->cid;
	q->tail = (q->tail + 1) % NVME_DEPTH;
	q->deadline = nvme_deadline(nvme);

	/* Orders the entry before the doorbell */
	writel(q->tail, q->sq_doorbell);
}

/*
 * Wait for the command that was submitted. Returns its status code and type
 * [Base 3.3.3.2.1], or a negative errno if the controller has to be reset.
 */
static int nvme_complete(struct vfio_pci_device *device, int qid)
{
	struct nvme_state *nvme = to_nvme_state(device);
	struct nvme_queue *q = &nvme->queues[qid];
	struct nvme_cqe *cqe = &q->cq[q->head];
	u16 status;

	for (;;) {
		status = READ_ONCE(cqe->status);
		if ((status & NVME_CQE_PHASE) == q->phase)
			break;

		if (nvme_read(device, NVME_CSTS) & NVME_CSTS_CFS)
			return -EIO;
		/* Unless it completed while this process did not run */
		if (nvme_expired(&q->deadline) &&
		    (READ_ONCE(cqe->status) & NVME_CQE_PHASE) != q->phase)
			return -ETIMEDOUT;
	}

	/* What the command wrote, and the rest of the entry, after the status */
	rmb();
	VFIO_ASSERT_EQ(cqe->cid, q->cid);

	q->head = (q->head + 1) % NVME_DEPTH;
	if (!q->head)
		q->phase ^= NVME_CQE_PHASE;

	/* A controller need not interrupt for what is taken already. */
	if (qid == NVME_ADMIN_QUEUE)
		nvme_wait_msi(device);

	writel(q->head, q->cq_doorbell);

	return NVME_CQE_STATUS(status);
}

static int __nvme_admin(struct vfio_pci_device *device, const struct nvme_sqe *cmd)
{
	u64 value;
	int r;

	nvme_submit(device, NVME_ADMIN_QUEUE, cmd);
	r = nvme_complete(device, NVME_ADMIN_QUEUE);

	/* The interrupt is not one of send_msi() */
	if (r >= 0)
		VFIO_ASSERT_EQ(read(device->msi_eventfds[device->driver.msi], &value, 8), 8);

	return r;
}

static void nvme_admin(struct vfio_pci_device *device, const struct nvme_sqe *cmd)
{
	int r = __nvme_admin(device, cmd);

	VFIO_ASSERT_EQ(r, 0, "nvme: Admin command 0x%x failed\n", cmd->opcode);
}

static struct nvme_sqe nvme_identify_cmd(struct vfio_pci_device *device, u32 cns, u32 nsid)
{
	return (struct nvme_sqe) {
		.opcode = NVME_ADMIN_IDENTIFY,
		.nsid = nsid,
		.prp1 = nvme_page_addr(device, NVME_PAGE_DATA),
		.cdw10 = cns,
	};
}

static void *nvme_identify(struct vfio_pci_device *device, u32 cns, u32 nsid)
{
	struct nvme_sqe cmd = nvme_identify_cmd(device, cns, nsid);

	nvme_admin(device, &cmd);

	return nvme_page(to_nvme_state(device), NVME_PAGE_DATA);
}

static void nvme_queue_init(struct vfio_pci_device *device, int qid)
{
	struct nvme_state *nvme = to_nvme_state(device);
	struct nvme_queue *q = &nvme->queues[qid];
	void *bar0 = device->bars[0].vaddr;

	*q = (struct nvme_queue) {
		.sq = nvme_page(nvme, NVME_PAGE_SQ + qid),
		.cq = nvme_page(nvme, NVME_PAGE_CQ + qid),
		.sq_doorbell = bar0 + NVME_SQ_DOORBELL(qid, NVME_CAP_DSTRD(nvme->cap)),
		.cq_doorbell = bar0 + NVME_CQ_DOORBELL(qid, NVME_CAP_DSTRD(nvme->cap)),
		.phase = NVME_CQE_PHASE,
	};

	/* No entry may look like a completion before there is one */
	memset(q->cq, 0, NVME_DEPTH * sizeof(*q->cq));
}

static void nvme_queue_create(struct vfio_pci_device *device, int qid)
{
	struct nvme_sqe cmd = {
		.opcode = NVME_ADMIN_CREATE_CQ,
		.prp1 = nvme_page_addr(device, NVME_PAGE_CQ + qid),
		.cdw10 = NVME_QUEUE_CDW10(qid, NVME_DEPTH),
		.cdw11 = NVME_QUEUE_PC,
	};

	nvme_queue_init(device, qid);

	nvme_admin(device, &cmd);

	cmd.opcode = NVME_ADMIN_CREATE_SQ;
	cmd.prp1 = nvme_page_addr(device, NVME_PAGE_SQ + qid);
	cmd.cdw11 = NVME_QUEUE_PC | NVME_SQ_CQID(qid);
	nvme_admin(device, &cmd);
}

/* [Base 3.5.1] Memory-based controller initialization */
static void nvme_enable(struct vfio_pci_device *device)
{
	struct nvme_state *nvme = to_nvme_state(device);
	/* One I/O queue of each kind, as 0's based numbers */
	struct nvme_sqe cmd = {
		.opcode = NVME_ADMIN_SET_FEATURES,
		.cdw10 = NVME_FEAT_NUM_QUEUES,
	};
	u32 cc = NVME_CC_MPS(NVME_CAP_MPSMIN(nvme->cap)) | NVME_CC_IOSQES | NVME_CC_IOCQES;

	nvme_queue_init(device, NVME_ADMIN_QUEUE);
	nvme_write(device, NVME_AQA, (NVME_DEPTH - 1) << 16 | (NVME_DEPTH - 1));
	nvme_write64(device, NVME_ASQ,
		     nvme_page_addr(device, NVME_PAGE_SQ + NVME_ADMIN_QUEUE));
	nvme_write64(device, NVME_ACQ,
		     nvme_page_addr(device, NVME_PAGE_CQ + NVME_ADMIN_QUEUE));

	/* What it is enabled with may not change while it is */
	nvme_write(device, NVME_CC, cc);
	nvme_write(device, NVME_CC, cc | NVME_CC_EN);
	nvme_wait_ready(device, NVME_CSTS_RDY);

	nvme_admin(device, &cmd);
	nvme_queue_create(device, NVME_MEMCPY_QUEUE);
}

static void nvme_init_sizes(struct vfio_pci_device *device)
{
	struct nvme_state *nvme = to_nvme_state(device);
	u64 nr_blocks;
	void *data;
	u8 mdts, flbas, format;
	u32 lbaf;

	/* One page of PRP list, and PRP1 for what an unaligned range takes more */
	nvme->max_transfer = nvme->page_size / sizeof(u64) * nvme->page_size;

	data = nvme_identify(device, NVME_CNS_CONTROLLER, 0);
	mdts = *(u8 *)(data + NVME_ID_CTRL_MDTS);
	/* More than a PRP list holds is no limit */
	if (mdts && mdts < 32)
		nvme->max_transfer = min(nvme->max_transfer, nvme->page_size << mdts);

	data = nvme_identify(device, NVME_CNS_NAMESPACE, 1);
	nr_blocks = *(u64 *)(data + NVME_ID_NS_NSZE);
	flbas = *(u8 *)(data + NVME_ID_NS_FLBAS);
	format = (flbas & NVME_FLBAS_LOW) | (flbas & NVME_FLBAS_HIGH) >> 1;
	lbaf = *(u32 *)(data + NVME_ID_NS_LBAF(format));

	VFIO_ASSERT_GT(nr_blocks, 0, "nvme: There is no namespace 1\n");
	VFIO_ASSERT_EQ(NVME_LBAF_MS(lbaf), 0, "nvme: Namespace 1 has metadata\n");
	VFIO_ASSERT_LE(1UL << NVME_LBAF_DS(lbaf), nvme->max_transfer,
		       "nvme: The blocks of namespace 1 are too large\n");

	nvme->block_size = 1U << NVME_LBAF_DS(lbaf);
	nvme->max_transfer = min(nvme->max_transfer, (u64)NVME_MAX_BLOCKS * nvme->block_size);

	device->driver.max_memcpy_size = min((u64)NVME_MAX_MEMCPY_SIZE,
					     nr_blocks * nvme->block_size);
	device->driver.max_memcpy_count = NVME_MAX_MEMCPY_COUNT;
}

static void nvme_init(struct vfio_pci_device *device)
{
	struct dma_region *region = &device->driver.region;
	struct nvme_state *nvme = to_nvme_state(device);
	u64 offset;

	*nvme = (struct nvme_state) {
		.cap = nvme_read64(device, NVME_CAP),
	};

	nvme->page_size = SZ_4K << NVME_CAP_MPSMIN(nvme->cap);
	/* It is the address for the device that has to be aligned */
	offset = ALIGN(region->iova + sizeof(*nvme), nvme->page_size) - region->iova;
	nvme->pages = region->vaddr + offset;

	VFIO_ASSERT_LE(offset + NVME_NR_PAGES * nvme->page_size, region->size);
	VFIO_ASSERT_LE(NVME_CQ_DOORBELL(NVME_MEMCPY_QUEUE, NVME_CAP_DSTRD(nvme->cap)) + sizeof(u32),
		       device->bars[0].info.size);

	/* If it was left enabled, then no DMA before it is disabled */
	vfio_pci_config_writew(device, PCI_COMMAND,
			       PCI_COMMAND_MEMORY | PCI_COMMAND_INTX_DISABLE);
	nvme_disable(device);
	vfio_pci_config_writew(device, PCI_COMMAND,
			       PCI_COMMAND_MEMORY |
			       PCI_COMMAND_MASTER |
			       PCI_COMMAND_INTX_DISABLE);

	nvme->irq_index = device->msix_info.count ? VFIO_PCI_MSIX_IRQ_INDEX :
						    VFIO_PCI_MSI_IRQ_INDEX;
	device->driver.msi = 0;

	/* QEMU's controller looks for the vector when a queue is created */
	vfio_pci_irq_enable(device, nvme->irq_index, device->driver.msi, 1);

	nvme_enable(device);
	nvme_init_sizes(device);
}

static void nvme_remove(struct vfio_pci_device *device)
{
	nvme_disable(device);
	vfio_pci_irq_disable(device, to_nvme_state(device)->irq_index);
}

static void nvme_handle_error(struct vfio_pci_device *device, int error)
{
	const struct nvme_sqe cmd = {
		.opcode = NVME_ADMIN_DELETE_SQ,
		.cdw10 = NVME_MEMCPY_QUEUE,
	};

	dev_err(device, "nvme: Resetting the controller (CSTS 0x%x): %s\n",
		nvme_read(device, NVME_CSTS), strerror(-error));

	/*
	 * A controller that still answers aborts the command along with its
	 * queue. QEMU's goes on with it through a mere reset, and crashes.
	 */
	__nvme_admin(device, &cmd);

	nvme_disable(device);
	nvme_enable(device);
}

/*
 * Physical Region Pages [Base 4.1.1]: the first may start anywhere in a page of
 * the controller, and PRP2 is the second, or the list of all further ones.
 *
 * Returns a negative errno if the device can't reach all of the range.
 */
static int nvme_set_prps(struct vfio_pci_device *device, struct nvme_sqe *cmd,
			 iova_t iova, u64 len)
{
	struct nvme_state *nvme = to_nvme_state(device);
	u64 *list = nvme_page(nvme, NVME_PAGE_PRP_LIST);
	u64 addr = 0, contiguous = 0, piece;
	int r, nr = 0;

	for (; len; iova += piece, addr += piece, contiguous -= piece, len -= piece) {
		if (!contiguous) {
			r = __iommu_dma_addr(device->iommu, iova, len, &addr, &contiguous);
			if (r)
				return r;
		}

		piece = min(nvme->page_size - addr % nvme->page_size, len);
		if (piece > contiguous || !IS_ALIGNED(addr, nr ? nvme->page_size : 4))
			return -EINVAL;

		if (!nr++)
			cmd->prp1 = addr;
		else
			list[nr - 2] = addr;
	}

	if (nr == 2)
		cmd->prp2 = list[0];
	else if (nr > 2)
		cmd->prp2 = nvme_page_addr(device, NVME_PAGE_PRP_LIST);

	return 0;
}

/* Writes the next part of the source, or reads it to the destination */
static int nvme_memcpy_submit(struct vfio_pci_device *device, u8 opcode)
{
	struct nvme_state *nvme = to_nvme_state(device);
	iova_t iova = opcode == NVME_CMD_WRITE ? nvme->src : nvme->dst;
	struct nvme_sqe cmd = { .opcode = opcode, .nsid = 1 };
	u64 slba = nvme->offset / nvme->block_size;
	int r;

	nvme->opcode = opcode;
	nvme->len = min(nvme->size - nvme->offset, nvme->max_transfer);

	cmd.cdw10 = slba;
	cmd.cdw11 = slba >> 32;
	cmd.cdw12 = nvme->len / nvme->block_size - 1;
	r = nvme_set_prps(device, &cmd, iova + nvme->offset, nvme->len);
	if (!r)
		nvme_submit(device, NVME_MEMCPY_QUEUE, &cmd);

	return r;
}

/* Can the device be told where all of the range is? With an IOMMU it always can. */
static int nvme_check_range(struct vfio_pci_device *device, iova_t iova, u64 size)
{
	u64 addr, contiguous, offset;
	int r;

	for (offset = 0; offset < size; offset += contiguous) {
		r = __iommu_dma_addr(device->iommu, iova + offset, size - offset,
				     &addr, &contiguous);
		if (r)
			return r;
	}

	return 0;
}

static void nvme_memcpy_start(struct vfio_pci_device *device,
			      iova_t src, iova_t dst, u64 size, u64 count)
{
	struct nvme_state *nvme = to_nvme_state(device);
	int r;

	nvme->src = src;
	nvme->dst = dst;
	nvme->size = size;
	nvme->count = count;
	nvme->offset = 0;

	if (!size || !IS_ALIGNED(size, nvme->block_size)) {
		dev_err(device, "nvme: Size 0x%lx is not a multiple of a block (0x%x)\n",
			size, nvme->block_size);
		device->driver.memcpy_error = -EINVAL;
		return;
	}

	/* Nothing is started that could not be finished */
	r = nvme_check_range(device, src, size);
	if (!r)
		r = nvme_check_range(device, dst, size);
	if (!r)
		r = nvme_memcpy_submit(device, NVME_CMD_WRITE);

	device->driver.memcpy_error = r;
}

static int nvme_memcpy_wait(struct vfio_pci_device *device)
{
	struct nvme_state *nvme = to_nvme_state(device);
	u8 next;
	int r;

	for (;;) {
		r = nvme_complete(device, NVME_MEMCPY_QUEUE);
		if (r < 0) {
			nvme_handle_error(device, r);
			return r;
		}
		if (r) {
			dev_err(device, "nvme: Status 0x%x of command 0x%x\n", r, nvme->opcode);
			return -EIO;
		}

		/* Commands are in no order, so that the Read waits for the Write */
		next = NVME_CMD_READ;
		if (nvme->opcode == NVME_CMD_READ) {
			next = NVME_CMD_WRITE;
			nvme->offset += nvme->len;
			if (nvme->offset == nvme->size) {
				nvme->offset = 0;
				if (!--nvme->count)
					return 0;
			}
		}

		r = nvme_memcpy_submit(device, next);
		if (r)
			return r;
	}
}

/* An Identify, whose interrupt is left to be read */
static void nvme_send_msi(struct vfio_pci_device *device)
{
	struct nvme_sqe cmd = nvme_identify_cmd(device, NVME_CNS_CONTROLLER, 0);
	int r;

	nvme_submit(device, NVME_ADMIN_QUEUE, &cmd);
	r = nvme_complete(device, NVME_ADMIN_QUEUE);
	VFIO_ASSERT_EQ(r, 0);
}

const struct vfio_pci_driver_ops nvme_ops = {
	.name = "nvme",
	.probe = nvme_probe,
	.init = nvme_init,
	.remove = nvme_remove,
	.memcpy_start = nvme_memcpy_start,
	.memcpy_wait = nvme_memcpy_wait,
	.send_msi = nvme_send_msi,
};
