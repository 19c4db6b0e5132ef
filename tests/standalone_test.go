// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
	"github.com/lxd-recover/lxd-recover/tests/guest"
)

// keptByHand is the name of a kept database that no run has made.
const keptByHand = "database.before-repair-20261126T050000Z"

// TestStandalone is about an LXD that is no member of a cluster: all that looks at a database works on it, running or not, finds nothing
// wrong, and says so. What is for clusters only says that.
func TestStandalone(t *testing.T) {
	t.Parallel()
	cluster.EachLXD(t, func(t *testing.T, lxd cluster.LXD) {
		for name, config := range map[string]map[string]string{
			"local":                     nil,
			"reached by clients":        {"core.https_address": "10.77.0.101:8443"},
			"about to become a cluster": {"cluster.https_address": "10.77.0.101:8443"},
		} {
			t.Run(name, func(t *testing.T) { standaloneLooks(t, cluster.Options{LXD: lxd, Config: config}) })
		}
	})
}

func standaloneLooks(t *testing.T, opts cluster.Options) {
	m := cluster.StandaloneForTest(t, opts)
	ctx := within(t, 2*time.Minute)
	must(t, m.CreateProfile(ctx, "mine"))
	besideFrozen(t, m, func() {
		wantStandalone(t, m)
		wantClusterOnly(t, m)
	})
	must(t, m.Stop(ctx))
	check := unchanged(t, m.Dir())
	wantStandalone(t, m)
	wantClusterOnly(t, m)
	check()
}

// wantStandalone looks at a standalone server with every command that looks at one.
func wantStandalone(t *testing.T, m *cluster.Member) {
	t.Helper()
	status := decode[recovery.StatusReport](t, mustRecover(t, m, "global-db-status", "--format", "json"))
	if !status.Standalone || !status.Agree || !status.Healthy || status.Running != m.Running() || len(status.Problems) > 0 || len(status.Pending) > 0 {
		t.Errorf("status %+v", status)
	}

	wantNoAlarm(t, mustRecover(t, m, "global-db-status").stdout)
	report := decode[recovery.InspectReport](t, mustRecover(t, m, "global-db-inspect", "--format", "json"))
	if !report.Standalone || !report.Healthy || worst(report.Problems) > raftlog.Info || report.Data.Tables["nodes"] != 1 {
		t.Errorf("inspect %+v", report)
	}

	wantNoAlarm(t, mustRecover(t, m, "global-db-inspect").stdout)
	log := mustRecover(t, m, "global-db-log", "--rows", "--find", "insert profile mine")
	profiles := mustRecover(t, m, "global-db-sql", "--format", "csv", "SELECT name FROM profiles ORDER BY id")
	if !strings.Contains(log.stdout, "insert profile mine in project default") || profiles.stdout != "name\ndefault\nmine\n" {
		t.Errorf("log %q, profiles %q", log.stdout, profiles.stdout)
	}

	mustRecover(t, m, "global-db-kept", "list")
}

// wantNoAlarm wants a table to say that this is a standalone server, and nothing of what would be wrong with a member of a cluster.
func wantNoAlarm(t testing.TB, table string) {
	t.Helper()
	if !strings.Contains(table, "| standalone server") {
		t.Errorf("no standalone server in %s", table)
	}

	for _, alarm := range []string{"differ", "roblem", "DAMAGED", "0.0.0.0", "not a", "info:", "recover from"} {
		if strings.Contains(table, alarm) {
			t.Errorf("%q in %s", alarm, table)
		}
	}
}

// wantClusterOnly calls what is for clusters only.
func wantClusterOnly(t *testing.T, m *cluster.Member) {
	t.Helper()
	tarball := filepath.Join(t.TempDir(), "x.tar.gz")
	for _, args := range [][]string{
		{"cluster", "edit", "--yes"}, {"cluster", "edit", "--passthrough"}, {"cluster", "recover-from-quorum-loss", "--quiet"},
		{"cluster", "export-db", tarball}, {"cluster", "export-db", "--unedited", "--accept-damage", tarball}, {"global-db-import", "--yes", tarball},
	} {
		r := recoverTool(t, m, args...)
		want := "Error: this " + m.Build().Names.Product +
			" is a standalone server, no member of a cluster: `lxd-recover global-db-repair` repairs its database\n"
		if r.status != 1 || r.stderr != want {
			t.Errorf("%q: exit status %d, %q", args, r.status, r.stderr)
		}
	}

	wantMissing(t, tarball)
}

