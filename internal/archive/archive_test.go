// SPDX-License-Identifier: AGPL-3.0-only

package archive_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/archive"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

func TestMain(m *testing.M) {
	status := m.Run()
	raftlogtest.Cleanup()
	os.Exit(status)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// owner is whose archives the tests make.
var owner = archive.Owner{Name: "node1", Certificate: "0123456789abcdef"}

// add adds a raft directory to an archive.
func add(t testing.TB, dir string, live string, link bool) *archive.Added {
	t.Helper()
	a, err := archive.Open(dir, owner, link)
	must(t, err)
	held, err := raftlog.Hold(t.Context(), live)
	must(t, err)
	defer held.Close()

	log, err := raftlog.Open(t.Context(), held, raftlog.Options{AllSums: true})
	must(t, err)
	added, err := a.Add(t.Context(), "first", live, held, log)
	must(t, err)
	return added
}

func openLog(t testing.TB, dir string) *raftlog.Log {
	t.Helper()
	log, err := raftlog.Open(t.Context(), os.DirFS(dir), raftlog.Options{})
	must(t, err)
	return log
}

// What raft has deleted since is still in the archive, which is read as one log, to the entry.
func TestReachesBack(t *testing.T) {
	for _, link := range []bool{false, true} {
		live := raftlogtest.Make(t, raftlogtest.Snapshot)
		whole := openLog(t, live)
		truth := entriesOf(t, whole)
		dir := filepath.Join(filepath.Dir(live), fmt.Sprint("archive-", link)) // links need one file system
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		added := add(t, dir, live, link)
		if added.First != 62 || added.Last != 135 || len(added.Gaps) != 0 || added.Files != 7 {
			t.Errorf("link %v: %+v", link, added)
		}

		// raft has closed its open segments, and deleted what the snapshot makes superfluous.
		for _, s := range whole.Segments {
			if s.Open && s.Entries > 0 {
				must(t, os.Truncate(filepath.Join(live, s.File), s.End))
				must(t, os.Rename(filepath.Join(live, s.File), filepath.Join(live, raftlog.SegmentName(s.First, s.Last))))
			}
		}

		must(t, os.Remove(filepath.Join(live, raftlog.SegmentName(62, 126))))
		for _, name := range []string{raftlogtest.OlderSnapshot, raftlogtest.OlderSnapshot + ".meta"} {
			must(t, os.Remove(filepath.Join(live, name)))
		}

		added = add(t, dir, live, link)
		if added.First != 62 || added.Last != 150 || added.Files != 2 || len(added.Gaps) != 0 {
			t.Errorf("link %v: then %+v", link, added)
		}

		log := openLog(t, added.Lineage)
		if !log.Healthy() || log.FirstIndex != 62 || log.LastIndex != 150 || len(log.Snapshots) != 2 {
			t.Errorf("link %v: entries %d to %d, %d snapshots: %v", link, log.FirstIndex, log.LastIndex, len(log.Snapshots), log.Problems)
		}

		if again := add(t, dir, live, link); again.Files != 0 {
			t.Errorf("nothing is new, and this was added: %+v", again)
		}

		same(t, log, truth)
		links(t, added.Lineage, live, link)
	}
}

// entriesOf are the entries of a log, by index.
func entriesOf(t *testing.T, log *raftlog.Log) map[uint64]raftlog.Entry {
	t.Helper()
	all := map[uint64]raftlog.Entry{}
	for e, err := range log.Entries(t.Context(), log.FirstIndex) {
		must(t, err)
		e.Data = bytes.Clone(e.Data)
		all[e.Index] = e
	}

	return all
}

// same wants a log to have these entries, and no others.
func same(t *testing.T, log *raftlog.Log, truth map[uint64]raftlog.Entry) {
	t.Helper()
	got := entriesOf(t, log)
	if len(got) != len(truth) {
		t.Errorf("%d entries, want %d", len(got), len(truth))
	}

	for index, e := range truth {
		if !raftlog.SameEntry(got[index], e) {
			t.Errorf("entry %d is another one", index)
		}
	}
}

// links wants the files of a lineage to be the live ones, or copies of them.
func links(t *testing.T, lineage string, live string, want bool) {
	t.Helper()
	name := raftlog.SegmentName(127, 130)
	a, err := os.Stat(filepath.Join(lineage, name))
	must(t, err)
	b, err := os.Stat(filepath.Join(live, name))
	must(t, err)
	if os.SameFile(a, b) != want {
		t.Errorf("%s is linked: %v", name, !want)
	}
}

// A name that comes again with other content: both files are kept, and the one that is in force now is the one that is read.
func TestSuperseded(t *testing.T) {
	live := raftlogtest.Make(t, raftlogtest.Snapshot)
	dir := filepath.Join(t.TempDir(), "archive")
	added := add(t, dir, live, false)
	name := raftlog.SegmentName(131, 135)
	former, err := os.ReadFile(filepath.Join(live, name))
	must(t, err)
	other := raftlog.SegmentHeader()
	for index := uint64(131); index <= 135; index++ {
		other = raftlog.AppendBatch(other, raftlog.Entry{Index: index, Term: 9, Type: raftlog.BarrierEntry, Data: make([]byte, 8)})
	}

	must(t, os.WriteFile(filepath.Join(live, name), other, 0o600))
	for _, open := range []string{"open-1", "open-2"} {
		must(t, os.Remove(filepath.Join(live, open)))
	}

	again := add(t, dir, live, false)
	got, err := os.ReadFile(filepath.Join(added.Lineage, name))
	must(t, err)
	kept, err := os.ReadFile(filepath.Join(added.Lineage, "superseded", name+".1"))
	must(t, err)
	if again.Files != 1 || !bytes.Equal(got, other) || !bytes.Equal(kept, former) {
		t.Errorf("%+v; in force is the new one: %v, the former one is kept: %v", again, bytes.Equal(got, other), bytes.Equal(kept, former))
	}
}

// A run that was cut off at any point is made up for by the next one.
func TestCutOff(t *testing.T) {
	live := raftlogtest.Make(t, raftlogtest.Snapshot)
	dir := filepath.Join(t.TempDir(), "archive")
	added := add(t, dir, live, false)
	catalogue := filepath.Join(added.Lineage, "catalogue.jsonl")
	whole, err := os.ReadFile(catalogue)
	must(t, err)
	lines := strings.SplitAfter(string(whole), "\n")
	last := slices.DeleteFunc(lines, func(l string) bool { return l == "" })
	cut := strings.Join(last[:len(last)-2], "") + last[len(last)-2][:10] // in the middle of the last line but one
	must(t, os.WriteFile(catalogue, []byte(cut), 0o600))
	must(t, os.Remove(filepath.Join(added.Lineage, raftlog.SegmentName(131, 135)))) // the last file was not there yet
	must(t, os.WriteFile(filepath.Join(added.Lineage, raftlog.SegmentName(131, 135)+".part"), []byte("half"), 0o600))

	again := add(t, dir, live, false)
	log := openLog(t, again.Lineage)
	if again.Files != 3 || log.LastIndex != 135 || !log.Healthy() {
		t.Errorf("%+v: the log ends at %d: %v", again, log.LastIndex, log.Problems)
	}

	left, err := os.ReadDir(filepath.Join(again.Lineage, "superseded"))
	must(t, err)
	if len(left) != 0 {
		t.Errorf("superseded: %v", left)
	}
}

// What raft has deleted before it was added is a gap, and is named. What is after it is another part, so that both are read as a log without one.
func TestGap(t *testing.T) {
	live := raftlogtest.Make(t, raftlogtest.Snapshot)
	must(t, os.Remove(filepath.Join(live, raftlog.SegmentName(127, 130))))
	dir := filepath.Join(t.TempDir(), "archive")
	added := add(t, dir, live, false)
	if len(added.Gaps) != 1 || added.Gaps[0] != (archive.Gap{First: 127, Last: 130}) || added.First != 131 || added.Last != 135 {
		t.Errorf("%+v, want a gap from 127 to 130", added)
	}

	parts, err := archive.Parts(dir)
	must(t, err)
	if len(parts) != 2 || parts[0].First != 62 || parts[0].Last != 126 || parts[1].First != 131 || parts[1].Last != 135 {
		t.Errorf("parts: %+v", parts)
	}

	if again := add(t, dir, live, false); again.Files != 0 || len(again.Gaps) != 1 {
		t.Errorf("nothing is new, and this was added: %+v", again)
	}
}

// If nothing of what a part has is left in the raft directory, nobody knows whether it goes on from there: then another part begins, even if the numbers fit.
func TestNothingInCommon(t *testing.T) {
	live := raftlogtest.Make(t, raftlogtest.Snapshot)
	dir := filepath.Join(t.TempDir(), "archive")
	held := filepath.Join(live, raftlog.SegmentName(131, 135))
	kept, err := os.ReadFile(held)
	must(t, err)
	must(t, os.Remove(held))
	add(t, dir, live, false)
	for _, name := range []string{raftlog.SegmentName(62, 126), raftlog.SegmentName(127, 130)} {
		must(t, os.Remove(filepath.Join(live, name)))
	}

	must(t, os.WriteFile(held, kept, 0o600))
	added := add(t, dir, live, false)
	if filepath.Base(added.Lineage) != "first.2" || added.First != 131 || added.Last != 135 || len(added.Gaps) != 0 {
		t.Errorf("%+v", added)
	}
}

// Segments that a new leader has cut away are moved aside: those in whose place others are, and those at the end.
func TestCutAway(t *testing.T) {
	live := raftlogtest.Make(t, raftlogtest.Snapshot)
	dir := filepath.Join(t.TempDir(), "archive")
	added := add(t, dir, live, false)
	must(t, os.Remove(filepath.Join(live, raftlog.SegmentName(131, 135))))
	for _, open := range []string{"open-1", "open-2"} {
		must(t, os.Remove(filepath.Join(live, open)))
	}

	var other []byte
	write := func(first, last uint64) {
		other = raftlog.SegmentHeader()
		for index := first; index <= last; index++ {
			other = raftlog.AppendBatch(other, raftlog.Entry{Index: index, Term: 9, Type: raftlog.BarrierEntry, Data: make([]byte, 8)})
		}

		must(t, os.WriteFile(filepath.Join(live, raftlog.SegmentName(first, last)), other, 0o600))
	}

	write(131, 133) // 131 to 135 is cut, and others are in its place
	add(t, dir, live, false)
	parts, err := archive.Parts(dir)
	must(t, err)
	if len(parts) != 1 || parts[0].Last != 133 || !exists(filepath.Join(added.Lineage, "superseded", raftlog.SegmentName(131, 135)+".1")) {
		t.Errorf("%+v", parts)
	}

	must(t, os.Remove(filepath.Join(live, raftlog.SegmentName(131, 133)))) // that is cut, and nothing is in its place yet
	added = add(t, dir, live, false)
	log := openLog(t, added.Lineage)
	if added.Last != 130 || log.LastIndex != 130 || !log.Healthy() {
		t.Errorf("%+v: the log ends at %d: %v", added, log.LastIndex, log.Problems)
	}

	write(131, 133) // the same content comes again
	if added = add(t, dir, live, false); added.Files != 1 || added.Last != 133 {
		t.Errorf("%+v", added)
	}
}

// A segment that is damaged on the disk is in the archive as it was before, and stays in force.
func TestDamagedSince(t *testing.T) {
	live := raftlogtest.Make(t, raftlogtest.Snapshot)
	dir := filepath.Join(t.TempDir(), "archive")
	add(t, dir, live, false)
	file := filepath.Join(live, raftlog.SegmentName(131, 135))
	data, err := os.ReadFile(file)
	must(t, err)
	data[len(data)/2] ^= 1
	must(t, os.WriteFile(file, data, 0o600))
	added := add(t, dir, live, false)
	log := openLog(t, added.Lineage)
	if added.Files != 0 || log.LastIndex != 135 || !log.Healthy() {
		t.Errorf("%+v: the log ends at %d: %v", added, log.LastIndex, log.Problems)
	}
}

func exists(file string) bool {
	_, err := os.Lstat(file)
	return err == nil
}

// Another directory with files in it does not become an archive.
func TestNoArchive(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "notes"), nil, 0o600))
	_, err := archive.Open(dir, owner, false)
	if !errors.Is(err, archive.ErrNoArchive) || archive.Is(dir) {
		t.Errorf("%v", err)
	}
}

