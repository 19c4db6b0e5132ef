// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/engine"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// inspectDir inspects a directory or tarball and returns the report and the exit status.
func inspectDir(t testing.TB, source string) (recovery.InspectReport, int) {
	t.Helper()
	r := run(t, exec.CommandContext(t.Context(), tool, "global-db-inspect", "--format", "json", source))
	return decode[recovery.InspectReport](t, r), r.status
}

func openLog(t testing.TB, global string) *raftlog.Log {
	t.Helper()
	log, err := raftlog.Open(context.Background(), os.DirFS(global), raftlog.Options{})
	must(t, err)
	return log
}

// wantAsLibdqlite checks our reading of a raft directory against libdqlite 1.18 on a scratch copy: it loads what we say is
// healthy, appends its recovery entry right after our last index, and serves the rows of our replay.
func wantAsLibdqlite(t testing.TB, global string) {
	t.Helper()
	log := openLog(t, global)
	if !log.Healthy() {
		t.Fatalf("%s: not healthy: %v", global, log.Problems)
	}

	ours, err := globaldb.Open(t.Context(), log, 0)
	if errors.Is(err, globaldb.ErrNoDatabase) && log.LastIndex <= 1 {
		t.Logf("%s: joined a moment ago, its log is empty", global)
		return
	}

	must(t, err)
	defer ours.Close()
	want, err := ours.Fingerprint(t.Context())
	must(t, err)

	scratch := filepath.Join(t.TempDir(), "scratch")
	out, err := exec.Command("cp", "-a", "--sparse=always", global, scratch).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	address := fmt.Sprintf("@lxd-recover-test-%d", time.Now().UnixNano())
	self, err := json.Marshal([]engine.Node{engine.NewNode(engine.ServeID, address, 0)})
	must(t, err)
	out, err = exec.CommandContext(t.Context(), tool, "reconfigure", scratch, string(self)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	r := run(t, exec.CommandContext(t.Context(), tool, "verify-copy", scratch, address))
	var got globaldb.Fingerprint
	must(t, json.Unmarshal([]byte(r.stdout), &got))
	if differ := want.Differ(got); len(differ) > 0 {
		t.Errorf("%s: libdqlite serves other rows in %v", global, differ)
	}

	name := raftlog.SegmentName(log.LastIndex+1, log.LastIndex+1)
	_, err = os.Stat(filepath.Join(scratch, name))
	if err != nil {
		t.Errorf("%s: we say the last index is %d, libdqlite does not: %v", global, log.LastIndex, err)
	}
}

// wantAsDump checks that the log replayed up to some index near its end is, to the byte, the dump that LXD wrote when it
// stopped.
func wantAsDump(t testing.TB, global string) {
	t.Helper()
	dump := dumpOf(t, global)
	log := openLog(t, global)
	for index := log.LastIndex; index+20 > log.LastIndex && index > 1; index-- {
		file := filepath.Join(t.TempDir(), fmt.Sprint(index))
		must(t, globaldb.Replay(t.Context(), log, file, index))
		ours, err := os.ReadFile(file)
		must(t, err)
		copy(ours[18:20], dump[18:20]) // the replay is not in WAL mode
		if bytes.Equal(ours, dump) {
			t.Logf("%s: LXD's dump is our replay up to index %d of %d", global, index, log.LastIndex)
			return
		}
	}

	t.Errorf("%s: no replay up to the last 20 indexes is LXD's dump", global)
}

// dumpOf is LXD's own dump, db.bin with its WAL merged.
func dumpOf(t testing.TB, global string) []byte {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"db.bin", "db.bin-wal"} {
		data, err := os.ReadFile(filepath.Join(global, name))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}

	file := filepath.Join(dir, "db.bin")
	checkpoint(t, file)
	data, err := os.ReadFile(file)
	must(t, err)
	return data
}

