// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

func (l lostLab) discarding(opts *ImportOptions) { opts.DiscardLocal = true }

// A raft directory that was moved away as canonical/lxd#7371 advises, or emptied: what was in it cannot be told, which is said, with
// what may be it; the import goes on if that is given up, and reads nothing of what was moved away.
func TestImportWithoutGlobal(t *testing.T) {
	missing, empty := "global is missing: if it was moved away, move it back first", "global holds no file of raft: if it was moved away, move it back first"
	for name, test := range map[string]struct {
		lose func(t testing.TB, l lostLab)
		says []string
	}{
		"removed": {func(t testing.TB, l lostLab) { must(t, os.RemoveAll(l.dir.global())) }, []string{missing}},
		"emptied": {func(t testing.TB, l lostLab) {
			must(t, errors.Join(os.RemoveAll(l.dir.global()), os.Mkdir(l.dir.global(), 0o700)))
			must(t, os.WriteFile(filepath.Join(l.dir.global(), "db.bin"), nil, 0o600))
		}, []string{empty}},
		"moved away": {func(t testing.TB, l lostLab) { l.move(t, "database/global.bak") },
			[]string{"global is missing; ", "/database/global.bak holds files of raft and may be what was moved away: move it back first, so that"}},
		"moved up":     {func(t testing.TB, l lostLab) { l.move(t, "old") }, []string{"global is missing; ", "/old holds files of raft"}},
		"moved deeper": {func(t testing.TB, l lostLab) { l.move(t, "copy/global") }, []string{"global is missing; ", "/copy/global holds files of raft"}},
		"kept by us":   {func(t testing.TB, l lostLab) { l.move(t, keptImport+"/global") }, []string{missing}}, // it has its own command
	} {
		t.Run(name, func(t *testing.T) {
			l := newLostLab(t)
			test.lose(t, l)
			_, err := l.importDB(t.Context(), nil)
			var refusal *Refusal
			if !errors.As(err, &refusal) || refusal.Flag != "--discard-local-entries" {
				t.Fatalf("refused with %v", err)
			}

			for _, says := range test.says {
				if !strings.Contains(err.Error(), "cannot be told: ") || !strings.Contains(err.Error(), says) {
					t.Errorf("%q does not say %q", err, says)
				}
			}

			r, err := l.importDB(t.Context(), l.discarding)
			must(t, err)
			wantWarning(t, r.Warnings, test.says...)
			l.wantWhole(t, newAddresses...)
			if !r.Done || r.Local != nil || r.Lacking != "its raft directory global is missing or empty" {
				t.Errorf("%+v", r)
			}

			log, err := readLog(t.Context(), l.dir.global(), Progress{})
			must(t, err)
			if log.LastIndex != r.Raft.Index || log.LastTerm != r.Raft.Term || r.Raft.Index != 128 {
				t.Errorf("the log in place ends at %d, %d; the report has %s", log.LastIndex, log.LastTerm, r.Raft)
			}

			r, err = l.importDB(t.Context(), nil)
			must(t, err)
			if !r.NothingToDo {
				t.Errorf("the second import: %+v", r)
			}
		})
	}
}

// move moves the raft directory to another name in LXD's directory.
func (l lostLab) move(t testing.TB, name string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(l.dir.join(name)), 0o700))
	must(t, os.Rename(l.dir.global(), l.dir.join(name)))
}

// Beside an LXD that runs, the comparison waits until it is down; a directory that cannot be read then is as bad as before.
func TestMissingGlobalWhileLive(t *testing.T) {
	l := newLostLab(t)
	must(t, os.RemoveAll(l.dir.global()))
	run, end, err := beginRun(l.dir.path, runOptions{purpose: purposeImport, noStart: true})
	must(t, err)
	defer end()
	opts := ImportOptions{LXDDir: l.dir.path, Tarball: l.tarball, NoStart: true, BesideCluster: true, Unsigned: true}
	im := &importer{run: run, opts: opts, report: newImportReport(opts.Tarball)}
	must(t, im.stage(t.Context()))
	im.live = true
	must(t, im.checkLoss())
	wantWarning(t, im.report.Warnings, "cannot be told while LXD runs", "global is missing")
	var refusal *Refusal
	err = im.exchange(t.Context())
	if !errors.As(err, &refusal) || im.report.Done {
		t.Errorf("with LXD down: %v", err)
	}
}

// Both raft directory and node database are missing: that is no LXD's directory. One of them is enough to be one.
func TestNoLXDDirectory(t *testing.T) {
	l := newLostLab(t)
	must(t, os.Remove(l.dir.local()))
	_, err := openDirectory(l.dir.path)
	must(t, err)
	must(t, os.RemoveAll(l.dir.global()))
	_, err = openDirectory(l.dir.path)
	if err == nil || !strings.Contains(err.Error(), "is not the directory of an LXD: neither "+l.dir.global()+" nor "+l.dir.local()+" is there") {
		t.Errorf("neither: %v", err)
	}

	must(t, os.Remove(l.dir.database()))
	_, err = openDirectory(l.dir.path)
	if err == nil || !strings.Contains(err.Error(), l.dir.database()+" is missing; set LXD_DIR") {
		t.Errorf("no database: %v", err)
	}
}

