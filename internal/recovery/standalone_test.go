// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"database/sql"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// soloLast is the last index of the standalone server in the fixtures, an LXD 5.0.2.
const soloLast = 2433

// solo unpacks that server's LXD directory.
func solo(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.Command("tar", "-xJf", "../../tests/fixtures/standalone-5.0.2.tar.xz", "-C", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	return filepath.Join(dir, "solo")
}

// fixtureMember copies the LXD directory of a cluster member, an LXD 6.9. The fixtures have no certificates.
func fixtureMember(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.CopyFS(dir, os.DirFS(filepath.Join(raftlogtest.Fixtures(t), "small", "n2-preimport"))))
	return dir
}

// onLocal runs a statement on the node database of an LXD directory.
func onLocal(t testing.TB, lxdDir string, statement string) {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(lxdDir, databaseName, nodedb.File))
	must(t, err)
	defer db.Close()
	_, err = db.Exec(statement)
	must(t, err)
}

func onlyFirstEntry(t testing.TB, lxdDir string) {
	t.Helper()
	global := filepath.Join(lxdDir, databaseName, globalName)
	entries, err := os.ReadDir(global)
	must(t, err)
	for _, e := range entries {
		if e.Name() != "metadata1" && e.Name() != raftlog.SegmentName(1, 1) {
			must(t, os.Remove(filepath.Join(global, e.Name())))
		}
	}
}

// standing is how an LXD directory is to be taken.
type standing struct {
	name       string
	make       func(t testing.TB) string
	standalone bool
	member     uint64 // id; 0 where it is not known
	problem    string // part of the only problem of Status; empty for none
	refused    string // part of the error of what is for clusters only; empty for none
	importable bool   // an import goes on
}

const (
	isStandalone = "this LXD is a standalone server, no member of a cluster: `lxd-recover global-db-repair` repairs its database"
	inCluster    = "but the raft log is that of a member of a cluster, of 10.96.6.101:8443, "
	hasCrt       = "/cluster.crt is there, as on a member of a cluster: if this is a standalone server, move cluster.crt and cluster.key away"
	emptyTable   = "the table raft_nodes of the node database "
	noCrt        = "/cluster.crt is missing: copy it, and cluster.key, from another member"
)

// standings are the ways in which the four places that tell a standalone server from a member agree, and do not.
func standings() []standing {
	const (
		forget  = "DELETE FROM raft_nodes; DELETE FROM config"
		address = "INSERT INTO config (key, value) VALUES ('cluster.https_address', 'a:1')"
		garbage = "local.db is damaged: SQLite: file is not a database: "
	)
	change := func(base func(testing.TB) string, statement string, files ...string) func(testing.TB) string {
		return func(t testing.TB) string {
			dir := base(t)
			if statement != "" {
				onLocal(t, dir, statement)
			}

			for _, name := range files {
				must(t, os.WriteFile(filepath.Join(dir, name), []byte("not read\n"), 0o600))
			}

			return dir
		}
	}
	first := func(t testing.TB) string { dir := solo(t); onlyFirstEntry(t, dir); return dir }
	emptied := func(t testing.TB) string {
		dir := solo(t)
		must(t, os.RemoveAll(filepath.Join(dir, databaseName, globalName)))
		must(t, os.Mkdir(filepath.Join(dir, databaseName, product.LXD.Unpacks), 0o700))
		return dir
	}
	lost := func(base func(testing.TB) string, files ...string) func(testing.TB) string {
		return func(t testing.TB) string {
			dir := change(base, "", files...)(t)
			must(t, os.Remove(filepath.Join(dir, "database/local.db")))
			return dir
		}
	}
	listen := "INSERT INTO config (key, value) VALUES ('core.https_address', '10.0.0.1:8443')"
	row := "INSERT INTO raft_nodes VALUES (1, '1', 0, '')"
	return []standing{
		{"as LXD leaves it", solo, true, 1, "", isStandalone, false},
		{"reached by clients", change(solo, listen), true, 1, "", isStandalone, false},
		{"with a row of its own", change(solo, row), true, 1, "", isStandalone, false},
		{"not used yet", first, true, 1, "", isStandalone, false},
		{"without local.db's content", change(solo, "", "database/local.db"), true, 1, garbage + "put back a copy", isStandalone, false},
		{"without local.db", lost(solo), true, 1, "local.db is missing: put back a copy", isStandalone, false},
		{"without a raft directory", emptied, true, 1, "LXD's own loader was interrupted", isStandalone, false},
		{"with a cluster certificate", change(solo, "", "cluster.crt"), false, 0, hasCrt, hasCrt, true},
		{"about to become a cluster", change(solo, address), true, 1, "", isStandalone, false},
		{"about to become a cluster, with the certificate", change(solo, address, "cluster.crt"), false, 0, hasCrt, hasCrt, true},
		{"a member", change(fixtureMember, "", "cluster.crt"), false, 2, "", "", true},
		{"a member without its certificate", fixtureMember, false, 2, noCrt, "", true},
		{"a member that lost its node database", lost(fixtureMember, "cluster.crt"), false, 0, "local.db is missing: LXD does not", "", true},
		{"a member with a damaged node database", change(fixtureMember, "", "cluster.crt", "database/local.db"), false, 0, garbage + "LXD does not", "", true},
		{"a member with a new node database", change(fixtureMember, forget, "cluster.crt"), false, 0, emptyTable, inCluster, true},
		{"a member with a node database that has its row", change(fixtureMember, forget+"; "+row, "cluster.crt"), false, 0, emptyTable, inCluster, true},
		{"a member without raft_nodes", change(fixtureMember, "DELETE FROM raft_nodes", "cluster.crt"), false, 0, emptyTable, inCluster, true},
		{"a member that lost both", change(fixtureMember, forget), false, 0, inCluster, inCluster, false},
		{"a member that lost both, with its address", change(fixtureMember, "DELETE FROM raft_nodes"), false, 0, inCluster, inCluster, false},
	}
}

