// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// readDatabases reads node database, raft log and global database. found gets what global-db-status says of them, too.
func (s *MemberState) readDatabases(ctx context.Context, dir directory, opts MemberStateOptions, found *StatusReport) error {
	node, nodeErr := dir.nodeForStatus(ctx, s.Running)
	if ctx.Err() != nil {
		return ctx.Err()
	}

	if node != nil {
		s.ClusterAddress = node.ClusterAddress
	}

	fence := opts.Fence
	if fence == (bundle.Position{}) && s.Record != nil {
		fence = s.Record.Raft
	}

	var log *raftlog.Log
	var rows stateReader
	live := liveLog{dir.global(), s.Running, opts.Progress, raftlog.Options{Later: opts.Outline}}
	err := live.read(ctx, func(read *raftlog.Log) (bool, error) {
		log = read
		s.takeLog(log)
		if opts.Outline {
			return true, nil
		}

		rows = stateReader{log: log, state: s, fence: fence}
		return rows.read(ctx, opts.At)
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}

	if err != nil && dir.withoutGlobal() {
		found.problem("%v", err)
		found.member(dir, node, nodeErr, nil)
		found.compare(node, nil, nil)
		return nil
	}

	if err != nil {
		return err
	}

	for _, p := range log.Problems {
		if p.Severity == raftlog.Error {
			found.problem("%s; see `lxd-recover global-db-inspect`", p)
		}
	}

	if rows.err != nil {
		found.problem("global database: %v", rows.err)
	}

	found.member(dir, node, nodeErr, log.Configuration)
	found.recognise(ctx, dir, log, rows.nodes)
	found.compare(node, log.Configuration, rows.nodes)
	s.Members = namedServers(log.Configuration, nil)
	if node != nil {
		s.Members = namedServers(log.Configuration, node.Members)
	}

	return nil
}

// stateReader tells the rows of a log for a member's state.
type stateReader struct {
	log   *raftlog.Log
	state *MemberState
	fence bundle.Position
	nodes []globaldb.Node // the table nodes at the end; nil where it cannot be read
	err   error           // why the database at the end cannot be told, or is no good
}

// read tells the rows at the recovery entry, and at another index unless that is 0, and looks at the database at the end. What LXD got in
// the way of is no result; that the log cannot tell something is one.
func (r *stateReader) read(ctx context.Context, at uint64) (sound bool, err error) {
	r.state.RowsAtFence, r.state.RowsAt = nil, nil
	end := r.log.SoundIndex
	if at > 0 {
		r.state.RowsAt = &StateRows{Position: bundle.Position{Index: at}}
		r.state.RowsAt.Untold, err = r.untold(ctx, at)
		if err != nil {
			return false, err
		}

		if r.state.RowsAt.Untold == "" {
			end = at
		}
	}

	summary, print, err := r.look(ctx, end)
	switch {
	case ctx.Err() != nil || machineFault(err):
		return false, err
	case errors.Is(err, globaldb.ErrNoDatabase) && r.log.Healthy(): // of a spare that was never one of the others
	case err != nil:
		r.err = err
	case summary.Integrity != "ok":
		r.err = fmt.Errorf("SQLite finds it damaged: %s", summary.Integrity)
	}

	if end == at && at > 0 {
		r.state.RowsAt.take(print, err)
		r.state.RowsAt.Position.Term, _ = r.log.TermAt(at)
		r.state.RowsAt.Entries, err = entriesBetween(ctx, r.log, r.fence.Index, at)
		if ctx.Err() != nil || machineFault(err) {
			return false, err
		}

		r.err = errors.Join(r.err, err)
	}

	if r.fence != (bundle.Position{}) {
		err = r.atFence(ctx, end, print)
	}

	return r.err == nil && err == nil, err
}

// look replays the log up to an index, and looks at what comes out.
func (r *stateReader) look(ctx context.Context, index uint64) (*globaldb.Summary, globaldb.Fingerprint, error) {
	if index == 0 {
		return nil, nil, globaldb.ErrNoDatabase
	}

	db, err := globaldb.Open(ctx, r.log, index)
	if err != nil {
		return nil, nil, err
	}

	defer db.Close()

	r.nodes, err = db.Nodes(ctx)
	if err != nil {
		return nil, nil, err
	}

	return db.SummaryAndFingerprint(ctx)
}

// take notes rows, or why they cannot be told.
func (rows *StateRows) take(print globaldb.Fingerprint, err error) {
	rows.Rows = print
	if err != nil {
		rows.Rows, rows.Untold = nil, err.Error()
	}
}

// atFence tells the rows at the recovery entry; print are those at the index end.
func (r *stateReader) atFence(ctx context.Context, end uint64, print globaldb.Fingerprint) error {
	rows := &StateRows{Position: r.fence}
	r.state.RowsAtFence = rows
	if r.state.Has(r.fence) != Has {
		rows.Untold = fmt.Sprintf("the log is not known to have the recovery entry at %s", r.fence)
		return nil
	}

	var err error
	rows.Untold, err = r.untold(ctx, r.fence.Index)
	if err != nil || rows.Untold != "" {
		return err
	}

	if r.fence.Index == end && print != nil {
		rows.Rows = print
		return nil
	}

	db, err := globaldb.Open(ctx, r.log, r.fence.Index)
	if err == nil {
		defer db.Close()
		print, err = db.Fingerprint(ctx)
	}

	if ctx.Err() != nil || machineFault(err) {
		return err
	}

	rows.take(print, err)
	return nil
}

// untold says why the log cannot tell the rows at an index; empty if it can.
func (r *stateReader) untold(ctx context.Context, index uint64) (string, error) {
	switch {
	case index > r.log.LastIndex:
		return fmt.Sprintf("the log ends at index %d", r.log.LastIndex), nil
	case index > r.log.SoundIndex:
		return fmt.Sprintf("the log is sound up to index %d only", r.log.SoundIndex), nil
	}

	_, err := globaldb.Base(ctx, r.log, index)
	switch {
	case err == nil:
		return "", nil
	case ctx.Err() != nil || machineFault(err):
		return "", err
	}

	return err.Error(), nil
}

// entriesBetween sums the entries after an index, up to another one; empty where the log does not have all of them, or after is 0.
func entriesBetween(ctx context.Context, log *raftlog.Log, after uint64, last uint64) (string, error) {
	if after == 0 || last < after || !log.Has(after+1, last) {
		return "", nil
	}

	sum := sha256.New()
	for entry, err := range log.Entries(ctx, after+1) {
		if err != nil {
			return "", err
		}

		if entry.Index > last {
			break
		}

		fmt.Fprintln(sum, entry.Index, entry.Term, entry.Type, checksum(entry))
	}

	return hex.EncodeToString(sum.Sum(nil)), nil
}
