// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
)

// Fingerprint is what all rows of a database come to, table by table. Two databases with the same fingerprint have the same
// tables with the same rows, whatever their pages look like.
type Fingerprint map[string]TablePrint

// TablePrint is one table's part of a fingerprint.
type TablePrint struct {
	Rows int    `json:"rows" yaml:"rows"`
	Sum  uint64 `json:"sum" yaml:"sum"` // of each row's XXH64, whatever the order of the rows
}

// Fingerprint computes the database's fingerprint.
func (db *DB) Fingerprint(ctx context.Context) (Fingerprint, error) {
	return FingerprintOf(ctx, db.sql)
}

// FingerprintOf computes the fingerprint of a database through any driver whose connections were opened after RegisterSums.
// Values are summed as SQLite holds them, so a driver's own ideas of types do not matter. Many tables go into one statement:
// each takes several messages to libdqlite and back.
func FingerprintOf(ctx context.Context, db *sql.DB) (Fingerprint, error) {
	sums, err := tableSums(ctx, db)
	if err != nil {
		return nil, fmt.Errorf("list the tables: %w", err)
	}

	print := Fingerprint{}
	for some := range slices.Chunk(sums, maxCompound) {
		err = print.add(ctx, db, strings.Join(some, " UNION ALL "))
		if err != nil {
			return nil, fmt.Errorf("read the tables: %w", err)
		}
	}

	return print, nil
}

// maxCompound is how many queries one statement takes; SQLite's bound is 500.
const maxCompound = 250

// tableSums are queries for the name of a table, how many rows it has, and their sum; several of them for a table with many
// columns.
func tableSums(ctx context.Context, db *sql.DB) ([]string, error) {
	rows, err := db.QueryContext(ctx, `SELECT m.name, c.name FROM sqlite_master AS m, pragma_table_info(m.name) AS c `+
		`WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%' ORDER BY m.name, c.cid`)
	if err != nil {
		return nil, err
	}

	defer rows.Close()

	var sums []string
	var table string
	var columns []string
	flush := func() {
		if len(columns) > 0 {
			sums = append(sums, "SELECT "+Literal(table)+", count(*), "+rowSum+"("+strings.Join(columns, ", ")+") FROM "+quote(table))
			columns = nil
		}
	}

	for rows.Next() {
		var next, column string
		err = rows.Scan(&next, &column)
		if err != nil {
			return nil, err
		}

		if next != table || len(columns) == maxSummed {
			flush()
		}

		table, columns = next, append(columns, quote(column))
	}

	flush()
	return sums, rows.Err()
}

// add runs some of those queries.
func (f Fingerprint) add(ctx context.Context, db *sql.DB, query string) error {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return err
	}

	defer rows.Close()

	for rows.Next() {
		var table string
		var count int
		var sum int64
		err = rows.Scan(&table, &count, &sum)
		if err != nil {
			return err
		}

		f[table] = TablePrint{Rows: count, Sum: f[table].Sum + uint64(sum)}
	}

	return rows.Err()
}

// Differ names the tables in which two fingerprints differ.
func (f Fingerprint) Differ(other Fingerprint) []string {
	var tables []string
	for table, p := range f {
		if other[table] != p {
			tables = append(tables, table)
		}
	}

	for table := range other {
		_, ok := f[table]
		if !ok {
			tables = append(tables, table)
		}
	}

	return tables
}
