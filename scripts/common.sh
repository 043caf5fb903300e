# SPDX-License-Identifier: GPL-2.0
# Sourced by the other scripts: where things are, and how they speak.
# shellcheck shell=sh disable=SC2034,SC2120

top=$(cd "$(dirname "$0")/.." && pwd)
base=${BASE:-$(cat "$top/build/base" 2>/dev/null || echo 7.2)}
# VARIANT: unpatched, or a prefix of the series; empty is all of it
build=$top/build/$base${VARIANT:+-$VARIANT}
src=$build/src
# Below patches are those of all bases, and the series names those that a base has
patches=$top/patches
series=$patches/$base/series
cache=${XDG_CACHE_HOME:-$HOME/.cache}/iommufd-noiommu
jobs=$(nproc)

die()
{
	echo "${0##*/}: $*" >&2
	exit 1
}

# unavailable REASON: a mirror lacks something. By 77 the caller knows that it may go on without
unavailable()
{
	echo "${0##*/}: $*" >&2
	exit 77
}

# Is it the series, whole? There is none for a base without patches/$base
patched() { [ -z "${VARIANT:-}" ] && [ -f "$series" ]; }

# series_patches [TOPIC...]: the patches of the topics, or all, in order, by their path below
# patches/, including those that the series comments out for quilt
series_patches()
{
	awk -v want=" $* " '
		/^# topic / { topic = $3; sub(/:/, "", topic) }
		{ sub(/^#/, "") }
		/^[^ ]+\.patch$/ && (want == "  " || index(want, " " topic " "))
		' "$series"
}

# in_series FILE: the last patch of the series that changes FILE, or nothing
in_series() { (cd "$patches" && series_patches | xargs grep -lxF "+++ b/$1" | tail -n 1); }

# The files that the patches of the series change
touched_files()
{
	(cd "$patches" && series_patches | xargs sed -n 's/^+++ b\/\([^	]*\).*/\1/p' | LC_ALL=C sort -u)
}

# The files that are wholly ours, by their in-tree path: New-file: lines of the series
our_files()
{
	! patched || (cd "$patches" && series_patches |
		xargs sed -n 's/^New-file: //p' | LC_ALL=C sort)
}

# Those of them that a patch of this base changes
our_touched_files()
{
	! patched || {
		our_files
		touched_files
	} | LC_ALL=C sort | uniq -d
}

# A checksum of the series: its list, its patches, and the files of ours that they change
patches_sum()
{
	! patched || {
		(cd "$patches" && { echo "$base/series"; series_patches; } | xargs cat)
		(cd "$top" && our_touched_files | xargs -r cat)
	} | sha256sum
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

# try REASON COMMAND...: runs it with its output in $log. On failure shows the end of that, and
# dies with REASON
# shellcheck disable=SC2154
try()
{
	reason=$1
	shift
	"$@" >"$log" 2>&1 || { tail -n 20 "$log" >&2; die "$reason"; }
}

# need_space DIR MIB: a full disk is said before the work, not in its middle.
need_space()
{
	mkdir -p "$1" || die "can't write to $1"
	free=$(df -Pm "$1" | awk 'NR == 2 { print $4 }')
	[ "$free" -ge "$2" ] ||
		die "$1 has $free MiB free, $2 MiB are needed"
}

# use_ccache: sets $ccache to what goes before the compiler, if anything. Not in depend mode:
# kernels that differ in a few options share what is the same after the preprocessor
use_ccache()
{
	ccache=
	command -v ccache >/dev/null || return 0
	export CCACHE_BASEDIR="$top/build" CCACHE_DIR="${CCACHE_DIR:-$cache/ccache}" \
		CCACHE_NOHASHDIR=1
	ccache="ccache "
}
