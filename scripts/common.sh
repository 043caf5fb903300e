# SPDX-License-Identifier: GPL-2.0
# Sourced by the other scripts: where things are, and how they speak.
# shellcheck shell=sh disable=SC2034

top=$(cd "$(dirname "$0")/.." && pwd)
base=${BASE:-7.2}
# VARIANT: unpatched, or a prefix of the series; empty is all of it
build=$top/build/$base${VARIANT:+-$VARIANT}
src=$build/src
cache=${XDG_CACHE_HOME:-$HOME/.cache}/iommufd-noiommu
jobs=$(nproc)

die()
{
	echo "${0##*/}: $*" >&2
	exit 1
}

# Is it the series, whole? There is none for a base without patches/$base
patched() { [ -z "${VARIANT:-}" ] && [ -d "$top/patches/$base" ]; }

# The files that are wholly ours, by their in-tree path
our_files()
{
	! patched || (cd "$top" && find Documentation drivers include \
		samples tools -type f 2>/dev/null | sort)
}

# step TEXT: says what starts; done_step says how long it took.
step()
{
	step_text=$*
	step_start=$(date +%s)
	printf '  %-10s %s\n' "${0##*/}" "$step_text ..."
}

done_step()
{
	printf '  %-10s %s: %s s\n' "${0##*/}" "${1:-$step_text}" \
		"$(($(date +%s) - step_start))"
}

# need_space DIR MIB: a full disk is said before the work, not in its middle.
need_space()
{
	mkdir -p "$1" || die "can't write to $1"
	free=$(df -Pm "$1" | awk 'NR == 2 { print $4 }')
	[ "$free" -ge "$2" ] ||
		die "$1 has $free MiB free, $2 MiB are needed"
}
