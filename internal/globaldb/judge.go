// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"context"
	"fmt"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Judge replays each of the readings of a log that can be read in several ways, and excludes those that cannot be: whose database
// SQLite finds damaged, or whose entries lead up to a snapshot with other rows than it has. A reading that remains alone is taken.
func Judge(ctx context.Context, log *raftlog.Log) error {
	if !log.Undecided() {
		return nil
	}

	excluded := map[string]string{}
	for i, r := range log.Readings {
		if r.Excluded {
			continue
		}

		reason, err := impossibleIn(ctx, log.As(i))
		if err != nil {
			return err
		}

		if reason != "" {
			excluded[r.Digest] = reason
		}
	}

	log.Exclude(excluded)
	return nil
}

// impossibleIn is impossible for a log that may have several databases: each of them can tell.
func impossibleIn(ctx context.Context, log *raftlog.Log) (string, error) {
	if log.Database == "" {
		return impossible(ctx, log)
	}

	names, err := Databases(ctx, log)
	if err != nil {
		return "", err
	}

	for _, name := range names {
		reason, err := impossible(ctx, OnDatabase(log, name))
		if reason != "" || err != nil {
			return reason, err
		}
	}

	return "", nil
}

// impossible says why a log cannot be the one that dqlite wrote; empty if nothing is found.
func impossible(ctx context.Context, log *raftlog.Log) (string, error) {
	for i := range log.Snapshots {
		reason, err := misled(ctx, log, &log.Snapshots[i])
		if reason != "" || err != nil {
			return reason, err
		}
	}

	if log.SoundIndex == 0 {
		return "", nil
	}

	db, err := Open(ctx, log, log.SoundIndex)
	if err != nil {
		return fmt.Sprintf("it makes no database: %v", err), ctx.Err()
	}

	defer db.Close()

	summary, err := db.Summary(ctx)
	switch {
	case err != nil:
		return fmt.Sprintf("its database cannot be read: %v", err), ctx.Err()
	case summary.Integrity != "ok":
		return "SQLite finds its database damaged", nil
	}

	return "", nil
}

// misled says whether the entries up to a snapshot, from an older one or from the beginning of the log, lead to other rows than it
// has. It says nothing where there are no such entries.
func misled(ctx context.Context, log *raftlog.Log, s *raftlog.Snapshot) (string, error) {
	before := log.Before(s)
	if !s.Usable || before == nil || !log.Has(s.Index, s.Index) {
		return "", nil
	}

	replayed, err := prints(ctx, before, s.Index)
	if err != nil {
		return fmt.Sprintf("the entries up to the snapshot at index %d make no database: %v", s.Index, err), ctx.Err()
	}

	kept, err := prints(ctx, log.From(s), s.Index)
	if err != nil {
		return "", ctx.Err() // it says nothing of the entries
	}

	tables := replayed.Differ(kept)
	if len(tables) > 0 {
		return fmt.Sprintf("its entries lead to other rows than the snapshot at index %d has", s.Index), nil
	}

	return "", nil
}

func prints(ctx context.Context, log *raftlog.Log, index uint64) (Fingerprint, error) {
	db, err := Open(ctx, log, index)
	if err != nil {
		return nil, err
	}

	defer db.Close()

	return db.Fingerprint(ctx)
}
