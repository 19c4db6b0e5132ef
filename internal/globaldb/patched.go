// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mattn/go-sqlite3"

	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// patchTimeout bounds how long a patch may take on a copy. LXD's start is cut short by its service manager at some time, too.
const patchTimeout = 2 * time.Minute

// StatementError says which statement of a patch LXD would not get past.
type StatementError struct {
	Number    int    // of the statement, from 1; 0 for the end of the transaction
	Statement string // as it is written
	Err       error
}

func (e *StatementError) Error() string {
	if e.Number == 0 {
		return "the end of the transaction fails: " + e.Err.Error()
	}

	return fmt.Sprintf("statement %d fails, %q: %v", e.Number, shorten(strings.Join(strings.Fields(ConcealSQL(e.Statement)), " ")), e.Err)
}

func (e *StatementError) Unwrap() error { return e.Err }

// Patched returns a copy of the database in which a patch has run as LXD runs patch.global.sql through its leader: all statements in one
// transaction, with foreign keys enforced. A statement that LXD would not get past, or that cannot be tried on a copy, is a
// StatementError. Close removes the copy.
func (db *DB) Patched(ctx context.Context, patch string) (*DB, error) {
	statements, err := patchStatements(patch)
	if err != nil {
		return nil, &StatementError{Number: 1, Statement: patch, Err: err}
	}

	dir, err := os.MkdirTemp("", "lxd-recover-patch-")
	if err != nil {
		return nil, err
	}

	remove := func() { _ = os.RemoveAll(dir) }
	file := filepath.Join(dir, Name)
	err = newfile.Copy(db.File, file)
	if err == nil {
		err = runPatch(ctx, file, statements)
	}

	if err != nil {
		remove()
		return nil, err
	}

	patched, err := openFile(file, "ro")
	if err != nil {
		remove()
		return nil, err
	}

	return &DB{sql: patched, File: file, remove: remove}, nil
}

// PatchStatements counts the statements of a patch.
func PatchStatements(patch string) int {
	statements, _ := patchStatements(patch)
	return len(statements)
}

// patchStatements splits a patch into its statements. The body of a trigger has semicolons of its own.
func patchStatements(patch string) ([]string, error) {
	pieces, err := Statements(patch)
	if err != nil {
		return nil, err
	}

	var all []string
	for i := 0; i < len(pieces); i++ {
		statement := pieces[i]
		if createsTrigger(statement) {
			for i+1 < len(pieces) && !strings.EqualFold(pieces[i], "end") {
				i++
				statement += ";\n" + pieces[i]
			}
		}

		all = append(all, statement)
	}

	return all, nil
}

func createsTrigger(statement string) bool {
	words := strings.Fields(strings.ToUpper(statement))
	return len(words) > 2 && words[0] == "CREATE" && (words[1] == "TRIGGER" || strings.HasPrefix(words[1], "TEMP") && words[2] == "TRIGGER")
}

// runPatch runs statements on an SQLite file in one transaction.
func runPatch(ctx context.Context, file string, statements []string) error {
	limited, cancel := context.WithTimeout(ctx, patchTimeout)
	defer cancel()

	uri := "file:" + (&url.URL{Path: file}).EscapedPath() + "?mode=rw&_foreign_keys=1"
	opened, err := (&sqlite3.SQLiteDriver{}).Open(uri)
	if err != nil {
		return err
	}

	defer opened.Close()

	conn := opened.(*sqlite3.SQLiteConn)
	_, err = conn.Exec("BEGIN IMMEDIATE", nil)
	if err != nil {
		return err
	}

	for i, statement := range statements {
		conn.RegisterAuthorizer(patchAllows)
		err = runStatement(limited, conn, statement)
		conn.RegisterAuthorizer(nil)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case limited.Err() != nil:
			err = fmt.Errorf("it takes longer than %v", patchTimeout)
		}

		if err != nil {
			return &StatementError{Number: i + 1, Statement: statement, Err: err}
		}
	}

	_, err = conn.Exec("COMMIT", nil)
	if err != nil {
		return &StatementError{Err: err}
	}

	return nil
}

// errRows says that a statement returns rows: libdqlite takes the first one for an error where nobody waits for it.
var errRows error = product.Error("it returns rows: LXD would take that for an error, and not start")

func runStatement(ctx context.Context, conn *sqlite3.SQLiteConn, statement string) error {
	prepared, err := conn.Prepare(statement)
	if err != nil {
		return refusedByPatch(err)
	}

	defer prepared.Close()

	if prepared.NumInput() > 0 {
		return errors.New("it has parameters, and there is nothing to bind to them")
	}

	rows, err := prepared.(driver.StmtQueryContext).QueryContext(ctx, nil)
	if err != nil {
		return err
	}

	defer rows.Close()

	err = rows.Next(make([]driver.Value, len(rows.Columns())))
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err == nil:
		return errRows
	}

	return err
}

// refusedByPatch explains a statement that the authorizer does not allow.
func refusedByPatch(err error) error {
	var e sqlite3.Error
	if errors.As(err, &e) && e.Code == sqlite3.ErrAuth {
		return errors.New(product.Text("this cannot be tried: LXD runs a patch inside one transaction of its own, " +
			"where transactions, PRAGMA, ATTACH and load_extension have no place"))
	}

	return err
}

// patchAllows is the authorizer of a patch: it stays inside the transaction and inside the database.
func patchAllows(action int, arg1 string, arg2 string, _ string) int {
	switch action {
	case sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_SAVEPOINT:
		return sqlite3.SQLITE_DENY
	case sqlite3.SQLITE_PRAGMA:
		if !strings.EqualFold(arg1, "defer_foreign_keys") {
			return sqlite3.SQLITE_DENY
		}

	case sqlite3.SQLITE_FUNCTION:
		if strings.EqualFold(arg2, "load_extension") {
			return sqlite3.SQLITE_DENY
		}
	}

	return sqlite3.SQLITE_OK
}
