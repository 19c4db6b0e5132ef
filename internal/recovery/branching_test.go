// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == VerifyCommand {
		os.Exit(verifyInChild(os.Args[2], os.Args[3])) // engine.Run has started this very program
	}

	if len(os.Args) == 4 && os.Args[1] == writeRowCommand {
		os.Exit(writeRowInChild(os.Args[2], os.Args[3]))
	}

	if len(os.Args) == 4 && os.Args[1] == ReconfigureCommand {
		os.Exit(reconfigureInChild(os.Args[2], os.Args[3]))
	}

	// The fixtures' addresses are those of other machines.
	bindable = func(context.Context, string) (preflight.Presence, string) { return preflight.Here, "" }
	status := m.Run()
	raftlogtest.Cleanup()
	os.Exit(status)
}

func openDir(t testing.TB, dir string) *raftlog.Log {
	t.Helper()
	log, err := raftlog.Open(t.Context(), os.DirFS(dir), raftlog.Options{})
	must(t, err)
	return log
}

// What only the local log has, with snapshots on either side. The snapshot base has a snapshot at 126, and transactions from
// 127 to 150; the other directories are the members it was made from, without a snapshot.
func TestDiscarded(t *testing.T) {
	withSnapshot := func(t testing.TB) string { return raftlogtest.Make(t, raftlogtest.Snapshot) }
	fixture := func(member string) func(testing.TB) string {
		return func(t testing.TB) string { return raftlogtest.Global(t, member) }
	}
	otherTerm := func(t testing.TB) string {
		dir := withSnapshot(t)
		for _, suffix := range []string{"", ".meta"} {
			newer := filepath.Join(dir, raftlogtest.NewerSnapshot+suffix)
			must(t, os.Rename(newer, strings.Replace(newer, "snapshot-2-", "snapshot-3-", 1)))
		}

		return dir
	}
	for name, test := range map[string]struct {
		local, tarball func(testing.TB) string
		first, last    uint64 // of what is discarded, 0 for nothing
		unknown        string
	}{
		"the same":                          {fixture("small/n2-preimport"), fixture("small/n2-preimport"), 0, 0, ""},
		"local lags":                        {fixture("small/n3-preimport"), fixture("small/n2-preimport"), 0, 0, ""},
		"local ahead":                       {fixture("forgotten/n1-preedit"), fixture("forgotten/n3-preedit"), 187, 188, ""},
		"edited, its own":                   {fixture("small/n1-afteredit"), fixture("small/n1-afteredit"), 0, 0, ""},
		"same snapshot":                     {withSnapshot, withSnapshot, 0, 0, ""},
		"tarball's snapshot covers local":   {fixture("small/n3-preimport"), withSnapshot, 0, 0, ""},
		"local ahead, with a snapshot":      {withSnapshot, fixture("small/n2-preimport"), 127, 150, ""},
		"local snapshot beyond the tarball": {withSnapshot, fixture("small/n3-preimport"), 126, 150, "reaches index 126"},
		"local snapshot of another history": {otherTerm, fixture("small/n2-preimport"), 0, 0, "different histories"},
		"both, of different histories":      {otherTerm, withSnapshot, 0, 0, "different histories"},
	} {
		t.Run(name, func(t *testing.T) {
			local, tarball := openDir(t, test.local(t)), openDir(t, test.tarball(t))
			unknown, err := otherHistory(t.Context(), local, counterpartOf(tarball))
			must(t, err)
			if !strings.Contains(unknown, test.unknown) || (unknown == "") != (test.unknown == "") {
				t.Errorf("unknown: %q, want %q", unknown, test.unknown)
			}

			compared, err := discarded(t.Context(), local, counterpartOf(tarball), nil)
			must(t, err)
			found := compared.found
			if len(found) == 0 {
				if test.first != 0 {
					t.Error("nothing discarded")
				}

				return
			}

			if found[0].Index < test.first || found[len(found)-1].Index > test.last || test.first == 0 {
				t.Errorf("discarded %v", found)
			}

			for _, d := range found {
				if len(d.Rows) == 0 && d.Unknown == "" && name == "local ahead" {
					t.Errorf("no rows: %v", d)
				}
			}
		})
	}
}

