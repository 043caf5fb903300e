// SPDX-License-Identifier: GPL-2.0-only
/*
 * Physical addresses behind the IOVAs of an IOAS
 *
 * The IOVA range is read area by area, and a large area in several steps. Locks
 * are held for a step only: between two steps what was found is copied to the
 * user, whose memory may fault and whose fault may need the locks.
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
 * @extents: Those that were not copied to the user yet
 * @nr: How many of them there are
 * @room: How many there may be, not 0
 * @full: Another one was found, and was left out
 * @uptr: Where the next one goes in the user's array, NULL if there is none
 * @uroom: How many more the user's array holds, those in @extents included
 */
struct noiommu_extents {
	struct iommu_noiommu_extent *extents;
	unsigned int nr;
	unsigned int room;
	bool full;
	struct iommu_noiommu_extent __user *uptr;
	unsigned int uroom;
};

/* A sink for read_runs(). Runs that touch are an extent across areas too. */
static bool noiommu_add_run(void *arg, dma_addr_t iova, phys_addr_t phys,
			    size_t length)
{
	struct noiommu_extents *found = arg;
	struct iommu_noiommu_extent *next = &found->extents[found->nr];

	if (found->nr && next[-1].phys + next[-1].length == phys) {
		next[-1].length += length;
		return true;
	}
	if (found->nr == found->room) {
		found->full = true;
		return false;
	}
	next->phys = phys;
	next->length = length;
	found->nr++;
	return true;
}

static int noiommu_copy_extents(struct noiommu_extents *found, unsigned int nr)
{
	if (copy_to_user(found->uptr, found->extents,
			 nr * sizeof(*found->extents)))
		return -EFAULT;
	found->uptr += nr;
	found->uroom -= nr;
	return 0;
}

/* The last extent stays, as what follows may touch it */
static int noiommu_make_room(struct noiommu_extents *found)
{
	unsigned int last = found->nr - 1;
	int rc;

	rc = noiommu_copy_extents(found, last);
	if (rc)
		return rc;
	found->extents[0] = found->extents[last];
	found->nr = 1;
	found->room = min(found->room, found->uroom);
	found->full = false;
	return 0;
}

/* Every domain of an IOAS maps all of it, so that any noiommu one will do */
static struct pt_iommu *iopt_noiommu_table(struct io_pagetable *iopt)
{
	struct iommu_domain *domain;
	unsigned long index;

