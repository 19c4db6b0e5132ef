// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
)

// stepDiff compares two database files that are one transaction apart, over and over, each time knowing which pages that
// transaction wrote. What it costs depends on these pages and not on the size of the database: rows that differ must lie in a
// page that was written, or in one that went from one table to another or to the free ones. Where that cannot be told for
// sure the whole table is compared, as Diff does it.
//
// The files change under the connection that looks at them, between statements; the change counter tells SQLite so.
type stepDiff struct {
	db      *sql.DB // main is the file before, new is the one after
	before  *os.File
	pages   owners // of the file after
	tables  map[string]stepTable
	counter uint32
}

// stepTable is what the schema says about a table.
type stepTable struct {
	root uint32
	sql  string
}

// newStepDiff begins with two files that are the same.
func newStepDiff(ctx context.Context, before *os.File, after *os.File) (*stepDiff, error) {
	db, err := openFile(before.Name(), "ro")
	if err != nil {
		return nil, err
	}

	d := &stepDiff{db: db, before: before, pages: owners{file: after}}
	err = d.stamp()
	if err == nil {
		_, err = db.ExecContext(ctx, "ATTACH ? AS new", "file:"+(&url.URL{Path: after.Name()}).EscapedPath()+"?mode=ro")
	}

	if err == nil {
		err = d.look(ctx, nil)
	}

	if err != nil {
		_ = db.Close()
		return nil, err
	}

	return d, nil
}

func (d *stepDiff) Close() error { return d.db.Close() }

// stamp gives both files a change counter that SQLite has not seen in them yet.
func (d *stepDiff) stamp() error {
	const offCounter, offValidFor = 24, 92
	d.counter++
	value := []byte{byte(d.counter >> 24), byte(d.counter >> 16), byte(d.counter >> 8), byte(d.counter)}
	for _, f := range []*os.File{d.before, d.pages.file} {
		info, err := f.Stat()
		if err != nil {
			return err
		}

		if info.Size() == 0 { // no database yet
			continue
		}

		for _, at := range []int64{offCounter, offValidFor} {
			_, err = f.WriteAt(value, at)
			if err != nil {
				return err
			}
		}
	}

	return nil
}

// look learns what is in the file after, in which the pages with these numbers were written; nil stands for all.
func (d *stepDiff) look(ctx context.Context, written []uint32) error {
	cookie := d.pages.cookie
	changed, err := d.pages.read(written)
	if err != nil {
		return err
	}

	if d.tables == nil || d.pages.cookie != cookie {
		d.tables, err = d.schema(ctx)
		if err != nil {
			return err
		}

		changed = true
	}

	if changed || d.pages.strange {
		var roots []uint32
		if len(d.pages.pages) > 1 {
			roots, err = d.roots(ctx)
			if err != nil {
				return err
			}
		}

		d.pages.walk(roots)
	}

	return nil
}

// schema returns the tables of the file after. SQLite's own are left out but for the schema itself.
func (d *stepDiff) schema(ctx context.Context) (map[string]stepTable, error) {
	rows, err := d.db.QueryContext(ctx, "SELECT name, rootpage, coalesce(sql, '') FROM new.sqlite_master "+
		"WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND rootpage > 0")
	if err != nil {
		return nil, err
	}

	defer rows.Close()

	tables := map[string]stepTable{}
	for rows.Next() {
		var name string
		var t stepTable
		err = rows.Scan(&name, &t.root, &t.sql)
		if err != nil {
			return nil, err
		}

		tables[name] = t
	}

	return tables, rows.Err()
}

// roots returns the root pages of everything in the file after.
func (d *stepDiff) roots(ctx context.Context) ([]uint32, error) {
	rows, err := d.db.QueryContext(ctx, "SELECT DISTINCT rootpage FROM new.sqlite_master WHERE rootpage > 1")
	if err != nil {
		return nil, err
	}

	defer rows.Close()

	roots := []uint32{1}
	for rows.Next() {
		var root uint32
		err = rows.Scan(&root)
		if err != nil {
			return nil, err
		}

		roots = append(roots, root)
	}

	return roots, rows.Err()
}

