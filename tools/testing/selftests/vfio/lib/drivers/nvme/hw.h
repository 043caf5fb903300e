/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Formats of the NVM Express Base Specification, revision 2.0, cited as [Base
 * SECTION], of the NVM Command Set Specification, revision 1.0, cited as [NVM
 * SECTION], and of the NVMe over PCIe Transport Specification, revision 1.0,
 * cited as [PCIe SECTION].
 *
 * Everything is little endian, as are the architectures that libvfio supports.
 */
#ifndef SELFTESTS_VFIO_LIB_DRIVERS_NVME_HW_H
#define SELFTESTS_VFIO_LIB_DRIVERS_NVME_HW_H

#include <linux/bits.h>
#include <linux/types.h>

/* Mass storage, non-volatile memory, NVM Express I/O controller [PCIe 3.8.1] */
#define NVME_PCI_CLASS		0x010802

/* Controller properties [Base 3.1.3] */
#define NVME_CAP		0x00
#define NVME_CC			0x14
#define NVME_CSTS		0x1c
#define NVME_AQA		0x24
#define NVME_ASQ		0x28
#define NVME_ACQ		0x30

#define NVME_CAP_TO(cap)	((cap) >> 24 & 0xff)	/* in units of 500 ms */
#define NVME_CAP_DSTRD(cap)	((cap) >> 32 & 0xf)	/* 4 << DSTRD bytes */
#define NVME_CAP_NVM		BIT_ULL(37)		/* CSS: the NVM command set */
#define NVME_CAP_MPSMIN(cap)	((cap) >> 48 & 0xf)	/* 4096 << MPSMIN bytes */

#define NVME_CC_EN		BIT(0)
#define NVME_CC_MPS(mps)	((u32)(mps) << 7)
#define NVME_CC_IOSQES		(6U << 16)	/* 64 byte submission entries */
#define NVME_CC_IOCQES		(4U << 20)	/* 16 byte completion entries */

#define NVME_CSTS_RDY		BIT(0)
#define NVME_CSTS_CFS		BIT(1)

/* Doorbells [PCIe 3.1.2] */
#define NVME_SQ_DOORBELL(qid, dstrd)	(0x1000 + (2 * (qid)) * (4 << (dstrd)))
#define NVME_CQ_DOORBELL(qid, dstrd)	(0x1000 + (2 * (qid) + 1) * (4 << (dstrd)))

/* Submission queue entry [Base 3.3.3.1] */
struct nvme_sqe {
	u8 opcode;
	u8 flags;
	u16 cid;
	u32 nsid;
	u64 rsvd;
	u64 mptr;
	u64 prp1;
	u64 prp2;
	u32 cdw10;
	u32 cdw11;
	u32 cdw12;
	u32 cdw13;
	u32 cdw14;
	u32 cdw15;
};

/* Completion queue entry [Base 3.3.3.2] */
struct nvme_cqe {
	u32 result;
	u32 rsvd;
	u16 sq_head;
	u16 sq_id;
	u16 cid;
	u16 status;
};

#define NVME_CQE_PHASE		BIT(0)
#define NVME_CQE_STATUS(status)	((status) >> 1 & 0x7ff)	/* code and type */

/* Admin commands [Base 5] */
#define NVME_ADMIN_DELETE_SQ	0x00	/* [Base 5.7] */
#define NVME_ADMIN_CREATE_SQ	0x01	/* [Base 5.5] */
#define NVME_ADMIN_CREATE_CQ	0x05	/* [Base 5.4] */
#define NVME_ADMIN_IDENTIFY	0x06	/* [Base 5.17] */
#define NVME_ADMIN_SET_FEATURES	0x09	/* [Base 5.27] */

/* Creation of queues: CDW10 has ID and 0's based size, CDW11 the rest */
#define NVME_QUEUE_CDW10(qid, depth)	((u32)((depth) - 1) << 16 | (qid))
#define NVME_QUEUE_PC			BIT(0)	/* physically contiguous */
#define NVME_SQ_CQID(qid)		((u32)(qid) << 16)

/* Identify: CDW10 [Base 5.17.1] */
#define NVME_CNS_NAMESPACE	0
#define NVME_CNS_CONTROLLER	1

/* Identify Controller data [Base 5.17.2.1] */
#define NVME_ID_CTRL_MDTS	77	/* in units of 4096 << MPSMIN, as a power of 2 */

/* Identify Namespace data [NVM 4.1.5.1] */
#define NVME_ID_NS_NSZE		0
#define NVME_ID_NS_FLBAS	26
#define NVME_ID_NS_LBAF(n)	(128 + 4 * (n))
#define NVME_FLBAS_LOW		0x0f	/* bits 3:0 of the format */
#define NVME_FLBAS_HIGH		0x60	/* bits 5:4 */
#define NVME_LBAF_MS(lbaf)	((lbaf) & 0xffff)	/* bytes of metadata */
#define NVME_LBAF_DS(lbaf)	((lbaf) >> 16 & 0xff)	/* 1 << DS bytes of data */

/* Number of Queues: CDW11 has completion and submission queues, 0's based [Base 5.27.1.5] */
#define NVME_FEAT_NUM_QUEUES	0x07

/* NVM commands [NVM 3.2]: CDW10 and 11 are the first block, CDW12 a 0's based count */
#define NVME_CMD_WRITE		0x01
#define NVME_CMD_READ		0x02
#define NVME_MAX_BLOCKS		65536

#endif /* SELFTESTS_VFIO_LIB_DRIVERS_NVME_HW_H */
