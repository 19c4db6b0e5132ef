// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// repairLab is a standalone LXD that was stopped, and killed in the end: there is a snapshot, there are closed segments before and after it, and
// an open one. Profiles say which entries LXD has.
type repairLab struct {
	c    *cluster.Cluster // saved as "killed"
	m    *cluster.Member
	rows []string          // profiles in the order of their entries, but for the default one
	at   map[string]uint64 // the entry that made a profile
}

// newRepairLab makes one.
func newRepairLab(t *testing.T, lxd cluster.LXD) *repairLab {
	t.Helper()
	c := cluster.ForTest(t, cluster.Options{LXD: lxd, Standalone: true})
	l := &repairLab{c: c, m: c.Member(1), at: map[string]uint64{}}
	ctx := within(t, 4*time.Minute)
	row := func(name string) {
		must(t, l.m.CreateProfile(ctx, name))
		l.rows = append(l.rows, name)
	}
	row("before")
	must(t, c.MakeSnapshot(ctx))
	for i := range 3 { // each run of the daemon leaves a closed segment
		row(fmt.Sprintf("run-%d-a", i))
		row(fmt.Sprintf("run-%d-b", i))
		must(t, l.m.Stop(ctx))
		must(t, l.m.Start(ctx))
	}

	row("last-a")
	row("last-b")
	c.KillAll()
	must(t, c.Save(ctx, "killed"))
	for _, e := range entries(t, l.m.Dir(), "--rows") {
		for _, r := range e.Rows {
			if r.Table == "profiles" && r.Before == nil {
				l.at[strings.Trim(r.After["name"], "'")] = e.Index
			}
		}
	}

	for _, row := range l.rows {
		if l.at[row] == 0 {
			t.Fatalf("no entry made %s: %v", row, l.at)
		}
	}

	return l
}

// upTo are the profiles that the entries up to an index have made.
func (l *repairLab) upTo(index uint64) []string {
	list := []string{"default"}
	for _, row := range l.rows {
		if l.at[row] <= index {
			list = append(list, row)
		}
	}

	return list
}

// segmentOf is the closed segment that a profile's entry is in, or the open one.
func (l *repairLab) segmentOf(t testing.TB, row string) string {
	t.Helper()
	for e, err := range openLog(t, globalOf(l.m)).Entries(t.Context(), l.at[row]) {
		must(t, err)
		return filepath.Join(globalOf(l.m), e.File)
	}

	t.Fatalf("no entry of %s", row)
	return ""
}

// repairCase is a damage, and what is to be had back.
type repairCase struct {
	damage func(t testing.TB, l *repairLab)
	last   string // the last profile that must be back
	lost   bool   // entries are lost
	flags  []string
}

// repairCases are the states that LXD's users have reported, and LXD's manual tells to delete files by hand for.
var repairCases = map[string]repairCase{
	"a closed segment before the snapshot is damaged": {damage: func(t testing.TB, l *repairLab) { flipMiddle(t, beforeSnapshot(t, l)) }, last: "last-b"},
	"the count of a batch in the last closed segment is garbage": {damage: func(t testing.TB, l *repairLab) {
		for e, err := range openLog(t, globalOf(l.m)).Entries(t.Context(), l.at["run-2-b"]) {
			must(t, err)
			overwrite(t, l.segmentOf(t, "run-2-b"), e.Offset-24, binary.LittleEndian.AppendUint64(nil, 0x0123456789abcdef))
			break
		}
	}, last: "run-2-a", lost: true},
	"metadata are lost": {damage: func(t testing.TB, l *repairLab) { removeAll(t, globalOf(l.m), "metadata*") }, last: "last-b"},
	"garbage after the last entry": {damage: func(t testing.TB, l *repairLab) {
		end := openLog(t, globalOf(l.m)).Segments
		overwrite(t, l.segmentOf(t, "last-b"), end[slices.IndexFunc(end, isOpen)].End, bytes.Repeat([]byte{0xa5}, 4096))
	}, last: "last-b", lost: true},
	"a segment is missing": {damage: func(t testing.TB, l *repairLab) {
		ctx := within(t, time.Minute)
		must(t, l.m.Start(ctx))
		must(t, l.m.Stop(ctx)) // which closes the open one
		must(t, os.Remove(l.segmentOf(t, "run-1-a")))
	}, last: "run-0-b", lost: true},
	"a segment is missing, and LXD was killed": {damage: func(t testing.TB, l *repairLab) {
		must(t, os.Remove(l.segmentOf(t, "run-1-a")))
	}, last: "run-0-b", lost: true},
	"segments overlap": {damage: func(t testing.TB, l *repairLab) {
		file := l.segmentOf(t, "run-0-a")
		var first, last uint64
		_, err := fmt.Sscanf(filepath.Base(file), "%d-%d", &first, &last)
		must(t, err)
		data, err := os.ReadFile(file)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(globalOf(l.m), raftlog.SegmentName(first, last-1)), data[:lastBatch(data)], 0o600))
	}, last: "last-b"},
	"the snapshot is damaged": {damage: func(t testing.TB, l *repairLab) {
		flipMiddle(t, filepath.Join(globalOf(l.m), openLog(t, globalOf(l.m)).Snapshot().File))
	}, last: "last-b"},
	"taken back": {damage: func(testing.TB, *repairLab) {}, last: "run-1-a", flags: []string{"--at"}},
}

