// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paging domains for devices without an IOMMU
 *
 * iommufd keeps the PFNs of what it has pinned in an iommu_domain. For a device
 * behind no IOMMU this is just enough of an IOMMU driver to have one: an AMDV1
 * table in memory that no hardware reads. It is a lookup table from IOVA to
 * physical address, and the owner of the pins.
 */
#include <linux/generic_pt/iommu.h>
#include <linux/iommu.h>
#include <linux/slab.h>

#include "../iommu-pages.h"
#include "iommufd_private.h"

struct noiommu_domain {
	union {
		struct iommu_domain domain;
		struct pt_iommu_amdv1 amdv1;
	};
	/* Serialises growth of the table's top level */
	spinlock_t top_lock;
};

PT_IOMMU_CHECK_DOMAIN(struct noiommu_domain, amdv1.iommu, domain);

/* No hardware holds the table's top, so that it changes by itself */
static void noiommu_change_top(struct pt_iommu *iommu_table,
			       phys_addr_t top_paddr, unsigned int top_level)
{
}

static spinlock_t *noiommu_get_top_lock(struct pt_iommu *iommu_table)
{
	return &container_of(iommu_table, struct noiommu_domain, amdv1.iommu)
			->top_lock;
}

static const struct pt_iommu_driver_ops noiommu_driver_ops = {
	.change_top = noiommu_change_top,
	.get_top_lock = noiommu_get_top_lock,
};

/* No hardware walks the gathered tables any more, nor ever did */
static void noiommu_iotlb_sync(struct iommu_domain *domain,
			       struct iommu_iotlb_gather *gather)
{
	iommu_put_pages_list(&gather->freelist);
}

static void noiommu_domain_free(struct iommu_domain *domain)
{
	struct noiommu_domain *noiommu =
		container_of(domain, struct noiommu_domain, domain);

	pt_iommu_deinit(&noiommu->amdv1.iommu);
	kfree(noiommu);
}

static const struct iommu_domain_ops noiommu_domain_ops = {
	IOMMU_PT_DOMAIN_OPS(amdv1),
	.iotlb_sync = noiommu_iotlb_sync,
	.free = noiommu_domain_free,
};

static struct iommu_domain *
noiommu_domain_alloc_paging_flags(struct device *dev, u32 flags,
				  const struct iommu_user_data *user_data)
{
	/*
	 * AMDV1 stores a leaf of every power of two from 4K up, so that a
	 * contiguous run costs few entries. The widest table it can have: all
	 * of the IOVA space, and physical addresses of 52 bits. The top level
	 * grows on demand. The encryption and coherence features are those that
	 * the format is compiled for. They mean nothing here, where no hardware
	 * decodes the entries and the format's own lookup masks their bits.
	 */
	static const struct pt_iommu_amdv1_cfg cfg = {
		.common = {
			.hw_max_vasz_lg2 = 64,
			.hw_max_oasz_lg2 = 52,
			.features = BIT(PT_FEAT_DYNAMIC_TOP) |
				    BIT(PT_FEAT_AMDV1_ENCRYPT_TABLES) |
				    BIT(PT_FEAT_AMDV1_FORCE_COHERENCE),
		},
		.starting_level = 2,
	};
	struct noiommu_domain *noiommu;
	int rc;

	if (flags || user_data)
		return ERR_PTR(-EOPNOTSUPP);

	noiommu = kzalloc_obj(*noiommu, GFP_KERNEL_ACCOUNT);
	if (!noiommu)
		return ERR_PTR(-ENOMEM);

	spin_lock_init(&noiommu->top_lock);
	noiommu->domain.ops = &noiommu_domain_ops;
	noiommu->amdv1.iommu.driver_ops = &noiommu_driver_ops;
	noiommu->amdv1.iommu.nid = dev_to_node(dev);

	rc = pt_iommu_amdv1_init(&noiommu->amdv1, &cfg, GFP_KERNEL_ACCOUNT);
	if (rc) {
		kfree(noiommu);
		return ERR_PTR(rc);
	}
	return &noiommu->domain;
}

/*
 * What get_iommu_ops() returns for a device without an IOMMU, and by being
 * iommu_domain::owner the mark of a domain that was made for one.
 */
const struct iommu_ops iommufd_noiommu_ops = {
	.domain_alloc_paging_flags = noiommu_domain_alloc_paging_flags,
};