// TestStandaloneRollback puts a kept database of a standalone LXD back, and LXD starts on it.
func TestStandaloneRollback(t *testing.T) {
	t.Parallel()
	cluster.EachProduct(t, func(t *testing.T, lxd cluster.LXD) {
		m := cluster.StandaloneForTest(t, cluster.Options{LXD: lxd})
		ctx := within(t, 3*time.Minute)
		must(t, m.CreateProfile(ctx, "kept"))
		must(t, m.Stop(ctx))
		database, kept := filepath.Join(m.Dir(), "database"), filepath.Join(m.Dir(), keptByHand)
		before := tree(t, database)
		out, err := exec.Command("cp", "-a", database, kept).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}

		must(t, m.Start(ctx))
		must(t, m.CreateProfile(ctx, "since"))
		must(t, m.Stop(ctx))
		recoverTool(t, m, "global-db-rollback", "--yes").want(t, 3, "would be lost", "insert profile since in project default", "--discard-local-entries")
		report := decode[recovery.RollbackReport](t, mustRecover(t, m, "global-db-rollback", "--yes", "--discard-local-entries", "--format", "json"))
		if !report.Done || !report.Standalone || report.Restored.Name != keptByHand || len(report.Warnings) > 0 {
			t.Errorf("%+v", report)
		}

		if after := tree(t, database); after != before {
			t.Errorf("put back\n%s\nwas\n%s", after, before)
		}

		wantStarted(t, m, "default", "kept")
		must(t, m.Stop(ctx))
		name := filepath.Base(report.Kept)
		again := decode[recovery.RollbackReport](t, mustRecover(t, m, "global-db-rollback", "--yes", "--format", "json"))
		if !again.NothingToDo || again.Restored.Name != name {
			t.Errorf("a second time: %+v", again)
		}

		mustRecover(t, m, "global-db-rollback", "--yes", "--discard-local-entries", name)
		wantStarted(t, m, "default", "kept", "since")
	})
}

// TestStandaloneLostNodeDatabase starts a standalone LXD whose node database is missing: it makes a new one, and goes on as it was.
func TestStandaloneLostNodeDatabase(t *testing.T) {
	t.Parallel()
	cluster.EachProduct(t, func(t *testing.T, lxd cluster.LXD) {
		m := cluster.StandaloneForTest(t, cluster.Options{LXD: lxd})
		ctx := within(t, 3*time.Minute)
		must(t, m.CreateProfile(ctx, "kept"))
		must(t, m.Stop(ctx))
		must(t, os.Remove(localOf(m)))
		s := status(t, m)
		if !s.Standalone || !s.Agree || len(s.Problems) != 1 || !strings.Contains(s.Problems[0], localOf(m)+" is missing: put back a copy of it") {
			t.Errorf("status %+v", s)
		}

		wantClusterOnly(t, m)
		wantStarted(t, m, "default", "kept")
		s = status(t, m)
		if !s.Standalone || !s.Agree || len(s.Problems) > 0 {
			t.Errorf("status once it was started: %+v", s)
		}
	})
}

// wantStarted starts a standalone LXD. What waits for it takes it for ready, though it cannot be asked for members.
func wantStarted(t *testing.T, m *cluster.Member, profiles ...string) {
	t.Helper()
	ctx := within(t, time.Minute)
	must(t, m.Spawn())
	addresses, err := daemon.WaitReady(ctx, m.Dir(), nil)
	if err != nil || len(addresses) > 0 {
		t.Fatalf("addresses %v, %v; its log: %s", addresses, err, m.LogTail(5))
	}

	must(t, m.WaitReady(ctx))
	names, err := m.Profiles(ctx)
	if err != nil || !slices.Equal(names, profiles) {
		t.Errorf("profiles %q, %v, want %q", names, err, profiles)
	}
}

