// SPDX-License-Identifier: AGPL-3.0-only

package nodedb

import (
	"context"
	"database/sql"
	"fmt"
)

// Copy writes a copy of the node database of databaseDir to the new file target, with nothing changed. The copy is complete, checked and
// without a journal when Copy returns; syncing it to disk is the caller's.
func Copy(ctx context.Context, databaseDir string, target string) error {
	err := stage(ctx, databaseDir, target, withoutJournal)
	if err != nil {
		return fmt.Errorf("copy the node database to %s: %w", target, err)
	}

	return nil
}

// withoutJournal gives a database the journal mode that LXD uses, so that no -wal is left beside the staged file.
func withoutJournal(ctx context.Context, db *sql.DB) error {
	_, err := db.ExecContext(ctx, "PRAGMA journal_mode=DELETE")
	return err
}
