// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/agent"
	"github.com/lxd-recover/lxd-recover/internal/clusterrun"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// given is a run that is done.
func (l *lab) given() *clusterrun.Plan {
	l.t.Helper()
	p, s, err := clusterrun.MakePlan(l.t.Context(), l.options())
	must(l.t, err)
	_, err = s.Apply(l.t.Context(), p)
	must(l.t, errors.Join(err, s.Close()))
	return p
}

// removeKept removes what a member has kept.
func (l *lab) removeKept(name string) {
	l.t.Helper()
	kept, err := filepath.Glob(filepath.Join(l.dirs[name], "database.before-*"))
	must(l.t, err)
	if len(kept) == 0 {
		l.t.Fatalf("%s has kept nothing", name)
	}

	for _, path := range kept {
		must(l.t, os.RemoveAll(path))
	}
}

// wantRefusalWith wants a refusal that names a flag.
func wantRefusalWith(t *testing.T, err error, code, flag string) {
	t.Helper()
	wantRefusal(t, err, code)
	var refusal *recovery.Refusal
	if errors.As(err, &refusal) && refusal.Flag != flag {
		t.Errorf("the refusal names the flag %q, want %q", refusal.Flag, flag)
	}
}

// The member that a run began with is lost since: another one that had the same log gives it.
func TestUndoWithoutTheSource(t *testing.T) {
	l := newLab(t)
	p := l.given()
	if p.From != "node1" {
		t.Fatalf("the run began with %s", p.From)
	}

	l.down = "node1"
	opts := l.from("node2")
	_, _, _, err := clusterrun.Undo(t.Context(), opts, p)
	wantRefusalWith(t, err, "unreachable", "--lost")
	opts.Lost = []string{"node1"}
	_, undo, s, err := clusterrun.Undo(t.Context(), opts, p)
	must(t, err)
	if undo.From != "node2" || undo.Source == "" || !undo.Certain || len(undo.Losses) != 0 || !slices.Equal(undo.Lost(), []string{"node1"}) {
		t.Errorf("%+v", undo)
	}

	_, err = s.Apply(t.Context(), undo)
	must(t, errors.Join(err, s.Close()))
	l.wantNew("node2", "node3")
}

// No member has the log that the run began with: the best is taken if that is asked for, and what it lacks is named.
func TestUndoWithAnOlderLog(t *testing.T) {
	l := newLab(t)
	p := l.given()
	l.removeKept("node1")
	l.removeKept("node2")
	_, undo, s, err := clusterrun.Undo(t.Context(), l.options(), p)
	must(t, err)
	must(t, s.Close())
	began := p.Members[0].Seen.Index
	if undo.From != "node3" || undo.Certain || !strings.Contains(undo.Doubt, "node1") || len(undo.Losses) == 0 || undo.Losses[0].Member != "node1" ||
		!strings.Contains(undo.Losses[0].Lines[0], "index 188, term 3") || began != 188 {
		t.Errorf("%+v, began at %d", undo, began)
	}

	opts := l.options()
	opts.From = "node2"
	_, _, _, err = clusterrun.Undo(t.Context(), opts, p)
	if err == nil || !strings.Contains(err.Error(), "--from node2: it has not kept") {
		t.Errorf("%v", err)
	}

	l.removeKept("node3")
	_, _, _, err = clusterrun.Undo(t.Context(), l.options(), p)
	if err == nil || !strings.Contains(err.Error(), "no member has kept") {
		t.Errorf("%v", err)
	}
}

// --from takes another member's old database, and says that it is not the one that the run began with.
func TestUndoFrom(t *testing.T) {
	l := newLab(t)
	p := l.given()
	opts := l.options()
	opts.From = "node3"
	_, undo, s, err := clusterrun.Undo(t.Context(), opts, p)
	must(t, err)
	must(t, s.Close())
	if undo.From != "node3" || undo.Certain || undo.Doubt == "" {
		t.Errorf("%+v", undo)
	}
}

// A majority of the voters in force is needed.
func TestUndoWithoutAMajority(t *testing.T) {
	l := newLab(t)
	p := l.given()
	opts := l.options()
	opts.Lost = []string{"node2", "node3"}
	_, _, _, err := clusterrun.Undo(t.Context(), opts, p)
	wantRefusal(t, err, "no-majority")
	opts.Lost = []string{"node4"}
	_, _, _, err = clusterrun.Undo(t.Context(), opts, p)
	if err == nil || !strings.Contains(err.Error(), "--lost node4") {
		t.Errorf("%v", err)
	}
}

