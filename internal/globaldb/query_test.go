// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// openMade opens a database made by statements, as a replayed one is.
func openMade(t testing.TB, statements ...string) *DB {
	t.Helper()
	file := makeDB(t, statements...)
	db, err := openFile(file, "ro")
	must(t, err)
	d := &DB{sql: db, File: file, remove: func() {}}
	t.Cleanup(func() { must(t, d.Close()) })
	return d
}

// rowsOfQuery is what a statement returns, as text that tells the types apart.
func rowsOfQuery(t testing.TB, db *DB, statement string) []string {
	t.Helper()
	var all []string
	must(t, db.Query(t.Context(), statement, Receiver{
		Columns: func([]string) error { return nil },
		Row: func(values []any) error {
			row := ""
			for _, v := range values {
				row += fmt.Sprintf("%T %q, ", v, fmt.Sprint(v))
			}

			all = append(all, row)
			return nil
		},
	}))
	return all
}

// Values come as they are stored, whatever the columns are declared as.
func TestQueryValues(t *testing.T) {
	db := openMade(t, "CREATE TABLE t (id INTEGER PRIMARY KEY, at DATETIME, yes BOOLEAN, day DATE, v)",
		"INSERT INTO t VALUES (1, '2026-11-22T10:00:00.123456789+01:00', 7, 'nonsense', x'00ff'), (2, 1500000000000, 0, '', NULL), (3, NULL, 'true', 3.0, 3.0)")
	got := rowsOfQuery(t, db, "SELECT * FROM t ORDER BY id -- all of them")
	want := []string{
		`int64 "1", string "2026-11-22T10:00:00.123456789+01:00", int64 "7", string "nonsense", []uint8 "[0 255]", `,
		`int64 "2", int64 "1500000000000", int64 "0", string "", <nil> "<nil>", `,
		`int64 "3", <nil> "<nil>", string "true", int64 "3", float64 "3", `,
	}

	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// SQLite itself refuses everything that is not reading, and nothing that is.
func TestQueryOnlyReads(t *testing.T) {
	db := openMade(t, "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT)", "INSERT INTO t VALUES (1, 'one')",
		"CREATE VIEW v AS SELECT * FROM t", "CREATE INDEX byname ON t (name)")
	before, err := os.ReadFile(db.File)
	must(t, err)
	target := filepath.Join(t.TempDir(), "written")
	nothing := Receiver{Columns: func([]string) error { return nil }, Row: func([]any) error { return nil }}
	for _, statement := range []string{
		"INSERT INTO t VALUES (2, 'two')", "UPDATE t SET name = 'x'", "DELETE FROM t", "REPLACE INTO t VALUES (1, 'x')", "DROP TABLE t",
		"CREATE TABLE u (id)", "CREATE TEMP TABLE u (id)", "CREATE INDEX i ON t (name)", "ALTER TABLE t RENAME TO u", "VACUUM", "ANALYZE", "REINDEX",
		"VACUUM INTO '" + target + "'", "ATTACH '" + target + "' AS x", "DETACH main", "PRAGMA writable_schema = 1", "PRAGMA journal_mode = WAL",
		"PRAGMA user_version = 7", "PRAGMA query_only = 0", "PRAGMA foreign_keys = OFF", "PRAGMA temp_store_directory = '/tmp'", "PRAGMA optimize",
		"PRAGMA wal_checkpoint", "SELECT load_extension('" + target + "')", "select LOAD_EXTENSION('x', 'y')", "EXPLAIN DELETE FROM t",
		"WITH x AS (SELECT 1) DELETE FROM t", "CREATE VIRTUAL TABLE f USING fts5(x)", "SAVEPOINT a",
		"UPDATE sqlite_master SET sql = ''", "INSERT INTO t SELECT * FROM t RETURNING id",
	} {
		err := db.Query(t.Context(), statement, nothing)
		if !errors.Is(err, ErrReadOnly) {
			t.Errorf("%s: %v", statement, err)
		}
	}

	for _, statement := range []string{
		"SELECT name FROM pragma_table_info('t') ORDER BY cid", "SELECT * FROM v",
		"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9) SELECT * FROM n", "EXPLAIN SELECT 1", "PRAGMA table_info(t)",
		"PRAGMA integrity_check", "SELECT * FROM pragma_table_info('t')", "SELECT * FROM json_each('[1]')", "BEGIN", "VALUES (1), (2)", "PRAGMA user_version",
	} {
		first := &DB{}
		first.sql, err = openFile(db.File, "ro") // each is the first statement of its connection
		must(t, err)
		err := first.Query(t.Context(), statement, nothing)
		must(t, first.sql.Close())
		if err != nil {
			t.Errorf("%s: %v", statement, err)
		}
	}

	after, err := os.ReadFile(db.File)
	must(t, err)
	if !bytes.Equal(before, after) {
		t.Error("the file was changed")
	}

	_, err = os.Stat(target)
	if !errors.Is(err, os.ErrNotExist) {
		t.Error("a file was written")
	}
}

// A query that never ends ends with its context, before its first row and after it.
func TestQueryEnds(t *testing.T) {
	db := openMade(t, "CREATE TABLE t (id)")
	for _, statement := range []string{
		"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
		"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT * FROM n",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		begin := time.Now()
		err := db.Query(ctx, statement, Receiver{Columns: func([]string) error { return nil }, Row: func([]any) error { return nil }})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 5*time.Second {
			t.Errorf("%s: %v after %s", statement, err, time.Since(begin))
		}
	}
}

func TestStatements(t *testing.T) {
	for text, want := range map[string][]string{
		"":                            nil,
		" ;; \n-- nothing\n;/* no */": nil,
		"SELECT 1":                    {"SELECT 1"},
		"SELECT 1; SELECT 2;\n":       {"SELECT 1", "SELECT 2"},
		"SELECT ';'';', \"a;\"\"b\", `;`, [;] ; SELECT 2": {"SELECT ';'';', \"a;\"\"b\", `;`, [;]", "SELECT 2"},
		"SELECT 1 -- a; b\n, 2; SELECT /* ; */ 3":         {"SELECT 1 -- a; b\n, 2", "SELECT /* ; */ 3"},
		"SELECT 1; -- a;b\n.tables":                       {"SELECT 1", ".tables"},
		".tables\nSELECT 1;\n  .schema t\n.dump":          {".tables", "SELECT 1", ".schema t", ".dump"},
		"SELECT\n.5":                                      {"SELECT\n.5"},
		"SELECT 'not closed; SELECT 2":                    {"SELECT 'not closed; SELECT 2"},
		"-- first\nSELECT 1":                              {"SELECT 1"},
	} {
		got, err := Statements(text)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: got %q, %v, want %q", text, got, err, want)
		}
	}

	_, err := Statements("SELECT 1\x00; DELETE")
	if err == nil {
		t.Error("a NUL is accepted")
	}
}

