// SPDX-License-Identifier: GPL-2.0-only
/*
 * Who may use a device without an IOMMU, and who learns physical addresses
 *
 * Run as root, on kernels booted with lockdown=integrity, with
 * lockdown=confidentiality and without. With NOIOMMU_RAISE_LOCKDOWN=integrity in the
 * environment, or =confidentiality, a kernel that is not locked down is for good.
 */
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "kselftest_harness.h"
#include "vfio_noiommu_util.h"
#include "../iommu/iommufd_noiommu_extents.h"

#define IOVA 0x10000000UL
#define SOMEBODY 12345

FIXTURE(caps)
{
	char bdf[256];
	int device;
	int iommufd;
	uint32_t dev_id;
	uint32_t ioas;
	char *mem;
};

FIXTURE_SETUP(caps)
{
	self->device = -1;
	self->iommufd = -1;
	if (!find_device("0x1b36", "0x0010", self->bdf, sizeof(self->bdf)) ||
	    device_has_iommu(self->bdf))
		SKIP(return, "no NVMe disk without an IOMMU");
	ASSERT_EQ(0, noiommu_switch(true));
	ASSERT_EQ(0, ensure_bound(self->bdf));
}

FIXTURE_TEARDOWN(caps)
{
	close(self->device);
	close(self->iommufd);
}

/* Bound and attached, and a page mapped at IOVA */
static int set_up_memory(struct _test_data_caps *self)
{
	uint32_t pt_id;
	int rc;

	rc = open_bound(self->bdf, &self->device, &self->iommufd, &self->dev_id);
	if (rc)
		return rc;
	rc = ioas_alloc(self->iommufd, &self->ioas);
	if (rc)
		return rc;
	pt_id = self->ioas;
	rc = attach_pt(self->device, &pt_id);
	if (rc)
		return rc;
	self->mem = anon(PAGE, MAP_POPULATE);
	return ioas_map(self->iommufd, self->ioas, self->mem, PAGE, IOVA,
			IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE);
}

/* Groups and ids of somebody who is not root: no capability is left */
static int become_somebody(void)
{
	return setresgid(SOMEBODY, SOMEBODY, SOMEBODY) ||
	       setresuid(SOMEBODY, SOMEBODY, SOMEBODY);
}

TEST_F(caps, lockdown_refuses_open)
{
	bool locked = !lockdown_is("none");
	char line[4096] = "", want[64], *found;

	/* As the kernel's command line says, if it does */
	EXPECT_EQ(0, read_file("/proc/cmdline", line, sizeof(line)));
	found = strstr(line, "lockdown=");
	if (found && sscanf(found, "lockdown=%63s", want) == 1)
		EXPECT_TRUE(lockdown_is(want));
	IN_CHILD(locked ? EPERM : 0, ERRNO_OF(cdev_open(self->bdf)));
	/* The refusal left no reference: an unbind would wait for it */
	device_unbind(self->bdf);
	ASSERT_EQ(0, device_bind(self->bdf));
	IN_CHILD(locked ? EPERM : 0, ERRNO_OF(cdev_open(self->bdf)));
}

/* Nodes and switch are root's, and root of a user namespace is somebody else */
TEST_F(caps, somebody)
{
	char name[256], path[600];

	ASSERT_TRUE(cdev_name(self->bdf, name, sizeof(name)));
	snprintf(path, sizeof(path), "/dev/vfio/devices/%s", name);
	IN_CHILD(EACCES, become_somebody() ? 255 : ERRNO_OF(open(path, O_RDWR)));
	IN_CHILD(EACCES, become_somebody() ? 255 : -noiommu_switch(false));
	IN_CHILD(EACCES, become_somebody() || unshare(CLONE_NEWUSER) ? 255 :
			 ERRNO_OF(open(path, O_RDWR)));
	IN_CHILD(EACCES, become_somebody() || unshare(CLONE_NEWUSER) ? 255 :
			 -noiommu_switch(false));
	/* Permissions of the node are not enough */
	ASSERT_EQ(0, chmod(path, 0666));
	IN_CHILD(EPERM, become_somebody() ? 255 : ERRNO_OF(open(path, O_RDWR)));
	IN_CHILD(EPERM, become_somebody() || unshare(CLONE_NEWUSER) ? 255 :
			ERRNO_OF(open(path, O_RDWR)));
	ASSERT_EQ(0, chmod(path, 0600));
}

/*
 * An open device is the permission to use it, as in all of VFIO: who is given
 * the file may bind it and program it. Physical addresses are told to nobody
 * without the capability all the same.
 */
static int use_as_somebody(int device, int iommufd, uint32_t ioas)
{
	char *mem = anon(PAGE, MAP_POPULATE);
	uint32_t pt_id = ioas, dev_id;

	if (become_somebody() || bind_iommufd(device, iommufd, &dev_id) ||
	    attach_pt(device, &pt_id) ||
	    ioas_map(iommufd, ioas, mem, PAGE, IOVA, IOMMU_IOAS_MAP_READABLE))
		return 254;
	/* Nor does pagemap tell */
	if (pagemap_pa(mem))
		return 253;
	return get_pa_errno(iommufd, ioas, IOVA);
}

