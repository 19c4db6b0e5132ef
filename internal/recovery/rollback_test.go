// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// rollbackLab is node2 of three, on which two runs were carried out: an import, and another one of what was exported from it.
type rollbackLab struct {
	lostLab
	original string    // content of the database before the first run
	runs     [2]string // ids
	kept     [2]string // names of what the runs replaced
}

func newRollbackLab(t testing.TB) rollbackLab {
	t.Helper()
	l := rollbackLab{lostLab: newSignedLab(t).lostLab}
	l.original = namesAndContent(t, l.dir.database())
	l.importAgain(t, 0)
	l.exportAndImport(t, 1)
	return l
}

// exportAndImport carries out the run with this number, with a tarball of the live database.
func (l *rollbackLab) exportAndImport(t testing.TB, number int) {
	t.Helper()
	l.tarball = filepath.Join(t.TempDir(), "again.tar.gz")
	_, err := Export(t.Context(), ExportOptions{LXDDir: l.dir.path, Output: l.tarball, NoVerify: true})
	must(t, err)
	l.importAgain(t, number)
}

// importAgain carries out the run with this number.
func (l *rollbackLab) importAgain(t testing.TB, number int) {
	t.Helper()
	r, err := l.importDB(t.Context(), l.discarding)
	must(t, err)
	record, err := readRecord(l.dir.database())
	must(t, err)
	if !r.Done || len(record.Run) != 32 {
		t.Fatalf("the import: %+v, run %q", r, record.Run)
	}

	l.runs[number], l.kept[number] = record.Run, filepath.Base(r.Kept)
}

func (l *rollbackLab) rollback(t testing.TB, with func(*RollbackOptions)) (*RollbackReport, error) {
	t.Helper()
	opts := RollbackOptions{LXDDir: l.dir.path, NoStart: true, BesideCluster: true}
	if with != nil {
		with(&opts)
	}

	return Rollback(t.Context(), opts)
}

// ran has raft write to a database as a voter does that has given its vote.
func ran(t testing.TB, database string) {
	t.Helper()
	global := filepath.Join(database, globalName)
	log := openDir(t, global)
	for _, p := range votedPieces(log, log.MaxTerm+1, 1) {
		data, err := p.Open()
		must(t, err)
		must(t, data.Close())
		must(t, os.Remove(filepath.Join(global, p.Name)))
		must(t, writePiece(filepath.Join(global, p.Name), p))
	}
}

// A kept database is found by the run that replaced it, and the original one past several runs.
func TestRollbackChooses(t *testing.T) {
	for name, test := range map[string]struct {
		with func(*rollbackLab, *RollbackOptions)
		want int // of the run that it undoes; the first one leads to the original
	}{
		"the newest":        {func(*rollbackLab, *RollbackOptions) {}, 1},
		"before the second": {func(l *rollbackLab, o *RollbackOptions) { o.Before = l.runs[1] }, 1},
		"before the first":  {func(l *rollbackLab, o *RollbackOptions) { o.Before = strings.ToUpper(l.runs[0][:8]) }, 0},
		"original":          {func(_ *rollbackLab, o *RollbackOptions) { o.Original = true }, 0},
		"by name":           {func(l *rollbackLab, o *RollbackOptions) { o.Kept = l.kept[0] }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			l := newRollbackLab(t)
			live := namesAndContent(t, l.dir.database())
			want := namesAndContent(t, l.dir.join(l.kept[test.want]))
			r, err := l.rollback(t, func(o *RollbackOptions) { test.with(&l, o) })
			must(t, err)
			if got := namesAndContent(t, l.dir.database()); got != want || !r.Done || r.Restored.Name != l.kept[test.want] {
				t.Errorf("%+v\n%s\n--- want\n%s", r, got, want)
			}

			if (test.want == 0) != (want == l.original) || r.Restored.Run != l.runs[test.want] {
				t.Errorf("run %s leads to\n%s", r.Restored.Run, want)
			}

			if namesAndContent(t, r.Kept) != live || !slices.Equal(r.Elsewhere, []string{"node1", "node3"}) {
				t.Errorf("replaced, and where else: %+v", r)
			}
		})
	}
}