func isOpen(s raftlog.Segment) bool { return s.Open && !s.Unused }

// TestRepairStandalone damages the database of a real standalone LXD, repairs it, and has LXD start on it: it has all that the disk
// still held. Then the damaged one is put back, to the byte.
func TestRepairStandalone(t *testing.T) {
	t.Parallel()
	cluster.EachLXD(t, func(t *testing.T, lxd cluster.LXD) {
		l := newRepairLab(t, lxd)
		for name, test := range repairCases {
			t.Run(name, func(t *testing.T) { l.try(t, test) })
		}
	})
}

func (l *repairLab) try(t *testing.T, test repairCase) {
	ctx := within(t, 2*time.Minute)
	must(t, l.c.Restore(ctx, "killed"))
	t.Cleanup(func() { l.c.KillAll() })
	test.damage(t, l)
	database := filepath.Join(l.m.Dir(), "database")
	damaged := tree(t, database)
	flags := slices.Clone(test.flags)
	if len(flags) > 0 {
		flags = append(flags, fmt.Sprint(l.at[test.last]))
	}

	dry := mustRecover(t, l.m, append([]string{"global-db-repair", "--dry-run"}, flags...)...)
	if !strings.Contains(dry.stdout, "Dry run: nothing was changed.") || tree(t, database) != damaged {
		t.Errorf("a dry run: %s", dry.stdout)
	}

	r := decode[recovery.RepairReport](t, mustRecover(t, l.m, append([]string{"global-db-repair", "--yes", "--format", "json"}, flags...)...))
	if !r.Done || !r.Standalone || r.Raft.Index < l.at[test.last] || r.Lost.Some != test.lost || r.Startable {
		t.Errorf("%+v", r)
	}

	want := l.upTo(l.at[test.last])
	wantStarted(t, l.m, want...)
	must(t, l.m.CreateProfile(ctx, "since"))
	must(t, l.m.Stop(ctx))
	again := mustRecover(t, l.m, "global-db-repair", "--yes")
	if !strings.HasPrefix(again.stdout, "There is nothing to repair: the database of this server is whole") {
		t.Errorf("once more: %s", again.stdout)
	}

	mustRecover(t, l.m, "global-db-rollback", "--yes", "--discard-local-entries", "--accept-damage")
	if back := tree(t, database); back != damaged {
		t.Errorf("rolled back to\n%s\nwant\n%s", back, damaged)
	}
}

// beforeSnapshot is a closed segment that the newest snapshot makes superfluous.
func beforeSnapshot(t testing.TB, l *repairLab) string {
	t.Helper()
	log := openLog(t, globalOf(l.m))
	for _, s := range slices.Backward(log.Segments) {
		if !s.Open && s.Last <= log.Snapshot().Index {
			return filepath.Join(globalOf(l.m), s.File)
		}
	}

	t.Fatal("none")
	return ""
}

// flipMiddle inverts a bit in the middle of a file.
func flipMiddle(t testing.TB, path string) {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	flip(t, path, info.Size()/2)
}

// overwrite writes into a file.
func overwrite(t testing.TB, path string, offset int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	defer f.Close()
	_, err = f.WriteAt(data, offset)
	must(t, err)
}

// lastBatch is where the last batch of a whole segment begins, if each has one entry.
func lastBatch(segment []byte) int {
	const header, preamble, entry = 8, 16, 16
	begin := header
	for at := header; at+preamble+entry <= len(segment); {
		begin = at
		at += preamble + entry + int(binary.LittleEndian.Uint32(segment[at+preamble+12:]))
	}

	return begin
}

