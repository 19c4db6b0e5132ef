// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"bytes"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// patch runs global-db-patch on a member, with SQL on standard input.
func patch(t testing.TB, m *cluster.Member, sql string, args ...string) result {
	t.Helper()
	cmd := m.Command(t.Context(), tool, append([]string{"global-db-patch", "-"}, args...)...)
	cmd.Stdin = bytes.NewReader([]byte(sql))
	return run(t, cmd)
}

// wantSQL asks a running LXD's global database.
func wantSQL(t testing.TB, m *cluster.Member, query string, want ...string) {
	t.Helper()
	rows, err := m.SQL(within(t, time.Minute), query)
	must(t, err)
	var got []string
	for _, row := range rows {
		got = append(got, strings.Join(row, "|"))
	}

	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", query, got, want)
	}
}

func patchFile(m *cluster.Member) string {
	return filepath.Join(m.Dir(), "database", "patch.global.sql")
}

// TestPatchStandalone has LXD run a patch when it starts: everything that it was tried with, behind an empty statement and comments, too.
func TestPatchStandalone(t *testing.T) {
	t.Parallel()
	cluster.EachProduct(t, func(t *testing.T, lxd cluster.LXD) {
		m := cluster.StandaloneForTest(t, cluster.Options{LXD: lxd})
		ctx := within(t, 3*time.Minute)
		must(t, m.CreateProfile(ctx, "mine"))
		const sql = "-- first\nUPDATE profiles SET description = 'a;b' WHERE name = 'mine';; /* and */\n" +
			"CREATE TABLE by_patch (id INTEGER PRIMARY KEY); INSERT INTO by_patch VALUES (7) -- last"
		besideFrozen(t, m, func() {
			patch(t, m, sql, "--yes").want(t, 3, "reads patch.global.sql only when it starts", "--while-running")
		})
		must(t, m.Stop(ctx))
		check := unchanged(t, m.Dir())
		patch(t, m, "UPDATE profiles SET nope = 1", "--yes").want(t, 1, "no such column: nope", "nothing was changed")
		patch(t, m, sql).want(t, 3, "there is no terminal to ask on")
		dry := patch(t, m, sql, "--dry-run")
		if dry.status != 0 || !strings.Contains(dry.stdout, "update profile mine in project default (description: '' -> 'a;b')") {
			t.Errorf("dry run: exit status %d, %s", dry.status, dry.stdout)
		}

		check()
		r := decode[recovery.PatchReport](t, patch(t, m, sql, "--yes", "--format", "json"))
		if !r.Done || !r.Standalone || len(r.Findings)+len(r.Warnings) > 0 {
			t.Errorf("%+v", r)
		}

		list := mustRecover(t, m, "global-db-patch", "--list").stdout
		if !strings.Contains(list, lxd.Names.Product+" runs it in one transaction when it next starts, and deletes") {
			t.Errorf("listed: %s", list)
		}

		wantStarted(t, m, "default", "mine")
		wantSQL(t, m, "SELECT description, by_patch.id FROM profiles JOIN by_patch WHERE name = 'mine'", "a;b|7")
		wantMissing(t, patchFile(m))
	})
}

// TestPatchLostMember has an edit carry a patch over, and add one without which LXD would wait for a lost member of an older version.
func TestPatchLostMember(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{Members: 2})
	ctx := within(t, 3*time.Minute)
	one := c.Member(1)
	must(t, one.CreateProfile(ctx, "mine"))
	c.KillAll(c.Member(2))
	wantSQL(t, one, "UPDATE nodes SET schema = schema - 1, api_extensions = 300 WHERE id = 2")
	c.KillAll()
	if s := status(t, one); len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "LXD here waits until node2 is upgraded") {
		t.Errorf("problems %q", s.Problems)
	}

	const sql = "UPDATE profiles SET description = 'by hand' WHERE name = 'mine';\n"
	if r := patch(t, one, sql, "--yes"); r.status != 0 {
		t.Errorf("patch: exit status %d", r.status)
	}

	report := decode[recovery.EditReport](t, mustRecover(t, one, "cluster", "recover-from-quorum-loss", "--quiet", "--format", "json"))
	if report.Carried != sql || !strings.HasPrefix(string(report.Patch), sql) || !strings.Contains(string(report.Patch), " WHERE id = 2 AND schema = ") {
		t.Errorf("carried %q, patch %q", report.Carried, report.Patch)
	}

	if s := status(t, one); len(s.Problems) > 0 {
		t.Errorf("problems %q", s.Problems)
	}

	must(t, c.StartAll(ctx, one))
	wantSQL(t, one, "SELECT description FROM profiles WHERE name = 'mine'", "by hand")
	wantSQL(t, one, "SELECT count(*) FROM (SELECT DISTINCT schema, api_extensions FROM nodes)", "1")
	wantMissing(t, patchFile(one))
}
