// SPDX-License-Identifier: AGPL-3.0-only

package nodedb

import (
	"context"
	"database/sql"
)

// Mark says which recovery a member's database comes from. Every import leaves it in the node database, in a table of its
// own that LXD does not look at, where other members can ask a running daemon for it: a member that is imported late can
// tell the cluster of its own recovery from any other.
type Mark struct {
	Index uint64 // of the recovery entry
	Term  uint64 // the fence's
}

// MarkQuery returns the mark's row as index and term.
const MarkQuery = "SELECT entry_index, term FROM lxd_recover"

func writeMark(ctx context.Context, tx *sql.Tx, mark Mark) error {
	for _, statement := range []string{
		"DROP TABLE IF EXISTS lxd_recover",
		"CREATE TABLE lxd_recover (entry_index INTEGER NOT NULL, term INTEGER NOT NULL)",
	} {
		_, err := tx.ExecContext(ctx, statement)
		if err != nil {
			return err
		}
	}

	_, err := tx.ExecContext(ctx, "INSERT INTO lxd_recover VALUES (?, ?)", int64(mark.Index), int64(mark.Term))
	return err
}
