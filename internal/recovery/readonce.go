// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// readOnce is a log, and the database that it makes: to read and to replay both takes as long as the database is large, so whoever wants to know more than
// one thing of it does so once.
type readOnce struct {
	log   *raftlog.Log
	db    *globaldb.DB // at the last sound entry; nil with dbErr
	dbErr error

	letGo func() // of the files; nil if nothing is held
}

// readDatabase reads a raft directory; again if a daemon gets in the way. The caller closes it.
func readDatabase(ctx context.Context, global string, live bool, progress Progress) (*readOnce, error) {
	var r *readOnce
	err := whileLive(ctx, live, func(last bool) (bool, error) {
		r.close()
		r = nil
		log, letGo, err := openLive(ctx, global, live, progress, raftlog.Options{})
		if err != nil || !log.Healthy() && !last {
			letGo()
			return false, err
		}

		r = replay(ctx, log)
		r.letGo = letGo
		return log.Healthy() && r.dbErr == nil, nil
	})
	if err != nil {
		r.close()
		return nil, err
	}

	return r, nil
}

// replay makes the database of a log.
func replay(ctx context.Context, log *raftlog.Log) *readOnce {
	r := &readOnce{log: log}
	r.db, r.dbErr = globaldb.Open(ctx, log, log.SoundIndex)
	return r
}

// close closes the database, if there is one, and lets go of the files.
func (r *readOnce) close() {
	if r != nil && r.db != nil {
		_ = r.db.Close()
	}

	if r != nil && r.letGo != nil {
		r.letGo()
	}
}
