// SPDX-License-Identifier: AGPL-3.0-only

package nodedb

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// schema is what LXD 5.0.2 has of the two tables.
const schema = `
CREATE TABLE config (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, key VARCHAR(255) NOT NULL, value TEXT, UNIQUE (key));
CREATE TABLE raft_nodes (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, address TEXT NOT NULL, role INTEGER NOT NULL DEFAULT 0,
 name TEXT NOT NULL DEFAULT "", UNIQUE (address));
INSERT INTO raft_nodes VALUES (1, 'a:1', 0, 'one'), (2, 'b:1', 1, 'two'), (3, 'c:1', 2, 'three');
INSERT INTO config (key, value) VALUES ('cluster.https_address', 'b:1'), ('core.https_address', 'b:1'), ('other', 'kept');
CREATE TABLE other (v TEXT);
INSERT INTO other VALUES ('kept');
`

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newDir makes a database directory with a node database.
func newDir(t testing.TB, statements ...string) string {
	t.Helper()
	dir := t.TempDir()
	exec(t, filepath.Join(dir, File), append([]string{schema}, statements...)...)
	return dir
}

func exec(t testing.TB, file string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+file)
	must(t, err)
	defer db.Close()
	for _, s := range statements {
		_, err = db.Exec(s)
		must(t, err)
	}
}

func TestRead(t *testing.T) {
	node, err := Read(t.Context(), newDir(t))
	must(t, err)
	want := member.List{
		{ID: 1, Name: "one", Address: "a:1", Role: raftlog.Voter},
		{ID: 2, Name: "two", Address: "b:1", Role: raftlog.StandBy},
		{ID: 3, Name: "three", Address: "c:1", Role: raftlog.Spare},
	}

	if !node.Members.Same(want) || node.Self != want[1] || node.ClusterAddress != "b:1" || node.CoreAddress != "b:1" {
		t.Errorf("got %+v", node)
	}
}

// TestReadStandalone has what a standalone LXD leaves, with a row of its own and without, and whether clients can reach it or not.
func TestReadStandalone(t *testing.T) {
	const none = "DELETE FROM raft_nodes; DELETE FROM config WHERE key <> 'other'"
	for name, test := range map[string]struct {
		statement, core string
		members         int
	}{
		"as LXD leaves it":         {statement: none},
		"with an API address":      {statement: none + "; INSERT INTO config (key, value) VALUES ('core.https_address', '[::]:8443')", core: "[::]:8443"},
		"with a row of its own":    {statement: none + "; INSERT INTO raft_nodes VALUES (1, '1', 0, '')", members: 1},
		"with a null address":      {statement: none + "; INSERT INTO config (key, value) VALUES ('cluster.https_address', NULL)"},
		"with an empty address":    {statement: none + "; INSERT INTO config (key, value) VALUES ('cluster.https_address', '')"},
		"which has left a cluster": {statement: "DELETE FROM raft_nodes; DELETE FROM config WHERE key = 'cluster.https_address'", core: "b:1"},
	} {
		node, err := Read(t.Context(), newDir(t, test.statement))
		must(t, err)
		self := member.Member{ID: 1, Address: "1", Role: raftlog.Voter}
		if !node.Standalone || node.Self != self || node.CoreAddress != test.core || len(node.Members) != test.members || node.ClusterAddress != "" {
			t.Errorf("%s: %+v", name, node)
		}
	}
}

// TestReadUnknownMember has node databases of clusters from which it cannot be told whose they are. None is a standalone server's.
func TestReadUnknownMember(t *testing.T) {
	for name, test := range map[string]struct {
		statement, says string
		members         int
	}{
		"no members":   {"DELETE FROM raft_nodes", "it lists no members, but its cluster.https_address is b:1", 0},
		"no address":   {"DELETE FROM config", "it lists members, but its cluster.https_address is not set", 3},
		"null address": {"UPDATE config SET value = NULL", "it lists members, but its cluster.https_address is not set", 3},
		"other's": {"UPDATE config SET value = 'x:1' WHERE key = 'cluster.https_address'",
			"no member that it lists has the address x:1, which is its cluster.https_address", 3},
		"one member, no address": {"DELETE FROM config; DELETE FROM raft_nodes WHERE id > 1", "it lists members, but", 1},
		"another id at 1":        {"DELETE FROM config; DELETE FROM raft_nodes; INSERT INTO raft_nodes VALUES (2, '1', 0, '')", "it lists members, but", 1},
		"the row of a standalone server": {"DELETE FROM raft_nodes; INSERT INTO raft_nodes VALUES (1, '1', 0, '')",
			"no member that it lists has the address b:1", 1},
	} {
		node, err := Read(t.Context(), newDir(t, test.statement))
		if !errors.Is(err, ErrUnknownMember) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v", name, err)
			continue
		}

		if node.Standalone || node.Self != (member.Member{}) || len(node.Members) != test.members {
			t.Errorf("%s: %+v", name, node)
		}
	}
}

