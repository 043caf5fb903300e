# SPDX-License-Identifier: GPL-2.0
# The front door. Each target is a short script in scripts/.

# Without BASE scripts/base chooses
ifdef BASE
export BASE
endif
base := $(or $(BASE),$(shell cat build/base 2>/dev/null || echo 7.2))

.PHONY: help base run test test-full fuzz bench shell tree build refresh clean deps bisect configs check series dist docs deb run-debian test-debian debian-patch

help:
	@echo "make run       build Linux $(base) with cdev noiommu, boot it in QEMU, drive an NVMe disk"
	@echo "make test      all tests, in QEMU; the last line is 'N passed, N failed, N skipped'"
	@echo "               SUITE=name runs one suite or collection of scripts/suites.list,"
	@echo "               ROUNDS=N goes N rounds of each test that goes rounds"
	@echo "make test-full the same, and all suites of the test kernel with KASAN too: hours"
	@echo "make fuzz      random calls on the KASAN kernel: N=1000000, of SEED, or of any;"
	@echo "               with REPLAY=1 one after the other, the same ones for the same SEED"
	@echo "make bench     what map, GET_PA and unmap cost, against Linux 7.3 and pagemap"
	@echo "               MIB=256 goes up to that size only, 1024 by default"
	@echo "make shell     the same guest, with the devices bound, to a shell"
	@echo "make tree      download Linux $(base) and compose build/$(base)/src"
	@echo "make build     build the kernel CONFIG (run by default, or test) incrementally"
	@echo "make refresh   take edits made in build/$(base)/src back into patches/ and our files"
	@echo "make bisect    build, boot and test every prefix of each topic of the series: hours"
	@echo "               TOPIC=name does that of one topic, on those that it builds on"
	@echo "make configs   compile iommufd and VFIO in every combination of options, on 5 architectures"
	@echo "               ROW=name does those rows of scripts/configs.list"
	@echo "make check     checkpatch, sparse, W=1, kernel-doc, coccicheck, codespell, shellcheck"
	@echo "make series    the series as commits, and each topic as mails with a cover letter;"
	@echo "               TOPIC=name writes one, VERSION=2 makes a v2"
	@echo "make dist      an archive of it: mailbox, quilt series, checksums, tried on $(base).y"
	@echo "make deb       a DKMS package for Debian's stock kernels $(base).y"
	@echo "make run-debian  boot those, with the package's modules: ABI tests and an NVMe disk"
	@echo "make test-debian  a Debian on which it is installed, used and removed: as root"
	@echo "make debian-patch  the series for Debian's kernel source package"
	@echo "make docs      render our pages and the kernel's that we change, as the kernel does;"
	@echo "               fails on a message that the unpatched kernel's pages lack"
	@echo "make clean     remove build/ (downloads and ccache are kept in the cache)"
	@echo
	@echo "BASE=7.3 in front of make, or after its target, takes the series for Linux 7.3. Without"
	@echo "it that is 7.2, or 7.3 where Debian has no linux-source-7.2 any more"
	@echo "KERNEL_SRC=DIR|TARBALL  use this Linux $(base) instead of downloading one"
	@echo "ACCEL=kvm|tcg           choose instead of trying"

deps:
	@scripts/deps

base: deps
	@scripts/base

tree: base
	@scripts/compose

CONFIG ?= run
build: tree
	@scripts/build $(CONFIG)

run: tree
	@scripts/build run
	@scripts/image run
	@scripts/demo

shell: tree
	@scripts/build run
	@scripts/image run
	@scripts/shell

test: tree
	@scripts/deps debhelper dh-dkms git
	@scripts/test

test-full: tree
	@scripts/test-full

N ?= 1000000
fuzz: tree
	@scripts/fuzz $(N) "$(SEED)" $(REPLAY)

bench: base
	@scripts/deps gnuplot-nox
	@scripts/bench

bisect: base
	@scripts/bisect

configs: tree
	@scripts/configs

check: base
	@scripts/deps codespell coccinelle git shellcheck
	@scripts/check

series: base
	@scripts/deps git
	@scripts/series

dist: base
	@scripts/deps git
	@scripts/dist

deb: tree
	@scripts/deps debhelper dh-dkms git
	@scripts/deb

run-debian: tree
	@scripts/deps debhelper dh-dkms git
	@scripts/run-debian

test-debian: tree
	@scripts/deps debhelper dh-dkms e2fsprogs git mmdebstrap
	@scripts/test-debian

debian-patch: base
	@scripts/deps git
	@scripts/debian-patch

docs: tree
	@scripts/deps python3-sphinx python3-yaml
	@scripts/docs

refresh:
	@scripts/refresh

clean:
	rm -rf build