// TestSystemdStandalone rolls a standalone LXD back that systemd runs: it is stopped, started once, and ready.
func TestSystemdStandalone(t *testing.T) {
	t.Parallel()
	g := guest.ForTest(t, guest.Options{Name: "server1", Address: "10.78.0.1/16"})
	must(t, g.Put(t.Context(), tool, "/usr/local/bin/lxd-recover", 0o755))
	must(t, g.StartStandalone(t.Context()))
	lxcInGuest(t, g, "profile", "create", "kept")
	inGuest(t, g, "systemctl", "stop", "lxd.socket", "lxd.service")
	inGuest(t, g, "cp", "-a", guestLXD+"/database", guestLXD+"/"+keptByHand)
	startLXD(t, g)
	lxcInGuest(t, g, "profile", "create", "since")
	begin := len(lxdStarts(t, g))

	r := toolInGuest(t, g, "global-db-rollback", "--yes", "--discard-local-entries", "--format", "json")
	report := decode[recovery.RollbackReport](t, r)
	if !report.Done || !report.Standalone || !report.Started || !report.Ready || len(report.Warnings) > 0 {
		t.Errorf("report %+v", report)
	}

	wantOrder(t, r.stderr, "Stopping LXD (systemd unit lxd.service)", "The old database is back", "Starting LXD (systemd unit lxd.service)")
	if n := len(lxdStarts(t, g)) - begin; n != 1 {
		t.Errorf("LXD was started %d times", n)
	}

	wantProfiles(t, g, "default", "kept")
	status := statusInGuest(t, g)
	if !status.Standalone || !status.Running || !status.Agree || len(status.Problems)+len(status.Pending) > 0 || len(status.Kept) != 1 {
		t.Errorf("status %+v", status)
	}
}

// TestStandaloneFixture is about a standalone LXD 5.0.2 as a public report has it (canonical/lxd#6298): two snapshots with WAL parts, and
// segments from the first one on.
func TestStandaloneFixture(t *testing.T) {
	dir := t.TempDir()
	out, err := exec.Command("tar", "-xJf", "fixtures/standalone-5.0.2.tar.xz", "-C", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	lxdDir := filepath.Join(dir, "solo")
	call := func(args ...string) result {
		cmd := exec.CommandContext(t.Context(), tool, args...)
		cmd.Env = append(os.Environ(), "LXD_DIR="+lxdDir)
		return run(t, cmd)
	}
	check := unchanged(t, lxdDir)
	status := call("global-db-status")
	wantNoAlarm(t, status.stdout)
	inspected := call("global-db-inspect")
	wantNoAlarm(t, inspected.stdout)
	verbose := call("global-db-inspect", "--verbose")
	infos := strings.Count(verbose.stdout, "has a write-ahead log in the snapshot")
	if status.status+inspected.status+verbose.status != 0 || infos != 2 || strings.Contains(verbose.stdout, "another member") {
		t.Errorf("%d infos in %s", infos, verbose.stdout)
	}

	for _, format := range []string{"json", "yaml"} {
		text := strings.ReplaceAll(call("global-db-inspect", "--format", format).stdout, `"`, "")
		if n := strings.Count(text, "has a write-ahead log in the snapshot"); n != 2 || !strings.Contains(text, "standalone: true") {
			t.Errorf("%d infos as %s", n, format)
		}
	}

	sql := call("global-db-sql", "--format", "csv", "SELECT description FROM profiles WHERE name = 'precious'")
	last := call("global-db-log", "--rows", "--from", "2433", "--format", "csv")
	if sql.stdout != "description\nd2399\n" || !strings.Contains(last.stdout, "update profile precious in project default (description: 'd2398' -> 'd2399')") {
		t.Errorf("%q, %q", sql.stdout, last.stdout)
	}

	for _, name := range []string{"global-db-kept", "global-db-backups"} {
		r := call(name, "list")
		if r.status != 0 || !strings.Contains(r.stdout, "No database is kept") {
			t.Errorf("%s: %+v", name, r)
		}
	}

	call("cluster", "export-db", "--accept-damage", filepath.Join(dir, "x.tgz")).want(t, 1, "this LXD is a standalone server", "global-db-repair")
	check()
}
