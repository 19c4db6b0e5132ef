#!/bin/sh
# SPDX-License-Identifier: AGPL-3.0-only
# version.sh [VERSION]: VERSION, or what git says, as snapd takes it: 32 characters of a few kinds, beginning and ending with a
# letter or a digit; "v1.2-3-gabc-dirty" is 1.2-3-gabc-dirty.
set -eu
cd "$(dirname "$0")"
version=${1:-$(git describe --tags --always --dirty 2> /dev/null || echo unknown)}
printf '%s\n' "$version" |
  LC_ALL=C sed -E 's/^v([0-9])/\1/; s/[^a-zA-Z0-9:.+~-]+/-/g; s/^[^a-zA-Z0-9]+//; s/^(.{32}).*/\1/; s/[^a-zA-Z0-9]+$//; s/^$/unknown/'
