// SPDX-License-Identifier: AGPL-3.0-only

package survivor

import (
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Proven returns the last position of which this log proves, with nothing else at hand, that it and all before it was committed; zero where it
// proves nothing. A later leader can then not lack it. The daemon may be writing the log while it is read, and the member may be any,
// the leader or a stand-by. There are three proofs:
//
//   - It is in the snapshot.
//   - It is a transaction, and another one of the same term is after it: see the package comment.
//   - The member is the only voter in every configuration that the log shows. It commits what its own disk holds.
//
// What is committed and not proven by that is often a transaction or two. A recovery entry at the end is no part of it.
func (l *Log) Proven() Position {
	c, _ := l.withoutRecovery()
	if c.onlyVoter() {
		return c.Last()
	}

	return c.position(c.certain)
}

// ProvenInTerm returns the last transaction that was committed by the leader that wrote it, as another one of its term after it proves. It is
// zero where there is none: a snapshot tells nothing of who committed what.
func (l *Log) ProvenInTerm() Position {
	c, _ := l.withoutRecovery()
	return c.position(c.confirmed())
}

// onlyVoter tells whether all configurations of the log have this member for their only voter.
func (l *Log) onlyVoter() bool {
	var all []raftlog.Configuration
	if l.SnapshotConfiguration != nil {
		all = append(all, l.SnapshotConfiguration)
	}

	for _, index := range l.changes {
		e, _ := l.At(index)
		all = append(all, *e.Change)
	}

	return l.Member != 0 && len(all) > 0 && !slices.ContainsFunc(all, func(c raftlog.Configuration) bool {
		return !slices.Equal(voters(c), []uint64{l.Member})
	})
}

// position is an index with its term; zero where the log does not tell it.
func (l *Log) position(index uint64) Position {
	e, ok := l.At(index)
	switch {
	case ok:
		return Position{Index: index, Term: e.Term}
	case index == l.Snapshot.Index:
		return l.Snapshot
	default:
		return Position{}
	}
}
