#!/bin/bash
# SPDX-License-Identifier: AGPL-3.0-only
# snap-pack.sh IMAGE DIR FILE: `snap pack` of the directory DIR, by the snapd in the guests' image, where this machine has none.
# COMPRESSION: lzo (fast) or xz (small; the default). The image stays as it is. Needs root.
set -euo pipefail
image=$(realpath "$1") dir=$(realpath "$2") file=$(realpath "$3")

# In a mount namespace of its own, so that nothing stays mounted should this be killed.
export image dir file
exec unshare --mount --pid --fork --kill-child --propagation private bash -euc '
  mount -t tmpfs tmpfs "$image/mnt"
  mkdir "$image/mnt/snap" "$image/mnt/out"
  mount --bind "$dir" "$image/mnt/snap"
  mount --bind "$(dirname "$file")" "$image/mnt/out"
  mount -t tmpfs tmpfs "$image/tmp"
  mount -t proc proc "$image/proc"
  chroot "$image" snap pack ${COMPRESSION:+--compression="$COMPRESSION"} --filename="$(basename "$file")" /mnt/snap /mnt/out'
