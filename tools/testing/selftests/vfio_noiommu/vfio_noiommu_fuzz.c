// SPDX-License-Identifier: GPL-2.0-only
/*
 * Random calls of iommufd and of VFIO devices without an IOMMU
 *
 * Run as root in a guest that is for nothing else, with the devices of pci_ids. Its
 * argument is a list such as calls=1000000,seed=7,seconds=120. With devices=0 there
 * are mock devices only.
 *
 * Workers, processes of four threads, share iommufds, mock devices with and
 * without an IOMMU, VFIO devices, memory and tables of what is alive. A call is
 * made from these tables, so that most succeed, and one in four is then mutated.
 * Meanwhile descriptors are closed, opened anew, duplicated over and taken from other workers,
 * memory is unmapped and moved, and children are forked. A worker ends after a few
 * thousand calls, by exit or by SIGKILL in the middle of the others' calls, and the
 * next one starts from nothing: that bounds memory, and tests teardown.
 *
 * What each thread draws follows from the seed, the worker's number, how many had it
 * before, and the thread's number. What comes of it depends on what the calls find, and
 * that on how threads interleave, which is the scheduler's: a run with the same seed is
 * like the first, not equal to it. With workers=1,threads=1 nobody interferes, and the
 * same calls are made with the same results.
 *
 * What could do harm without a bug of the kernel is left out:
 *
 * - A device that is programmed may write to any memory. So nothing is ever written
 *   to a BAR, by pwrite(), mmap() or ioeventfd, but to the memory of an ivshmem device.
 *   Bus mastering comes and goes with the random writes to config space: devices
 *   that were reset and never programmed have nothing to do with it.
 * - The descriptor of a device has a number that only descriptors of this device ever
 *   have, and what is writable is decided by it, not by what a race made of it.
 * - The kernel writes its results to memory that is there for that, far from the
 *   program's own.
 * - Of IOMMU_TEST_CMD, those that believe userspace, and are right to in a test: the
 *   checks (MD_CHECK_*, DEV_CHECK_CACHE, PASID_CHECK_HWPT), DIRTY, which writes to page
 *   tables that nobody keeps from going away, TRIGGER_VEVENT, which takes any device for
 *   a mock device, and PASID_*, whose user has to detach before it destroys.
 */
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <ucontext.h>

#include <linux/pci_regs.h>

#include "../../../../drivers/iommu/iommufd/iommufd_test.h"
#include "kselftest.h"
#include "vfio_noiommu_util.h"
#include "../iommu/iommufd_noiommu_extents.h"

#define MAX_WORKERS	3
#define MAX_THREADS	4
#define WORKER_CALLS	4000
/* In fewer of a kind none may succeed: 8 % of hot resets do, and many at a time */
#define ENOUGH_CALLS	300
#define NR_IOMMUFD	3
#define NR_DEVICES	8
#define NR_ERRNO	134
/* No call takes this long, unless it hangs: IOMMU_DESTROY may wait for a minute */
#define HANG_SECONDS	300

/*
 * Numbers of descriptors, by what they are. What the kernel returns is the lowest
 * that is free, below these, and is moved here at once.
 */
enum {
	FD_IOMMU	= 100,
	FD_DEVICE	= 110,	/* two of each */
	FD_EVENT	= 130,
	NR_EVENTS	= 4,
	FD_MEMFD	= 135,
	NR_MEMFDS	= 2,
	FD_DMABUF	= 140,	/* of VFIO devices, then mock ones */
	NR_DMABUFS	= 8,
	FD_ACCESS	= 150,
	NR_ACCESSES	= 4,
	FD_FAULT	= 160,
	NR_FAULTS	= 6,	/* fault queues, then vEVENTQs */
	FD_LAST		= 170,
};

/*
 * Addresses. Whatever becomes of a pointer, it does not point to the program, which
 * is below 4 GiB or near the end of the address space.
 */
#define ARENA		((char *)0x240000000UL)
#define ARENA_SIZE	(4UL << 20)
#define ARENA_PAGES	(ARENA_SIZE / PAGE)
#define SCRATCH		((char *)0x250000000UL)	/* 1 MiB of each thread */
#define WINDOWS		((char *)0x280000000UL)	/* 4 MiB of each device's BARs */
#define WINDOW_SIZE	(4UL << 20)

#define IOVA(n)		(4UL * MOCK_APERTURE_START + (n) * 0x10000UL)
#define NR_IOVAS	64

/*
 * The calls: name, weight, and why none succeeds, if so
 */
#define NO_PASID "no device without an IOMMU has PASIDs"
#define NO_MIGRATION "no device here has migration, DMA logging or VFs"
#define IOMMUFD_ROWS(X)							\
	X(DESTROY, "IOMMU_DESTROY", 34, NULL)				\
	X(IOAS_ALLOC, "IOMMU_IOAS_ALLOC", 8, NULL)			\
	X(ALLOW_IOVAS, "IOMMU_IOAS_ALLOW_IOVAS", 6, NULL)		\
	X(IOVA_RANGES, "IOMMU_IOAS_IOVA_RANGES", 8, NULL)		\
	X(MAP, "IOMMU_IOAS_MAP", 60, NULL)				\
	X(MAP_FILE, "IOMMU_IOAS_MAP_FILE, memfd", 30, NULL)		\
	X(MAP_DMABUF, "IOMMU_IOAS_MAP_FILE, dma-buf", 20, NULL)		\
	X(UNMAP, "IOMMU_IOAS_UNMAP", 60, NULL)				\
	X(COPY, "IOMMU_IOAS_COPY", 30, NULL)				\
	X(OPTION_RLIMIT, "IOMMU_OPTION, rlimit mode", 6, NULL)		\
	X(OPTION_HUGE, "IOMMU_OPTION, huge pages", 10, NULL)		\
	X(VFIO_IOAS, "IOMMU_VFIO_IOAS", 8, NULL)			\
	X(HWPT_ALLOC, "IOMMU_HWPT_ALLOC", 30, NULL)			\
	X(HWPT_PASID, "IOMMU_HWPT_ALLOC, PASID", 6, NULL)		\
	X(HWPT_NESTED, "IOMMU_HWPT_ALLOC, nested", 12, NULL)		\
	X(HW_INFO, "IOMMU_GET_HW_INFO", 10, NULL)			\
	X(SET_DIRTY, "IOMMU_HWPT_SET_DIRTY_TRACKING", 10, NULL)		\
	X(GET_DIRTY, "IOMMU_HWPT_GET_DIRTY_BITMAP", 12, NULL)		\
	X(INVALIDATE, "IOMMU_HWPT_INVALIDATE", 12, NULL)		\
	X(FAULT_ALLOC, "IOMMU_FAULT_QUEUE_ALLOC", 8, NULL)		\
	X(VIOMMU_ALLOC, "IOMMU_VIOMMU_ALLOC", 14, NULL)			\
	X(VDEVICE_ALLOC, "IOMMU_VDEVICE_ALLOC", 12, NULL)		\
	X(CHANGE_PROCESS, "IOMMU_IOAS_CHANGE_PROCESS", 10, NULL)	\
	X(VEVENTQ_ALLOC, "IOMMU_VEVENTQ_ALLOC", 10, NULL)		\
	X(HW_QUEUE_ALLOC, "IOMMU_HW_QUEUE_ALLOC", 12, NULL)		\
	X(GET_PA, "IOMMU_IOAS_NOIOMMU_GET_PA", 40, NULL)		\
	X(GET_PA_EXTENTS, "IOMMU_IOAS_NOIOMMU_GET_PA, extents", 50, NULL) \
	X(COMPAT_API, "VFIO_CHECK_EXTENSION and the like", 4, NULL)	\
	X(COMPAT_SET_IOMMU, "VFIO_SET_IOMMU", 4,			\
	  "it wants a group, which is not the cdev's way")		\
	X(COMPAT_INFO, "VFIO_IOMMU_GET_INFO", 4, NULL)			\
	X(COMPAT_MAP, "VFIO_IOMMU_MAP_DMA", 8, NULL)			\
	X(COMPAT_UNMAP, "VFIO_IOMMU_UNMAP_DMA", 8, NULL)		\
	X(IOMMUFD_JUNK, "iommufd, any number", 4, "no such ioctl")	\
	X(QUEUE_READ, "read and write of a fault queue or vEVENTQ", 14, NULL) \
	X(IOMMUFD_MMAP, "mmap of iommufd", 4, NULL)			\
	X(TEST_DEVICE, "IOMMU_TEST_CMD, mock device", 16, NULL)		\
	X(TEST_REPLACE, "IOMMU_TEST_CMD, replace", 24, NULL)		\
	X(TEST_RESERVED, "IOMMU_TEST_CMD, reserved", 4, NULL)		\
	X(TEST_ACCESS, "IOMMU_TEST_CMD, access", 10, NULL)		\
	X(TEST_ACCESS_IOAS, "IOMMU_TEST_CMD, access, replace", 10, NULL) \
	X(TEST_PIN, "IOMMU_TEST_CMD, access, pin", 24, NULL)		\
	X(TEST_UNPIN, "IOMMU_TEST_CMD, access, unpin", 16, NULL)	\
	X(TEST_RW, "IOMMU_TEST_CMD, access, read and write", 20, NULL)	\
	X(TEST_LIMIT, "IOMMU_TEST_CMD, memory limit", 3, NULL)		\
	X(TEST_IOPF, "IOMMU_TEST_CMD, page fault", 8, NULL)		\
	X(TEST_DMABUF, "IOMMU_TEST_CMD, dma-buf", 8, NULL)		\
	X(TEST_REVOKE, "IOMMU_TEST_CMD, dma-buf, revoke", 8, NULL)

#define VFIO_ROWS(X)							\
	X(BIND, "VFIO_DEVICE_BIND_IOMMUFD", 14, NULL)			\
	X(ATTACH, "VFIO_DEVICE_ATTACH_IOMMUFD_PT", 50, NULL)		\
	X(DETACH, "VFIO_DEVICE_DETACH_IOMMUFD_PT", 16, NULL)		\
	X(ATTACH_PASID, "VFIO_DEVICE_ATTACH_IOMMUFD_PT, PASID", 3, NO_PASID) \
	X(DETACH_PASID, "VFIO_DEVICE_DETACH_IOMMUFD_PT, PASID", 2, NULL) \
	X(INFO, "VFIO_DEVICE_GET_INFO", 8, NULL)			\
	X(REGION, "VFIO_DEVICE_GET_REGION_INFO", 12, NULL)		\
	X(IRQ, "VFIO_DEVICE_GET_IRQ_INFO", 8, NULL)			\
	X(SET_IRQS, "VFIO_DEVICE_SET_IRQS", 40, NULL)			\
	X(RESET, "VFIO_DEVICE_RESET", 3, NULL)				\
	X(HOT_INFO, "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", 6, NULL)	\
	X(HOT_RESET, "VFIO_DEVICE_PCI_HOT_RESET", 3, NULL)		\
	X(GFX, "VFIO_DEVICE_QUERY_GFX_PLANE, GET_GFX_DMABUF", 2,	\
	  "no device here is a display")				\
	X(IOEVENTFD, "VFIO_DEVICE_IOEVENTFD", 10, NULL)			\
	X(FEATURE, "VFIO_DEVICE_FEATURE", 10, NULL)			\
	X(FEATURE_DMABUF, "VFIO_DEVICE_FEATURE, dma-buf", 16, NULL)	\
	X(FEATURE_POWER, "VFIO_DEVICE_FEATURE, low power", 6, NULL)	\
	X(FEATURE_MIGRATION, "VFIO_DEVICE_FEATURE, migration, logging, token", 6, \
	  NO_MIGRATION)							\
	X(MIG_PRECOPY, "VFIO_MIG_GET_PRECOPY_INFO", 1, NO_MIGRATION)	\
	X(VFIO_JUNK, "VFIO device, any number", 3, "no such ioctl")	\
	X(CONFIG_READ, "pread of config space", 20, NULL)		\
	X(CONFIG_WRITE, "pwrite of config space", 30, NULL)		\
	X(BAR_READ, "pread of a BAR", 16, NULL)				\
	X(BAR_WRITE, "pwrite of ivshmem's BAR", 8, NULL)		\
	X(BAR_MMAP, "mmap of a BAR", 12, NULL)

