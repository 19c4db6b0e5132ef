// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/mattn/go-sqlite3"
)

// ErrReadOnly says that a statement would do something else than read. SQLite itself has refused it, before its first step.
var ErrReadOnly = errors.New("only reading is possible here")

// Receiver takes what a statement returns. A statement without columns calls neither function.
type Receiver struct {
	Columns func(names []string) error // once, before the rows
	Row     func(values []any) error   // nil, int64, float64, string or []byte each; valid during the call
}

// Query runs one statement and hands over what it returns, value by value as it is stored. The statement can do nothing but
// read: the file is opened read-only, query_only is on, and SQLite's authorizer allows no more than allowed lists.
func (db *DB) Query(ctx context.Context, statement string, to Receiver) error {
	conn, err := db.sql.Conn(ctx)
	if err != nil {
		return err
	}

	defer conn.Close()

	return conn.Raw(func(c any) error {
		raw := c.(*sqlite3.SQLiteConn)
		_, err := raw.Exec("PRAGMA query_only = 1", nil)
		if err != nil {
			return err
		}

		raw.RegisterAuthorizer(allowed)
		defer raw.RegisterAuthorizer(nil)

		err = query(ctx, raw, statement, to)
		if ctx.Err() != nil {
			return ctx.Err()
		}

		if refuses(err) {
			return fmt.Errorf("%w: SQLite refuses %q: %w", ErrReadOnly, shorten(strings.TrimSpace(statement)), err)
		}

		return err
	})
}

// refuses tells whether an error is SQLite's refusal to do something else than read. For functions and SQLite's own tables it
// has no code of its own.
func refuses(err error) bool {
	var e sqlite3.Error
	if !errors.As(err, &e) {
		return false
	}

	return e.Code == sqlite3.ErrAuth || e.Code == sqlite3.ErrReadonly ||
		strings.HasPrefix(e.Error(), "not authorized") || strings.HasSuffix(e.Error(), "may not be modified")
}

func query(ctx context.Context, conn *sqlite3.SQLiteConn, statement string, to Receiver) error {
	prepared, err := conn.Prepare(statement)
	if err != nil {
		return err
	}

	defer prepared.Close()

	if !prepared.(*sqlite3.SQLiteStmt).Readonly() {
		return fmt.Errorf("%w: SQLite says that %q is no reading statement", ErrReadOnly, shorten(strings.TrimSpace(statement)))
	}

	n := prepared.NumInput()
	if n > 0 {
		return fmt.Errorf("the statement has %d parameters, and there is nothing to bind to them: write the values in their places", n)
	}

	found, err := prepared.(driver.StmtQueryContext).QueryContext(ctx, nil)
	if err != nil {
		return err
	}

	defer found.Close()

	// The driver makes times of columns that are declared DATETIME, and loses what it cannot parse. Without declared types
	// it leaves values as they are. This is the driver's own list, so emptying it is enough.
	clear(found.(*sqlite3.SQLiteRows).DeclTypes())
	names := found.Columns()
	if len(names) > 0 {
		err = to.Columns(names)
		if err != nil {
			return err
		}
	}

	row := make([]driver.Value, len(names))
	values := make([]any, len(names))
	for {
		err = found.Next(row)
		if errors.Is(err, io.EOF) {
			return nil
		}

		if err != nil {
			return err
		}

		if len(names) == 0 {
			continue
		}

		for i, v := range row {
			values[i] = v
		}

		err = to.Row(values)
		if err != nil {
			return err
		}
	}
}

// authRecursive is SQLITE_RECURSIVE, a WITH RECURSIVE, for which the driver has no name.
const authRecursive = 33

// readingPragmas are those that tell something, and that change nothing whatever argument they get.
var readingPragmas = map[string]bool{
	"application_id": false, "auto_vacuum": false, "collation_list": true, "compile_options": true, "database_list": true, "encoding": false,
	"foreign_key_check": true, "foreign_key_list": true, "freelist_count": true, "function_list": true, "index_info": true, "index_list": true,
	"index_xinfo": true, "integrity_check": true, "journal_mode": false, "module_list": true, "page_count": true, "page_size": false,
	"pragma_list": true, "quick_check": true, "schema_version": false, "table_info": true, "table_list": true, "table_xinfo": true,
	"user_version": false,
}

// allowed is the authorizer: SQLite asks it about everything that a statement would do, while it prepares it. In
// readingPragmas true stands for: with an argument as well.
func allowed(action int, arg1 string, arg2 string, _ string) int {
	ok := false
	switch action {
	case sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_TRANSACTION, authRecursive:
		ok = true
	case sqlite3.SQLITE_UPDATE:
		// SQLite asks for this when it makes the tables of pragmas and JSON known to itself, and never does it. A statement
		// that would do it is refused for what it is: see query.
		ok = arg1 == "sqlite_master"
	case sqlite3.SQLITE_FUNCTION:
		ok = !strings.EqualFold(arg2, "load_extension")
	case sqlite3.SQLITE_PRAGMA:
		withArgument, known := readingPragmas[strings.ToLower(arg1)]
		ok = known && (withArgument || arg2 == "")
	}

	if ok {
		return sqlite3.SQLITE_OK
	}

	return sqlite3.SQLITE_DENY
}
