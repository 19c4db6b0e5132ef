// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"context"
	"fmt"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Base is the snapshot that a replay up to an index begins with, nil for one that begins with the log's first entry. An index that
// the log does not reach back to is an error.
func Base(ctx context.Context, log *raftlog.Log, upTo uint64) (*raftlog.Snapshot, error) {
	newest := log.Snapshot()
	if newest == nil || upTo >= newest.Index {
		return newest, nil
	}

	err := leadsTo(ctx, log, newest)
	if err != nil {
		return nil, err
	}

	var snapshot *raftlog.Snapshot
	for i := range log.Snapshots {
		s := &log.Snapshots[i]
		if !s.Usable || s.Index > upTo || !log.Has(s.Index+1, upTo) || snapshot != nil && s.Index < snapshot.Index {
			continue
		}

		err = leadsTo(ctx, log, s)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}

		if err == nil {
			snapshot = s // else it is of another history
		}
	}

	if snapshot != nil || log.Has(1, upTo) {
		return snapshot, nil
	}

	oldest := Oldest(log)
	if upTo < oldest {
		return nil, fmt.Errorf("index %d is before the snapshot at index %d: the log reaches no further back than index %d", upTo, newest.Index, oldest)
	}

	return nil, fmt.Errorf("index %d is before the snapshot at index %d, and no older one is of the log's own history and has all entries after it: "+
		"the log reaches no further back", upTo, newest.Index)
}

// Oldest is the first index after which the database can be told: that of the oldest snapshot from which the log goes on, or 0 where
// the log is there from its beginning. Where entries are missing after it, see [raftlog.Log.Holes], not every later index can be told.
func Oldest(log *raftlog.Log) uint64 {
	newest := log.Snapshot()
	if newest == nil || log.FirstIndex == 1 {
		return 0
	}

	oldest := newest.Index
	for i := range log.Snapshots {
		s := &log.Snapshots[i]
		if s.Usable && log.Has(s.Index+1, s.Index+1) {
			oldest = min(oldest, s.Index)
		}
	}

	return oldest
}

// leadsTo checks that the entries before a snapshot lead to it: its last entry must have the snapshot's term, if the log has it.
func leadsTo(ctx context.Context, log *raftlog.Log, s *raftlog.Snapshot) error {
	for entry, err := range log.Entries(ctx, s.Index) {
		if err != nil {
			return err
		}

		if entry.Index > s.Index || entry.Term == s.Term {
			return nil
		}

		return fmt.Errorf("the entries before the snapshot at index %d are not those that led to it: the log reaches no further back", s.Index)
	}

	return nil
}
