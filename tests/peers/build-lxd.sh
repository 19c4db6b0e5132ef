#!/bin/bash
# SPDX-License-Identifier: AGPL-3.0-only
# build-lxd.sh DQLITE DIR: LXD 6.6, daemon and client, built into DIR/bin from the module that lxd/go.mod pins. What is there
# already is built again only if the module or this script has changed.
#
# It is linked with the libdqlite in DQLITE (build-libdqlite.sh) and with whatever else Debian's -dev packages have. The tests
# run it from there, beside Debian's 5.0.2: it is never installed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dqlite=$(cd "$1" && pwd)
mkdir -p "$2"
dir=$(cd "$2" && pwd)

pin() { awk '$1 == "github.com/canonical/lxd" { print $2 }' "$1"; }
[ "$(pin "$here/lxd/go.mod")" = "$(pin "$here/../../go.mod")" ] || { echo "build-lxd: $here/lxd/go.mod pins another LXD than the main module" >&2; exit 1; }

sum=$(cat "$here/build-lxd.sh" "$here/lxd/go.mod" "$here/lxd/go.sum" | sha256sum)
[ "$(cat "$dir/.done" 2>/dev/null)" != "$sum" ] || exit 0
rm -rf "$dir/.done" "$dir/new"
mkdir "$dir/new"

# The main module's flags are for a static binary; LXD is none.
export CGO_ENABLED=1 CGO_CFLAGS="-O2 -I$dqlite/include" CGO_LDFLAGS="-L$dqlite/lib -ldqlite -luv -llz4 -lsqlite3 -lm"
# LXD's own code asks the linker for these; the Go tool has to be told that it may.
export CGO_LDFLAGS_ALLOW='(-Wl,-wrap,pthread_create)|(-Wl,-z,now)'

cd "$here/lxd"
nice -n 15 go build -trimpath -tags libsqlite3 -ldflags '-s -w' -o "$dir/new" github.com/canonical/lxd/lxd github.com/canonical/lxd/lxc
rm -rf "$dir/bin"
mv "$dir/new" "$dir/bin"
"$dir/bin/lxd" --version | sed 's/^/build-lxd: LXD /'
echo "$sum" > "$dir/.done"
