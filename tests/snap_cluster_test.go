// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/tests/guest"
	"github.com/lxd-recover/lxd-recover/tests/progress"
)

// TestSnapCluster has three machines with everything as snaps, and root types `lxd`. First all of them move to other
// addresses, then one is lost. Each time one member imports by the command, and another by `snap set`.
func TestSnapCluster(t *testing.T) {
	t.Parallel()
	ctx := within(t, 5*time.Minute)
	network := guest.NetworkForTest(t)
	var options []guest.Options
	for _, n := range []string{"1", "2", "3"} {
		options = append(options, guest.Options{Name: "node" + n, Network: network, Address: "10.78.0." + n + "/16"})
	}

	nodes := snapGuests(t, packSnap(t, "1"), options...)
	must(t, guest.FormCluster(ctx, nodes...))
	one, two, three := nodes[0], nodes[1], nodes[2]
	waitThreeVoters(t, one)
	for _, g := range nodes {
		inGuest(t, g, "lxd-recover", "frontend", "install")
		wantFrontEnd(t, g)
	}

	lxcInGuest(t, one, "profile", "create", "before-the-move")

	t.Run("addresses change", func(t *testing.T) {
		stopSnaps(t, nodes)
		for i, g := range nodes {
			n := string(rune('1' + i))
			inGuest(t, g, "ip", "address", "flush", "dev", "eth0")
			inGuest(t, g, "ip", "address", "add", "10.79.0."+n+"/16", "dev", "eth0")
		}

		inGuest(t, one, "sh", "-c", "lxd cluster show | sed s/10.78.0/10.79.0/ | lxd cluster edit")
		inGuest(t, one, "lxd", "cluster", "export-db", guestTarball)
		for _, g := range nodes[1:] {
			must(t, g.Put(ctx, one.Root()+guestTarball, guestTarball, 0o600))
		}

		inGuest(t, one, "lxd", "global-db-import", "--yes", guestTarball)
		for _, g := range nodes[1:] {
			wantRequested(t, g, "LXD was not started", "import="+guestTarball, "discard-local-entries=true")
		}

		wantCluster(t, nodes, "10.79.0.1:8443", "10.79.0.2:8443", "10.79.0.3:8443")
		lxcInGuest(t, three, "profile", "create", "after-the-move")
		for _, g := range nodes {
			wantProfiles(t, g, "after-the-move", "before-the-move", "default")
		}
	})
	if t.Failed() {
		return // the next part begins with a cluster that works
	}

	t.Run("quorum loss", func(t *testing.T) {
		waitThreeVoters(t, one)
		must(t, three.Close())
		stopSnaps(t, nodes[:2])
		inGuest(t, one, "sh", "-c", "lxd cluster show | sed '/name: node3/,/role:/ s/role: .*/role: spare/' | lxd cluster edit")
		inGuest(t, one, "lxd", "cluster", "export-db", guestTarball, "--force")
		must(t, two.Put(ctx, one.Root()+guestTarball, guestTarball, 0o600))
		wantRequested(t, one, "LXD was not started", "import="+guestTarball)
		inGuest(t, two, "lxd", "global-db-import", "--yes", "--discard-local-entries", guestTarball)
		wantCluster(t, nodes[:2], "10.79.0.1:8443", "10.79.0.2:8443")
		wantProfiles(t, two, "after-the-move", "before-the-move", "default")
		lxcInGuest(t, two, "profile", "create", "after-the-loss")
		wantProfiles(t, one, "after-the-loss", "after-the-move", "before-the-move", "default")
		inGuest(t, two, "sh", "-c", "echo yes | lxc cluster remove --force node3")
		if list := lxcInGuest(t, one, "cluster", "list", "--format", "csv"); strings.Contains(list, "node3") {
			t.Errorf("node3 is still there: %s", list)
		}
	})
}

// stopSnaps stops LXD on the first of the guests last, so that it has the newest database. Another can still have a heartbeat
// or a warning of its own from its last moment.
func stopSnaps(t testing.TB, nodes []*guest.Guest) {
	t.Helper()
	for _, g := range slices.Backward(nodes) {
		inGuest(t, g, "snap", "stop", "lxd")
	}
}

// wantCluster starts the LXDs of the guests, and waits until each lists all of them online, at these addresses.
func wantCluster(t testing.TB, nodes []*guest.Guest, addresses ...string) {
	t.Helper()
	// All at once: `snap start` returns when LXD answers, which takes a majority.
	errs := make(chan error, len(nodes))
	for _, g := range nodes {
		go func() {
			_, err := g.Exec(within(t, progress.Far), "snap", "start", "lxd")
			errs <- err
		}()
	}

	for range nodes {
		must(t, <-errs)
	}

	for _, g := range nodes {
		ctx := within(t, progress.Far)
		for {
			list, err := g.Exec(ctx, "lxc", "cluster", "list", "--format", "csv")
			online := 0
			for line := range strings.Lines(list) {
				for _, address := range addresses {
					if strings.Contains(line, "https://"+address) && strings.Contains(line, "ONLINE") {
						online++
					}
				}
			}

			if err == nil && online == len(addresses) {
				break
			}

			if staleRole(t, g, list, err) {
				t.Logf("LXD on %s takes itself for a voter, and is none any more: started again", g.Name)
				inGuest(t, g, "systemctl", "kill", "--signal=KILL", snapService)
				inGuest(t, g, "snap", "start", "lxd")
			}

			select {
			case <-ctx.Done():
				t.Fatalf("%s does not list %v as online: %s %v", g.Name, addresses, list, err)
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
}
