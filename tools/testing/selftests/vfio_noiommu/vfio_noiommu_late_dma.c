// SPDX-License-Identifier: GPL-2.0-only
/*
 * No late DMA: no page is given back while a device without an IOMMU may still
 * write to it, however its program ends and whenever it detaches
 *
 * Run as root. Takes the devices named in the fixture's variants away from their
 * drivers, and all of the system's 2 MiB pages for as long as it runs. NOIOMMU_ROUNDS
 * in the environment is how often the tests that repeat something do so.
 */
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/time.h>

#include <linux/kernel.h>

#include "../kselftest_harness.h"
#include "vfio_noiommu_late.h"

FIXTURE(late)
{
	struct late *late;
};

FIXTURE_VARIANT(late)
{
	bool nvme;
	bool edu;
};

FIXTURE_VARIANT_ADD(late, nvme) { .nvme = true };
FIXTURE_VARIANT_ADD(late, edu) { .edu = true };
FIXTURE_VARIANT_ADD(late, both) { .nvme = true, .edu = true };

FIXTURE_SETUP(late)
{
	self->late = late_init(variant->nvme, variant->edu);
	if (!self->late)
		SKIP(return, "no such device without an IOMMU");
}

FIXTURE_TEARDOWN(late)
{
	if (self->late)
		late_close(self->late);
}

/*
 * Killed
 */

/* The process that is killed; with memory of its own, or with memory that is shared */
static __noreturn void child_main(struct late *late, char *shared)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	late_open(late, random() % 2);
	late->mem = shared ? shared : pool_take_all();
	late_map(late);
	late_attach(late, late->ioas);
	late_get_pas(late);
	late_enable(late);
	for (;;) {
		late_pump(late);
		WRITE_ONCE(late->ready, true);
	}
}

static pid_t child_start(struct late *late, char *shared)
{
	pid_t pid;

	late->ready = false;
	late->submitted = 0;
	late->completed = 0;
	random();
	pid = fork();
	must(pid >= 0);
	if (!pid)
		child_main(late, shared);
	return pid;
}

/* Was it by us that it ended? */
static bool child_was_killed(pid_t pid)
{
	int status;

	must(waitpid(pid, &status, 0) == pid);
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

static bool child_is_ready(struct late *late, pid_t pid)
{
	return WAIT_FOR(READ_ONCE(late->ready) || waitpid(pid, NULL, WNOHANG)) &&
	       READ_ONCE(late->ready);
}

TEST_F_TIMEOUT(late, killed, 1200)
{
	unsigned int nr = rounds(variant->edu ? 16 : 32), round, in_flight = 0, early = 0;
	struct late *late = self->late;
	bool master;
	pid_t pid;

	for (round = 0; round < nr; round++) {
		pid = child_start(late, NULL);
		if (round % 8 == 7) {
			/* Whatever it was at */
			usleep(random() % 300000);
			must(!kill(pid, SIGKILL));
			ASSERT_TRUE(child_was_killed(pid));
			EXPECT_FALSE(any_master(late));
			EXPECT_EQ(POOL, free_pages(late));
			early++;
			continue;
		}
		ASSERT_TRUE(child_is_ready(late, pid));
		usleep(random() % 10000);
		must(!kill(pid, SIGKILL));
		/* Not only when it is gone: as soon as a page is free */
		ASSERT_TRUE(late_wait_free(late, &master)) TH_LOG("round %u", round);
		EXPECT_FALSE(master)
			TH_LOG("round %u: a page is free, bus mastering on", round);
		EXPECT_EQ(0, late_watch(late, late_watch_ms(late, round)))
			TH_LOG("round %u", round);
		ASSERT_TRUE(child_was_killed(pid));
		in_flight += late->submitted > late->completed;
	}
	TH_LOG("%u rounds, %u of them with DMA in flight, %u killed anywhere", nr,
	       in_flight, early);
	EXPECT_LT((nr - early) / 2, in_flight);
}

/* Pages that stay somebody's, and may not be written to once the process is gone */
TEST_F_TIMEOUT(late, killed_with_shared_memory, 1200)
{
	unsigned int nr = rounds(variant->edu ? 5 : 10), round;
	struct late *late = self->late;
	char *shared;
	pid_t pid;
	int fd;

	fd = memfd_create("late", MFD_CLOEXEC);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ftruncate(fd, MEMORY));
	shared = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, shared);
	touch_scattered(shared, MEMORY);
	for (round = 0; round < nr; round++) {
		pid = child_start(late, shared);
		ASSERT_TRUE(child_is_ready(late, pid));
		usleep(random() % 10000);
		must(!kill(pid, SIGKILL));
		ASSERT_TRUE(child_was_killed(pid));
		EXPECT_FALSE(any_master(late));
		canary_fill(shared);
		usleep(late_watch_ms(late, round) * 1000);
		EXPECT_EQ(0, canary_lost(shared)) TH_LOG("round %u", round);
		EXPECT_LT(late->completed, late->submitted);
	}
	munmap(shared, MEMORY);
	close(fd);
}

