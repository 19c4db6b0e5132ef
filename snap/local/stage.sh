#!/bin/sh
# SPDX-License-Identifier: AGPL-3.0-only
# stage.sh DIR: what the snap consists of, besides its hooks and its snap.yaml, out of bin/ into DIR. `make build man` first.
set -eu
cd "$(dirname "$0")/../.."
install -D -m 755 bin/lxd-recover "$1/bin/lxd-recover"
install -D -m 644 bin/completions/lxd-recover.bash "$1/completions/lxd-recover.bash"
install -D -m 644 -t "$1/usr/share/man/man8" bin/man/*.8
install -D -m 644 -t "$1/usr/share/doc/lxd-recover" LICENSE README.md