// A second comparison, of what has changed since the first one, says what one from the beginning says.
func TestDiscardedAgain(t *testing.T) {
	global := func(member string) string { return raftlogtest.Global(t, member) }
	edited := global("small/n1-afteredit")
	fencedDir := filepath.Join(t.TempDir(), "fenced")
	log := openDir(t, edited)
	pieces, _, err := fenced(t.Context(), log, log.LastIndex, os.DirFS(edited), 5000)
	must(t, err)
	must(t, writePieces(fencedDir, pieces))
	ranOn := raftlogtest.Copy(t, edited) // as if it had led since: its recovery entry is not the last one any more
	barrier := raftlog.Entry{Term: 3, Type: raftlog.BarrierEntry, Data: make([]byte, 8)}
	next := filepath.Join(ranOn, raftlog.SegmentName(log.LastIndex+1, log.LastIndex+1))
	must(t, os.WriteFile(next, raftlog.AppendBatch(raftlog.SegmentHeader(), barrier), 0o600))
	for name, test := range map[string]struct{ before, after, tarball string }{
		"nothing has changed":    {global("forgotten/n1-preedit"), global("forgotten/n1-preedit"), global("forgotten/n3-preedit")},
		"LXD has written more":   {global("forgotten/n3-preedit"), global("forgotten/n1-preedit"), global("forgotten/n3-preedit")},
		"edited in between":      {global("forgotten/n1-preedit"), global("forgotten/n1-afteredit"), global("forgotten/n3-preedit")},
		"edited, then run again": {global("small/n1-afteredit"), global("small/n2-preimport"), global("small/n1-afteredit")},
		"a snapshot was taken":   {global("small/n2-preimport"), raftlogtest.Make(t, raftlogtest.Snapshot), global("small/n2-preimport")},
		"recovery entries":       {edited, edited, fencedDir},
		"ran on its own":         {edited, ranOn, fencedDir},
		"another database":       {global("small/n2-preimport"), global("forgotten/n1-preedit"), global("small/n2-preimport")},
	} {
		t.Run(name, func(t *testing.T) {
			dir := raftlogtest.Copy(t, test.before)
			tarball := openDir(t, test.tarball)
			before, err := discarded(t.Context(), openDir(t, dir), counterpartOf(tarball), nil)
			must(t, err)
			replaceFiles(t, dir, test.after)
			now, err := raftlog.Open(t.Context(), os.DirFS(dir), raftlog.Options{Known: before.local})
			must(t, err)
			got, err := discarded(t.Context(), now, counterpartOf(tarball), before)
			must(t, err)
			want, err := discarded(t.Context(), openDir(t, test.after), counterpartOf(tarball), nil)
			must(t, err)
			if got.branch != want.branch || !reflect.DeepEqual(got.found, want.found) {
				t.Errorf("branch %d, discarded %v; from the beginning %d, %v", got.branch, got.found, want.branch, want.found)
			}
		})
	}
}

// replaceFiles makes a directory hold the files of another one; those that are the same are not touched.
func replaceFiles(t *testing.T, dir string, from string) {
	t.Helper()
	old, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range old {
		one, _ := os.ReadFile(filepath.Join(dir, e.Name()))
		two, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err != nil || !bytes.Equal(one, two) {
			must(t, os.Remove(filepath.Join(dir, e.Name())))
		}
	}

	new, err := os.ReadDir(from)
	must(t, err)
	for _, e := range new {
		data, err := os.ReadFile(filepath.Join(from, e.Name()))
		must(t, err)
		_, err = os.Stat(filepath.Join(dir, e.Name()))
		if err != nil {
			must(t, os.WriteFile(filepath.Join(dir, e.Name()), data, 0o600))
		}
	}
}

// LXD's own loader has removed the database, and its backup cannot be read: nobody can tell what would be lost, and the backup is
// named.
func TestUnreadableBackup(t *testing.T) {
	im := importer{run: &run{dir: directory{t.TempDir()}}, report: &ImportReport{Raft: bundle.Position{Index: 2, Term: 2}}, log: &raftlog.Log{Term: 2}}
	look := localLook{emptied: true}
	source := Source{Path: "db_backup.2026.tar.gz", global: filepath.Join(t.TempDir(), "missing")}
	used, err := im.useBackup(t.Context(), &source, &look)
	if used || err != nil || look.err == nil || !strings.Contains(look.err.Error(), "db_backup.2026.tar.gz cannot be read") {
		t.Errorf("used %v, %v, %v", used, err, look.err)
	}

	must(t, im.compareLocal(t.Context(), look))
	refusal := im.checkLoss()
	if refusal == nil || !strings.Contains(refusal.Error(), "it cannot be read") {
		t.Errorf("the import goes on: %v", refusal)
	}
}
