#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# A device without an IOMMU whose VFIO driver can't stop its DMA has no cdev, and its
# group noiommu if that is configured. The driver is virtio_vfio_pci, and the device a
# virtio one that it supports. NOIOMMU_GROUP=0 in the environment: without VFIO_NOIOMMU.
# VFIO_NOIOMMU_DEVICES names the devices that may be used, "all" is any.

. "$(dirname "$0")/../kselftest/ktap_helpers.sh"

group=${NOIOMMU_GROUP:-1}
switch=/sys/module/vfio/parameters/enable_unsafe_noiommu_mode
pci=/sys/bus/pci
driver=$pci/drivers/virtio_vfio_pci

check()
{
	name=$1
	shift
	if "$@"; then
		ktap_test_pass "$name"
	else
		ktap_test_fail "$name"
	fi
}

skip()
{
	ktap_skip_all "$*"
	exit "$KSFT_SKIP"
}

probe() { echo "$bdf" >$driver/bind; }
refused() { ! probe 2>"$error" && grep -qi 'invalid argument' "$error"; }
unbind() { echo "$bdf" >"$device/driver/unbind"; }
not() { ! "$@"; }
group_node() { [ -c "/dev/vfio/noiommu-$(basename "$(readlink "$device/iommu_group")")" ]; }
# Does the device have a cdev, named as with or as without an IOMMU?
cdev()
{
	for dir in "$device"/vfio-dev/*; do
		[ ! -e "/dev/vfio/devices/${dir##*/}" ] || return 0
	done
	return 1
}
is_vfioX() { set -- "$device"/vfio-dev/vfio*; [ $# = 1 ] && [ -d "$1" ]; }

ktap_print_header
[ -d $driver ] || skip "no virtio_vfio_pci (CONFIG_VIRTIO_VFIO_PCI)"
device=
for dir in "$pci"/devices/*; do
	case " $(echo "$VFIO_NOIOMMU_DEVICES" | tr , ' ') " in
	*" all "* | *" ${dir##*/} "*) ;;
	*) continue ;;
	esac
	case $(cat "$dir/vendor")$(cat "$dir/device") in
	0x1af40x104[12]) device=$dir ;;
	esac
done
[ -n "$device" ] || skip "no virtio device (1af4:1041) of those that VFIO_NOIOMMU_DEVICES names"
[ ! -e "$device/iommu_group" ] || skip "${device##*/} has an IOMMU"
bdf=${device##*/}
error=$(mktemp)
before=$(cat $switch)
was=$(readlink "$device/driver")
restore()
{
	rm -f "$error"
	echo "$before" >$switch
	[ ! -e "$device/driver" ] || unbind
	echo >"$device/driver_override"
	[ -z "$was" ] || echo "$bdf" >"$pci/drivers/${was##*/}/bind"
}
trap restore EXIT
[ ! -e "$device/driver" ] || unbind
echo virtio_vfio_pci >"$device/driver_override"

echo N >$switch
if [ "$group" = 0 ]; then
	ktap_set_plan 3
	check "switch N: probe fails with EINVAL" refused
	echo Y >$switch
	check "switch Y: probe fails with EINVAL" refused
	check "switch Y: no node" not cdev
	ktap_finished
fi
ktap_set_plan 5
check "switch N: probe fails with EINVAL" refused
echo Y >$switch
check "switch Y: probe succeeds" probe
check "the group node is that of its iommu_group" group_node
check "no cdev" not cdev
check "sysfs vfio-dev/vfioX" is_vfioX
ktap_finished
