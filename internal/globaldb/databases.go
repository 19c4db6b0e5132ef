// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// AnyDatabase as a log's [raftlog.Log.Database] stands for the one that the log has, whatever its name is. Another text is the name of the one to take of
// several. None stands for LXD's, which has no other one beside it.
const AnyDatabase = "*"

// ErrSeveralDatabases says that a log has several databases, and that none was chosen.
var ErrSeveralDatabases = errors.New("the raft log holds several databases")

// nameIn is the name of the database to be replayed, empty where the log decides.
func nameIn(log *raftlog.Log) string {
	switch log.Database {
	case "":
		return Name
	case AnyDatabase:
		return ""
	}

	return log.Database
}

// takes tells whether a database is the one to be replayed. One that is neither that nor one of several is an error.
func (r *replayer) takes(name string) (bool, error) {
	switch {
	case r.name == "":
		r.name = name
	case r.name == name:
	case r.log.Database == "":
		return false, fmt.Errorf("unknown database %q", name)
	case r.log.Database == AnyDatabase:
		return false, fmt.Errorf("database %q after one on %q: %w", name, r.name, ErrSeveralDatabases)
	default:
		return false, nil
	}

	return true, nil
}

// Databases returns the names of the databases in a log that have rows, sorted: those of the snapshot that a replay begins with, and those that transactions
// after it are on.
func Databases(ctx context.Context, log *raftlog.Log) ([]string, error) {
	found := map[string]bool{}
	from := log.FirstIndex
	if s := log.Snapshot(); s != nil {
		from = max(from, s.Index+1)
		for _, db := range s.Databases {
			found[db.Name] = true
		}
	}

	for entry, err := range log.Entries(ctx, max(from, 1)) {
		if err != nil {
			return nil, err
		}

		if entry.Index > log.SoundIndex {
			break
		}

		if entry.Type != raftlog.CommandEntry {
			continue
		}

		cmd, err := raftlog.ParseCommand(entry.Data)
		if err == nil && cmd.Kind == raftlog.Frames {
			found[cmd.Database] = true
		}
	}

	return slices.Sorted(maps.Keys(found)), nil
}

// OnDatabase is a log with another database to be replayed; it shares all else.
func OnDatabase(log *raftlog.Log, name string) *raftlog.Log {
	other := *log
	other.Database = name
	return &other
}