// The original one stays, however often it is asked for, and what a rollback has replaced can be put back and taken away again.
func TestRollbackToOriginal(t *testing.T) {
	l := newRollbackLab(t)
	original := func(o *RollbackOptions) { o.Original = true }
	first, err := l.rollback(t, original)
	must(t, err)
	for range 2 {
		r, err := l.rollback(t, original)
		must(t, err)
		if !r.NothingToDo || r.Done || namesAndContent(t, l.dir.database()) != l.original {
			t.Fatalf("again: %+v", r)
		}
	}

	_, err = l.rollback(t, func(o *RollbackOptions) { o.Kept = filepath.Base(first.Kept) })
	must(t, err)
	if namesAndContent(t, l.dir.database()) == l.original {
		t.Fatal("the rollback was not undone")
	}

	r, err := l.rollback(t, original)
	must(t, err)
	if !r.Done || namesAndContent(t, l.dir.database()) != l.original {
		t.Errorf("after the rollback was undone: %+v", r)
	}
}

// LXD has run on a database, which was replaced, put back and replaced again: that is the original one. One member does not go back beyond it.
func TestRollbackBeyondRestored(t *testing.T) {
	l := newRollbackLab(t)
	ran(t, l.dir.database())
	want, oldest, second := namesAndContent(t, l.dir.database()), l.kept[0], l.runs[1]
	l.exportAndImport(t, 0)
	_, err := l.rollback(t, nil)
	must(t, err)
	l.exportAndImport(t, 1)
	for name, with := range map[string]func(*RollbackOptions){
		"the oldest": func(o *RollbackOptions) { o.Kept = oldest },
		"before":     func(o *RollbackOptions) { o.Before = second },
	} {
		_, err := l.rollback(t, func(o *RollbackOptions) {
			with(o)
			o.DiscardLocal, o.AcceptDamage = true, true
		})
		t.Log(name, err)
		wantRefused(t, err, "lxd-has-run", "LXD has run on the database in "+l.dir.join(l.kept[1]))
	}

	r, err := l.rollback(t, func(o *RollbackOptions) { o.Original = true })
	must(t, err)
	if !r.Done || r.Restored.Name != l.kept[1] || namesAndContent(t, l.dir.database()) != want {
		t.Errorf("this is not the original: %+v", r)
	}
}

// LXD has run, on the live database or on one in between: one of several members does not go back alone. What it has not run on
// since is still undone.
func TestRollbackAfterRun(t *testing.T) {
	for name, test := range map[string]struct {
		ran     func(*rollbackLab) string
		refused []string // flags
	}{
		"on the live one":                {func(l *rollbackLab) string { return l.dir.database() }, []string{"newest", "before", "original", "name"}},
		"on the one of the first import": {func(l *rollbackLab) string { return l.dir.join(l.kept[1]) }, []string{"before", "name"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newRollbackLab(t)
			ran(t, test.ran(&l))
			before := namesAndContent(t, l.dir.path)
			for how, with := range map[string]func(*RollbackOptions){
				"newest": nil,
				"before": func(o *RollbackOptions) { o.Before = l.runs[0] }, "name": func(o *RollbackOptions) { o.Kept = l.kept[0] },
				"original": func(o *RollbackOptions) { o.Original = true },
			} {
				_, err := l.rollback(t, func(o *RollbackOptions) {
					if with != nil {
						with(o)
					}

					o.DiscardLocal, o.AcceptDamage, o.DryRun = true, true, !slices.Contains(test.refused, how)
				})
				if !slices.Contains(test.refused, how) {
					must(t, err)
					continue
				}

				wantRefused(t, err, "lxd-has-run", "LXD has run on the database in "+test.ran(&l), "export-db --source "+l.kept[0][:15])
			}

			if namesAndContent(t, l.dir.path) != before {
				t.Error("something was changed")
			}
		})
	}
}

// What is not known counts as a run.
func TestRollbackWithoutReport(t *testing.T) {
	l := newRollbackLab(t)
	for _, kept := range l.kept {
		must(t, os.Remove(l.dir.join(kept+reportSuffix)))
	}

	r, err := l.rollback(t, func(o *RollbackOptions) { o.Kept, o.DryRun = l.kept[0], true }) // the records in the databases know it, too
	must(t, err)
	if r.Done {
		t.Fatalf("a dry run: %+v", r)
	}

	must(t, os.Remove(l.dir.join(databaseName, recordName)))
	_, err = l.rollback(t, nil)
	wantRefused(t, err, "lxd-has-run", "it is not known whether LXD has run on the database in "+l.dir.database())
}

