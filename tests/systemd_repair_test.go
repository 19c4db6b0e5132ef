// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"path"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/guest"
)

// TestSystemdRepair repairs a standalone LXD that systemd runs, whatever state its unit is in: it is up in the end, and ready.
func TestSystemdRepair(t *testing.T) {
	t.Parallel()
	g := guest.ForTest(t, guest.Options{Name: "server1", Address: "10.78.0.1/16"})
	must(t, g.Put(t.Context(), tool, "/usr/local/bin/lxd-recover", 0o755))
	must(t, g.StartStandalone(t.Context()))
	lxcInGuest(t, g, "profile", "create", "kept")
	runParts(t, g, startLXD, []guestPart{
		{"does not start", testRepairFailing},
		{"stopped", testRepairStopped},
		{"stopped, to be left so", testRepairNoStart},
		{"runs, and is taken back", testRepairRunning},
	})
}

// repairInGuest repairs, and wants LXD to be ready, with these profiles.
func repairInGuest(t *testing.T, g *guest.Guest, args ...string) result {
	t.Helper()
	r := toolInGuest(t, g, append([]string{"global-db-repair", "--yes", "--format", "json"}, args...)...)
	report := decode[recovery.RepairReport](t, r)
	if !report.Done || !report.Standalone || !report.Startable || !report.Started || !report.Ready || len(report.Warnings) > 0 {
		t.Errorf("report %+v", report)
	}

	wantState(t, g, "active", "lxd.service", "lxd.socket")
	wantProfiles(t, g, "default", "kept")
	status := statusInGuest(t, g)
	if status.Repair == nil || status.Repair.Raft != report.Raft || status.Import != nil || len(status.Problems)+len(status.Pending) > 0 {
		t.Errorf("status %+v", status)
	}

	return r
}

// damageInGuest stops LXD, and leaves segments that overlap.
func damageInGuest(t *testing.T, g *guest.Guest) {
	t.Helper()
	inGuest(t, g, "systemctl", "stop", "lxd.service", "lxd.socket")
	global := guestLXD + "/database/global/"
	names := strings.Fields(inGuest(t, g, "sh", "-c", "cd "+global+" && ls 0*-0*"))
	last := names[len(names)-1]
	first, err := strconv.ParseUint(strings.TrimLeft(strings.Split(last, "-")[0], "0"), 10, 64)
	must(t, err)
	inGuest(t, g, "cp", path.Join(global, last), path.Join(global, strings.Replace(last, padded(first), padded(first-1), 1)))
}

// padded is an index as it stands in the name of a segment.
func padded(index uint64) string {
	text := strconv.FormatUint(index, 10)
	return strings.Repeat("0", 16-len(text)) + text
}

// testRepairFailing repairs when systemd has started LXD, and that has ended.
func testRepairFailing(t *testing.T, g *guest.Guest) {
	damageInGuest(t, g)
	inGuest(t, g, "systemctl", "start", "lxd.socket")
	inGuest(t, g, "systemctl", "start", "--no-block", "lxd.service")
	waitEnded(t, g)
	r := repairInGuest(t, g)
	wantOrder(t, r.stderr, "Opening a scratch copy with libdqlite", "The repaired database is in place", "Starting LXD (systemd unit lxd.service)")
}

// waitEnded waits until LXD, which was started, has ended. Its unit goes on waiting for it for ten minutes.
func waitEnded(t *testing.T, g *guest.Guest) {
	t.Helper()
	ctx := within(t, time.Minute)
	for property(t, g, "lxd.service", "ExecMainCode") == "0" || property(t, g, "lxd.service", "SubState") == "start" {
		select {
		case <-ctx.Done():
			t.Fatal("LXD has started on a damaged database")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// testRepairStopped repairs when nothing is up: LXD is started all the same.
func testRepairStopped(t *testing.T, g *guest.Guest) {
	damageInGuest(t, g)
	wantState(t, g, "inactive", "lxd.service", "lxd.socket")
	dry := toolInGuest(t, g, "global-db-repair", "--dry-run")
	if !strings.Contains(dry.stdout, "LXD is not running. It will be started on the repaired database.\n") {
		t.Errorf("dry run: %s", dry.stdout)
	}

	repairInGuest(t, g)
}

func testRepairNoStart(t *testing.T, g *guest.Guest) {
	damageInGuest(t, g)
	r := toolInGuest(t, g, "global-db-repair", "--yes", "--no-start")
	if r.status != 0 || !strings.HasSuffix(r.stdout, "\nLXD was not started.\n") {
		t.Errorf("exit status %d: %s", r.status, r.stdout)
	}

	wantState(t, g, "inactive", "lxd.service", "lxd.socket")
}

// testRepairRunning takes back what was done since, beside a running LXD, which is stopped for it.
func testRepairRunning(t *testing.T, g *guest.Guest) {
	before := statusInGuest(t, g).Raft
	lxcInGuest(t, g, "profile", "create", "since")
	begin := len(lxdStarts(t, g))
	r := repairInGuest(t, g, "--at", strconv.FormatUint(before.Index, 10))
	wantOrder(t, r.stderr, "Stopping LXD (systemd unit lxd.service)", "The database was written to meanwhile: beginning anew",
		"The repaired database is in place", "Starting LXD (systemd unit lxd.service)")
	report := decode[recovery.RepairReport](t, r)
	if len(report.GivenUp) == 0 || report.Raft != *before || report.Metadata.Term <= before.Term {
		t.Errorf("%+v", report)
	}

	wantStartAfterExchange(t, g, begin)
}