/*
 * Detached
 */

/*
 * A thread that never lets go: it rings doorbells, starts edu and switches bus
 * mastering on whatever happens, and looks for a page that is free meanwhile.
 */
struct nuisance {
	struct late *late;
	bool blind;		/* the memory is about to be gone */
	bool is_blind;
	bool given_back;	/* nobody may write to it */
	bool stop;
	bool master;		/* somebody could */
	unsigned long turns;
};

static void *nuisance_main(void *arg)
{
	struct nuisance *n = arg;
	struct late *late = n->late;

	while (!READ_ONCE(n->stop)) {
		if (!READ_ONCE(n->blind)) {
			late_pump(late);
		} else {
			WRITE_ONCE(n->is_blind, true);
			late_pump_blind(late);
			set_masters(late);
			if ((free_pages(late) || READ_ONCE(n->given_back)) && any_master(late))
				n->master = true;
		}
		WRITE_ONCE(n->turns, n->turns + 1);
	}
	return NULL;
}

/* The ways to give the pages back: in each of them first of all a detach */
enum { DETACH_FROM_IOAS, UNMAP, DESTROY_HWPT, DESTROY_IOAS, NR_WAYS };

static void give_back(struct late *late, unsigned int way, uint32_t hwpt)
{
	late_detach(late);
	if (way == DETACH_FROM_IOAS)
		return;
	must(!free_pages(late) && !any_master(late));
	if (way == UNMAP) {
		must(!ioas_unmap(late->iommufd, late->ioas, IOVA, MEMORY));
		must(!destroy(late->iommufd, hwpt));
		return;
	}
	must(!destroy(late->iommufd, hwpt));
	if (way == DESTROY_IOAS) {
		must(!destroy(late->iommufd, late->ioas));
		must(!ioas_alloc(late->iommufd, &late->ioas));
	}
}

TEST_F_TIMEOUT(late, detached, 1200)
{
	unsigned int nr = rounds(variant->edu ? 10 : 100), round, way, waited = 0;
	struct late *late = self->late;
	pthread_t thread;
	uint32_t hwpt;

	late_open(late, false);
	for (round = 0; round < nr; round++) {
		struct nuisance n = { .late = late };

		way = round % NR_WAYS;
		hwpt = late->ioas;
		late->mem = pool_take_all();
		late_map(late);
		if (way != DETACH_FROM_IOAS)
			ASSERT_EQ(0, hwpt_alloc(late->iommufd, late->devices[0].id,
						late->ioas, 0, &hwpt));
		late_attach(late, hwpt);
		/* What was switched on while it was detached is not on now */
		ASSERT_FALSE(any_master(late));
		late_get_pas(late);
		late_enable(late);
		ASSERT_TRUE(all_masters(late));

		ASSERT_EQ(0, pthread_create(&thread, NULL, nuisance_main, &n));
		/* It works again, and goes on */
		ASSERT_TRUE(WAIT_FOR(late->nvme ?
				     READ_ONCE(late->completed) > 0 :
				     READ_ONCE(n.turns) > 10));
		WRITE_ONCE(n.blind, true);
		ASSERT_TRUE(WAIT_FOR(READ_ONCE(n.is_blind)));
		munmap(late->mem, MEMORY);
		usleep(random() % 3000);
		/* Pinned, and all that keeps them */
		ASSERT_EQ(0, free_pages(late));

		give_back(late, way, hwpt);
		WRITE_ONCE(n.given_back, true);
		EXPECT_EQ(POOL, free_pages(late)) TH_LOG("round %u", round);
		EXPECT_FALSE(any_master(late)) TH_LOG("round %u", round);
		EXPECT_EQ(0, late_watch(late, late_watch_ms(late, round)))
			TH_LOG("round %u", round);
		WRITE_ONCE(n.stop, true);
		ASSERT_EQ(0, pthread_join(thread, NULL));
		EXPECT_FALSE(n.master)
			TH_LOG("round %u: a page is free, bus mastering on", round);
		waited += n.turns > 10;
		if (way == DETACH_FROM_IOAS || way == DESTROY_HWPT)
			ASSERT_EQ(0, ioas_unmap(late->iommufd, late->ioas, IOVA, MEMORY));
	}
	TH_LOG("%u rounds, %u of them with doorbells rung more than ten times", nr, waited);
	EXPECT_LT(nr / 2, waited);
}

/*
 * Bus mastering while detached
 */

