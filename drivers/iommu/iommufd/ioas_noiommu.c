// SPDX-License-Identifier: GPL-2.0-only
/*
 * Physical addresses of the IOVAs of an IOAS
 *
 * The IOVA range is read area by area, and a large area in several steps. Locks
 * are held for a step only: between two steps what was found is copied to the
 * user, whose memory may fault and whose fault may need the locks. The IOAS is
 * held throughout, and IOMMU_DESTROY of it returns EBUSY meanwhile, to a fault
 * handler as well.
 */
#include <linux/capability.h>
#include <linux/generic_pt/iommu.h>
#include <linux/sched/signal.h>
#include <linux/uaccess.h>

#include "io_pagetable.h"
#include "iommufd_private.h"

/* Tables that a step visits. With 512 entries each it takes some 0.1 ms. */
#define NOIOMMU_STEP_TABLES 64

/* Extents that are kept for a copy to the user, a page of them */
#define NOIOMMU_STEP_EXTENTS (SZ_4K / sizeof(struct iommu_noiommu_extent))

/**
 * struct noiommu_extents - Extents that were found so far
 * @first: Extents not copied to the user yet
 * @next: One past the last extent found
 * @end: End of the array
 * @length: Bytes found in all
 * @to_user: The user has an array
 * @uptr: Where @first goes in the user's array
 * @uroom: Entries left in the user's array, or 1 without one
 */
struct noiommu_extents {
	struct iommu_noiommu_extent *first;
	struct iommu_noiommu_extent *next;
	struct iommu_noiommu_extent *end;
	u64 length;
	bool to_user;
	struct iommu_noiommu_extent __user *uptr;
	u32 uroom;
};

/*
 * A sink for read_runs(). Runs that touch are one extent across areas and steps
 * too, so that the last one that there is room for may grow until it ends.
 */
static bool noiommu_add_run(void *arg, dma_addr_t iova, phys_addr_t phys,
			    u64 length, bool ended)
{
	struct noiommu_extents *found = arg;
	struct iommu_noiommu_extent *next = found->next;

	if (next != found->first && next[-1].phys + next[-1].length == phys) {
		next[-1].length += length;
	} else {
		if (next == found->end)
			return false;
		next->phys = phys;
		next->length = length;
		found->next = ++next;
	}
	found->length += length;
	return next != found->end || !ended;
}

static int noiommu_copy_extents(struct noiommu_extents *found, u32 nr)
{
	if (copy_to_user(found->uptr, found->first, nr * sizeof(*found->first)))
		return -EFAULT;
	found->uptr += nr;
	found->uroom -= nr;
	return 0;
}

/* There is no more room in the user's array than here */
static bool noiommu_is_last(const struct noiommu_extents *found)
{
	return found->end - found->first == found->uroom;
}

/* The last extent stays, as what follows may touch it */
static int noiommu_make_room(struct noiommu_extents *found)
{
	u32 last = found->next - found->first - 1;
	int rc;

	rc = noiommu_copy_extents(found, last);
	if (rc)
		return rc;
	*found->first = found->first[last];
	found->next = found->first + 1;
	found->end = found->first +
		     min_t(u32, found->end - found->first, found->uroom);
	return 0;
}

/*
 * Every domain of an IOAS maps all of it, so that any noiommu one will do. The
 * area's storage_domain is at hand, and often one. Like the domains it changes
 * under iova_rwsem, or while the area has no pages.
 */
static struct pt_iommu *iopt_noiommu_table(struct io_pagetable *iopt,
					   struct iopt_area *area)
{
	struct iommu_domain *domain = area->storage_domain;
	unsigned long index;

	lockdep_assert_held(&iopt->iova_rwsem);

	if (domain && iommufd_domain_is_noiommu(domain))
		return iommupt_from_domain(domain);
	xa_for_each(&iopt->domains, index, domain)
		if (iommufd_domain_is_noiommu(domain))
			return iommupt_from_domain(domain);
	return NULL;
}

/**
 * iopt_noiommu_read_step() - Look up what follows an IOVA in its area
 * @iopt: io_pagetable to look in
 * @iova: First byte to look up, of any alignment
 * @last_iova: Last byte to look up, not below @iova
 * @found: Where to add what is found
 *
 * Context: Takes iova_rwsem for reading. That holds off unmaps, which clear
 * iopt_area::pages before they start, and changes of the domains, which hold it
 * and domains_rwsem for writing. The pages of an area stay where they are,
 * but for a dma-buf, whose revocation the mutex of its pages holds off.
 * Return: 0 if it reached @last_iova or the end of the area; -EAGAIN if it
 * ended earlier so as not to take too long; -ECANCELED if there is more than
 * @found has room for; -ENOENT if nothing is mapped at @iova; -EINVAL if a
 * dma-buf is, and was revoked; -EOPNOTSUPP if no noiommu domain holds what is
 * mapped there.
 */
static int iopt_noiommu_read_step(struct io_pagetable *iopt, unsigned long iova,
				  unsigned long last_iova,
				  struct noiommu_extents *found)
{
	struct iopt_pages *pages;
	struct iopt_area *area;
	struct pt_iommu *table;
	bool revocable;
	int rc;

	guard(rwsem_read)(&iopt->iova_rwsem);

