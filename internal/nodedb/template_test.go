// SPDX-License-Identifier: AGPL-3.0-only

package nodedb

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// whole is what LXD 5.0.2 has in a node database besides the tables of schema, and an administrator's own index.
const whole = `
CREATE TABLE schema (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, version INTEGER NOT NULL, updated_at DATETIME NOT NULL, UNIQUE (version));
CREATE TABLE patches (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, name VARCHAR(255) NOT NULL, applied_at DATETIME NOT NULL, UNIQUE (name));
CREATE TABLE certificates (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, fingerprint TEXT NOT NULL, type INTEGER NOT NULL, name TEXT NOT NULL,
 certificate TEXT NOT NULL, UNIQUE (fingerprint));
CREATE INDEX mine ON patches (applied_at);
INSERT INTO schema VALUES (1, 42, 1795668854);
INSERT INTO patches VALUES (1, 'first', 1795668854), (3, 'third', 1795668855);
INSERT INTO certificates VALUES (7, 'abc', 2, 'two', 'PEM of two'), (8, 'def', 1, 'a client', 'PEM of a client');
`

// newWhole makes a database directory with all the tables that LXD has.
func newWhole(t testing.TB, statements ...string) string {
	t.Helper()
	return newDir(t, append([]string{whole}, statements...)...)
}

// table returns the rows of a query, each as text.
func table(t testing.TB, file string, query string) []string {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+file+"?mode=ro")
	must(t, err)
	defer db.Close()
	all, err := stringsOf(t.Context(), db, query)
	must(t, err)
	return all
}

func wantTable(t testing.TB, file string, query string, want ...string) {
	t.Helper()
	if got := table(t, file, query); !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", query, got, want)
	}
}

func TestMake(t *testing.T) {
	from := filepath.Join(newWhole(t), File)
	before, err := os.ReadFile(from)
	must(t, err)
	template, err := ReadTemplate(t.Context(), from)
	must(t, err)
	if template.Self.Name != "two" || template.Schema != 42 || !slices.Equal(template.Patches, []string{"first", "third"}) ||
		len(template.Certificates) != 1 || template.Certificates["two"] != "abc" {
		t.Errorf("got %+v", template)
	}

	members := member.List{{ID: 3, Name: "three", Address: "c:2", Role: raftlog.Voter}}
	update := Update{Members: members, ClusterAddress: "c:2", CoreAddress: "c:2", Mark: Mark{Index: 7, Term: 8},
		Certificates: []Certificate{{"abc", "two", "PEM"}, {"123", "three", "PEM of three"}}}
	target := filepath.Join(t.TempDir(), File)
	must(t, Make(t.Context(), template, target, update))
	must(t, Check(t.Context(), filepath.Dir(target)))
	wantTable(t, target, "SELECT id || name || applied_at || typeof(applied_at) FROM patches ORDER BY id", "1first1795668854integer", "3third1795668855integer")
	wantTable(t, target, "SELECT id || ' ' || version || ' ' || updated_at FROM schema", "1 42 1795668854")
	wantTable(t, target, "SELECT id || address || role || name FROM raft_nodes", "3c:20three")
	wantTable(t, target, "SELECT key || value FROM config ORDER BY id", "cluster.https_addressc:2", "core.https_addressc:2")
	wantTable(t, target, "SELECT fingerprint || type || name || certificate FROM certificates ORDER BY id", "abc2twoPEM", "1232threePEM of three")
	wantTable(t, target, "SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name",
		"certificates", "config", "lxd_recover", "mine", "patches", "raft_nodes", "schema")
	for _, name := range tables {
		is := "SELECT sql FROM sqlite_master WHERE name = '" + name + "'"
		wantTable(t, target, is, table(t, from, is)...)
	}

	data, err := os.ReadFile(target)
	must(t, err)
	for _, secret := range []string{"b:1", "kept", "a client"} {
		if strings.Contains(string(data), secret) {
			t.Errorf("%q of the other member is in the new database", secret)
		}
	}

	again := filepath.Join(t.TempDir(), File)
	must(t, Make(t.Context(), template, again, update))
	second, err := os.ReadFile(again)
	must(t, err)
	after, err := os.ReadFile(from)
	must(t, err)
	if string(second) != string(data) || string(after) != string(before) {
		t.Error("made twice it is another file, or the template was changed")
	}

	err = Make(t.Context(), template, target, update)
	if !errors.Is(err, os.ErrExist) {
		t.Errorf("over another file: %v", err)
	}
}

func TestMakeWithoutPatches(t *testing.T) {
	template, err := ReadTemplate(t.Context(), filepath.Join(newWhole(t), File))
	must(t, err)
	target := filepath.Join(t.TempDir(), File)
	bare := template.WithoutPatches()
	must(t, Make(t.Context(), bare, target, Update{ClusterAddress: "b:1"}))
	wantTable(t, target, "SELECT name FROM patches")
	wantTable(t, target, "SELECT version FROM schema", "42")
	if len(bare.Patches) != 0 || len(template.Patches) != 2 {
		t.Errorf("%v without patches, %v with them", bare.Patches, template.Patches)
	}
}

