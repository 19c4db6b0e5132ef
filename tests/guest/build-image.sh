#!/bin/bash
# SPDX-License-Identifier: AGPL-3.0-only
# build-image.sh DIR: the root file system of the guests (package guest), Debian 13 with snapd and LXD, made in DIR/root.
#
# It is downloaded from whatever mirror this machine's apt uses, and every signature is checked with Debian's keyring.
# Nothing of it is changed afterwards but apt's sources, which are taken away: a guest has no way out. DIR/.done is a copy of
# this script: an image that another version of it made is made anew. Needs root, mmdebstrap and debian-archive-keyring.
set -euo pipefail
fail() { echo "build-image: $*" >&2; exit 1; }

suite=trixie
packages=(
  systemd systemd-sysv dbus # what boots
  snapd squashfuse fuse3    # snaps are mounted through FUSE where there are no loop devices
  lxd                       # 5.0.2, with lxd.service and lxd.socket as Debian enables them; also what LXDSnap is made of
  iproute2
  openssh-server openssh-client # the documented way of a tarball from member to member; root's key is the test's to make
  sudo                          # whose PATH is not the shell's
)
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

script=$(realpath "$0")
mkdir -p "$1"
cd "$1"
exec 9> .lock
flock 9 # test binaries run side by side
cmp -s "$script" .done && exit 0
command -v mmdebstrap > /dev/null || fail "mmdebstrap is missing: apt-get install mmdebstrap debian-archive-keyring"
[ -e "$keyring" ] || fail "$keyring is missing: apt-get install debian-archive-keyring"

codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
mirror=$(apt-get indextargets --format '$(ORIGIN) $(RELEASE) $(SITE)' 'Created-By: Packages' |
  awk -v codename="$codename" '$1 == "Debian" && $2 == codename { print $3; exit }')
[ -n "$mirror" ] || fail "apt knows no mirror of Debian: run apt-get update on a Debian machine"

# In namespaces of its own, so that no mount and no process stays should this be killed.
rm -rf .done new root
nice unshare --mount --pid --fork --kill-child --mount-proc \
  mmdebstrap --quiet --variant=minbase --include="${packages[*]}" "$suite" new \
  "deb [signed-by=$keyring] $mirror $suite main" \
  > build.log 2>&1 9>&- ||
  { tail -n 30 build.log >&2; fail "mmdebstrap failed"; }
rm -rf new/etc/apt/sources.list new/etc/apt/sources.list.d/*
mv new root
cp "$script" .done