// schemaTable is the name that a change of the schema goes by.
const schemaTable = "sqlite_schema"

// step returns the rows by which the file after differs from before, after the pages with these numbers were written to the
// former; more tells that there are more than MaxDiff in a table. The file before must be brought to the same state
// afterwards.
func (d *stepDiff) step(ctx context.Context, written []uint32) (changes []RowChange, more bool, err error) {
	err = d.stamp()
	if err != nil {
		return nil, false, err
	}

	tables, pages := d.tables, d.pages // as they were
	kinds := map[uint32]pageKind{}
	for _, number := range written {
		kinds[number] = pages.kind(number)
	}

	err = d.look(ctx, written)
	if err != nil {
		return nil, false, err
	}

	suspects := d.suspect(pages, kinds)
	all := pages.strange || d.pages.strange
	names := slices.Sorted(maps.Keys(tables))
	for name := range d.tables {
		_, ok := tables[name]
		if !ok {
			names = append(names, name)
		}
	}

	slices.Sort(names)
	for _, name := range names {
		was, is := tables[name], d.tables[name]
		s := suspects[is.root]
		if !all && was == is && s == nil {
			continue
		}

		var found []RowChange
		whole := false
		if all || was != is || s.vague {
			found, whole, err = diffTable(ctx, d.db, name)
		} else {
			found, whole, err = d.rows(ctx, name, s)
		}

		if err != nil {
			return nil, false, fmt.Errorf("compare table %s: %w", name, err)
		}

		more = more || !whole
		changes = append(changes, found...)
	}

	if all || pages.cookie != d.pages.cookie {
		found, err := diffSchema(ctx, d.db)
		if err != nil {
			return nil, false, err
		}

		changes = append(changes, found...)
	}

	return changes, more, describe(ctx, d.db, changes)
}

// suspect returns the b-trees in which rows may have changed. pages is how the file before has them; kinds are the pages that were
// written, with what they were before that.
func (d *stepDiff) suspect(pages owners, kinds map[uint32]pageKind) suspicions {
	suspects := suspicions{}
	for number, kind := range kinds {
		suspects.was(pages.of(number), number, kind)
		suspects.is(d.pages.of(number), number, d.pages.kind(number))
	}

	walkedAgain := len(pages.owner) != len(d.pages.owner) || len(pages.owner) > 0 && &pages.owner[0] != &d.pages.owner[0]
	if !walkedAgain {
		return suspects
	}

	for i := range max(len(pages.owner), len(d.pages.owner)) {
		number := uint32(i)
		was, is := pages.of(number), d.pages.of(number)
		_, written := kinds[number]
		if was == is || written {
			continue
		}

		suspects.was(was, number, pages.kind(number))
		suspects.is(is, number, d.pages.kind(number))
	}

	return suspects
}

// suspicion is what is known about the pages of one b-tree in which rows may have changed.
type suspicion struct {
	vague   bool     // the rows in them cannot be told by their keys: an index, a table without rowid, an overflow page
	was, is []uint32 // leaves of a table in the file before, and in the one after
}

// suspicions are by root.
type suspicions map[uint32]*suspicion

func (all suspicions) of(root uint32, kind pageKind) *suspicion {
	s := all[root]
	if s == nil {
		s = &suspicion{}
		all[root] = s
	}

	s.vague = s.vague || kind != tableLeaf && kind != tableInterior
	return s
}

// was notes a page of the file before; one without a root is a free one.
func (all suspicions) was(root uint32, number uint32, kind pageKind) {
	if root == 0 {
		return
	}

	s := all.of(root, kind)
	if kind == tableLeaf {
		s.was = append(s.was, number)
	}
}

// is notes a page of the file after.
func (all suspicions) is(root uint32, number uint32, kind pageKind) {
	if root == 0 {
		return
	}

	s := all.of(root, kind)
	if kind == tableLeaf {
		s.is = append(s.is, number)
	}
}