// A member that was lost when all were armed is declared lost, and the others go on.
func TestResumeWithLost(t *testing.T) {
	l := newLab(t)
	p := l.giveUntil(recovery.PhaseArmed, 3)
	l.down = "node3"
	before := l.phases()
	opts := l.options()
	_, err := clusterrun.Resume(t.Context(), opts, p)
	wantRefusalWith(t, err, "unreachable", "--lost")
	if after := l.phases(); !maps.Equal(after, before) || after["node1"] != string(recovery.PhaseArmed) {
		t.Errorf("%v, before %v", after, before)
	}

	opts.Lost = []string{"node3"}
	r, err := clusterrun.Resume(t.Context(), opts, p)
	var partly *clusterrun.Partly // nothing starts an LXD here
	if err != nil && !errors.As(err, &partly) || !slices.Equal(r.Exchanged, []string{"node1", "node2"}) || len(r.Left) != 0 {
		t.Errorf("%+v, %v", r, err)
	}

	delete(l.dirs, "node3")
	l.wantNew("node1", "node2")
}

// All members are asked which run is open, and must agree.
func TestFindRun(t *testing.T) {
	l := newLab(t)
	p := l.giveUntil(recovery.PhaseArmed, 3)
	dir := l.dirs["node1"]
	must(t, os.Rename(filepath.Join(dir, "database.run.yaml"), filepath.Join(dir, "away")))
	found, err := clusterrun.FindRun(t.Context(), l.options())
	must(t, err)
	if found.ID != p.ID {
		t.Errorf("found %s, want %s", found.ID, p.ID)
	}

	data, err := os.ReadFile(filepath.Join(dir, "away"))
	must(t, err)
	other := strings.ReplaceAll(string(data), p.ID, "0123456789abcdef0123456789abcdef")
	must(t, os.WriteFile(filepath.Join(dir, "database.run.yaml"), []byte(other), 0o600))
	_, err = clusterrun.FindRun(t.Context(), l.options())
	wantRefusal(t, err, "several-runs")
	if err == nil || !strings.Contains(err.Error(), "node2, node3 of run "+p.ID) {
		t.Errorf("%v", err)
	}
}

// ready is an agent of a member whose LXD is said to answer.
type ready struct{ agent.Agent }

func (r ready) Ready(context.Context, time.Duration) (map[string]string, error) {
	return map[string]string{}, nil
}

// A resume that goes on to the end is judged as a run is: LXD that only says that it answers is not enough.
func TestResumeEndsWithVerify(t *testing.T) {
	l := newLab(t)
	p := l.giveUntil(recovery.PhaseArmed, 3)
	opts := l.options()
	opts.Connect = func(_ context.Context, m clusterrun.Member) (agent.Agent, error) {
		a, err := l.connect(m)
		return ready{a}, err
	}
	r, err := clusterrun.Resume(t.Context(), opts, p)
	wantPartly(t, err)
	if !errors.Is(err, clusterrun.ErrNotOne) || r.Verdict == nil || r.Verdict.Good || len(r.Ready) != 3 {
		t.Errorf("%v, %+v", err, r)
	}
}

// A member that is armed when its run is undone is not let go before the other run takes it.
func TestUndoKeepsArmedMembersDown(t *testing.T) {
	l := newLab(t)
	p, _ := l.cut(l.options(), map[string]error{"node3 exchange": errCut})
	if got := l.phases(); got["node3"] != string(recovery.PhaseArmed) || got["node1"] != "" {
		t.Fatalf("%v", got)
	}

	opts := l.options()
	opts.Connect = func(_ context.Context, m clusterrun.Member) (agent.Agent, error) {
		a, err := l.connect(m)
		return &hooked{a, func(call string) error {
			if call == "withdraw" {
				t.Errorf("%s was let go", m.Name)
			}

			return nil
		}}, err
	}
	_, undo, s, err := clusterrun.Undo(t.Context(), opts, p)
	must(t, err)
	_, err = s.Apply(t.Context(), undo)
	must(t, errors.Join(err, s.Close()))
	l.wantNew("node1", "node2", "node3")
}
