// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// Setting is a key's value in the configuration that all members share, table config; empty if it is not set.
func (db *DB) Setting(ctx context.Context, key string) (string, error) {
	var value string
	err := db.sql.QueryRowContext(ctx, "SELECT value FROM config WHERE key = ?", key).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}

	if err != nil {
		return "", fmt.Errorf("read the key %s: %w", key, err)
	}

	return value, nil
}
