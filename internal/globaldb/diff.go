// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
)

// RowChange is a row that two databases differ in. Values are SQL literals by column; Before is nil for a row that is new,
// After for one that is gone. In place of a secret there is (secret, sha256 12ab…), which is no literal: the first 16 bits of its sum.
type RowChange struct {
	Table  string            `json:"table" yaml:"table"`
	Key    string            `json:"key" yaml:"key"` // the primary key, as `id=3`
	Before map[string]string `json:"before,omitempty" yaml:"before,omitempty"`
	After  map[string]string `json:"after,omitempty" yaml:"after,omitempty"`

	// Words say which row it is as LXD's users know it; empty where there is nothing to say but table and key.
	Words string `json:"words,omitempty" yaml:"words,omitempty"`

	pointers map[string][2]string // words for changed columns that point to other rows
	secrets  string               // whole sum of the secrets of a row that has come or gone; empty for none
}

// String is the change in one line: what happened to which row, and for a changed one which columns.
func (c RowChange) String() string {
	what, name := c.what()
	columns := c.told()
	if len(columns) == 0 && (c.Before == nil || c.After == nil) {
		return what + " " + name
	}

	parts := make([]string, len(columns))
	for i, column := range columns {
		parts[i] = visible(column) + ": " + c.value(column, shown)
	}

	return what + " " + name + " (" + strings.Join(parts, ", ") + ")"
}

// Says tells whether a text is in what String says, or would be if it said long values to their end. The text is in lower case.
func (c RowChange) Says(text string) bool {
	if strings.Contains(strings.ToLower(c.String()), text) {
		return true
	}

	columns := c.told()
	if _, ok := c.row()["key"]; ok {
		columns = append(columns, "value")
	}

	return slices.ContainsFunc(columns, func(column string) bool {
		return strings.Contains(strings.ToLower(c.value(column, func(literal string) string {
			content, _, ok := decode(literal)
			if !ok {
				content = literal
			}

			return content
		})), text)
	})
}

// row is the row as it is, or as it was before it was deleted.
func (c RowChange) row() map[string]string {
	if c.After == nil {
		return c.Before
	}

	return c.After
}

// what says what was done to what.
func (c RowChange) what() (string, string) {
	row := c.row()
	name := visible(c.Words)
	if name == "" {
		name = visible(c.Table) + " " + visible(c.Key) + label(row)
	}

	inserted, deleted, updated := "insert", "delete", "update"
	if c.Table == schemaTable {
		name = plain(row["type"]) + " " + plain(row["name"])
		inserted, deleted, updated = "create", "drop", "alter"
	}

	switch {
	case c.Before == nil:
		return inserted, name
	case c.After == nil:
		return deleted, name
	}

	return updated, name
}

// told are the columns whose values are told: those that were changed; of a row that has come or gone those that hold JSON, such as
// the rules of an ACL.
func (c RowChange) told() []string {
	if c.Before != nil && c.After != nil {
		return c.changed()
	}

	var columns []string
	row := c.row()
	for _, column := range slices.Sorted(maps.Keys(row)) {
		content, _, ok := decode(row[column])
		if !ok || content == "[]" || content == "{}" {
			continue
		}

		_, ok = fromJSON(content)
		if ok {
			columns = append(columns, column)
		}
	}

	return columns
}

// value tells the value of a column; of a changed row that before and after. show writes a literal.
func (c RowChange) value(column string, show func(string) string) string {
	words, ok := c.pointers[column]
	switch {
	case ok:
		return words[0] + " -> " + words[1]
	case c.Before == nil || c.After == nil:
		return show(c.row()[column])
	}

	return show(c.numbered(column, c.Before[column])) + " -> " + show(c.numbered(column, c.After[column]))
}

func (c RowChange) numbered(column string, value string) string {
	word, ok := numbered[c.Table+"."+column][value]
	if ok {
		return word
	}

	return value
}

