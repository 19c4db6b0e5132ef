// SPDX-License-Identifier: AGPL-3.0-only

package raftlog_test

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

func openAs(t testing.TB, fsys fs.FS, opts raftlog.Options) *raftlog.Log {
	t.Helper()
	log, err := raftlog.Open(context.Background(), fsys, opts)
	if err != nil {
		t.Fatal(err)
	}

	return log
}

// incusGlobal is the raft directory of a real Incus 6.0.4, killed hard after its first snapshot, which is raw.
func incusGlobal(t testing.TB) string {
	t.Helper()
	return filepath.Join(raftlogtest.Application(t, "incus-6.0.4-member"), "database/global")
}

func TestRawSnapshot(t *testing.T) {
	dir := incusGlobal(t)
	log := openAs(t, os.DirFS(dir), raftlog.Options{Engine: product.Cowsql})
	s := log.Snapshot()
	if !log.Healthy() || log.Edited || log.LastIndex != 1386 || log.LastTerm != 1 || s == nil || s.Index != 1024 || s.Compressed || !s.Usable {
		t.Errorf("healthy %v, edited %v, index %d, term %d, snapshot %+v: %v", log.Healthy(), log.Edited, log.LastIndex, log.LastTerm, s, log.Problems)
	}

	if image := s.Databases[0]; image.MainSize == 0 || image.WALSize == 0 {
		t.Fatalf("%+v: this test is about a database with a write-ahead log", image)
	}

	if of := openAs(t, os.DirFS(dir), raftlog.Options{}); of.Healthy() {
		t.Error("libdqlite refuses it, and it is said to be healthy")
	}

	if log = openAs(t, os.DirFS(dir), raftlog.Options{Engine: product.Cowsql, Later: true}); !log.HealthySoFar() {
		t.Errorf("read without the snapshot's data: %v", log.Problems)
	}
}

// Nothing but SQLite's own checksums covers the write-ahead log in a raw snapshot, and SQLite takes it to end where one is wrong, without a word: with it the
// newest rows would go. Every bit of it counts.
func TestRawSnapshotWALDamaged(t *testing.T) {
	dir := incusGlobal(t)
	s := openAs(t, os.DirFS(dir), raftlog.Options{Engine: product.Cowsql}).Snapshot()
	data, err := os.ReadFile(filepath.Join(dir, s.File))
	if err != nil {
		t.Fatal(err)
	}

	meta, err := os.ReadFile(filepath.Join(dir, s.Meta))
	if err != nil {
		t.Fatal(err)
	}

	begin := len(data) - int(s.Databases[0].WALSize)
	places := []int{begin, begin + 8, begin + 16, begin + 24, begin + 32, begin + 36, begin + 40, begin + 48, begin + 55, begin + 56, len(data) - 1}
	for at := begin; at < len(data); at += 9973 {
		places = append(places, at)
	}

	for _, at := range places {
		if at >= begin+12 && at < begin+16 { // the checkpoint's number, which nothing depends on
			continue
		}

		damaged := append([]byte(nil), data...)
		damaged[at] ^= 4
		log := openAs(t, fstest.MapFS{s.File: {Data: damaged}, s.Meta: {Data: meta}}, raftlog.Options{Engine: product.Cowsql})
		if log.Snapshot() != nil {
			t.Errorf("a flipped bit at %d of %d, in the write-ahead log from %d on, is not found: %v", at, len(data), begin, log.Problems)
		}
	}

	t.Logf("%d places", len(places))
}

// TestEditedInTerm tells recovery entries that have the term of the entry before them from those of a leader.
func TestEditedInTerm(t *testing.T) {
	a, b := raftlog.Server{ID: 1, Address: "a:1", Role: raftlog.Voter}, raftlog.Server{ID: 2, Address: "b:1", Role: raftlog.Voter}
	moved, spare, gone := b, b, raftlog.Configuration{a}
	moved.Address, spare.Role = "c:1", raftlog.Spare
	change := func(term uint64, servers ...raftlog.Server) raftlog.Entry {
		return raftlog.Entry{Term: term, Type: raftlog.ChangeEntry, Data: raftlog.EncodeConfiguration(servers)}
	}

	for _, c := range []struct {
		name   string
		last   raftlog.Entry
		marked bool
		want   bool
	}{
		{"nothing changes", change(5, a, b), false, true},
		{"nothing changes, in another order", change(5, b, a), false, true},
		{"an address", change(5, a, moved), false, true},
		{"two roles", change(5, raftlog.Server{ID: 1, Address: "a:1", Role: raftlog.StandBy}, spare), false, true},
		{"a role and an address", change(5, raftlog.Server{ID: 1, Address: "d:1", Role: raftlog.StandBy}, b), false, true},
		{"a voter more", change(5, a, b, raftlog.Server{ID: 3, Address: "c:1", Role: raftlog.Voter}), false, true},
		{"one role", change(5, a, spare), false, false},
		{"one role, and something beside it tells", change(5, a, spare), true, true},
		{"one is removed", change(5, gone...), false, false},
		{"a spare is added", change(5, a, b, raftlog.Server{ID: 3, Address: "c:1", Role: raftlog.Spare}), false, false},
		{"fenced", change(5000, a, spare), false, true},
		{"of term 1, as libdqlite's", change(1, a, spare), false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			fsys := fstest.MapFS{
				"metadata1":               {Data: raftlog.Metadata{Version: 1, Term: 5, Vote: 1}.Encode()},
				raftlog.SegmentName(1, 1): {Data: raftlogtest.Segment(0, []raftlog.Entry{change(1, a, b)})},
				raftlog.SegmentName(2, 2): {Data: raftlogtest.Segment(0, []raftlog.Entry{{Term: 5, Type: raftlog.BarrierEntry, Data: make([]byte, 8)}})},
				raftlog.SegmentName(3, 3): {Data: raftlogtest.Segment(0, []raftlog.Entry{c.last})},
			}
			log := openAs(t, fsys, raftlog.Options{Engine: product.Cowsql, Recovered: c.marked})
			if log.Edited != c.want {
				t.Errorf("edited: %v, want %v", log.Edited, c.want)
			}
		})
	}
}

// A member of a cluster of Incus that was never edited has many configurations of leaders.
func TestNeverEdited(t *testing.T) {
	dir := incusGlobal(t)
	log := openAs(t, os.DirFS(dir), raftlog.Options{Engine: product.Cowsql})
	var before raftlog.Configuration
	seen, own := 0, []uint64{}
	for e, err := range log.Entries(context.Background(), 1) {
		if err != nil {
			t.Fatal(err)
		}

		if e.Type != raftlog.ChangeEntry {
			continue
		}

		c, err := raftlog.ParseConfiguration(e.Data)
		if err != nil {
			t.Fatal(err)
		}

		if seen > 0 && !before.LeadsTo(c) {
			own = append(own, e.Index)
		}

		before, seen = c, seen+1
	}

	if seen < 5 || len(own) != 1 || !strings.Contains(before[0].Address, ":8443") {
		t.Errorf("%d configurations, of which no leader can have written those at %d; want one, Incus's own first step into a cluster", seen, own)
	}
}