/* With memory that is kept, attached and with DMA that works */
static void begin(struct late *late)
{
	late_begin(late, false);
	late_pump(late);
	must(all_masters(late));
}

/* The accesses that can hold the bit */
static void try_master(const struct late_device *device)
{
	config_write(device, PCI_COMMAND, 1, COMMAND_ON);
	config_write(device, PCI_COMMAND, 2, COMMAND_ON);
	config_write(device, PCI_COMMAND, 4, COMMAND_ON);
	/* Not aligned, from the device ID's last byte on */
	config_write(device, PCI_COMMAND - 1, 4, COMMAND_ON << 8);
}

/* Whatever it is told, bus mastering is off, and the program can see it */
static bool is_kept_off(const struct late *late)
{
	bool off = true;
	unsigned int i;

	for (i = 0; i < late->nr; i++) {
		const struct late_device *device = &late->devices[i];

		off = off && !is_master(device);
		try_master(device);
		off = off && !is_master(device) &&
		      !(config_read(device, PCI_COMMAND, 1) & PCI_COMMAND_MASTER) &&
		      !(config_read(device, PCI_COMMAND, 2) & PCI_COMMAND_MASTER) &&
		      !(config_read(device, PCI_COMMAND, 4) & PCI_COMMAND_MASTER);
	}
	return off;
}

TEST_F(late, stays_off_while_detached)
{
	static const struct { unsigned int reg, size, shift; } accesses[] = {
		{ PCI_COMMAND, 1, 0 }, { PCI_COMMAND, 2, 0 }, { PCI_COMMAND, 4, 0 },
		{ PCI_COMMAND - 1, 4, 8 },
	};
	struct late *late = self->late;
	unsigned int i, a;

	begin(late);
	late_detach(late);
	for (i = 0; i < late->nr; i++) {
		struct late_device *device = &late->devices[i];

		EXPECT_FALSE(is_master(device));
		for (a = 0; a < ARRAY_SIZE(accesses); a++) {
			uint16_t bits = PCI_COMMAND_MEMORY | PCI_COMMAND_IO;

			/* All bits but the one are the program's to write */
			set_command(device, 0);
			config_write(device, accesses[a].reg, accesses[a].size,
				     (bits | PCI_COMMAND_MASTER) << accesses[a].shift);
			EXPECT_EQ(bits, real_command(device) &
					(bits | PCI_COMMAND_MASTER));
			EXPECT_EQ(bits, config_read(device, PCI_COMMAND, 2) &
					(bits | PCI_COMMAND_MASTER));
			EXPECT_FALSE(config_read(device, PCI_COMMAND, 1) &
				     PCI_COMMAND_MASTER);
			EXPECT_FALSE(config_read(device, PCI_COMMAND, 4) &
				     PCI_COMMAND_MASTER);
		}
		set_command(device, PCI_COMMAND_MEMORY);
	}

	/* Attaching allows it and does not do it */
	late_attach(late, late->ioas);
	EXPECT_FALSE(any_master(late));
	for (i = 0; i < late->nr; i++) {
		for (a = 0; a < ARRAY_SIZE(accesses); a++) {
			set_command(&late->devices[i], PCI_COMMAND_MEMORY);
			EXPECT_FALSE(is_master(&late->devices[i]));
			config_write(&late->devices[i], accesses[a].reg,
				     accesses[a].size, COMMAND_ON << accesses[a].shift);
			EXPECT_TRUE(is_master(&late->devices[i]));
		}
	}
	late_enable(late);
	EXPECT_TRUE(dma_works(late));
}

TEST_F(late, detached_twice)
{
	struct late *late = self->late;

	begin(late);
	late_detach(late);
	late_detach(late);
	EXPECT_TRUE(is_kept_off(late));
	late_attach(late, late->ioas);
	late_enable(late);
	EXPECT_TRUE(dma_works(late));
}

TEST_F(late, failed_attach_changes_nothing)
{
	struct late *late = self->late;
	unsigned int i;

	begin(late);
	late_detach(late);
	for (i = 0; i < late->nr; i++) {
		uint32_t bad = 0xdead, id = late->devices[i].id;
		struct vfio_device_attach_iommufd_pt readonly = {
			.argsz = sizeof(readonly),
			.pt_id = late->ioas,
		}, *arg = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		EXPECT_EQ(ENOENT, attach_pt(late->devices[i].fd, &bad));
		EXPECT_TRUE(is_kept_off(late));
		EXPECT_EQ(EINVAL, attach_pt(late->devices[i].fd, &id));
		EXPECT_TRUE(is_kept_off(late));

		/* Attached, and then undone, as the ID can't be told */
		ASSERT_NE(MAP_FAILED, arg);
		*arg = readonly;
		ASSERT_EQ(0, mprotect(arg, PAGE, PROT_READ));
		EXPECT_EQ(EFAULT, ERRNO_OF(ioctl(late->devices[i].fd,
						 VFIO_DEVICE_ATTACH_IOMMUFD_PT, arg)));
		EXPECT_TRUE(is_kept_off(late));
		munmap(arg, PAGE);
	}
}

