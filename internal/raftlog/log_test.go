// SPDX-License-Identifier: AGPL-3.0-only

package raftlog_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

func open(t testing.TB, fsys fs.FS) *raftlog.Log {
	t.Helper()
	log, err := raftlog.Open(context.Background(), fsys, raftlog.Options{})
	if err != nil {
		t.Fatal(err)
	}

	return log
}

// TestMembers reads the members of the two real clusters.
func TestMembers(t *testing.T) {
	for _, c := range []struct {
		member                        string
		last, term, metadata, changed uint64
		edited                        bool
		address                       string // of server 1
	}{
		{"small/n1-afteredit", 128, 1, 2, 128, true, "10.96.6.101:9393"},
		{"small/n2-preimport", 126, 2, 2, 51, false, "10.96.6.101:8443"},
		{"small/n3-preimport", 125, 2, 2, 51, false, "10.96.6.101:8443"},
		{"forgotten/n1-preedit", 188, 3, 3, 51, false, "10.96.6.101:8443"},
		{"forgotten/n2-preedit", 188, 3, 3, 51, false, "10.96.6.101:8443"},
		{"forgotten/n3-preedit", 186, 3, 3, 51, false, "10.96.6.101:8443"},
		{"forgotten/n1-afteredit", 189, 1, 3, 189, true, "10.96.6.101:8443"},
	} {
		t.Run(c.member, func(t *testing.T) {
			log := open(t, os.DirFS(raftlogtest.Global(t, c.member)))
			if !log.Healthy() {
				t.Errorf("not healthy: %v", log.Problems)
			}

			if log.FirstIndex != 1 || log.LastIndex != c.last || log.LastTerm != c.term || log.SoundIndex != c.last {
				t.Errorf("log goes from %d to %d (term %d), sound to %d", log.FirstIndex, log.LastIndex, log.LastTerm, log.SoundIndex)
			}

			if log.Term != c.metadata || log.MaxTerm != c.metadata {
				t.Errorf("metadata term %d, highest term %d", log.Term, log.MaxTerm)
			}

			want := raftlog.NoRecovery
			switch c.member {
			case "small/n1-afteredit":
				want = raftlog.MembersRecovery
			case "forgotten/n1-afteredit": // with the list that there was
				want = raftlog.FenceRecovery
			}

			if log.Recovery() != want {
				t.Errorf("the last entry: %q, want %q", log.Recovery(), want)
			}

			if log.Edited != c.edited || log.ConfigurationIndex != c.changed {
				t.Errorf("edited %v, configuration at %d", log.Edited, log.ConfigurationIndex)
			}

			if len(log.Configuration) != 3 || log.Configuration[0] != (raftlog.Server{ID: 1, Address: c.address, Role: raftlog.Voter}) {
				t.Errorf("configuration %v", log.Configuration)
			}

			next, frames := uint64(1), 0
			for e, err := range log.Entries(context.Background(), 0) {
				if err != nil {
					t.Fatal(err)
				}

				if e.Index != next {
					t.Fatalf("entry %d follows %d", e.Index, next-1)
				}

				next++
				if e.Type != raftlog.CommandEntry {
					continue
				}

				cmd, err := raftlog.ParseCommand(e.Data)
				if err != nil {
					t.Fatalf("entry %d: %v", e.Index, err)
				}

				for i := range cmd.Len() {
					if number, image := cmd.Page(i); number == 0 || len(image) != 4096 {
						t.Fatalf("entry %d: page %d has number %d and %d bytes", e.Index, i, number, len(image))
					}

					frames++
				}
			}

			if next != c.last+1 || frames == 0 {
				t.Errorf("%d entries with %d pages", next-1, frames)
			}

			if prefix := countEntries(t, log, c.last-3); prefix != 4 {
				t.Errorf("%d entries from %d on", prefix, c.last-3)
			}
		})
	}
}

func countEntries(t *testing.T, log *raftlog.Log, from uint64) (n int) {
	for _, err := range log.Entries(context.Background(), from) {
		if err != nil {
			t.Fatal(err)
		}

		n++
	}

	return n
}