// What the replaced database has more is named: here a row that the tarball does not have, as an undone rollback gives it up again.
func TestRollbackNamesRows(t *testing.T) {
	l := newLostLab(t)
	edited := filepath.Join(raftlogtest.Fixtures(t), "forgotten", "n1-preedit", databaseName)
	must(t, os.RemoveAll(l.dir.database()))
	must(t, os.CopyFS(l.dir.database(), os.DirFS(edited)))
	kept := l.dir.join(keptImport)
	must(t, os.CopyFS(kept, os.DirFS(filepath.Join(raftlogtest.Fixtures(t), "forgotten", "n3-preedit", databaseName))))
	replaces(t, l.dir, keptImport)
	var planned *RollbackReport
	r, err := l.rollbackOf(t, func(o *RollbackOptions) {
		o.Confirm = func(r *RollbackReport) error { planned = r; return errors.New("no") }
	})
	if r != nil || planned == nil {
		t.Fatalf("%+v, %v", r, err)
	}

	text := strings.Join(Lines(planned.Discarded), "\n")
	if !strings.Contains(text, "lostrow") || planned.Local.Index != 188 || planned.Raft.Index != 186 {
		t.Errorf("%s, %s: %s", planned.Local, planned.Raft, text)
	}
}

// replaces leaves the report of an import that has put the live database in the place of a kept one.
func replaces(t testing.TB, dir directory, kept string) {
	t.Helper()
	state, err := raftState(dir.global())
	must(t, err)
	reporter := newReporter(dir, purposeImport, "test")
	reporter.run.State = state
	reporter.prepare(kept, nil)
	must(t, reporter.place())
}

func (l lostLab) rollbackOf(t testing.TB, with func(*RollbackOptions)) (*RollbackReport, error) {
	lab := rollbackLab{lostLab: l}
	return lab.rollback(t, with)
}

// An empty or a damaged database is no state to go back to, unless that is asked for.
func TestRollbackToBroken(t *testing.T) {
	for name, test := range map[string]struct {
		breakIt func(t *testing.T, global string)
		says    string
	}{
		"empty": {func(t *testing.T, global string) {
			must(t, os.RemoveAll(global))
			must(t, os.Mkdir(global, 0o700))
			for v := range uint64(2) {
				m := raftlog.Metadata{Version: v + 1, Term: 2}
				must(t, os.WriteFile(filepath.Join(global, m.FileName()), m.Encode(), 0o600))
			}
		}, "is empty: its raft log has no entry"},
		"damaged": {func(t *testing.T, global string) {
			files, err := filepath.Glob(filepath.Join(global, "0*-0*"))
			must(t, err)
			flipFirst(t, files[0])
		}, "is damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newRollbackLab(t)
			test.breakIt(t, l.dir.join(l.kept[1], globalName))
			before := namesAndContent(t, l.dir.path)
			_, err := l.rollback(t, nil)
			wantRefused(t, err, "damaged", test.says, "--accept-damage")
			if namesAndContent(t, l.dir.path) != before {
				t.Error("something was changed")
			}

			r, err := l.rollback(t, func(o *RollbackOptions) { o.AcceptDamage = true })
			must(t, err)
			wantWarning(t, r.Warnings, test.says)
			if !r.Done {
				t.Errorf("%+v", r)
			}
		})
	}
}

// All members go back to a kept database by one tarball of it: a snapshot fence above all that there was, with the list in force or with its own.
func TestExportKept(t *testing.T) {
	for name, test := range map[string]struct {
		old  bool
		want string // address of node2
	}{"list in force": {false, "10.96.6.102:9393"}, "its own list": {true, "10.96.6.102:8443"}} {
		t.Run(name, func(t *testing.T) {
			l := newRollbackLab(t)
			ran(t, l.dir.database())
			live, kept := openDir(t, l.dir.global()), openDir(t, l.dir.join(l.kept[0], globalName))
			before := namesAndContent(t, l.dir.database())
			l.tarball = filepath.Join(t.TempDir(), "back.tar.gz")
			opts := ExportOptions{LXDDir: l.dir.path, Output: l.tarball, NoVerify: true, Source: l.kept[0], OldMembers: test.old}
			opts.Confirm = func(*ExportReport) error { return nil }
			r, err := Export(t.Context(), opts)
			must(t, err)
			if r.Kept != l.kept[0] || r.Before.Index != kept.LastIndex || r.SnapshotFence == "" || r.Raft.Term < live.MaxTerm+termStep ||
				r.Raft.Index < live.LastIndex+snapshotStep || namesAndContent(t, l.dir.database()) != before {
				t.Errorf("%+v", r)
			}

			imported, err := l.importDB(t.Context(), l.discarding)
			must(t, err)
			log := openDir(t, l.dir.global())
			if !imported.Done || imported.Member.Address != test.want || log.Configuration[1].Address != test.want || log.LastIndex != r.Raft.Index {
				t.Errorf("imported %+v, %+v", imported, log.Configuration)
			}

			if got, want := fingerprintAt(t, log), fingerprintAt(t, kept); !reflect.DeepEqual(got, want) {
				t.Errorf("rows %v, want %v", got, want)
			}
		})
	}
}