// nasty is a database with everything that a dump can get wrong.
var nasty = []string{
	"PRAGMA user_version = 73", "PRAGMA foreign_keys = OFF",
	"CREATE TABLE child (id INTEGER PRIMARY KEY AUTOINCREMENT, parent INTEGER NOT NULL REFERENCES parent (id), self INTEGER REFERENCES child (id))",
	"CREATE TABLE parent (id INTEGER PRIMARY KEY, name TEXT UNIQUE)",
	"INSERT INTO child VALUES (7, 2, 9), (9, 1, 7), (100, 1, NULL)", "DELETE FROM child WHERE id = 100",
	"INSERT INTO parent VALUES (1, 'one'), (2, NULL)",
	`CREATE TABLE "we""ird 'name';" ("col umn" TEXT, "sel""ect", "order" REAL, at DATETIME, yes BOOLEAN, PRIMARY KEY ("sel""ect")) WITHOUT ROWID`,
	`INSERT INTO "we""ird 'name';" VALUES ('it''s; "x"', x'', 3.0, '2026-01-01', 'yes'), ('', 'text', 1e300, 'nonsense', 5), ` +
		`(NULL, x'00ff27', -0.5, NULL, 1), (NULL, -9223372036854775808, 0, 17, 0)`,
	"CREATE TABLE bag (v, g INTEGER GENERATED ALWAYS AS (length(v)) VIRTUAL, s TEXT GENERATED ALWAYS AS (v || '!') STORED)",
	"INSERT INTO bag (v) VALUES ('same'), ('same'), (9223372036854775807), (9e999), (-9e999), (3.0), ('3.0'), ('3'), (3), (CAST(x'ff00fe' AS TEXT))",
	"INSERT INTO bag (v) VALUES ('line' || char(10) || 'two'), ('cr' || char(13) || char(10) || '.dump'), ('nul' || char(0) || 'behind'), " +
		"(char(10) || ';' || char(10) || '/' || char(10) || 'go' || char(10)), ('héé€𝄞'), (char(27) || '[2J')",
	"CREATE INDEX byname ON parent (name DESC) WHERE name IS NOT NULL", "CREATE UNIQUE INDEX expr ON bag (v, length(v)) WHERE 0",
	"CREATE TABLE audit (what TEXT)",
	"CREATE VIEW names AS SELECT name, ';' AS semicolon FROM parent",
	"CREATE TRIGGER t AFTER INSERT ON parent BEGIN INSERT INTO audit VALUES ('parent; ' || new.name); DELETE FROM child WHERE 0; END",
	"CREATE TRIGGER onview INSTEAD OF INSERT ON names BEGIN INSERT INTO parent (name) VALUES (new.name); END",
	"ANALYZE",
}

