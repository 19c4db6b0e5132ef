// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

func TestMain(m *testing.M) {
	status := m.Run()
	raftlogtest.Cleanup()
	os.Exit(status)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, member string) *raftlog.Log {
	t.Helper()
	log, err := raftlog.Open(t.Context(), os.DirFS(raftlogtest.Global(t, member)), raftlog.Options{})
	must(t, err)
	return log
}

// Members of a real LXD 6.9 cluster.
func TestFixtures(t *testing.T) {
	certificates := map[string]string{
		"node1":  "33c9b11b4e66ff74e292264dc5a1c31cd277fcff758d8356ad565268e2c689ff",
		"node2":  "22ed89663fc4ce8c489efef2bbf45214aff73872779ad5fa8cbcb6560f96d0ee",
		"nobody": "",
	}

	for _, member := range []string{"small/n1-afteredit", "small/n2-preimport", "small/n3-preimport"} {
		db, err := Open(t.Context(), open(t, member), 0)
		must(t, err)
		s, err := db.Summary(t.Context())
		must(t, err)
		if s.Integrity != "ok" || len(s.ForeignKeys) > 0 || s.SchemaVersion != 88 || s.Tables["profiles"] != 6 || s.Tables["nodes"] != 3 || s.Rows < 49 {
			t.Errorf("%s: %+v", member, s)
		}

		nodes, err := db.Nodes(t.Context())
		must(t, err)
		if len(nodes) != 3 || nodes[1] != (Node{2, "node2", "10.96.6.102:8443"}) {
			t.Errorf("%s: nodes %v", member, nodes)
		}

		for name, want := range certificates {
			got, err := db.MemberCertificate(t.Context(), name)
			must(t, err)
			if got != want {
				t.Errorf("%s: %s has the certificate %q, want %q", member, name, got, want)
			}
		}

		must(t, db.Close())
		_, err = os.Stat(db.File)
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there", db.File)
		}
	}
}

// The rows that n1 committed and n3 never saw, found by comparing the two databases.
func TestDiffOfMembers(t *testing.T) {
	dir := t.TempDir()
	n1, n3 := filepath.Join(dir, "n1"), filepath.Join(dir, "n3")
	must(t, Replay(t.Context(), open(t, "forgotten/n1-preedit"), n1, 0))
	must(t, Replay(t.Context(), open(t, "forgotten/n3-preedit"), n3, 0))
	changes, _, err := Diff(t.Context(), n3, n1)
	must(t, err)
	found := map[string]bool{}
	for _, c := range changes {
		if c.Table == "profiles" && c.Before == nil {
			found[c.After["name"]] = true
		}
	}

	if len(found) != 2 || !found["'lostrow'"] || !found["'lostrow2'"] {
		t.Errorf("profiles %v in %v", found, changes)
	}
}

// Going on step by step is the same as going there at once.
func TestReplayerSteps(t *testing.T) {
	log := open(t, "forgotten/n1-preedit")
	dir := t.TempDir()
	steps, err := newReplayer(log, filepath.Join(dir, "steps"))
	must(t, err)
	defer steps.close()
	for index := log.LastIndex - 40; index <= log.LastIndex; index++ {
		must(t, steps.advance(t.Context(), index))
		once := filepath.Join(dir, "once")
		must(t, Replay(t.Context(), log, once, index))
		a, err := os.ReadFile(filepath.Join(dir, "steps"))
		must(t, err)
		b, err := os.ReadFile(once)
		must(t, err)
		if string(a) != string(b) {
			t.Fatalf("they differ at index %d", index)
		}

		must(t, os.Remove(once))
	}
}

func TestReplayOfNothing(t *testing.T) {
	log := open(t, "small/n1-afteredit")
	target := filepath.Join(t.TempDir(), "db")
	err := Replay(t.Context(), log, target, 1) // the bootstrap configuration only
	if !errors.Is(err, ErrNoDatabase) {
		t.Errorf("error %v", err)
	}

	_, err = os.Stat(target)
	if !errors.Is(err, os.ErrNotExist) {
		t.Error("a file is left")
	}
}

