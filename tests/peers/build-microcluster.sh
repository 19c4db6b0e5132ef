#!/bin/bash
# SPDX-License-Identifier: AGPL-3.0-only
# build-microcluster.sh DQLITE DIR: microd and microctl, the example of microcluster v2 that MicroCloud, MicroCeph and MicroOVN follow, built into
# DIR/bin from the module that microcluster/go.mod pins. What is there already is built again only if the module or this script has changed.
#
# They are linked with the libdqlite in DQLITE (build-libdqlite.sh). go-dqlite v2.0.0 knows a function that libdqlite 1.18 no longer has, and calls it
# only if an application asks for it; microcluster/disk_mode.h stands in for it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dqlite=$(cd "$1" && pwd)
mkdir -p "$2"
dir=$(cd "$2" && pwd)

sum=$(cat "$here/build-microcluster.sh" "$here"/microcluster/* | sha256sum)
[ "$(cat "$dir/.done" 2>/dev/null)" != "$sum" ] || exit 0
rm -rf "$dir/.done" "$dir/new"
mkdir "$dir/new"

# The main module's flags are for a static binary; these are none.
export CGO_ENABLED=1 CGO_CFLAGS="-O2 -I$dqlite/include -include $here/microcluster/disk_mode.h"
export CGO_LDFLAGS="-L$dqlite/lib -ldqlite -luv -llz4 -lsqlite3 -lm" CGO_LDFLAGS_ALLOW='-Wl,-z,now'

cd "$here/microcluster"
module=github.com/canonical/microcluster/v2
nice -n 15 go build -trimpath -tags libsqlite3 -ldflags "-s -w -X $module/example/version.version=test" -o "$dir/new" "$module/example/cmd/microd" "$module/example/cmd/microctl"
rm -rf "$dir/bin"
mv "$dir/new" "$dir/bin"
echo "build-microcluster: microcluster $(awk -v m="$module" '$1 == m { print $2 }' go.mod)"
echo "$sum" > "$dir/.done"