// TestStandings has a standalone server told from a member of a cluster, whatever is missing of either.
func TestStandings(t *testing.T) {
	for _, test := range standings() {
		t.Run(test.name, func(t *testing.T) {
			dir := test.make(t)
			report, err := Status(t.Context(), dir, Progress{})
			must(t, err)
			test.check(t, report)
			err = directory{dir}.clusterOnly(t.Context())
			wantError(t, err, test.refused)
			if test.standalone != (err != nil && err.Error() == isStandalone) {
				t.Errorf("what is for clusters only ends with %v", err)
			}

			err = directory{dir}.importable(t.Context())
			if test.importable != (err == nil) {
				t.Errorf("an import ends with %v", err)
			}

			if gone(filepath.Join(dir, databaseName, globalName)) {
				return
			}

			inspected, err := Inspect(t.Context(), dir, Progress{})
			must(t, err)
			test.checkInspected(t, inspected)
		})
	}
}

func (s standing) check(t testing.TB, r *StatusReport) {
	t.Helper()
	if r.Standalone != s.standalone || (r.Member == nil) != (s.member == 0) || r.Member != nil && r.Member.ID != s.member {
		t.Errorf("standalone %t, member %+v", r.Standalone, r.Member)
	}

	if s.standalone && (!r.Agree || r.Member != nil && (r.Member.Address != "1" || r.Member.Name != "")) {
		t.Errorf("addresses agree: %t, member %+v", r.Agree, r.Member)
	}

	if s.problem == "" && len(r.Problems) > 0 || s.problem != "" && (len(r.Problems) != 1 || !strings.Contains(r.Problems[0], s.problem)) {
		t.Errorf("problems %q, want %q", r.Problems, s.problem)
	}
}

func (s standing) checkInspected(t testing.TB, r *InspectReport) {
	t.Helper()
	if r.Standalone != s.standalone || !r.Healthy {
		t.Errorf("standalone %t, healthy %t", r.Standalone, r.Healthy)
	}

	if s.standalone && (r.Member == nil || *r.Member != InspectMember{ID: 1, Address: "1"}) || !s.standalone && r.Member != nil && r.Member.ID != s.member {
		t.Errorf("member %+v", r.Member)
	}

	said := slices.ContainsFunc(r.Problems, func(p raftlog.Problem) bool {
		return p.Severity == raftlog.Warning && strings.Contains(p.Text+": "+p.Advice, s.refused)
	})
	if s.refused != "" && !s.standalone && !said {
		t.Errorf("problems %v, want %q", r.Problems, s.refused)
	}
}

// TestStandaloneInTable holds the table nodes against that of a standalone server: without the one row LXD does not start.
func TestStandaloneInTable(t *testing.T) {
	alone := globaldb.Node{ID: 1, Name: "none", Address: "0.0.0.0"}
	servers := raftlog.Configuration{{ID: 1, Address: "1"}}
	for name, test := range map[string]struct {
		nodes []globaldb.Node
		agree bool
	}{
		"as LXD makes it":  {[]globaldb.Node{alone}, true},
		"another name":     {[]globaldb.Node{{ID: 1, Name: "n1", Address: "0.0.0.0"}}, true},
		"not to be read":   {nil, true}, // that is a problem of its own
		"no row":           {[]globaldb.Node{}, false},
		"another address":  {[]globaldb.Node{{ID: 1, Name: "none", Address: "10.0.0.1:8443"}}, false},
		"another id":       {[]globaldb.Node{{ID: 2, Name: "none", Address: "0.0.0.0"}}, false},
		"a row of another": {[]globaldb.Node{alone, {ID: 2, Name: "n2", Address: "10.0.0.2:8443"}}, false},
	} {
		r := &StatusReport{Standalone: true}
		r.compare(&nodedb.Node{Standalone: true}, servers, test.nodes)
		if r.Agree != test.agree || len(r.Addresses) == 0 || r.Addresses[0].Raft != "1" {
			t.Errorf("%s: agree %t, %+v", name, r.Agree, r.Addresses)
		}
	}
}