// A newer LXD's node database, where the table config has changed.
func TestMakeNewerSchema(t *testing.T) {
	from := filepath.Join(newWhole(t, "UPDATE schema SET version = 43", `CREATE TABLE config_new (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
 key TEXT NOT NULL, value TEXT NOT NULL, UNIQUE (key)); INSERT INTO config_new SELECT * FROM config; DROP TABLE config;
 ALTER TABLE config_new RENAME TO config`), File)
	template, err := ReadTemplate(t.Context(), from)
	must(t, err)
	target := filepath.Join(t.TempDir(), File)
	must(t, Make(t.Context(), template, target, Update{ClusterAddress: "b:2"}))
	wantTable(t, target, "SELECT key || value FROM config", "cluster.https_addressb:2")
	wantTable(t, target, "SELECT max(version) FROM schema", "43")
}

func TestNoTemplate(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(file string)
		says  string
	}{
		"not SQLite": {func(file string) { must(t, os.WriteFile(file, []byte("garbage, and long enough"), 0o600)) }, "file is not a database"},
		"empty":      {func(file string) { must(t, os.Truncate(file, 0)) }, "it has no table certificates"},
		"cut":        {func(file string) { must(t, os.Truncate(file, 9000)) }, "SQLite: "},
		"no patches": {func(file string) { exec(t, file, "DROP TABLE patches") }, "it has no table patches"},
		"newer schema": {func(file string) { exec(t, file, "INSERT INTO schema VALUES (2, 44, 0)") },
			"its schema has version 44, and this lxd-recover knows only 42 to 43"},
		"older schema": {func(file string) { exec(t, file, "UPDATE schema SET version = 41") }, "its schema has version 41"},
		"unclustered":  {func(file string) { exec(t, file, "DELETE FROM raft_nodes") }, "it does not say which member of a cluster it belongs to"},
		"other address": {func(file string) { exec(t, file, "UPDATE config SET value = 'x:1'") },
			"it does not say which member of a cluster it belongs to"},
	} {
		file := filepath.Join(newWhole(t), File)
		test.spoil(file)
		_, err := ReadTemplate(t.Context(), file)
		if !errors.Is(err, ErrNoTemplate) || !strings.Contains(fmt.Sprint(err), test.says) || !strings.Contains(fmt.Sprint(err), file) {
			t.Errorf("%s: %v", name, err)
		}
	}

	_, err := ReadTemplate(t.Context(), filepath.Join(t.TempDir(), "nothing"))
	if !errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrNoTemplate) {
		t.Errorf("no file: %v", err)
	}
}

func TestCheck(t *testing.T) {
	must(t, Check(t.Context(), newWhole(t)))
	for name, test := range map[string]struct {
		spoil func(file string) error
		want  error
	}{
		"missing":       {os.Remove, ErrMissing},
		"empty":         {func(file string) error { return os.Truncate(file, 0) }, ErrDamaged},
		"cut":           {func(file string) error { return os.Truncate(file, 5000) }, ErrDamaged},
		"cut at a page": {func(file string) error { return os.Truncate(file, 8192) }, ErrDamaged},
		"not SQLite":    {func(file string) error { return os.WriteFile(file, []byte("garbage, and long enough"), 0o600) }, ErrDamaged},
		"no table":      {func(file string) error { exec(t, file, "DROP TABLE raft_nodes"); return nil }, ErrDamaged},
		"damaged index": {damageIndex, ErrDamaged},
	} {
		dir := newWhole(t)
		must(t, test.spoil(filepath.Join(dir, File)))
		err := Check(t.Context(), dir)
		both := errors.Is(err, ErrMissing) && errors.Is(err, ErrDamaged)
		if !errors.Is(err, test.want) || both || !strings.Contains(fmt.Sprint(err), filepath.Join(dir, File)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// damageIndex makes an index disagree with its table: every row can be read, and SQLite finds it only when it checks the whole file.
func damageIndex(file string) error {
	db, err := sql.Open("sqlite3", "file:"+file)
	if err != nil {
		return err
	}

	defer db.Close()
	db.SetMaxOpenConns(1)
	_, err = db.Exec(`PRAGMA writable_schema = 1; UPDATE sqlite_master SET sql = 'CREATE INDEX mine ON patches (name)' WHERE name = 'mine'`)
	return err
}

// A directory for temporary files that is not there is none of the node database's faults.
func TestCheckWithoutScratch(t *testing.T) {
	dir := newWhole(t)
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "nothing"))
	err := Check(t.Context(), dir)
	if err == nil || errors.Is(err, ErrMissing) || errors.Is(err, ErrDamaged) {
		t.Errorf("error %v", err)
	}
}

func TestReadMissing(t *testing.T) {
	_, err := Read(t.Context(), t.TempDir())
	if !errors.Is(err, ErrMissing) || !strings.Contains(fmt.Sprint(err), "`lxd-recover global-db-status` says what to do") {
		t.Errorf("error %v", err)
	}
}

func TestSettings(t *testing.T) {
	dir := newWhole(t, "DROP TABLE raft_nodes")
	if got := Settings(t.Context(), dir); !slices.Equal(got, []string{"cluster.https_address=b:1", "core.https_address=b:1", "other=kept"}) {
		t.Errorf("got %q", got)
	}

	if got := Settings(t.Context(), t.TempDir()); len(got) > 0 {
		t.Errorf("got %q of nothing", got)
	}
}
