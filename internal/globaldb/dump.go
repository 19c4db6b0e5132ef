// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Dump writes the database as SQL that `sqlite3` reads back to the same tables, rows, indexes, views and triggers.
//
// Foreign keys are off while it is read, so the order of the tables does not matter; views come before triggers, which may be
// on one, and triggers last, so that none fires. Text is always UTF-8. A virtual table has no rows of its own that could be
// written down, and is an error.
func (db *DB) Dump(ctx context.Context, w io.Writer) error {
	objects, err := db.schema(ctx)
	if err != nil {
		return err
	}

	out := bufio.NewWriter(w)
	fmt.Fprint(out, "PRAGMA foreign_keys=OFF;\n")
	for _, pragma := range []string{"user_version", "application_id"} {
		var n int64
		err = db.sql.QueryRowContext(ctx, "PRAGMA "+pragma).Scan(&n)
		if err != nil {
			return err
		}

		if n != 0 {
			fmt.Fprintf(out, "PRAGMA %s=%d;\n", pragma, n)
		}
	}

	fmt.Fprint(out, "BEGIN TRANSACTION;\n")
	for _, kind := range []string{"table", "own", "index", "view", "trigger"} {
		for _, o := range objects {
			if o.kind != kind {
				continue
			}

			err = db.dumpObject(ctx, out, o)
			if err != nil {
				return fmt.Errorf("dump %s %s: %w", o.Type, o.Name, err)
			}
		}
	}

	fmt.Fprint(out, "COMMIT;\n")
	return out.Flush()
}

// SchemaObject is a table, index, view or trigger.
type SchemaObject struct {
	Type, Name, Table, SQL string // SQL is empty for an index that a constraint brings along

	kind string // Type, or own for SQLite's own tables
}

// Schema returns tables, indexes, views and triggers in the order of their creation; with a name only that table or view, and
// what belongs to it.
func (db *DB) Schema(ctx context.Context, name string) ([]SchemaObject, error) {
	all, err := db.schema(ctx)
	if err != nil || name == "" {
		return all, err
	}

	var found []SchemaObject
	for _, o := range all {
		if strings.EqualFold(o.Name, name) || strings.EqualFold(o.Table, name) {
			found = append(found, o)
		}
	}

	if len(found) == 0 {
		return nil, fmt.Errorf("no such table: %s; .tables lists those that there are", name)
	}

	return found, nil
}

func (db *DB) schema(ctx context.Context) ([]SchemaObject, error) {
	rows, err := db.sql.QueryContext(ctx, "SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_master ORDER BY rowid")
	if err != nil {
		return nil, err
	}

	defer rows.Close()

	var all []SchemaObject
	for rows.Next() {
		var o SchemaObject
		err = rows.Scan(&o.Type, &o.Name, &o.Table, &o.SQL)
		if err != nil {
			return nil, err
		}

		o.kind = o.Type
		if o.Type == "table" && strings.HasPrefix(strings.ToLower(o.Name), "sqlite_") {
			o.kind = "own"
		}

		all = append(all, o)
	}

	return all, rows.Err()
}

func (db *DB) dumpObject(ctx context.Context, out *bufio.Writer, o SchemaObject) error {
	switch {
	case o.kind == "own" && strings.HasPrefix(o.Name, "sqlite_stat"):
		if o.Name != "sqlite_stat1" {
			return nil // written anew by the next ANALYZE
		}

		fmt.Fprint(out, "ANALYZE sqlite_schema;\nDELETE FROM sqlite_stat1;\n") // brings the table into being
	case o.kind == "own": // sqlite_sequence is there as soon as a table with AUTOINCREMENT is
		fmt.Fprintf(out, "DELETE FROM %s;\n", quote(o.Name))
	case o.SQL == "":
		return nil
	case o.Type == "table" && strings.HasPrefix(strings.ToUpper(o.SQL), "CREATE VIRTUAL"):
		return fmt.Errorf("it is a virtual table")
	default:
		fmt.Fprintf(out, "%s;\n", o.SQL)
	}

	if o.Type != "table" {
		return nil
	}

	columns, err := stringsOf(ctx, db.sql, "SELECT name FROM pragma_table_xinfo(?) WHERE hidden = 0 ORDER BY cid", o.Name)
	if err != nil {
		return err
	}

	for i, c := range columns {
		columns[i] = quote(c)
	}

	list := strings.Join(columns, ",")
	return db.Query(ctx, "SELECT "+list+" FROM "+quote(o.Name), Receiver{
		Columns: func([]string) error { return nil },
		Row: func(values []any) error {
			literals := make([]string, len(values))
			for i, v := range values {
				literals[i] = Literal(v)
			}

			_, err := fmt.Fprintf(out, "INSERT INTO %s(%s) VALUES(%s);\n", quote(o.Name), list, strings.Join(literals, ","))
			return err
		},
	})
}

// Literal is a value that Query returned, as SQL.
func Literal(value any) string {
	switch v := value.(type) {
	case int64:
		return strconv.FormatInt(v, 10)
	case float64:
		return realLiteral(v)
	case string:
		// SQL text ends at a NUL, and the sqlite3 shell drops a carriage return before the end of a line.
		if strings.ContainsAny(v, "\x00\r") || !utf8.ValidString(v) {
			return "CAST(x'" + hex.EncodeToString([]byte(v)) + "' AS TEXT)"
		}

		return "'" + strings.ReplaceAll(v, "'", "''") + "'"
	case []byte:
		return "x'" + hex.EncodeToString(v) + "'"
	}

	return "NULL"
}

// realLiteral writes a real so that every SQLite gets the very same one out of it. Its own conversion of decimals is only exact
// for few digits and small exponents; elsewhere the number is written as an integer times or over powers of two, which is.
func realLiteral(v float64) string {
	switch {
	case math.IsInf(v, 1):
		return "9.0e+999"
	case math.IsInf(v, -1):
		return "-9.0e+999"
	}

	const exactDigits, exactPower = 15, 22 // both the digits as an integer and the power of ten are exact as reals
	text := strconv.FormatFloat(v, 'e', -1, 64)
	mantissa, power, _ := strings.Cut(strings.TrimPrefix(text, "-"), "e")
	digits := len(strings.Replace(mantissa, ".", "", 1))
	exponent, _ := strconv.Atoi(power)
	if digits <= exactDigits && exponent <= exactPower && exponent-digits+1 >= -exactPower {
		text = strconv.FormatFloat(v, 'g', -1, 64)
		if !strings.ContainsAny(text, ".e") {
			text += ".0"
		}

		return text
	}

	fraction, binary := math.Frexp(v)
	integer := int64(math.Ldexp(fraction, 53))
	binary -= 53
	for integer%2 == 0 && integer != 0 {
		integer, binary = integer/2, binary+1
	}

	text = fmt.Sprintf("%d*1.0", integer)
	for ; binary > 0; binary -= min(binary, 62) {
		text += fmt.Sprintf("*%d", int64(1)<<min(binary, 62))
	}

	for ; binary < 0; binary += min(-binary, 62) {
		text += fmt.Sprintf("/%d", int64(1)<<min(-binary, 62))
	}

	return text
}