/* An attach whose answer can't be written detaches again, also what was attached */
TEST_F(late, undone_attach)
{
	struct late *late = self->late;
	struct vfio_device_attach_iommufd_pt *arg;
	unsigned int i;

	begin(late);
	arg = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, arg);
	arg->argsz = sizeof(*arg);
	arg->pt_id = late->ioas;
	ASSERT_EQ(0, mprotect(arg, PAGE, PROT_READ));
	late_start(late);
	munmap(late->mem, MEMORY);
	for (i = 0; i < late->nr; i++)
		EXPECT_EQ(EFAULT, ERRNO_OF(ioctl(late->devices[i].fd,
						 VFIO_DEVICE_ATTACH_IOMMUFD_PT, arg)));
	EXPECT_EQ(POOL, free_pages(late));
	EXPECT_TRUE(is_kept_off(late));
	EXPECT_EQ(0, late_watch(late, EDU_MS + 20));
}

static void set_power(const struct late_device *device, unsigned int pm, uint16_t state)
{
	config_write(device, pm + PCI_PM_CTRL, 2, state);
	usleep(20000);
}

static int low_power(const struct late_device *device, uint32_t which)
{
	struct vfio_device_feature feature = {
		.argsz = sizeof(feature),
		.flags = VFIO_DEVICE_FEATURE_SET | which,
	};

	return ERRNO_OF(ioctl(device->fd, VFIO_DEVICE_FEATURE, &feature));
}

/* What saves the registers and restores them must not restore what was before */
static unsigned int try_reset(struct __test_metadata *_metadata, struct late *late,
			      struct late_device *device)
{
	if (ioctl(device->fd, VFIO_DEVICE_RESET))
		return 0;
	set_command(device, COMMAND_ON);
	late_detach(late);
	EXPECT_TRUE(is_kept_off(late));
	EXPECT_EQ(0, ioctl(device->fd, VFIO_DEVICE_RESET));
	EXPECT_TRUE(is_kept_off(late));
	late_attach(late, late->ioas);
	EXPECT_FALSE(any_master(late));
	return 1;
}

static unsigned int try_d3hot(struct __test_metadata *_metadata, struct late *late,
			      struct late_device *device)
{
	unsigned int pm = find_pm(device->fd);

	if (!pm)
		return 0;
	set_command(device, COMMAND_ON);
	set_power(device, pm, 3);
	late_detach(late);
	EXPECT_FALSE(is_master(device));
	set_power(device, pm, 0);
	EXPECT_TRUE(is_kept_off(late));
	set_power(device, pm, 3);
	set_power(device, pm, 0);
	EXPECT_TRUE(is_kept_off(late));
	late_attach(late, late->ioas);
	EXPECT_FALSE(any_master(late));
	return 1;
}

static unsigned int try_low_power(struct __test_metadata *_metadata, struct late *late,
				  struct late_device *device)
{
	set_command(device, COMMAND_ON);
	if (low_power(device, VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY))
		return 0;
	late_detach(late);
	EXPECT_EQ(0, low_power(device, VFIO_DEVICE_FEATURE_LOW_POWER_EXIT));
	EXPECT_TRUE(is_kept_off(late));
	EXPECT_EQ(0, low_power(device, VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY));
	EXPECT_EQ(0, low_power(device, VFIO_DEVICE_FEATURE_LOW_POWER_EXIT));
	EXPECT_TRUE(is_kept_off(late));
	late_attach(late, late->ioas);
	EXPECT_FALSE(any_master(late));
	return 1;
}

TEST_F(late, stays_off_through_resets_and_power_states)
{
	unsigned int resets = 0, d3hots = 0, low_powers = 0, i;
	struct late *late = self->late;

	begin(late);
	for (i = 0; i < late->nr; i++) {
		resets += try_reset(_metadata, late, &late->devices[i]);
		d3hots += try_d3hot(_metadata, late, &late->devices[i]);
		low_powers += try_low_power(_metadata, late, &late->devices[i]);
	}
	TH_LOG("devices that were reset: %u, in D3hot: %u, in low power: %u", resets,
	       d3hots, low_powers);
	EXPECT_LT(0, resets + d3hots + low_powers);
	late_enable(late);
	EXPECT_TRUE(dma_works(late));
}