func makeDB(t testing.TB, statements ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "db")
	db, err := sql.Open("sqlite3", "file:"+file)
	must(t, err)
	defer db.Close()
	for _, s := range statements {
		_, err = db.Exec(s)
		must(t, err)
	}

	return file
}

func TestDiff(t *testing.T) {
	base := []string{
		"CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, data BLOB)",
		"CREATE TABLE pair (a INTEGER, b INTEGER, v TEXT, PRIMARY KEY (a, b)) WITHOUT ROWID",
		"CREATE TABLE bag (v TEXT)",
		"INSERT INTO t VALUES (1, 'one', NULL), (2, 'two', x'00ff'), (3, 'it''s', 'x')",
		"INSERT INTO pair VALUES (1, 1, 'a'), (1, 2, 'b')",
		"INSERT INTO bag VALUES ('same'), ('same'), ('gone')",
	}

	before := makeDB(t, base...)
	after := makeDB(t, append(base,
		"DELETE FROM t WHERE id = 1", "UPDATE t SET name = 'zwei' WHERE id = 2", "INSERT INTO t VALUES (4, NULL, NULL)",
		"UPDATE pair SET v = 'B' WHERE b = 2", "DELETE FROM bag WHERE v = 'gone'",
		"CREATE TABLE fresh (id INTEGER PRIMARY KEY)", "INSERT INTO fresh VALUES (7)")...)
	changes, _, err := Diff(t.Context(), before, after)
	must(t, err)
	want := []string{
		"delete bag v='gone' value='gone'", "insert fresh id=7", "update pair a=1,b=2 (v: 'b' -> 'B')",
		"delete t id=1 name='one'", "update t id=2 name='zwei' (name: 'two' -> 'zwei')", "insert t id=4",
	}

	var got []string
	for _, c := range changes {
		got = append(got, c.String())
	}

	if len(got) != len(want) {
		t.Fatalf("got %q", got)
	}

	for i := range want {
		if got[i] != want[i] && (i > 0 || got[i] != "delete bag v='gone'") {
			t.Errorf("got %q, want %q", got[i], want[i])
		}
	}

	same, _, err := Diff(t.Context(), before, before)
	must(t, err)
	if len(same) > 0 {
		t.Errorf("a database differs from itself: %v", same)
	}
}

// Where more rows differ than are listed, that is said, and those that are listed are what they are called.
func TestDiffMore(t *testing.T) {
	base := []string{
		"CREATE TABLE few (id INTEGER PRIMARY KEY)",
		"CREATE TABLE many (id INTEGER PRIMARY KEY, v TEXT)",
		"CREATE TABLE bag (v TEXT)",
		"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) INSERT INTO many SELECT i, 'old' FROM n",
	}

	before := makeDB(t, base...)
	after := makeDB(t, append(base,
		"DELETE FROM many WHERE id % 2 = 0", "UPDATE many SET v = 'new'", "INSERT INTO few VALUES (1)",
		"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1001) INSERT INTO bag SELECT i FROM n")...)
	changes, more, err := Diff(t.Context(), before, after)
	must(t, err)
	if fmt.Sprint(more) != "[bag many]" {
		t.Errorf("more in %v", more)
	}

	count := map[string]int{}
	for _, c := range changes {
		kind := strings.Fields(c.String())[0]
		count[c.Table+" "+kind]++
		var id int
		_, err := fmt.Sscanf(c.Key, "id=%d", &id)
		if c.Table == "many" && (err != nil || (kind == "delete") != (id%2 == 0) || kind == "insert") {
			t.Fatalf("%s: %v", c, err)
		}
	}

	if count["bag insert"] != MaxDiff || count["many delete"]+count["many update"] != MaxDiff || count["few insert"] != 1 {
		t.Errorf("changes %v", count)
	}
}

