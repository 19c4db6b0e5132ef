#!/bin/bash
# SPDX-License-Identifier: AGPL-3.0-only
# build-libdqlite.sh DIR: builds a static libdqlite (1.18 or newer) from Debian's source package into DIR.
#
# Debian 12 ships libdqlite 1.11; go-dqlite v3 needs 1.18. The source package comes from the unstable suite of the mirror
# that this machine's apt already uses, through an apt configuration of our own inside DIR: nothing is written to /etc or
# /usr, and the signatures are checked with Debian's own keyring.
set -euo pipefail
mkdir -p "$1"
cd "$1"
[ -e lib/libdqlite.a ] && exit 0

codename=$(. /etc/os-release; echo "$VERSION_CODENAME")
# shellcheck disable=SC2016  # the $(…) belong to apt's format language
mirror=$(apt-get indextargets --format '$(RELEASE) $(SITE)' 'Created-By: Packages' |
  awk -v c="$codename" '$1 == c { print $2; exit }')
[ -n "$mirror" ] || { echo "build-libdqlite: no Debian mirror for $codename in apt's lists: run apt-get update" >&2; exit 1; }

rm -rf build && mkdir -p build/lists/partial build/cache/archives/partial
cd build
echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror unstable main" > sources.list
apt=(apt-get -q -o "Dir::Etc::sourcelist=$PWD/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$PWD/lists"
  -o "Dir::Cache=$PWD/cache" -o APT::Sandbox::User=root)
"${apt[@]}" update
"${apt[@]}" source --download-only dqlite      # checks the sha256 of the signed index
dpkg-source --no-check -x dqlite_*.dsc src     # the maintainer's own signature on the .dsc is not needed after that

cd src
autoreconf -i
./configure --enable-static --disable-shared --enable-build-raft --prefix="$(cd ../.. && pwd)"
make -j"$(nproc)"
make install
rm -rf ../../build
