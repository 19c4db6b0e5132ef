// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// tableNodes is the table nodes.
type tableNodes struct {
	now      []globaldb.Node  // as it is; nil where it cannot be read
	after    []preflight.Node // as it is when the pending patch has run; nil where that cannot be told
	patchErr error            // why it does not run
	needs    *needs           // of LXD on this database; nil where it cannot be told
	log      *raftlog.Log     // that it was read from; nil where none could be
}

// readNodes reads the table nodes out of the database that a log makes, and what LXD needs to start on that. node is what the node database
// says, nil where it says nothing.
func readNodes(ctx context.Context, dir directory, read *readOnce, node *nodedb.Node) (tableNodes, error) {
	if read.dbErr != nil {
		return tableNodes{}, read.dbErr
	}

	log, db := read.log, read.db
	table := tableNodes{log: log}
	var err error
	table.now, err = db.Nodes(ctx)
	if err != nil {
		return table, err
	}

	if table.now == nil {
		table.now = []globaldb.Node{}
		return table, nil
	}

	var names member.List
	self := uint64(0)
	if node != nil {
		names, self = node.Members, node.Self.ID
	}

	table.needs, err = dir.needsOf(ctx, db, namedServers(log.Configuration, names), self)
	if err != nil {
		return table, err
	}

	pending, err := readPatch(dir.database())
	if err != nil {
		table.patchErr = err
		return table, nil
	}

	table.after, err = patchedRows(ctx, db, pending, "the global database")
	var refusal *Refusal
	if errors.As(err, &refusal) {
		table.patchErr = errors.New(refusal.Reason)
		return table, nil
	}

	return table, err
}

// patchText tells in brackets what is pending in patch.global.sql.
func patchText(dir directory) string {
	pending, err := readPatch(dir.database())
	if err != nil || pending == (pendingPatch{}) {
		return ""
	}

	return " (" + pending.String() + ")"
}
