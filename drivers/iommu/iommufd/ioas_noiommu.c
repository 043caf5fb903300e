// SPDX-License-Identifier: GPL-2.0-only
/*
 * Physical addresses behind the IOVAs of an IOAS
 */
#include <linux/capability.h>
#include <linux/iommu.h>
#include <linux/sched/signal.h>

#include "io_pagetable.h"
#include "iommufd_private.h"

/* Every domain of an IOAS maps all of it, so that any noiommu one will do */
static struct iommu_domain *iopt_noiommu_domain(struct io_pagetable *iopt)
{
	struct iommu_domain *domain;
	unsigned long index;

	lockdep_assert_held(&iopt->domains_rwsem);

	xa_for_each(&iopt->domains, index, domain)
		if (iommufd_domain_is_noiommu(domain))
			return domain;
	return NULL;
}

/**
 * iopt_noiommu_get_pa() - Find the contiguous physical range behind an IOVA
 * @iopt: io_pagetable to look in
 * @iova: First byte to look up, of any alignment
 * @last_iova: Last byte to look up, not below @iova
 * @phys: Physical address of @iova
 * @length: Bytes that are contiguous from @phys, both in IOVA and physically,
 *          at most to @last_iova. The run may cross areas.
 *
 * Steps by the smallest entry that the page table stores. It may be smaller
 * than PAGE_SIZE, and IOVA and physical address need not share their offset in
 * a page.
 *
 * Context: Takes domains_rwsem and iova_rwsem for reading, which holds off
 * unmaps and removal of the domain, and the mutex of each area's pages, which
 * holds off revocation of a dma-buf.
 * Return: 0; -ENOENT if nothing is mapped at @iova; -EOPNOTSUPP if no noiommu
 * domain holds what is mapped there.
 */
static int iopt_noiommu_get_pa(struct io_pagetable *iopt, unsigned long iova,
			       unsigned long last_iova, phys_addr_t *phys,
			       unsigned long *length)
{
	unsigned long granule_mask, cur = iova;
	struct iommu_domain *domain;
	struct iopt_area *area;
	phys_addr_t next;

	guard(rwsem_read)(&iopt->domains_rwsem);
	guard(rwsem_read)(&iopt->iova_rwsem);

	/* Without pages an area is being set up or torn down */
	area = iopt_area_iter_first(iopt, iova, iova);
	if (!area || !area->pages)
		return -ENOENT;

	domain = iopt_noiommu_domain(iopt);
	if (!domain)
		return -EOPNOTSUPP;
	granule_mask = (1UL << __ffs(domain->pgsize_bitmap)) - 1;

	for (; area && area->pages; area = iopt_area_iter_first(iopt, cur, cur)) {
		unsigned long area_last = min(last_iova,
					      iopt_area_last_iova(area));

		guard(mutex)(&area->pages->mutex);
		do {
			next = iommu_iova_to_phys(domain, cur);
			if (!next)
				goto out;
			if (cur == iova)
				*phys = next;
			else if (next - *phys != cur - iova)
				goto out;

			/* May wrap to 0 behind the last IOVA that there is */
			cur = min(cur | granule_mask, area_last) + 1;
			cond_resched();
			if (fatal_signal_pending(current))
				goto out;
		} while (cur && cur <= area_last);

		if (!cur || cur > last_iova)
			break;
	}
out:
	if (cur == iova)
		return -EOPNOTSUPP;
	*length = cur - iova;
	return 0;
}

int iommufd_ioas_noiommu_get_pa(struct iommufd_ucmd *ucmd)
{
	struct iommu_ioas_noiommu_get_pa *cmd = ucmd->cmd;
	unsigned long last_iova, length;
	struct iommufd_ioas *ioas;
	phys_addr_t phys;
	int rc;

	if (!capable(CAP_SYS_RAWIO))
		return -EPERM;
	if (cmd->flags || cmd->__reserved)
		return -EOPNOTSUPP;
	if (!cmd->length)
		return -EINVAL;
	if (cmd->iova >= ULONG_MAX)
		return -EOVERFLOW;

	/* Only the first byte has to be mapped, so that no length is too long */
	if (cmd->length - 1 > ULONG_MAX - cmd->iova)
		last_iova = ULONG_MAX;
	else
		last_iova = cmd->iova + cmd->length - 1;

	ioas = iommufd_get_ioas(ucmd->ictx, cmd->ioas_id);
	if (IS_ERR(ioas))
		return PTR_ERR(ioas);

	rc = iopt_noiommu_get_pa(&ioas->iopt, cmd->iova, last_iova, &phys,
				 &length);
	if (rc)
		goto out_put;

	cmd->length = length;
	cmd->out_phys = phys;
	rc = iommufd_ucmd_respond(ucmd, sizeof(*cmd));
out_put:
	iommufd_put_object(ucmd->ictx, &ioas->obj);
	return rc;
}
