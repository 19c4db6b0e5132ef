// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

// patchedTables are two tables, one of which points to the other.
var patchedTables = []string{
	"CREATE TABLE nodes (id INTEGER PRIMARY KEY, address TEXT NOT NULL UNIQUE)",
	"CREATE TABLE ops (id INTEGER PRIMARY KEY, node_id INTEGER NOT NULL, FOREIGN KEY (node_id) REFERENCES nodes (id) ON DELETE CASCADE)",
	"CREATE TABLE late (id INTEGER PRIMARY KEY, node_id INTEGER REFERENCES nodes (id) DEFERRABLE INITIALLY DEFERRED)",
	"INSERT INTO nodes VALUES (1, 'a'), (2, 'b')", "INSERT INTO ops VALUES (1, 1), (2, 2)",
}

// A patch runs on a copy, in one transaction and with foreign keys, as LXD runs it.
func TestPatched(t *testing.T) {
	for name, test := range map[string]struct {
		patch string
		want  []string // rows of nodes and ops
	}{
		"nothing":  {" -- only a comment", []string{"a1", "b2"}},
		"several":  {"UPDATE nodes SET address = 'x;y' WHERE id = 1;; -- a; b\nUPDATE nodes SET address='z' WHERE id = 2", []string{"x;y1", "z2"}},
		"cascades": {"DELETE FROM nodes WHERE id = 2;", []string{"a1"}},
		"trades, postponed": {"PRAGMA defer_foreign_keys = 1; DELETE FROM ops; UPDATE nodes SET id = 3 WHERE id = 2; INSERT INTO ops VALUES (7, 3)",
			[]string{"b7"}},
		"a trigger": {"CREATE TRIGGER tr AFTER DELETE ON ops BEGIN UPDATE nodes SET address = 'gone' WHERE id = old.node_id; SELECT 1; END;\n" +
			"DELETE FROM ops WHERE id = 1; INSERT INTO ops VALUES (3, 1);", []string{"b2", "gone3"}},
	} {
		t.Run(name, func(t *testing.T) {
			db := openMade(t, patchedTables...)
			before := rowsOfQuery(t, db, "SELECT * FROM nodes")
			patched, err := db.Patched(t.Context(), test.patch)
			must(t, err)
			defer patched.Close()

			got, err := stringsOf(t.Context(), patched.sql, "SELECT address || ops.id FROM nodes JOIN ops ON node_id = nodes.id ORDER BY ops.id")
			must(t, err)
			slices.Sort(got)
			if !slices.Equal(got, test.want) {
				t.Errorf("%q, want %q", got, test.want)
			}

			if after := rowsOfQuery(t, db, "SELECT * FROM nodes"); !slices.Equal(after, before) {
				t.Errorf("the database itself was changed: %q", after)
			}
		})
	}
}

// What LXD would not get past is told with the statement.
func TestPatchedFails(t *testing.T) {
	const noPlace = "this cannot be tried: LXD runs a patch inside one transaction"
	for name, test := range map[string]struct {
		patch  string
		number int
		says   string
	}{
		"no such table":     {"UPDATE nodes SET address = 'x' WHERE id = 1; UPDATE nope SET x = 1", 2, `"UPDATE nope SET x = 1": no such table: nope`},
		"not unique":        {"-- one\nUPDATE nodes SET address = 'b' WHERE id = 1", 1, "UNIQUE constraint failed: nodes.address"},
		"no parent":         {"INSERT INTO ops VALUES (9, 9)", 1, "FOREIGN KEY constraint failed"},
		"no parent, late":   {"INSERT INTO late VALUES (9, 9)", 0, "the end of the transaction fails: FOREIGN KEY constraint failed"},
		"rows":              {"UPDATE nodes SET address = 'x' WHERE id = 1; SELECT 1", 2, "it returns rows"},
		"rows of a write":   {"UPDATE nodes SET address = 'x' WHERE id = 1 RETURNING id", 1, "it returns rows"},
		"a transaction":     {"BEGIN; DELETE FROM ops; COMMIT", 1, noPlace},
		"a savepoint":       {"SAVEPOINT s", 1, noPlace},
		"another file":      {"ATTACH '/etc/passwd' AS p", 1, noPlace},
		"a pragma":          {"PRAGMA writable_schema = 1", 1, noPlace},
		"a dot command":     {".tables", 1, "syntax error"},
		"a parameter":       {"DELETE FROM ops WHERE id = ?", 1, "it has parameters"},
		"not closed":        {"DELETE FROM ops WHERE id = 'x", 1, "unrecognized token"},
		"a NUL":             {"DELETE FROM ops\x00", 1, "NUL"},
		"no end of trigger": {"CREATE TRIGGER tr AFTER DELETE ON ops BEGIN DELETE FROM nodes; DELETE FROM ops", 1, "incomplete input"},
	} {
		t.Run(name, func(t *testing.T) {
			patched, err := openMade(t, patchedTables...).Patched(t.Context(), test.patch)
			var failed *StatementError
			if patched != nil || !errors.As(err, &failed) || failed.Number != test.number || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%+v: %v", failed, err)
			}
		})
	}
}

// A statement that does not end is cut short with its context.
func TestPatchedEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := openMade(t, patchedTables...).Patched(ctx, "INSERT INTO nodes WITH RECURSIVE c(x) AS (SELECT 5 UNION ALL SELECT x + 1 FROM c) SELECT x, x FROM c")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
