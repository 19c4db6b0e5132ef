package raftlog_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

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
		describe := func(l *raftlog.Log) string {
			return fmt.Sprint(l.Files, l.Runs(), l.FirstIndex, l.LastIndex, l.LastTerm, l.SoundIndex, l.Configuration, l.Problems, l.Load, l.Start, l.Snapshot())
		}
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
