// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/archive"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// The index of a time is the last one before the first heartbeat that is later: the same as looking at the database after every single entry tells.
func TestIndexAt(t *testing.T) {
	dir := raftlogtest.Global(t, "small/n2-preimport")
	log, err := raftlog.Open(t.Context(), os.DirFS(dir), raftlog.Options{})
	if err != nil {
		t.Fatal(err)
	}

	oldest := max(globaldb.Oldest(log), 1)
	heard := map[uint64]time.Time{}
	var changes []uint64 // where the newest heartbeat is another one
	for index := oldest; index <= log.SoundIndex; index++ {
		heard[index], err = heardAt(t.Context(), log, index)
		if err != nil {
			t.Fatal(err)
		}

		if index > oldest && heard[index].After(heard[index-1]) {
			changes = append(changes, index)
		}
	}

	if len(changes) < 2 {
		t.Fatalf("%s has %d heartbeats, which is too few for a test", dir, len(changes))
	}

	for _, index := range changes {
		for at, want := range map[time.Time]uint64{heard[index].Add(-time.Microsecond): index - 1, heard[index]: lastWith(heard, heard[index], index)} {
			_, got, err := IndexAt(t.Context(), dir, at, "", Progress{})
			if err != nil || got != want {
				t.Errorf("at %s: index %d, %v, want %d", at, got, err, want)
			}
		}
	}

	_, got, err := IndexAt(t.Context(), dir, time.Now(), "", Progress{})
	if err != nil || got != log.SoundIndex {
		t.Errorf("now: index %d, %v, want the last one, %d", got, err, log.SoundIndex)
	}

	_, _, err = IndexAt(t.Context(), dir, time.Now().Add(time.Minute), "", Progress{})
	if err == nil {
		t.Error("a time in the future has an index")
	}

	_, _, err = IndexAt(t.Context(), dir, heard[oldest].Add(-time.Hour), "", Progress{})
	if !heard[oldest].IsZero() && !errors.Is(err, errTooLate) {
		t.Errorf("a time before all that the log has: %v", err)
	}
}

// lastWith is the last index at which the newest heartbeat is this one.
func lastWith(heard map[uint64]time.Time, beat time.Time, index uint64) uint64 {
	for heard[index+1].Equal(beat) {
		index++
	}

	return index
}

// In an archive the index is looked up in the newest part that reaches back to it.
func TestPartAt(t *testing.T) {
	live := raftlogtest.Make(t, raftlogtest.Snapshot)
	gap := filepath.Join(live, raftlog.SegmentName(127, 130))
	err := os.Remove(gap)
	if err != nil {
		t.Fatal(err)
	}

	dir := filepath.Join(t.TempDir(), "archive")
	a, err := archive.Open(dir, archive.Owner{}, false)
	if err != nil {
		t.Fatal(err)
	}

	held, err := raftlog.Hold(t.Context(), live)
	if err != nil {
		t.Fatal(err)
	}

	defer held.Close()

	log, err := raftlog.Open(t.Context(), held, raftlog.Options{AllSums: true})
	if err != nil {
		t.Fatal(err)
	}

	_, err = a.Add(t.Context(), "first", live, held, log)
	if err != nil {
		t.Fatal(err)
	}

	first := filepath.Join(dir, "first")
	for at, want := range map[uint64]string{0: dir, 99: dir, 100: first, 126: first, 127: dir, 135: dir} { // nothing tells the state after the gap
		got, err := partAt(dir, at)
		if err != nil || got != want {
			t.Errorf("index %d: %s, %v, want %s", at, got, err, want)
		}
	}

	db, err := OpenDatabase(t.Context(), DatabaseOptions{Source: dir, At: 120})
	if err != nil {
		t.Fatal(err)
	}

	defer db.Close()

	if db.Index != 120 {
		t.Errorf("index %d", db.Index)
	}
}

// What was in force at a time is told by what the archive had then, and not by a later lineage that goes back to it: a rollback's, say.
func TestIndexAtOfLineages(t *testing.T) {
	live := raftlogtest.Copy(t, raftlogtest.Global(t, "small/n2-preimport"))
	dir := filepath.Join(t.TempDir(), "archive")
	a, err := archive.Open(dir, archive.Owner{}, false)
	must(t, err)
	whole, err := raftlog.Open(t.Context(), os.DirFS(live), raftlog.Options{})
	must(t, err)
	for _, s := range whole.Segments { // closed, as by a stop
		if s.Open && s.Entries > 0 {
			must(t, os.Truncate(filepath.Join(live, s.File), s.End))
			must(t, os.Rename(filepath.Join(live, s.File), filepath.Join(live, raftlog.SegmentName(s.First, s.Last))))
		}
	}

	held, err := raftlog.Hold(t.Context(), live)
	must(t, err)
	defer held.Close()

	log, err := raftlog.Open(t.Context(), held, raftlog.Options{AllSums: true})
	must(t, err)
	for _, lineage := range []string{"first", "second"} {
		_, err = a.Add(t.Context(), lineage, live, held, log)
		must(t, err)
	}

	heard, err := heardAt(t.Context(), log, log.SoundIndex)
	must(t, err)
	catalogue := filepath.Join(dir, "first", "catalogue.jsonl")
	lines, err := os.ReadFile(catalogue)
	must(t, err)
	added := regexp.MustCompile(`"added":"[^"]*"`)
	earlier := heard.Add(-time.Hour).Format(time.RFC3339Nano)
	must(t, os.WriteFile(catalogue, added.ReplaceAll(lines, []byte(`"added":"`+earlier+`"`)), 0o600))
	for at, want := range map[time.Time]string{heard.Add(-time.Second): "first", time.Now(): "second"} {
		place, index, err := IndexAt(t.Context(), dir, at, "", Progress{})
		if err != nil || place != filepath.Join(dir, want) || index == 0 {
			t.Errorf("at %s: index %d of %s, %v, want one of %s", at, index, place, err, want)
		}
	}
}
