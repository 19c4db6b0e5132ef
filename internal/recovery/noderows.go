// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"fmt"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// nodeRows reads the table nodes with the versions in it; nil where the database has no such table.
func nodeRows(ctx context.Context, db *globaldb.DB) ([]preflight.Node, error) {
	nodes, err := db.Nodes(ctx)
	if nodes == nil || err != nil {
		return nil, err
	}

	versions, err := db.Versions(ctx)
	if err != nil {
		return nil, err
	}

	rows := make([]preflight.Node, len(nodes))
	for i, n := range nodes {
		v := versions[n.ID]
		rows[i] = preflight.Node{ID: n.ID, Name: n.Name, Address: n.Address, Schema: v.Schema, APIExtensions: v.APIExtensions}
	}

	return rows, nil
}

// withoutVersions are rows as the table nodes has them for addresses.
func withoutVersions(rows []preflight.Node) []globaldb.Node {
	nodes := make([]globaldb.Node, len(rows))
	for i, r := range rows {
		nodes[i] = globaldb.Node{ID: r.ID, Name: r.Name, Address: r.Address}
	}

	return nodes
}

// patchedRows tries what is pending on a database, and returns the rows that the table nodes has afterwards. what names the database in an
// error.
func patchedRows(ctx context.Context, db *globaldb.DB, p pendingPatch, what string) ([]preflight.Node, error) {
	if p.carried() == "" {
		rows, err := nodeRows(ctx, db)
		if err != nil {
			return nil, replayError(what, err)
		}

		return rows, nil
	}

	patched, err := tryPatch(ctx, db, p, what)
	if err != nil {
		return nil, err
	}

	defer patched.Close()

	return nodeRows(ctx, patched)
}

// unknownMembersFlag goes on although the database does not know a member.
const unknownMembersFlag = "--unknown-members"

// checkKnown refuses a database that has no row for one of its members: LXD does not start there. wayOut says what can be done about the
// one of that id, and may be empty.
func checkKnown(facts preflight.Facts, wayOut func(id uint64) string) error {
	rowless := preflight.Rowless(facts)
	if len(rowless) == 0 {
		return nil
	}

	m := rowless[0]
	where := product.Text("its LXD would not start")
	if m.ID == facts.Self {
		where = product.Text("LXD would not start here (\"updated 0 rows instead of 1\")")
	}

	reason := fmt.Sprintf("the table nodes of the global database has no row of %s, which is a member in the raft log: %s", preflight.Named(m), where)
	advice := wayOut(m.ID)
	if advice != "" {
		reason += ". " + advice
	}

	return &Refusal{Code: preflight.NoRow, Member: m.Name, Reason: reason, Flag: unknownMembersFlag}
}

// rowDeleted finds the transaction that has deleted a member's row in the table nodes; 0 where none in the log has.
func rowDeleted(ctx context.Context, log *raftlog.Log, id uint64) (uint64, error) {
	r := rowReader{log: log}
	defer r.close()

	found := uint64(0)
	key := fmt.Sprintf("id=%d", id)
	for entry, err := range log.Entries(ctx, globaldb.Oldest(log)+1) {
		if err != nil {
			return 0, err
		}

		if !changesRows(entry) || entry.Index > log.SoundIndex {
			continue
		}

		rows, _, err := r.read(ctx, entry.Index)
		if err != nil {
			return 0, err
		}

		for _, row := range rows {
			if row.Table == "nodes" && row.Key == key {
				found = 0
				if row.After == nil {
					found = entry.Index
				}
			}
		}
	}

	return found, nil
}

// beforeDeletion says how to get back to the database that still had a member's row.
func beforeDeletion(ctx context.Context, log *raftlog.Log, id uint64) string {
	index, err := rowDeleted(ctx, log, id)
	if err != nil || index < 2 {
		return ""
	}

	return fmt.Sprintf("The transaction with index %d has deleted the row: `lxd-recover cluster export-db --at %d` exports the database as it was before",
		index, index-1)
}