// A dump is read back to the same schema and rows, to the type and bit, by the sqlite3 shell's rules and by the library.
func TestDumpRoundTrip(t *testing.T) {
	statements := slices.Clone(nasty)
	random := rand.New(rand.NewPCG(1, 2))
	for i := 0; i < 3000; i++ {
		v := math.Float64frombits(random.Uint64())
		if i%2 == 0 {
			v = (random.Float64() - 0.5) * 1e6
		}

		if !math.IsNaN(v) {
			statements = append(statements, "INSERT INTO bag (v) VALUES ("+exactReal(v)+")")
		}
	}

	for _, v := range []float64{5e-324, math.MaxFloat64, 2.2250738585072014e-308, 0.1, 1e22, 1e23, 123456789012345678} {
		statements = append(statements, "INSERT INTO bag (v) VALUES ("+exactReal(v)+")")
	}

	db := openMade(t, "BEGIN; "+strings.Join(statements, ";\n")+"; COMMIT")
	var dump bytes.Buffer
	must(t, db.Dump(t.Context(), &dump))
	again := openMade(t, dump.String())
	wantSame(t, db, again)

	// What the shell does to its input: a carriage return before the end of a line is dropped.
	if bytes.Contains(dump.Bytes(), []byte("\r")) || bytes.Contains(dump.Bytes(), []byte{0}) {
		t.Error("the dump holds characters that the sqlite3 shell drops")
	}
}

// exactReal is a way of making a real in SQLite that does not go through a decimal.
func exactReal(v float64) string {
	fraction, exponent := math.Frexp(v)
	sum := fmt.Sprintf("%d*1.0", int64(math.Ldexp(fraction, 53)))
	for exponent -= 53; exponent >= 10; exponent -= 10 {
		sum += "*1024"
	}

	for ; exponent > 0; exponent-- {
		sum += "*2"
	}

	for ; exponent <= -10; exponent += 10 {
		sum += "/1024"
	}

	for ; exponent < 0; exponent++ {
		sum += "/2"
	}

	return sum
}

// wantSame checks that two databases have the same schema and the same rows.
func wantSame(t testing.TB, a *DB, b *DB) {
	t.Helper()
	objects, err := a.Schema(t.Context(), "")
	must(t, err)
	others, err := b.Schema(t.Context(), "")
	must(t, err)
	order := func(x, y SchemaObject) int { return strings.Compare(x.Type+x.Name, y.Type+y.Name) }
	slices.SortFunc(objects, order)
	slices.SortFunc(others, order)
	if !slices.Equal(objects, others) {
		t.Errorf("schema\n%q\nis not\n%q", others, objects)
	}

	for _, o := range objects {
		if o.Type != "table" {
			continue
		}

		query := "SELECT * FROM " + quote(o.Name)
		want, got := rowsOfQuery(t, a, query), rowsOfQuery(t, b, query)
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(want, got) {
			t.Errorf("table %s: %d rows\n%.2000q\nare not %d\n%.2000q", o.Name, len(got), got, len(want), want)
		}
	}

	for _, pragma := range []string{"user_version", "application_id"} {
		w, g := rowsOfQuery(t, a, "PRAGMA "+pragma), rowsOfQuery(t, b, "PRAGMA "+pragma)
		if !slices.Equal(w, g) {
			t.Errorf("%s %v, want %v", pragma, g, w)
		}
	}
}

func TestSchema(t *testing.T) {
	db := openMade(t, nasty...)
	found, err := db.Schema(t.Context(), "PARENT")
	must(t, err)
	var names []string
	for _, o := range found {
		names = append(names, o.Name)
	}

	if !slices.Equal(names, []string{"parent", "sqlite_autoindex_parent_1", "byname", "t"}) {
		t.Error(names)
	}

	_, err = db.Schema(t.Context(), "nosuch")
	if err == nil {
		t.Error("nosuch is found")
	}
}
