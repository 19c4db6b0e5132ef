// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/guest"
)

// TestSnap is about an LXD that snapd runs: each part finds it running, in a cluster of one, and has a tarball to import that
// was exported from it before it last started.
func TestSnap(t *testing.T) {
	t.Parallel()
	g := snapGuests(t, packSnap(t, "1"), guest.Options{Name: "node1", Address: "10.78.0.1/16"})[0]
	must(t, guest.FormCluster(t.Context(), g))
	lxcInGuest(t, g, "profile", "create", "exported")
	exportFromSnap(t, g, guestTarball)
	runParts(t, g, startSnap, []guestPart{
		{"import beside a running LXD", testSnapImportBeside},
		{"looking does not wake it", testSnapLooking},
		{"only the socket is up", testSnapOnlySocket},
		{"nothing is up", testSnapNothingUp},
		{"nothing is to be started", testSnapNoStart},
		{"clients that call all the time", testSnapCallingClients},
		{"rollback", testSnapRollback},
		{"backups at set times", testSnapScheduled},
		{"refreshes of LXD are held", testHold},
		{"SIGINT", func(t *testing.T, g *guest.Guest) { testSignal(t, g, "INT") }},
		{"SIGTERM", func(t *testing.T, g *guest.Guest) { testSignal(t, g, "TERM") }},
		{"killed before the exchange", testKilledBefore},
		{"killed after the exchange", testKilledAfter},
		{"LXD that fails to start", testFailedStart},
	})
}

// testSnapImportBeside imports while LXD runs: it is stopped, started once, and ready.
func testSnapImportBeside(t *testing.T, g *guest.Guest) {
	lxcInGuest(t, g, "profile", "create", "written-since") // the tarball lacks it
	begin := len(snapStarts(t, g))
	r := importInGuest(t, g, "--format", "json")
	report := decode[recovery.ImportReport](t, r)
	if !report.Done || !report.Started || !report.Ready || len(report.Warnings) != 0 {
		t.Errorf("report %+v", report)
	}

	wantOrder(t, r.stderr, "Stopping LXD (snap lxd)", "The new database is in place", "Starting LXD (snap lxd)")
	wantState(t, g, "active", snapService, snapSocket, "snap.lxd.user-daemon.unix.socket")
	wantState(t, g, "inactive", "snap.lxd.user-daemon.service")
	if n := len(snapStarts(t, g)) - begin; n != 1 {
		t.Errorf("LXD was started %d times", n)
	}

	wantFree(t, g)
	wantProfiles(t, g, "default", "exported")
	status := statusInGuest(t, g)
	if !status.Running || !status.Agree || !strings.Contains(status.Daemon, "snap lxd") || len(status.Pending) != 0 {
		t.Errorf("status %+v", status)
	}
}

// testSnapLooking asks for the status and does a dry run, both while LXD is down and would be started by whoever calls it.
func testSnapLooking(t *testing.T, g *guest.Guest) {
	onlySocket(t, g)
	begin := len(snapStarts(t, g))
	status := statusInGuest(t, g)
	if status.Running || !strings.Contains(status.Daemon, "on demand") {
		t.Errorf("status %+v", status)
	}

	toolInGuest(t, g, "global-db-import", "--dry-run", guestTarball)
	if n := len(snapStarts(t, g)) - begin; n != 0 {
		t.Errorf("LXD was started %d times", n)
	}

	wantState(t, g, "inactive", snapService)
	wantState(t, g, "active", snapSocket)
}

// testSnapOnlySocket imports while LXD is down and its socket open: nobody wakes it before the new database is in place.
func testSnapOnlySocket(t *testing.T, g *guest.Guest) {
	onlySocket(t, g)
	begin := len(snapStarts(t, g))
	importInGuest(t, g)
	wantState(t, g, "active", snapSocket, "snap.lxd.user-daemon.unix.socket")
	if n := len(snapStarts(t, g)) - begin; n != 0 {
		t.Errorf("LXD was woken %d times", n)
	}

	wantFree(t, g)
	wantProfiles(t, g, "default", "exported")
	wantStartsAfterExchange(t, g, snapLXD, snapStarts(t, g)[begin:])
}

