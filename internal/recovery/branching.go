// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"fmt"
	"iter"
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// counterpart is the log that a local one is compared with.
type counterpart struct {
	*raftlog.Log
	snapshot bundle.Position // last entry in its snapshot; zero for none
	last     uint64          // index of its last entry
}

func counterpartOf(log *raftlog.Log) counterpart {
	c := counterpart{Log: log, last: log.LastIndex}
	s := log.Snapshot()
	if s != nil {
		c.snapshot = bundle.Position{Index: s.Index, Term: s.Term}
	}

	return c
}

// counterpart is the tarball's log. The snapshot of a snapshot fence has an index far above that of the last entry in it, which the
// manifest tells.
func (im *importer) counterpart() counterpart {
	c := counterpartOf(im.log)
	manifest := im.tarball.Manifest
	if manifest != nil && c.snapshot == manifest.Raft.After {
		c.snapshot, c.last = manifest.Raft.Before, manifest.Raft.Before.Index
	}

	return c
}

// otherHistory says why the transactions that only this member has cannot all be named: some are in its snapshot, where they
// cannot be told apart any more. It is empty where the local snapshot is, as far as terms tell, part of the tarball's log.
func otherHistory(ctx context.Context, local *raftlog.Log, tarball counterpart) (string, error) {
	hidden := recoveredSince(local, tarball)
	if hidden != "" {
		return hidden, nil
	}

	ours := local.Snapshot()
	if ours == nil {
		return "", nil
	}

	if ours.Index > tarball.last {
		return fmt.Sprintf("its snapshot reaches index %d and the tarball ends at index %d", ours.Index, tarball.last), nil
	}

	theirs := tarball.snapshot
	if ours.Index <= theirs.Index {
		if ours.Term > theirs.Term || ours.Index == theirs.Index && ours.Term != theirs.Term {
			return fmt.Sprintf("its snapshot at index %d has term %d, the tarball's at index %d has term %d: they are of different histories",
				ours.Index, ours.Term, theirs.Index, theirs.Term), nil
		}

		return "", nil
	}

	for entry, err := range tarball.Entries(ctx, ours.Index) {
		if err != nil {
			return "", err
		}

		if entry.Term != ours.Term {
			return fmt.Sprintf("its snapshot at index %d has term %d, the tarball's entry there has term %d: they are of different histories",
				ours.Index, ours.Term, entry.Term), nil
		}

		break
	}

	return "", nil
}

// recoveredSince says that the tarball's snapshot is of a later recovery than anything in the local log: its term lies a fence's step above.
// A recovery gives entries up, and two histories have other entries under one index; so the snapshot does not tell which of the local
// ones are in it. It is empty if it does, or if the tarball has those entries itself.
func recoveredSince(local *raftlog.Log, tarball counterpart) string {
	theirs := tarball.snapshot
	compared := tarball.FirstIndex > 0 && tarball.FirstIndex <= local.FirstIndex
	if theirs.Index == 0 || local.FirstIndex == 0 || compared || local.EntryTerm+termStep > theirs.Term {
		return ""
	}

	return fmt.Sprintf("the tarball's cluster was recovered after this member's last entry, which has term %d, and its snapshot at index %d, term %d "+
		"does not tell which of this member's transactions are in it", local.EntryTerm, theirs.Index, theirs.Term)
}

// discarded compares this member's log with the tarball's and returns the transactions that only this member has, oldest
// first. Entries that change no row (barriers, changes of the member list, the recovery entry itself) do not count. What is
// in the local snapshot only is not among them: see otherHistory.
//
// before is an earlier comparison of the same two, or nil: what has not changed since is not compared, and rows that are known are
// not worked out, again.
func discarded(ctx context.Context, local *raftlog.Log, tarball counterpart, before *branching) (*branching, error) {
	branch, err := branchPoint(ctx, local, tarball, before.agreed(local))
	if err != nil {
		return nil, err
	}

	found := []Discarded{}
	for entry, err := range local.Entries(ctx, branch) {
		if err != nil {
			return nil, err
		}

		if changesRows(entry) {
			found = append(found, Discarded{Index: entry.Index, Term: entry.Term, Rows: []globaldb.RowChange{}})
		}
	}

	c := &branching{local: local, branch: branch, found: found}
	if len(found) == 0 {
		return c, nil
	}

	if before != nil && slices.EqualFunc(found, before.found, func(a, b Discarded) bool { return a.Index == b.Index && a.Term == b.Term }) &&
		before.branch == branch {
		c.found = before.found
		return c, nil
	}

	return c, describeRows(ctx, local, found)
}

// branching is what came out when a local log was compared with the tarball's.
type branching struct {
	local  *raftlog.Log
	branch uint64 // first index that is not in both
	found  []Discarded
}

// agreed is an index before which a log, as it is now, is known to be the tarball's. The last entry does not count, as a recovery
// entry is looked at in another way where it is the last one.
func (c *branching) agreed(now *raftlog.Log) uint64 {
	if c == nil {
		return 0
	}

	return min(c.branch, now.UnchangedUpTo(c.local)+1, c.local.LastIndex)
}

// branchPoint returns the first index at which the local log is not the tarball's, or the one after the shorter of both. Up
// to the index from they are known to be the same.
//
// Where the tarball has only a snapshot, local entries are taken for part of it, as all that a snapshot holds was committed
// and raft has no two committed entries at one index; unless their term is above the snapshot's, which such entries' cannot
// be, or the term at the snapshot's own index is another.
func branchPoint(ctx context.Context, local *raftlog.Log, tarball counterpart, from uint64) (uint64, error) {
	snapshot := tarball.snapshot

	// Files with nothing but entries that only the tarball's snapshot has need not be read: their terms are known.
	for _, run := range local.Runs() {
		inLog := tarball.FirstIndex > 0 && run.Last >= tarball.FirstIndex
		if inLog || run.Last >= snapshot.Index || run.MaxTerm > snapshot.Term {
			break
		}

		from = max(from, run.Last+1)
	}

	next, stop := iter.Pull2(tarball.Entries(ctx, max(tarball.FirstIndex, from, 1)))
	defer stop()

	theirs, err, ok := next()
	branch := max(local.FirstIndex, from, 1)
	if s := local.Snapshot(); s != nil {
		branch = max(branch, s.Index+1)
	}

	for ours, ourErr := range local.Entries(ctx, max(local.FirstIndex, from, 1)) {
		if ourErr != nil {
			return 0, ourErr
		}

		for ok && err == nil && theirs.Index < ours.Index {
			theirs, err, ok = next()
		}

		switch {
		case ok && err != nil:
			return 0, err
		case ok && theirs.Index == ours.Index:
			if ours.Term != theirs.Term && !recoveryTwins(ours, theirs, local, tarball.Log) || ours.Type != theirs.Type || checksum(ours) != checksum(theirs) {
				return ours.Index, nil
			}

		case ours.Index < snapshot.Index && ours.Term <= snapshot.Term:
		case ours.Index == snapshot.Index && ours.Term == snapshot.Term:
		default:
			return ours.Index, nil
		}

		branch = ours.Index + 1
	}

	return branch, nil
}

// recoveryTwins tells whether two entries are the same recovery entry, before and after it was fenced.
func recoveryTwins(ours raftlog.Entry, theirs raftlog.Entry, local *raftlog.Log, tarball *raftlog.Log) bool {
	return ours.Type == raftlog.ChangeEntry && local.Edited && tarball.Edited && ours.Index == local.LastIndex && theirs.Index == tarball.LastIndex
}