// Real directories of LXD 5.0.2 in every state: our reading of them is libdqlite's.
func TestReadAsLibdqlite(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 8*time.Minute)
	all := func(state string, check func(testing.TB, string), members ...*cluster.Member) {
		for _, m := range members {
			t.Run(state+" "+m.Name, func(t *testing.T) { check(t, filepath.Join(m.Dir(), "database", "global")) })
		}
	}

	must(t, c.Member(1).CreateProfile(ctx, "first"))
	must(t, c.StopAll(ctx))
	all("stopped", wantAsLibdqlite, c.Members()...)
	all("dumped", wantAsDump, c.Members()...)

	must(t, c.StartAll(ctx))
	must(t, c.WaitHeartbeat(ctx)) // a leader that changes forgets the token
	must(t, c.WaitFormed(ctx))
	_, err := c.AddMember(ctx) // a join and changes of role
	must(t, err)
	must(t, c.WaitFormed(ctx))
	for round := range 4 {
		writer := c.Member(1 + round%3).StartWriter(fmt.Sprintf("round%d", round))
		must(t, writer.WaitConfirmed(ctx, 7*(round+1)))
		c.KillAll()
		writer.Stop()
		all(fmt.Sprintf("killed %d", round+1), wantAsLibdqlite, c.Members()...)
		must(t, c.StartAll(ctx))
	}

	must(t, c.MakeSnapshot(ctx))
	c.KillAll()
	all("snapshot", wantAsLibdqlite, c.Members()...)
	must(t, c.StartAll(ctx))
	stopping := time.Now()
	must(t, c.StopAll(ctx))
	all("snapshot, dumped", wantAsDump, dumped(t, c, stopping)...)

	before := openLog(t, filepath.Join(c.Member(1).Dir(), "database", "global"))
	must(t, c.Member(1).EditReplace(ctx, ":8443", ":9393"))
	all("edited", wantAsLibdqlite, c.Member(1))
	report, status := inspectDir(t, c.Member(1).Dir())
	if status != 0 || !report.Raft.Edited || report.Raft.LastIndex != before.LastIndex+1 || report.Raft.LastTerm != 1 ||
		report.Raft.ConfigurationIndex != report.Raft.LastIndex || report.Raft.SnapshotIndex == 0 ||
		report.Member == nil || report.Member.Name != "node1" || len(report.Members) != 4 || report.Members[3].Name != "node4" ||
		report.Data.Integrity != "ok" || report.Data.Tables["nodes"] != 4 || len(report.Cluster) != 64 ||
		uint64(len(report.Entries)) != report.Raft.LastIndex-report.Raft.SnapshotIndex {
		t.Errorf("report %+v", report)
	}

	tarball := export(t, c.Member(1))
	fromTarball, status := inspectDir(t, tarball)
	if status != 0 || fromTarball.Raft.LastIndex != report.Raft.LastIndex || fromTarball.Raft.LastTerm < 1e9 || fromTarball.Data.Rows != report.Data.Rows ||
		len(fromTarball.Libdqlite.Actions) > 0 || worst(fromTarball.Problems) > raftlog.Info || fromTarball.Raft.FirstIndex <= report.Raft.FirstIndex {
		t.Errorf("the tarball's report %+v", fromTarball)
	}
}

// dumped are the members that wrote a dump since a time: only voters do, and roles change while members stop.
func dumped(t testing.TB, c *cluster.Cluster, since time.Time) []*cluster.Member {
	t.Helper()
	var all []*cluster.Member
	for _, m := range c.Members() {
		info, err := os.Stat(filepath.Join(m.Dir(), "database", "global", "db.bin"))
		if err == nil && info.ModTime().After(since) {
			all = append(all, m)
		}
	}

	if len(all) < 2 {
		t.Errorf("%d members wrote a dump", len(all))
	}

	return all
}

// worst is the worst severity among problems.
func worst(problems []raftlog.Problem) raftlog.Severity {
	severity := raftlog.Info
	for _, p := range problems {
		severity = max(severity, p.Severity)
	}

	return severity
}

// inspect and status change nothing, also beside a running daemon, and say that what they saw may not belong together.
func TestInspectChangesNothing(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	m := c.Member(1)
	besideFrozen(t, m, func() {
		r := recoverTool(t, m, "global-db-inspect")
		if r.status != 0 || !bytes.Contains([]byte(r.stderr), []byte("may not belong together")) {
			t.Errorf("beside a daemon: %+v", r)
		}

		mustRecover(t, m, "global-db-status")
	})
	c.KillAll()
	check := unchanged(t, m.Dir())
	mustRecover(t, m, "global-db-inspect")
	mustRecover(t, m, "global-db-inspect", filepath.Join(m.Dir(), "database"))
	mustRecover(t, m, "global-db-inspect", filepath.Join(m.Dir(), "database", "global"))
	mustRecover(t, m, "global-db-status")
	check()
}

// A damaged directory: inspect says so with exit status 4, export refuses, and neither touches it.
func TestDamagedDirectory(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 2*time.Minute)
	m := c.Member(1)
	must(t, c.StopAll(ctx))
	must(t, m.EditReplace(ctx, ":8443", ":9393"))
	segment := filepath.Join(m.Dir(), "database", "global", raftlog.SegmentName(1, 1))
	data, err := os.ReadFile(segment)
	must(t, err)
	data[len(data)-9] ^= 4
	must(t, os.WriteFile(segment, data, 0o600))
	check := unchanged(t, m.Dir())
	r := recoverTool(t, m, "global-db-inspect")
	r.want(t, 4, "damaged")
	if !bytes.Contains([]byte(r.stdout), []byte(filepath.Base(segment))) {
		t.Errorf("%s is not named in %s", filepath.Base(segment), r.stdout)
	}

	recoverTool(t, m, "cluster", "export-db", filepath.Join(t.TempDir(), "x")).want(t, 4, "damaged", filepath.Base(segment), "--accept-damage")
	check()
}

