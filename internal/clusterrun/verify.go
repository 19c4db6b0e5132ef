// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/agent"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// verifyPause is how far apart the looks at the members are while they are catching up.
const verifyPause = time.Second

// ErrNotOne says that members are not one cluster, by what their disks say.
var ErrNotOne = errors.New("the members are not one cluster that works: see above")

// VerifyRun judges the members after a run that has ended well, and notes the verdict in its result. They catch up with the leader in a moment, as a
// rule: it waits as long as for the start of LXD. Where LXD is to stay down there is nothing to judge.
func (s *Session) VerifyRun(ctx context.Context, p *Plan, r *Result) error {
	if p.NoStart {
		return nil
	}

	expected, err := p.Expected(r)
	if err == nil {
		r.Verdict, err = s.Verify(ctx, expected, s.opts.StartTime)
	}

	switch {
	case err != nil:
		return &Partly{Err: fmt.Errorf("the new database is in place, and whether the members are one cluster cannot be told: %w", err), Works: true}
	case !r.Verdict.Good:
		return &Partly{Err: ErrNotOne, Works: r.Verdict.Leader != ""}
	}

	return nil
}

// Verify reads what the disks of all members say, and judges whether they are one cluster. As long as what is wrong may be so for a moment only, it looks again
// until wait is over. expected may be empty: then the members are held against each other.
func (s *Session) Verify(ctx context.Context, expected recovery.Expected, wait time.Duration) (*recovery.ClusterVerdict, error) {
	deadline := time.Now().Add(wait)
	for {
		states, err := s.readStates(ctx, agent.StateOptions{Outline: true})
		if err != nil {
			return nil, err
		}

		at := recovery.CompareAt(states, expected)
		expected.Reached = at.Reached
		states, err = s.readStates(ctx, agent.StateOptions{Fence: at.Fence, At: at.At})
		if err != nil {
			return nil, err
		}

		verdict := recovery.JudgeCluster(states, expected)
		if verdict.Good || !verdict.Transient || time.Now().After(deadline) {
			return verdict, nil
		}

		select {
		case <-ctx.Done():
			return verdict, ctx.Err()
		case <-time.After(verifyPause):
		}
	}
}

// readStates reads the members' states, in the order of their ids. A member whose state cannot be read is left out: the verdict names it.
func (s *Session) readStates(ctx context.Context, opts agent.StateOptions) ([]recovery.MemberState, error) {
	found := map[string]recovery.MemberState{}
	failed := s.each(s.names(), func(name string, a agent.Agent) error {
		state, err := a.State(ctx, opts)
		if err != nil {
			return err
		}

		s.mu.Lock()
		defer s.mu.Unlock()

		found[name] = *state
		return nil
	})
	for _, name := range slices.Sorted(maps.Keys(failed)) {
		s.tell(name, "", "cannot be read: %v", failed[name])
	}

	var states []recovery.MemberState
	for _, name := range s.names() {
		state, ok := found[name]
		if ok {
			states = append(states, state)
		}
	}

	if len(states) == 0 {
		return nil, errors.Join(fmt.Errorf("no member's directory can be read: %w", failed.join()), ctx.Err())
	}

	return states, ctx.Err()
}

// Expected is what a verdict after this run expects.
func (p *Plan) Expected(r *Result) (recovery.Expected, error) {
	list, err := p.List()
	if err != nil {
		return recovery.Expected{}, err
	}

	e := recovery.Expected{Run: p.ID, Members: list, Lost: p.Lost()}
	if r != nil && r.Raft != nil {
		e.Fence, e.Rows = *r.Raft, r.rows
	}

	return e, nil
}

// ReachAll connects to all members that can be reached, to judge them. Those that cannot are told, and are no error.
func ReachAll(ctx context.Context, opts Options) (*Session, error) {
	s := newSession(opts)
	first, err := s.first(ctx)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}

	for name, err := range s.reachOthers(ctx, first) {
		s.tell(name, "", "was not reached: %v", err)
	}

	return s, ctx.Err()
}
