// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// runOn writes what an LXD leaves that was started on a raft directory, and elected a leader in the next term: a barrier.
func runOn(t testing.TB, global string) {
	t.Helper()
	log := openDir(t, global)
	next := raftlog.Entry{Index: log.LastIndex + 1, Term: log.Term + 1, Type: raftlog.BarrierEntry, Data: make([]byte, 8)}
	writeTerm(t, global, next.Term)
	must(t, os.WriteFile(filepath.Join(global, raftlog.SegmentName(next.Index, next.Index)), raftlog.AppendBatch(raftlog.SegmentHeader(), next), 0o600))
}

// importAgain imports once, does something, and imports the same tarball again.
func importAgain(t *testing.T, between func(t testing.TB, l lostLab)) (*ImportReport, error) {
	t.Helper()
	l := newLostLab(t)
	_, err := l.importDB(t.Context(), l.discarding)
	must(t, err)
	between(t, l)
	return l.importDB(t.Context(), l.discarding)
}

// rollBack puts the newest kept database back as somebody does by hand, who is not asked whether LXD has run since.
func (l lostLab) rollBack(t testing.TB) {
	t.Helper()
	kept, err := l.dir.kept()
	must(t, err)
	must(t, os.Rename(l.dir.database(), l.dir.join("database.before-rollback-"+stamp(time.Now()))))
	must(t, os.Rename(l.dir.join(kept[0].Name), l.dir.database()))
}

// A tarball starts a cluster once: where the fence has been started here, in the live database or in one that is kept, another start from it is
// refused, and nothing overrides that.
func TestStartedBefore(t *testing.T) {
	for name, test := range map[string]struct {
		between func(t testing.TB, l lostLab)
		says    string // empty: it may be imported again
	}{
		"not started":  {func(testing.TB, lostLab) {}, ""},
		"taken back":   {func(t testing.TB, l lostLab) { l.rollBack(t) }, ""},
		"runs":         {func(t testing.TB, l lostLab) { runOn(t, l.dir.global()) }, "this member's own database has entries up to index 129, "},
		"undone since": {func(t testing.TB, l lostLab) { runOn(t, l.dir.global()); l.rollBack(t) }, "/database.before-rollback-"},
		"a later term only": {func(t testing.TB, l lostLab) {
			writeTerm(t, l.dir.global(), openDir(t, l.dir.global()).Term+1)
		}, "this member's own database has later terms, "},
		"a snapshot since, and undone": {func(t testing.TB, l lostLab) {
			runOn(t, l.dir.global())
			log := openDir(t, l.dir.global())
			pieces, _, err := snapshotFence(t.Context(), log, log.LastIndex, snapshotPlace{term: log.LastTerm}, t.TempDir())
			must(t, err)
			must(t, os.RemoveAll(l.dir.global()))
			must(t, writePieces(l.dir.global(), pieces))
			l.rollBack(t)
		}, "/database.before-rollback-"},
		"it cannot be read any more": {func(t testing.TB, l lostLab) {
			writeTerm(t, l.dir.global(), openDir(t, l.dir.global()).Term+1)
			l.rollBack(t)
			kept, err := l.dir.kept()
			must(t, err)
			must(t, os.Chmod(l.dir.join(kept[0].Name, globalName), 0o700))
			for _, s := range openDir(t, l.dir.join(kept[0].Name, globalName)).Segments {
				must(t, os.Remove(l.dir.join(kept[0].Name, globalName, s.File)))
			}
		}, "later terms"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := importAgain(t, test.between)
			if test.says == "" {
				must(t, err)
				if !r.Done && !r.NothingToDo {
					t.Errorf("%+v", r)
				}

				return
			}

			text := wantRefused(t, err, "started-before")
			if !strings.Contains(text, test.says) || !strings.Contains(text, "run `lxd-recover cluster export-db` again") ||
				strings.Contains(text, "overrides") {
				t.Errorf("%q", text)
			}
		})
	}
}

// What is no start from the fence: a database that other fences come after, or of another history. And beside the cluster that runs on the
// fence, an import is right.
func TestStartedElsewhere(t *testing.T) {
	global := raftlogtest.Global(t, "small/n1-afteredit")
	log := openDir(t, global)
	pieces, fence, err := fenced(t.Context(), log, log.LastIndex, os.DirFS(global), 5000)
	must(t, err)
	dir := emptyLXD(t)
	must(t, writePieces(dir.global(), pieces))
	im := &importer{run: &run{dir: dir}, report: &ImportReport{Raft: fence}, log: openDir(t, dir.global()), peers: []daemon.Peer{}}
	ran := func(what string, want bool) {
		t.Helper()
		got, err := im.ranOn(t.Context(), dir.database(), openDir(t, dir.global()))
		if err != nil || got != want {
			t.Errorf("%s: %v, %v", what, got, err)
		}
	}
	ran("as imported", false)

	edited := raftlog.Entry{Index: fence.Index + 1, Term: 9000, Type: raftlog.ChangeEntry, Data: raftlog.EncodeConfiguration(log.Configuration)}
	segment := filepath.Join(dir.global(), raftlog.SegmentName(edited.Index, edited.Index))
	must(t, os.WriteFile(segment, raftlog.AppendBatch(raftlog.SegmentHeader(), edited), 0o600))
	writeTerm(t, dir.global(), 9000)
	ran("edited since", false)
	must(t, os.Remove(segment))

	runOn(t, dir.global())
	ran("started", true)
	im.report.Raft.Term = 4999
	ran("from another fence", false)
	im.report.Raft = fence

	mark := func(term float64) []daemon.Peer { return []daemon.Peer{{Rows: [][]any{{float64(fence.Index), term}}}} }
	for _, test := range []struct {
		peers   []daemon.Peer
		refused bool
	}{{nil, true}, {mark(4999), true}, {mark(5000), false}} {
		im.peers = append([]daemon.Peer{}, test.peers...)
		reason, err := im.startedBefore(t.Context(), openDir(t, dir.global()))
		if err != nil || (reason != "") != test.refused {
			t.Errorf("beside %v: %q, %v", test.peers, reason, err)
		}
	}
}