// The newest batch of a killed member's open segment is flipped: libdqlite would cut it and what is after it away without a
// word. Accepted, the export has all before it, and a cluster starts from that.
func TestAcceptDamage(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 3*time.Minute)
	m := c.Member(1)
	for _, row := range []string{"first", "second", "third"} {
		must(t, m.CreateProfile(ctx, row))
	}

	c.KillAll()
	global := filepath.Join(m.Dir(), "database", "global")
	whole := openLog(t, global)
	file, offset, index := lastCommand(t, whole)
	f, err := os.OpenFile(filepath.Join(global, file), os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte{0xff}, offset+200)
	must(t, errors.Join(err, f.Close()))

	report, status := inspectDir(t, m.Dir())
	if status != 4 || report.Healthy || report.Raft.SoundIndex != index-1 {
		t.Errorf("exit status %d, sound up to %d, want %d", status, report.Raft.SoundIndex, index-1)
	}

	check := unchanged(t, m.Dir())
	recoverTool(t, m, "cluster", "export-db", "--unedited", filepath.Join(t.TempDir(), "x")).want(t, 4,
		"--accept-damage", fmt.Sprintf("up to index %d", index-1))
	tarball := export(t, m, "--accept-damage", "--unedited")
	check()
	after, status := inspectDir(t, tarball)
	if status != 0 || after.Raft.LastIndex != index || !after.Raft.Edited {
		t.Errorf("exit status %d, %+v", status, after.Raft)
	}

	recoverTool(t, m, "global-db-import", "--yes", tarball).want(t, 3, "cannot be told", "--discard-local-entries")
	mustRecover(t, m, "global-db-import", "--yes", "--discard-local-entries", tarball)
	for _, other := range c.Members()[1:] {
		mustRecover(t, other, "global-db-import", "--yes", "--discard-local-entries", tarball)
	}

	must(t, c.StartAll(ctx))
	wantRows(t, []string{"first", "second"}, c.Members()...)
}

// lastCommand finds the newest transaction of a log.
func lastCommand(t testing.TB, log *raftlog.Log) (file string, offset int64, index uint64) {
	t.Helper()
	for entry, err := range log.Entries(t.Context(), log.FirstIndex) {
		must(t, err)
		if entry.Type == raftlog.CommandEntry {
			file, offset, index = entry.File, entry.Offset, entry.Index
		}
	}

	return file, offset, index
}

// The fixtures: members of a real LXD 6.9 cluster, and its own tarball and backup.
func TestInspectFixtures(t *testing.T) {
	dir := t.TempDir()
	out, err := exec.Command("tar", "-xJf", "fixtures/lxd-6.9-members.tar.xz", "-C", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	backups, err := filepath.Glob(filepath.Join(dir, "small/n1-afteredit/db_backup.*.tar.gz"))
	must(t, err)
	for _, test := range []struct {
		source string
		index  uint64
		term   uint64
		edited bool
	}{
		{"small/n1-afteredit", 128, 1, true},
		{"small/n2-preimport", 126, 2, false},
		{"small/n3-preimport/database", 125, 2, false},
		{"small/lxd_recovery_db.tar.gz", 128, 1, true},
		{"small/n1-afteredit/" + filepath.Base(backups[0]), 127, 2, false},
		{"forgotten/n1-preedit", 188, 3, false},
		{"forgotten/n2-preedit/database/global", 188, 3, false},
		{"forgotten/n3-preedit", 186, 3, false},
		{"forgotten/n1-afteredit", 189, 1, true},
	} {
		before := tree(t, dir)
		r, status := inspectDir(t, filepath.Join(dir, test.source))
		if status != 0 || !r.Healthy || r.Raft.LastIndex != test.index || r.Raft.LastTerm != test.term ||
			r.Raft.Edited != test.edited || r.Data.Integrity != "ok" || len(r.Members) != 3 {
			t.Errorf("%s: exit status %d, %+v", test.source, status, r.Raft)
		}

		if tree(t, dir) != before {
			t.Errorf("%s was changed", test.source)
		}
	}

	for _, member := range []string{"small/n1-afteredit", "small/n2-preimport", "small/n3-preimport"} {
		wantAsDump(t, filepath.Join(dir, member, "database/global"))
	}

	for _, member := range []string{"small/n2-preimport", "forgotten/n1-preedit", "forgotten/n3-preedit", "forgotten/n1-afteredit"} {
		wantAsLibdqlite(t, filepath.Join(dir, member, "database/global"))
	}
}
