// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Expected is what is known of the recovery that members are judged by. What is empty, is not known: then the members' own records tell
// which recovery it is, and the members are compared with each other.
type Expected struct {
	Run     string               // id
	Fence   bundle.Position      // the recovery entry
	Rows    globaldb.Fingerprint // at the recovery entry
	Members member.List          // names and addresses count; LXD changes roles by itself

	// Lost are the names of the members that are known to be lost: they are in the member list, and nobody looks for them.
	Lost []string

	// Reached is an index that every voter and stand-by must have reached: the highest one that any of them had at an earlier look, see
	// CompareAt.
	Reached uint64

	// InRun is true for a judgement that is a step of a run over the whole cluster: what says on each member that such a run is open is no
	// fault then.
	InRun bool
}

// ExpectedOf is what a recovery tarball says of the recovery. LXD's own do not tell the recovery entry, to which each import gives its term.
func ExpectedOf(ctx context.Context, tarball string, progress Progress) (Expected, error) {
	var e Expected
	err := readSource(ctx, tarball, progress, func(src *Source, log *raftlog.Log) error {
		if src.bundle == nil {
			return fmt.Errorf("%s is no recovery tarball (%s)", src.Path, src.Kind)
		}

		damage := damageOf(src, log)
		if damage != nil {
			return damage
		}

		e = Expected{Run: src.bundle.Run(), Members: src.bundle.Members}
		if src.bundle.Manifest != nil {
			e.Fence = src.bundle.Manifest.Raft.After
		}

		db, err := globaldb.Open(ctx, log, log.LastIndex)
		if err != nil {
			return replayError(src.Path, err)
		}

		defer db.Close()

		e.Rows, err = db.Fingerprint(ctx)
		return err
	})

	return e, err
}

// Comparison says how members are read a second time, so that they can be compared: the recovery entry and the index go into
// MemberStateOptions, and what they must have reached by then into Expected.
type Comparison struct {
	Fence   bundle.Position
	At      uint64 // the lowest last index of those that have the recovery entry; 0 if none has it
	Reached uint64 // their highest last index
}

// CompareAt says which recovery members are of, and which index their rows can be compared at. Spares do not count: raft sends them nothing.
func CompareAt(states []MemberState, expected Expected) Comparison {
	fence, _ := reference(states, expected)
	c := Comparison{Fence: fence}
	var aboard []*MemberState
	for i := range states {
		if fence == (bundle.Position{}) || states[i].Has(fence) == Has {
			aboard = append(aboard, &states[i])
		}
	}

	spares := sparesIn(bestOf(aboard))
	for _, s := range aboard {
		if s.Raft.LastIndex == 0 || s.Member != nil && spares[s.Member.ID] {
			continue
		}

		if c.At == 0 || s.Raft.LastIndex < c.At {
			c.At = s.Raft.LastIndex
		}

		c.Reached = max(c.Reached, s.Raft.LastIndex)
	}

	return c
}

// reference is the recovery that members are judged by: what is expected, or else the one with the highest term among the members' records.
// made is when the first of them was carried out; zero if no record tells.
func reference(states []MemberState, expected Expected) (fence bundle.Position, made time.Time) {
	fence = expected.Fence
	if fence == (bundle.Position{}) && expected.Run != "" {
		i := slices.IndexFunc(states, func(s MemberState) bool { return s.recovered() && s.Record.Run == expected.Run })
		if i >= 0 {
			fence = states[i].Record.Raft
		}
	}

	if fence == (bundle.Position{}) && expected.Run == "" {
		for _, s := range states {
			if s.recovered() && s.Record.Raft.Term > fence.Term {
				fence = s.Record.Raft
			}
		}
	}

	for _, s := range states {
		if s.recovered() && s.Record.Raft == fence && (made.IsZero() || s.Record.Made.Before(made)) {
			made = s.Record.Made
		}
	}

	return fence, made
}

// recovered tells whether the member's record is of a recovery of its cluster. A repair makes one member's own log loadable, and a resync gives one member
// the cluster's.
func (s *MemberState) recovered() bool {
	return s.Record != nil && s.Record.Purpose != purposeRepair && s.Record.Purpose != purposeResync
}

// bestOf is the state whose log an election would prefer; nil if there is none.
func bestOf(states []*MemberState) *MemberState {
	var found *MemberState
	for _, s := range states {
		switch {
		case len(s.Members) == 0:
		case found == nil, cmp.Or(cmp.Compare(s.Raft.LastTerm, found.Raft.LastTerm), cmp.Compare(s.Raft.LastIndex, found.Raft.LastIndex)) > 0:
			found = s
		}
	}

	return found
}

// sparesIn are the ids of the spares in a member's raft configuration.
func sparesIn(s *MemberState) map[uint64]bool {
	spares := map[uint64]bool{}
	if s == nil {
		return spares
	}

	for _, m := range s.Members {
		spares[m.ID] = m.Role == raftlog.Spare
	}

	return spares
}
