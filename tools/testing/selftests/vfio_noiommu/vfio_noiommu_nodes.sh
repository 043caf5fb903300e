#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Which nodes does a device without an IOMMU get? What is configured is given in
# the environment, as the kernel does not tell:
#   NOIOMMU_GROUP=1 with group noiommu, NOIOMMU_CDEV=1 with cdev noiommu,
#   0 without; by default both are on.
#   NOIOMMU_FRESH=1 if no noiommu mode was used since boot.
#   VFIO_NOIOMMU_DEVICES names the devices that may be used, "all" is any.

. "$(dirname "$0")/../kselftest/ktap_helpers.sh"

group=${NOIOMMU_GROUP:-1}
cdev=${NOIOMMU_CDEV:-1}
switch=/sys/module/vfio/parameters/enable_unsafe_noiommu_mode
pci=/sys/bus/pci

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

count()
{
	n=0
	for node in $1; do	# a list of patterns
		[ ! -e "$node" ] || n=$((n + 1))
	done
	echo $n
}
# How many more of these nodes than before, when only other devices had some
more() { [ $(($(count "$1") - $2)) = "$3" ] || { echo "# $1: $(count "$1"), before $2"; false; }; }
probe() { echo "$bdf" >$pci/drivers/vfio-pci/bind; }
refused() { ! probe 2>"$error" && grep -qi 'invalid argument' "$error"; }
unbind() { echo "$bdf" >"$device/driver/unbind"; }

ktap_print_header
device=
for dir in "$pci"/devices/*; do
	case " $(echo "$VFIO_NOIOMMU_DEVICES" | tr , ' ') " in
	*" all "* | *" ${dir##*/} "*) ;;
	*) continue ;;
	esac
	# An NVMe controller
	[ "$(cat "$dir/class")" != 0x010802 ] || device=$dir
done
if [ -z "$device" ]; then
	ktap_skip_all "no NVMe controller of those that VFIO_NOIOMMU_DEVICES names"
	exit "$KSFT_SKIP"
fi
bdf=${device##*/}
if [ -e "$device/iommu_group" ]; then
	case $(cat "$device/iommu_group/name" 2>/dev/null) in
	vfio-noiommu) ;;	# That of an earlier test
	*)
		ktap_skip_all "$bdf has an IOMMU"
		exit "$KSFT_SKIP" ;;
	esac
fi
error=$(mktemp)
before=$(cat $switch 2>/dev/null)
driver=$(readlink "$device/driver")
override=$(cat "$device/driver_override")
restore()
{
	rm -f "$error"
	[ ! -e $switch ] || echo "$before" >$switch
	[ ! -e "$device/driver" ] || unbind
	[ "$override" != "(null)" ] || override=
	echo "$override" >"$device/driver_override"
	[ -z "$driver" ] || echo "$bdf" >"$pci/drivers/${driver##*/}/bind"
}
trap restore EXIT
[ ! -e "$device/driver" ] || unbind
echo vfio-pci >"$device/driver_override"

if [ "$group$cdev" = 00 ]; then
	ktap_set_plan 3
	check "no mode: no switch" [ ! -e $switch ]
	check "no mode: probe fails with EINVAL" refused
	check "no mode: no node" [ ! -e "$device/vfio-dev" ]
	ktap_finished
fi

groups="/dev/vfio/noiommu-*"
cdevs="/dev/vfio/devices/noiommu-vfio*"
others="/dev/vfio/devices/vfio*"
had_groups=$(count "$groups")
had_cdevs=$(count "$cdevs")
had_others=$(count "$others")

tainted() { [ $(($(cat /proc/sys/kernel/tainted) >> 6 & 1)) = 1 ]; }	# TAINT_USER
not() { ! "$@"; }
# The node that sysfs names is the one that is there
cdev_matches()
{
	for dir in "$device"/vfio-dev/noiommu-vfio*; do
		[ -c "/dev/vfio/devices/${dir##*/}" ]
	done
}
group_matches()
{
	[ -c "/dev/vfio/noiommu-$(basename "$(readlink "$device/iommu_group")")" ]
}

ktap_set_plan $((12 + group + cdev + 3 * ${NOIOMMU_FRESH:-0}))
if [ "${NOIOMMU_FRESH:-0}" = 1 ]; then
	check "the switch is N by default" [ "$before" = N ]
	check "nothing is tainted yet" not tainted
fi
echo N >$switch
check "the switch is there, and takes N" [ "$(cat $switch)" = N ]
check "switch N: probe fails with EINVAL" refused
check "switch N: no group node" more "$groups" "$had_groups" 0
check "switch N: no cdev" more "$cdevs $others" $((had_cdevs + had_others)) 0
echo Y >$switch
check "switch Y: probe succeeds" probe
[ "${NOIOMMU_FRESH:-0}" = 0 ] || check "TAINT_USER" tainted
[ "$group" = 0 ] || check "the group node is that of its iommu_group" group_matches
[ "$cdev" = 0 ] || check "the cdev node is that of its vfio-dev" cdev_matches
check "group node /dev/vfio/noiommu-N" more "$groups" "$had_groups" "$group"
check "an iommu_group only for the group" [ "$(count "$device/iommu_group")" = "$group" ]
check "cdev node /dev/vfio/devices/noiommu-vfioX" more "$cdevs" "$had_cdevs" "$cdev"
if [ "$cdev" = 1 ]; then
	check "sysfs vfio-dev/noiommu-vfioX" more "$device/vfio-dev/noiommu-vfio*" 0 1
else
	check "sysfs vfio-dev/vfioX" more "$device/vfio-dev/vfio*" 0 1
fi
check "no other cdev" more "$others" "$had_others" 0
unbind
check "unbound: no group node" more "$groups" "$had_groups" 0
check "unbound: no cdev" more "$cdevs $others" $((had_cdevs + had_others)) 0
ktap_finished