	/* Without pages an area is being set up or torn down */
	area = iopt_area_iter_first(iopt, iova, iova);
	if (!area || !area->pages)
		return -ENOENT;

	table = iopt_noiommu_table(iopt, area);
	if (!table)
		return -EOPNOTSUPP;

	pages = area->pages;
	revocable = iopt_is_dmabuf(pages);
	if (revocable)
		mutex_lock(&pages->mutex);
	last_iova = min(last_iova, iopt_area_last_iova(area));
	rc = table->ops->read_runs(table, iova, last_iova, NOIOMMU_STEP_TABLES,
				   noiommu_add_run, found);
	if (revocable)
		mutex_unlock(&pages->mutex);
	/* Only a dma-buf that was revoked leaves an area without translation */
	return rc == -ENOENT ? -EINVAL : rc;
}

/**
 * iopt_noiommu_read() - Look up the extents behind a range of IOVAs
 * @iopt: io_pagetable to look in
 * @iova: First byte to look up, of any alignment
 * @last_iova: Last byte to look up, not below @iova
 * @found: Where to add what is found, empty
 * @phys: Set to the physical address of @iova
 *
 * Stops at the first hole, or where there is no room for another extent. What
 * changes meanwhile may be seen as it was or as it is.
 *
 * Context: May sleep, and may fault on the user's array.
 * Return: 0; -ENOENT if nothing is mapped at @iova; -EINVAL if a dma-buf is, and
 * was revoked; -EOPNOTSUPP if no noiommu domain holds what is mapped there;
 * -EFAULT if the user's array can't be written.
 */
static int iopt_noiommu_read(struct io_pagetable *iopt, unsigned long iova,
			     unsigned long last_iova,
			     struct noiommu_extents *found, u64 *phys)
{
	int rc;

	for (;;) {
		bool is_first = !found->length;

		rc = iopt_noiommu_read_step(iopt, iova + found->length,
					    last_iova, found);
		if (is_first) {
			if (!found->length)
				return rc;
			*phys = found->first->phys;
		}
		if (rc == -ECANCELED) {
			if (noiommu_is_last(found))
				break;
			rc = noiommu_make_room(found);
			if (rc)
				return rc;
		} else if ((rc && rc != -EAGAIN) ||
			   found->length - 1 == last_iova - iova) {
			break;
		}
		if (fatal_signal_pending(current))
			break;
		cond_resched();
	}
	if (!found->to_user)
		return 0;
	return noiommu_copy_extents(found, found->next - found->first);
}

static int noiommu_check_extents(struct iommufd_ucmd *ucmd)
{
	struct iommu_ioas_noiommu_get_pa *cmd = ucmd->cmd;

	if (!(cmd->flags & IOMMU_NOIOMMU_GET_PA_EXTENTS))
		return cmd->nr_extents || cmd->__reserved2 || cmd->extents ?
			       -EINVAL : 0;
	if (ucmd->user_size < offsetofend(typeof(*cmd), extents))
		return -EINVAL;
	if (cmd->__reserved2)
		return -EOPNOTSUPP;
	return cmd->nr_extents ? 0 : -EINVAL;
}

static int noiommu_alloc_extents(struct noiommu_extents *found,
				 const struct iommu_ioas_noiommu_get_pa *cmd)
{
	unsigned int room = min(cmd->nr_extents, NOIOMMU_STEP_EXTENTS);

	found->first = kmalloc_objs(*found->first, room);
	if (!found->first)
		return -ENOMEM;
	found->next = found->first;
	found->end = found->first + room;
	found->to_user = true;
	found->uptr = u64_to_user_ptr(cmd->extents);
	found->uroom = cmd->nr_extents;
	return 0;
}

int iommufd_ioas_noiommu_get_pa(struct iommufd_ucmd *ucmd)
{
	struct iommu_ioas_noiommu_get_pa *cmd = ucmd->cmd;
	struct iommu_noiommu_extent extent;
	struct noiommu_extents found = {
		.first = &extent,
		.next = &extent,
		.end = &extent + 1,
		.uroom = 1,
	};
	struct iommufd_ioas *ioas;
	unsigned long last_iova;
	int rc;

	if (!capable(CAP_SYS_RAWIO))
		return -EPERM;
	if (cmd->flags & ~IOMMU_NOIOMMU_GET_PA_EXTENTS || cmd->__reserved)
		return -EOPNOTSUPP;
	rc = noiommu_check_extents(ucmd);
	if (rc)
		return rc;
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

	if (cmd->flags & IOMMU_NOIOMMU_GET_PA_EXTENTS) {
		rc = noiommu_alloc_extents(&found, cmd);
		if (rc)
			goto out_put;
	}

	rc = iopt_noiommu_read(&ioas->iopt, cmd->iova, last_iova, &found,
			       &cmd->out_phys);
	if (rc)
		goto out_free;

	cmd->length = found.length;
	if (found.to_user)
		cmd->nr_extents -= found.uroom;
	rc = iommufd_ucmd_respond(ucmd, sizeof(*cmd));
out_free:
	if (found.first != &extent)
		kfree(found.first);
out_put:
	iommufd_put_object(ucmd->ictx, &ioas->obj);
	return rc;
}