// TestEdited tells recovery entries from those of a running cluster.
func TestEdited(t *testing.T) {
	server := raftlog.EncodeConfiguration(raftlog.Configuration{{ID: 1, Address: "a:1", Role: raftlog.Voter}})
	change := func(term uint64) raftlog.Entry {
		return raftlog.Entry{Term: term, Type: raftlog.ChangeEntry, Data: server}
	}

	barrier := func(term uint64) raftlog.Entry {
		return raftlog.Entry{Term: term, Type: raftlog.BarrierEntry, Data: make([]byte, 8)}
	}

	type entries = []raftlog.Entry
	for _, c := range []struct {
		name     string
		term     uint64 // of the metadata
		vote     uint64
		segments map[string][]entries
		want     bool
	}{
		{"bootstrap", 1, 0, map[string][]entries{"1-1": {{change(1)}}}, false},
		{"recovery", 5, 1, map[string][]entries{"1-2": {{change(1)}, {barrier(5)}}, "3-3": {{change(1)}}}, true},
		{"leader's change", 5, 1, map[string][]entries{"1-2": {{change(1)}, {barrier(5)}}, "3-3": {{change(5)}}}, false},
		{"with a barrier", 5, 1, map[string][]entries{"1-2": {{change(1)}, {barrier(5)}}, "3-4": {{barrier(1)}, {change(1)}}}, false},
		{"followed by a barrier", 6, 1, map[string][]entries{"1-2": {{change(1)}, {barrier(5)}}, "3-3": {{change(1)}}, "4-4": {{barrier(6)}}}, false},
		{"fenced", 900, 0, map[string][]entries{"1-2": {{change(1)}, {barrier(5)}}, "3-3": {{change(900)}}}, true},
		{"fenced, then voted", 900, 2, map[string][]entries{"1-2": {{change(1)}, {barrier(5)}}, "3-3": {{change(900)}}}, true},
		{"fenced, metadata not", 5, 0, map[string][]entries{"1-2": {{change(1)}, {barrier(5)}}, "3-3": {{change(900)}}}, true},
		{"term seen before", 900, 0, map[string][]entries{"1-2": {{change(1)}, {barrier(900)}}, "3-3": {{change(900)}}}, false},
		{"in an open segment", 5, 1, map[string][]entries{"1-2": {{change(1)}, {barrier(5)}}, "open-1": {{change(1)}}}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			fsys := fstest.MapFS{
				"metadata1": {Data: raftlog.Metadata{Version: 1, Term: c.term, Vote: c.vote}.Encode()},
			}
			for name, batches := range c.segments {
				var first, last uint64
				if n, _ := fmt.Sscanf(name, "%d-%d", &first, &last); n == 2 {
					name = raftlog.SegmentName(first, last)
				}

				fsys[name] = &fstest.MapFile{Data: raftlogtest.Segment(0, batches...)}
			}

			if got := open(t, fsys).Edited; got != c.want {
				t.Errorf("edited: %v", got)
			}
		})
	}
}

// TestFiles checks which files belong in an export.
func TestFiles(t *testing.T) {
	dir := raftlogtest.Make(t, raftlogtest.Snapshot)
	err := os.WriteFile(filepath.Join(dir, "tmp-x"), nil, 0o600)
	if err != nil {
		t.Fatal(err)
	}

	log := open(t, os.DirFS(dir))
	needed := map[string]bool{"metadata1": true, "metadata2": true, raftlogtest.NewerSnapshot: true, raftlogtest.NewerSnapshot + ".meta": true,
		raftlog.SegmentName(62, 126): true, raftlog.SegmentName(127, 130): true, raftlog.SegmentName(131, 135): true, "open-1": true, "open-2": true}
	for _, f := range log.Files {
		if f.Needed != needed[f.Name] {
			t.Errorf("%s: needed %v", f.Name, f.Needed)
		}

		if unused := f.Name == "open-3" || f.Name == "open-4"; f.Unused != unused {
			t.Errorf("%s: unused %v", f.Name, f.Unused)
		}
	}

	if s := log.Snapshot(); s == nil || s.File != raftlogtest.NewerSnapshot || len(s.Databases) != 1 || !s.Compressed {
		t.Fatalf("snapshot %+v", s)
	}

	if log.FirstIndex != 62 || log.LastIndex != raftlogtest.SnapshotLast {
		t.Errorf("log goes from %d to %d", log.FirstIndex, log.LastIndex)
	}
}

