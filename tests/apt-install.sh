#!/bin/bash
# SPDX-License-Identifier: AGPL-3.0-only
# apt-install.sh PACKAGE...: installs those that are missing. Needs no root where all are there.
set -euo pipefail
missing=()
for package in "$@"; do
  dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^.i' || missing+=("$package")
done

# The lists are also what later steps find the mirror and LXD's package by.
lists=yes
apt-cache show lxd >/dev/null 2>&1 || lists=no
[ ${#missing[@]} -gt 0 ] || [ $lists = no ] || exit 0

[ "$(id -u)" = 0 ] || { echo "apt-install: as root: apt-get update; apt-get install ${missing[*]}" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
apt-get -q update
[ ${#missing[@]} -eq 0 ] || apt-get -q install -y --no-install-recommends "${missing[@]}"