/*
 * Others that read, modify and write the command register: INTx, which an interrupt,
 * the program and a write of the register mask and unmask, and a reset through sysfs,
 * which saves the register and restores it. None of them may bring back what a detach
 * has switched off.
 */
#define EDU_IRQ_RAISE	0x60

struct modifier {
	struct late *late;
	bool stop;
	unsigned int turns;
};

static void *change_intx(void *arg)
{
	struct modifier *m = arg;
	struct late *late = m->late;
	unsigned int i;

	while (!READ_ONCE(m->stop)) {
		for (i = 0; i < late->nr; i++) {
			must(!set_intx(late->devices[i].fd, VFIO_IRQ_SET_ACTION_MASK, -1));
			must(!set_intx(late->devices[i].fd, VFIO_IRQ_SET_ACTION_UNMASK, -1));
		}
		WRITE_ONCE(m->turns, m->turns + 1);
	}
	return NULL;
}

static void *change_intx_by_register(void *arg)
{
	struct modifier *m = arg;
	struct late *late = m->late;
	unsigned int i;

	while (!READ_ONCE(m->stop)) {
		for (i = 0; i < late->nr; i++) {
			config_write(&late->devices[i], PCI_COMMAND, 2,
				     COMMAND_ON | PCI_COMMAND_INTX_DISABLE);
			config_write(&late->devices[i], PCI_COMMAND, 2, COMMAND_ON);
		}
		WRITE_ONCE(m->turns, m->turns + 1);
	}
	return NULL;
}

static void *reset_by_sysfs(void *arg)
{
	struct modifier *m = arg;
	char path[600];

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/reset",
		 m->late->devices[0].bdf);
	while (!READ_ONCE(m->stop)) {
		must(!write_file(path, "1"));
		WRITE_ONCE(m->turns, m->turns + 1);
		/* Whoever waits for the configuration space gets it */
		usleep(1000);
	}
	return NULL;
}

static void detach_while(struct __test_metadata *_metadata, struct late *late,
			 void *(*modify)(void *), unsigned int nr, unsigned int enough)
{
	struct modifier m = { .late = late };
	unsigned int round, looks, i, detached = 0;
	pthread_t thread;

	ASSERT_EQ(0, pthread_create(&thread, NULL, modify, &m));
	for (round = 0; round < nr || READ_ONCE(m.turns) < enough; round++) {
		late_attach(late, late->ioas);
		for (i = 0; i < late->nr; i++)
			config_write(&late->devices[i], PCI_COMMAND, 2, COMMAND_ON);
		usleep(random() % 2000);
		late_detach(late);
		/* Whoever had read the register before has written it by then */
		for (looks = 0; looks < 20; looks++)
			if (any_master(late))
				break;
		EXPECT_EQ(20, looks) TH_LOG("round %u: bus mastering is on again", round);
		detached += looks == 20;
		if (looks < 20)
			break;
	}
	WRITE_ONCE(m.stop, true);
	ASSERT_EQ(0, pthread_join(thread, NULL));
	TH_LOG("detached %u times, register changed %u times", detached, m.turns);
}

/* Without memory: there is nothing that a device could be told */
static void begin_with_intx(struct __test_metadata *_metadata, struct late *late, int event)
{
	unsigned int i;

	late_open(late, false);
	for (i = 0; i < late->nr; i++) {
		config_write(&late->devices[i], PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
		bar0_map(&late->devices[i]);
		ASSERT_EQ(0, set_intx(late->devices[i].fd, VFIO_IRQ_SET_ACTION_TRIGGER, event));
	}
	/* One that is there as soon as it is unmasked */
	if (late->edu)
		writel(1, late->edu->bar0 + EDU_IRQ_RAISE);
}

TEST_F_TIMEOUT(late, detached_while_intx_is_masked, 300)
{
	int event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	ASSERT_LE(0, event);
	begin_with_intx(_metadata, self->late, event);
	detach_while(_metadata, self->late, change_intx, 300, 300);
	detach_while(_metadata, self->late, change_intx_by_register, 300, 300);
	close(event);
}

TEST_F_TIMEOUT(late, detached_while_reset_by_sysfs, 300)
{
	char path[600];

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/reset",
		 self->late->devices[0].bdf);
	if (access(path, F_OK))
		SKIP(return, "no reset of this device");
	late_open(self->late, false);
	detach_while(_metadata, self->late, reset_by_sysfs, 20, 10);
}

/*
 * A signal ends the wait for a reset, and the device is attached as before. Most
 * detaches come between two resets, so go on until some have waited.
 */
static void on_alarm(int signal)
{
}

