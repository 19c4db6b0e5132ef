// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// What libdqlite writes to in place is copied; what it never writes to again is the same file, and stays when libdqlite deletes it.
func TestSaveTree(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "database"), filepath.Join(dir, "saved")
	err := os.CopyFS(filepath.Join(from, globalName), os.DirFS(raftlogtest.Make(t, raftlogtest.Snapshot)))
	if err == nil {
		err = os.WriteFile(filepath.Join(from, raftlog.SegmentName(1, 2)), []byte("not in the raft directory"), 0o600)
	}

	if err == nil {
		err = saveTree(t.Context(), from, to)
	}

	if err != nil {
		t.Fatal(err)
	}

	linked := map[string]bool{
		raftlog.SegmentName(62, 126): true, raftlog.SegmentName(127, 130): true, raftlog.SegmentName(131, 135): true,
		raftlogtest.OlderSnapshot: true, raftlogtest.OlderSnapshot + ".meta": true, raftlogtest.NewerSnapshot: true, raftlogtest.NewerSnapshot + ".meta": true,
	}
	seen := 0
	err = filepath.WalkDir(from, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}

		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}

		a, err := os.Stat(path)
		if err != nil {
			return err
		}

		b, err := os.Stat(filepath.Join(to, name))
		if err != nil {
			return err
		}

		seen++
		want := filepath.Dir(name) == globalName && linked[e.Name()]
		if os.SameFile(a, b) != want || a.Size() != b.Size() || !a.ModTime().Equal(b.ModTime()) {
			t.Errorf("%s: linked: %v, want %v; %d and %d bytes, %s and %s", name, !want, want, a.Size(), b.Size(), a.ModTime(), b.ModTime())
		}

		return nil
	})
	if err != nil || seen < len(linked)+4 { // metadata, open segments, and the one beside
		t.Errorf("%d files: %v", seen, err)
	}
}
