// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/guest"
)

// TestSnapRequest is about what `snap set lxd-recover` asks for, and about refreshes of our own snap. Each part finds LXD
// running, in a cluster of one, and has a tarball to import that was exported from it before it last started.
func TestSnapRequest(t *testing.T) {
	t.Parallel()
	g := snapGuests(t, packSnap(t, "1"), guest.Options{Name: "node1", Address: "10.78.0.1/16"})[0]
	must(t, guest.FormCluster(t.Context(), g))
	exportFromSnap(t, g, otherTarball)
	inGuest(t, g, "sh", "-c", "rm -rf --one-file-system "+snapLXD+"/*")
	inGuest(t, g, "snap", "start", "lxd")

	must(t, guest.FormCluster(t.Context(), g))
	lxcInGuest(t, g, "profile", "create", "exported")
	exportFromSnap(t, g, guestTarball)
	runParts(t, g, startSnap, []guestPart{
		{"refused", testRefusedRequests},
		{"import and rollback", testRequestedImport},
		{"LXD is not to be started", testRequestedNoStart},
		{"refresh beside an import", testRefreshBeside},
		{"failing post-refresh", testFailingPostRefresh},
		{"refresh after a killed import", testRefreshRepairs},
		{"a hook that takes too long", testHookTimeout},
		{"front-end, refresh of both, removal", testFrontEndStays},
	})
}

// strippedTarball is guestTarball without manifest and signature.
const strippedTarball = "/root/stripped.tar.gz"

// refusedRequests are what `snap set` asks for in vain, and what it says then.
var refusedRequests = []struct {
	says string
	set  []string
}{
	{"not for this member", []string{"import=" + otherTarball}},
	{"/root/short.tar.gz", []string{"import=/root/short.tar.gz", "discard-local-entries=true"}},
	{"is not signed", []string{"import=" + strippedTarball}},
	{"does not end in a member list", []string{"import=" + strippedTarball, "unsigned=true"}}, // the next check
	{"would be lost", []string{"import=" + guestTarball}},
	{"/root/missing.tar.gz", []string{"import=/root/missing.tar.gz"}},
	{"whole path", []string{"import=lxd_recovery_db.tar.gz"}},
	{"true or false", []string{"import=" + guestTarball, "discard-local-entries=maybe"}},
	{"at once", []string{"import=" + guestTarball, "rollback=true"}},
	{"no kept database", []string{"rollback=nonsense"}},
	{`there is no key "imprt"`, []string{"imprt=" + guestTarball}},
}

// testRefusedRequests asks for what cannot be done: it is told, the request is gone, and neither LXD nor its database notices.
func testRefusedRequests(t *testing.T, g *guest.Guest) {
	lxcInGuest(t, g, "profile", "create", "written-since") // the tarball lacks it
	inGuest(t, g, "sh", "-c", "head --bytes=-1000 "+guestTarball+" > /root/short.tar.gz")
	inGuest(t, g, "sh", "-c", "mkdir /root/files && cd /root/files && tar -xzf "+guestTarball+" && rm recovery.* && tar -czf "+strippedTarball+" *")
	begin := len(snapStarts(t, g))
	thaw := freezeSnap(t, g) // so that the database stays as it is
	defer thaw()
	check := unchanged(t, g.Root()+snapLXD)
	for _, c := range refusedRequests {

		if r := snapSet(t, g, c.set...); r.status == 0 || !strings.Contains(r.stderr, c.says) {
			t.Errorf("snap set %v: exit status %d, %q does not say %q", c.set, r.status, r.stderr, c.says)
		}

		if now := snapSetting(t, g, "status"); !strings.Contains(now, c.says) || strings.Contains(now, "\n") {
			t.Errorf("after snap set %v the status is %q", c.set, now)
		}

		for _, value := range c.set {
			key, _, _ := strings.Cut(value, "=")
			if now := snapSetting(t, g, key); now != "" {
				t.Errorf("after snap set %v: %s is %q", c.set, key, now)
			}
		}
	}

	check()
	if n := len(snapStarts(t, g)) - begin; n != 0 {
		t.Errorf("LXD was started %d times", n)
	}

	wantFree(t, g)
}