// rows compares the rows of a table that lie in certain leaves. all is false where more of them differ than are returned.
func (d *stepDiff) rows(ctx context.Context, table string, s *suspicion) (changes []RowChange, all bool, err error) {
	columns, key, err := columnsOf(ctx, d.db, "main", table)
	if err != nil {
		return nil, false, err
	}

	rowid := rowidName(columns)
	if rowid == "" {
		return diffTable(ctx, d.db, table)
	}

	keys := map[int64]bool{}
	add := func(k int64) { keys[k] = true }
	before := owners{file: d.before, reserved: d.pages.reserved}
	for _, number := range s.was {
		err = before.rowids(number, add)
		if err != nil {
			return nil, false, err
		}
	}

	for _, number := range s.is {
		err = d.pages.rowids(number, add)
		if err != nil {
			return nil, false, err
		}
	}

	wanted, err := json.Marshal(slices.Sorted(maps.Keys(keys)))
	if err != nil {
		return nil, false, err
	}

	some := rowsByID{table: table, rowid: rowid, columns: columns, wanted: string(wanted)}
	was, err := some.read(ctx, d.db, "main")
	if err != nil {
		return nil, false, err
	}

	is, err := some.read(ctx, d.db, "new")
	if err != nil {
		return nil, false, err
	}

	var gone, come []map[string]string
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		if maps.Equal(was[k], is[k]) {
			continue
		}

		if was[k] != nil {
			gone = append(gone, was[k])
		}

		if is[k] != nil {
			come = append(come, is[k])
		}
	}

	changes = pair(table, key, rowSet{columns, gone}, rowSet{columns, come})
	changes = slices.DeleteFunc(changes, func(c RowChange) bool { return maps.Equal(c.Before, c.After) })
	return changes[:min(len(changes), MaxDiff)], len(changes) <= MaxDiff, nil
}

// rowidName is a name of the rowid that no column has taken; empty where there is none.
func rowidName(columns []string) string {
	for _, name := range []string{"rowid", "_rowid_", "oid"} {
		if !slices.ContainsFunc(columns, func(c string) bool { return strings.EqualFold(c, name) }) {
			return name
		}
	}

	return ""
}

// rowsByID asks for the rows of a table with certain rowids.
type rowsByID struct {
	table   string
	rowid   string // the name that it goes by there
	columns []string
	wanted  string // a JSON list
}

// read returns the rows in one of the two files, by rowid.
func (r rowsByID) read(ctx context.Context, db *sql.DB, schema string) (map[int64]map[string]string, error) {
	quoted := make([]string, len(r.columns))
	for i, c := range r.columns {
		quoted[i] = "quote(" + quote(c) + ")"
	}

	rows, err := db.QueryContext(ctx, fmt.Sprintf("SELECT %s, %s FROM %s.%s WHERE %s IN (SELECT value FROM json_each(?))",
		r.rowid, strings.Join(quoted, ", "), schema, quote(r.table), r.rowid), r.wanted)
	if err != nil {
		return nil, err
	}

	defer rows.Close()

	var k int64
	values := make([]string, len(r.columns))
	targets := []any{&k}
	for i := range values {
		targets = append(targets, &values[i])
	}

	found := map[int64]map[string]string{}
	for rows.Next() {
		err = rows.Scan(targets...)
		if err != nil {
			return nil, err
		}

		row := map[string]string{}
		for i, c := range r.columns {
			row[c] = values[i]
		}

		found[k] = row
	}

	return found, rows.Err()
}

// diffSchema returns what was created, dropped or altered.
func diffSchema(ctx context.Context, db *sql.DB) ([]RowChange, error) {
	rows := difference{table: "sqlite_master", columns: []string{"type", "name", "tbl_name", "sql"}, except: true} // all but the place in the file
	gone, err := rows.read(ctx, db, "main", "new")
	if err != nil {
		return nil, err
	}

	come, err := rows.read(ctx, db, "new", "main")
	if err != nil {
		return nil, err
	}

	// An index without SQL of its own comes and goes with its table.
	own := func(row map[string]string) bool { return row["sql"] == "NULL" }
	gone, come = slices.DeleteFunc(gone, own), slices.DeleteFunc(come, own)
	return pair(schemaTable, []string{"type", "name"}, rowSet{rows.columns, gone}, rowSet{rows.columns, come}), nil
}
