#!/bin/bash
# SPDX-License-Identifier: AGPL-3.0-only
# build-snaps.sh DIR: the snaps that guests need before they can have LXD and lxd-recover as snaps, in DIR/snaps: fakes of
# snapd and core24, as no store is asked, and two versions of LXD. DIR/root is the guests' image, which `snap pack` and LXD are
# taken from. DIR/snaps/.done is the sum of what they were made of: others are made anew. Needs root.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
cd "$1"
mkdir -p snaps
exec 9> snaps/.lock
flock 9 # test binaries run side by side
sources=$(sha256sum root/usr/bin/lxd; cd "$here"; sha256sum build-snaps.sh snap-pack.sh lxd-snap/*/*)
[ "$sources" != "$(cat snaps/.done 2> /dev/null)" ] || exit 0

rm -rf snaps/.done snaps/*.snap snaps/*.new
new=$(mktemp -d "$PWD/snaps/XXXXXX.new")
trap 'rm -rf "$new"' EXIT
pack() { COMPRESSION=lzo nice "$here/snap-pack.sh" root "$1" "snaps/$2" 9>&- > /dev/null; }

# snapd wants a snap of this name before it installs any other, and would run the snapd in it, were it not so old.
mkdir -p "$new"/snapd/{meta,usr/lib/snapd}
echo VERSION=1.0 > "$new/snapd/usr/lib/snapd/info"
cat > "$new/snapd/meta/snap.yaml" << 'EOF'
name: snapd
version: fake
summary: Nothing (fake, for tests)
description: What snapd wants to see before it installs another snap, for tests.
type: snapd
architectures: [all]
EOF
pack "$new/snapd" snapd.snap

# The base of classic snaps is only looked for: they run on the guest's own root file system.
mkdir -p "$new/core24/meta"
cat > "$new/core24/meta/snap.yaml" << 'EOF'
name: core24
version: fake
summary: Nothing (fake, for tests)
description: What snapd wants to see before it installs a snap on this base, for tests.
type: base
architectures: [all]
EOF
pack "$new/core24" core24.snap

cp -r "$here/lxd-snap" "$new/lxd"
mkdir "$new/lxd/lib"
cp root/usr/bin/{lxd,lxc,lxd-user} "$new/lxd/lib"
for n in 1 2; do
  sed "s/^version: VERSION$/version: 5.0.2-fake$n/" "$here/lxd-snap/meta/snap.yaml" > "$new/lxd/meta/snap.yaml"
  pack "$new/lxd" "lxd-$n.snap"
done
echo "$sources" > snaps/.done