// testRequestedImport asks for an import, and for rollbacks: of that, of nothing, and of a rollback.
func testRequestedImport(t *testing.T, g *guest.Guest) {
	want := profileNames(t, g)
	begin := len(snapStarts(t, g))
	wantRequested(t, g, "imported "+guestTarball, "import="+guestTarball, "discard-local-entries=true")
	var answer struct{ Report recovery.ImportReport }
	must(t, json.Unmarshal([]byte(inGuest(t, g, "snap", "get", "-d", "lxd-recover", "report")), &answer))
	report := answer.Report
	if !report.Done || !report.Ready || report.Kept == "" {
		t.Errorf("report %+v", report)
	}

	if n := len(snapStarts(t, g)) - begin; n != 1 {
		t.Errorf("LXD was started %d times", n)
	}

	wantProfiles(t, g, "default", "exported")

	wantRequested(t, g, "is back in place", "rollback=true", "discard-local-entries=true")
	wantProfiles(t, g, want...)
	wantRequested(t, g, "nothing was changed", "rollback=latest")
	if status := snapSetting(t, g, "status"); strings.Contains(status, "LXD was not started") {
		t.Errorf("a rollback that did nothing says %q", status)
	}

	wantProfiles(t, g, want...)
	kept, err := filepath.Glob(g.Root() + snapLXD + "/database.before-rollback-*[Z0-9]") // not its report
	must(t, err)
	if len(kept) != 1 {
		t.Fatalf("kept by the rollback: %v", kept)
	}

	wantRequested(t, g, "is back in place", "rollback="+filepath.Base(kept[0]), "discard-local-entries=true")
	wantProfiles(t, g, "default", "exported")
}

// testRequestedNoStart asks for an import that leaves LXD down.
func testRequestedNoStart(t *testing.T, g *guest.Guest) {
	wantRequested(t, g, "LXD was not started", "import="+guestTarball, "discard-local-entries=true", "no-start=true")
	wantState(t, g, "inactive", snapService, snapSocket)
}

// wantRequested asks for something that is to succeed, and checks that nothing but the answer stays.
func wantRequested(t testing.TB, g *guest.Guest, says string, values ...string) {
	t.Helper()
	if r := snapSet(t, g, values...); r.status != 0 {
		t.Fatalf("snap set %v: %s", values, r.stderr)
	}

	if status := snapSetting(t, g, "status"); !strings.Contains(status, says) || strings.Contains(status, "\n") {
		t.Errorf("status %q does not say %q", status, says)
	}

	for _, value := range values {
		key, _, _ := strings.Cut(value, "=")
		if now := snapSetting(t, g, key); now != "" {
			t.Errorf("%s is still %q", key, now)
		}
	}

	wantFree(t, g)
}

// refreshTool refreshes our own snap.
func refreshTool(t testing.TB, g *guest.Guest, file string, flags ...string) error {
	t.Helper()
	return g.InstallSnap(within(t, 2*time.Minute), file, append(flags, "--classic")...)
}

// testRefreshBeside refreshes while an import waits for LXD to stop, and when it is done.
func testRefreshBeside(t *testing.T, g *guest.Guest) {
	next := packSnap(t, "2")
	b, thaw := importBesideFrozen(t, g)
	err := refreshTool(t, g, next)
	if err == nil || !strings.Contains(err.Error(), "running apps") { // snapd's own check, which can be waived
		t.Errorf("refresh: %v", err)
	}

	err = refreshTool(t, g, next, "--ignore-running")
	if err == nil || !strings.Contains(err.Error(), "pre-refresh") || !strings.Contains(err.Error(), "another lxd-recover") {
		t.Errorf("refresh: %v", err)
	}

	if now := snapVersion(t, g, "lxd-recover"); now != "1" {
		t.Errorf("version %s", now)
	}

	thaw()
	if status := b.end(); status != 0 {
		t.Errorf("the import: exit status %d", status)
	}

	wantFree(t, g)
	wantProfiles(t, g, "default", "exported")
	must(t, refreshTool(t, g, next))
	if now := snapVersion(t, g, "lxd-recover"); now != "2" {
		t.Errorf("version %s", now)
	}

	inGuest(t, g, "snap", "revert", "lxd-recover")
}

// testFailingPostRefresh has a note of an interrupted run that a later lxd-recover must have written: it cannot be resumed.
func testFailingPostRefresh(t *testing.T, g *guest.Guest) {
	putText(t, g, snapStopped, "format: 1000\n")
	err := refreshTool(t, g, packSnap(t, "2"))
	if err == nil || !strings.Contains(err.Error(), "post-refresh") || !strings.Contains(err.Error(), snapStopped) {
		t.Errorf("refresh: %v", err)
	}

	if now := snapVersion(t, g, "lxd-recover"); now != "1" {
		t.Errorf("version %s", now)
	}

	inGuest(t, g, "rm", snapStopped)
	if out := inGuest(t, g, "lxd-recover", "global-db-status"); out == "" {
		t.Error("the old revision says nothing")
	}

	importInGuest(t, g)
	wantProfiles(t, g, "default", "exported")
}

// testRefreshRepairs kills an import while LXD is being stopped.
func testRefreshRepairs(t *testing.T, g *guest.Guest) {
	b, thaw := importBesideFrozen(t, g)
	b.signal("KILL")
	b.end()
	thaw()
	waitUnit(t, g, snapService, "inactive")
	if heldUntil(t, g) == "" {
		t.Error("the killed import had not held refreshes of LXD")
	}

	must(t, refreshTool(t, g, packSnap(t, "2")))
	if now := snapVersion(t, g, "lxd-recover"); now != "2" {
		t.Errorf("version %s", now)
	}

	wantState(t, g, "active", snapService, snapSocket)
	wantFree(t, g)
	if pending := statusInGuest(t, g).Pending; len(pending) != 0 {
		t.Errorf("pending %q", pending)
	}

	wantProfiles(t, g, "default", "exported")
}

