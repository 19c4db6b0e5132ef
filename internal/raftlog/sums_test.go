// SPDX-License-Identifier: AGPL-3.0-only

package raftlog_test

import (
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// The sums are those of the bytes that an export takes: whole closed segments, open ones up to their last sound batch, and the newest
// snapshot.
func TestSums(t *testing.T) {
	killed := raftlogtest.Global(t, "forgotten/n1-preedit")
	short := raftlogtest.Copy(t, killed)
	open, err := filepath.Glob(filepath.Join(short, "open-*"))
	must(t, err)
	must(t, os.Truncate(open[0], 8<<20-8)) // so that what comes after its end is read in another way
	for name, dir := range map[string]string{
		"stopped":  raftlogtest.Global(t, "small/n1-afteredit"),
		"killed":   killed,
		"short":    short,
		"snapshot": raftlogtest.Make(t, raftlogtest.Snapshot),
	} {
		t.Run(name, func(t *testing.T) {
			fsys := os.DirFS(dir)
			log, err := raftlog.Open(t.Context(), fsys, raftlog.Options{Sums: true})
			must(t, err)
			check := func(file string, size int64, sum string) {
				t.Helper()
				data, err := fs.ReadFile(fsys, file)
				must(t, err)
				if size < 0 {
					size = int64(len(data))
				}

				want := sha256.Sum256(data[:size])
				if sum != hex.EncodeToString(want[:]) {
					t.Errorf("%s: the sum of %d bytes is %q", file, size, sum)
				}
			}

			base := uint64(0)
			if s := log.Snapshot(); s != nil {
				base = s.Index
				check(s.File, -1, s.SHA256)
				check(s.Meta, -1, s.MetaSHA256)
			}

			beyond := 0
			for _, run := range log.Runs() {
				if run.Last > base {
					beyond++
					check(run.File, run.Size, run.SHA256)
				}
			}

			if beyond == 0 {
				t.Error("no segments")
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