TEST_F_TIMEOUT(late, interrupted_while_reset_by_sysfs, 300)
{
	static const struct itimerval on = {
		.it_value.tv_usec = 2000,
		.it_interval.tv_usec = 2000,
	}, off;
	struct sigaction action = { .sa_handler = on_alarm };
	struct late *late = self->late;
	struct modifier m = { .late = late };
	unsigned int interrupted = 0, detached = 0;
	char path[600];
	pthread_t thread;
	sigset_t alarm;
	int rc;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/reset",
		 late->devices[0].bdf);
	if (late->nr > 1 || access(path, F_OK))
		SKIP(return, "not one device with a reset");
	late_open(late, false);
	ASSERT_EQ(0, sigaction(SIGALRM, &action, NULL));
	/* The thread inherits the mask */
	sigemptyset(&alarm);
	sigaddset(&alarm, SIGALRM);
	ASSERT_EQ(0, pthread_sigmask(SIG_BLOCK, &alarm, NULL));
	ASSERT_EQ(0, pthread_create(&thread, NULL, reset_by_sysfs, &m));
	ASSERT_EQ(0, pthread_sigmask(SIG_UNBLOCK, &alarm, NULL));
	while (interrupted < 5 || detached < 5) {
		late->mem = pool_take_all();
		late_map(late);
		late_attach(late, late->ioas);
		set_masters(late);
		munmap(late->mem, MEMORY);
		for (;;) {
			must(!setitimer(ITIMER_REAL, &on, NULL));
			rc = detach_pt(late->devices[0].fd);
			must(!setitimer(ITIMER_REAL, &off, NULL));
			if (rc != EINTR)
				break;
			interrupted++;
			EXPECT_EQ(0, free_pages(late));
			EXPECT_TRUE(all_masters(late));
		}
		ASSERT_EQ(0, rc);
		detached++;
		EXPECT_EQ(POOL, free_pages(late));
		EXPECT_FALSE(any_master(late));
		ASSERT_EQ(0, ioas_unmap(late->iommufd, late->ioas, IOVA, MEMORY));
	}
	WRITE_ONCE(m.stop, true);
	ASSERT_EQ(0, pthread_join(thread, NULL));
	TH_LOG("detached %u times, interrupted %u times", detached, interrupted);
}

/* Threads that access the device all the time do not keep a detach away */
#define NR_ACCESSORS 32

struct accessor {
	struct late *late;
	pthread_t thread;
	bool *stop;
	unsigned long turns;
};

static void *access_device(void *arg)
{
	struct accessor *a = arg;
	struct late *late = a->late;
	unsigned int i;
	uint32_t value;

	while (!READ_ONCE(*a->stop)) {
		for (i = 0; i < late->nr; i++) {
			struct late_device *device = &late->devices[i];

			must(pread(device->fd, &value, 4, device->bar0_offset) == 4);
			config_read(device, PCI_COMMAND, 2);
		}
		WRITE_ONCE(a->turns, a->turns + 1);
	}
	return NULL;
}

static unsigned long sum_of_turns(const struct accessor *accessors)
{
	unsigned long sum = 0;
	unsigned int i;

	for (i = 0; i < NR_ACCESSORS; i++)
		sum += READ_ONCE(accessors[i].turns);
	return sum;
}

TEST_F_TIMEOUT(late, detached_while_accessed, 300)
{
	struct accessor accessors[NR_ACCESSORS] = {};
	struct late *late = self->late;
	unsigned long turns, most = 0;
	unsigned int round, i;
	uint64_t start, longest = 0;
	bool stop = false;

	late_begin(late, false);
	for (i = 0; i < NR_ACCESSORS; i++) {
		accessors[i].late = late;
		accessors[i].stop = &stop;
		ASSERT_EQ(0, pthread_create(&accessors[i].thread, NULL, access_device,
					    &accessors[i]));
	}
	for (i = 0; i < NR_ACCESSORS; i++)
		ASSERT_TRUE(WAIT_FOR(READ_ONCE(accessors[i].turns)));
	for (round = 0; round < rounds(20); round++) {
		turns = sum_of_turns(accessors);
		start = now_ms();
		late_detach(late);
		longest = max(longest, now_ms() - start);
		most = max(most, sum_of_turns(accessors) - turns);
		EXPECT_FALSE(any_master(late));
		late_attach(late, late->ioas);
		set_masters(late);
		EXPECT_TRUE(all_masters(late));
		/* They still do */
		turns = sum_of_turns(accessors);
		ASSERT_TRUE(WAIT_FOR(sum_of_turns(accessors) != turns));
	}
	WRITE_ONCE(stop, true);
	for (i = 0; i < NR_ACCESSORS; i++)
		ASSERT_EQ(0, pthread_join(accessors[i].thread, NULL));
	TH_LOG("a detach took up to %llu ms, and %lu turns of others",
	       (unsigned long long)longest, most);
}

