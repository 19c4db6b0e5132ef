// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// localOf is a member's node database.
func localOf(m *cluster.Member) string { return filepath.Join(m.Dir(), "database", "local.db") }

// A member that has lost its node database gets a new one, made from another member's. Two of three are enough to work again, the one
// with the new database among them: it must let the other one in before there is a leader.
func TestRecoverLostNodeDatabase(t *testing.T) {
	t.Parallel()
	cluster.EachLXD(t, recoverLostNodeDatabase)
}

func recoverLostNodeDatabase(t *testing.T, lxd cluster.LXD) {
	c := cluster.ForTest(t, cluster.Options{LXD: lxd})
	ctx := within(t, 5*time.Minute)
	one, two, three := c.Member(1), c.Member(2), c.Member(3)
	must(t, one.CreateProfile(ctx, "kept"))
	lxc(t, one, "config", "set", "core.metrics_address", one.IP()+":9100") // node1's, and nobody else's
	c.KillAll()
	must(t, one.EditReplace(ctx, ":8443", ":9393"))
	tarball := export(t, one)
	must(t, os.Remove(localOf(two)))

	check := unchanged(t, two.Dir())
	recoverTool(t, two, "global-db-import", "--yes", tarball).want(t, 3, localOf(two)+" is missing", "--node-db FILE")
	recoverTool(t, two, "global-db-import", "--yes", "--node-db", tarball, tarball).want(t, 1, tarball, "not a node database of "+lxd.Names.Product)
	s := status(t, two)
	if s.Member == nil || s.Member.Name != "node2" || len(s.Problems) != 1 || !strings.Contains(s.Problems[0], localOf(two)+" is missing") {
		t.Errorf("status without node database: %+v", s)
	}

	check()
	r := decode[recovery.ImportReport](t, mustRecover(t, two, "global-db-import", "--yes", "--format", "json", "--node-db", localOf(one), tarball))
	patches := count(t, localOf(one), "SELECT count(*) FROM patches")
	if r.Member.Name != "node2" || r.NodeDB == nil || r.NodeDB.Member.Name != "node1" || r.NodeDB.Patches != patches || patches == 0 {
		t.Errorf("import: %+v, %+v", r, r.NodeDB)
	}

	if n := count(t, localOf(two), "SELECT count(*) FROM config WHERE key NOT IN ('core.https_address', 'cluster.https_address')"); n != 0 {
		t.Errorf("%d settings of node1 were taken over", n)
	}

	recoverTool(t, two, "global-db-rollback", "--yes").want(t, 1, "cannot be put back", "local.db is missing")
	importOn(t, tarball, one, three)
	must(t, c.StartAll(ctx, one, two))
	wantRows(t, []string{"kept"}, one, two)
	must(t, c.StartAll(ctx, three))
	wantRows(t, []string{"kept"}, c.Members()...)
	var moved []string
	for _, m := range c.Members() {
		moved = append(moved, m.IP()+":9393")
	}

	wantWorking(t, c, moved, c.Members()...)
	if s := status(t, two); !s.Agree || s.Member.Address != moved[1] || len(s.Problems) > 0 {
		t.Errorf("status in the end: %+v", s)
	}
}

// count is what a query for one number returns.
func count(t testing.TB, file string, query string) int {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+file+"?mode=ro")
	must(t, err)
	defer db.Close()
	var n int
	must(t, db.QueryRow(query).Scan(&n))
	return n
}

// A raft directory that was moved away: the import names it, and goes on without it when it is told to.
func TestRecoverGlobalMovedAway(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 5*time.Minute)
	must(t, c.Member(1).CreateProfile(ctx, "kept"))
	c.KillAll()
	must(t, c.Member(1).EditReplace(ctx, ":8443", ":9393"))
	tarball := export(t, c.Member(1))
	two := c.Member(2)
	aside := globalOf(two) + ".bak"
	must(t, os.Rename(globalOf(two), aside))
	check := unchanged(t, two.Dir())
	recoverTool(t, two, "global-db-import", "--yes", tarball).want(t, 3, globalOf(two)+" is missing", aside+" holds files of raft", "--discard-local-entries")
	if s := status(t, two); s.Member == nil || s.Member.Name != "node2" || len(s.Problems) != 1 || !strings.Contains(s.Problems[0], aside) {
		t.Errorf("status without raft directory: %+v", s)
	}

	check()
	must(t, os.Rename(aside, globalOf(two))) // as it says, and nothing is lost
	mustRecover(t, two, "global-db-import", "--dry-run", tarball)
	must(t, os.Rename(globalOf(two), aside))
	mustRecover(t, two, "global-db-import", "--yes", "--discard-local-entries", tarball)
	importOn(t, tarball, c.Member(1), c.Member(3))
	must(t, c.StartAll(ctx))
	wantRows(t, []string{"kept"}, c.Members()...)
	wantWorking(t, c, []string{c.Member(1).IP() + ":9393", two.IP() + ":9393", c.Member(3).IP() + ":9393"}, c.Members()...)
}

// An LXD that was started without its node database has made a new one, in which there is no cluster. The import completes that one.
func TestRecoverStartedWithoutNodeDatabase(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 5*time.Minute)
	one, two := c.Member(1), c.Member(2)
	must(t, one.CreateProfile(ctx, "kept"))
	c.KillAll()
	must(t, one.EditReplace(ctx, ":8443", ":9393"))
	tarball := export(t, one)
	must(t, os.Remove(localOf(two)))
	before, err := os.ReadFile(two.LogFile())
	must(t, err)
	must(t, two.Spawn())
	waitLog(t, two, len(before), "Starting database node")
	two.Kill()
	s := status(t, two)
	if s.Member == nil || s.Member.Name != "node2" || len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "the table raft_nodes of the node database") {
		t.Errorf("status: %+v", s)
	}

	r := decode[recovery.ImportReport](t, mustRecover(t, two, "global-db-import", "--yes", "--format", "json", tarball))
	if r.Member.Name != "node2" || r.NodeDB != nil || !strings.Contains(strings.Join(r.Warnings, "\n"), "this member's own settings") {
		t.Errorf("import: %+v", r)
	}

	importOn(t, tarball, one)
	must(t, c.StartAll(ctx, one, two))
	wantRows(t, []string{"kept"}, one, two)
	importOn(t, tarball, c.Member(3))
	must(t, c.StartAll(ctx, c.Member(3)))
	wantWorking(t, c, []string{one.IP() + ":9393", two.IP() + ":9393", c.Member(3).IP() + ":9393"}, c.Members()...)
}

// waitLog waits until a daemon has logged something after so many bytes of its log.
func waitLog(t testing.TB, m *cluster.Member, after int, text string) {
	t.Helper()
	ctx := within(t, time.Minute)
	for {
		data, err := os.ReadFile(m.LogFile())
		must(t, err)
		if strings.Contains(string(data[after:]), text) {
			return
		}

		select {
		case <-ctx.Done():
			t.Fatalf("%s never logged %q: %s", m.Name, text, m.LogTail(20))
		case <-time.After(20 * time.Millisecond):
		}
	}
}
