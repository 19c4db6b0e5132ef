// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"io/fs"
	"sync"
	"syscall"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// fileState tells a file from another one, and from itself once it was written to.
type fileState struct {
	device, inode uint64
	size          int64
	time          time.Time
}

// provenSnapshots are those that this process has found to have the rows that the entries before them make. That takes a replay, and a process reads the
// same directory several times.
var provenSnapshots sync.Map

// stateOf is a file's state; one that is no file on a disk has none.
func stateOf(files fs.FS, name string) fileState {
	info, err := fs.Stat(files, name)
	if err != nil {
		return fileState{}
	}

	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fileState{}
	}

	return fileState{stat.Dev, stat.Ino, info.Size(), info.ModTime()}
}

// settle decides what the files of a log alone do not: which of several readings it is, and which snapshots without a checksum are sound. opts are those that
// it was read with.
func settle(ctx context.Context, files fs.FS, log *raftlog.Log, opts raftlog.Options) (*raftlog.Log, error) {
	err := globaldb.Judge(ctx, log)
	if err != nil {
		return nil, err
	}

	return distrust(ctx, files, log, opts)
}

// distrust looks for damage in snapshots that have no checksum, see [globaldb.Doubts], and returns the log as it is without those that are damaged.
func distrust(ctx context.Context, files fs.FS, log *raftlog.Log, opts raftlog.Options) (*raftlog.Log, error) {
	if !log.Engine.RawSnapshots() || opts.Later || log.Undecided() {
		return log, nil
	}

	sound := func(s *raftlog.Snapshot) bool {
		_, known := provenSnapshots.Load(stateOf(files, s.File))
		return known
	}

	doubts, err := globaldb.Doubts(ctx, log, sound, func(s *raftlog.Snapshot) {
		if at := stateOf(files, s.File); at.inode > 0 {
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