// What the live database has and the kept one lacks is given up only if that is confirmed; a name that is none, and an empty one, are errors.
func TestExportKeptRefused(t *testing.T) {
	l := newRollbackLab(t)
	opts := ExportOptions{LXDDir: l.dir.path, Output: filepath.Join(t.TempDir(), "x"), NoVerify: true, Source: "nonsense"}
	_, err := Export(t.Context(), opts)
	wantError(t, err, "no kept database")
	must(t, os.RemoveAll(l.dir.database()))
	must(t, os.CopyFS(l.dir.database(), os.DirFS(filepath.Join(raftlogtest.Fixtures(t), "forgotten", "n1-preedit", databaseName))))
	must(t, os.CopyFS(l.dir.join(keptImport), os.DirFS(filepath.Join(raftlogtest.Fixtures(t), "forgotten", "n3-preedit", databaseName))))
	opts.Source = keptImport
	_, err = Export(t.Context(), opts)
	wantRefused(t, err, "transactions-given-up", "lostrow", "--yes")
	if !gone(opts.Output) {
		t.Error("a tarball was written")
	}
}

// withKept has the live database be one of the fixtures', and another one be kept.
func (l rollbackLab) withKept(t testing.TB, live string, kept string) {
	t.Helper()
	fixtures := filepath.Join(raftlogtest.Fixtures(t), "forgotten")
	must(t, os.RemoveAll(l.dir.database()))
	must(t, os.CopyFS(l.dir.database(), os.DirFS(filepath.Join(fixtures, live, databaseName))))
	must(t, os.CopyFS(l.dir.join(keptImport), os.DirFS(filepath.Join(fixtures, kept, databaseName))))
}

// With --at, what the kept database itself has after that is given up as well.
func TestExportKeptAt(t *testing.T) {
	l := newRollbackLab(t)
	l.withKept(t, "n1-preedit", "n1-preedit")
	asked := 0
	r, err := Export(t.Context(), ExportOptions{
		LXDDir: l.dir.path, Output: filepath.Join(t.TempDir(), "x"), NoVerify: true, Source: keptImport, At: 186, UnknownMembers: true,
		Confirm: func(*ExportReport) error { asked++; return nil },
	})
	must(t, err)
	if asked != 1 || len(r.GivenUp) != 2 || !strings.Contains(strings.Join(Lines(r.GivenUp), ""), "lostrow") {
		t.Errorf("asked %d times, given up %v", asked, Lines(r.GivenUp))
	}
}

// A live database that cannot be read is told as such, beside what the kept one itself has after the index.
func TestExportKeptAtBesideUnread(t *testing.T) {
	l := newRollbackLab(t)
	l.withKept(t, "n1-preedit", "n1-preedit")
	must(t, os.RemoveAll(l.dir.global()))
	asked := 0
	r, err := Export(t.Context(), ExportOptions{
		LXDDir: l.dir.path, Output: filepath.Join(t.TempDir(), "x"), NoVerify: true, Source: keptImport, At: 186, UnknownMembers: true,
		Confirm: func(*ExportReport) error { asked++; return nil },
	})
	must(t, err)
	if asked != 1 || len(r.GivenUp) != 2 || !strings.Contains(strings.Join(Lines(r.GivenUp), ""), "lostrow") ||
		len(r.Untold) != 1 || !strings.Contains(r.Untold[0], "cannot be read") {
		t.Errorf("asked %d times, given up %v, untold %v", asked, Lines(r.GivenUp), r.Untold)
	}
}

// A damaged live database may hold more than can be read: that is said, and asked about.
func TestExportKeptBesideDamage(t *testing.T) {
	l := newRollbackLab(t)
	l.withKept(t, "n1-preedit", "n3-preedit")
	open := filepath.Join(l.dir.global(), "open-1")
	data, err := os.ReadFile(open)
	must(t, err)
	end := len(bytes.TrimRight(data, "\x00"))
	for at := end - 1; at > max(0, end-40000); at -= 997 {
		data[at] ^= 0x5a
	}

	must(t, os.WriteFile(open, data, 0o600))
	asked := 0
	r, err := Export(t.Context(), ExportOptions{
		LXDDir: l.dir.path, Output: filepath.Join(t.TempDir(), "x"), NoVerify: true, Source: keptImport, UnknownMembers: true,
		Confirm: func(*ExportReport) error { asked++; return nil },
	})
	must(t, err)
	if asked != 1 || len(r.Untold) == 0 {
		t.Errorf("asked %d times, given up %v, untold %v", asked, Lines(r.GivenUp), r.Untold)
	}
}

