#!/bin/bash
# SPDX-License-Identifier: AGPL-3.0-only
# pack.sh [VERSION [DIR]]: packs the snap without snapcraft, into DIR/lxd-recover_VERSION_ARCH.snap, whose name it prints.
# VERSION is git's where it is not given or empty, DIR is bin. `snap pack` is this machine's, or the one in the guests' image,
# which needs root. COMPRESSION: xz (the default) or lzo. `make build man` first; `make snap` does all of that.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=$(snap/local/version.sh "${1:-}")
arch=$(go env GOARCH)
out=$(realpath "${2:-bin}")/lxd-recover_${version}_$arch.snap

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
chmod 755 "$dir"
snap/local/stage.sh "$dir"
install -D -m 755 -t "$dir/meta/hooks" snap/hooks/*
go run ./snap/local/snapyaml snap/snapcraft.yaml "$version" "$arch" > "$dir/meta/snap.yaml"

# Same sources, same snap: mksquashfs takes the time from here.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2> /dev/null || echo 0)}
export SOURCE_DATE_EPOCH
if command -v snap > /dev/null; then
  snap pack ${COMPRESSION:+--compression="$COMPRESSION"} --filename="$(basename "$out")" "$dir" "$(dirname "$out")" > /dev/null
else
  tests/guest/build-image.sh .deps/guest
  tests/guest/snap-pack.sh .deps/guest/root "$dir" "$out" > /dev/null
fi
echo "$out"
