// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// lostLab is the LXD directory of node2 of a cluster of LXD 6.9, and what an import on it takes.
type lostLab struct {
	dir     directory
	tarball string // LXD's own, of node1
	nodeDB  string // node3's node database
}

func newLostLab(t testing.TB) lostLab {
	t.Helper()
	fixtures := filepath.Join(raftlogtest.Fixtures(t), "small")
	l := lostLab{
		dir: directory{t.TempDir()}, tarball: filepath.Join(fixtures, "lxd_recovery_db.tar.gz"),
		nodeDB: filepath.Join(fixtures, "n3-preimport", databaseName, nodedb.File),
	}
	must(t, os.CopyFS(l.dir.database(), os.DirFS(filepath.Join(fixtures, "n2-preimport", databaseName))))
	db := openFixture(t, "small/n2-preimport")
	certificates, err := db.Certificates(t.Context())
	must(t, err)
	i := slices.IndexFunc(certificates, func(c globaldb.Certificate) bool { return c.Name == "node2" })
	for _, name := range []string{"server.crt", "cluster.crt"} { // that the cluster's is another one does not matter here
		must(t, os.WriteFile(l.dir.join(name), []byte(certificates[i].PEM), 0o600))
	}

	return l
}

func openFixture(t testing.TB, name string) *globaldb.DB {
	t.Helper()
	log, err := readLog(t.Context(), raftlogtest.Global(t, name), Progress{})
	must(t, err)
	db, err := globaldb.Open(t.Context(), log, 0)
	must(t, err)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// importDB imports on node2, with the options changed by with.
func (l lostLab) importDB(ctx context.Context, with func(*ImportOptions)) (*ImportReport, error) {
	opts := ImportOptions{LXDDir: l.dir.path, Tarball: l.tarball, Version: "test", NoStart: true, BesideCluster: true, Unsigned: true}
	if with != nil {
		with(&opts)
	}

	return Import(ctx, opts)
}

func (l lostLab) withNodeDB(opts *ImportOptions) { opts.NodeDB = l.nodeDB }

// exec changes the node database.
func (l lostLab) exec(t testing.TB, statement string) { execSQL(t, l.dir.local(), statement) }

func execSQL(t testing.TB, file string, statement string) {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+file)
	must(t, err)
	defer db.Close()
	_, err = db.Exec(statement)
	must(t, err)
}

// queried returns the rows of a query, each as text.
func queried(t testing.TB, file string, query string) []string {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+file+"?mode=ro")
	must(t, err)
	defer db.Close()
	rows, err := db.Query(query)
	must(t, err)
	defer rows.Close()
	all := []string{}
	for rows.Next() {
		var s string
		must(t, rows.Scan(&s))
		all = append(all, s)
	}

	must(t, rows.Err())
	return all
}

// newMembers are the rows of raft_nodes that the tarball has.
var newMembers = []string{"1|10.96.6.101:9393|0|node1", "2|10.96.6.102:9393|0|node2", "3|10.96.6.103:9393|0|node3"}

