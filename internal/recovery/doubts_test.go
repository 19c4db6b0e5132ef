// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pierrec/lz4/v4"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// Nothing in a raw snapshot protects the values of rows. The entries before it tell.
func TestDamagedRowInRawSnapshot(t *testing.T) {
	database := filepath.Join(t.TempDir(), databaseName)
	must(t, os.CopyFS(database, os.DirFS(filepath.Join(raftlogtest.Application(t, "incus-6.0.4-member"), databaseName))))
	global := filepath.Join(database, globalName)
	whole := mustReadLog(t, global)
	if !whole.Healthy() || whole.Snapshot() == nil {
		t.Fatalf("the member as it is: %v", whole.Problems)
	}

	want := rowsOfLog(t, whole)
	file := filepath.Join(global, whole.Snapshot().File)
	replaceIn(t, file, "Default Incus project", "Eefault Incus project")
	log := mustReadLog(t, global)
	if log.Healthy() || log.Snapshot() != nil || log.LastIndex != whole.LastIndex || log.SoundIndex != whole.SoundIndex {
		t.Errorf("healthy %v, snapshot %v, ends at %d, sound up to %d: %v", log.Healthy(), log.Snapshot(), log.LastIndex, log.SoundIndex, log.Problems)
	}

	if tables := want.Differ(rowsOfLog(t, log)); len(tables) > 0 { // the entries from the first one on make it all
		t.Errorf("the tables %v have other rows than before the damage", tables)
	}

	replaceIn(t, file, "Eefault Incus project", "Default Incus project")
	if log = mustReadLog(t, global); !log.Healthy() {
		t.Errorf("put back as it was: %v", log.Problems)
	}
}

// Of two snapshots that do not agree, and nothing before the older one, one is damaged, and nothing tells which. With the log from its beginning on it
// is known, and only the newer one counts.
func TestRawSnapshotsDisagree(t *testing.T) {
	for _, test := range []struct{ newer, fromBeginning bool }{{false, false}, {true, false}, {false, true}, {true, true}} {
		dir := raftlogtest.Copy(t, filepath.Join(raftlogtest.Application(t, "incus-6.0.4-member"), databaseName, globalName))
		opts := raftlog.Options{Engine: product.Cowsql}
		log, err := raftlog.Open(t.Context(), os.DirFS(dir), opts)
		must(t, err)
		older := log.Snapshot().File
		const second = "snapshot-1-1300-9999999"
		_, err = writeSnapshot(t.Context(), log, 1300, filepath.Join(dir, second))
		must(t, err)
		unpackFrame(t, filepath.Join(dir, second))
		must(t, os.WriteFile(filepath.Join(dir, second+".meta"), raftlog.EncodeSnapshotMeta(log.ConfigurationIndex, log.Configuration), 0o600))
		if !test.fromBeginning {
			must(t, os.Remove(filepath.Join(dir, raftlog.SegmentName(1, 353)))) // nothing tells what was before the older one
		}

		read := func() *raftlog.Log {
			log, err := raftlog.Open(t.Context(), os.DirFS(dir), opts)
			must(t, err)
			log, err = distrust(t.Context(), os.DirFS(dir), log, opts)
			must(t, err)
			return log
		}

		if log := read(); !log.Healthy() || log.Snapshot() == nil || log.Snapshot().File != second {
			t.Fatalf("as they are: %v, %v", log.Snapshot(), log.Problems)
		}

		damaged := older
		if test.newer {
			damaged = second
		}

		replaceIn(t, filepath.Join(dir, damaged), "Default Incus project", "Eefault Incus project")
		log = read()
		says := "one of the two is damaged"
		if test.fromBeginning {
			says = "it is damaged"
		}

		found := slices.ContainsFunc(log.Problems, func(p raftlog.Problem) bool {
			return strings.Contains(p.Text, says) && (p.File == damaged || !test.fromBeginning)
		})
		if log.Healthy() != (test.fromBeginning && !test.newer) || !found {
			t.Errorf("%s damaged, %+v: healthy %v, %v", damaged, test, log.Healthy(), log.Problems)
		}
	}
}

func mustReadLog(t *testing.T, global string) *raftlog.Log {
	t.Helper()
	log, err := readLog(t.Context(), global, Progress{})
	must(t, err)
	return log
}

func rowsOfLog(t *testing.T, log *raftlog.Log) globaldb.Fingerprint {
	t.Helper()
	db, err := globaldb.Open(t.Context(), log, log.SoundIndex)
	must(t, err)
	defer db.Close()

	print, err := db.Fingerprint(t.Context())
	must(t, err)
	return print
}

// replaceIn puts text in the place of other text of the same length in a file, whose time is another one afterwards.
func replaceIn(t *testing.T, file string, old string, text string) {
	t.Helper()
	data, err := os.ReadFile(file)
	must(t, err)
	if bytes.Count(data, []byte(old)) == 0 {
		t.Fatalf("%q is not in %s", old, file)
	}

	must(t, os.WriteFile(file, bytes.ReplaceAll(data, []byte(old), []byte(text)), 0o600))
	info, err := os.Stat(file)
	must(t, err)
	must(t, os.Chtimes(file, time.Time{}, info.ModTime().Add(time.Second)))
}

// unpackFrame makes a raw snapshot of a packed one.
func unpackFrame(t *testing.T, file string) {
	t.Helper()
	data, err := os.ReadFile(file)
	must(t, err)
	content, err := io.ReadAll(lz4.NewReader(bytes.NewReader(data)))
	must(t, err)
	must(t, os.WriteFile(file, content, 0o600))
}