func TestReadDamaged(t *testing.T) {
	for name, damage := range map[string]func(file string) error{
		"missing":      os.Remove,
		"empty":        func(file string) error { return os.Truncate(file, 0) },
		"cut":          func(file string) error { return os.Truncate(file, 5000) },
		"not SQLite":   func(file string) error { return os.WriteFile(file, []byte("garbage, and long enough"), 0o600) },
		"unknown role": func(file string) error { exec(t, file, "UPDATE raft_nodes SET role = 9"); return nil },
	} {
		dir := newDir(t)
		must(t, damage(filepath.Join(dir, File)))
		_, err := Read(t.Context(), dir)
		if err == nil || errors.Is(err, ErrUnknownMember) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A daemon that was killed within a transaction leaves a hot journal. Reading must see the database without that
// transaction, and leave both files as they are.
func TestReadHotJournal(t *testing.T) {
	dir := newDir(t)
	file := filepath.Join(dir, File)
	db, err := sql.Open("sqlite3", "file:"+file)
	must(t, err)
	defer db.Close()
	db.SetMaxOpenConns(1)
	_, err = db.Exec("PRAGMA cache_size=1; PRAGMA cache_spill=1; BEGIN; UPDATE config SET value = 'torn:1'; UPDATE other SET v = hex(zeroblob(100000))")
	must(t, err)
	crashed := t.TempDir()
	before := map[string]string{}
	for _, name := range []string{File, File + "-journal"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		before[name] = string(data)
		must(t, os.WriteFile(filepath.Join(crashed, name), data, 0o600))
	}

	node, err := Read(t.Context(), crashed)
	must(t, err)
	if node.ClusterAddress != "b:1" {
		t.Errorf("read %q from a transaction that was never committed", node.ClusterAddress)
	}

	for name, want := range before {
		data, err := os.ReadFile(filepath.Join(crashed, name))
		must(t, err)
		if string(data) != want {
			t.Errorf("%s was changed", name)
		}
	}
}

func TestStage(t *testing.T) {
	for name, statement := range map[string]string{"rollback journal": "PRAGMA journal_mode=DELETE", "WAL": "PRAGMA journal_mode=WAL"} {
		t.Run(name, func(t *testing.T) {
			dir := newDir(t, statement)
			before, err := os.ReadFile(filepath.Join(dir, File))
			must(t, err)
			members := member.List{{ID: 2, Name: "two", Address: "new'b:2", Role: raftlog.Voter}, {ID: 9, Name: "nine", Address: "n:2", Role: raftlog.Spare}}
			target := filepath.Join(t.TempDir(), File)
			must(t, Stage(t.Context(), dir, target, Update{Members: members, ClusterAddress: "new'b:2", Mark: Mark{Index: 7, Term: 8}}))

			node, err := Read(t.Context(), filepath.Dir(target))
			must(t, err)
			if !node.Members.Same(members) || node.Self != members[0] || node.CoreAddress != "b:1" {
				t.Errorf("got %+v", node)
			}

			entries, err := os.ReadDir(filepath.Dir(target))
			must(t, err)
			if len(entries) != 1 {
				t.Errorf("files beside it: %v", entries)
			}

			db, err := open(target)
			must(t, err)
			defer db.Close()
			var kept, other string
			var index, term int
			must(t, db.QueryRow("SELECT value FROM config WHERE key = 'other'").Scan(&kept))
			must(t, db.QueryRow("SELECT v FROM other").Scan(&other))
			must(t, db.QueryRow(MarkQuery).Scan(&index, &term))
			if kept != "kept" || other != "kept" || index != 7 || term != 8 {
				t.Errorf("got %q, %q, mark %d %d", kept, other, index, term)
			}

			after, err := os.ReadFile(filepath.Join(dir, File))
			must(t, err)
			if string(after) != string(before) {
				t.Error("the source was changed")
			}
		})
	}
}

func TestStageRefusesExisting(t *testing.T) {
	target := filepath.Join(t.TempDir(), File)
	must(t, os.WriteFile(target, []byte("precious"), 0o600))
	err := Stage(t.Context(), newDir(t), target, Update{ClusterAddress: "x:1"})
	if !errors.Is(err, os.ErrExist) {
		t.Errorf("error %v", err)
	}
}