// shown is a literal for people: JSON without quotes, and with its texts shortened.
func shown(literal string) string {
	content, _, ok := decode(literal)
	if !ok {
		return printable(literal)
	}

	value, ok := fromJSON(content)
	if ok {
		return shortenTo(maxJSON, visible(toJSON(shortenJSON(value))))
	}

	if !readable(content) {
		return printable(literal)
	}

	return printable(textLiteral(content))
}

func shortenJSON(value any) any {
	switch v := value.(type) {
	case map[string]any:
		for name := range v {
			v[name] = shortenJSON(v[name])
		}
	case []any:
		for i := range v {
			v[i] = shortenJSON(v[i])
		}
	case string:
		return shorten(v)
	}

	return value
}

// conceal replaces secrets, see secrets.go. That a secret was changed must be seen where both look alike.
func (c *RowChange) conceal() {
	before, after := conceal(c.Table, c.Before), conceal(c.Table, c.After)
	for column, value := range after {
		if c.Before[column] != c.After[column] && before[column] == value {
			after[column] = anotherSecret(value)
		}
	}

	switch {
	case c.Before == nil:
		c.secrets = sumOfSecrets(c.After, after)
	case c.After == nil:
		c.secrets = sumOfSecrets(c.Before, before)
	}

	c.Before, c.After = before, after
}

func anotherSecret(shown string) string {
	return strings.Replace(shown, "(secret", "(another secret", 1)
}

// sumOfSecrets sums the values of a row that are shown in another way.
func sumOfSecrets(row map[string]string, shown map[string]string) string {
	var secrets []string
	for _, column := range slices.Sorted(maps.Keys(row)) {
		if row[column] != shown[column] {
			secrets = append(secrets, row[column])
		}
	}

	if len(secrets) == 0 {
		return ""
	}

	sum := sha256.Sum256([]byte(strings.Join(secrets, "\x00")))
	return string(sum[:])
}

// label adds what people call a row by, where it has that.
func label(row map[string]string) string {
	var text string
	for _, column := range []string{"name", "key", "value", "fingerprint"} {
		value, ok := row[column]
		if ok && value != "NULL" {
			text += " " + column + "=" + printable(value)
		}
	}

	return text
}

// Bounds of what is told of a value, in characters.
const (
	maxText = 60
	maxJSON = 400
)

func shorten(value string) string { return shortenTo(maxText, value) }

func shortenTo(most int, value string) string {
	runes := []rune(value)
	if len(runes) > most {
		return string(runes[:most-3]) + "…"
	}

	return value
}

// MaxDiff bounds the changed rows that Diff returns for one table.
const MaxDiff = 1000

// Diff returns the rows by which the database file after differs from before, by table and key, at most MaxDiff a table, and
// the tables that differ in more. Only rows that are returned are held in memory.
func Diff(ctx context.Context, before string, after string) (changes []RowChange, more []string, err error) {
	db, err := openFile(before, "ro")
	if err != nil {
		return nil, nil, err
	}

	defer db.Close()

	_, err = db.ExecContext(ctx, "ATTACH ? AS new", "file:"+(&url.URL{Path: after}).EscapedPath()+"?mode=ro")
	if err != nil {
		return nil, nil, err
	}

	tables, err := stringsOf(ctx, db, `SELECT name FROM (SELECT name, type FROM main.sqlite_master UNION SELECT name, type FROM new.sqlite_master)
		WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name`)
	if err != nil {
		return nil, nil, err
	}

	for _, table := range tables {
		found, all, err := diffTable(ctx, db, table)
		if err != nil {
			return nil, nil, fmt.Errorf("compare table %s: %w", table, err)
		}

		changes = append(changes, found...)
		if !all {
			more = append(more, table)
		}
	}

	return changes, more, describe(ctx, db, changes)
}