// wantWhole checks the node database that an import has made.
func (l lostLab) wantWhole(t testing.TB, settings ...string) {
	t.Helper()
	for query, want := range map[string][]string{
		"SELECT id || '|' || address || '|' || role || '|' || name FROM raft_nodes ORDER BY id": newMembers,
		"SELECT key || '=' || value FROM config ORDER BY key":                                   settings,
		"SELECT name FROM certificates WHERE type = 2 ORDER BY name":                            {"node1", "node2", "node3"},
		"SELECT count(*) || ' patches' FROM patches":                                            {"55 patches"},
		"SELECT max(version) || '' FROM schema":                                                 {"43"},
	} {
		if got := queried(t, l.dir.local(), query); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
}

// newAddresses are what an import sets where there was nothing.
var newAddresses = []string{"cluster.https_address=10.96.6.102:9393", "core.https_address=10.96.6.102:9393"}

// A member without its node database, or with a damaged one, is not refused for not being an LXD: a new one is made from another
// member's, and the damaged one stays in the kept database.
func TestImportLostNode(t *testing.T) {
	for name, test := range map[string]struct {
		lose func(t testing.TB, l lostLab)
		says string // in place of the missing one
	}{
		"missing":    {func(t testing.TB, l lostLab) { must(t, os.Remove(l.dir.local())) }, "is missing"},
		"not SQLite": {func(t testing.TB, l lostLab) { must(t, os.WriteFile(l.dir.local(), []byte("garbage"), 0o600)) }, "is damaged"},
		"cut":        {func(t testing.TB, l lostLab) { must(t, os.Truncate(l.dir.local(), 9000)) }, "is damaged"},
		"no table":   {func(t testing.TB, l lostLab) { l.exec(t, "DROP TABLE raft_nodes") }, "is damaged: it has no table raft_nodes"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLostLab(t)
			test.lose(t, l)
			before, _ := os.ReadFile(l.dir.local())
			_, err := l.importDB(t.Context(), nil)
			var refusal *Refusal
			if !errors.As(err, &refusal) || refusal.Flag != "--node-db" || !strings.Contains(err.Error(), test.says) ||
				!strings.Contains(err.Error(), "`database/local.db` of any other member") {
				t.Errorf("without --node-db: %v", err)
			}

			if got := namesIn(t, l.dir.path); !slices.Equal(got, []string{"cluster.crt", "database", "server.crt"}) {
				t.Errorf("the refusal leaves %q", got)
			}

			r, err := l.importDB(t.Context(), l.withNodeDB)
			must(t, err)
			l.wantWhole(t, newAddresses...)
			if r.Member.ID != 2 || r.NodeDB == nil || r.NodeDB.Member.Name != "node3" || r.NodeDB.Patches != 55 || r.NodeDB.Schema != 43 ||
				!strings.Contains(r.NodeDB.Lost, test.says) || r.Lacking == "" || len(r.Discarded) > 0 {
				t.Errorf("report %+v, %+v", r, r.NodeDB)
			}

			wantWarning(t, r.Warnings, test.says, "by its certificate it is node2 (id 2)")
			wantWarning(t, r.Warnings, "none of this member's own settings")
			after, _ := os.ReadFile(filepath.Join(r.Kept, nodedb.File))
			if string(after) != string(before) {
				t.Error("the damaged node database was not kept as it was")
			}

			r, err = l.importDB(t.Context(), l.withNodeDB)
			must(t, err)
			if !r.NothingToDo || r.NodeDB != nil {
				t.Errorf("the second import: %+v", r)
			}

			wantWarning(t, r.Warnings, l.nodeDB+" is not needed")
		})
	}
}

func wantWarning(t testing.TB, warnings []string, says ...string) {
	t.Helper()
	if !slices.ContainsFunc(warnings, func(w string) bool {
		return !slices.ContainsFunc(says, func(s string) bool { return !strings.Contains(w, s) })
	}) {
		t.Errorf("no warning says %q: %q", says, warnings)
	}
}

// What can still be read of the settings in a damaged node database is told, and not taken over.
func TestLostSettings(t *testing.T) {
	l := newLostLab(t)
	l.exec(t, "INSERT INTO config (key, value) VALUES ('storage.images_volume', 'pool/images'), ('x.password', 'hunter2'); DROP TABLE patches")
	r, err := l.importDB(t.Context(), l.withNodeDB)
	must(t, err)
	wantWarning(t, r.Warnings, "the damaged one says storage.images_volume=pool/images, x.password=(secret, sha256 f52f…)")
	l.wantWhole(t, newAddresses...)
}

// A table raft_nodes without rows, as an LXD leaves it that was started without node database: the member's own database is
// completed, and no other is needed.
func TestImportEmptyRaftNodes(t *testing.T) {
	l := newLostLab(t)
	l.exec(t, "DELETE FROM raft_nodes; DELETE FROM certificates; INSERT INTO config (key, value) VALUES ('core.metrics_address', ':9100')")
	r, err := l.importDB(t.Context(), nil)
	must(t, err)
	l.wantWhole(t, append(slices.Clone(newAddresses), "core.metrics_address=:9100")...)
	if r.Member.ID != 2 || r.NodeDB != nil || !strings.Contains(r.Lacking, "raft_nodes") {
		t.Errorf("%+v", r)
	}

	wantWarning(t, r.Warnings, "does not say which member this is", "node2")
	l = newLostLab(t)
	l.exec(t, "DELETE FROM raft_nodes; DELETE FROM certificates; DELETE FROM config")
	_, err = l.importDB(t.Context(), nil)
	must(t, err)
	l.wantWhole(t, newAddresses...)
}