/* What threads do beside these is not counted as a call */
#define OTHER_ROWS(X)							\
	X(BAR_TOUCH, "access to a mapped BAR", 16, NULL)		\
	X(BAR_MUNMAP, "munmap of a BAR", 6, NULL)			\
	X(OPEN_DEVICE, "open of a device", 10, NULL)			\
	X(CLOSE, "close", 12, NULL)					\
	X(CLOSE_QUEUE, "IOMMU_DESTROY of a queue that is being closed", 10, NULL) \
	X(OPEN_IOMMUFD, "open of iommufd", 4, NULL)			\
	X(DUP, "dup3 over a descriptor", 6, NULL)			\
	X(GET_FD, "pidfd_getfd of a descriptor", 5, NULL)		\
	X(MEMORY, "mmap, munmap, mremap, madvise, mprotect", 40, NULL)	\
	X(SIGNAL, "write to an eventfd", 8, NULL)			\
	X(FORK, "fork", 2, NULL)

#define ROWS(X) IOMMUFD_ROWS(X) VFIO_ROWS(X) OTHER_ROWS(X)

enum row {
#define X(id, name, weight, why) R_##id,
	ROWS(X)
#undef X
	NR_ROWS,
	FIRST_OTHER = R_BAR_TOUCH,
};

/* Of a VFIO device */
static bool is_vfio(unsigned int row)
{
	return row >= R_BIND && row <= R_OPEN_DEVICE;
}

static const struct {
	const char *name;
	unsigned int weight;
	const char *why_none;
} rows[NR_ROWS] = {
#define X(id, name, weight, why) { name, weight, why },
	ROWS(X)
#undef X
};

/* What the processes share */
static struct shared {
	_Atomic uint64_t total;
	_Atomic bool stop;
	_Atomic uint64_t calls[NR_ROWS];
	_Atomic uint64_t ok[NR_ROWS];
	_Atomic uint64_t errnos[NR_ROWS][NR_ERRNO];
	_Atomic uint64_t kills, forks, crashes;
	_Atomic int pids[MAX_WORKERS];
	/* Of each thread: what it is at, and when it began */
	struct {
		_Atomic int row;
		_Atomic long since;
	} now[MAX_WORKERS][MAX_THREADS];
} *shared;

struct bar {
	uint64_t size;
	bool can_mmap;
	bool can_read;
};

static struct device {
	char bdf[256];
	char path[600];
	bool shmem;
	struct bar bars[VFIO_PCI_NUM_REGIONS];
	unsigned int irqs[VFIO_PCI_NUM_IRQS];
} devices[NR_DEVICES];
static unsigned int nr_devices;
static unsigned int nr_workers = MAX_WORKERS, nr_threads = MAX_THREADS;

/* Of each iommufd: IDs of what is probably alive, and what is mapped */
enum object {
	O_IOAS, O_HWPT_NOIOMMU, O_HWPT_IOMMU, O_HWPT_PARENT, O_HWPT_NESTED,
	O_IDEV_VFIO, O_IDEV_NOIOMMU, O_IDEV_IOMMU, O_STDEV_NOIOMMU, O_STDEV_IOMMU,
	O_VIOMMU, O_VDEVICE, O_FAULT, O_VEVENTQ, O_HW_QUEUE, NR_OBJECTS,
};

#define NR_IDS 6
#define NR_MAPS 32

static struct context {
	uint32_t ids[NR_OBJECTS][NR_IDS];
	struct map {
		uint32_t ioas;
		uint64_t iova;
		uint64_t length;
	} maps[NR_MAPS];
	uint64_t mmap_offset;
} contexts[NR_IOMMUFD];

/* Of each device: the descriptor that is bound, if one is, and to what */
static int bound_fd[NR_DEVICES], bound_to[NR_DEVICES];
/* Of each access descriptor: what it looks in */
static struct {
	int context;
	uint32_t ioas;
} accesses[16];
/* The queue of each descriptor of a fault queue or vEVENTQ */
static struct {
	int context;
	uint32_t id;
} queues[NR_FAULTS];
static struct pin {
	int access;
	uint32_t id;
} pins[8];

struct thread {
	pthread_t pthread;
	uint64_t random;
	unsigned int worker, number;
	unsigned int calls;
	unsigned int kill_at;
	bool child;
	/* Each of its own page, with nothing behind it */
	char *arg, *data, *edge;
	/* The same page, to be written to here, and not there */
	char *alias, *alias_ro;
	uint32_t map_number;
};

static struct thread threads[MAX_THREADS];
/* Volatile, as what is between its two stores is nothing to the compiler */
static __thread sigjmp_buf *volatile escape;

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ULL;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
	return x ^ x >> 31;
}

static uint64_t rnd(struct thread *t)
{
	t->random += 0x9e3779b97f4a7c15ULL;
	return mix(t->random);
}

static uint64_t below(struct thread *t, uint64_t n)
{
	uint64_t random = rnd(t);

	/* There may be no device to choose from */
	return n ? random % n : 0;
}

static bool one_in(struct thread *t, uint64_t n)
{
	return !below(t, n);
}

static long seconds_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

/* Accesses to memory that may be gone: evaluates to whether it was there */
#define GUARDED(code) ({						\
	sigjmp_buf here;						\
	bool there = !sigsetjmp(here, 1);				\
									\
	if (there) {							\
		escape = &here;						\
		code;							\
	}								\
	escape = NULL;							\
	there;								\
})

static void on_fault(int signal, siginfo_t *info, void *context)
{
	ucontext_t *where = context;
	char text[96];
	int len;

	if (escape)
		siglongjmp(*escape, 1);
	len = snprintf(text, sizeof(text), "# signal %d at %p, instruction %#llx\n", signal,
		       info->si_addr, (long long)where->uc_mcontext.gregs[REG_RIP]);
	_exit(write(1, text, len) < 0 ? 98 : 99);
}

/*
 * Counting
 */
static void begin(struct thread *t, enum row row)
{
	if (t->child)
		return;
	shared->now[t->worker][t->number].row = row;
	shared->now[t->worker][t->number].since = seconds_now();
}

static long done(struct thread *t, enum row row, long rc)
{
	int error = rc < 0 ? errno : 0;

	if (!t->child)
		shared->now[t->worker][t->number].since = 0;
	shared->calls[row]++;
	if (error)
		shared->errnos[row][error < NR_ERRNO ? error : 0]++;
	else
		shared->ok[row]++;
	if (row < FIRST_OTHER) {
		shared->total++;
		t->calls++;
	}
	return error ? -error : rc;
}

/* One call that takes no structure */
#define CALL(t, row, call) ({						\
	begin(t, row);							\
	done(t, row, call);						\
})

/*
 * Mutation
 */
static uint64_t boundary(struct thread *t)
{
	static const uint64_t values[] = {
		0, 1, 2, 3, 7, 0x7f, 0xff, 0x100, 511, 512, 0x7ff, 0x800, 0xfff, 0x1000,
		0x1001, 0xffff, 0x10000, 0x1fffff, 0x200000, 0x7fffffff, 0x80000000,
		0xffffffff, 0x100000000ULL, 0x7ffffffff000ULL, 0x800000000000ULL,
		1ULL << 52, 1ULL << 62, (1ULL << 63) - 1, 1ULL << 63, -4096ULL,
		-4095ULL, -2ULL, -1ULL,
	};

	return values[below(t, ARRAY_SIZE(values))];
}

static uint64_t mutate_word(struct thread *t, uint64_t word, unsigned int bits)
{
	switch (below(t, 7)) {
	case 0:
		return word ^ 1ULL << below(t, bits);
	case 1:
		return word + 1 - 2 * below(t, 2);
	case 2:
		return word + (PAGE >> below(t, 2)) * (1 - 2 * below(t, 2));
	case 3:
		return below(t, 40);
	case 4:
		return rnd(t);
	case 5:
		return word ^ 1ULL << below(t, bits) ^ 1ULL << below(t, bits);
	default:
		return boundary(t);
	}
}

static void mutate(struct thread *t, size_t size)
{
	unsigned int n = 1 + below(t, 3);
	size_t at;

	while (n--) {
		if (one_in(t, 3) && size >= 8) {
			uint64_t word;

			at = below(t, size / 8) * 8;
			memcpy(&word, t->arg + at, 8);
			word = mutate_word(t, word, 64);
			memcpy(t->arg + at, &word, 8);
		} else {
			uint32_t word;

			at = below(t, size / 4) * 4;
			memcpy(&word, t->arg + at, 4);
			word = mutate_word(t, word, 32);
			memcpy(t->arg + at, &word, 4);
		}
	}
	/* The tail that has to be 0, or to be there */
	if (one_in(t, 16))
		*(uint32_t *)t->arg = size + 8 * below(t, 9);
	if (one_in(t, 24))
		t->arg[size + below(t, 64)] = rnd(t);
}

static int device_of_fd(int fd)
{
	int device = (fd - FD_DEVICE) / 2;

	return fd >= FD_DEVICE && device < (int)nr_devices ? device : -1;
}

static bool may_write(int fd)
{
	int device = device_of_fd(fd);

	return device >= 0 && devices[device].shmem;
}

/* What a mutation must not become, see the top of the file */
static void restrain(struct thread *t, int fd, unsigned long cmd, uint32_t op)
{
	struct iommu_test_cmd *test = (void *)t->arg;

	if (cmd == IOMMU_HWPT_INVALIDATE) {
		struct iommu_hwpt_invalidate *inv = (void *)t->arg;

		/* The mock driver allocates whatever it is told to */
		inv->entry_num %= 256;
	}
	if (cmd == VFIO_DEVICE_IOEVENTFD) {
		struct vfio_device_ioeventfd *io = (void *)t->arg;

		if (!may_write(fd) || io->offset >> 40 != VFIO_PCI_BAR2_REGION_INDEX)
			io->offset = ~0ULL;
	}
	if (cmd != IOMMU_TEST_CMD)
		return;
	test->op = op;
	switch (op) {
	case IOMMU_TEST_OP_ACCESS_PAGES:
		/* Both are taken for true */
		test->access_pages.iova &= (1ULL << 62) - 1;
		test->access_pages.uptr = 0;
		break;
	case IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT:
		test->memory_limit.limit = 16 << below(t, 13);
		break;
	case IOMMU_TEST_OP_DMABUF_GET:
		test->dmabuf_get.length %= 64 * PAGE + 1;
		break;
	}
}