// What is older than what is to be kept is removed, from one snapshot to the next, and so is what is too much. The newest snapshot and what is after it stay.
func TestExpire(t *testing.T) {
	for name, test := range map[string]struct {
		keep  archive.Keep
		later time.Duration // from the last run on
		first uint64        // entry that is left
		kept  int           // snapshots
		files int           // removed: segments, and both files of each snapshot
	}{
		"all is kept":                   {archive.Keep{}, 1000 * time.Hour, 62, 2, 0},
		"all is young enough":           {archive.Keep{Age: 2 * time.Hour}, time.Hour, 62, 2, 0},
		"all is old":                    {archive.Keep{Age: time.Hour}, 2 * time.Hour, 127, 1, 3},
		"all is too much":               {archive.Keep{Size: 1}, 0, 127, 1, 3},
		"all of it fits":                {archive.Keep{Size: 1 << 30}, 0, 62, 2, 0},
		"young, and it is not to be so": {archive.Keep{Age: time.Hour, Size: 1}, 0, 127, 1, 3},
	} {
		t.Run(name, func(t *testing.T) {
			live := raftlogtest.Make(t, raftlogtest.Snapshot)
			dir := filepath.Join(t.TempDir(), "archive")
			added := add(t, dir, live, false)
			a, err := archive.Open(dir, owner, false)
			must(t, err)
			gone, err := a.Expire(time.Now().Add(test.later), test.keep)
			must(t, err)
			log := openLog(t, added.Lineage)
			if gone.Files != test.files || log.FirstIndex != test.first || log.LastIndex != 135 || len(log.Snapshots) != test.kept || !log.Healthy() {
				t.Errorf("%+v; entries %d to %d, %d snapshots: %v", gone, log.FirstIndex, log.LastIndex, len(log.Snapshots), log.Problems)
			}

			if left := sizeOf(t, dir); gone.Left > left || left > gone.Left+10_000 { // the catalogue, and the metadata
				t.Errorf("%d bytes are left, and said are %d", left, gone.Left)
			}

			if again := add(t, dir, live, false); again.Files != 0 {
				t.Errorf("what was removed was added again: %+v", again)
			}
		})
	}
}

