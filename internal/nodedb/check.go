// SPDX-License-Identifier: AGPL-3.0-only

package nodedb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	sqlite "github.com/mattn/go-sqlite3"
)

// ErrMissing and ErrDamaged say that a member has lost its node database: there is no file, or what is there is not a whole node
// database. LXD makes a new one in the place of a missing one, and is then no member of its cluster any more.
var (
	ErrMissing = errors.New("is missing")
	ErrDamaged = errors.New("is damaged")
)

// tables are those that every node database has, of all schemas that are known.
var tables = []string{"certificates", "config", "patches", "raft_nodes", "schema"}

// Check tells whether the node database in an LXD database directory is there and whole. The error is ErrMissing or ErrDamaged where
// it is not, and another one where that cannot be told.
func Check(ctx context.Context, databaseDir string) error {
	if gone(databaseDir) {
		return missing(databaseDir)
	}

	file := filepath.Join(databaseDir, File)
	db, done, err := openCopy(file)
	if err != nil {
		return err
	}

	defer done()

	found, err := damage(ctx, db)
	if err != nil {
		return fmt.Errorf("check %s: %w", file, err)
	}

	if found != "" {
		return fmt.Errorf("the node database %s %w: %s", file, ErrDamaged, found)
	}

	return nil
}

// gone tells whether a database directory is known to have no node database. An error of copyToScratch does not tell: it may
// come from the directory for temporary files.
func gone(databaseDir string) bool {
	_, err := os.Stat(filepath.Join(databaseDir, File))
	return errors.Is(err, os.ErrNotExist)
}

// missing is the error for a database directory without node database.
func missing(databaseDir string) error {
	return fmt.Errorf("the node database %s %w", filepath.Join(databaseDir, File), ErrMissing)
}

// damage says what keeps a file from being a whole node database; empty where nothing does.
func damage(ctx context.Context, db *sql.DB) (string, error) {
	var verdict string
	err := db.QueryRowContext(ctx, "PRAGMA integrity_check(1)").Scan(&verdict)
	if err == nil && verdict != "ok" {
		return "SQLite: " + verdict, nil
	}

	var names []string
	if err == nil {
		names, err = stringsOf(ctx, db, "SELECT name FROM sqlite_master WHERE type = 'table'")
	}

	var failed sqlite.Error
	if errors.As(err, &failed) && (failed.Code == sqlite.ErrCorrupt || failed.Code == sqlite.ErrNotADB) {
		return "SQLite: " + failed.Error(), nil
	}

	if err != nil {
		return "", err
	}

	for _, name := range tables {
		if !slices.Contains(names, name) {
			return "it has no table " + name, nil
		}
	}

	return "", nil
}

// stringsOf returns the first column of all rows.
func stringsOf(ctx context.Context, db *sql.DB, query string) ([]string, error) {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return nil, err
	}

	defer rows.Close()

	var all []string
	for rows.Next() {
		var s string
		err = rows.Scan(&s)
		if err != nil {
			return nil, err
		}

		all = append(all, s)
	}

	return all, rows.Err()
}

// Settings are the rows of the table config, as far as they can be read, each as KEY=VALUE: what is still to be had of a damaged node
// database.
func Settings(ctx context.Context, databaseDir string) []string {
	db, done, err := openCopy(filepath.Join(databaseDir, File))
	if err != nil {
		return nil
	}

	defer done()

	all, _ := stringsOf(ctx, db, "SELECT key || '=' || coalesce(value, '') FROM config ORDER BY key")
	return all
}
