// SPDX-License-Identifier: AGPL-3.0-only

package nodedb

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"time"

	sqlite "github.com/mattn/go-sqlite3"
)

// patchFile is SQL in the database directory that LXD runs on the node database when it next opens that.
const patchFile = "patch.local.sql"

// maxPatch bounds how much is read of it, in bytes.
const maxPatch = 1 << 20

// ConfigAtStart returns the table config of a node database as LXD finds it when it starts: a pending patch.local.sql has run on the copy
// that is looked at, as far as it does nothing but change rows of that copy. One that fails counts for nothing here.
func ConfigAtStart(ctx context.Context, databaseDir string) (map[string]string, error) {
	db, done, err := openCopy(filepath.Join(databaseDir, File))
	if err != nil {
		return nil, err
	}

	defer done()

	patch := filepath.Join(databaseDir, patchFile)
	info, err := os.Stat(patch)
	if err == nil && info.Mode().IsRegular() && info.Size() <= maxPatch {
		text, err := os.ReadFile(patch)
		if err == nil {
			_ = runPatch(ctx, db, string(text))
		}
	}

	rows, err := rowsOf(ctx, db, "SELECT key, value FROM config WHERE value IS NOT NULL ORDER BY key", 2)
	if err != nil {
		return nil, err
	}

	settings := map[string]string{}
	for _, row := range rows {
		key, keyOK := row[0].(string)
		value, valueOK := row[1].(string)
		if keyOK && valueOK {
			settings[key] = value
		}
	}

	return settings, nil
}

// runPatch runs SQL on a copy, which it cannot leave.
func runPatch(ctx context.Context, db *sql.DB, text string) error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}

	defer conn.Close()

	return conn.Raw(func(c any) error {
		raw := c.(*sqlite.SQLiteConn)
		raw.RegisterAuthorizer(changesRows)
		defer raw.RegisterAuthorizer(nil)

		_, err := raw.ExecContext(ctx, text, nil)
		return err
	})
}

// changesRows is the authorizer of SQL that may do nothing but change rows.
func changesRows(action int, _ string, arg2 string, _ string) int {
	switch action {
	case sqlite.SQLITE_SELECT, sqlite.SQLITE_READ, sqlite.SQLITE_INSERT, sqlite.SQLITE_UPDATE, sqlite.SQLITE_DELETE, sqlite.SQLITE_TRANSACTION:
		return sqlite.SQLITE_OK
	case sqlite.SQLITE_FUNCTION:
		if !strings.EqualFold(arg2, "load_extension") {
			return sqlite.SQLITE_OK
		}
	}

	return sqlite.SQLITE_DENY
}

// Patches returns the names of all patches that a node database marks as applied.
func Patches(ctx context.Context, databaseDir string) ([]string, error) {
	return PatchesSince(ctx, databaseDir, time.Time{})
}

// PatchesSince returns the names of LXD's own patches that a node database marks as applied after a time.
func PatchesSince(ctx context.Context, databaseDir string, since time.Time) ([]string, error) {
	db, done, err := openCopy(filepath.Join(databaseDir, File))
	if err != nil {
		return nil, err
	}

	defer done()

	rows, err := rowsOf(ctx, db, "SELECT name, CAST(applied_at AS INTEGER) FROM patches ORDER BY id", 2)
	if err != nil {
		return nil, err
	}

	var names []string
	for _, row := range rows {
		name, nameOK := row[0].(string)
		at, atOK := row[1].(int64)
		if nameOK && atOK && at > since.Unix() {
			names = append(names, name)
		}
	}

	return names, nil
}