// A node database that no new one can be made from: said clearly, and nothing is changed.
func TestNodeDBRefused(t *testing.T) {
	for name, test := range map[string]struct {
		spoil string // SQL for node3's
		says  string
	}{
		"other names": {"UPDATE raft_nodes SET name = 'box' || id",
			"is the node database of another cluster: its member 1 is named box1, and here node1"},
		"other member": {"UPDATE raft_nodes SET id = 7 WHERE id = 3",
			"is the node database of another cluster: its member 7 (node3) is none of this cluster's"},
		"other certificate": {"UPDATE certificates SET fingerprint = 'feed' WHERE name = 'node3'",
			"is the node database of another cluster: its certificate of node3"},
		"newer schema":        {"INSERT INTO schema (version, updated_at) VALUES (44, 0)", "its schema has version 44"},
		"not a member's":      {"DELETE FROM config", "does not say which member"},
		"no node database":    {"DROP TABLE raft_nodes", "is not a node database of LXD (it has no table raft_nodes)"},
		"no members":          {"DELETE FROM raft_nodes", "does not say which member"},
		"a standalone LXD's":  {"DELETE FROM raft_nodes; DELETE FROM config", "does not say which member"},
		"one with its row":    {"DELETE FROM raft_nodes; DELETE FROM config; INSERT INTO raft_nodes VALUES (1, '1', 0, '')", "does not say which member"},
		"older than LXD 5.0":  {"UPDATE schema SET version = 38", "its schema has version 38"},
		"garbage in the file": {"", "is not a node database of LXD (SQLite: file is not a database)"},
	} {
		l := newLostLab(t)
		must(t, os.Remove(l.dir.local()))
		data, err := os.ReadFile(l.nodeDB)
		must(t, err)
		l.nodeDB = filepath.Join(t.TempDir(), "other.db")
		if test.spoil == "" {
			data = []byte("garbage, and long enough for SQLite to look at it, which is what it takes to find that it is not a database")
		}

		must(t, os.WriteFile(l.nodeDB, data, 0o600))
		if test.spoil != "" {
			execSQL(t, l.nodeDB, test.spoil)
		}

		_, err = l.importDB(t.Context(), l.withNodeDB)
		if err == nil || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), l.nodeDB) {
			t.Errorf("%s: %v", name, err)
		}

		if !gone(l.dir.local()) || !slices.Equal(namesIn(t, l.dir.path), []string{"cluster.crt", "database", "server.crt"}) {
			t.Errorf("%s: something was changed: %q", name, namesIn(t, l.dir.path))
		}
	}

	l := newLostLab(t)
	must(t, os.Remove(l.dir.local()))
	l.nodeDB = filepath.Join(t.TempDir(), "nothing")
	_, err := l.importDB(t.Context(), l.withNodeDB)
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(fmt.Sprint(err), l.nodeDB) {
		t.Errorf("no file: %v", err)
	}
}

// Applied patches are taken from a member that has run the same LXD, and from no other.
func TestPatchesOfSameVersion(t *testing.T) {
	l := newLostLab(t)
	list := member.List{{ID: 1, Name: "node1"}, {ID: 2, Name: "node2"}, {ID: 3, Name: "node3"}}
	for _, test := range []struct {
		change  string
		self    member.Member
		patches int
		says    string
	}{
		{"", list[1], 55, ""},
		{"", list[2], 55, "is an earlier one of this very member"},
		{"UPDATE nodes SET api_extensions = 480 WHERE id = 1", list[1], 55, ""},
		{"UPDATE nodes SET api_extensions = 480 WHERE id = 2", list[1], 0,
			"node3 has not run the same LXD as this member (schema 88, 481 API extensions; here schema 88, 480 API extensions)"},
		{"UPDATE nodes SET schema = 87 WHERE id = 3", list[1], 0, "node3 has not run the same LXD as this member (schema 87, 481"},
	} {
		db := openFixture(t, "small/n2-preimport")
		execSQL(t, db.File, test.change)
		template, err := nodedb.ReadTemplate(t.Context(), l.nodeDB)
		must(t, err)
		lost := &lostNode{nodedb.ErrMissing, template}
		warnings, err := lost.belongs(t.Context(), db, list, test.self)
		must(t, err)
		if lost.report().Patches != test.patches || (test.says == "") != (len(warnings) == 0) {
			t.Errorf("%q: %d patches, %q", test.change, lost.report().Patches, warnings)
		}

		if test.says != "" {
			wantWarning(t, warnings, test.says)
		}
	}
}

