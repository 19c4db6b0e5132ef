# SPDX-License-Identifier: AGPL-3.0-only

# The first process of a machine: root's /bin/sh, in namespaces of its own, which becomes sshd. Nothing that it mounts is seen outside.
set -eu

# The kernel's promise to kill this process when the test process ends counts from a moment after its birth.
[ -e "/proc/$OWNER" ] || exit 1

root=$DIR/root
mount -t overlay overlay -o "lowerdir=$IMAGE,upperdir=$DIR/up,workdir=$DIR/work,volatile" "$root"
hostname "$NAME"
mount --rbind /dev "$root/dev"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir "$root/run/sshd"

# The cluster's directory and LXD's programs have the names in it that they have outside; LXD's directory is where Debian has it, besides.
for path in $BIND; do
  mkdir -p "$root$path"
  mount --bind "$path" "$root$path"
done
if [ -n "$LXD" ]; then
  mount --bind "$LXD" "$root$HOME_OF_LXD"
fi
for program in $PROGRAMS; do
  mount --bind "$program" "$root/usr/bin/${program##*/}"
done
mount -t proc proc "$root/proc"

cd "$root"
exec chroot "$root" /usr/sbin/sshd -D -e -f /etc/ssh/machine_config