// sizeOf is the size of all files below a directory.
func sizeOf(t *testing.T, dir string) int64 {
	t.Helper()
	var sum int64
	must(t, filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}

		info, err := e.Info()
		sum += info.Size()
		return err
	}))
	return sum
}

// An older part goes as a whole.
func TestExpirePart(t *testing.T) {
	live := raftlogtest.Make(t, raftlogtest.Snapshot)
	must(t, os.Remove(filepath.Join(live, raftlog.SegmentName(127, 130))))
	dir := filepath.Join(t.TempDir(), "archive")
	add(t, dir, live, false)
	a, err := archive.Open(dir, owner, false)
	must(t, err)
	gone, err := a.Expire(time.Now(), archive.Keep{Size: 1})
	must(t, err)
	parts, err := archive.Parts(dir)
	must(t, err)
	if len(parts) != 1 || parts[0].First != 131 || gone.Files != 5 {
		t.Errorf("%+v left: %+v", gone, parts)
	}
}

// A follower that was sent a snapshot has only that, and what comes after it. Both are one part, and not the end of what it had before.
func TestInstalledSnapshot(t *testing.T) {
	live := raftlogtest.Make(t, raftlogtest.Snapshot)
	later := raftlogtest.Copy(t, live) // the same log, of which the beginning is taken first
	dir := filepath.Join(t.TempDir(), "archive")
	remove := func(dir string, names ...string) {
		for _, name := range names {
			must(t, os.Remove(filepath.Join(dir, name)))
		}
	}
	newer := []string{raftlogtest.NewerSnapshot, raftlogtest.NewerSnapshot + ".meta"}
	older := []string{raftlogtest.OlderSnapshot, raftlogtest.OlderSnapshot + ".meta"}
	open := []string{"open-1", "open-2"}
	remove(live, slices.Concat(newer, open, []string{raftlog.SegmentName(127, 130), raftlog.SegmentName(131, 135)})...)
	must(t, os.Rename(filepath.Join(live, raftlog.SegmentName(62, 126)), filepath.Join(live, "aside")))
	must(t, os.WriteFile(filepath.Join(live, raftlog.SegmentName(62, 64)), barriers(62, 64), 0o600))
	must(t, os.Remove(filepath.Join(live, "aside")))
	add(t, dir, live, false)

	installed := raftlogtest.Copy(t, later)
	remove(installed, slices.Concat(older, open, []string{raftlog.SegmentName(62, 126), raftlog.SegmentName(127, 130), raftlog.SegmentName(131, 135)})...)
	added := add(t, dir, installed, false)
	if filepath.Base(added.Lineage) != "first.2" || added.Files != 2 {
		t.Errorf("only a snapshot: %+v", added)
	}

	remove(later, slices.Concat(older, open, []string{raftlog.SegmentName(62, 126)})...)
	added = add(t, dir, later, false)
	log := openLog(t, added.Lineage)
	if filepath.Base(added.Lineage) != "first.2" || added.Files != 2 || log.LastIndex != 135 || log.Snapshot() == nil || log.Snapshot().Index != 126 {
		t.Errorf("%+v: the log ends at %d: %v", added, log.LastIndex, log.Problems)
	}

	parts, err := archive.Parts(dir)
	must(t, err)
	if len(parts) != 2 || parts[0].Newest() != 100 || parts[1].Oldest() != 126 {
		t.Errorf("%+v", parts)
	}
}

