// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// addSQL is AddPatch on an LXD directory.
func addSQL(t testing.TB, lxdDir string, sql string, with func(*PatchOptions)) (*PatchReport, error) {
	t.Helper()
	opts := PatchOptions{LXDDir: lxdDir, SQL: sql}
	if with != nil {
		with(&opts)
	}

	return AddPatch(t.Context(), opts)
}

func dryRun(o *PatchOptions) { o.DryRun = true }

// changed are the rows of a report, in words.
func changed(r *PatchReport) []string {
	var all []string
	for _, row := range r.Rows {
		all = append(all, row.String())
	}

	return all
}

const (
	describe = "UPDATE profiles SET description = 'mine' WHERE name = 'default'"
	said     = "update profile default in project default (description: 'Default LXD profile' -> 'mine')"
)

// A patch is tried, told in the words of the log, and written after what is there already.
func TestAddPatch(t *testing.T) {
	l := newStateLab(t)
	const there = "UPDATE profiles SET description = 'first' -- not ended"
	l.pend(t, there)
	names := namesIn(t, l.dir.database())
	r, err := addSQL(t, l.dir.path, describe, dryRun)
	must(t, err)
	const after = "update profile default in project default (description: 'first' -> 'mine')"
	if got := changed(r); !slices.Equal(got, []string{after}) || r.Done || r.Member != "node2" || r.Raft == nil || r.Standalone || l.patch(t) != there {
		t.Errorf("%+v, rows %q, written %q", r, got, l.patch(t))
	}

	stop := errors.New("no")
	_, err = addSQL(t, l.dir.path, describe, func(o *PatchOptions) { o.Confirm = func(*PatchReport) error { return stop } })
	if !errors.Is(err, stop) || l.patch(t) != there {
		t.Errorf("not confirmed: %v, written %q", err, l.patch(t))
	}

	r, err = addSQL(t, l.dir.path, describe, nil)
	must(t, err)
	const want = there + "\n;\n" + describe + ";\n"
	if l.patch(t) != want || r.Pending != want || !r.Done || r.Added != describe+";\n" {
		t.Errorf("%+v, written %q", r, l.patch(t))
	}

	info, err := os.Stat(filepath.Join(l.dir.database(), patchName))
	must(t, err)
	if info.Mode() != 0o600 || !slices.Equal(namesIn(t, l.dir.database()), names) {
		t.Errorf("mode %v, %q, were %q", info.Mode(), namesIn(t, l.dir.database()), names)
	}

	listed, err := addSQL(t, l.dir.path, "", nil)
	must(t, err)
	if got := changed(listed); !slices.Contains(got, said) || listed.Pending != want || listed.Done || listed.Fails != "" {
		t.Errorf("listed %+v, rows %q", listed, got)
	}
}

// What an edit has written stays when somebody's own SQL is removed.
func TestRemovePatch(t *testing.T) {
	l := newStateLab(t)
	_, err := addSQL(t, l.dir.path, "", func(o *PatchOptions) { o.Remove = true })
	wantError(t, err, "patch.global.sql: there is nothing to remove")
	l.pend(t, describe+";\n"+movedSQL)
	r, err := addSQL(t, l.dir.path, "", func(o *PatchOptions) { o.Remove, o.DryRun = true, true })
	must(t, err)
	if r.Done || r.Removed != describe+";\n" || l.patch(t) != describe+";\n"+movedSQL {
		t.Errorf("dry run: %+v, written %q", r, l.patch(t))
	}

	r, err = addSQL(t, l.dir.path, "", func(o *PatchOptions) { o.Remove = true })
	must(t, err)
	if !r.Done || r.Pending != movedSQL || l.patch(t) != movedSQL {
		t.Errorf("%+v, written %q", r, l.patch(t))
	}

	l.pend(t, describe)
	_, err = addSQL(t, l.dir.path, "", func(o *PatchOptions) { o.Remove = true })
	must(t, err)
	if !gone(filepath.Join(l.dir.database(), patchName)) {
		t.Errorf("an empty file is left: %q", l.patch(t))
	}
}