// An import on a member without node database that is cut short is finished or taken back as any other.
func TestResumeLostNode(t *testing.T) {
	l := newLostLab(t)
	must(t, os.Remove(l.dir.local()))
	must(t, os.MkdirAll(l.dir.join(stagingName, globalName), 0o700))
	writePlan(t, l.dir, false)
	r, err := Resume(t.Context(), ResumeOptions{LXDDir: l.dir.path, NoStart: true})
	must(t, err)
	if !r.Found || !slices.Equal(namesIn(t, l.dir.path), []string{"cluster.crt", "database", "server.crt"}) || !gone(l.dir.local()) {
		t.Errorf("before the exchange: %+v, left %q", r, namesIn(t, l.dir.path))
	}

	// After the exchange the damaged directory has the name of the staged one.
	must(t, os.Rename(l.dir.database(), l.dir.join(stagingName)))
	must(t, os.CopyFS(l.dir.database(), os.DirFS(filepath.Join(raftlogtest.Fixtures(t), "small/n2-preimport/database"))))
	writePlan(t, l.dir, true)
	r, err = Resume(t.Context(), ResumeOptions{LXDDir: l.dir.path, NoStart: true})
	must(t, err)
	if !r.Found || !slices.Equal(namesIn(t, l.dir.path), []string{"cluster.crt", "database", keptImport, "server.crt"}) || gone(l.dir.local()) {
		t.Errorf("after the exchange: %+v, left %q", r, namesIn(t, l.dir.path))
	}

	// What is kept now has no node database, and cannot be put back; it is listed, and can be removed.
	_, err = Rollback(t.Context(), RollbackOptions{LXDDir: l.dir.path, NoStart: true})
	if err == nil || !strings.Contains(err.Error(), keptImport+" cannot be put back: its node database local.db is missing") {
		t.Errorf("rollback: %v", err)
	}

	_, err = RemoveKept(t.Context(), RemoveKeptOptions{LXDDir: l.dir.path, Names: []string{keptImport}})
	must(t, err)
}

// writePlan leaves the plan of an import that was cut short before or after its exchange.
func writePlan(t testing.TB, d directory, exchanged bool) {
	t.Helper()
	live, staged := inodeOf(t, d.database()), inodeOf(t, d.join(stagingName))
	if exchanged {
		live, staged = staged, live
	}

	plan := fmt.Sprintf("format: 1\npurpose: import\ncreated: 2026-11-22T21:33:00Z\nlive: database\nstaged: %s\nkeep: %s\nlive_inode: %d\nstaged_inode: %d\n",
		stagingName, keptImport, live, staged)
	must(t, os.WriteFile(d.join(swapdir.PlanFile), []byte(plan), 0o600))
}

// A rollback puts back a whole database in the place of one that has lost its node database.
func TestRollbackFromLostNode(t *testing.T) {
	l := newLostLab(t)
	must(t, os.Rename(l.dir.database(), l.dir.join(keptImport)))
	must(t, os.CopyFS(l.dir.global(), os.DirFS(l.dir.join(keptImport, globalName))))
	replaces(t, l.dir, keptImport)
	r, err := Rollback(t.Context(), RollbackOptions{LXDDir: l.dir.path, NoStart: true, BesideCluster: true})
	must(t, err)
	if !r.Done || gone(l.dir.local()) {
		t.Errorf("%+v", r)
	}

	// Taking that back would be a rollback to nothing.
	kept := filepath.Base(r.Kept)
	refuses := func(says string) {
		t.Helper()
		_, err := Rollback(t.Context(), RollbackOptions{LXDDir: l.dir.path, Kept: kept, NoStart: true})
		if err == nil || !strings.Contains(err.Error(), kept+" cannot be put back: ") || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
	refuses("its node database local.db is missing")
	local := l.dir.join(kept, nodedb.File)
	must(t, os.WriteFile(local, []byte("garbage"), 0o600))
	refuses("local.db is damaged: SQLite")
	data, err := os.ReadFile(l.dir.local())
	must(t, err)
	must(t, os.WriteFile(local, data, 0o600))
	execSQL(t, local, "DELETE FROM raft_nodes")
	refuses("the table raft_nodes of its node database is empty")
	must(t, os.Rename(l.dir.join(kept, globalName), filepath.Join(t.TempDir(), "aside")))
	refuses("its raft directory global is missing or empty")
}

func inodeOf(t testing.TB, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	return info.Sys().(*syscall.Stat_t).Ino
}