// removeAll removes the files of a directory that match.
func removeAll(t testing.TB, dir string, pattern string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	must(t, err)
	for _, file := range files {
		must(t, os.Remove(file))
	}
}

// TestRepairMember repairs members of a cluster of three. One of three may be repaired in place only where nobody else can be asked, and
// nothing is lost that it may have confirmed; the only survivor always.
func TestRepairMember(t *testing.T) {
	t.Parallel()
	debian, err := cluster.Debian()
	must(t, err)
	repairOfMember(t, debian)
}

func repairOfMember(t *testing.T, lxd cluster.LXD) {
	c := cluster.ForTest(t, cluster.Options{LXD: lxd})
	ctx := within(t, 4*time.Minute)
	m, product := c.Member(1), lxd.Names.Product
	must(t, c.MakeSnapshot(ctx))
	must(t, m.CreateProfile(ctx, "precious"))
	waitReplicated(t, c)
	c.KillAll()
	must(t, c.Save(ctx, "killed"))
	damage := func() { flipMiddle(t, beforeSnapshot(t, &repairLab{m: m})) }

	damage()
	recoverTool(t, m, "global-db-repair", "--yes").want(t, 3,
		"other members can be reached: node2 (10.77.0.102:8443: the machine is up, "+product+" is not), node3",
		"global-db-compare", "--accept-loss overrides this")
	must(t, c.StartAll(ctx, c.Member(2), c.Member(3)))
	recoverTool(t, m, "global-db-repair", "--yes").want(t, 3, "the cluster works without node1: "+product+" on node", "export-db --unedited", "--accept-loss")
	r := mustRecover(t, m, "global-db-repair", "--yes", "--accept-loss")
	if !strings.Contains(r.stdout, product+" was not started.\nDo not start it yet: the cluster works without node1") {
		t.Errorf("accepted: %s", r.stdout)
	}

	// Its machine is alone: in place, with the vote that it has given.
	must(t, c.Restore(ctx, "killed"))
	before := openLog(t, globalOf(m))
	damage()
	others := []*cluster.Member{c.Member(2), c.Member(3)}
	for _, o := range others {
		must(t, o.SetAddresses(ctx))
	}

	recoverTool(t, m, "global-db-repair", "--yes", "--at", fmt.Sprint(before.LastIndex-1)).want(t, 3, "export-db --at")
	report := decode[recovery.RepairReport](t, mustRecover(t, m, "global-db-repair", "--yes", "--format", "json"))
	after := openLog(t, globalOf(m))
	if !report.Done || !report.Metadata.Kept || after.Term != before.Term || after.Vote != before.Vote || after.LastIndex != before.LastIndex ||
		report.Unsafe != "" || report.Member.Name != "node1" {
		t.Errorf("%+v", report)
	}

	for _, o := range others {
		must(t, o.SetAddresses(ctx, o.IP()+"/16"))
	}

	must(t, c.StartAll(ctx))
	wantRows(t, []string{"precious"}, c.Members()...)
	c.KillAll()

	// The others are lost for good. What this member then loses is asked about, and it starts again.
	mustRecover(t, m, "cluster", "recover-from-quorum-loss", "--quiet")
	must(t, m.Start(ctx))
	must(t, m.CreateProfile(ctx, "alone"))
	must(t, m.Stop(ctx))
	must(t, m.Start(ctx))
	must(t, m.CreateProfile(ctx, "lost"))
	must(t, m.Stop(ctx))
	flip(t, filepath.Join(globalOf(m), lastClosedOf(t, m)), 40)
	recoverTool(t, m, "global-db-repair").want(t, 3, "cannot be told", "there is no terminal", "--yes")
	report = decode[recovery.RepairReport](t, mustRecover(t, m, "global-db-repair", "--yes", "--format", "json"))
	if !report.Lost.Some || report.Standalone || report.Metadata.Kept || report.Metadata.Term <= report.Raft.Term {
		t.Errorf("%+v", report)
	}

	must(t, m.Start(ctx))
	rows := profiles(t, m)
	if !slices.Contains(rows, "alone") || slices.Contains(rows, "lost") {
		t.Errorf("profiles: %q", rows)
	}
}

// lastClosedOf is the last closed segment of a member.
func lastClosedOf(t testing.TB, m *cluster.Member) string {
	t.Helper()
	segments := openLog(t, globalOf(m)).Segments
	last := ""
	for _, s := range segments {
		if !s.Open {
			last = s.File
		}
	}

	return last
}