// TestSnapshotDatabases reads databases whole, in part and not at all.
func TestSnapshotDatabases(t *testing.T) {
	log := open(t, os.DirFS(raftlogtest.Make(t, raftlogtest.WAL)))
	want, err := os.ReadFile(filepath.Join(raftlogtest.Global(t, "small/n2-preimport"), "db.bin"))
	if err != nil {
		t.Fatal(err)
	}

	for _, limit := range []int64{0, 100, 1 << 40} {
		calls := 0
		err := log.SnapshotDatabases(context.Background(), log.Snapshot(), func(db raftlog.SnapshotDatabase) error {
			calls++
			if db.Name != "db.bin" || db.MainSize != int64(len(want)) || db.WALSize != 32+24+4096 {
				t.Errorf("%s has %d and %d bytes", db.Name, db.MainSize, db.WALSize)
			}

			got, err := io.ReadAll(io.LimitReader(db.Main, limit))
			if err != nil {
				return err
			}

			if string(got) != string(want[:min(limit, int64(len(want)))]) {
				t.Error("another database came out")
			}

			return nil
		})
		if err != nil || calls != 1 {
			t.Errorf("%d calls, %v", calls, err)
		}
	}

	stop := errors.New("stop")
	err = log.SnapshotDatabases(context.Background(), log.Snapshot(), func(raftlog.SnapshotDatabase) error { return stop })
	if !errors.Is(err, stop) {
		t.Errorf("the callback's error became %v", err)
	}
}

// TestNothingChanges compares the directory before and after: bytes, names, sizes, times.
func TestNothingChanges(t *testing.T) {
	fixtures := raftlogtest.Fixtures(t)
	before := picture(t, fixtures)
	for _, member := range []string{"small/n1-afteredit", "forgotten/n1-preedit"} {
		log := open(t, os.DirFS(raftlogtest.Global(t, member)))
		countEntries(t, log, 0)
	}

	if after := picture(t, fixtures); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func picture(t *testing.T, dir string) (s string) {
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}

		info, err := e.Info()
		if err != nil {
			return err
		}

		s += fmt.Sprintln(path, info.Mode(), info.Size(), info.ModTime().UnixNano())
		if e.Type().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}

			s += fmt.Sprintf("%x\n", sha256.Sum256(data))
		}

		return nil
	})
	if err != nil {
		t.Fatal(err)
	}

	return s
}

// TestContext stops in the middle, and counts every byte once.
func TestContext(t *testing.T) {
	fsys := os.DirFS(raftlogtest.Global(t, "forgotten/n1-preedit"))
	var read int64
	log, err := raftlog.Open(context.Background(), fsys, raftlog.Options{Progress: func(n int64) { read += n }})
	if err != nil {
		t.Fatal(err)
	}

	var size int64
	for _, f := range log.Files {
		if f.Kind == raftlog.ClosedSegmentFile || f.Kind == raftlog.OpenSegmentFile || f.Kind == raftlog.MetadataFile {
			size += f.Size
		}
	}

	if read != size {
		t.Errorf("%d bytes reported, the files have %d", read, size)
	}

	ctx, cancel := context.WithCancel(context.Background())
	_, err = raftlog.Open(ctx, fsys, raftlog.Options{Progress: func(int64) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}

	_, err = raftlog.Open(context.Background(), os.DirFS(filepath.Join(t.TempDir(), "none")), raftlog.Options{})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

// TestChanging opens a directory whose daemon closes a segment meanwhile.
func TestChanging(t *testing.T) {
	dir := raftlogtest.Make(t, raftlogtest.Killed)
	once := false
	log, err := raftlog.Open(context.Background(), os.DirFS(dir), raftlog.Options{Progress: func(int64) {
		if !once {
			once = true
			err := os.Rename(filepath.Join(dir, "open-1"), filepath.Join(dir, raftlog.SegmentName(127, 188)))
			if err != nil {
				t.Error(err)
			}

			err = os.Truncate(filepath.Join(dir, raftlog.SegmentName(127, 188)), 566688)
			if err != nil {
				t.Error(err)
			}
		}
	}})
	if err != nil {
		t.Fatal(err)
	}

	if log.LastIndex != 188 || !log.Healthy() {
		t.Errorf("last index %d, %v", log.LastIndex, log.Problems)
	}

	once = false
	log, err = raftlog.Open(context.Background(), os.DirFS(dir), raftlog.Options{Progress: func(int64) {
		if !once {
			once = true
			err := os.WriteFile(filepath.Join(dir, "open-9"), nil, 0o600)
			if err != nil {
				t.Error(err)
			}
		}
	}})
	if err != nil {
		t.Fatal(err)
	}

	if !log.Changed {
		t.Error("nothing noticed")
	}
}
