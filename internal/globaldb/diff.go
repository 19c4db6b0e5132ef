package globaldb

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// RowChange is a row that two databases differ in. Values are SQL literals by column; Before is nil for a row that is new,
// After for one that is gone.
type RowChange struct {
	Table  string            `json:"table" yaml:"table"`
	Key    string            `json:"key" yaml:"key"` // the primary key, as `id=3`
	Before map[string]string `json:"before,omitempty" yaml:"before,omitempty"`
	After  map[string]string `json:"after,omitempty" yaml:"after,omitempty"`

	// Words say which row it is as LXD's users know it; empty where there is nothing to say but table and key.
	Words string `json:"words,omitempty" yaml:"words,omitempty"`

	pointers map[string][2]string // words for changed columns that point to other rows
}

// String is the change in one line: what happened to which row, and for a changed one which columns.
func (c RowChange) String() string {
	row := c.After
	if row == nil {
		row = c.Before
	}

	name := c.Words
	if name == "" {
		name = c.Table + " " + c.Key + label(row)
	}

	switch {
	case c.Before == nil:
		return "insert " + name
	case c.After == nil:
		return "delete " + name
	}

	var columns []string
	for column, value := range c.After {
		words, ok := c.pointers[column]
		switch {
		case ok:
			columns = append(columns, fmt.Sprintf("%s: %s -> %s", column, words[0], words[1]))
		case c.Before[column] != value:
			columns = append(columns, fmt.Sprintf("%s: %s -> %s", column, shorten(c.Before[column]), shorten(value)))
		}
	}

	slices.Sort(columns)
	return "update " + name + " (" + strings.Join(columns, ", ") + ")"
}

// label adds what people call a row by, where it has that.
func label(row map[string]string) string {
	var text string
	for _, column := range []string{"name", "key", "value", "fingerprint"} {
		value, ok := row[column]
		if ok && value != "NULL" {
			text += " " + column + "=" + shorten(value)
		}
	}

	return text
}

func shorten(value string) string {
	runes := []rune(value)
	if len(runes) > 60 {
		return string(runes[:57]) + "…"
	}

	return value
}

// maxDiff bounds the changed rows that Diff returns for one table.
const maxDiff = 1000

// Diff returns the rows by which the database file after differs from before, by table and key, at most 1000 a table. Only
// rows that differ are held in memory.
func Diff(ctx context.Context, before string, after string) ([]RowChange, error) {
	db, err := openFile(before, "ro")
	if err != nil {
		return nil, err
	}

	defer db.Close()

	_, err = db.ExecContext(ctx, "ATTACH ? AS new", "file:"+(&url.URL{Path: after}).EscapedPath()+"?mode=ro")
	if err != nil {
		return nil, err
	}

	tables, err := stringsOf(ctx, db, `SELECT name FROM (SELECT name, type FROM main.sqlite_master UNION SELECT name, type FROM new.sqlite_master)
		WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name`)
	if err != nil {
		return nil, err
	}

	var changes []RowChange
	for _, table := range tables {
		found, err := diffTable(ctx, db, table)
		if err != nil {
			return nil, fmt.Errorf("compare table %s: %w", table, err)
		}

		changes = append(changes, found...)
	}

	return changes, describe(ctx, db, changes)
}

// diffTable compares one table in the schemas main and new.
func diffTable(ctx context.Context, db *sql.DB, table string) ([]RowChange, error) {
	oldColumns, _, err := columnsOf(ctx, db, "main", table)
	if err != nil {
		return nil, err
	}

	newColumns, newKey, err := columnsOf(ctx, db, "new", table)
	if err != nil {
		return nil, err
	}

	// A table that one side lacks, or that has other columns there, is a change of schema: all its rows are listed.
	except := slices.Equal(oldColumns, newColumns)
	key := newKey
	if len(newColumns) == 0 {
		_, key, err = columnsOf(ctx, db, "main", table)
		if err != nil {
			return nil, err
		}
	}

	gone, err := rowsOf(ctx, db, "main", "new", table, oldColumns, except)
	if err != nil {
		return nil, err
	}

	come, err := rowsOf(ctx, db, "new", "main", table, newColumns, except)
	if err != nil {
		return nil, err
	}

	return pair(table, key, oldColumns, gone, newColumns, come), nil
}

// pair makes one change of a row that is gone and one that has come in its place: the one with the same key.
func pair(table string, key []string, oldColumns []string, gone []map[string]string, newColumns []string, come []map[string]string) []RowChange {
	index := map[string]int{}
	var changes []RowChange
	for _, row := range gone {
		index[keyOf(row, key, oldColumns, same)] = len(changes)
		changes = append(changes, RowChange{Table: table, Key: keyOf(row, key, oldColumns, shorten), Before: row})
	}

	for _, row := range come {
		i, ok := index[keyOf(row, key, newColumns, same)]
		if ok && changes[i].After == nil {
			changes[i].After = row
			continue
		}

		changes = append(changes, RowChange{Table: table, Key: keyOf(row, key, newColumns, shorten), After: row})
	}

	return changes
}

// columnsOf returns a table's columns, and those of its primary key; none where the schema has no such table.
func columnsOf(ctx context.Context, db *sql.DB, schema string, table string) (columns []string, key []string, err error) {
	rows, err := db.QueryContext(ctx, "SELECT name, pk FROM pragma_table_info(?, ?) ORDER BY cid", table, schema)
	if err != nil {
		return nil, nil, err
	}

	defer rows.Close()

	for rows.Next() {
		var name string
		var pk int
		err = rows.Scan(&name, &pk)
		if err != nil {
			return nil, nil, err
		}

		columns = append(columns, name)
		if pk > 0 {
			key = append(key, name)
		}
	}

	return columns, key, rows.Err()
}

// rowsOf returns the rows that a table has in one schema and, with except, not in the other.
func rowsOf(ctx context.Context, db *sql.DB, schema string, other string, table string, columns []string, except bool) ([]map[string]string, error) {
	if len(columns) == 0 {
		return nil, nil
	}

	quoted := make([]string, len(columns))
	for i, c := range columns {
		quoted[i] = "quote(" + quote(c) + ")"
	}

	list := strings.Join(quoted, ", ")
	query := "SELECT " + list + " FROM " + schema + "." + quote(table)
	if except {
		query += " EXCEPT SELECT " + list + " FROM " + other + "." + quote(table)
	}

	rows, err := db.QueryContext(ctx, query+fmt.Sprintf(" LIMIT %d", maxDiff))
	if err != nil {
		return nil, err
	}

	defer rows.Close()

	values := make([]string, len(columns))
	targets := make([]any, len(columns))
	for i := range values {
		targets[i] = &values[i]
	}

	var all []map[string]string
	for rows.Next() {
		err = rows.Scan(targets...)
		if err != nil {
			return nil, err
		}

		row := map[string]string{}
		for i, c := range columns {
			row[c] = values[i]
		}

		all = append(all, row)
	}

	return all, rows.Err()
}

// keyOf writes a row's primary key; a table without one is known by all its columns.
func keyOf(row map[string]string, key []string, columns []string, write func(string) string) string {
	if len(key) == 0 {
		key = columns
	}

	parts := make([]string, len(key))
	for i, c := range key {
		parts[i] = c + "=" + write(row[c])
	}

	return strings.Join(parts, ",")
}

func same(value string) string { return value }
