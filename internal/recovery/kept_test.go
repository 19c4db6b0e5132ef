// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// Names of kept databases, oldest first.
const (
	keptEdit     = "database.before-edit-20261122T213000Z"
	keptImport   = "database.before-import-20261122T213100Z"
	keptSecond   = "database.before-import-20261122T213100Z-2"
	keptRollback = "database.before-rollback-20261122T213200Z"
)

// makeKept makes an LXD directory in which databases are kept, and things that look like one and are none.
func makeKept(t testing.TB) string {
	t.Helper()
	lxd := t.TempDir()
	sound := raftlogtest.Global(t, "small/n2-preimport")
	for _, name := range []string{databaseName, keptEdit, keptImport, keptSecond, keptRollback} {
		must(t, os.CopyFS(filepath.Join(lxd, name, globalName), os.DirFS(sound)))
		must(t, os.WriteFile(filepath.Join(lxd, name, "local.db"), []byte("1234"), 0o600))
	}

	must(t, os.WriteFile(filepath.Join(lxd, keptSecond, globalName, "0000000000000062-0000000000000126"), []byte("damage"), 0o600))
	must(t, os.Mkdir(filepath.Join(lxd, "database.before-import-20261122T213300Z"), 0o700))                                   // without a local.db
	must(t, os.Symlink(keptEdit, filepath.Join(lxd, "database.before-import-20261122T213400Z")))                              // a link
	must(t, os.CopyFS(filepath.Join(lxd, "database.before-noon"), os.DirFS(filepath.Join(lxd, keptEdit))))                    // no time
	must(t, os.CopyFS(filepath.Join(lxd, "outside", keptEdit), os.DirFS(filepath.Join(lxd, keptEdit))))                       // elsewhere
	must(t, os.CopyFS(filepath.Join(lxd, "database.before-import-99999999T999999Z"), os.DirFS(filepath.Join(lxd, keptEdit)))) // no such day
	return lxd
}

func TestListKept(t *testing.T) {
	lxd := makeKept(t)
	report, err := ListKept(t.Context(), lxd, Progress{})
	must(t, err)
	var names []string
	var size int64
	for _, b := range report.Kept {
		names = append(names, b.Name)
		size += b.Size
		want := treeSize(filepath.Join(lxd, b.Name))
		if b.Size != want || b.Size == 0 {
			t.Errorf("%s has %d bytes, want %d", b.Name, b.Size, want)
		}

		if b.Healthy == (b.Name == keptSecond) {
			t.Errorf("%s is healthy: %t", b.Name, b.Healthy)
		}

		if b.Name == keptSecond {
			continue
		}

		if b.Raft == nil || b.Raft.Index != raftlogtest.StoppedLast {
			t.Errorf("%s ends at %v", b.Name, b.Raft)
		}
	}

	if !slices.Equal(names, []string{keptRollback, keptSecond, keptImport, keptEdit}) || report.Size != size {
		t.Errorf("%d bytes in %q", report.Size, names)
	}

	if b := report.Kept[0]; b.Purpose != purposeRollback || b.Time.Format("15:04:05") != "21:32:00" {
		t.Errorf("%+v", b)
	}
}

// What is asked for goes, and nothing else.
func TestRemoveKept(t *testing.T) {
	lxd := makeKept(t)
	before := namesIn(t, lxd)
	must(t, os.WriteFile(filepath.Join(lxd, keptImport+reportSuffix), nil, 0o600))
	must(t, os.Mkdir(filepath.Join(lxd, removingName), 0o700)) // an interrupted run
	asked := false
	report, err := RemoveKept(t.Context(), RemoveKeptOptions{
		LXDDir: lxd, Names: []string{keptImport, filepath.Join(lxd, keptEdit), keptImport},
		Confirm: func(r *RemoveKeptReport) error {
			asked = len(r.Removed) == 2 && r.Removed[0].Report != "" && r.Removed[1].Report == "" && r.Size == r.Removed[0].Size+r.Removed[1].Size &&
				len(namesIn(t, lxd)) == len(before)+2
			return nil
		},
	})
	must(t, err)
	if !asked || report.Left.Count != 2 {
		t.Errorf("asked: %t, %+v", asked, report)
	}

	want := slices.DeleteFunc(before, func(name string) bool { return name == keptImport || name == keptEdit })
	if got := namesIn(t, lxd); !slices.Equal(got, want) {
		t.Errorf("left: %q, want %q", got, want)
	}
}

