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

	oldest := Oldest(log)
	if upTo < oldest {
		return nil, fmt.Errorf("index %d is before the snapshot at index %d: the log reaches no further back than index %d", upTo, newest.Index, oldest)
	}

	err := leadsTo(ctx, log, newest)
	if err != nil {
		return nil, err
	}

	var snapshot *raftlog.Snapshot
	for i := range log.Snapshots {
		s := &log.Snapshots[i]
		if !continued(log, s) || s.Index > upTo || snapshot != nil && s.Index < snapshot.Index {
			continue
		}

		if s.Index >= log.FirstIndex && leadsTo(ctx, log, s) != nil {
			err = ctx.Err()
			if err != nil {
				return nil, err
			}

			continue // of another history
		}

		snapshot = s
	}

	if snapshot == nil && log.FirstIndex != 1 {
		return nil, fmt.Errorf("index %d is before the snapshot at index %d, and no older one is of the log's own history: the log reaches no further back",
			upTo, newest.Index)
	}

	return snapshot, nil
}

// Oldest is the first index after which the database can be told: that of the oldest snapshot from which the log goes on
// without a gap, or 0 where the log is there from its beginning.
func Oldest(log *raftlog.Log) uint64 {
	newest := log.Snapshot()
	if newest == nil || log.FirstIndex == 1 {
		return 0
	}

	oldest := newest.Index

	for i := range log.Snapshots {
		if continued(log, &log.Snapshots[i]) {
			oldest = min(oldest, log.Snapshots[i].Index)
		}
	}

	return oldest
}

// continued tells whether the log goes on after a snapshot without a gap.
func continued(log *raftlog.Log, s *raftlog.Snapshot) bool {
	return s.Usable && log.FirstIndex > 0 && log.FirstIndex <= s.Index+1
}

// leadsTo checks that the entries before a snapshot lead to it: its last entry must have the snapshot's term.
func leadsTo(ctx context.Context, log *raftlog.Log, s *raftlog.Snapshot) error {
	for entry, err := range log.Entries(ctx, s.Index) {
		if err != nil {
			return err
		}

		if entry.Index == s.Index && entry.Term == s.Term {
			return nil
		}

		break
	}

	return fmt.Errorf("the entries before the snapshot at index %d are not those that led to it: the log reaches no further back", s.Index)
}
