// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// MemberLook is what a run over the whole cluster has to know of a member. It is plain data: it travels from the member to the machine that
// gives the run.
type MemberLook struct {
	Clock   time.Time          `json:"clock"` // of this machine, UTC
	Status  *StatusReport      `json:"status"`
	Inspect *InspectReport     `json:"inspect"` // null if its raft directory cannot be read: Unread says why
	Unread  string             `json:"unread,omitempty"`
	Product string             `json:"product,omitempty"` // what this is, such as Incus; empty for LXD
	Service string             `json:"service"`           // what starts LXD here; empty if nothing is known
	Place   globaldb.Placement `json:"place"`

	// Beside is the directory of a second LXD on this machine that is a member of a cluster, if the first one does not run; empty if there is none.
	Beside string `json:"beside,omitempty"`

	// NodeLost says what is wrong with a node database that is missing or damaged; empty if it is there.
	NodeLost string `json:"node_lost,omitempty"`

	// Answers tells whether LXD here lists the members; Listed are their addresses by name, as it lists them. A leader that has lost its quorum a moment
	// ago answers as well: see HasQuorum.
	Answers bool              `json:"answers"`
	Listed  map[string]string `json:"listed,omitempty"`

	Free     uint64   `json:"free"`     // room on the disk of the database, in bytes
	Size     int64    `json:"size"`     // of the database, in bytes
	Obstacle string   `json:"obstacle"` // why the databases cannot be exchanged here; empty if they can
	Open     *OpenRun `json:"open"`     // the run over the whole cluster that this member is part of; null if there is none

	// Resyncing says that LXD is stopped here for a resync, which waits for a backup, is under way, or was cut off.
	Resyncing bool `json:"resyncing,omitempty"`
}

// answerTime is how long an LXD that runs may take to tell whether its cluster works. One without a quorum does not answer.
const answerTime = 5 * time.Second

// Look looks at this member. It changes nothing, and wakes nobody. The report of what the databases hold does not tell the last transactions: see
// TransactionsAfter.
func Look(ctx context.Context, lxdDir string, progress Progress) (*MemberLook, error) {
	return lookAt(ctx, lxdDir, false, progress)
}

// lookAt is Look; tell has the last transactions told.
func lookAt(ctx context.Context, lxdDir string, tell bool, progress Progress) (*MemberLook, error) {
	dir, err := openDirectory(lxdDir)
	if err != nil {
		return nil, err
	}

	l := &MemberLook{Clock: time.Now().UTC(), Size: treeSize(dir.database()), Product: dir.productName()}
	l.Open, err = dir.readOpenRun()
	if err != nil {
		return nil, err
	}

	l.Resyncing, err = dir.resyncing()
	if err != nil {
		return nil, err
	}

	l.Status, err = statusOf(ctx, dir)
	if err != nil {
		return nil, err
	}

	if lxdDir == "" && !l.Status.Running {
		l.Beside = secondLXD(dir.path, product.Places())
	}

	err = l.databases(ctx, dir, tell, progress)
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

	return l, l.daemon(ctx, dir)
}

// secondLXD is the first of some directories, but for one, that is of a member of a cluster: a snap may have come beside a package, or the other way round.
func secondLXD(first string, dirs []string) string {
	for _, dir := range dirs {
		_, err := os.Stat(filepath.Join(dir, databaseName))
		if err == nil {
			_, err = os.Stat(filepath.Join(dir, clusterCertificateName))
		}

		if err == nil && dir != first {
			return dir
		}
	}

	return ""
}

// databases reads the databases, once for all that is to be known of them. Where instances are is for people: what cannot be read of that stays empty.
func (l *MemberLook) databases(ctx context.Context, dir directory, tell bool, progress Progress) error {
	read, err := readDatabase(ctx, dir.global(), l.Status.Running, progress)
	defer read.close()

	statusErr := l.Status.databases(ctx, dir, read, err)
	if statusErr != nil {
		return statusErr
	}

	if isLost(l.Status.nodeErr) { // what else is wrong with it is among the status's problems
		l.NodeLost = l.Status.nodeErr.Error()
	}

	var src *Source
	if err == nil {
		src, err = openSource(ctx, dir.path, progress)
	}

	if err == nil {
		defer src.Close()

		l.Inspect, err = inspect(ctx, src, read, tell)
	}

	if ctx.Err() != nil {
		return ctx.Err()
	}

	if err != nil {
		l.Inspect, l.Unread = nil, err.Error()
		return nil
	}

	if read.db != nil {
		place, err := read.db.Placement(ctx)
		if err == nil {
			l.Place = *place
		}
	}

	return ctx.Err()
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

	l.Answers, l.Listed = true, listed
	return ctx.Err()
}

// HasQuorum has LXD here, which answers, write its own member's heartbeat, as it does all the time, and returns an error if no majority of the voters confirms
// it within daemon.QuorumTime.
func HasQuorum(ctx context.Context, lxdDir string) error {
	dir, err := openDirectory(lxdDir)
	if err != nil {
		return err
	}

	node, err := nodedb.Read(ctx, dir.database())
	if err != nil {
		return err
	}

	return daemon.Quorum(ctx, dir.path, node.Self.ID)
}