// barriers is a segment with these entries.
func barriers(first, last uint64) []byte {
	data := raftlog.SegmentHeader()
	for index := first; index <= last; index++ {
		data = raftlog.AppendBatch(data, raftlog.Entry{Index: index, Term: 2, Type: raftlog.BarrierEntry, Data: make([]byte, 8)})
	}

	return data
}

// Another member's log does not get into an archive. A lineage that comes back, by a rollback, is the newest one again, even without anything new.
func TestOwnerAndCurrent(t *testing.T) {
	live := raftlogtest.Make(t, raftlogtest.Snapshot)
	dir := filepath.Join(t.TempDir(), "archive")
	add(t, dir, live, false)
	_, err := archive.Open(dir, archive.Owner{Name: "node2", Certificate: "fedcba9876543210"}, false)
	if !errors.Is(err, archive.ErrOwner) || !strings.Contains(err.Error(), "node1") {
		t.Errorf("another owner: %v", err)
	}

	a, err := archive.Open(dir, owner, false)
	must(t, err)
	held, err := raftlog.Hold(t.Context(), live)
	must(t, err)
	defer held.Close()

	log, err := raftlog.Open(t.Context(), held, raftlog.Options{AllSums: true})
	must(t, err)
	for _, lineage := range []string{"second", "first", "second"} {
		_, err = a.Add(t.Context(), lineage, live, held, log)
		must(t, err)
		parts, err := archive.Parts(dir)
		must(t, err)
		if newest := filepath.Base(parts[len(parts)-1].Dir); newest != lineage {
			t.Errorf("the newest part is %s, want %s", newest, lineage)
		}
	}
}