/* To another page table and back: with DMA, and without a gap in it */
TEST_F(late, replaced)
{
	struct late *late = self->late;
	unsigned int i, round;
	uint32_t hwpts[2], bad;

	begin(late);
	/* The first of them is of a device that was detached meanwhile */
	late_detach(late);
	EXPECT_TRUE(is_kept_off(late));
	late_attach(late, late->ioas);
	late_enable(late);
	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, hwpt_alloc(late->iommufd, late->devices[0].id, late->ioas,
					0, &hwpts[i]));
	for (round = 0; round < 6; round++) {
		late_attach(late, round % 3 == 2 ? late->ioas : hwpts[round % 3]);
		EXPECT_TRUE(all_masters(late));
		EXPECT_EQ(0, free_pages(late));
		EXPECT_TRUE(dma_works(late));
	}
	/* And one that fails */
	for (i = 0; i < late->nr; i++) {
		bad = 0xdead;
		EXPECT_EQ(ENOENT, attach_pt(late->devices[i].fd, &bad));
	}
	EXPECT_TRUE(all_masters(late));
	EXPECT_TRUE(dma_works(late));
}

/* As in Linux 7.3: there is nothing of this program that it could be late for */
TEST_F(late, never_attached)
{
	struct late *late = self->late;
	unsigned int i;

	late_open(late, false);
	EXPECT_FALSE(any_master(late));
	for (i = 0; i < late->nr; i++) {
		try_master(&late->devices[i]);
		EXPECT_TRUE(is_master(&late->devices[i]));
		EXPECT_TRUE(config_read(&late->devices[i], PCI_COMMAND, 2) &
			    PCI_COMMAND_MASTER);
	}
}

/* The next program finds nothing of it */
TEST_F(late, closed_while_detached)
{
	struct late *late = self->late;
	unsigned int i;

	begin(late);
	late_detach(late);
	EXPECT_TRUE(is_kept_off(late));
	munmap(late->mem, MEMORY);
	late_close(late);
	EXPECT_FALSE(any_master(late));

	late_open(late, false);
	for (i = 0; i < late->nr; i++) {
		try_master(&late->devices[i]);
		EXPECT_TRUE(is_master(&late->devices[i]));
	}
	late_close(late);
	late_begin(late, false);
	EXPECT_TRUE(dma_works(late));
}

/* One alone: the memory stays the others', and is not its own any more */
TEST_F(late, detached_alone)
{
	struct late *late = self->late;
	unsigned int i, other;

	begin(late);
	for (i = 0; i < late->nr; i++) {
		struct late_device *off = &late->devices[i];
		uint32_t pt_id = late->ioas;

		must(!detach_pt(off->fd));
		EXPECT_FALSE(is_master(off));
		try_master(off);
		EXPECT_FALSE(is_master(off));
		EXPECT_EQ(0, free_pages(late));
		for (other = 0; other < late->nr; other++)
			if (other != i)
				EXPECT_TRUE(is_master(&late->devices[other]));
		if (late->nvme && late->nvme != off)
			EXPECT_TRUE(nvme_works(late));
		if (late->edu && late->edu != off)
			EXPECT_TRUE(edu_works(late));
		must(!attach_pt(off->fd, &pt_id));
		late_enable(late);
		EXPECT_TRUE(dma_works(late));
	}
}

/*
 * A BAR that was shared as a dma-buf and is revoked
 */
#define BAR_INDEX 2

FIXTURE(revoked)
{
	struct late *late;
	struct late_device exporter;
	uint32_t *bar;
	uint64_t size;
	uint64_t pa;
	int dmabuf;
};

static int export_bar(const struct late_device *device, uint64_t size)
{
	struct {
		struct vfio_device_feature feature;
		struct vfio_device_feature_dma_buf dma_buf;
		struct vfio_region_dma_range range;
	} args = {
		.feature.argsz = sizeof(args),
		.feature.flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF,
		.dma_buf.region_index = BAR_INDEX,
		.dma_buf.open_flags = O_RDWR | O_CLOEXEC,
		.dma_buf.nr_ranges = 1,
		.range.length = size,
	};

	return ioctl(device->fd, VFIO_DEVICE_FEATURE, &args);
}

#define BAR_IOVA (IOVA + MEMORY)

static void open_exporter(struct _test_data_revoked *self)
{
	struct vfio_region_info bar = {
		.argsz = sizeof(bar),
		.index = BAR_INDEX,
	};
	struct late_device *exporter = &self->exporter;

	exporter->fd = cdev_open(exporter->bdf);
	must(exporter->fd >= 0);
	must(!bind_iommufd(exporter->fd, self->late->iommufd, &exporter->id));
	device_open(exporter);
	set_command(exporter, PCI_COMMAND_MEMORY);
	must(!ioctl(exporter->fd, VFIO_DEVICE_GET_REGION_INFO, &bar));
	self->size = bar.size;
	self->bar = mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED,
			 exporter->fd, bar.offset);
	must(self->bar != MAP_FAILED);
}