// What LXD would not start with is not written.
func TestAddPatchRefused(t *testing.T) {
	l := newStateLab(t)
	before := namesIn(t, l.dir.database())
	for name, test := range map[string]struct{ sql, says string }{
		"fails": {describe + "; UPDATE nope SET x = 1",
			`on a copy of the database as it is: statement 2 fails, "UPDATE nope SET x = 1": no such table: nope; nothing was changed`},
		"a select":   {"SELECT 1", "it returns rows: LXD would take that for an error, and not start"},
		"no parent":  {"INSERT INTO nodes_cluster_groups VALUES (9, 9)", "statement 1 fails"},
		"both there": {"UPDATE nodes SET address = '127.6.6.103:8443' WHERE id = 2", "UNIQUE constraint failed: nodes.address"},
	} {
		_, err := addSQL(t, l.dir.path, test.sql, nil)
		if err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v", name, err)
		}
	}

	const deletes = "DELETE FROM nodes WHERE id = 2"
	_, err := addSQL(t, l.dir.path, deletes, nil)
	wantRefusal(t, err, Refusal{Code: "patch-stops-lxd", Member: "node2", Flag: "--force",
		Reason: "with this patch LXD would not start: node2 (id 2) is a member in the raft log"})
	if got := namesIn(t, l.dir.database()); !slices.Equal(got, before) {
		t.Errorf("the refusals leave %q", got)
	}

	r, err := addSQL(t, l.dir.path, deletes, func(o *PatchOptions) { o.Force = true })
	must(t, err)
	if !r.Done || len(r.Findings) != 1 {
		t.Errorf("forced: %+v", r)
	}

	l.pend(t, "UPDATE nope SET x = 1;")
	_, err = addSQL(t, l.dir.path, describe, nil)
	wantError(t, err, "patch.global.sql, as it is already, does not run on the database: statement 1 fails")
	r, err = addSQL(t, l.dir.path, "", nil)
	must(t, err)
	if !strings.Contains(r.Fails, "no such table: nope") {
		t.Errorf("listed %+v", r)
	}
}

// A patch that does nothing is said to do nothing; one beside an interrupted run is not written.
func TestAddPatchToNothing(t *testing.T) {
	l := newStateLab(t)
	r, err := addSQL(t, l.dir.path, "UPDATE profiles SET name = 'x' WHERE id = 99", dryRun)
	must(t, err)
	wantWarning(t, r.Warnings, "it changes no row of the database as it is")
	r, err = addSQL(t, l.dir.path, "", nil)
	must(t, err)
	if r.Pending != "" || len(r.Rows) > 0 || len(r.Findings) > 0 {
		t.Errorf("%+v", r)
	}

	must(t, os.RemoveAll(l.dir.global()))
	_, err = addSQL(t, l.dir.path, describe, nil)
	wantError(t, err, "global is missing")
}

// It works on a standalone server, too.
func TestAddPatchStandalone(t *testing.T) {
	dir := solo(t)
	r, err := addSQL(t, dir, describe, nil)
	must(t, err)
	if got := changed(r); !slices.Equal(got, []string{said}) || !r.Standalone || !r.Done || r.Raft.Index != soloLast || len(r.Findings)+len(r.Warnings) > 0 {
		t.Errorf("%+v, rows %q", r, got)
	}

	_, err = addSQL(t, dir, "DELETE FROM nodes", nil)
	wantRefusal(t, err, Refusal{Code: "patch-stops-lxd", Flag: "--force", Reason: "with this patch LXD would not start"})
	status, err := Status(t.Context(), dir, Progress{})
	must(t, err)
	if len(status.Problems) > 0 || len(status.Pending) != 1 || !strings.Contains(status.Pending[0], describe) {
		t.Errorf("problems %q, pending %q", status.Problems, status.Pending)
	}
}