// TestInspectStandalone looks at parts of a standalone server: each tells what it is.
func TestInspectStandalone(t *testing.T) {
	dir := solo(t)
	for _, source := range []string{dir, filepath.Join(dir, databaseName), filepath.Join(dir, databaseName, globalName), loneGlobal(t, dir)} {
		r, err := Inspect(t.Context(), source, Progress{})
		must(t, err)
		if !r.Standalone || !r.Healthy || !r.Raft.Whole || r.Raft.LastIndex != soloLast || r.Data == nil || r.Data.Rows != 15 || r.Member == nil {
			t.Errorf("%s: standalone %t, %+v, member %v", source, r.Standalone, r.Raft, r.Member)
		}

		// The snapshots of this libdqlite have WAL parts. There is no other member to recover from, and no need to.
		for _, p := range r.Problems {
			if p.Severity > raftlog.Info || strings.Contains(p.Advice, "member") {
				t.Errorf("%s: %s; you can: %s", source, p, p.Advice)
			}
		}

		if len(r.Problems) != 2 {
			t.Errorf("%s: %d problems, want 2 of severity info", source, len(r.Problems))
		}
	}

	first := solo(t)
	onlyFirstEntry(t, first)
	r, err := Inspect(t.Context(), first, Progress{})
	must(t, err)
	if len(r.Problems) != 1 || !strings.Contains(r.Problems[0].Text, "LXD has not written anything to its database yet") {
		t.Errorf("before the first transaction: %v", r.Problems)
	}
}

// loneGlobal copies the raft directory of an LXD directory alone.
func loneGlobal(t testing.TB, lxdDir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copied")
	must(t, os.CopyFS(to, os.DirFS(filepath.Join(lxdDir, databaseName, globalName))))
	return to
}

// TestCompareStandalone compares a standalone server with an older copy of it: its own log is all there is to know.
func TestCompareStandalone(t *testing.T) {
	dir := solo(t)
	older := loneGlobal(t, dir)
	must(t, os.Remove(filepath.Join(older, "open-5"))) // what came after the newest snapshot
	report, err := Compare(t.Context(), CompareOptions{Sources: []string{older, dir}})
	must(t, err)
	if report.Recommendation == nil || report.Recommendation.Source != dir || report.Recommendation.Label != dir || report.Common != 2048 {
		t.Errorf("recommended %+v, %+v, common %d", report.Recommendation, report.Refusal, report.Common)
	}

	differ := report.Rows
	if len(differ) != 1 || len(differ[0].Rows) != 1 || differ[0].Rows[0].Table != "profiles" {
		t.Errorf("rows %+v", differ)
	}
}

// TestRollbackStandalone puts a kept database of a standalone server back, and the one that took its place.
func TestRollbackStandalone(t *testing.T) {
	dir := solo(t)
	must(t, os.CopyFS(filepath.Join(dir, keptImport), os.DirFS(filepath.Join(dir, databaseName))))
	onlyFirstEntry(t, dir)
	report, err := Rollback(t.Context(), RollbackOptions{LXDDir: dir})
	must(t, err)
	if !report.Done || !report.Standalone || report.Raft.Index != soloLast || report.Local.Index != 1 || len(report.Warnings) > 0 {
		t.Errorf("%+v", report)
	}

	status, err := Status(t.Context(), dir, Progress{})
	must(t, err)
	if !status.Standalone || status.Raft.Index != soloLast || len(status.Problems) > 0 || len(status.Kept) != 1 {
		t.Errorf("%+v", status)
	}

	// A server that has become a member of a cluster since is not made a standalone one that has a cluster certificate.
	must(t, os.WriteFile(filepath.Join(dir, "cluster.crt"), nil, 0o600))
	_, err = Rollback(t.Context(), RollbackOptions{LXDDir: dir, Kept: status.Kept[0].Name})
	wantError(t, err, hasCrt)
	must(t, os.Remove(filepath.Join(dir, "cluster.crt")))
	_, err = Rollback(t.Context(), RollbackOptions{LXDDir: dir, Kept: status.Kept[0].Name})
	wantRefused(t, err, "damaged", "is empty: its raft log holds no database")
	report, err = Rollback(t.Context(), RollbackOptions{LXDDir: dir, Kept: status.Kept[0].Name, AcceptDamage: true})
	must(t, err)
	if !report.Done || report.Raft.Index != 1 || report.Local.Index != soloLast {
		t.Errorf("%+v", report)
	}
}