// testSnapNothingUp imports while the whole snap is stopped, and it stays so.
func testSnapNothingUp(t *testing.T, g *guest.Guest) {
	inGuest(t, g, "snap", "stop", "lxd")
	begin := len(snapStarts(t, g))
	importInGuest(t, g)
	wantState(t, g, "inactive", snapService, snapSocket, "snap.lxd.user-daemon.unix.socket")
	if n := len(snapStarts(t, g)) - begin; n != 0 {
		t.Errorf("LXD was started %d times", n)
	}

	wantFree(t, g)
}

// testSnapNoStart imports with --no-start, which leaves the whole snap stopped.
func testSnapNoStart(t *testing.T, g *guest.Guest) {
	importInGuest(t, g, "--no-start")
	wantState(t, g, "inactive", snapService, snapSocket)
	wantFree(t, g)
	startSnap(t, g)
	wantProfiles(t, g, "default", "exported")
}

// testSnapCallingClients imports while clients call, whose every call would start LXD.
func testSnapCallingClients(t *testing.T, g *guest.Guest) {
	stop := callAllTheTime(t, g)
	defer stop()
	for range 2 {
		inGuest(t, g, "systemctl", "reset-failed", snapService)
		begin := len(snapStarts(t, g))
		importInGuest(t, g)
		wantStartsAfterExchange(t, g, snapLXD, snapStarts(t, g)[begin:])
		wantProfiles(t, g, "default", "exported")
	}
}

// testSnapRollback goes back to before an import.
func testSnapRollback(t *testing.T, g *guest.Guest) {
	lxcInGuest(t, g, "profile", "create", "replaced")
	importInGuest(t, g)
	wantProfiles(t, g, "default", "exported")
	inGuest(t, g, "lxd-recover", "global-db-rollback", "--yes", "--discard-local-entries")
	wantState(t, g, "active", snapService, snapSocket)
	wantProfiles(t, g, "default", "exported", "replaced")
	wantFree(t, g)
}

// onlySocket stops LXD and leaves its socket open.
func onlySocket(t testing.TB, g *guest.Guest) {
	t.Helper()
	inGuest(t, g, "systemctl", "stop", snapService)
	wantState(t, g, "inactive", snapService)
	wantState(t, g, "active", snapSocket)
}

// testHold looks at what snapd says while LXD is being stopped, with and without a hold of the administrator's.
func testHold(t *testing.T, g *guest.Guest) {
	for _, theirs := range []string{"", "30m", "48h"} {
		inGuest(t, g, "snap", "start", "lxd")
		lxcInGuest(t, g, "list")
		before := ""
		if theirs != "" {
			inGuest(t, g, "snap", "refresh", "--hold="+theirs, "lxd")
			before = heldUntil(t, g)
		}

		b, thaw := importBesideFrozen(t, g)
		during, err := time.Parse(time.RFC3339, heldUntil(t, g))
		if err != nil || time.Until(during) < 50*time.Minute {
			t.Errorf("hold %q: during the import until %s (%v)", theirs, during, err)
		}

		if list := inGuest(t, g, "snap", "list", "lxd"); !strings.Contains(list, "held") {
			t.Errorf("snap list does not show it: %s", list)
		}

		thaw()
		if status := b.end(); status != 0 {
			t.Errorf("hold %q: exit status %d", theirs, status)
		}

		if after := heldUntil(t, g); !sameTime(before, after) {
			t.Errorf("held until %q before, %q after", before, after)
		}

		if theirs != "" {
			inGuest(t, g, "snap", "refresh", "--unhold", "lxd")
		}

		wantFree(t, g)
	}
}

// sameTime compares times of snapd's: parts of a second do not count.
func sameTime(a, b string) bool {
	if a == b {
		return true
	}

	at, errA := time.Parse(time.RFC3339, a)
	bt, errB := time.Parse(time.RFC3339, b)
	return errA == nil && errB == nil && at.Sub(bt).Abs() < time.Second
}