// testHookTimeout has a request that snapd gives up on while LXD is being stopped: after seconds here, after five minutes
// elsewhere.
func testHookTimeout(t *testing.T, g *guest.Guest) {
	dropIn := "/etc/systemd/system/snapd.service.d/timeout.conf"
	putText(t, g, dropIn, "[Service]\nEnvironment=SNAPD_CONFIGURE_HOOK_TIMEOUT=20s\n")
	restart := "systemctl daemon-reload; systemctl restart snapd.service"
	inGuest(t, g, "sh", "-c", restart)
	thaw := freezeSnap(t, g)
	r := snapSet(t, g, "import="+guestTarball, "discard-local-entries=true")
	if r.status == 0 || !strings.Contains(r.stderr, "exceeded maximum runtime") || !strings.Contains(r.stderr, "Stopping LXD") {
		t.Errorf("snap set: %+v", r)
	}

	thaw()
	if setting := snapSetting(t, g, "import"); setting != "" {
		t.Errorf("import is still %q", setting)
	}

	waitUnit(t, g, snapService, "inactive")
	inGuest(t, g, "sh", "-c", "rm "+dropIn+"; "+restart)
	if r := toolInGuest(t, g, "resume"); r.status != 0 || !strings.Contains(r.stdout, "LXD is up") {
		t.Errorf("resume: %+v", r)
	}

	wantState(t, g, "active", snapService, snapSocket)
	wantFree(t, g)
	wantProfiles(t, g, "default", "exported")
}

// testFrontEndStays has both snaps refreshed after an import, with the front-end in place, and ours removed.
func testFrontEndStays(t *testing.T, g *guest.Guest) {
	inGuest(t, g, "lxd-recover", "frontend", "install")
	importInGuest(t, g)
	snaps, err := guest.Snaps(t.Context())
	must(t, err)
	must(t, g.InstallSnap(t.Context(), snaps.LXD[1], "--classic"))
	must(t, refreshTool(t, g, packSnap(t, "1")))
	if now := snapVersion(t, g, "lxd"); now != "5.0.2-fake2" {
		t.Errorf("version %s", now)
	}

	wantProfiles(t, g, "default", "exported")
	wantFrontEnd(t, g)

	// What is replaced stays when the snap goes; what would be in the way goes with it.
	kept := snapBackups(t, g)
	inGuest(t, g, "snap", "remove", "lxd-recover")
	wantMissing(t, g.Root()+frontEndLink)
	if now := snapBackups(t, g); len(kept) == 0 || len(now) != len(kept) {
		t.Errorf("%d kept databases, were %d", len(now), len(kept))
	}

	if out := inGuest(t, g, "lxd", "--version"); strings.TrimSpace(out) != "5.0.2" {
		t.Errorf("lxd --version: %q", out)
	}

	wantProfiles(t, g, "default", "exported")
}

// wantFrontEnd checks that root's login shell and sudo find the front-end first, and that it hands on what is LXD's.
func wantFrontEnd(t testing.TB, g *guest.Guest) {
	t.Helper()
	for _, shell := range [][]string{
		{"env", "-i", "HOME=/root", "bash", "--login", "-c"},
		{"sudo", "sh", "-c"},
	} {
		for command, want := range map[string]string{
			"command -v lxd":              frontEndLink,
			"lxd --version":               "5.0.2",
			"lxd global-db-status --help": "member",
		} {
			if out := inGuest(t, g, shell[0], append(shell[1:len(shell):len(shell)], command)...); !strings.Contains(out, want) {
				t.Errorf("%v %s: %q, want %q", shell, command, out, want)
			}
		}
	}
}

// TestSnapWithoutLXD installs the snap on a machine that has no LXD, and removes it.
func TestSnapWithoutLXD(t *testing.T) {
	t.Parallel()
	g := guest.ForTest(t, guest.Options{WithoutLXD: true})
	must(t, g.InstallBases(t.Context()))
	must(t, refreshTool(t, g, packSnap(t, "1")))
	if status := snapSetting(t, g, "status"); !strings.Contains(status, "waiting for LXD") || !strings.Contains(status, "/var/lib/lxd") {
		t.Errorf("status %q", status)
	}

	if r := snapSet(t, g, "import="+guestTarball); r.status == 0 || !strings.Contains(r.stderr, "no LXD found") {
		t.Errorf("import without LXD: %+v", r)
	}

	must(t, refreshTool(t, g, packSnap(t, "2")))
	inGuest(t, g, "bash", "-n", "/snap/lxd-recover/current/completions/lxd-recover.bash")
	inGuest(t, g, "snap", "remove", "lxd-recover")
}
