// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// broken opens a member whose last closed segment has a batch with a garbage entry count, as canonical/microk8s#2997 had it: the log ends
// at index 2348, 1 entry cannot be read, 376 after it can.
func broken(t *testing.T) *raftlog.Log {
	t.Helper()
	const segment, batch = "0000000000002049-0000000000002392", 300
	d := raftlogtest.HistoryOf(t, raftlogtest.Member502).Real()
	start, _, first := d.Batch(segment, batch)
	if first != 2349 {
		t.Fatalf("batch %d begins with index %d", batch, first)
	}

	d.Edit(segment, func(p []byte) []byte {
		copy(p[start+8:], "k8s-dqli")
		return p
	})
	dir := filepath.Join(t.TempDir(), "global")
	must(t, os.Mkdir(dir, 0o700))
	must(t, d.Write(dir))
	return openDir(t, dir)
}

// What damage is before is named, with its rows; what cannot be read is counted, with its indexes.
func TestLeftOut(t *testing.T) {
	log := broken(t)
	if log.LastIndex != 2348 {
		t.Fatalf("the log ends at index %d", log.LastIndex)
	}

	found, untold, err := leftOut(t.Context(), log)
	must(t, err)
	if len(untold) != 1 || !strings.HasPrefix(untold[0], "1 entry, index 2349, in 0000000000002049-0000000000002392: ") {
		t.Errorf("untold: %q", untold)
	}

	h := raftlogtest.HistoryOf(t, raftlogtest.Member502)
	want := map[uint64]bool{}
	for index := uint64(2350); index <= h.Last(); index++ {
		if changesRows(h.At(index)) {
			want[index] = true
		}
	}

	for i, d := range found {
		if !want[d.Index] || d.Term != h.At(d.Index).Term || len(d.Rows) == 0 || d.Unknown != "" || !d.AfterMissing {
			t.Errorf("transaction %d of %d: %+v", i+1, len(found), d)
		}

		delete(want, d.Index)
	}

	if len(want) > 0 {
		t.Errorf("not named: %v", want)
	}

	if first := strings.Join(Lines(found[:1]), "\n"); !strings.Contains(first, "(description: 'd627' -> 'd629')") {
		t.Errorf("the first is %s", first)
	}
}

// What the tarball has as well is not lost.
func TestLeftOutElsewhere(t *testing.T) {
	log := broken(t)
	found, _, err := leftOut(t.Context(), log)
	must(t, err)
	whole, err := raftlog.Open(t.Context(), raftlogtest.HistoryOf(t, raftlogtest.Member502).Real().FS(), raftlog.Options{})
	must(t, err)
	left, err := without(t.Context(), found, whole)
	must(t, err)
	if len(left) > 0 || len(found) == 0 {
		t.Errorf("%d of %d are said to be lost", len(left), len(found))
	}

	left, err = without(t.Context(), found, log)
	must(t, err)
	if len(left) != len(found) {
		t.Errorf("only %d of %d are said to be lost", len(left), len(found))
	}
}

// A report of the first format is no proof that the end of a log is beyond doubt, one of the second is; a later one is not read.
func TestReportFormat(t *testing.T) {
	for format, want := range map[int]string{0: "not whole", 1: "not whole", 2: "whole", 3: "of format 3"} {
		t.Run(fmt.Sprint(format), func(t *testing.T) {
			raft := InspectRaft{LastIndex: 7, SoundIndex: 7, Whole: true}
			data, err := json.Marshal(InspectReport{Format: format, Kind: "LXD directory", Healthy: true, Raft: raft})
			must(t, err)
			file := filepath.Join(t.TempDir(), "report.json")
			must(t, os.WriteFile(file, data, 0o600))
			r, err := readReport(file)
			if err != nil {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v", err)
				}

				return
			}

			log, err := survivorLog(r)
			must(t, err)
			got := map[bool]string{true: "whole", false: "not whole"}[log.Whole]
			if got != want {
				t.Errorf("%s, want %s", got, want)
			}
		})
	}
}

// A member that was killed while it cut its log leaves a shorter segment beside the longer one: whether the rest of that counts nothing
// tells. Nothing is taken without being asked for; each reading has the same name in every copy, and every command takes it by that.
func TestTwoReadings(t *testing.T) {
	const cut, last = 2200, 2392
	d := raftlogtest.HistoryOf(t, raftlogtest.Member502).Real()
	d.Remove("open-8")
	d.PutSegment(2049, cut, 1)
	digests := map[uint64]string{}
	for range 2 {
		dir := filepath.Join(t.TempDir(), "global")
		must(t, os.Mkdir(dir, 0o700))
		must(t, d.Write(dir))
		r, err := Inspect(t.Context(), dir, Progress{})
		must(t, err)
		if len(r.Readings) != 2 || r.Healthy || r.Raft.SoundIndex != cut || r.Raft.Whole {
			t.Fatalf("readings %+v, healthy %v, sound up to index %d", r.Readings, r.Healthy, r.Raft.SoundIndex)
		}

		for _, reading := range r.Readings {
			if before, ok := digests[reading.Last]; ok && before != reading.Digest {
				t.Errorf("the reading up to index %d is called %s, and %s in another copy", reading.Last, before, reading.Digest)
			}

			digests[reading.Last] = reading.Digest
		}

		_, err = OpenDatabase(t.Context(), DatabaseOptions{Source: dir})
		var refusal *Refusal
		if !errors.As(err, &refusal) || refusal.Flag != "--reading DIGEST" || !strings.Contains(err.Error(), digests[cut]) {
			t.Errorf("without being asked for: %v", err)
		}

		_, err = OpenDatabase(t.Context(), DatabaseOptions{Source: dir, Reading: "0123"})
		if err == nil || !strings.Contains(err.Error(), "there is no reading 0123: there are ") {
			t.Errorf("of another name: %v", err)
		}

		for _, want := range []uint64{cut, last} {
			db, err := OpenDatabase(t.Context(), DatabaseOptions{Source: dir, Reading: digests[want]})
			must(t, err)
			if db.Index != want {
				t.Errorf("the reading %s ends at index %d, not at %d", digests[want], db.Index, want)
			}

			must(t, db.Close())
		}
	}

	if len(digests) != 2 || digests[cut] == "" || digests[last] == "" {
		t.Errorf("readings %v", digests)
	}
}

// TestHostileReport wants no name or address in a saved report that could not be shown.
func TestHostileReport(t *testing.T) {
	const evil = "n1\x1b[8m"
	bad := member.List{{ID: 1, Name: "n1", Address: evil}}
	for name, r := range map[string]InspectReport{
		"member": {Member: &InspectMember{Name: evil}}, "its address": {Member: &InspectMember{Address: evil}}, "members": {Members: bad},
		"members of the snapshot": {Raft: InspectRaft{SnapshotMembers: bad}}, "members of an entry": {Entries: []InspectEntry{{}, {Members: bad}}},
	} {
		r.Kind = "LXD directory"
		data, err := json.Marshal(r)
		must(t, err)
		file := filepath.Join(t.TempDir(), "report.json")
		must(t, os.WriteFile(file, data, 0o600))
		_, err = readReport(file)
		if err == nil || !strings.Contains(err.Error(), `"n1\x1b[8m" is no `) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