/* The structure of t->arg, mutated or not, to the kernel */
static long issue(struct thread *t, enum row row, int fd, unsigned long cmd, size_t size)
{
	uint32_t op = ((struct iommu_test_cmd *)t->arg)->op;
	void *arg = t->arg;
	bool attach;
	long rc;

	if (one_in(t, 4)) {
		mutate(t, size);
		restrain(t, fd, cmd, op);
	}
	/* An attach whose answer can't be written is undone */
	attach = row == R_ATTACH || row == R_ATTACH_PASID;
	if (one_in(t, attach ? 12 : 24)) {
		switch (attach && one_in(t, 2) ? 2 : below(t, 5)) {
		case 0:
			arg = NULL;
			break;
		case 1:
			arg = (void *)0xffff888000100000UL;
			break;
		case 2:	/* the kernel can read it all, and write nothing */
			memcpy(t->alias, t->arg, PAGE);
			arg = t->alias_ro;
			break;
		case 3:	/* just fits */
			arg = t->edge + PAGE - size;
			memcpy(arg, t->arg, size);
			break;
		case 4:	/* its end is missing */
			arg = t->edge + PAGE - size + 4;
			memcpy(arg, t->arg, size - 4);
			break;
		}
	}
	/* The wrong kind of descriptor */
	if (cmd != VFIO_DEVICE_IOEVENTFD && one_in(t, 128))
		fd = FD_IOMMU + below(t, FD_LAST - FD_IOMMU);
	begin(t, row);
	rc = done(t, row, ioctl(fd, cmd, arg));
	if (rc == -EBADF && device_of_fd(fd) >= 0)
		bound_fd[device_of_fd(fd)] = 0;
	if (arg == t->edge + PAGE - size)
		memcpy(t->arg, arg, size);
	return rc;
}

#define ARG(type) ({							\
	memset(t->arg, 0, 512);						\
	*(uint32_t *)t->arg = sizeof(type);				\
	(type *)t->arg;							\
})
#define ISSUE(row, fd, cmd) issue(t, row, fd, cmd, sizeof(*c))

/*
 * The tables. Threads share them and don't lock: a stale ID is a test too.
 */
static uint32_t pick(struct thread *t, int n, enum object type)
{
	unsigned int i, first = below(t, NR_IDS);
	uint32_t *ids = contexts[n].ids[type];

	for (i = 0; i < NR_IDS; i++)
		if (ids[(first + i) % NR_IDS])
			return ids[(first + i) % NR_IDS];
	return 1 + below(t, 30);
}

static bool have(int n, enum object type)
{
	unsigned int i;

	for (i = 0; i < NR_IDS; i++)
		if (contexts[n].ids[type][i])
			return true;
	return false;
}

static void keep(struct thread *t, int n, enum object type, uint32_t id)
{
	uint32_t *ids = contexts[n].ids[type];
	unsigned int i;

	for (i = 0; i < NR_IDS; i++) {
		if (!ids[i]) {
			ids[i] = id;
			return;
		}
	}
	ids[below(t, NR_IDS)] = id;
}

static void forget(int n, uint32_t id)
{
	unsigned int type, i;

	for (type = 0; type < NR_OBJECTS; type++)
		for (i = 0; i < NR_IDS; i++)
			if (contexts[n].ids[type][i] == id)
				contexts[n].ids[type][i] = 0;
}

static void keep_map(struct thread *t, int n, uint32_t ioas, uint64_t iova,
		     uint64_t length)
{
	contexts[n].maps[below(t, NR_MAPS)] = (struct map) { ioas, iova, length };
}

static struct map *pick_map(struct thread *t, int n)
{
	unsigned int i, first = below(t, NR_MAPS);

	for (i = 0; i < NR_MAPS - 1; i++)
		if (contexts[n].maps[(first + i) % NR_MAPS].length)
			break;
	return &contexts[n].maps[(first + i) % NR_MAPS];
}

static void *some_va(struct thread *t)
{
	if (one_in(t, 24))
		return WINDOWS + below(t, nr_devices) * WINDOW_SIZE;
	return ARENA + below(t, ARENA_PAGES - 16) * PAGE;
}

static uint64_t some_length(struct thread *t)
{
	if (one_in(t, 16))
		return HUGE_PAGE;
	return (1 + below(t, 16)) * PAGE;
}

static uint64_t some_iova(struct thread *t)
{
	return IOVA(below(t, NR_IOVAS));
}

/* A descriptor from the kernel to a number of its kind */
static void place(int fd, int number)
{
	dup3(fd, number, O_CLOEXEC);
	close(fd);
}

static void place_queue(int n, uint32_t id, int fd, int number)
{
	place(fd, FD_FAULT + number);
	queues[number].context = n;
	queues[number].id = id;
}

/* Mostly the one that is bound */
static int some_device_fd(struct thread *t, int device)
{
	if (bound_fd[device] && !one_in(t, 16))
		return bound_fd[device];
	return FD_DEVICE + 2 * device + one_in(t, 4);
}

/* Mostly one that is bound, or of this worker's share: it can be bound once */
static int some_device(struct thread *t)
{
	unsigned int i, device = below(t, nr_devices);

	if (one_in(t, 16))
		return device;
	for (i = 0; i < nr_devices; i++, device = (device + 1) % nr_devices)
		if (bound_fd[device])
			return device;
	for (i = 0; i < nr_devices; i++, device = (device + 1) % nr_devices)
		if (device % nr_workers == t->worker)
			return device;
	return device;
}

static int some_shmem(struct thread *t)
{
	unsigned int i;

	for (i = 0; i < nr_devices; i++)
		if (devices[i].shmem)
			return i;
	return below(t, nr_devices);
}

/*
 * iommufd
 */
static void hwpt_alloc_call(struct thread *t, int n, int fd)
{
	struct iommu_hwpt_alloc *c = ARG(struct iommu_hwpt_alloc);
	enum object result = O_HWPT_NOIOMMU;

	c->pt_id = pick(t, n, O_IOAS);
	switch (below(t, 8)) {
	case 0 ... 1:
		c->dev_id = pick(t, n, O_IDEV_NOIOMMU);
		break;
	case 2 ... 3:
		c->dev_id = pick(t, n, O_IDEV_VFIO);
		break;
	case 4 ... 5:
		c->dev_id = pick(t, n, O_IDEV_IOMMU);
		c->flags = IOMMU_HWPT_ALLOC_NEST_PARENT;
		result = O_HWPT_PARENT;
		break;
	case 6:
		c->dev_id = pick(t, n, O_IDEV_IOMMU);
		c->flags = IOMMU_HWPT_ALLOC_DIRTY_TRACKING;
		result = O_HWPT_IOMMU;
		break;
	case 7:
		c->dev_id = pick(t, n, O_IDEV_IOMMU);
		c->flags = IOMMU_HWPT_FAULT_ID_VALID;
		c->fault_id = pick(t, n, O_FAULT);
		result = O_HWPT_IOMMU;
		break;
	}
	if (ISSUE(R_HWPT_ALLOC, fd, IOMMU_HWPT_ALLOC) >= 0)
		keep(t, n, result, c->out_hwpt_id);
}

static void hwpt_pasid_call(struct thread *t, int n, int fd)
{
	struct iommu_hwpt_alloc *c = ARG(struct iommu_hwpt_alloc);

	c->dev_id = pick(t, n, one_in(t, 8) ? O_IDEV_VFIO : O_IDEV_IOMMU);
	c->pt_id = pick(t, n, O_IOAS);
	c->flags = IOMMU_HWPT_ALLOC_PASID;
	if (ISSUE(R_HWPT_PASID, fd, IOMMU_HWPT_ALLOC) >= 0)
		keep(t, n, O_HWPT_IOMMU, c->out_hwpt_id);
}

static void hwpt_nested_call(struct thread *t, int n, int fd)
{
	struct iommu_hwpt_selftest *data = (void *)t->data;
	struct iommu_hwpt_alloc *c = ARG(struct iommu_hwpt_alloc);

	*data = (struct iommu_hwpt_selftest) { .iotlb = IOMMU_TEST_IOTLB_DEFAULT };
	c->dev_id = pick(t, n, O_IDEV_IOMMU);
	c->pt_id = pick(t, n, one_in(t, 2) ? O_VIOMMU : O_HWPT_PARENT);
	c->data_type = IOMMU_HWPT_DATA_SELFTEST;
	c->data_len = sizeof(*data);
	c->data_uptr = (uintptr_t)data;
	if (one_in(t, 4)) {
		c->flags = IOMMU_HWPT_FAULT_ID_VALID;
		c->fault_id = pick(t, n, O_FAULT);
	}
	if (ISSUE(R_HWPT_NESTED, fd, IOMMU_HWPT_ALLOC) >= 0)
		keep(t, n, O_HWPT_NESTED, c->out_hwpt_id);
}

static void map_call(struct thread *t, int n, int fd)
{
	struct iommu_ioas_map *c = ARG(struct iommu_ioas_map);

	c->flags = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;
	if (one_in(t, 8))
		c->flags &= ~IOMMU_IOAS_MAP_WRITEABLE;
	if (!one_in(t, 4))
		c->flags |= IOMMU_IOAS_MAP_FIXED_IOVA;
	c->ioas_id = pick(t, n, O_IOAS);
	c->length = some_length(t);
	c->user_va = (uintptr_t)some_va(t);
	if (c->length == HUGE_PAGE)
		c->user_va = (uintptr_t)ARENA + HUGE_PAGE * below(t, 2);
	if (one_in(t, 8)) {
		c->user_va += below(t, 2) * MOCK_PAGE_SIZE;
		c->length -= MOCK_PAGE_SIZE;
	}
	c->iova = some_iova(t);
	if (ISSUE(R_MAP, fd, IOMMU_IOAS_MAP) >= 0)
		keep_map(t, n, c->ioas_id, c->iova, c->length);
}

static void map_file_call(struct thread *t, int n, int fd, enum row row)
{
	struct iommu_ioas_map_file *c = ARG(struct iommu_ioas_map_file);

	c->flags = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;
	if (!one_in(t, 4))
		c->flags |= IOMMU_IOAS_MAP_FIXED_IOVA;
	c->ioas_id = pick(t, n, O_IOAS);
	c->iova = some_iova(t);
	if (row == R_MAP_FILE) {
		c->fd = FD_MEMFD + below(t, NR_MEMFDS);
		c->length = (1 + below(t, 8)) * PAGE;
		c->start = below(t, 56) * PAGE;
	} else {
		c->fd = FD_DMABUF + below(t, NR_DMABUFS);
		c->length = PAGE;
		c->start = one_in(t, 4) ? PAGE : 0;
	}
	if (ISSUE(row, fd, IOMMU_IOAS_MAP_FILE) >= 0)
		keep_map(t, n, c->ioas_id, c->iova, c->length);
}

static void viommu_call(struct thread *t, int n, int fd)
{
	struct iommu_viommu_selftest *data = (void *)t->data;
	struct iommu_viommu_alloc *c = ARG(struct iommu_viommu_alloc);

	memset(data, 0, sizeof(*data));
	c->type = IOMMU_VIOMMU_TYPE_SELFTEST;
	c->dev_id = pick(t, n, O_IDEV_IOMMU);
	c->hwpt_id = pick(t, n, O_HWPT_PARENT);
	if (one_in(t, 2)) {
		c->data_len = sizeof(*data);
		c->data_uptr = (uintptr_t)data;
	}
	if (ISSUE(R_VIOMMU_ALLOC, fd, IOMMU_VIOMMU_ALLOC) < 0)
		return;
	keep(t, n, O_VIOMMU, c->out_viommu_id);
	if (data->out_mmap_length)
		contexts[n].mmap_offset = data->out_mmap_offset;
}

static void get_pa_call(struct thread *t, int n, int fd, bool extents)
{
	struct iommu_ioas_noiommu_get_pa *c = ARG(struct iommu_ioas_noiommu_get_pa);
	struct map *map = pick_map(t, n);

	c->ioas_id = map->ioas;
	c->iova = map->iova + below(t, map->length | 1);
	c->length = 1 + below(t, one_in(t, 4) ? 1UL << 40 : HUGE_PAGE);
	if (extents) {
		c->flags = IOMMU_NOIOMMU_GET_PA_EXTENTS;
		c->nr_extents = 1 + below(t, 256);
		c->extents = (uintptr_t)(one_in(t, 8) ? some_va(t) : t->data);
	} else if (one_in(t, 2)) {
		c->size = offsetof(struct iommu_ioas_noiommu_get_pa, nr_extents);
	}
	ISSUE(extents ? R_GET_PA_EXTENTS : R_GET_PA, fd, IOMMU_IOAS_NOIOMMU_GET_PA);
}

