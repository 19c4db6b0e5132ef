// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/agent"
	"github.com/lxd-recover/lxd-recover/internal/clusterrun"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// giveUntil gives a run whose giver loses all connections for good once so many members have come to a phase, and returns its plan.
func (l *lab) giveUntil(phase recovery.Phase, members int) *clusterrun.Plan {
	l.t.Helper()
	opts := l.options()
	opts.NoStart = false
	var gone atomic.Bool
	cut := make(chan struct{})
	var agents []agent.Agent
	opts.Connect = func(_ context.Context, m clusterrun.Member) (agent.Agent, error) {
		if gone.Load() {
			return nil, errors.New("the connections are cut")
		}

		a, err := l.connect(m)
		l.mu.Lock()
		defer l.mu.Unlock()

		agents = append(agents, a)
		if m.Name == "node3" && phase == recovery.PhaseArmed && members < 3 {
			a = lateAgent{a, cut}
		}

		return a, err
	}
	var count atomic.Int32
	opts.Event = func(e clusterrun.Event) {
		if e.Phase != string(phase) || int(count.Add(1)) != members {
			return
		}

		gone.Store(true)
		for _, a := range agents {
			_ = a.Close() // as an agent does whose connection has ended
		}

		close(cut)
	}
	p, s, err := clusterrun.MakePlan(l.t.Context(), opts)
	must(l.t, err)
	_, err = s.Apply(l.t.Context(), p)
	if err == nil {
		l.t.Fatalf("the run was not cut off at %s", phase)
	}

	must(l.t, s.Close())
	return p
}

// lateAgent is told to arm too late.
type lateAgent struct {
	agent.Agent
	cut <-chan struct{}
}

func (a lateAgent) Arm(ctx context.Context) error {
	<-a.cut
	return a.Agent.Arm(ctx)
}

// resumed tells what a resume does.
func (l *lab) resumed(p *clusterrun.Plan, before map[string]string) clusterrun.Way {
	l.t.Helper()
	_, err := clusterrun.Resume(l.t.Context(), l.options(), p)
	var back *clusterrun.TakenBack
	switch {
	case errors.Is(err, clusterrun.ErrNoRun):
		l.wantOld(before)
		return clusterrun.WayNothing
	case errors.As(err, &back):
		l.wantOld(before)
		return clusterrun.WayBack
	}

	l.wantNew("node1", "node2", "node3")
	return clusterrun.WayOn
}

// undone tells what an undo does.
func (l *lab) undone(p *clusterrun.Plan, before map[string]string) clusterrun.Way {
	l.t.Helper()
	_, undo, s, err := clusterrun.Undo(l.t.Context(), l.options(), p)
	switch {
	case errors.Is(err, clusterrun.ErrNoRun):
		l.wantOld(before)
		return clusterrun.WayNothing
	case err == nil && undo == nil:
		l.wantOld(before)
		return clusterrun.WayBack
	}

	must(l.t, err)
	if undo.Undoes != p.ID || undo.Source == "" {
		l.t.Errorf("%+v", undo)
	}

	_, err = s.Apply(l.t.Context(), undo)
	must(l.t, errors.Join(err, s.Close()))
	l.wantNew("node1", "node2", "node3") // the database from before has the row, too
	return clusterrun.WayAnother
}

// TestBreak has the giver lose all connections in each phase, and holds what comes of it against the table. TestCutOff kills agents.
func TestBreak(t *testing.T) {
	table := map[recovery.Phase]clusterrun.Break{}
	for _, b := range clusterrun.Breaks() {
		for _, phase := range b.Phases {
			if b.Cut == clusterrun.CutGiver {
				table[phase] = b
			}
		}
	}

	for _, c := range []struct {
		phase   recovery.Phase
		members int // that have come to it
		resume  clusterrun.Way
		undo    clusterrun.Way // empty: not tried
	}{
		{recovery.PhaseReached, 1, clusterrun.WayNothing, ""},
		{recovery.PhaseGated, 2, "", clusterrun.WayNothing},
		{recovery.PhaseStopped, 1, clusterrun.WayNothing, ""},
		{recovery.PhaseStaged, 3, "", clusterrun.WayNothing},
		{recovery.PhaseArmed, 1, clusterrun.WayBack, ""},
		{recovery.PhaseArmed, 3, clusterrun.WayOn, clusterrun.WayBack},
		{recovery.PhaseExchanged, 1, clusterrun.WayOn, clusterrun.WayBack},
		{recovery.PhaseStarted, 1, clusterrun.WayOn, clusterrun.WayAnother},
	} {
		b := table[c.phase]
		try := func(command string, does func(*lab, *clusterrun.Plan, map[string]string) clusterrun.Way, want, told clusterrun.Way) {
			if want == "" {
				return
			}

			t.Run(fmt.Sprintf("%s on %d, %s", c.phase, c.members, command), func(t *testing.T) {
				t.Parallel()
				l := newLab(t)
				before := l.contents()
				p := l.giveUntil(c.phase, c.members)
				if got := does(l, p, before); got != want {
					t.Errorf("it %s; want: %s", got, want)
				}
			})
			if !slices.Contains(means[told], want) {
				t.Errorf("%s, %s: the table says %q, and it %s", c.phase, command, told, want)
			}
		}
		try("resume", (*lab).resumed, c.resume, b.Resume)
		try("undo", (*lab).undone, c.undo, b.Undo)
	}
}

// means are what may come of the ways that depend on something.
var means = map[clusterrun.Way][]clusterrun.Way{
	clusterrun.WayNothing:  {clusterrun.WayNothing},
	clusterrun.WayBack:     {clusterrun.WayBack},
	clusterrun.WayOnOrBack: {clusterrun.WayOn, clusterrun.WayBack},
	clusterrun.WayOnIfMost: {clusterrun.WayOn},
	clusterrun.WayOn:       {clusterrun.WayOn},
	clusterrun.WayAnother:  {clusterrun.WayAnother},
}
