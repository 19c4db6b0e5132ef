// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// Every run that replaces a database leaves it, and a report beside it; a removal takes both, and only those that were named.
func TestKept(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{Members: 1})
	m := c.Member(1)
	c.KillAll()
	list, err := m.ShowYAML(within(t, time.Minute))
	must(t, err)
	edit := m.Command(t.Context(), tool, "cluster", "edit")
	edit.Stdin = strings.NewReader(strings.ReplaceAll(string(list), ":8443", ":9393"))
	if r := run(t, edit); r.status != 0 {
		t.Fatal(r)
	}

	tarball := export(t, m)
	r := mustRecover(t, m, "global-db-import", "--dry-run", "--format", "json", tarball)
	plan := decode[recovery.ImportReport](t, r)
	if plan.KeptSpace.Count != 1 || plan.KeptSpace.Size == 0 || plan.Size == 0 {
		t.Errorf("the plan: %+v, %d bytes", plan.KeptSpace, plan.Size)
	}

	log := filepath.Join(t.TempDir(), "log")
	imported := mustRecover(t, m, "global-db-import", "--yes", "--log-file", log, tarball).stdout
	if !strings.Contains(imported, "2 kept databases here take ") {
		t.Errorf("the import says %q", imported)
	}

	logged, err := os.ReadFile(log)
	must(t, err)
	wantOrder(t, string(logged), "msg=begin", "global-db-import", "what=\"Replaying the raft log\"",
		"the old one is kept in "+m.Dir(), "msg=end", "exit_status=0")
	mustRecover(t, m, "global-db-rollback", "--yes")

	kept := backups(t, m)
	var runs []string
	for _, b := range kept.Kept {
		runs = append(runs, b.Purpose)
		if b.Raft == nil || b.Raft.Index == 0 || b.Size == 0 || b.Report != b.Name+".report.json" {
			t.Errorf("%+v", b)
		}

		data, err := os.ReadFile(filepath.Join(m.Dir(), b.Report))
		must(t, err)
		var report recovery.RunReport
		must(t, json.Unmarshal(data, &report))
		if report.Run != b.Purpose || report.Kept != b.Name || report.Finished == nil || report.Error != "" {
			t.Errorf("%s: %s", b.Report, data)
		}
	}

	if got := strings.Join(runs, " "); got != "rollback edit" {
		t.Fatalf("kept by %s", got)
	}

	// The import's is in place again; that an import was made, and undone, can still be read.
	reports, err := filepath.Glob(filepath.Join(m.Dir(), "database.before-import-*.report.json"))
	must(t, err)
	if len(reports) != 1 {
		t.Errorf("reports of the import: %q", reports)
	}

	edited, undone := kept.Kept[1].Name, kept.Kept[0].Name
	check := unchanged(t, m.Dir())
	recoverTool(t, m, "global-db-kept", "remove", edited).want(t, 3, "there is no terminal to ask on", "--yes")
	recoverTool(t, m, "global-db-kept", "remove", "--yes", edited, "database").want(t, 1, `no kept database "database"`, "global-db-kept list")
	check()
	mustRecover(t, m, "global-db-kept", "remove", "--yes", edited)
	for _, name := range []string{edited, edited + ".report.json"} {
		_, err := os.Lstat(filepath.Join(m.Dir(), name))
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}

	if left := backups(t, m); len(left.Kept) != 1 || left.Kept[0].Name != undone || left.Size != left.Kept[0].Size {
		t.Errorf("left: %+v", left)
	}

	mustRecover(t, m, "global-db-rollback", "--yes", undone)
	must(t, c.StartAll(within(t, time.Minute)))
}

func backups(t testing.TB, m *cluster.Member) recovery.KeptReport {
	t.Helper()
	return decode[recovery.KeptReport](t, mustRecover(t, m, "global-db-kept", "list", "--format", "json"))
}
