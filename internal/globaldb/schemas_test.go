// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

var update = flag.Bool("update", false, "write the words of every table anew into testdata")

// filler inserts a row into a table, and before that one into each table that it points to.
type filler struct {
	t    testing.TB
	db   *sql.DB
	rows map[string]map[string]string // the row of each table, as literals
}

// column is a column of a table as SQLite tells it.
type column struct {
	name, kind    string
	notNull, key  bool
	table, target string // what it points to
}

func (f *filler) columns(table string) []column {
	f.t.Helper()
	rows, err := f.db.Query(`SELECT c.name, c.type, c."notnull", c.pk > 0, coalesce(k."table", ''), coalesce(k."to", 'id') FROM pragma_table_info(?) AS c
		LEFT JOIN pragma_foreign_key_list(?) AS k ON k."from" = c.name ORDER BY c.cid`, table, table)
	must(f.t, err)
	defer rows.Close()
	var all []column
	for rows.Next() {
		var c column
		must(f.t, rows.Scan(&c.name, &c.kind, &c.notNull, &c.key, &c.table, &c.target))
		all = append(all, c)
	}

	must(f.t, rows.Err())
	return all
}

// row inserts the row of a table, unless it is there, and returns it.
func (f *filler) row(table string) map[string]string {
	f.t.Helper()
	if f.rows[table] != nil {
		return f.rows[table]
	}

	row := map[string]string{}
	f.rows[table] = row
	var names, values []string
	for _, c := range f.columns(table) {
		value := f.value(table, c)
		if value == "" {
			continue
		}

		row[c.name] = value
		names, values = append(names, quote(c.name)), append(values, value)
	}

	_, err := f.db.Exec("INSERT INTO " + quote(table) + " (" + strings.Join(names, ", ") + ") VALUES (" + strings.Join(values, ", ") + ")")
	if err != nil {
		f.t.Fatalf("insert into %s: %v", table, err)
	}

	return row
}

// value is what the row of a table has in a column; empty for nothing. An id tells the table, so that no two are the same.
func (f *filler) value(table string, c column) string {
	switch {
	case c.table == table:
		return ""
	case c.table != "":
		return f.row(c.table)[c.target]
	case c.key && c.name == "id":
		return fmt.Sprint(5000 + len(f.rows))
	case c.name == "id": // a snapshot's, which must not be a volume's
		return fmt.Sprint(6000 + len(f.rows))
	case c.name == "entity_type" || c.name == "entity_type_code":
		return "5"
	case c.name == "entity_id":
		return f.row("instances")["id"]
	case c.name == "key":
		return "'some.setting'"
	case c.name == "fingerprint":
		return "'0123456789abcdef'"
	case strings.Contains(c.kind, "INT"):
		return "3"
	case strings.Contains(c.kind, "DATE"):
		return wordsTime
	}

	return "'" + c.name + " of " + table + "'"
}

// fill inserts a row into every table of an LXD's database.
func fill(t testing.TB, file string) []string {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+file+"?_foreign_keys=1")
	must(t, err)
	defer db.Close()
	db.SetMaxOpenConns(1)
	tables, err := stringsOf(t.Context(), db, "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name")
	must(t, err)
	f := &filler{t: t, db: db, rows: map[string]map[string]string{}}
	for _, table := range tables {
		f.row(table)
	}

	return tables
}

// Every table of every LXD that there is a database of: how a row of it is told, and that nothing of it is told that is a secret. What
// the words are is in testdata; `go test -run TestEveryTable -update` writes them.
func TestEveryTable(t *testing.T) {
	history := func(name raftlogtest.HistoryName) func(string) {
		return func(file string) {
			h := raftlogtest.HistoryOf(t, name)
			must(t, os.WriteFile(file, h.Database(h.Last()), 0o600))
		}
	}
	for schema, write := range map[string]func(file string){
		"60 of LXD 5.0.2": history(raftlogtest.Member502),
		"78 of LXD 6.6":   history(raftlogtest.Member66),
		"88 of LXD 6.9":   func(file string) { must(t, Replay(t.Context(), open(t, "forgotten/n1-preedit"), file, 0)) },
	} {
		t.Run(schema, func(t *testing.T) {
			dir := t.TempDir()
			before, after := filepath.Join(dir, "before"), filepath.Join(dir, "after")
			write(before)
			write(after)
			tables := fill(t, after)
			changes, _, err := Diff(t.Context(), before, after)
			must(t, err)
			var got []string
			for _, c := range changes {
				line := c.String()
				got = append(got, fmt.Sprintf("%s: %s", c.Table, line))
				tables = slices.DeleteFunc(tables, func(table string) bool { return table == c.Table })
				if strings.Contains(line, "row of") || strings.Contains(line, "with id=") || strings.Contains(line, " id=") {
					t.Errorf("no words: %s", line)
				}
			}

			if len(tables) > 0 {
				t.Errorf("no row in %q", tables)
			}

			wantNoSecrets(t, changes)
			wantGolden(t, filepath.Join("testdata", "words-"+schema[:2]+".txt"), strings.Join(got, "\n")+"\n")
		})
	}
}

func wantGolden(t *testing.T, file string, got string) {
	t.Helper()
	if *update {
		must(t, os.WriteFile(file, []byte(got), 0o644))
	}

	want, err := os.ReadFile(file)
	must(t, err)
	sameLines(t, strings.Split(got, "\n"), strings.Split(string(want), "\n"))
}

// wantNoSecrets looks for what is secret in the rows that fill makes.
func wantNoSecrets(t *testing.T, changes []RowChange) {
	t.Helper()
	data, err := json.Marshal(changes)
	must(t, err)
	for _, secret := range []string{"value of secrets", "id_token of", "access_token of", "refresh_token of", "access_key of", "secret_key of"} {
		if strings.Contains(string(data), secret) {
			t.Errorf("%s is in the rows", secret)
		}
	}

	for _, c := range changes {
		if c.Table == "secrets" && c.After["value"] != digest("value of secrets") || c.Table == "certificates" && c.After["certificate"] == "" {
			t.Errorf("%s %v", c, c.After)
		}
	}
}

// digest is what is told of a secret, by another way than secretText.
func digest(secret string) string {
	return fmt.Sprintf("(secret, sha256 %.2x…)", sha256.Sum256([]byte(secret)))
}