TEST_F(caps, files_inherited_by_somebody)
{
	if (!lockdown_is("none"))
		SKIP(return, "locked down");
	self->device = cdev_open(self->bdf);
	self->iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->device);
	ASSERT_LE(0, self->iommufd);
	ASSERT_EQ(0, ioas_alloc(self->iommufd, &self->ioas));
	IN_CHILD(EPERM, use_as_somebody(self->device, self->iommufd, self->ioas));
	/* Who may is told, whoever mapped it */
	EXPECT_EQ(0, get_pa_errno(self->iommufd, self->ioas, IOVA));
}

TEST_F(caps, files_sent_to_somebody)
{
	int sockets[2], fds[2], status;
	pid_t pid;

	if (!lockdown_is("none"))
		SKIP(return, "locked down");
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		uint32_t ioas;

		/* Neither outlives the test nor keeps what it waits for */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(sockets[0]);
		if (receive_fds(sockets[1], fds, 2, &ioas))
			_exit(252);
		_exit(use_as_somebody(fds[0], fds[1], ioas));
	}
	self->device = cdev_open(self->bdf);
	self->iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->device);
	ASSERT_LE(0, self->iommufd);
	ASSERT_EQ(0, ioas_alloc(self->iommufd, &self->ioas));
	fds[0] = self->device;
	fds[1] = self->iommufd;
	ASSERT_EQ(0, send_fds(sockets[0], fds, 2, self->ioas));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_TRUE(WIFEXITED(status));
	EXPECT_EQ(EPERM, WEXITSTATUS(status));
	EXPECT_EQ(0, get_pa_errno(self->iommufd, self->ioas, IOVA));
	close(sockets[0]);
	close(sockets[1]);
}

TEST_F(caps, get_pa_in_a_user_namespace)
{
	if (!lockdown_is("none"))
		SKIP(return, "locked down");
	ASSERT_EQ(0, set_up_memory(self));
	EXPECT_EQ(0, get_pa_errno(self->iommufd, self->ioas, IOVA));
	/* With every capability, but those of the namespace */
	IN_CHILD(EPERM, unshare(CLONE_NEWUSER) ? 255 :
			get_pa_errno(self->iommufd, self->ioas, IOVA));
	IN_CHILD(EPERM, ({
		uint64_t length = PAGE;
		struct iommu_noiommu_extent extent;
		uint32_t nr = 1;

		unshare(CLONE_NEWUSER) ? 255 :
			get_pa_extents(self->iommufd, self->ioas, IOVA, &length,
				       &extent, &nr);
	}));
}

/* Without CAP_IPC_LOCK the limit counts, also for who may do everything else */
TEST_F(caps, memlock)
{
	struct rlimit limit = { 8 * PAGE, 8 * PAGE };
	char *mem = anon(9 * PAGE, MAP_POPULATE);
	size_t pages;

	if (!lockdown_is("none"))
		SKIP(return, "locked down");
	ASSERT_EQ(0, set_up_memory(self));
	for (pages = 8; pages < 10; pages++) {
		IN_CHILD(pages == 8 ? 0 : ENOMEM, ({
			drop_capability(CAP_IPC_LOCK);
			setrlimit(RLIMIT_MEMLOCK, &limit) ? 255 :
				ioas_map(self->iommufd, self->ioas, mem, pages * PAGE,
					 2 * IOVA, IOMMU_IOAS_MAP_READABLE);
		}));
		ioas_unmap(self->iommufd, self->ioas, 2 * IOVA, 8 * PAGE);
	}
	IN_CHILD(0, setrlimit(RLIMIT_MEMLOCK, &limit) ? 255 :
		    ioas_map(self->iommufd, self->ioas, mem, 9 * PAGE, 2 * IOVA,
			     IOMMU_IOAS_MAP_READABLE));
}

/* As with other files, lockdown that comes later leaves what is open */
TEST_F(caps, raised_lockdown)
{
	const char *raise = getenv("NOIOMMU_RAISE_LOCKDOWN");

	if (!raise || !lockdown_is("none"))
		SKIP(return, "NOIOMMU_RAISE_LOCKDOWN is not given, or it is locked down");
	ASSERT_EQ(0, set_up_memory(self));
	ASSERT_EQ(0, write_file(LOCKDOWN, raise));
	EXPECT_TRUE(lockdown_is(raise));
	EXPECT_EQ(0, get_pa_errno(self->iommufd, self->ioas, IOVA));
	EXPECT_EQ(0, detach_pt(self->device));
	close(self->device);
	self->device = cdev_open(self->bdf);
	EXPECT_GT(0, self->device);
	EXPECT_EQ(EPERM, errno);
}

TEST_HARNESS_MAIN
