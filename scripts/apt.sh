# SPDX-License-Identifier: GPL-2.0
# Sourced by who downloads: a private apt configuration. The system's own apt is not
# touched.
# shellcheck shell=sh

# private_apt DIR TYPE SUITE...: lists what the suites of the machine's own mirror have,
# as deb or deb-src. Afterwards `apt-get $private` and the like look there. Fails when
# the machine has no Debian mirror.
private_apt()
{
	apt=$1 type=$2
	shift 2
	rm -rf "$apt"
	mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$apt/download"
	: >"$apt/status"

	uri=$(apt-get indextargets --format '$(LABEL)|$(COMPONENT)|$(CREATED_BY)|$(REPO_URI)' |
		sed -n 's/^Debian|main|Packages|//p' | head -n 1)
	[ -n "$uri" ] || uri=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p; s/^deb \(\[.*\] \)\?\([^ ]*\).*/\2/p' \
		/etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -n 1)
	[ -n "$uri" ] || return 1
	for suite in "$@"; do
		echo "$type [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $suite main"
	done >"$apt/sources.list"

	private="-o Dir::Etc::SourceList=$apt/sources.list -o Dir::Etc::SourceParts=/dev/null
		-o Dir::State=$apt -o Dir::State::status=$apt/status -o Dir::Cache=$apt
		-o Acquire::Languages=none -o Acquire::Retries=2 -o APT::Architecture=amd64
		-o APT::Architectures=amd64 -o APT::Sandbox::User=root"
	# A suite that the mirror lacks is no error as long as another has the package
	# shellcheck disable=SC2086
	apt-get $private -q update 2>&1 || true
}
