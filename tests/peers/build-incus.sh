#!/bin/bash
# SPDX-License-Identifier: AGPL-3.0-only
# build-incus.sh DIR: Debian 13 with Incus 6.0.4 in DIR/root, and DIR/bin/incusd and DIR/bin/incus, which run its programs from there.
#
# Nothing of it is installed on this machine. It is downloaded from whatever mirror this machine's apt uses, and every signature is checked with
# Debian's keyring. Machines and guests can be made over the same root: a systemd and an sshd are in it. DIR/.done is a copy of this
# script: what another version of it made is made anew. Needs root, mmdebstrap and debian-archive-keyring.
set -euo pipefail
fail() { echo "build-incus: $*" >&2; exit 1; }

suite=trixie
packages=(
  incus-base                # daemon and client, and libcowsql; no qemu
  systemd systemd-sysv dbus # what boots
  iproute2
  openssh-server openssh-client
)
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

script=$(realpath "$0")
mkdir -p "$1"
cd "$1"
exec 9> .lock
flock 9
cmp -s "$script" .done && exit 0
command -v mmdebstrap > /dev/null || fail "mmdebstrap is missing: apt-get install mmdebstrap debian-archive-keyring"
[ -e "$keyring" ] || fail "$keyring is missing: apt-get install debian-archive-keyring"

codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
mirror=$(apt-get indextargets --format '$(ORIGIN) $(RELEASE) $(SITE)' 'Created-By: Packages' |
  awk -v codename="$codename" '$1 == "Debian" && $2 == codename { print $3; exit }')
[ -n "$mirror" ] || fail "apt knows no mirror of Debian: run apt-get update on a Debian machine"

# In namespaces of its own, so that no mount and no process stays if this is killed.
rm -rf .done new root bin
nice unshare --mount --pid --fork --kill-child --mount-proc \
  mmdebstrap --quiet --variant=minbase --include="${packages[*]}" "$suite" new \
  "deb [signed-by=$keyring] $mirror $suite main" \
  > build.log 2>&1 9>&- ||
  { tail -n 30 build.log >&2; fail "mmdebstrap failed"; }
rm -rf new/etc/apt/sources.list new/etc/apt/sources.list.d/*
mv new root

# A program of that root needs its C library and some of its configuration. In a mount namespace of its own it has them as /usr and /etc, and all
# other directories, Incus's own among them, have the names in it that they have outside. The shells become the program: one process.
mkdir bin
cat > bin/incus << 'END'
#!/bin/sh
# Made by build-incus.sh: runs the program of this name with Debian 13's /usr and /etc.
program=/usr/bin/incus
[ "${0##*/}" = incus ] || program=/usr/libexec/incus/${0##*/}
exec unshare --mount --propagation private sh -c 'mount --bind "$0/etc" /etc && mount --bind "$0/usr" /usr && exec "$@"' \
  "${0%/*}/../root" "$program" "$@"
END
chmod 755 bin/incus
ln -s incus bin/incusd
bin/incusd --version | sed 's/^/build-incus: Incus /'
cp "$script" .done