// A member that has seen a higher term in any run could be outvoted by another one; the one with the cluster that runs on the fence cannot.
func TestOutvotes(t *testing.T) {
	log := openDir(t, raftlogtest.Global(t, "small/n2-preimport")) // of term 2
	dir := emptyLXD(t)
	fence := bundle.Position{Index: 127, Term: 5000}
	im := &importer{run: &run{dir: dir}, report: &ImportReport{Raft: fence}, log: &raftlog.Log{Term: 5001}, peers: []daemon.Peer{}}
	want := func(what, says string) {
		t.Helper()
		got, err := im.outvotes(t.Context(), log)
		if err != nil || (got == "") != (says == "") || !strings.Contains(got, says) {
			t.Errorf("%s: %q, %v, want %q", what, got, err, says)
		}
	}
	want("nothing seen", "")
	must(t, dir.noteTerms(t.Context(), 5001))
	want("its own metadata, of an import before", "")
	must(t, dir.noteTerms(t.Context(), 5002))
	want("a later export", "this member has seen raft term 5002 in an earlier run, and the tarball is fenced with term 5000 only")
	im.peers = []daemon.Peer{{Rows: [][]any{{float64(127), float64(5000)}}}}
	want("beside its cluster", "")
	im.peers = []daemon.Peer{}
	log = withTerm(t, "small/n2-preimport", 7000)
	want("its own term", "this member has seen raft term 7000, and")
	must(t, os.WriteFile(filepath.Join(dir.database(), recordName), []byte("purpose: import\nraft:\n  index: 127\n  term: 5000\n"), 0o600))
	want("after an import of this very tarball", "")
}

// A member whose own snapshot lies beyond the fence says so: others like it may not be imported to.
func TestBeyondFence(t *testing.T) {
	local := openDir(t, raftlogtest.Make(t, raftlogtest.Snapshot)) // a snapshot at 126, of term 2
	for name, test := range map[string]struct {
		tarball string
		fence   bundle.Position
		says    string
	}{
		"before the fence": {"small/n2-preimport", bundle.Position{Index: 127, Term: 5000}, ""},
		"at the fence": {"small/n3-preimport", bundle.Position{Index: 126, Term: 5000},
			"at index 126, lies beyond the tarball's fence at index 126, term 5000"},
		"a snapshot fence": {"small/n3-preimport", bundle.Position{Index: 1000126, Term: 5000}, ""},
	} {
		im := &importer{report: &ImportReport{Raft: test.fence}, log: openDir(t, raftlogtest.Global(t, test.tarball))}
		got := im.beyondFence(local)
		advised := strings.Contains(got, "export again with --snapshot-fence")
		if (got == "") != (test.says == "") || !strings.Contains(got, test.says) || advised != (test.says != "") {
			t.Errorf("%s: %q", name, got)
		}
	}

	im := &importer{report: newImportReport("x"), snapshotBeyond: "BEYOND", unknownLoss: "UNKNOWN"}
	if text := wantRefused(t, im.checkLoss(), "loss-unknown"); !strings.Contains(text, "UNKNOWN; BEYOND; --discard-local-entries") {
		t.Error(text)
	}

	im.opts.DiscardLocal = true
	must(t, im.checkLoss())
	wantWarning(t, im.report.Warnings, "BEYOND")
}

// A tarball of LXD's own gets the same fence on every member: above all terms in it, and its newest time stamp in milliseconds.
func TestFenceOwn(t *testing.T) {
	var fences []bundle.Position
	for range 2 {
		l := newLostLab(t)
		r, err := l.importDB(t.Context(), l.discarding)
		must(t, err)
		fences = append(fences, r.Raft)
		h, err := l.dir.readHighWater()
		if err != nil || h.Term != r.Raft.Term {
			t.Errorf("the high-water file: %+v, %v", h, err)
		}
	}

	const newest = 1795335357000 // in the archive: 2026-11-22 08:15:57
	spread := fences[0].Term - newest
	if fences[0] != fences[1] || spread >= termSpread || spread == 0 {
		t.Errorf("%v", fences)
	}
}
