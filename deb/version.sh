#!/bin/sh
# SPDX-License-Identifier: AGPL-3.0-only
# version.sh [VERSION [SECONDS]]: VERSION, or what git says, as dpkg orders it: "v1.2" is 1.2, "v1.2-rc1" is 1.2~rc1 and comes before
# it, "v1.2-3-gabc1234" is 1.2+3.gabc1234 and comes after it, and a commit without a tag before it is 0~git20261125.abc1234, by the day of
# SECONDS ($SOURCE_DATE_EPOCH), before all of them.
set -eu
cd "$(dirname "$0")"
version=${1:-$(git describe --tags --always --dirty 2> /dev/null || echo unknown)}
day=$(date -u -d "@${2:-${SOURCE_DATE_EPOCH:-0}}" +%Y%m%d)
version=$(printf '%s\n' "$version" |
  LC_ALL=C sed -E "s/^v([0-9])/\1/; s/^([0-9a-f]{7,40}(-dirty)?|[^0-9].*)\$/0~git$day.\1/; s/-([0-9]+)-g([0-9a-f]+)/+\1.g\2/
    s/(\+.*)-dirty\$/\1.dirty/; s/-dirty\$/+0.dirty/; s/-/~/g; s/[^a-zA-Z0-9.+~]+/./g")
dpkg --validate-version "$version"
echo "$version"
