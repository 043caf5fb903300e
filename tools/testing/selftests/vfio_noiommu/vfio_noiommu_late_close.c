// SPDX-License-Identifier: GPL-2.0-only
/*
 * No late DMA, in whatever order the device and the iommufd are closed and whoever
 * still holds them: as long as the device is open its pages stay, and its DMA is
 * right; when they are given back it is over
 *
 * Run as root. Takes the devices named in the fixture's variants away from their
 * drivers, and all of the system's 2 MiB pages for as long as it runs. NOIOMMU_ROUNDS
 * in the environment is how often each order is tried.
 */
#include <signal.h>
#include <sys/prctl.h>

#include "../kselftest_harness.h"
#include "vfio_noiommu_late.h"

FIXTURE(order)
{
	struct late *late;
	uint64_t started;	/* when the device was told to do DMA */
	unsigned int in_time;	/* pages given back before it came */
};

FIXTURE_VARIANT(order)
{
	bool nvme;
	bool edu;
};

FIXTURE_VARIANT_ADD(order, nvme) { .nvme = true };
FIXTURE_VARIANT_ADD(order, edu) { .edu = true };
FIXTURE_VARIANT_ADD(order, both) { .nvme = true, .edu = true };

FIXTURE_SETUP(order)
{
	self->late = late_init(variant->nvme, variant->edu);
	if (!self->late)
		SKIP(return, "no such device without an IOMMU");
}

FIXTURE_TEARDOWN(order)
{
	if (self->late)
		late_close(self->late);
}

/* Has DMA always come before the pages were given back? */
static bool is_late(const struct __test_metadata *_metadata,
		    const struct _test_data_order *self, bool nvme)
{
	return !nvme && !_metadata->exit_code && !self->in_time;
}

/*
 * A test is an order, some times over. DMA that comes before the pages are given
 * back proves nothing, so go on where that was always so. A kernel full of checks
 * is never in time. Resets of the disk take longer than edu does.
 */
#define TEST_ORDER(name)							\
	static void try_##name(struct __test_metadata *_metadata,		\
			       struct _test_data_order *self);			\
	TEST_F_TIMEOUT(order, name, 1200)					\
	{									\
		unsigned int nr = rounds(3), round;				\
										\
		for (round = 0; round < nr ||					\
		     (TEST_TIMEOUT_SCALE == 1 && is_late(_metadata, self, variant->nvme)); \
		     round++)							\
			try_##name(_metadata, self);				\
		if (is_late(_metadata, self, variant->nvme))			\
			SKIP(return, "a kernel too slow to close in time");	\
	}									\
	static void try_##name(struct __test_metadata *_metadata,		\
			       struct _test_data_order *self)

/* All of the pages are the program's, and the devices may write to them */
#define EXPECT_HELD()								\
	do {									\
		EXPECT_EQ(0, free_pages(self->late));				\
		EXPECT_TRUE(all_masters(self->late));				\
	} while (0)

#define EXPECT_GIVEN_BACK()							\
	do {									\
		bool master;							\
										\
		ASSERT_TRUE(late_wait_free(self->late, &master));		\
		if (now_ms() - self->started < EDU_MS)				\
			self->in_time++;					\
		EXPECT_FALSE(master);						\
		EXPECT_FALSE(any_master(self->late));				\
		EXPECT_EQ(0, late_watch(self->late, EDU_MS + 20));		\
	} while (0)

/* DMA from now on, to memory that nothing but the pins keeps */
static void start(struct _test_data_order *self)
{
	late_start(self->late);
	self->started = now_ms();
	must(!munmap(self->late->mem, MEMORY));
}

static void close_fds(struct late *late)
{
	unsigned int i;

	for (i = 0; i < late->nr; i++) {
		close(late->devices[i].fd);
		late->devices[i].fd = -1;
	}
}

static void close_iommufd(struct late *late)
{
	close(late->iommufd);
	late->iommufd = -1;
}

TEST_ORDER(device_then_iommufd)
{
	struct late *late = self->late;

	late_begin(late, true);
	start(self);
	late_unmap_bars(late);
	EXPECT_HELD();
	close_fds(late);
	EXPECT_GIVEN_BACK();
	/* What is mapped has no pages any more, and can be unmapped */
	EXPECT_EQ(0, ioas_unmap(late->iommufd, late->ioas, IOVA, MEMORY));
	close_iommufd(late);
}

/* The device keeps the context of the iommufd, and so all that is mapped */
TEST_ORDER(iommufd_then_device)
{
	struct late *late = self->late;

	late_begin(late, false);
	close_iommufd(late);
	EXPECT_HELD();
	EXPECT_TRUE(dma_works(late));
	start(self);
	EXPECT_HELD();
	late_unmap_bars(late);
	EXPECT_HELD();
	close_fds(late);
	EXPECT_GIVEN_BACK();
}

TEST_ORDER(iommufd_then_detach)
{
	struct late *late = self->late;

	late_begin(late, false);
	close_iommufd(late);
	start(self);
	EXPECT_HELD();
	late_detach(late);
	EXPECT_GIVEN_BACK();
	late_close(late);
}

TEST_ORDER(dup_of_device)
{
	struct late *late = self->late;
	unsigned int i;
	int dups[2];

	late_begin(late, false);
	for (i = 0; i < late->nr; i++)
		dups[i] = dup(late->devices[i].fd);
	close_fds(late);
	close_iommufd(late);
	EXPECT_HELD();
	EXPECT_TRUE(dma_works(late));
	start(self);
	late_unmap_bars(late);
	EXPECT_HELD();
	for (i = 0; i < late->nr; i++)
		close(dups[i]);
	EXPECT_GIVEN_BACK();
}