// Two fences by a snapshot have different indexes: raft takes none where it has one.
func TestSnapshotFencesDiffer(t *testing.T) {
	l := newRollbackLab(t)
	var at [2]uint64
	for i := range at {
		r, err := Export(t.Context(), ExportOptions{
			LXDDir: l.dir.path, Output: filepath.Join(t.TempDir(), "x"), NoVerify: true, Source: l.kept[i],
			Confirm: func(*ExportReport) error { return nil },
		})
		must(t, err)
		at[i] = r.Raft.Index
	}

	if at[0] == at[1] {
		t.Errorf("both at index %d", at[0])
	}
}

// A rollback by one run leaves the way to the original open, by whatever it is asked for.
func TestRollbackStepByStep(t *testing.T) {
	for name, with := range map[string]func(*rollbackLab, *RollbackOptions){
		"original": func(_ *rollbackLab, o *RollbackOptions) { o.Original = true },
		"name":     func(l *rollbackLab, o *RollbackOptions) { o.Kept = l.kept[0] },
		"before":   func(l *rollbackLab, o *RollbackOptions) { o.Before = l.runs[0] },
	} {
		t.Run(name, func(t *testing.T) {
			l := newRollbackLab(t)
			_, err := l.rollback(t, nil)
			must(t, err)
			_, err = l.rollback(t, func(o *RollbackOptions) { with(&l, o) })
			must(t, err)
			if namesAndContent(t, l.dir.database()) != l.original {
				t.Error("this is not the original")
			}
		})
	}
}

// An open segment has its size before anything is in it.
func TestRaftStateOfOpenSegment(t *testing.T) {
	dir := t.TempDir()
	open := filepath.Join(dir, "open-1")
	must(t, os.WriteFile(open, make([]byte, 8<<20), 0o600))
	before, err := raftState(dir)
	must(t, err)
	f, err := os.OpenFile(open, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString("acknowledged")
	must(t, errors.Join(err, f.Close()))
	after, err := raftState(dir)
	must(t, err)
	if before == after {
		t.Error("an entry was written, and the state is the same")
	}
}

// The snapshot of a later recovery does not tell what of a member's own log is in it: two histories have other entries under one index.
func TestSnapshotOfLaterRecovery(t *testing.T) {
	fixtures := filepath.Join(raftlogtest.Fixtures(t), "forgotten")
	other := openDir(t, filepath.Join(fixtures, "n3-preedit", databaseName, globalName))
	local := openDir(t, filepath.Join(fixtures, "n1-preedit", databaseName, globalName)) // has 187 and 188, which the other one lacks
	pieces, _, err := snapshotFence(t.Context(), other, other.LastIndex, snapshotPlace{term: 1795000000000}, t.TempDir())
	must(t, err)
	dir := filepath.Join(t.TempDir(), "global")
	must(t, writePieces(dir, pieces))
	different, err := otherHistory(t.Context(), local, counterpartOf(openDir(t, dir)))
	must(t, err)
	if !strings.Contains(different, "does not tell which of this member's transactions are in it") {
		t.Errorf("%q", different)
	}

	same, err := otherHistory(t.Context(), local, counterpartOf(local))
	must(t, err)
	if same != "" {
		t.Errorf("the very same log: %q", same)
	}
}

// LXD of another member is up, without a cluster that works: it could take the rollback back.
func TestRollbackBesideMember(t *testing.T) {
	l := newRollbackLab(t)
	pair, err := tls.LoadX509KeyPair(l.dir.join("cluster.crt"), l.dir.join("cluster.key"))
	must(t, err)
	for _, kind := range []string{"crt", "key"} {
		data, err := os.ReadFile(l.dir.join("cluster." + kind))
		must(t, err)
		must(t, os.WriteFile(l.dir.join("server."+kind), data, 0o600))
	}

	fake := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }))
	fake.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	fake.Config.ErrorLog = log.New(io.Discard, "", 0)
	fake.StartTLS()
	defer fake.Close()
	l.exec(t, "UPDATE raft_nodes SET address = '"+fake.Listener.Addr().String()+"' WHERE id = 3")
	_, err = l.rollback(t, func(o *RollbackOptions) { o.BesideCluster = false })
	wantRefused(t, err, "member-up", "LXD runs at "+fake.Listener.Addr().String())
}
