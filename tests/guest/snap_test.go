// SPDX-License-Identifier: AGPL-3.0-only

package guest_test

import (
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/tests/guest"
)

// TestLXDSnap has LXD as a snap, with the real one's names, and nothing of Debian's LXD.
func TestLXDSnap(t *testing.T) {
	ctx := t.Context()
	snaps, err := guest.Snaps(ctx)
	must(t, err)
	g := guest.ForTest(t, guest.Options{Name: "snap", Address: "10.78.0.1/16", WithoutLXD: true})
	says(t, g, "running", "systemctl", "is-system-running")
	if out, err := g.Exec(ctx, "sh", "-c", "type lxd || type lxc || ls /var/lib/lxd /lib/systemd/system/lxd.socket"); err == nil {
		t.Errorf("Debian's LXD is left: %s", out)
	}

	begin := time.Now()
	must(t, g.InstallLXDSnap(ctx))
	t.Logf("installed in %s", time.Since(begin))
	says(t, g, "/snap/bin/lxd\n/snap/bin/lxc\n", "sh", "-c", "command -v lxd; command -v lxc")
	says(t, g, "5.0.2", "lxd", "--version")
	says(t, g, "lxd.daemon       enabled  inactive  socket-activated", "snap", "services")
	says(t, g, "active", "systemctl", "is-active", "snap.lxd.daemon.unix.socket", "snap.lxd.user-daemon.unix.socket")

	// The first client wakes it, through the socket.
	says(t, g, "server_clustered: false", "lxc", "info")
	says(t, g, "lxd.daemon       enabled  active  ", "snap", "services")
	must(t, guest.FormCluster(ctx, g))
	says(t, g, "10.78.0.1:8443", "lxd", "cluster", "show")

	_, err = g.Exec(ctx, "snap", "stop", "lxd")
	must(t, err)
	says(t, g, "lxd.daemon       enabled  inactive", "snap", "services")
	_, err = g.Exec(ctx, "snap", "start", "lxd")
	must(t, err)
	says(t, g, "10.78.0.1:8443", "lxc", "cluster", "list")

	begin = time.Now()
	must(t, g.InstallSnap(ctx, snaps.LXD[1], "--classic"))
	t.Logf("refreshed in %s", time.Since(begin))
	says(t, g, "5.0.2-fake2", "snap", "list", "lxd")
	says(t, g, "10.78.0.1:8443", "lxc", "cluster", "list")
}