	lockdep_assert_held(&iopt->iova_rwsem);

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
 * @length: Set to how many bytes were added to @found. They stop at the end of
 *          the area at the latest. It may be 0 if @found is full.
 *
 * Context: Takes iova_rwsem for reading. That holds off unmaps, which clear
 * iopt_area::pages before they start, and changes of the domains, which hold it
 * and domains_rwsem for writing. The pages of an area stay where they are,
 * but for a dma-buf, whose revocation the mutex of its pages holds off.
 * Return: 0; -ENOENT if nothing is mapped at @iova; -EOPNOTSUPP if no noiommu
 * domain holds what is mapped there.
 */
static int iopt_noiommu_read_step(struct io_pagetable *iopt, unsigned long iova,
				  unsigned long last_iova,
				  struct noiommu_extents *found,
				  unsigned long *length)
{
	struct iopt_pages *pages;
	struct iopt_area *area;
	struct pt_iommu *table;
	bool revocable;

	guard(rwsem_read)(&iopt->iova_rwsem);

	/* Without pages an area is being set up or torn down */
	area = iopt_area_iter_first(iopt, iova, iova);
	if (!area || !area->pages)
		return -ENOENT;

	table = iopt_noiommu_table(iopt);
	if (!table)
		return -EOPNOTSUPP;

	pages = area->pages;
	revocable = iopt_is_dmabuf(pages);
	if (revocable)
		mutex_lock(&pages->mutex);
	last_iova = min(last_iova, iopt_area_last_iova(area));
	*length = table->ops->read_runs(table, iova, last_iova - iova + 1,
					NOIOMMU_STEP_TABLES, noiommu_add_run,
					found);
	if (revocable)
		mutex_unlock(&pages->mutex);
	return *length || found->full ? 0 : -EOPNOTSUPP;
}

/**
 * iopt_noiommu_read() - Look up the extents behind a range of IOVAs
 * @iopt: io_pagetable to look in
 * @iova: First byte to look up, of any alignment
 * @last_iova: Last byte to look up, not below @iova
 * @found: Where to add what is found, empty
 * @length: Set to how many bytes the extents describe
 * @phys: Set to the first one's physical address
 *
 * Stops at the first hole, or where there is no room for another extent. What
 * changes meanwhile may be seen as it was or as it is.
 *
 * Context: May sleep, and may fault on the user's array.
 * Return: 0; -ENOENT or -EOPNOTSUPP of iopt_noiommu_read_step() for @iova;
 * -EFAULT if the user's array can't be written.
 */
static int iopt_noiommu_read(struct io_pagetable *iopt, unsigned long iova,
			     unsigned long last_iova,
			     struct noiommu_extents *found,
			     unsigned long *length, phys_addr_t *phys)
{
	unsigned long cur = iova, step;
	int rc;

	rc = iopt_noiommu_read_step(iopt, cur, last_iova, found, &step);
	if (rc)
		return rc;
	*phys = found->extents[0].phys;

	for (;;) {
		/* Behind the last IOVA that there is it wraps to 0 */
		cur += step;
		if (found->full) {
			if (found->room == found->uroom)
				break;
			rc = noiommu_make_room(found);
			if (rc)
				return rc;
		}
		if (cur - 1 == last_iova || fatal_signal_pending(current))
			break;
		cond_resched();
		if (iopt_noiommu_read_step(iopt, cur, last_iova, found, &step))
			break;
	}

	*length = cur - iova;
	return found->uptr ? noiommu_copy_extents(found, found->nr) : 0;
}

static int noiommu_get_extents(struct io_pagetable *iopt,
			       struct iommu_ioas_noiommu_get_pa *cmd,
			       unsigned long last_iova, unsigned long *length,
			       phys_addr_t *phys)
{
	struct noiommu_extents found = {
		.room = min(cmd->nr_extents, NOIOMMU_STEP_EXTENTS),
		.uptr = u64_to_user_ptr(cmd->extents),
		.uroom = cmd->nr_extents,
	};
	int rc;

	found.extents = kmalloc_objs(*found.extents, found.room);
	if (!found.extents)
		return -ENOMEM;
	rc = iopt_noiommu_read(iopt, cmd->iova, last_iova, &found, length, phys);
	cmd->nr_extents -= found.uroom;
	kfree(found.extents);
	return rc;
}

static int noiommu_get_pa(struct io_pagetable *iopt, unsigned long iova,
			  unsigned long last_iova, unsigned long *length,
			  phys_addr_t *phys)
{
	struct iommu_noiommu_extent extent;
	struct noiommu_extents found = {
		.extents = &extent,
		.room = 1,
		.uroom = 1,
	};

	return iopt_noiommu_read(iopt, iova, last_iova, &found, length, phys);
}

static int noiommu_check_extents(struct iommufd_ucmd *ucmd)
{
	struct iommu_ioas_noiommu_get_pa *cmd = ucmd->cmd;

	if (!(cmd->flags & IOMMU_NOIOMMU_GET_PA_EXTENTS))
		return cmd->nr_extents || cmd->__reserved2 || cmd->extents ?
			       -EINVAL : 0;
	if (ucmd->user_size < sizeof(*cmd))
		return -EINVAL;
	if (cmd->__reserved2)
		return -EOPNOTSUPP;
	return cmd->nr_extents ? 0 : -EINVAL;
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

	if (cmd->flags & IOMMU_NOIOMMU_GET_PA_EXTENTS)
		rc = noiommu_get_extents(&ioas->iopt, cmd, last_iova, &length,
					 &phys);
	else
		rc = noiommu_get_pa(&ioas->iopt, cmd->iova, last_iova, &length,
				    &phys);
	if (rc)
		goto out_put;

	cmd->length = length;
	cmd->out_phys = phys;
	rc = iommufd_ucmd_respond(ucmd, sizeof(*cmd));
out_put:
	iommufd_put_object(ucmd->ictx, &ioas->obj);
	return rc;
}
