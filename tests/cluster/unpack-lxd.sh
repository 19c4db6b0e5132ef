#!/bin/bash
# SPDX-License-Identifier: AGPL-3.0-only
# unpack-lxd.sh DIR: Debian's LXD 5.0.2 and the libraries it needs, unpacked into DIR/root and never installed.
#
# The tests run it from there (see the package comment of tests/cluster): an LXD that this machine has stays as it is.
# Packages come from whatever mirror this machine's apt uses, and apt checks their signatures. Of the libraries, those of
# LXD itself (lxc, dqlite, raft) are always taken, and others only if the machine lacks them.
set -euo pipefail
fail() { echo "unpack-lxd: $*" >&2; exit 1; }

mkdir -p "$1"
cd "$1"
[ -e .done ] && exit 0
rm -rf new root && mkdir -p new/debs new/root

# What apt would install on a machine that has nothing: everything LXD needs, whatever it is called in this release.
closure=$(apt-get -q -o Dir::State::status=/dev/null --no-install-recommends --simulate install lxd |
  awk '$1 == "Inst" { print $2 }') || fail "apt cannot find lxd: run apt-get update; Debian 12 has it in main"
wanted=()
for package in $closure; do
  case $package in
    lxd | lxd-client | liblxc* | libdqlite* | libraft*) wanted+=("$package") ;;
    lib*-perl | libfuse*) ;; # of rsync, uidmap and lxcfs, which are not run from here
    lib*) dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^.i' || wanted+=("$package") ;;
  esac
done

(cd new/debs && apt-get -q -o APT::Sandbox::User=root download "${wanted[@]}")
for deb in new/debs/*.deb; do dpkg-deb -x "$deb" new/root; done

# Debian's multiarch directory (x86_64-linux-gnu, aarch64-linux-gnu, …) is where its libdqlite is.
libdqlite=$(find "$PWD/new/root" -name 'libdqlite.so.0' -print -quit)
[ -n "$libdqlite" ] || fail "no libdqlite.so.0 among ${wanted[*]}: is this Debian's lxd?"
lib=${libdqlite%/*}
missing=$(LD_LIBRARY_PATH=$lib ldd new/root/usr/bin/lxd new/root/usr/bin/lxc "$lib"/*.so.? 2>/dev/null |
  awk '/not found/ { print $1 }' | sort -u)
[ -z "$missing" ] || fail "libraries not found:" $missing

mv new/root root
rm -rf new
LD_LIBRARY_PATH=$PWD/root/${lib#"$PWD/new/root/"} root/usr/bin/lxd --version | sed 's/^/unpack-lxd: LXD /'
touch .done