FIXTURE_SETUP(revoked)
{
	struct late_device *exporter = &self->exporter;
	uint64_t length;

	if (!find_device("0x1af4", "0x1110", exporter->bdf, sizeof(exporter->bdf)))
		SKIP(return, "no ivshmem device (1af4:1110), whose BAR has memory");
	self->late = late_init(false, true);
	if (!self->late)
		SKIP(return, "no edu device (1234:11e8), whose DMA comes late");
	ASSERT_EQ(0, ensure_bound(exporter->bdf));
	late_begin(self->late, false);

	open_exporter(self);
	self->dmabuf = export_bar(exporter, self->size);
	if (self->dmabuf < 0 && errno == ENOTTY)
		SKIP(return, "VFIO exports no dma-buf (CONFIG_PCI_P2PDMA)");
	ASSERT_LE(0, self->dmabuf);
	ASSERT_EQ(0, ioas_map_file(self->late->iommufd, self->late->ioas, self->dmabuf, 0,
				   self->size, BAR_IOVA));
	length = self->size;
	ASSERT_EQ(0, get_pa(self->late->iommufd, self->late->ioas, BAR_IOVA, &length,
			    &self->pa));
	ASSERT_EQ(self->size, length);
}

FIXTURE_TEARDOWN(revoked)
{
	if (!self->late)
		return;
	munmap(self->bar, self->size);
	close(self->exporter.fd);
	close(self->dmabuf);
	late_close(self->late);
}

/* edu writes to the BAR 100 ms from here */
static void start_to_bar(struct _test_data_revoked *self)
{
	must(WAIT_FOR(edu_idle(self->late)));
	WRITE_ONCE(*self->bar, 0x5a5a5a5a);
	must(READ_ONCE(*self->bar) == 0x5a5a5a5a);
	edu_dma(self->late, EDU_BUFFER, self->pa, EDU_DMA_TO_RAM);
}

static bool has_landed(struct _test_data_revoked *self)
{
	must(WAIT_FOR(edu_idle(self->late)));
	return READ_ONCE(*self->bar) == 0x11111111;
}

static int bar_errno(struct _test_data_revoked *self)
{
	return get_pa_errno(self->late->iommufd, self->late->ioas, BAR_IOVA);
}

TEST_F(revoked, not_revoked)
{
	start_to_bar(self);
	EXPECT_TRUE(has_landed(self));
}

/*
 * Nothing translates: who was told the address has it. As long as the exporter's
 * memory is off there is nobody to take the write; when it is on again there is.
 */
TEST_F(revoked, memory_off)
{
	start_to_bar(self);
	set_command(&self->exporter, 0);
	EXPECT_EQ(EINVAL, bar_errno(self));
	must(WAIT_FOR(edu_idle(self->late)));
	set_command(&self->exporter, PCI_COMMAND_MEMORY);
	EXPECT_FALSE(has_landed(self));
}

TEST_F(revoked, memory_off_and_on)
{
	start_to_bar(self);
	set_command(&self->exporter, 0);
	set_command(&self->exporter, PCI_COMMAND_MEMORY);
	EXPECT_EQ(EINVAL, bar_errno(self));
	EXPECT_TRUE(has_landed(self));
}

TEST_F(revoked, unmapped)
{
	start_to_bar(self);
	ASSERT_EQ(0, ioas_unmap(self->late->iommufd, self->late->ioas, BAR_IOVA,
				self->size));
	EXPECT_EQ(ENOENT, bar_errno(self));
	EXPECT_TRUE(has_landed(self));
}

/* To whoever has the exporter next */
TEST_F(revoked, exporter_closed)
{
	start_to_bar(self);
	munmap(self->bar, self->size);
	close(self->exporter.fd);
	EXPECT_EQ(EINVAL, bar_errno(self));
	must(WAIT_FOR(edu_idle(self->late)));

	open_exporter(self);
	EXPECT_TRUE(has_landed(self));
}

/* What stops it is a detach of the importer, or its close */
TEST_F(revoked, importer_detached)
{
	start_to_bar(self);
	late_detach(self->late);
	EXPECT_FALSE(has_landed(self));
}

TEST_F(revoked, importer_closed)
{
	start_to_bar(self);
	late_close_device(self->late->edu);
	usleep((EDU_MS + 20) * 1000);
	EXPECT_EQ(0x5a5a5a5a, READ_ONCE(*self->bar));
}

TEST_HARNESS_MAIN
