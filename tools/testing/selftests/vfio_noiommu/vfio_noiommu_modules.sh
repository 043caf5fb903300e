#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# iommufd, VFIO and vfio-pci as modules: they load, work, can't be unloaded while a
# device is in use, and can after that, several times over. Run as root, with none
# of them loaded; the device is an edu (QEMU) that no driver has.

. "$(dirname "$0")/../kselftest/ktap_helpers.sh"

here=$(cd "$(dirname "$0")" && pwd)
rounds=${NOIOMMU_ROUNDS:-3}
switch=/sys/module/vfio/parameters/enable_unsafe_noiommu_mode
pci=/sys/bus/pci
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

check()
{
	name="$1"
	shift
	if "$@"; then
		ktap_test_pass "round $round: $name"
	else
		ktap_test_fail "round $round: $name"
	fi
}

not() { ! "$@"; }
loaded() { grep -q "^$1 " /proc/modules; }
switch_is() { [ "$(cat $switch)" = "$1" ]; }
names() { cut -d' ' -f1 /proc/modules | sort; }

bind()
{
	echo vfio-pci >"$device/driver_override"
	echo "$bdf" >$pci/drivers/vfio-pci/bind
}
bind_refused() { ! bind 2>/dev/null; }
node() { echo "/dev/vfio/devices/$(ls "$device/vfio-dev")"; }
node_is_there() { [ -c "$(node)" ]; }
abi() { "$here/vfio_noiommu_abi" -v edu >"$tmp/abi" || { sed 's/^/# /' "$tmp/abi"; false; }; }

# None of those in use is unloaded, and all stay as they were
all_refused()
{
	for module in vfio_pci vfio_pci_core vfio iommufd iommu_amdv1; do
		loaded "$module" || { echo "# $module is not loaded"; return 1; }
		! rmmod "$module" 2>/dev/null || { echo "# $module was unloaded"; return 1; }
	done
	[ -e "$device/driver" ] && node_is_there
}

# With the device open, but not bound to an iommufd, unloading waits for it
waits_for_close()
{
	exec 4<>"$(node)"
	rmmod vfio_pci 4>&- &
	pid=$!
	sleep 2
	kill -0 $pid 2>/dev/null || { echo "# it did not wait"; return 1; }
	exec 4>&-
	wait $pid
}

unload_all()
{
	# Whatever was loaded for vfio-pci, users before those that they use
	for _ in 1 2 3 4 5 6; do
		for module in $(names); do
			grep -qx "$module" "$tmp/before" ||
				rmmod "$module" 2>/dev/null
		done
	done
	names | cmp -s - "$tmp/before" || { sed 's/^/# left: /' /proc/modules; return 1; }
}
nothing_left()
{
	for file in /dev/iommu /dev/vfio/*vfio* /dev/vfio/devices/* "$device/vfio-dev" \
		    /sys/class/vfio-dev $switch; do
		[ ! -e "$file" ] || { echo "# left: $file"; return 1; }
	done
}

ktap_print_header
device=
for dir in "$pci"/devices/*; do
	case " $(echo "$VFIO_NOIOMMU_DEVICES" | tr , ' ') " in
	*" all "* | *" ${dir##*/} "*) ;;
	*) continue ;;
	esac
	[ "$(cat "$dir/vendor")$(cat "$dir/device")" != 0x12340x11e8 ] || device=$dir
done
if [ -z "$device" ] || [ -e "$device/iommu_group" ] || [ -e "$device/driver" ]; then
	ktap_skip_all "VFIO_NOIOMMU_DEVICES names no edu without an IOMMU and a driver"
	exit "$KSFT_SKIP"
fi
if [ ! -e /proc/modules ] || [ -d /sys/module/vfio ]; then
	ktap_skip_all "VFIO is no module, or loaded"
	exit "$KSFT_SKIP"
fi
bdf=${device##*/}
names >"$tmp/before"
mkfifo "$tmp/hold"

ktap_set_plan $((rounds * 12))
round=0
while [ $round -lt "$rounds" ]; do
	round=$((round + 1))
	# The parameter is given in every second round, and kept by none
	if [ $((round % 2)) = 0 ]; then
		modprobe vfio enable_unsafe_noiommu_mode=Y
		check "vfio-pci is loaded" modprobe vfio-pci
		check "the switch is what the parameter says" switch_is Y
		check "/dev/iommu is there" [ -c /dev/iommu ]
	else
		check "vfio-pci is loaded" modprobe vfio-pci
		check "the switch is N" switch_is N
		check "no device is bound with the switch off" bind_refused
		echo Y >$switch
	fi
	check "a device is bound" bind
	check "its node is there" node_is_there
	check "the ABI test passes" abi

	exec 3<>"$tmp/hold"
	"$here/vfio_noiommu_hold" "$bdf" <"$tmp/hold" 3>&- >"$tmp/held" &
	holder=$!
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		grep -q held "$tmp/held" || sleep 1
	done
	check "the device is held" grep -q held "$tmp/held"
	check "no module is unloaded while it is" all_refused
	exec 3>&-
	wait $holder
	check "unloading vfio-pci waits for a close" waits_for_close
	check "the device has no driver" [ ! -e "$device/driver" ]
	echo >"$device/driver_override"
	check "all modules are unloaded" unload_all
	check "nothing is left of them" nothing_left
done
ktap_finished
