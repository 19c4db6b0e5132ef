#!/bin/bash
# SPDX-License-Identifier: AGPL-3.0-only
# pack.sh [VERSION [DIR]]: packs bin/ as a Debian package, DIR/lxd-recover_VERSION_ARCH.deb, whose name it prints. VERSION is git's where it
# is not given or empty, DIR is bin. COMPRESSION: xz (the default), gzip or none. `make build man` first; `make deb` does all of that.
# Needs dpkg-deb, and no root.
set -euo pipefail
cd "$(dirname "$0")/.."

# Same sources, same package: every time stamp in it is this one.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2> /dev/null || echo 0)}
export SOURCE_DATE_EPOCH
version=$(deb/version.sh "${1:-}")
arch=$(dpkg --print-architecture)
out=$(realpath "${2:-bin}")/lxd-recover_${version}_$arch.deb

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
chmod 755 "$dir"
umask 022
doc=$dir/usr/share/doc/lxd-recover
install -D -m 755 bin/lxd-recover "$dir/usr/bin/lxd-recover"
install -D -m 644 -t "$dir/usr/share/man/man8" bin/man/*.8
install -D -m 644 bin/completions/lxd-recover.bash "$dir/usr/share/bash-completion/completions/lxd-recover"
install -D -m 644 bin/completions/_lxd-recover "$dir/usr/share/zsh/vendor-completions/_lxd-recover"
install -D -m 644 bin/completions/lxd-recover.fish "$dir/usr/share/fish/vendor_completions.d/lxd-recover.fish"
units=$dir/usr/lib/systemd/system
install -D -m 644 -t "$units" deb/lxd-recover-resume.service
install -D -m 644 -t "$units" deb/lxd-recover-backup.service deb/lxd-recover-backup.timer # `lxd-recover backup enable` enables the timer
mkdir -p "$units/multi-user.target.wants" # enabled by this link, and by no script; `systemctl mask` turns it off
ln -s ../lxd-recover-resume.service "$units/multi-user.target.wants/lxd-recover-resume.service"
install -D -m 644 deb/lintian-overrides "$dir/usr/share/lintian/overrides/lxd-recover"
install -D -m 644 -t "$doc" README.md docs/howto-recover.md docs/howto-troubleshoot.md
{ cat deb/copyright; sed 's/^$/./; s/^/ /' LICENSE; } > "$doc/copyright"
cat > "$doc/changelog" << END
lxd-recover ($version) unstable; urgency=medium

  * Packed from the sources of this version. What has changed since the
    last one is in their git history.

 -- $(sed -n 's/^Maintainer: //p' deb/control)  $(LC_ALL=C date -u -d "@$SOURCE_DATE_EPOCH" '+%a, %d %b %Y %T +0000')
END
gzip -9n "$dir"/usr/share/man/man8/*.8 "$doc"/{changelog,README.md,howto-recover.md,howto-troubleshoot.md}

mkdir "$dir/DEBIAN"
install -m 755 -t "$dir/DEBIAN" deb/prerm deb/postrm deb/postinst
size=$(du -k --apparent-size --summarize "$dir" | cut -f 1)
sed "s/@VERSION@/$version/; s/@ARCHITECTURE@/$arch/; s/@SIZE@/$size/" deb/control > "$dir/DEBIAN/control"
(cd "$dir" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum > DEBIAN/md5sums)
find "$dir" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +

# One thread: with several the result depends on how many there are.
dpkg-deb --root-owner-group --threads-max=1 -Z"${COMPRESSION:-xz}" --build "$dir" "$out" > /dev/null
echo "$out"
