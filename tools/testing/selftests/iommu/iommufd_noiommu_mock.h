/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Mock devices behind the mock IOMMU and without an IOMMU, of IOMMUFD_TEST
 */
#ifndef __IOMMUFD_NOIOMMU_MOCK_H
#define __IOMMUFD_NOIOMMU_MOCK_H

#include "iommufd_utils.h"
#include "iommufd_noiommu_extents.h"

/* In the mock IOMMU's aperture, so that both kinds of device can have it */
#define IOVA (4UL * MOCK_APERTURE_START)

struct mock {
	uint32_t stdev;		/* destroying it detaches and unbinds */
	uint32_t hwpt;
	uint32_t idev;
};

/* A device that is bound, and attached to an IOAS or a HWPT */
static inline int mock_add(int fd, uint32_t flags, uint32_t pt_id, struct mock *mock)
{
	*mock = (struct mock){};
	return ERRNO_OF(_test_cmd_mock_domain_flags(fd, pt_id, flags,
						    &mock->stdev, &mock->hwpt,
						    &mock->idev));
}

static inline int mock_noiommu(int fd, uint32_t pt_id, struct mock *mock)
{
	return mock_add(fd, MOCK_FLAGS_DEVICE_NOIOMMU, pt_id, mock);
}

static inline int mock_replace(int fd, struct mock *mock, uint32_t pt_id)
{
	return ERRNO_OF(_test_cmd_mock_domain_replace(fd, mock->stdev, pt_id,
						      &mock->hwpt));
}

/* Pin what is mapped at an IOVA as a driver without DMA of its own does */
static inline int access_pin(int fd, uint32_t access, uint64_t iova, void *va,
			     size_t size, uint32_t *id)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_ACCESS_PAGES,
		.id = access,
		.access_pages = {
			.iova = iova,
			.length = size,
			.uptr = (uintptr_t)va,
		},
	};
	int rc = ERRNO_OF(ioctl(fd, IOMMU_TEST_CMD, &cmd));

	*id = cmd.access_pages.out_access_pages_id;
	return rc;
}

/* Are these pages what the mock IOMMU translates the IOVAs to? */
static inline int mock_maps(int fd, uint32_t hwpt, uint64_t iova, void *va,
			    size_t size)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_MD_CHECK_MAP,
		.id = hwpt,
		.check_map = {
			.iova = iova,
			.length = size,
			.uptr = (uintptr_t)va,
		},
	};

	return ERRNO_OF(ioctl(fd, IOMMU_TEST_CMD, &cmd));
}

/*
 * An iommufd with an IOAS, and a device without an IOMMU attached to it, with
 * batches of PFNs of so many bytes. The errno; EOPNOTSUPP and ENOTTY mean that
 * the kernel or the machine has no such thing.
 */
static inline int mock_setup(int *fd, uint32_t *ioas, struct mock *dev,
			     unsigned int limit)
{
	int rc = 0;

	PAGE_SIZE = sysconf(_SC_PAGESIZE);
	if (PAGE_SIZE != PAGE)
		rc = EOPNOTSUPP;
	*fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (*fd < 0)
		return errno == ENOENT ? ENOTTY : errno;
	rc = rc ?: ioas_alloc(*fd, ioas);
	rc = rc ?: mock_noiommu(*fd, *ioas, dev);
	rc = rc ?: ERRNO_OF(_test_ioctl_set_temp_memory_limit(*fd, limit));
	if (rc)
		close(*fd);
	return rc;
}

/* Kilobytes that the process is charged for */
static inline long long accounted(void)
{
	return read_field("/proc/self/status", "VmPin:");
}

/* What has to be given back */
struct held {
	long long pinned;
	long long accounted;
	long long tables;
};

static inline struct held held_now(void)
{
	return (struct held) {
		.pinned = pinned_pages(),
		.accounted = accounted(),
		.tables = table_pages(),
	};
}

static inline void mock_teardown(struct __test_metadata *_metadata, int fd,
				 const struct held *before)
{
	struct held after;

	ASSERT_EQ(0, _test_ioctl_set_temp_memory_limit(fd, 65536));
	close(fd);
	after = held_now();
	EXPECT_EQ(before->pinned, after.pinned);
	EXPECT_EQ(before->accounted, after.accounted);
	EXPECT_EQ(before->tables, after.tables);
}

#endif