static void compat_call(struct thread *t, int fd, enum row row)
{
	switch (row) {
	case R_COMPAT_API:
		CALL(t, row, ioctl(fd, one_in(t, 2) ? VFIO_GET_API_VERSION :
				   VFIO_CHECK_EXTENSION, boundary(t)));
		break;
	case R_COMPAT_SET_IOMMU:
		CALL(t, row, ioctl(fd, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
		break;
	case R_COMPAT_INFO: {
		struct vfio_iommu_type1_info *c = ARG(struct vfio_iommu_type1_info);

		c->argsz += below(t, 3) * 64;
		ISSUE(row, fd, VFIO_IOMMU_GET_INFO);
		break;
	}
	case R_COMPAT_MAP: {
		struct vfio_iommu_type1_dma_map *c = ARG(struct vfio_iommu_type1_dma_map);

		c->flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
		c->vaddr = (uintptr_t)some_va(t);
		c->iova = some_iova(t);
		c->size = some_length(t);
		ISSUE(row, fd, VFIO_IOMMU_MAP_DMA);
		break;
	}
	default: {
		struct vfio_iommu_type1_dma_unmap *c =
			ARG(struct vfio_iommu_type1_dma_unmap);

		c->iova = some_iova(t);
		c->size = 0x10000UL << below(t, 4);
		if (one_in(t, 8)) {
			c->flags = VFIO_DMA_UNMAP_FLAG_ALL;
			c->iova = 0;
			c->size = 0;
		}
		ISSUE(row, fd, VFIO_IOMMU_UNMAP_DMA);
		break;
	}
	}
}

/* Answers page faults as a VMM does */
static void queue_call(struct thread *t)
{
	int number = below(t, NR_FAULTS), fd = FD_FAULT + number;
	struct iommu_hwpt_page_response response = {};
	struct pollfd poll_fd = { .fd = fd, .events = POLLIN | POLLOUT };
	long rc;

	poll(&poll_fd, 1, 0);
	rc = CALL(t, R_QUEUE_READ, read(fd, t->data, one_in(t, 8) ? below(t, 128) :
					 sizeof(struct iommu_hwpt_pgfault)));
	if (rc >= (long)sizeof(struct iommu_hwpt_pgfault))
		response.cookie = ((struct iommu_hwpt_pgfault *)t->data)->cookie;
	else if (!one_in(t, 4))
		return;
	response.code = one_in(t, 8) ? boundary(t) : below(t, 2);
	CALL(t, R_QUEUE_READ, write(fd, &response, sizeof(response)));
}

static void iommufd_mmap_call(struct thread *t, int n, int fd)
{
	size_t size = PAGE * (one_in(t, 4) ? 1 + below(t, 3) : 2);
	uint64_t offset = contexts[n].mmap_offset;
	volatile uint32_t *word;

	if (one_in(t, 8))
		offset = boundary(t) & ~(PAGE - 1);
	begin(t, R_IOMMUFD_MMAP);
	word = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
	if (done(t, R_IOMMUFD_MMAP, word == MAP_FAILED ? -1 : 0) < 0)
		return;
	GUARDED((*word)++);
	munmap((void *)word, size);
}

static void option_call(struct thread *t, int n, int fd, enum row row)
{
	struct iommu_option *c = ARG(struct iommu_option);

	c->op = one_in(t, 3) ? IOMMU_OPTION_OP_GET : IOMMU_OPTION_OP_SET;
	c->val64 = below(t, 2);
	if (row == R_OPTION_RLIMIT) {
		c->option_id = IOMMU_OPTION_RLIMIT_MODE;
	} else {
		c->option_id = IOMMU_OPTION_HUGE_PAGES;
		c->object_id = pick(t, n, O_IOAS);
	}
	ISSUE(row, fd, IOMMU_OPTION);
}

/*
 * IOMMU_TEST_CMD
 */
static void test_device_call(struct thread *t, int n, int fd)
{
	struct iommu_test_cmd *c = ARG(struct iommu_test_cmd);
	bool noiommu = one_in(t, 2);

	c->op = IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS;
	c->id = pick(t, n, O_IOAS);
	if (noiommu)
		c->mock_domain_flags.dev_flags = MOCK_FLAGS_DEVICE_NOIOMMU;
	else if (one_in(t, 4))
		c->mock_domain_flags.dev_flags = MOCK_FLAGS_DEVICE_PASID;
	if (ISSUE(R_TEST_DEVICE, fd, IOMMU_TEST_CMD) < 0)
		return;
	keep(t, n, noiommu ? O_STDEV_NOIOMMU : O_STDEV_IOMMU,
	     c->mock_domain_flags.out_stdev_id);
	keep(t, n, noiommu ? O_IDEV_NOIOMMU : O_IDEV_IOMMU,
	     c->mock_domain_flags.out_idev_id);
}

static void test_replace_call(struct thread *t, int n, int fd)
{
	static const enum object iommu[] = {
		O_IOAS, O_IOAS, O_HWPT_IOMMU, O_HWPT_PARENT, O_HWPT_NESTED,
	};
	struct iommu_test_cmd *c = ARG(struct iommu_test_cmd);
	bool noiommu = one_in(t, 2);

	c->op = IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE;
	c->id = pick(t, n, noiommu ? O_STDEV_NOIOMMU : O_STDEV_IOMMU);
	if (noiommu)
		c->mock_domain_replace.pt_id =
			pick(t, n, one_in(t, 2) ? O_IOAS : O_HWPT_NOIOMMU);
	else
		c->mock_domain_replace.pt_id =
			pick(t, n, iommu[below(t, ARRAY_SIZE(iommu))]);
	ISSUE(R_TEST_REPLACE, fd, IOMMU_TEST_CMD);
}

static void test_access_call(struct thread *t, int n, int fd, enum row row)
{
	struct iommu_test_cmd *c = ARG(struct iommu_test_cmd);
	int access = FD_ACCESS + below(t, NR_ACCESSES);
	struct pin *pin = &pins[below(t, ARRAY_SIZE(pins))];
	struct map *map;
	uint64_t offset;
	int i;

	/* Odd ones can pin */
	if (row == R_TEST_PIN)
		access |= 1;
	if (row == R_TEST_PIN || row == R_TEST_RW)
		n = accesses[access - FD_ACCESS].context;
	map = pick_map(t, n);
	for (i = 0; i < NR_MAPS && map->ioas != accesses[access - FD_ACCESS].ioas; i++)
		map = pick_map(t, n);
	offset = below(t, map->length | 1);
	c->id = access;
	switch (row) {
	case R_TEST_ACCESS:
		c->op = IOMMU_TEST_OP_CREATE_ACCESS;
		c->id = map->length ? map->ioas : pick(t, n, O_IOAS);
		if (access & 1)
			c->create_access.flags = MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES;
		if (ISSUE(row, fd, IOMMU_TEST_CMD) >= 0) {
			place(c->create_access.out_access_fd, access);
			accesses[access - FD_ACCESS].context = n;
			accesses[access - FD_ACCESS].ioas = c->id;
		}
		break;
	case R_TEST_ACCESS_IOAS:
		c->op = IOMMU_TEST_OP_ACCESS_REPLACE_IOAS;
		n = accesses[access - FD_ACCESS].context;
		c->access_replace_ioas.ioas_id = pick(t, n, O_IOAS);
		if (ISSUE(row, FD_IOMMU + n, IOMMU_TEST_CMD) >= 0)
			accesses[access - FD_ACCESS].ioas = c->access_replace_ioas.ioas_id;
		break;
	case R_TEST_PIN:
		c->op = IOMMU_TEST_OP_ACCESS_PAGES;
		/* Whole pages, as far as the memory below is aligned */
		offset &= ~(PAGE - 1);
		c->access_pages.iova = map->iova + offset;
		c->access_pages.length = map->length - offset;
		if (!one_in(t, 4))
			c->access_pages.length = PAGE;
		c->access_pages.flags = below(t, 2) * MOCK_FLAGS_ACCESS_WRITE;
		if (ISSUE(row, fd, IOMMU_TEST_CMD) >= 0)
			*pin = (struct pin) { access, c->access_pages.out_access_pages_id };
		break;
	case R_TEST_UNPIN:
		for (i = 0; i < (int)ARRAY_SIZE(pins) && !pin->access; i++)
			pin = &pins[i];
		c->op = IOMMU_TEST_OP_DESTROY_ACCESS_PAGES;
		c->id = pin->access;
		c->destroy_access_pages.access_pages_id = pin->id;
		if (ISSUE(row, fd, IOMMU_TEST_CMD) >= 0)
			pin->access = 0;
		break;
	default:
		c->op = IOMMU_TEST_OP_ACCESS_RW;
		c->access_rw.iova = map->iova + offset;
		c->access_rw.length = 1 + below(t, PAGE);
		c->access_rw.uptr = (uintptr_t)(one_in(t, 8) ? some_va(t) : t->data);
		if (one_in(t, 2))
			c->access_rw.flags = MOCK_ACCESS_RW_WRITE;
		if (one_in(t, 4))
			c->access_rw.flags |= MOCK_ACCESS_RW_SLOW_PATH;
		ISSUE(row, fd, IOMMU_TEST_CMD);
		break;
	}
}

static void test_other_call(struct thread *t, int n, int fd, enum row row)
{
	struct iommu_test_cmd *c = ARG(struct iommu_test_cmd);
	long rc;

	switch (row) {
	case R_TEST_RESERVED:
		c->op = IOMMU_TEST_OP_ADD_RESERVED;
		c->id = pick(t, n, O_IOAS);
		/* Away from where maps are, most of the time */
		c->add_reserved.start = IOVA(NR_IOVAS + below(t, 1 << 16));
		c->add_reserved.length = PAGE;
		ISSUE(row, fd, IOMMU_TEST_CMD);
		break;
	case R_TEST_LIMIT:
		c->op = IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT;
		c->memory_limit.limit = one_in(t, 4) ? 32 : 65536;
		ISSUE(row, fd, IOMMU_TEST_CMD);
		break;
	case R_TEST_IOPF:
		c->op = IOMMU_TEST_OP_TRIGGER_IOPF;
		c->trigger_iopf.dev_id = pick(t, n, O_IDEV_IOMMU);
		c->trigger_iopf.grpid = below(t, 1000);
		c->trigger_iopf.addr = some_iova(t);
		ISSUE(row, fd, IOMMU_TEST_CMD);
		break;
	case R_TEST_DMABUF:
		c->op = IOMMU_TEST_OP_DMABUF_GET;
		c->dmabuf_get.length = (1 + below(t, 8)) * PAGE;
		c->dmabuf_get.open_flags = O_CLOEXEC | O_RDWR;
		rc = ISSUE(row, fd, IOMMU_TEST_CMD);
		if (rc > 2 && rc < FD_IOMMU)
			place(rc, FD_DMABUF + NR_DMABUFS / 2 + below(t, NR_DMABUFS / 2));
		break;
	default:
		c->op = IOMMU_TEST_OP_DMABUF_REVOKE;
		c->dmabuf_revoke.dmabuf_fd = FD_DMABUF + NR_DMABUFS / 2 +
					     below(t, NR_DMABUFS / 2);
		c->dmabuf_revoke.revoked = below(t, 2);
		ISSUE(row, fd, IOMMU_TEST_CMD);
		break;
	}
}

static void iommufd_call(struct thread *t, enum row row)
{
	int n = below(t, NR_IOMMUFD), fd = FD_IOMMU + n;

	/* The last one has maps of files only, as CHANGE_PROCESS wants it */
	if (n == NR_IOMMUFD - 1 && row == R_MAP)
		row = one_in(t, 2) ? R_MAP_FILE : R_CHANGE_PROCESS;
	if (n == NR_IOMMUFD - 1 && row == R_COMPAT_MAP)
		n = 0, fd = FD_IOMMU;

	switch (row) {
	case R_DESTROY: {
		struct iommu_destroy *c = ARG(struct iommu_destroy);
		enum object type = below(t, NR_OBJECTS);

		/* As few of a kind as are left, the next call is in want of it */
		if (type <= O_IOAS && !one_in(t, 3))
			type = O_STDEV_NOIOMMU + below(t, NR_OBJECTS - O_STDEV_NOIOMMU);
		c->id = pick(t, n, type);
		if (ISSUE(row, fd, IOMMU_DESTROY) >= 0)
			forget(n, c->id);
		break;
	}
	case R_IOAS_ALLOC: {
		struct iommu_ioas_alloc *c = ARG(struct iommu_ioas_alloc);

		if (ISSUE(row, fd, IOMMU_IOAS_ALLOC) >= 0)
			keep(t, n, O_IOAS, c->out_ioas_id);
		break;
	}
	case R_ALLOW_IOVAS: {
		struct iommu_ioas_allow_iovas *c = ARG(struct iommu_ioas_allow_iovas);
		struct iommu_iova_range *ranges = (void *)t->data;

		c->ioas_id = pick(t, n, O_IOAS);
		c->num_iovas = below(t, 3);
		ranges[0] = (struct iommu_iova_range) { IOVA(0), IOVA(NR_IOVAS) - 1 };
		ranges[1] = (struct iommu_iova_range) { IOVA(NR_IOVAS + 1),
							IOVA(NR_IOVAS + 2) - 1 };
		c->allowed_iovas = (uintptr_t)ranges;
		ISSUE(row, fd, IOMMU_IOAS_ALLOW_IOVAS);
		break;
	}
	case R_IOVA_RANGES: {
		struct iommu_ioas_iova_ranges *c = ARG(struct iommu_ioas_iova_ranges);

		c->ioas_id = pick(t, n, O_IOAS);
		c->num_iovas = below(t, 128);
		c->allowed_iovas = (uintptr_t)t->data;
		ISSUE(row, fd, IOMMU_IOAS_IOVA_RANGES);
		break;
	}
	case R_MAP:
		map_call(t, n, fd);
		break;
	case R_MAP_FILE:
	case R_MAP_DMABUF:
		map_file_call(t, n, fd, row);
		break;
	case R_UNMAP: {
		struct iommu_ioas_unmap *c = ARG(struct iommu_ioas_unmap);
		struct map *map = pick_map(t, n);

		c->ioas_id = map->ioas;
		c->iova = map->iova;
		c->length = map->length;
		if (one_in(t, 32)) {
			c->iova = 0;
			c->length = ~0ULL;
		}
		if (ISSUE(row, fd, IOMMU_IOAS_UNMAP) >= 0)
			map->length = 0;
		break;
	}
	case R_COPY: {
		struct iommu_ioas_copy *c = ARG(struct iommu_ioas_copy);
		struct map *map = pick_map(t, n);

		c->flags = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;
		if (!one_in(t, 4))
			c->flags |= IOMMU_IOAS_MAP_FIXED_IOVA;
		c->src_ioas_id = map->ioas;
		c->dst_ioas_id = pick(t, n, O_IOAS);
		c->src_iova = map->iova;
		c->length = map->length;
		c->dst_iova = some_iova(t);
		if (ISSUE(row, fd, IOMMU_IOAS_COPY) >= 0)
			keep_map(t, n, c->dst_ioas_id, c->dst_iova, c->length);
		break;
	}
	case R_OPTION_RLIMIT:
	case R_OPTION_HUGE:
		option_call(t, n, fd, row);
		break;
	case R_VFIO_IOAS: {
		struct iommu_vfio_ioas *c = ARG(struct iommu_vfio_ioas);

		c->ioas_id = pick(t, n, O_IOAS);
		c->op = one_in(t, 8) ? IOMMU_VFIO_IOAS_CLEAR : below(t, 2);
		ISSUE(row, fd, IOMMU_VFIO_IOAS);
		break;
	}
	case R_HWPT_ALLOC:
		hwpt_alloc_call(t, n, fd);
		break;
	case R_HWPT_PASID:
		hwpt_pasid_call(t, n, fd);
		break;
	case R_HWPT_NESTED:
		hwpt_nested_call(t, n, fd);
		break;
	case R_HW_INFO: {
		struct iommu_hw_info *c = ARG(struct iommu_hw_info);

		c->dev_id = pick(t, n, O_IDEV_VFIO + below(t, 3));
		c->data_len = below(t, 64);
		c->data_uptr = (uintptr_t)t->data;
		if (one_in(t, 4)) {
			c->flags = IOMMU_HW_INFO_FLAG_INPUT_TYPE;
			c->in_data_type = IOMMU_HW_INFO_TYPE_SELFTEST;
		}
		ISSUE(row, fd, IOMMU_GET_HW_INFO);
		break;
	}
	case R_SET_DIRTY: {
		struct iommu_hwpt_set_dirty_tracking *c =
			ARG(struct iommu_hwpt_set_dirty_tracking);

		c->hwpt_id = pick(t, n, O_HWPT_NOIOMMU + below(t, 3));
		c->flags = below(t, 2);
		ISSUE(row, fd, IOMMU_HWPT_SET_DIRTY_TRACKING);
		break;
	}
	case R_GET_DIRTY: {
		struct iommu_hwpt_get_dirty_bitmap *c =
			ARG(struct iommu_hwpt_get_dirty_bitmap);

		c->hwpt_id = pick(t, n, O_HWPT_NOIOMMU + below(t, 3));
		c->flags = below(t, 2);
		c->iova = some_iova(t);
		c->length = 0x10000 << below(t, 8);
		/* A length of 0, also one whose last IOVA is below the first */
		if (one_in(t, 8)) {
			c->iova = one_in(t, 2) ? 0 : c->iova;
			c->length = 0;
		}
		c->page_size = PAGE;
		c->data = (uintptr_t)(one_in(t, 8) ? some_va(t) : t->data);
		ISSUE(row, fd, IOMMU_HWPT_GET_DIRTY_BITMAP);
		break;
	}
	case R_INVALIDATE: {
		struct iommu_hwpt_invalidate *c = ARG(struct iommu_hwpt_invalidate);
		bool viommu = one_in(t, 2);

		memset(t->data, 0, 256);
		c->hwpt_id = pick(t, n, viommu ? O_VIOMMU : O_HWPT_NESTED);
		c->data_uptr = (uintptr_t)t->data;
		c->data_type = IOMMU_HWPT_INVALIDATE_DATA_SELFTEST;
		c->entry_len = viommu ? sizeof(struct iommu_viommu_invalidate_selftest) :
			       sizeof(struct iommu_hwpt_invalidate_selftest);
		c->entry_num = below(t, 4);
		/* The first virtual ID that VDEVICE_ALLOC gives away */
		((uint32_t *)t->data)[1] = viommu;
		ISSUE(row, fd, IOMMU_HWPT_INVALIDATE);
		break;
	}
	case R_FAULT_ALLOC: {
		struct iommu_fault_alloc *c = ARG(struct iommu_fault_alloc);

		if (ISSUE(row, fd, IOMMU_FAULT_QUEUE_ALLOC) >= 0) {
			keep(t, n, O_FAULT, c->out_fault_id);
			place_queue(n, c->out_fault_id, c->out_fault_fd,
				    below(t, NR_FAULTS / 2));
		}
		break;
	}
	case R_VIOMMU_ALLOC:
		viommu_call(t, n, fd);
		break;
	case R_VDEVICE_ALLOC: {
		struct iommu_vdevice_alloc *c = ARG(struct iommu_vdevice_alloc);

		c->viommu_id = pick(t, n, O_VIOMMU);
		c->dev_id = pick(t, n, O_IDEV_IOMMU);
		c->virt_id = 1 + below(t, 4);
		if (ISSUE(row, fd, IOMMU_VDEVICE_ALLOC) >= 0)
			keep(t, n, O_VDEVICE, c->out_vdevice_id);
		break;
	}
	case R_CHANGE_PROCESS: {
		struct iommu_ioas_change_process *c =
			ARG(struct iommu_ioas_change_process);

		ISSUE(row, fd, IOMMU_IOAS_CHANGE_PROCESS);
		break;
	}
	case R_VEVENTQ_ALLOC: {
		struct iommu_veventq_alloc *c = ARG(struct iommu_veventq_alloc);

		c->viommu_id = pick(t, n, O_VIOMMU);
		c->type = IOMMU_VEVENTQ_TYPE_SELFTEST;
		c->veventq_depth = 1 + below(t, 4);
		if (ISSUE(row, fd, IOMMU_VEVENTQ_ALLOC) >= 0) {
			keep(t, n, O_VEVENTQ, c->out_veventq_id);
			place_queue(n, c->out_veventq_id, c->out_veventq_fd,
				    NR_FAULTS / 2 + below(t, NR_FAULTS / 2));
		}
		break;
	}
	case R_HW_QUEUE_ALLOC: {
		struct iommu_hw_queue_alloc *c = ARG(struct iommu_hw_queue_alloc);
		struct map *map = pick_map(t, n);

		c->viommu_id = pick(t, n, O_VIOMMU);
		c->type = IOMMU_HW_QUEUE_TYPE_SELFTEST;
		c->index = one_in(t, 3);
		c->nesting_parent_iova = map->iova;
		c->length = PAGE;
		if (ISSUE(row, fd, IOMMU_HW_QUEUE_ALLOC) >= 0)
			keep(t, n, O_HW_QUEUE, c->out_hw_queue_id);
		break;
	}
	case R_GET_PA:
	case R_GET_PA_EXTENTS:
		get_pa_call(t, n, fd, row == R_GET_PA_EXTENTS);
		break;
	case R_COMPAT_API ... R_COMPAT_UNMAP:
		compat_call(t, fd, row);
		break;
	case R_IOMMUFD_JUNK: {
		struct iommu_test_cmd *c = ARG(struct iommu_test_cmd);

		ISSUE(row, fd, _IO(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_NOIOMMU_GET_PA + 1 +
				   below(t, 10)));
		break;
	}
	case R_QUEUE_READ:
		queue_call(t);
		break;
	case R_IOMMUFD_MMAP:
		iommufd_mmap_call(t, n, fd);
		break;
	case R_TEST_DEVICE:
		test_device_call(t, n, fd);
		break;
	case R_TEST_REPLACE:
		test_replace_call(t, n, fd);
		break;
	case R_TEST_ACCESS ... R_TEST_RW:
		test_access_call(t, n, fd, row);
		break;
	default:
		test_other_call(t, n, fd, row);
		break;
	}
}

/*
 * VFIO devices
 */
static void set_irqs_call(struct thread *t, int device, int fd)
{
	struct vfio_irq_set *c = ARG(struct vfio_irq_set);
	unsigned int i, count;

	c->index = below(t, VFIO_PCI_NUM_IRQS);
	if (!devices[device].irqs[c->index])
		c->index = below(t, VFIO_PCI_NUM_IRQS);
	count = devices[device].irqs[c->index];
	c->count = below(t, (count < 8 ? count : 8) + 1);
	if (c->count && c->count < count && one_in(t, 2))
		c->start = below(t, count - c->count);
	c->flags = one_in(t, 3) ? VFIO_IRQ_SET_ACTION_MASK << below(t, 3) :
		   VFIO_IRQ_SET_ACTION_TRIGGER;
	switch (below(t, 4)) {
	case 0:
		c->flags |= VFIO_IRQ_SET_DATA_NONE;
		break;
	case 1:
		c->flags |= VFIO_IRQ_SET_DATA_BOOL;
		for (i = 0; i < c->count; i++)
			c->data[i] = below(t, 2);
		c->argsz += c->count;
		break;
	default:
		c->flags |= VFIO_IRQ_SET_DATA_EVENTFD;
		for (i = 0; i < c->count; i++)
			((int *)c->data)[i] = one_in(t, 4) ? -1 :
					      FD_EVENT + (int)below(t, NR_EVENTS);
		c->argsz += 4 * c->count;
		break;
	}
	issue(t, R_SET_IRQS, fd, VFIO_DEVICE_SET_IRQS, c->argsz & ~3);
}

static void feature_call(struct thread *t, int device, int fd, enum row row)
{
	struct vfio_device_feature *c = ARG(struct vfio_device_feature);
	unsigned int bar = below(t, 6), i;
	long rc;

	switch (row) {
	case R_FEATURE:
		c->flags = below(t, 14) | VFIO_DEVICE_FEATURE_PROBE |
			   below(t, 4) * VFIO_DEVICE_FEATURE_GET;
		break;
	case R_FEATURE_POWER:
		switch (below(t, 3)) {
		case 0:
			c->flags = VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY;
			break;
		case 1:
			c->flags = VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP;
			c->argsz += sizeof(struct vfio_device_low_power_entry_with_wakeup);
			*(int *)c->data = FD_EVENT + below(t, NR_EVENTS);
			break;
		case 2:
			c->flags = VFIO_DEVICE_FEATURE_LOW_POWER_EXIT;
			break;
		}
		c->flags |= VFIO_DEVICE_FEATURE_SET;
		break;
	case R_FEATURE_DMABUF: {
		struct vfio_device_feature_dma_buf *dmabuf = (void *)c->data;

		for (i = 0; i < 6 && devices[device].bars[bar].size < PAGE; i++)
			bar = (bar + 1) % 6;
		c->flags = VFIO_DEVICE_FEATURE_DMA_BUF | VFIO_DEVICE_FEATURE_GET;
		dmabuf->region_index = bar;
		dmabuf->open_flags = O_CLOEXEC | O_RDWR;
		dmabuf->nr_ranges = one_in(t, 6) ? 2 : 1;
		for (i = 0; i < dmabuf->nr_ranges; i++) {
			dmabuf->dma_ranges[i].offset = i * PAGE;
			dmabuf->dma_ranges[i].length = PAGE << below(t, 2);
		}
		c->argsz += sizeof(*dmabuf) + i * sizeof(dmabuf->dma_ranges[0]);
		break;
	}
	default:
		do {
			c->flags = below(t, 13);
		} while (c->flags >= VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY &&
			 c->flags <= VFIO_DEVICE_FEATURE_LOW_POWER_EXIT);
		if (c->flags == VFIO_DEVICE_FEATURE_DMA_BUF)
			c->flags = VFIO_DEVICE_FEATURE_PCI_VF_TOKEN;
		c->flags |= one_in(t, 2) ? VFIO_DEVICE_FEATURE_GET :
			    VFIO_DEVICE_FEATURE_SET;
		c->argsz += 32;
		break;
	}
	rc = issue(t, row, fd, VFIO_DEVICE_FEATURE, c->argsz & ~3);
	/* A descriptor, and not what probing answers */
	if (row == R_FEATURE_DMABUF && rc > 2 && rc < FD_IOMMU)
		place(rc, FD_DMABUF + below(t, NR_DMABUFS / 2));
}

static uint64_t region_offset(unsigned int region, uint64_t offset)
{
	return (uint64_t)region << 40 | (offset & ((1ULL << 40) - 1));
}

static void rw_call(struct thread *t, int device, int fd, enum row row)
{
	unsigned int region = VFIO_PCI_CONFIG_REGION_INDEX;
	uint64_t offset, size;
	size_t count;
	void *buf = t->data;

	if (row == R_BAR_WRITE) {
		region = VFIO_PCI_BAR2_REGION_INDEX;
		if (!may_write(fd))
			return;
	} else if (row == R_BAR_READ) {
		region = below(t, VFIO_PCI_CONFIG_REGION_INDEX);
		if (!devices[device].bars[region].can_read)
			region = VFIO_PCI_BAR0_REGION_INDEX;
	}
	size = devices[device].bars[region].size;
	count = one_in(t, 8) ? 1 + below(t, 300) : 1UL << below(t, 4);
	offset = below(t, size | 1);
	if (row == R_CONFIG_READ || row == R_CONFIG_WRITE) {
		if (!one_in(t, 3))
			offset = below(t, 0x100);
		count = one_in(t, 8) ? below(t, 64) : 1UL << below(t, 3);
	}
	if (!one_in(t, 4))
		offset &= ~(uint64_t)(count < 8 ? count - 1 : 7);
	if (one_in(t, 32))
		offset = boundary(t);
	if (one_in(t, 32))
		buf = one_in(t, 2) ? NULL : some_va(t);
	else
		*(uint64_t *)t->data = one_in(t, 2) ? rnd(t) : boundary(t);
	offset = region_offset(region, offset);
	if (row == R_CONFIG_WRITE || row == R_BAR_WRITE)
		CALL(t, row, pwrite(fd, buf, count, offset));
	else
		CALL(t, row, pread(fd, buf, count, offset));
}

static void bar_mmap_call(struct thread *t, int device, int fd)
{
	unsigned int bar = below(t, 6), i;
	uint64_t size, offset;
	void *va;
	/* What is written to through a window is decided here, once */
	int prot = may_write(fd) ? PROT_READ | PROT_WRITE : PROT_READ;

	if (devices[device].shmem)
		bar = VFIO_PCI_BAR2_REGION_INDEX;
	for (i = 0; i < 6 && !devices[device].bars[bar].can_mmap; i++)
		bar = (bar + 1) % 6;
	size = devices[device].bars[bar].size;
	if (size > WINDOW_SIZE)
		size = WINDOW_SIZE;
	if (one_in(t, 4) && size > PAGE)
		size = PAGE * (1 + below(t, size / PAGE));
	offset = region_offset(bar, one_in(t, 16) ? boundary(t) & ~(PAGE - 1) : 0);
	begin(t, R_BAR_MMAP);
	va = mmap(WINDOWS + device * WINDOW_SIZE, size, prot, MAP_SHARED | MAP_FIXED, fd,
		  offset);
	done(t, R_BAR_MMAP, va == MAP_FAILED ? -1 : 0);
}

static void open_device(struct thread *t, int device);

static void vfio_call(struct thread *t, enum row row)
{
	int device = row == R_BAR_WRITE || row == R_IOEVENTFD ? some_shmem(t) :
		     some_device(t);
	int fd, n = bound_to[device];

	if (!bound_fd[device] && device % nr_workers == t->worker && one_in(t, 3)) {
		open_device(t, device);
		row = R_BIND;
	}
	fd = some_device_fd(t, device);
	switch (row) {
	case R_BIND: {
		struct vfio_device_bind_iommufd *c = ARG(struct vfio_device_bind_iommufd);

		n = below(t, NR_IOMMUFD);
		c->iommufd = FD_IOMMU + n;
		if (ISSUE(row, fd, VFIO_DEVICE_BIND_IOMMUFD) >= 0) {
			bound_to[device] = n;
			bound_fd[device] = fd;
			keep(t, n, O_IDEV_VFIO, c->out_devid);
		}
		break;
	}
	case R_ATTACH:
	case R_ATTACH_PASID: {
		struct vfio_device_attach_iommufd_pt *c =
			ARG(struct vfio_device_attach_iommufd_pt);

		c->pt_id = pick(t, n, one_in(t, 2) ? O_IOAS : O_HWPT_NOIOMMU);
		if (row == R_ATTACH_PASID) {
			c->flags = VFIO_DEVICE_ATTACH_PASID;
			c->pasid = below(t, 3);
		}
		ISSUE(row, fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT);
		break;
	}
	case R_DETACH:
	case R_DETACH_PASID: {
		struct vfio_device_detach_iommufd_pt *c =
			ARG(struct vfio_device_detach_iommufd_pt);

		if (row == R_DETACH_PASID) {
			c->flags = VFIO_DEVICE_DETACH_PASID;
			c->pasid = below(t, 3);
		}
		ISSUE(row, fd, VFIO_DEVICE_DETACH_IOMMUFD_PT);
		break;
	}
	case R_INFO: {
		struct vfio_device_info *c = ARG(struct vfio_device_info);

		ISSUE(row, fd, VFIO_DEVICE_GET_INFO);
		break;
	}
	case R_REGION: {
		struct vfio_region_info *c = ARG(struct vfio_region_info);

		c->argsz += below(t, 3) * 32;
		c->index = below(t, VFIO_PCI_NUM_REGIONS);
		ISSUE(row, fd, VFIO_DEVICE_GET_REGION_INFO);
		break;
	}
	case R_IRQ: {
		struct vfio_irq_info *c = ARG(struct vfio_irq_info);

		c->index = below(t, VFIO_PCI_NUM_IRQS);
		ISSUE(row, fd, VFIO_DEVICE_GET_IRQ_INFO);
		break;
	}
	case R_SET_IRQS:
		set_irqs_call(t, device, fd);
		break;
	case R_RESET:
		CALL(t, row, ioctl(fd, VFIO_DEVICE_RESET));
		break;
	case R_HOT_INFO: {
		struct vfio_pci_hot_reset_info *c = ARG(struct vfio_pci_hot_reset_info);

		c->argsz += below(t, 3) * sizeof(struct vfio_pci_dependent_device);
		ISSUE(row, fd, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO);
		break;
	}
	case R_HOT_RESET: {
		struct vfio_pci_hot_reset *c = ARG(struct vfio_pci_hot_reset);

		ISSUE(row, fd, VFIO_DEVICE_PCI_HOT_RESET);
		break;
	}
	case R_GFX: {
		struct vfio_device_gfx_plane_info *c =
			ARG(struct vfio_device_gfx_plane_info);

		ISSUE(row, fd, one_in(t, 2) ? VFIO_DEVICE_QUERY_GFX_PLANE :
		      VFIO_DEVICE_GET_GFX_DMABUF);
		break;
	}
	case R_IOEVENTFD: {
		struct vfio_device_ioeventfd *c = ARG(struct vfio_device_ioeventfd);

		if (!may_write(fd))
			break;
		c->flags = 1 << below(t, 4);
		c->offset = region_offset(VFIO_PCI_BAR2_REGION_INDEX, 8 * below(t, 512));
		c->data = below(t, 4);
		c->fd = one_in(t, 3) ? -1 : FD_EVENT + (int)below(t, NR_EVENTS);
		ISSUE(row, fd, VFIO_DEVICE_IOEVENTFD);
		break;
	}
	case R_FEATURE ... R_FEATURE_MIGRATION:
		feature_call(t, device, fd, row);
		break;
	case R_MIG_PRECOPY: {
		struct vfio_precopy_info *c = ARG(struct vfio_precopy_info);

		ISSUE(row, fd, VFIO_MIG_GET_PRECOPY_INFO);
		break;
	}
	case R_VFIO_JUNK: {
		struct iommu_test_cmd *c = ARG(struct iommu_test_cmd);

		ISSUE(row, fd, _IO(VFIO_TYPE, VFIO_BASE + 22 + below(t, 20)));
		break;
	}
	case R_BAR_MMAP:
		bar_mmap_call(t, device, fd);
		break;
	default:
		rw_call(t, device, fd, row);
		break;
	}
}

/*
 * What goes on meanwhile
 */
static void open_iommufd(struct thread *t, int n)
{
	int fd = CALL(t, R_OPEN_IOMMUFD, open("/dev/iommu", O_RDWR | O_CLOEXEC));
	unsigned int i;

	if (fd < 0)
		return;
	memset(&contexts[n], 0, sizeof(contexts[n]));
	place(fd, FD_IOMMU + n);
	fd = FD_IOMMU + n;
	/* It can be set while there is nothing */
	if (one_in(t, 2))
		option_call(t, n, fd, R_OPTION_RLIMIT);
	for (i = 0; i < 2; i++) {
		struct iommu_ioas_alloc *c = ARG(struct iommu_ioas_alloc);

		if (ISSUE(R_IOAS_ALLOC, fd, IOMMU_IOAS_ALLOC) >= 0)
			keep(t, n, O_IOAS, c->out_ioas_id);
	}
	for (i = 0; i < 4; i++)
		test_device_call(t, n, fd);
}

static void open_device(struct thread *t, int device)
{
	int fd = CALL(t, R_OPEN_DEVICE, open(devices[device].path, O_RDWR | O_CLOEXEC));

	if (fd < 0)
		return;
	/* Over what is there, bound or not */
	if (bound_fd[device] && !one_in(t, 8)) {
		close(fd);
		return;
	}
	bound_fd[device] = 0;
	place(fd, some_device_fd(t, device));
}

static int some_fd(struct thread *t)
{
	switch (below(t, 12)) {
	case 0:
		return FD_IOMMU + below(t, NR_IOMMUFD);
	case 1:
		return some_device_fd(t, below(t, nr_devices));
	case 3 ... 5:
		return FD_DMABUF + below(t, NR_DMABUFS);
	case 6 ... 8:
		return FD_ACCESS + below(t, NR_ACCESSES);
	default:
		return FD_FAULT + below(t, NR_FAULTS);
	}
}

/* From another worker, whose memory is another */
static void get_fd_call(struct thread *t)
{
	int number = some_fd(t), fd, pidfd;

	pidfd = syscall(SYS_pidfd_open, shared->pids[below(t, nr_workers)], 0);
	if (pidfd < 0)
		return;
	fd = CALL(t, R_GET_FD, syscall(SYS_pidfd_getfd, pidfd, number, 0));
	close(pidfd);
	if (fd >= 0)
		place(fd, number);
}

static void memory_call(struct thread *t)
{
	static const int advices[] = {
		MADV_DONTNEED, MADV_FREE, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_WILLNEED,
		MADV_DONTFORK, MADV_DOFORK,
	};
	char *va = some_va(t);
	size_t size = some_length(t);
	int rw = PROT_READ | PROT_WRITE;

	/* Windows keep the protection that they have */
	if (va >= WINDOWS)
		va = ARENA;
	if (va + size > ARENA + ARENA_SIZE)
		size = PAGE;
	begin(t, R_MEMORY);
	switch (below(t, 9)) {
	case 0 ... 2:
		done(t, R_MEMORY, mmap(va, size, rw, MAP_PRIVATE | MAP_ANONYMOUS |
				       MAP_FIXED, -1, 0) == MAP_FAILED ? -1 : 0);
		break;
	case 3:
		done(t, R_MEMORY, mmap(va, size < 8 * PAGE ? size : 8 * PAGE, rw,
				       (one_in(t, 2) ? MAP_SHARED : MAP_PRIVATE) | MAP_FIXED,
				       FD_MEMFD + below(t, NR_MEMFDS),
				       below(t, 56) * PAGE) == MAP_FAILED ? -1 : 0);
		break;
	case 4:
		done(t, R_MEMORY, munmap(va, size));
		break;
	case 5:
		done(t, R_MEMORY, mremap(va, size, size, MREMAP_MAYMOVE | MREMAP_FIXED,
					 ARENA + below(t, ARENA_PAGES - size / PAGE) * PAGE) ==
		     MAP_FAILED ? -1 : 0);
		break;
	case 6 ... 7:
		done(t, R_MEMORY, madvise(va, size, advices[below(t, ARRAY_SIZE(advices))]));
		break;
	case 8:
		done(t, R_MEMORY, mprotect(va, size, one_in(t, 3) ? PROT_READ : rw));
		break;
	}
	/* Holes that stay would make maps fail */
	if (one_in(t, 4))
		mmap(ARENA + below(t, ARENA_SIZE / 0x10000) * 0x10000, 0x10000, rw,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	GUARDED(*(volatile char *)va = 1);
}

static unsigned int sum_of_weights;
static void step(struct thread *t);

/* Whoever ends has done so by itself or was killed */
static void count_crash(int status)
{
	if (!status || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL))
		return;
	if (!shared->crashes++)
		ksft_print_msg("a process ended with status %#x\n", status);
}

static void fork_call(struct thread *t)
{
	unsigned int steps = 10 + below(t, 50);
	bool die = one_in(t, 3);
	int pid, status;

	/* The same either way, so that the rest does not depend on it */
	uint64_t random = rnd(t);

	if (t->child)
		return;
	pid = CALL(t, R_FORK, fork());
	if (pid < 0)
		return;
	if (!pid) {
		t->child = true;
		t->random = random;
		while (steps--)
			step(t);
		if (die)
			kill(getpid(), SIGKILL);
		_exit(0);
	}
	shared->forks++;
	if (waitpid(pid, &status, 0) == pid)
		count_crash(status);
}

struct destroyer {
	int fd;
	struct iommu_destroy cmd;
	int error;
};

/* It is busy until the last descriptor is closed */
static void *destroy_queue(void *data)
{
	struct destroyer *destroyer = data;
	unsigned int tries = 0;

	do {
		destroyer->error = ioctl(destroyer->fd, IOMMU_DESTROY, &destroyer->cmd) ?
				   errno : 0;
	} while (destroyer->error == EBUSY && ++tries < 1000);
	return NULL;
}

static void close_queue_call(struct thread *t)
{
	unsigned int number = below(t, NR_FAULTS);
	struct destroyer destroyer = {
		.fd = FD_IOMMU + queues[number].context,
		.cmd = { sizeof(destroyer.cmd), queues[number].id },
	};
	pthread_t pthread;

	begin(t, R_CLOSE_QUEUE);
	if (pthread_create(&pthread, NULL, destroy_queue, &destroyer))
		return;
	close(FD_FAULT + number);
	pthread_join(pthread, NULL);
	errno = destroyer.error;
	if (done(t, R_CLOSE_QUEUE, destroyer.error ? -1 : 0) >= 0)
		forget(queues[number].context, destroyer.cmd.id);
}

static void other_call(struct thread *t, enum row row)
{
	int device = some_device(t), n = below(t, NR_IOMMUFD), fd;
	char *window = WINDOWS + device * WINDOW_SIZE + 4 * below(t, PAGE / 4);
	uint64_t one = 1;

	switch (row) {
	case R_BAR_TOUCH:
		begin(t, row);
		errno = EFAULT;
		done(t, row, GUARDED({
			uint32_t word = *(volatile uint32_t *)window;

			if (devices[device].shmem)
				*(volatile uint32_t *)window = word + 1;
		}) ? 0 : -1);
		break;
	case R_BAR_MUNMAP:
		CALL(t, row, munmap(WINDOWS + device * WINDOW_SIZE, WINDOW_SIZE));
		break;
	case R_CLOSE:
		fd = some_fd(t);
		/* With an iommufd goes all that is in it, which takes many calls to make */
		if (fd >= FD_IOMMU && fd < FD_IOMMU + NR_IOMMUFD && !one_in(t, 4))
			break;
		CALL(t, row, close(fd));
		if (device_of_fd(fd) >= 0 && bound_fd[device_of_fd(fd)] == fd)
			bound_fd[device_of_fd(fd)] = 0;
		if (fd >= FD_IOMMU && fd < FD_IOMMU + NR_IOMMUFD)
			open_iommufd(t, fd - FD_IOMMU);
		break;
	case R_CLOSE_QUEUE:
		close_queue_call(t);
		break;
	case R_OPEN_IOMMUFD:
		if (one_in(t, 4) || !have(n, O_IOAS))
			open_iommufd(t, n);
		break;
	case R_OPEN_DEVICE:
		open_device(t, device);
		break;
	case R_DUP:
		if (one_in(t, 6))
			CALL(t, row, dup3(FD_IOMMU + below(t, NR_IOMMUFD), FD_IOMMU + n,
					  O_CLOEXEC));
		else if (CALL(t, row, dup3(FD_DEVICE + 2 * device, FD_DEVICE + 2 * device + 1,
					   O_CLOEXEC)) >= 0 && bound_fd[device])
			bound_fd[device] = FD_DEVICE + 2 * device;
		break;
	case R_GET_FD:
		get_fd_call(t);
		break;
	case R_MEMORY:
		memory_call(t);
		break;
	case R_SIGNAL:
		CALL(t, row, write(FD_EVENT + below(t, NR_EVENTS), &one, 8));
		break;
	default:
		fork_call(t);
		break;
	}
}

static unsigned int weight(unsigned int row)
{
	return nr_devices || !is_vfio(row) ? rows[row].weight : 0;
}

static void step(struct thread *t)
{
	unsigned int at = below(t, sum_of_weights), row;

	for (row = 0; at >= weight(row); row++)
		at -= weight(row);
	if (row < R_BIND)
		iommufd_call(t, row);
	else if (row < FIRST_OTHER)
		vfio_call(t, row);
	else
		other_call(t, row);
}

/*
 * Workers
 */
static uint64_t limit = 30000, seed;
static unsigned int exit_early;

static void *thread_main(void *data)
{
	struct thread *t = data;

	while (t->calls < WORKER_CALLS / nr_threads && shared->total < limit &&
	       !shared->stop) {
		if (t->calls >= t->kill_at)
			kill(getpid(), SIGKILL);
		step(t);
	}
	/* In the middle of what the others do */
	if (exit_early)
		_exit(0);
	return NULL;
}

static void *map_at(void *va, size_t size, int flags, int fd, int prot)
{
	void *found = mmap(va, size, prot, flags | MAP_FIXED, fd, 0);

	if (found != va)
		_exit(98);
	return found;
}

static void map_scratch(struct thread *t)
{
	int rw = PROT_READ | PROT_WRITE, anonymous = MAP_PRIVATE | MAP_ANONYMOUS;
	char *base = SCRATCH + t->number * 0x100000;
	int fd = memfd_create("alias", 0);

	t->arg = map_at(base, 0x20000, anonymous, -1, rw);
	t->data = map_at(base + 0x40000, 0x20000, anonymous, -1, rw);
	t->edge = map_at(base + 0x80000, PAGE, anonymous, -1, rw);
	if (ftruncate(fd, PAGE))
		_exit(98);
	t->alias = map_at(base + 0xa0000, PAGE, MAP_SHARED, fd, rw);
	t->alias_ro = map_at(base + 0xc0000, PAGE, MAP_SHARED, fd, PROT_READ);
	close(fd);
}

static void map_all(void)
{
	int i, fd;

	map_at(ARENA, ARENA_SIZE, MAP_PRIVATE | MAP_ANONYMOUS, -1, PROT_READ | PROT_WRITE);
	for (i = 0; i < NR_MEMFDS; i++) {
		fd = memfd_create("fuzz", 0);
		if (fd < 0 || ftruncate(fd, 64 * PAGE))
			_exit(98);
		place(fd, FD_MEMFD + i);
	}
	for (i = 0; i < NR_EVENTS; i++)
		place(eventfd(0, EFD_NONBLOCK), FD_EVENT + i);
}

static void handle_faults(void)
{
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };

	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
}

/* What the random calls start from */
static void set_up(struct thread *t)
{
	unsigned int i, n;

	for (n = 0; n < NR_IOMMUFD; n++) {
		open_iommufd(t, n);
		for (i = 0; i < 8; i++)
			iommufd_call(t, R_MAP + below(t, 2));
		for (i = 0; i < 6; i++)
			hwpt_alloc_call(t, n, FD_IOMMU + n);
		for (i = 0; i < 3; i++)
			test_access_call(t, n, FD_IOMMU + n, R_TEST_ACCESS);
	}
	for (i = t->worker; i < nr_devices; i += nr_workers) {
		open_device(t, i);
		vfio_call(t, R_BIND);
	}
}

static void worker(unsigned int number, unsigned int generation)
{
	uint64_t random = mix(mix(seed + generation) + number);
	unsigned int i;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	map_all();
	handle_faults();
	for (i = 0; i < nr_threads; i++) {
		struct thread *t = &threads[i];

		t->worker = number;
		t->number = i;
		t->random = mix(random + i);
		t->kill_at = UINT32_MAX;
		map_scratch(t);
	}
	exit_early = one_in(&threads[0], 2);
	if (one_in(&threads[0], 3))
		threads[below(&threads[0], nr_threads)].kill_at =
			below(&threads[0], WORKER_CALLS / nr_threads);
	set_up(&threads[0]);
	for (i = 0; i < nr_threads; i++)
		if (pthread_create(&threads[i].pthread, NULL, thread_main, &threads[i]))
			_exit(98);
	for (i = 0; i < nr_threads; i++)
		pthread_join(threads[i].pthread, NULL);
	_exit(0);
}

/*
 * The process that starts them
 */
static const struct {
	const char *vendor, *device;
} pci_ids[] = {
	{ "0x1af4", "0x1110" },	/* ivshmem */
	{ "0x1b36", "0x0010" },	/* NVMe */
	{ "0x1234", "0x11e8" },	/* edu */
	{ "0x8086", "0x10d3" },	/* e1000e */
};

static int describe(struct device *device, int iommufd)
{
	int i, fd = cdev_open(device->bdf);
	uint32_t id;
	int rc;

	if (fd < 0)
		return errno;
	rc = bind_iommufd(fd, iommufd, &id);
	if (rc)
		goto out;
	for (i = 0; i < VFIO_PCI_NUM_REGIONS; i++) {
		struct vfio_region_info info = { .argsz = sizeof(info), .index = i };

		if (ioctl(fd, VFIO_DEVICE_GET_REGION_INFO, &info) || !info.size)
			continue;
		device->bars[i].size = info.size;
		device->bars[i].can_read = info.flags & VFIO_REGION_INFO_FLAG_READ;
		device->bars[i].can_mmap = info.flags & VFIO_REGION_INFO_FLAG_MMAP;
	}
	for (i = 0; i < VFIO_PCI_NUM_IRQS; i++) {
		struct vfio_irq_info info = { .argsz = sizeof(info), .index = i };

		if (!ioctl(fd, VFIO_DEVICE_GET_IRQ_INFO, &info))
			device->irqs[i] = info.count;
	}
out:
	close(fd);
	return rc;
}

static void find_devices(int iommufd)
{
	unsigned int i;
	char name[256];
	int rc;

	for (i = 0; i < ARRAY_SIZE(pci_ids); i++) {
		struct device *device = &devices[nr_devices];

		if (!find_device(pci_ids[i].vendor, pci_ids[i].device, device->bdf,
				 sizeof(device->bdf)) || device_has_iommu(device->bdf))
			continue;
		if (noiommu_switch(true))
			ksft_exit_skip("no noiommu mode\n");
		if (ensure_bound(device->bdf) ||
		    !cdev_name(device->bdf, name, sizeof(name)))
			ksft_exit_fail_msg("can't bind %s to vfio-pci\n", device->bdf);
		snprintf(device->path, sizeof(device->path), "/dev/vfio/devices/%s", name);
		device->shmem = !i;
		rc = describe(device, iommufd);
		if (rc)
			ksft_exit_fail_msg("%s: %s\n", device->bdf, strerror(rc));
		nr_devices++;
	}
	if (!nr_devices)
		ksft_exit_skip("no device without an IOMMU\n");
}

static bool with_devices = true;

static void parse(char *list)
{
	static char *const names[] = {
		"calls", "seed", "seconds", "devices", "workers", "threads", NULL
	};
	unsigned int n;
	char *value;

	while (*list) {
		int option = getsubopt(&list, names, &value);

		if (option < 0 || !value)
			ksft_exit_fail_msg("calls|seed|seconds|devices|workers|threads=N,...\n");
		n = strtoul(value, NULL, 0);
		switch (option) {
		case 0:
			limit = strtoull(value, NULL, 0);
			break;
		case 1:
			seed = strtoull(value, NULL, 0);
			break;
		case 2:
			alarm(n);
			break;
		case 3:
			with_devices = n;
			break;
		case 4:
			nr_workers = n && n < MAX_WORKERS ? n : MAX_WORKERS;
			break;
		default:
			nr_threads = n && n < MAX_THREADS ? n : MAX_THREADS;
			break;
		}
	}
}

static volatile sig_atomic_t time_is_up;

static void on_alarm(int signal)
{
	time_is_up = 1;
}

static unsigned int generations[MAX_WORKERS];

static void start(unsigned int number)
{
	unsigned int generation = ++generations[number];
	int pid;

	memset(shared->now[number], 0, sizeof(shared->now[number]));
	pid = fork();
	if (!pid)
		worker(number, generation);
	if (pid < 0)
		ksft_exit_fail_msg("fork: %s\n", strerror(errno));
	shared->pids[number] = pid;
}

/* Whoever ended: false if there is nobody left */
static bool reap(bool more)
{
	int status, pid, i;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (i = 0; i < (int)nr_workers && shared->pids[i] != pid; i++)
			;
		shared->kills += WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
		count_crash(status);
		if (i == (int)nr_workers)
			continue;
		shared->pids[i] = 0;
		if (more)
			start(i);
	}
	return !pid;
}