// Where one name is refused none is removed.
func TestRemoveKeptRefuses(t *testing.T) {
	lxd := makeKept(t)
	before := namesIn(t, lxd)
	refuses := func(says string, names ...string) {
		t.Helper()
		_, err := RemoveKept(t.Context(), RemoveKeptOptions{LXDDir: lxd, Names: names})
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("remove %q: %v, want %q", names, err, says)
		}

		if got := namesIn(t, lxd); !slices.Equal(got, before) {
			t.Errorf("remove %q leaves %q", names, got)
		}
	}
	for _, name := range []string{
		"", ".", "..", "/", databaseName, filepath.Join(lxd, databaseName), stagingName, "database.before-noon",
		"database.before-import-20261122T213300Z", "database.before-import-20261122T213400Z", "database.before-import-99999999T999999Z",
		"outside/" + keptEdit, "./" + keptEdit, "../" + filepath.Base(lxd) + "/" + keptEdit, "/var/lib/lxd/" + keptEdit, keptEdit + "/",
		keptEdit + "/" + globalName,
	} {
		refuses("no kept database", keptImport, name)
	}

	open, err := os.Open(filepath.Join(lxd, keptImport, "local.db"))
	must(t, err)
	holder := exec.Command("cat")
	holder.ExtraFiles = []*os.File{open}
	input, err := holder.StdinPipe()
	must(t, err)
	must(t, holder.Start())
	refuses("open: stop it first", keptEdit, keptImport)
	must(t, errors.Join(input.Close(), holder.Wait(), open.Close()))

	_, unlock, err := openToChange(lxd)
	must(t, err)
	refuses("another lxd-recover is working", keptEdit)
	unlock()

	no := os.ErrPermission
	_, err = RemoveKept(t.Context(), RemoveKeptOptions{LXDDir: lxd, Names: []string{keptEdit}, Confirm: func(*RemoveKeptReport) error { return no }})
	if !errors.Is(err, no) || !slices.Equal(namesIn(t, lxd), before) {
		t.Errorf("not confirmed: %v, left %q", err, namesIn(t, lxd))
	}
}

// A rollback that was interrupted between its two renames has the database that was live under the name of the one it put back.
func TestRemoveKeptOfPlan(t *testing.T) {
	lxd := makeKept(t)
	plan := "format: 1\npurpose: rollback\ncreated: 2026-11-22T21:33:00Z\n" +
		"live: database\nstaged: " + keptImport + "\nkeep: database.before-rollback-20261122T213300Z\nlive_inode: 1\nstaged_inode: 2\n"
	must(t, os.WriteFile(filepath.Join(lxd, swapdir.PlanFile), []byte(plan), 0o600))
	_, err := RemoveKept(t.Context(), RemoveKeptOptions{LXDDir: lxd, Names: []string{keptEdit, keptImport}})
	if err == nil || !strings.Contains(err.Error(), "lxd-recover resume") {
		t.Errorf("%v", err)
	}

	_, err = RemoveKept(t.Context(), RemoveKeptOptions{LXDDir: lxd, Names: []string{keptEdit}})
	must(t, err)
	if got := namesIn(t, lxd); slices.Contains(got, keptEdit) || !slices.Contains(got, keptImport) {
		t.Errorf("left: %q", got)
	}
}

func namesIn(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}

	return names
}
