// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"database/sql"
	"testing"

	_ "github.com/mattn/go-sqlite3"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
)

// The SQL is run against a table like LXD's, twice, as it is when two members bring it along.
func TestPatch(t *testing.T) {
	old := []globaldb.Node{{ID: 1, Name: "a", Address: "a:1"}, {ID: 2, Name: "b", Address: "b:1"}, {ID: 3, Name: "c", Address: "c:1"}}
	for name, test := range map[string]struct {
		want  [3]string
		empty bool
	}{
		"unchanged": {want: [3]string{"a:1", "b:1", "c:1"}, empty: true},
		"one":       {want: [3]string{"a:2", "b:1", "c:1"}},
		"all":       {want: [3]string{"a:2", "b:2", "c:2"}},
		"trade":     {want: [3]string{"b:1", "a:1", "c:1"}},
		"rotate":    {want: [3]string{"b:1", "c:1", "a:1"}},
	} {
		t.Run(name, func(t *testing.T) {
			db, err := sql.Open("sqlite3", ":memory:")
			must(t, err)
			defer db.Close()
			db.SetMaxOpenConns(1)
			_, err = db.Exec("CREATE TABLE nodes (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, address TEXT NOT NULL UNIQUE)")
			must(t, err)
			var members member.List
			for i, n := range old {
				_, err = db.Exec("INSERT INTO nodes VALUES (?, ?, ?)", n.ID, n.Name, n.Address)
				must(t, err)
				members = append(members, member.Member{ID: n.ID, Name: n.Name, Address: test.want[i]})
			}

			patch := patchSQL(old, members)
			if test.empty != (patch == "") {
				t.Errorf("patch %q", patch)
			}

			for range 2 {
				_, err = db.Exec(patch)
				must(t, err)
				var got [3]string
				for i := range got {
					must(t, db.QueryRow("SELECT address FROM nodes WHERE id = ?", i+1).Scan(&got[i]))
				}

				if got != test.want {
					t.Errorf("got %v, want %v", got, test.want)
				}
			}
		})
	}
}

// An address is a literal in the patch, whatever is in it.
func TestLiteral(t *testing.T) {
	db, err := sql.Open("sqlite3", ":memory:")
	must(t, err)
	defer db.Close()
	for _, s := range []string{"", "'", "''; DROP TABLE nodes; --", `"`, "a'b'c", "\\'"} {
		var got string
		must(t, db.QueryRow("SELECT "+globaldb.Literal(s)).Scan(&got))
		if got != s {
			t.Errorf("%q became %q", s, got)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
