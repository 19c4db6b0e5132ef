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
	Rows int    `json:"rows"`
	Sum  uint64 `json:"sum"` // of the first 8 bytes of each row's SHA-256, whatever the order of the rows
}

// Fingerprint computes the database's fingerprint.
func (db *DB) Fingerprint(ctx context.Context) (Fingerprint, error) {
	return FingerprintOf(ctx, db.sql)
}

// FingerprintOf computes the fingerprint of a database behind any driver whose connections were opened after RegisterSums.
// Values are summed as SQLite holds them, so a driver's own ideas of types do not matter.
func FingerprintOf(ctx context.Context, db *sql.DB) (Fingerprint, error) {
	tables, err := stringsOf(ctx, db, "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name")
	if err != nil {
		return nil, err
	}

	prints := Fingerprint{}
	for _, table := range tables {
		prints[table], err = tablePrint(ctx, db, table)
		if err != nil {
			return nil, fmt.Errorf("read table %s: %w", table, err)
		}
	}

	return prints, nil
}

func tablePrint(ctx context.Context, db *sql.DB, table string) (TablePrint, error) {
	var p TablePrint
	columns, err := stringsOf(ctx, db, "SELECT name FROM pragma_table_info('"+strings.ReplaceAll(table, "'", "''")+"') ORDER BY cid")
	if err != nil {
		return p, err
	}

	selected := "count(*)"
	for group := range slices.Chunk(columns, maxSummed) {
		for i, c := range group {
			group[i] = quote(c)
		}

		selected += ", " + rowSum + "(" + strings.Join(group, ", ") + ")"
	}

	sums := make([]int64, (len(columns)+maxSummed-1)/maxSummed)
	into := []any{&p.Rows}
	for i := range sums {
		into = append(into, &sums[i])
	}

	err = db.QueryRowContext(ctx, "SELECT "+selected+" FROM "+quote(table)).Scan(into...)
	for _, sum := range sums {
		p.Sum += uint64(sum)
	}

	return p, err
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