// What users put into rows does not reach the terminal as it is.
func TestChangePrintable(t *testing.T) {
	base := []string{"CREATE TABLE t (id TEXT PRIMARY KEY, name TEXT)", "INSERT INTO t VALUES ('a', 'b'), (char(27), 'c')"}
	before := makeDB(t, base...)
	after := makeDB(t, append(base, "UPDATE t SET name = char(27) || '[2J' || char(10) || 'Recover from server3' WHERE id = 'a'",
		"DELETE FROM t WHERE name = 'c'", "INSERT INTO t VALUES ('z', char(10))")...)
	changes, _, err := Diff(t.Context(), before, after)
	must(t, err)
	if len(changes) != 3 {
		t.Fatalf("changes %q", changes)
	}

	for _, c := range changes {
		if strings.ContainsAny(c.String(), "\x1b\n") {
			t.Errorf("%q", c)
		}
	}
}

// A fingerprint sees every change of a row, and does not see pages or the order of rows.
func TestFingerprint(t *testing.T) {
	print := func(statements ...string) Fingerprint {
		db, err := openFile(makeDB(t, statements...), "ro")
		must(t, err)
		defer db.Close()
		p, err := FingerprintOf(t.Context(), db)
		must(t, err)
		return p
	}

	table := "CREATE TABLE t (id INTEGER, v)"
	base := print(table, "INSERT INTO t VALUES (1, 'a'), (2, 'b')")
	for statement, differs := range map[string]bool{
		"INSERT INTO t VALUES (2, 'b'), (1, 'a')":           false,
		"INSERT INTO t VALUES (1, 'a'), (2, 'c')":           true,
		"INSERT INTO t VALUES (1, 'a'), (2, x'62')":         true,
		"INSERT INTO t VALUES (1, 'a'), (2, 'b'), (2, 'b')": true,
		"INSERT INTO t VALUES (1, 'a')":                     true,
		"INSERT INTO t VALUES (1, 'b'), (2, 'a')":           true,
	} {
		d := base.Differ(print(table, statement))
		if (len(d) > 0) != differs {
			t.Errorf("%s: differs in %v", statement, d)
		}
	}

	d := base.Differ(print("CREATE TABLE u (id INTEGER)"))
	if len(d) != 2 {
		t.Errorf("other tables: %v", d)
	}
}

// More columns than an SQL function takes, every type of value, and more rows than are summed at once.
func TestFingerprintOfMuch(t *testing.T) {
	const columns = 250
	names, values := make([]string, columns), make([]string, columns)
	for i := range names {
		names[i], values[i] = fmt.Sprintf("c%d", i), "1"
	}

	print := func(statements ...string) Fingerprint {
		all := append([]string{
			"CREATE TABLE wide (" + strings.Join(names, ", ") + ")",
			"INSERT INTO wide VALUES (" + strings.Join(values, ", ") + ")",
			"CREATE TABLE long (v)",
			"WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000) INSERT INTO long SELECT hex(zeroblob(1000)) || i FROM n",
			"CREATE TABLE types (v)",
			"INSERT INTO types VALUES (1), (1.5), ('1'), (x'31'), (NULL), (''), (x'')",
		}, statements...)
		db, err := openFile(makeDB(t, all...), "ro")
		must(t, err)
		defer db.Close()
		p, err := FingerprintOf(t.Context(), db)
		must(t, err)
		return p
	}

	base := print()
	if base["wide"].Rows != 1 || base["long"].Rows != 1000 || base["types"].Rows != 7 {
		t.Errorf("got %v", base)
	}

	for statement, want := range map[string]string{
		"SELECT 1":                 "[]",
		"UPDATE wide SET c249 = 2": "[wide]",
		"UPDATE wide SET c0 = 2":   "[wide]",
		"UPDATE long SET v = v || 'x' WHERE rowid = 999": "[long]",
		"UPDATE types SET v = 1.0 WHERE rowid = 1":       "[types]",
		"UPDATE types SET v = '' WHERE rowid = 7":        "[types]",
		"UPDATE types SET v = NULL WHERE rowid = 6":      "[types]",
	} {
		got := fmt.Sprint(base.Differ(print(statement)))
		if got != want {
			t.Errorf("%s: differs in %s, want %s", statement, got, want)
		}
	}
}
