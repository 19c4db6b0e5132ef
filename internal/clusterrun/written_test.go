// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/clusterrun"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// gives gives a member another member's log of the fixtures.
func (l *lab) gives(name string, of string) {
	l.t.Helper()
	global := filepath.Join(l.dirs[name], "database/global")
	must(l.t, os.RemoveAll(global))
	must(l.t, os.CopyFS(global, os.DirFS(filepath.Join(raftlogtest.Fixtures(l.t), "forgotten", of+"-preedit/database/global"))))
}

// writtenSince is a run with the database of node3, cut off when all were armed, in which node2 has got two more transactions since.
func (l *lab) writtenSince() *clusterrun.Plan {
	l.t.Helper()
	l.gives("node2", "n3")
	l.from3 = true
	p := l.giveUntil(recovery.PhaseArmed, 3)
	l.asked = nil
	l.gives("node2", "n2")
	return p
}

// An LXD that was started past the gate has written on a member that was armed: that is named and asked about before anything is exchanged.
func TestResumeNamesWhatWasWritten(t *testing.T) {
	l := newLab(t)
	p := l.writtenSince()
	before, contents := l.phases(), l.contents()
	l.no = "losses"
	_, err := clusterrun.Resume(t.Context(), l.options(), p)
	if err == nil || !slices.Equal(l.codes(), []string{"losses"}) || !strings.Contains(strings.Join(l.asked[0].Lines, "\n"), "node2: ") ||
		!strings.Contains(strings.Join(l.asked[0].Lines, "\n"), "lostrow") || strings.Contains(strings.Join(l.asked[0].Lines, "\n"), "node1: ") {
		t.Errorf("%v, asked %+v", err, l.asked)
	}

	if !maps.Equal(l.phases(), before) || !maps.Equal(l.contents(), contents) {
		t.Error("something was changed before the answer")
	}

	l.no = ""
	opts := l.options()
	_, _ = clusterrun.Resume(t.Context(), opts, p) // nothing starts an LXD here
	if ends := l.ends(); ends["node2"] != ends["node3"] || ends["node1"] != ends["node3"] {
		t.Errorf("not one database: %v", ends)
	}
}

// What was written stays if the run is taken back.
func TestUndoKeepsWhatWasWritten(t *testing.T) {
	l := newLab(t)
	p := l.writtenSince()
	contents := l.contents()
	_, _, _, err := clusterrun.Undo(t.Context(), l.options(), p)
	must(t, err)
	l.wantOld(contents)
}

// A higher term and a vote are nothing that a user has written.
func TestResumeAfterAVote(t *testing.T) {
	l := newLab(t)
	p := l.giveUntil(recovery.PhaseArmed, 3)
	l.asked = nil
	for _, name := range []string{"metadata1", "metadata2"} {
		path := filepath.Join(l.dirs["node2"], "database/global", name)
		data, err := os.ReadFile(path)
		must(t, err)
		data[16] = 9 // the term, little-endian, after format and version
		must(t, os.WriteFile(path, data, 0o600))
	}

	_, _ = clusterrun.Resume(t.Context(), l.options(), p) // nothing starts an LXD here
	if len(l.asked) != 0 {
		t.Errorf("asked %+v", l.asked)
	}

	l.wantNew("node1", "node2", "node3")
}
