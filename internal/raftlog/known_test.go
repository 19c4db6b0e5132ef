// SPDX-License-Identifier: AGPL-3.0-only

package raftlog_test

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// describe is all that was found.
func describe(l *raftlog.Log) string {
	s := fmt.Sprint(l.Files, l.Runs(), l.FirstIndex, l.LastIndex, l.LastTerm, l.SoundIndex, l.MaxTerm, l.Configuration, l.Edited)
	s += fmt.Sprint(l.Problems, l.Libdqlite.Load, l.Libdqlite.Start, l.Libdqlite.Actions, l.Libdqlite.Dropped)
	for _, snapshot := range l.Snapshots {
		s += fmt.Sprintf(" %+v", snapshot)
	}

	return s
}

// A second look reads only what has changed since the first one, and finds what a look from the beginning finds.
func TestKnown(t *testing.T) {
	dir := raftlogtest.Copy(t, raftlogtest.Make(t, raftlogtest.Snapshot))
	known := open(t, os.DirFS(dir))
	again := func() (*raftlog.Log, int64) {
		t.Helper()
		read := int64(0)
		log, err := raftlog.Open(t.Context(), os.DirFS(dir), raftlog.Options{Known: known, Progress: func(n int64) { read += n }})
		must(t, err)
		fresh := open(t, os.DirFS(dir))
		if describe(log) != describe(fresh) {
			t.Errorf("found\n%s\nfrom the beginning\n%s", describe(log), describe(fresh))
		}

		return log, read
	}

	small, open := int64(0), int64(0) // metadata; open segments, which are always read
	for _, f := range known.Files {
		switch f.Kind {
		case raftlog.MetadataFile:
			small += f.Size
		case raftlog.OpenSegmentFile:
			open += f.Size
		}
	}

	log, read := again()
	if read > small+open || log.UnchangedUpTo(known) != log.LastIndex {
		t.Errorf("read %d bytes, unchanged up to %d of %d", read, log.UnchangedUpTo(known), log.LastIndex)
	}

	// Damage in a closed segment, with another time as any write gives.
	runs := known.Runs()
	last := runs[len(runs)-1]
	path := filepath.Join(dir, last.File)
	data, err := os.ReadFile(path)
	must(t, err)
	data[len(data)/2] ^= 1
	must(t, os.Remove(path))
	must(t, os.WriteFile(path, data, 0o600))
	log, read = again()
	if log.Healthy() || log.UnchangedUpTo(known) != last.First-1 {
		t.Errorf("healthy %v, unchanged up to %d", log.Healthy(), log.UnchangedUpTo(known))
	}

	if read < int64(len(data)) {
		t.Errorf("read %d bytes", read)
	}
}

// What is left for later is read by a second look, and both together find what one look finds, whatever is damaged.
func TestLater(t *testing.T) {
	var damagedLater atomic.Int32
	t.Cleanup(func() {
		if damagedLater.Load() == 0 {
			t.Error("no case has its damage in what is read later")
		}
	})

	for _, c := range raftlogtest.Cases() {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			dir := raftlogtest.Make(t, c.Base)
			must(t, c.Damage(dir))
			fsys := os.DirFS(dir)
			first, read := int64(0), int64(0)
			outline, err := raftlog.Open(t.Context(), fsys, raftlog.Options{Sums: true, Later: true, Progress: func(n int64) { first += n }})
			must(t, err)
			whole, err := raftlog.Open(t.Context(), fsys, raftlog.Options{Sums: true, Known: outline})
			must(t, err)
			once, err := raftlog.Open(t.Context(), fsys, raftlog.Options{Sums: true, Progress: func(n int64) { read += n }})
			must(t, err)
			if whole.Healthy() != once.Healthy() || describe(whole) != describe(once) {
				t.Errorf("in two steps\n%s\nin one\n%s", describe(whole), describe(once))
			}

			if once.Healthy() && !outline.HealthySoFar() {
				t.Errorf("healthy, but not before the end: %v", outline.Problems)
			}

			if len(outline.Snapshots) == 0 {
				return
			}

			if outline.Healthy() {
				t.Error("healthy, although the data of snapshots is unread")
			}

			data := int64(0)
			for _, s := range once.Snapshots {
				data += s.Size
			}

			if first > read-data {
				t.Errorf("read %d bytes at first, of %d, of which %d are the data of snapshots", first, read, data)
			}

			if outline.HealthySoFar() && !once.Healthy() {
				damagedLater.Add(1)
			}
		})
	}
}