// diffTable compares one table in the schemas main and new. all is false where it differs in more rows than are returned.
func diffTable(ctx context.Context, db *sql.DB, table string) (changes []RowChange, all bool, err error) {
	oldColumns, oldKey, err := columnsOf(ctx, db, "main", table)
	if err != nil {
		return nil, false, err
	}

	newColumns, newKey, err := columnsOf(ctx, db, "new", table)
	if err != nil {
		return nil, false, err
	}

	key := newKey
	if len(newColumns) == 0 {
		key = oldKey
	}

	// A table that one side lacks, or that has other columns there, is a change of schema: all its rows are listed.
	rows := difference{table: table, columns: newColumns, key: key, except: slices.Equal(oldColumns, newColumns)}
	come, err := rows.read(ctx, db, "new", "main")
	if err != nil {
		return nil, false, err
	}

	rows.columns = oldColumns
	gone, err := rows.read(ctx, db, "main", "new")
	if err != nil {
		return nil, false, err
	}

	all = len(gone) <= MaxDiff && len(come) <= MaxDiff
	if !all && rows.except && len(key) > 0 {
		// Those of the first keys, from both sides, so that a row that was changed is not taken for one that is gone.
		rows.firstKeys = true
		gone, err = rows.read(ctx, db, "main", "new")
		if err == nil {
			come, err = rows.read(ctx, db, "new", "main")
		}

		if err != nil {
			return nil, false, err
		}
	}

	changes = pair(table, key, rowSet{oldColumns, gone}, rowSet{newColumns, come})
	return changes[:min(len(changes), MaxDiff)], all && len(changes) <= MaxDiff, nil
}

// rowSet is some rows of a table, with the columns that it has there.
type rowSet struct {
	columns []string
	rows    []map[string]string
}

// pair makes one change of a row that is gone and one that has come in its place: the one with the same key.
func pair(table string, key []string, gone rowSet, come rowSet) []RowChange {
	index := map[string]int{}
	var changes []RowChange
	for _, row := range gone.rows {
		index[keyOf(row, key, gone.columns, same)] = len(changes)
		changes = append(changes, RowChange{Table: table, Key: keyOf(conceal(table, row), key, gone.columns, printable), Before: row})
	}

	for _, row := range come.rows {
		i, ok := index[keyOf(row, key, come.columns, same)]
		if ok && changes[i].After == nil {
			changes[i].After = row
			continue
		}

		changes = append(changes, RowChange{Table: table, Key: keyOf(conceal(table, row), key, come.columns, printable), After: row})
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

// difference reads the rows that a table has in one schema and, with except, not in another.
type difference struct {
	table     string
	columns   []string
	key       []string
	except    bool
	firstKeys bool // only those of the first MaxDiff keys whose rows differ
}

// read returns the rows, one more than MaxDiff at most.
func (d difference) read(ctx context.Context, db *sql.DB, schema string, other string) ([]map[string]string, error) {
	if len(d.columns) == 0 {
		return nil, nil
	}

	rows, err := db.QueryContext(ctx, d.query(schema, other))
	if err != nil {
		return nil, err
	}

	defer rows.Close()

	values := make([]string, len(d.columns))
	targets := make([]any, len(d.columns))
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
		for i, c := range d.columns {
			row[c] = values[i]
		}

		all = append(all, row)
	}

	return all, rows.Err()
}

// query makes literals of all values before they are compared, so that 1 and 1.0 differ.
func (d difference) query(schema string, other string) string {
	literals := func(columns []string) string {
		list := make([]string, len(columns))
		for i, c := range columns {
			list[i] = "quote(" + quote(c) + ") AS " + quote(c)
		}

		return strings.Join(list, ", ")
	}

	rows := func(schema string, other string) string {
		text := "SELECT " + literals(d.columns) + " FROM " + schema + "." + quote(d.table)
		if d.except {
			text += " EXCEPT SELECT " + literals(d.columns) + " FROM " + other + "." + quote(d.table)
		}

		return text
	}

	text := rows(schema, other)
	if d.firstKeys {
		keys := make([]string, len(d.key))
		for i, c := range d.key {
			keys[i] = quote(c)
		}

		list := strings.Join(keys, ", ")
		text = fmt.Sprintf("SELECT * FROM (%s) WHERE (%s) IN (SELECT %s FROM (%s) UNION SELECT %s FROM (%s) ORDER BY %s LIMIT %d)",
			text, list, list, rows(schema, other), list, rows(other, schema), list, MaxDiff)
	}

	return text + fmt.Sprintf(" LIMIT %d", MaxDiff+1)
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