// Each command that needs what is missing says so itself.
func TestCommandsWithoutGlobal(t *testing.T) {
	l := newLostLab(t)
	l.move(t, "database/global.bak")
	l.wantSaid(t, l.dir.global()+" is missing; "+l.dir.join("database/global.bak")+" holds files of raft")
	l = newLostLab(t)
	must(t, os.Remove(l.dir.local()))
	says := l.dir.local() + " is missing; `lxd-recover global-db-status` says what to do"
	for name, err := range map[string]error{"export": l.export(t.Context()), "edit": l.edit(t.Context())} {
		if !strings.Contains(fmt.Sprint(err), says) {
			t.Errorf("%s: %v", name, err)
		}
	}

	r, err := Inspect(t.Context(), l.dir.path, Progress{})
	must(t, err)
	if r.Member == nil || r.Member.Name != "node2" {
		t.Errorf("inspect does not know the member by its certificate: %+v", r.Member)
	}

	// The global database is whole: what is missing beside it is for global-db-status to say.
	if slices.ContainsFunc(r.Problems, func(p raftlog.Problem) bool { return p.File == nodedb.File }) {
		t.Errorf("inspect: %v", r.Problems)
	}
}

func (l lostLab) export(ctx context.Context) error {
	_, err := Export(ctx, ExportOptions{LXDDir: l.dir.path, Output: filepath.Join(l.dir.path, "x"), Unedited: true})
	return err
}

func (l lostLab) edit(ctx context.Context) error {
	_, err := Edit(ctx, EditOptions{LXDDir: l.dir.path, Alone: true, BesideCluster: true})
	return err
}

func (l lostLab) wantSaid(t testing.TB, says string) {
	t.Helper()
	_, inspect := Inspect(t.Context(), l.dir.path, Progress{})
	_, inside := Inspect(t.Context(), l.dir.database(), Progress{})
	_, sql := OpenDatabase(t.Context(), DatabaseOptions{Source: l.dir.path})
	for name, err := range map[string]error{"inspect": inspect, "inspect of database": inside, "sql": sql, "export": l.export(t.Context())} {
		if !strings.Contains(fmt.Sprint(err), says) || !strings.Contains(fmt.Sprint(err), "lxd-recover global-db-import") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is missing is told, with what helps, and the rest is reported.
func TestStatusOfLost(t *testing.T) {
	for name, test := range map[string]struct {
		lose    func(t testing.TB, l lostLab)
		says    []string
		raft    bool
		healthy bool
		local   bool // the node database's addresses are there
	}{
		"whole": {func(testing.TB, lostLab) {}, nil, true, true, true},
		"no local.db": {func(t testing.TB, l lostLab) { must(t, os.Remove(l.dir.local())) },
			[]string{"local.db is missing: LXD does not start as this member", "--node-db FILE"}, true, true, false},
		"damaged local.db": {func(t testing.TB, l lostLab) { l.exec(t, "DROP TABLE schema") },
			[]string{"local.db is damaged: it has no table schema: LXD does not", "--node-db FILE"}, true, true, false},
		"empty raft_nodes": {func(t testing.TB, l lostLab) { l.exec(t, "DELETE FROM raft_nodes") },
			[]string{"the table raft_nodes of the node database", "is empty", "`lxd-recover global-db-import`"}, true, true, false},
		"global moved away": {func(t testing.TB, l lostLab) { l.move(t, "database/global.bak") },
			[]string{"global is missing; ", "/database/global.bak holds files of raft", "`lxd-recover global-db-import`"}, false, false, true},
		"global emptied": {func(t testing.TB, l lostLab) {
			must(t, errors.Join(os.RemoveAll(l.dir.global()), os.Mkdir(l.dir.global(), 0o700)))
		}, []string{"global holds no file of raft: move it back if", "`lxd-recover global-db-import`"}, false, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLostLab(t)
			test.lose(t, l)
			r, err := Status(t.Context(), l.dir.path, Progress{})
			must(t, err)
			if (len(test.says) == 0) != (len(r.Problems) == 0) || len(r.Problems) > 1 {
				t.Fatalf("problems %q", r.Problems)
			}

			for _, says := range test.says {
				if !strings.Contains(r.Problems[0], says) {
					t.Errorf("%q does not say %q", r.Problems[0], says)
				}
			}

			if r.Member == nil || r.Member.Name != "node2" || r.Member.ID != 2 || r.Member.Address != "10.96.6.102:8443" || r.Cluster == "" {
				t.Errorf("it is %+v of the cluster %q", r.Member, r.Cluster)
			}

			if (r.Raft != nil) != test.raft || r.Raft != nil && r.Raft.Index != raftlogtest.StoppedLast || r.Healthy != test.healthy || len(r.Addresses) != 3 {
				t.Errorf("%+v", r)
			}

			if slices.ContainsFunc(r.Addresses, func(a AddressRow) bool { return (a.Local != "") != test.local || (a.Raft != "") != test.raft }) {
				t.Errorf("addresses %+v", r.Addresses)
			}
		})
	}
}