// testSignal interrupts an import while LXD is being stopped.
func testSignal(t *testing.T, g *guest.Guest, signal string) {
	lxcInGuest(t, g, "profile", "create", "kept-"+strings.ToLower(signal))
	want := profileNames(t, g)
	backups := len(snapBackups(t, g))
	b, thaw := importBesideFrozen(t, g)
	b.signal(signal)
	thaw()
	if status := b.end(); status == 0 {
		t.Error("exit status 0")
	}

	wantState(t, g, "active", snapService, snapSocket)
	wantFree(t, g)
	wantProfiles(t, g, want...)
	if now := len(snapBackups(t, g)); now != backups {
		t.Errorf("%d kept databases, were %d", now, backups)
	}
}

// testKilledBefore kills an import while LXD is being stopped.
func testKilledBefore(t *testing.T, g *guest.Guest) {
	want := profileNames(t, g)
	b, thaw := importBesideFrozen(t, g)
	b.signal("KILL")
	b.end()
	thaw()
	waitUnit(t, g, snapService, "inactive")
	status := statusInGuest(t, g)
	if status.Running || !strings.Contains(strings.Join(status.Pending, "\n"), "lxd-recover resume") {
		t.Errorf("status %+v", status)
	}

	if heldUntil(t, g) == "" {
		t.Error("the killed import had not held refreshes")
	}

	r := toolInGuest(t, g, "resume")
	if r.status != 0 || !strings.Contains(r.stdout, "LXD is up") {
		t.Errorf("resume: %+v", r)
	}

	wantState(t, g, "active", snapService, snapSocket)
	wantFree(t, g)
	wantProfiles(t, g, want...)
	if r := toolInGuest(t, g, "resume"); r.status != 0 || !strings.Contains(r.stdout, "nothing to resume") {
		t.Errorf("resume again: %+v", r)
	}
}

// testKilledAfter kills an import while LXD is being started: its socket takes its time.
func testKilledAfter(t *testing.T, g *guest.Guest) {
	const slow = "/run/socket-is-slow"
	dropIn := "/etc/systemd/system/" + snapSocket + ".d/slow.conf"
	putText(t, g, dropIn, "[Socket]\nExecStartPre=/bin/sh -c 'while [ -e "+slow+" ]; do sleep 0.05; done'\n")
	inGuest(t, g, "systemctl", "daemon-reload")
	inGuest(t, g, "touch", slow)
	defer inGuest(t, g, "sh", "-c", "rm -f "+slow+" "+dropIn+"; systemctl daemon-reload")
	backups := len(snapBackups(t, g))

	b := inBackground(t, g, "global-db-import", "--yes", "--discard-local-entries", guestTarball)
	b.until("Starting LXD (snap lxd)")
	waitUnit(t, g, snapSocket, "activating")
	b.signal("KILL")
	b.end()
	inGuest(t, g, "rm", slow)
	waitUnit(t, g, snapSocket, "active") // snapd goes on

	status := statusInGuest(t, g)
	if status.Running || !strings.Contains(strings.Join(status.Pending, "\n"), "lxd-recover resume") {
		t.Errorf("status %+v", status)
	}

	if r := toolInGuest(t, g, "resume"); r.status != 0 {
		t.Errorf("resume: %+v", r)
	}

	wantState(t, g, "active", snapService, snapSocket)
	wantFree(t, g)
	wantProfiles(t, g, "default", "exported")
	if now := len(snapBackups(t, g)); now != backups+1 {
		t.Errorf("%d kept databases, were %d", now, backups)
	}
}

// testFailedStart has an LXD that ends at once.
func testFailedStart(t *testing.T, g *guest.Guest) {
	dropIn := "/etc/systemd/system/" + snapService + ".d/fail.conf"
	putText(t, g, dropIn, "[Service]\nExecStart=\nExecStart=/bin/false\nRestart=no\n")
	inGuest(t, g, "systemctl", "daemon-reload")
	r := toolInGuest(t, g, "global-db-import", "--yes", "--discard-local-entries", guestTarball)
	r.want(t, 1, "the database is in place")
	if hold := heldUntil(t, g); hold != "" {
		t.Errorf("refreshes are held until %s", hold)
	}

	inGuest(t, g, "rm", dropIn)
	inGuest(t, g, "systemctl", "daemon-reload")
	inGuest(t, g, "systemctl", "reset-failed")
	startSnap(t, g)
	wantProfiles(t, g, "default", "exported")
	if r := toolInGuest(t, g, "resume"); r.status != 0 {
		t.Errorf("resume: %+v", r)
	}

	wantFree(t, g)
}
