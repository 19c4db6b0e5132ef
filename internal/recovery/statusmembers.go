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
}

// readNodes reads the table nodes out of the database that a log makes.
func readNodes(ctx context.Context, dir directory, log *raftlog.Log) (tableNodes, error) {
	db, err := globaldb.Open(ctx, log, 0)
	if err != nil {
		return tableNodes{}, err
	}

	defer db.Close()

	table := tableNodes{}
	table.now, err = db.Nodes(ctx)
	if err != nil {
		return table, err
	}

	if table.now == nil {
		table.now = []globaldb.Node{}
		return table, nil
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

// members says what LXD lacks in order to start with the members that it has.
func (r *StatusReport) members(ctx context.Context, node *nodedb.Node, log *raftlog.Log, nodes tableNodes) {
	if nodes.patchErr != nil {
		r.problem("%v", nodes.patchErr)
	}

	var names member.List
	if node != nil {
		names = node.Members
	}

	facts := preflight.Facts{Members: namedServers(log.Configuration, names), Nodes: nodes.after}
	if r.Member != nil {
		facts.Self = r.Member.ID
	}

	for _, f := range preflight.Check(facts) {
		if f.Code == preflight.NoRow && f.Fatal {
			f.Advice = beforeDeletion(ctx, log, facts.Self)
		}

		r.problem("%s", f)
	}
}

// patchText tells in brackets what is pending in patch.global.sql.
func patchText(dir directory) string {
	pending, err := readPatch(dir.database())
	if err != nil || pending == (pendingPatch{}) {
		return ""
	}

	return " (" + pending.String() + ")"
}