static void show_stacks(int pid)
{
	char path[600], text[4096], *line;
	struct dirent *entry;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	while (dir && (entry = readdir(dir))) {
		snprintf(path, sizeof(path), "/proc/%d/task/%s/stack", pid, entry->d_name);
		if (entry->d_name[0] == '.' || read_file(path, text, sizeof(text)))
			continue;
		ksft_print_msg("%d, thread %s\n", pid, entry->d_name);
		for (line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
			ksft_print_msg("%s\n", line);
	}
	if (dir)
		closedir(dir);
}

/* Whether a call takes too long, or all of them do */
static bool hangs(bool all)
{
	long now = seconds_now();
	struct dirent *entry;
	int i, j;
	DIR *dir;

	for (i = 0; i < (int)nr_workers; i++) {
		for (j = 0; j < (int)nr_threads; j++) {
			long since = shared->now[i][j].since;

			if (!since || now - since < HANG_SECONDS)
				continue;
			ksft_print_msg("worker %d, thread %d: in %s for %ld s\n", i, j,
				       rows[shared->now[i][j].row].name, now - since);
			all = true;
		}
	}
	dir = all ? opendir("/proc") : NULL;
	while (dir && (entry = readdir(dir)))
		if (atoi(entry->d_name) > getpid())
			show_stacks(atoi(entry->d_name));
	if (dir)
		closedir(dir);
	return all;
}

/* Until all calls are made and all processes are gone: false if they hang */
static bool run(void)
{
	long moved = seconds_now(), told = moved, now;
	uint64_t total = 0;
	unsigned int i;

	for (i = 0; i < nr_workers; i++)
		start(i);
	for (;;) {
		usleep(20000);
		shared->stop |= shared->total >= limit || time_is_up;
		if (!reap(!shared->stop))
			return true;
		now = seconds_now();
		if (shared->total != total) {
			total = shared->total;
			moved = now;
		}
		if (now - told >= 60) {
			ksft_print_msg("%llu calls\n", (unsigned long long)total);
			told = now;
		}
		if (hangs(now - moved > HANG_SECONDS))
			return false;
	}
}

static void print_row(unsigned int row)
{
	uint64_t calls = shared->calls[row];
	char line[256];
	int errors, best, i, len;

	len = snprintf(line, sizeof(line), "%-48s %8llu %8llu", rows[row].name,
		       (unsigned long long)calls, (unsigned long long)shared->ok[row]);
	/* The errors that are most frequent */
	for (errors = 0; errors < 5; errors++) {
		for (best = 0, i = 1; i < NR_ERRNO; i++)
			if (shared->errnos[row][i] > shared->errnos[row][best])
				best = i;
		if (!shared->errnos[row][best] || len > (int)sizeof(line) - 32)
			break;
		len += snprintf(line + len, sizeof(line) - len, "  %s %llu",
				strerrorname_np(best) ?: "?",
				(unsigned long long)shared->errnos[row][best]);
		shared->errnos[row][best] = 0;
	}
	ksft_print_msg("%s\n", line);
}

static void report(bool ended, long seconds, long long pinned, long long tables)
{
	unsigned int row, tests = 4, workers = 0;
	uint64_t ok = 0;
	int i;

	for (row = 0; row < NR_ROWS; row++)
		tests += weight(row) && !rows[row].why_none;
	ksft_set_plan(tests);
	ksft_print_msg("%-48s %8s %8s\n", "call", "calls", "success");
	for (row = 0; row < NR_ROWS; row++) {
		if (!weight(row))
			continue;
		if (row < FIRST_OTHER)
			ok += shared->ok[row];
		print_row(row);
		if (rows[row].why_none)
			ksft_print_msg("  none has to succeed: %s\n", rows[row].why_none);
	}
	ksft_print_msg("%llu calls, %llu succeeded, %ld s, seed %llu\n",
		       (unsigned long long)shared->total, (unsigned long long)ok, seconds,
		       (unsigned long long)seed);
	for (i = 0; i < (int)nr_workers; i++)
		workers += generations[i];
	ksft_print_msg("%u workers, %llu forks, %llu killed\n", workers,
		       (unsigned long long)shared->forks,
		       (unsigned long long)shared->kills);

	for (row = 0; row < NR_ROWS; row++)
		if (weight(row) && !rows[row].why_none) {
			if (shared->ok[row] || shared->calls[row] >= ENOUGH_CALLS)
				ksft_test_result(shared->ok[row], "success of %s\n",
						 rows[row].name);
			else
				ksft_test_result_skip("success of %s in so few calls\n",
						      rows[row].name);
		}
	ksft_test_result(ended, "nothing hangs\n");
	ksft_test_result(!shared->crashes, "no process fails\n");
	/* What the last one closed may be on its way */
	for (i = 0; i < 100 && (pinned_pages() != pinned || table_pages() != tables); i++)
		usleep(100000);
	ksft_test_result(pinned_pages() == pinned, "every pin returned\n");
	ksft_test_result(table_pages() == tables, "every page table returned\n");
}

int main(int argc, char **argv)
{
	int iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT,
		.memory_limit.limit = 65536,
	};
	struct rlimit files = { 4096, 4096 };
	long long pinned, tables;
	long began = seconds_now();
	unsigned int row;
	bool ended;

	ksft_print_header();
	signal(SIGALRM, on_alarm);
	seed = mix(began + getpid()) >> 32;
	if (argc > 1)
		parse(argv[1]);
	if (iommufd < 0 || ioctl(iommufd, IOMMU_TEST_CMD, &cmd))
		ksft_exit_skip("no iommufd with CONFIG_IOMMUFD_TEST\n");
	setrlimit(RLIMIT_NOFILE, &files);
	/* The children of a worker that was killed */
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		ksft_exit_fail_msg("no memory\n");
	if (with_devices)
		find_devices(iommufd);
	for (row = 0; row < NR_ROWS; row++)
		sum_of_weights += weight(row);
	ksft_print_msg("seed=%llu, %u devices, up to %llu calls\n",
		       (unsigned long long)seed, nr_devices, (unsigned long long)limit);
	fflush(stdout);

	pinned = pinned_pages();
	tables = table_pages();
	ended = run();
	ioctl(iommufd, IOMMU_TEST_CMD, &cmd);
	report(ended, seconds_now() - began, pinned, tables);
	ksft_finished();
}
