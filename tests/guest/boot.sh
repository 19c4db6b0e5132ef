# SPDX-License-Identifier: AGPL-3.0-only

# The first process of a guest: root's /bin/sh, in a mount and a PID namespace of its own, which becomes systemd-nspawn and
# ends with the test process. Nothing that it mounts is seen outside. Its environment is made by Guest.spawn.
set -eu

# The kernel's promise to kill this process when the test process ends counts from a moment after its birth.
[ -e "/proc/$OWNER" ] || exit 1

for cgroup in $CGROUPS; do
  echo 0 > "$cgroup/cgroup.procs"
done
: > "$DIR/netns"
mount --bind "$NETNS" "$DIR/netns"
# volatile: nothing is synced, above all not the whole of this machine when the guest ends.
mount -t overlay overlay -o "lowerdir=$IMAGE,upperdir=$DIR/up,workdir=$DIR/work,volatile" "$DIR/root"

# This machine's systemd stays out of reach, and what nspawn leaves in /run goes with the namespace.
mount -t tmpfs -o mode=755 tmpfs /run
mount -t proc proc /proc

export NOTIFY_SOCKET="$DIR/notify" SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
exec taskset --cpu-list "$CPU" systemd-nspawn --quiet --directory="$DIR/root" --machine="$NAME" --boot --notify-ready=yes \
  --register=no --keep-unit --network-namespace-path="$DIR/netns" --capability=CAP_NET_ADMIN \
  --resolv-conf=off --timezone=off --link-journal=no --console=pipe --bind=/dev/fuse