TEST_ORDER(dup_of_iommufd)
{
	struct late *late = self->late;
	int other;

	late_begin(late, false);
	other = dup(late->iommufd);
	close_iommufd(late);
	start(self);
	late_unmap_bars(late);
	EXPECT_HELD();
	close_fds(late);
	EXPECT_GIVEN_BACK();
	close(other);
}

/* With the BAR the program has the doorbells, and so the device is open */
TEST_ORDER(bar_still_mapped)
{
	struct late *late = self->late;

	late_begin(late, false);
	close_iommufd(late);
	close_fds(late);
	EXPECT_HELD();
	EXPECT_TRUE(dma_works(late));
	start(self);
	EXPECT_HELD();
	late_unmap_bars(late);
	EXPECT_GIVEN_BACK();
}

/*
 * Forked: what the child holds, until it is killed
 */
enum { CHILD_DEVICE = 1, CHILD_BAR = 2, CHILD_IOMMUFD = 4 };

static pid_t holder(struct late *late, unsigned int what)
{
	unsigned int i;
	pid_t pid = fork();

	must(pid >= 0);
	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (i = 0; i < late->nr; i++) {
		if (!(what & CHILD_DEVICE))
			close(late->devices[i].fd);
		if (!(what & CHILD_BAR))
			munmap(late->devices[i].bar0, late->devices[i].bar0_size);
	}
	if (!(what & CHILD_IOMMUFD))
		close(late->iommufd);
	WRITE_ONCE(late->ready, true);
	for (;;) {
		/* Whoever has doorbells rings them until the end */
		if (what & CHILD_BAR)
			late_pump_blind(late);
		else
			pause();
	}
}

static void end(pid_t pid)
{
	must(!kill(pid, SIGKILL));
	must(waitpid(pid, NULL, 0) == pid);
}

static void child_holds(struct __test_metadata *_metadata, struct _test_data_order *self,
			unsigned int what)
{
	struct late *late = self->late;
	pid_t pid;

	late_begin(late, false);
	late->ready = false;
	/* A child would copy the pages that are pinned, and there are none for it */
	start(self);
	pid = holder(late, what);
	ASSERT_TRUE(WAIT_FOR(READ_ONCE(late->ready)));
	EXPECT_HELD();
	late_close(late);
	if (what & (CHILD_DEVICE | CHILD_BAR)) {
		EXPECT_HELD();
		if (what & CHILD_BAR)
			self->started = now_ms();
		must(!kill(pid, SIGKILL));
	}
	EXPECT_GIVEN_BACK();
	end(pid);
}

TEST_ORDER(child_has_device)
{
	child_holds(_metadata, self, CHILD_DEVICE);
}

TEST_ORDER(child_has_bar)
{
	child_holds(_metadata, self, CHILD_BAR);
}

TEST_ORDER(child_has_iommufd)
{
	child_holds(_metadata, self, CHILD_IOMMUFD);
}

TEST_ORDER(child_has_all)
{
	child_holds(_metadata, self, CHILD_DEVICE | CHILD_BAR | CHILD_IOMMUFD);
}

/*
 * Exited, with whatever it had, or executed something else
 */
static void leaves(struct __test_metadata *_metadata, struct _test_data_order *self,
		   bool iommufd_first, bool exec)
{
	struct late *late = self->late;
	pid_t pid;

	late->ready = false;
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		late_begin(late, iommufd_first);
		late_start(late);
		WRITE_ONCE(late->ready, true);
		if (!exec)
			_exit(0);
		/* The memory and the BARs go with the program, and files are O_CLOEXEC */
		execlp("sleep", "sleep", "60", NULL);
		_exit(1);
	}
	while (!READ_ONCE(late->ready))
		ASSERT_EQ(0, waitpid(pid, NULL, WNOHANG));
	self->started = now_ms();
	EXPECT_GIVEN_BACK();
	if (exec)
		must(!waitpid(pid, NULL, WNOHANG));
	end(pid);
}

TEST_ORDER(exit_device_first)
{
	leaves(_metadata, self, false, false);
}

TEST_ORDER(exit_iommufd_first)
{
	leaves(_metadata, self, true, false);
}

TEST_ORDER(exec)
{
	leaves(_metadata, self, false, true);
}

/*
 * In a message that nobody takes (SCM_RIGHTS). One that holds its own socket is not
 * here: it is given back when the garbage collector of unix sockets runs, at a time
 * of its own, and then in one of these orders.
 */
TEST_ORDER(sent_and_not_received)
{
	struct late *late = self->late;
	int sockets[2], fds[MOST_FDS];
	unsigned int nr = 0, i;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, sockets))
		SKIP(return, "no unix sockets (errno %d)", errno);
	late_begin(late, false);
	for (i = 0; i < late->nr; i++)
		fds[nr++] = late->devices[i].fd;
	fds[nr++] = late->iommufd;
	ASSERT_EQ(0, send_fds(sockets[0], fds, nr, 0));
	close_fds(late);
	close_iommufd(late);
	start(self);
	late_unmap_bars(late);
	EXPECT_HELD();
	close(sockets[0]);
	EXPECT_HELD();
	close(sockets[1]);
	EXPECT_GIVEN_BACK();
}

TEST_HARNESS_MAIN
