// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// MemberLook is what a run over the whole cluster has to know of a member. It is plain data: it travels from the member to the machine that
// gives the run.
type MemberLook struct {
	Clock   time.Time          `json:"clock"` // of this machine, UTC
	Status  *StatusReport      `json:"status"`
	Inspect *InspectReport     `json:"inspect"` // null if its raft directory cannot be read: Unread says why
	Unread  string             `json:"unread,omitempty"`
	Service string             `json:"service"` // what starts LXD here; empty if nothing is known
	Place   globaldb.Placement `json:"place"`

	// Works tells whether LXD here belongs to a cluster that has a quorum: it has confirmed a write, see daemon.Quorum. Listed are the members'
	// addresses by name, as LXD lists them, quorum or not.
	Works  bool              `json:"works"`
	Listed map[string]string `json:"listed,omitempty"`

	Free     uint64   `json:"free"`     // room on the disk of the database, in bytes
	Size     int64    `json:"size"`     // of the database, in bytes
	Obstacle string   `json:"obstacle"` // why the databases cannot be exchanged here; empty if they can
	Open     *OpenRun `json:"open"`     // the run over the whole cluster that this member is part of; null if there is none
}

// answerTime is how long an LXD that runs may take to tell whether its cluster works. One without a quorum does not answer.
const answerTime = 5 * time.Second

// Look looks at this member. It changes nothing, and wakes nobody; one that works is had to write its heartbeat, as it does all the time.
func Look(ctx context.Context, lxdDir string, progress Progress) (*MemberLook, error) {
	dir, err := openDirectory(lxdDir)
	if err != nil {
		return nil, err
	}

	l := &MemberLook{Clock: time.Now().UTC(), Size: treeSize(dir.database())}
	l.Open, err = dir.readOpenRun()
	if err != nil {
		return nil, err
	}

	l.Status, err = Status(ctx, dir.path, progress)
	if err != nil {
		return nil, err
	}

	l.Inspect, err = Inspect(ctx, dir.path, progress)
	if err != nil && ctx.Err() == nil {
		l.Inspect, l.Unread, err = nil, err.Error(), nil
	}

	if err != nil {
		return nil, err
	}

	free := dir.free()
	if free != nil {
		l.Free = *free
	}

	err = dir.exchangeable(databaseName)
	if err != nil {
		l.Obstacle = err.Error()
	}

	l.placement(ctx, dir, progress)
	return l, l.daemon(ctx, dir)
}

// placement reads where instances are. What cannot be read stays empty: it is for people.
func (l *MemberLook) placement(ctx context.Context, dir directory, progress Progress) {
	_ = whileLive(ctx, l.Status.Running, func(bool) (bool, error) {
		log, err := openLog(ctx, dir.global(), progress, raftlog.Options{})
		if err != nil {
			return false, err
		}

		db, err := globaldb.Open(ctx, log, log.SoundIndex)
		if err != nil {
			return false, err
		}

		defer db.Close()

		place, err := db.Placement(ctx)
		if err != nil {
			return false, err
		}

		l.Place = *place
		return true, nil
	})
}

// daemon asks an LXD that runs whether its cluster works.
func (l *MemberLook) daemon(ctx context.Context, dir directory) error {
	status, err := daemon.Inspect(ctx, dir.path)
	if err != nil {
		return err
	}

	if status.Service != nil {
		l.Service = status.Service.Name()
	}

	if !status.Running() {
		return nil
	}

	limited, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()

	listed, err := daemon.WaitReady(limited, dir.path, nil)
	if err != nil {
		return ctx.Err()
	}

	l.Listed = listed
	if l.Status.Member != nil { // a leader that has just lost its quorum still answers
		err = daemon.Quorum(ctx, dir.path, l.Status.Member.ID)
	}

	l.Works = err == nil
	return ctx.Err()
}
