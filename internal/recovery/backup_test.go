// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// A backup of LXD's without a global database, as MicroCloud's are, is none of a spare: nothing can be said of it.
func TestBackupWithoutGlobal(t *testing.T) {
	for name, dirs := range map[string][]string{"no directory": {"database"}, "an empty one": {"database", "database/global"}} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "db_backup.tar.gz")
			f, err := os.Create(file)
			must(t, err)
			zip := gzip.NewWriter(f)
			archive := tar.NewWriter(zip)
			for _, dir := range dirs {
				must(t, archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o700}))
			}

			local, err := os.ReadFile(newLostLab(t).dir.local())
			must(t, err)
			must(t, archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "database/local.db", Mode: 0o600, Size: int64(len(local))}))
			_, err = archive.Write(local)
			must(t, errors.Join(err, archive.Close(), zip.Close(), f.Close()))

			r, err := Inspect(t.Context(), file, Progress{})
			if r != nil || err == nil || !strings.Contains(err.Error(), file+": this backup has no global database") {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

// A backup ends with the last entry that is known to be committed, which may lie before a snapshot that was taken since. What is before its own snapshot goes
// with it, and no entry goes twice.
func TestTrailing(t *testing.T) {
	dir := raftlogtest.Make(t, raftlogtest.Snapshot)
	log, err := raftlog.Open(t.Context(), os.DirFS(dir), raftlog.Options{Sums: true, AllSums: true})
	must(t, err)
	for last := uint64(101); last <= raftlogtest.SnapshotLast; last++ {
		before, err := trailing(t.Context(), log, last, os.DirFS(dir))
		must(t, err)
		pieces, err := plain(t.Context(), log, last, os.DirFS(dir))
		must(t, err)
		next := uint64(0)
		for _, p := range append(before, pieces...) {
			var from, to uint64
			if n, _ := fmt.Sscanf(p.Name, "%d-%d", &from, &to); n != 2 {
				continue
			}

			if next > 0 && from != next {
				t.Errorf("up to index %d: %s comes after entry %d", last, p.Name, next-1)
			}

			next = to + 1
		}

		if next != last+1 {
			t.Errorf("up to index %d: it ends with entry %d", last, next-1)
		}
	}
}
