// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"io/fs"
	"sync"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// fileState tells a file from another one, and from itself once it was written to.
type fileState struct {
	name string
	size int64
	time time.Time
}

// provenSnapshots are those that this process has found to have the rows that the entries before them make. That takes a replay, and a process reads the
// same directory several times.
var provenSnapshots sync.Map

// distrust looks for damage in snapshots that have no checksum, see [globaldb.Doubts], and returns the log as it is without those that are damaged.
func distrust(ctx context.Context, files fs.FS, log *raftlog.Log, opts raftlog.Options) (*raftlog.Log, error) {
	if !log.Engine.RawSnapshots() || opts.Later || log.Undecided() {
		return log, nil
	}

	state := func(s *raftlog.Snapshot) fileState {
		info, err := fs.Stat(files, s.File)
		if err != nil {
			return fileState{}
		}

		return fileState{s.File, info.Size(), info.ModTime()}
	}
	sound := func(s *raftlog.Snapshot) bool {
		_, known := provenSnapshots.Load(state(s))
		return known
	}

	doubts, err := globaldb.Doubts(ctx, log, sound, func(s *raftlog.Snapshot) {
		if at := state(s); at.name != "" {
			provenSnapshots.Store(at, true)
		}
	})
	if err != nil || len(doubts) == 0 {
		return log, err
	}

	opts.Doubts, opts.Known, opts.Progress = doubts, log, nil
	log, err = raftlog.Open(ctx, files, opts)
	if err != nil {
		return nil, err
	}

	return log, globaldb.Judge(ctx, log)
}
