// SPDX-License-Identifier: AGPL-3.0-only

package swapdir

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// newParent makes a parent with the directories database (old) and staged (new), each with a file that tells which it is.
func newParent(t *testing.T) string {
	t.Helper()
	parent := t.TempDir()
	for name, content := range map[string]string{"database": "old", "staged": "new"} {
		must(t, os.Mkdir(filepath.Join(parent, name), 0o700))
		must(t, os.WriteFile(filepath.Join(parent, name, "which"), []byte(content), 0o600))
	}

	return parent
}

func plan() Plan { return Plan{Purpose: "import", Live: "database", Staged: "staged", Keep: "kept"} }

// which tells what is in a directory: old, new, or nothing.
func which(t *testing.T, parent string, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(parent, name, "which"))
	if errors.Is(err, os.ErrNotExist) {
		return ""
	}

	must(t, err)
	return string(data)
}

func want(t *testing.T, parent string, live string, kept string, names ...string) {
	t.Helper()
	got := which(t, parent, "database")
	if got != live {
		t.Errorf("database is %q, want %q", got, live)
	}

	got = which(t, parent, "kept")
	if got != kept {
		t.Errorf("kept is %q, want %q", got, kept)
	}

	entries, err := os.ReadDir(parent)
	must(t, err)
	var have []string
	for _, e := range entries {
		have = append(have, e.Name())
	}

	slices.Sort(names)
	if !slices.Equal(have, names) {
		t.Errorf("left over: %v, want %v", have, names)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestRun(t *testing.T) {
	parent := newParent(t)
	done, err := Run(parent, plan())
	must(t, err)
	if !done {
		t.Error("not done")
	}

	want(t, parent, "new", "old", "database", "kept")
}

// Every state that a run can be cut short in: Finish makes it whole, however often it is called.
func TestFinish(t *testing.T) {
	for _, test := range []struct {
		name  string
		steps func(t *testing.T, parent string)
		state State
		live  string
		kept  string
		left  []string
	}{
		{"planned", func(*testing.T, string) {}, Planned, "old", "", []string{"database", "staged"}},
		{"exchanged", exchange, Exchanged, "new", "old", []string{"database", "kept"}},
		{"kept", func(t *testing.T, parent string) {
			exchange(t, parent)
			must(t, os.Rename(filepath.Join(parent, "staged"), filepath.Join(parent, "kept")))
		}, Exchanged, "new", "old", []string{"database", "kept"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			parent := newParent(t)
			p := plan()
			p.Format = planFormat
			var err error
			p.LiveInode, err = inode(filepath.Join(parent, "database"))
			must(t, err)
			p.StagedInode, err = inode(filepath.Join(parent, "staged"))
			must(t, err)
			must(t, p.write(parent))
			test.steps(t, parent)

			found, state, err := Finish(parent)
			must(t, err)
			if found == nil || state != test.state {
				t.Errorf("plan %v, state %d, want %d", found, state, test.state)
			}

			want(t, parent, test.live, test.kept, test.left...)
			found, _, err = Finish(parent)
			must(t, err)
			if found != nil {
				t.Error("the plan is still there")
			}

			want(t, parent, test.live, test.kept, test.left...)
		})
	}
}

func exchange(t *testing.T, parent string) {
	t.Helper()
	must(t, unix.Renameat2(unix.AT_FDCWD, filepath.Join(parent, "database"), unix.AT_FDCWD, filepath.Join(parent, "staged"), unix.RENAME_EXCHANGE))
}

// A plan for other directories than the ones that are there is nothing to act on.
func TestFinishForeignPlan(t *testing.T) {
	parent := newParent(t)
	p := plan()
	p.Format, p.LiveInode, p.StagedInode = planFormat, 1, 2
	must(t, p.write(parent))
	_, _, err := Finish(parent)
	if err == nil {
		t.Fatal("no error")
	}

	want(t, parent, "old", "", "database", "staged", PlanFile)
}

func TestBadPlans(t *testing.T) {
	for name, content := range map[string]string{
		"empty":     "",
		"not YAML":  "\x00\x01",
		"unknown":   "format: 1\nsurprise: yes\n",
		"future":    "format: 2\n",
		"outside":   "format: 1\nlive: database\nstaged: ../x\nkeep: kept\n",
		"same name": "format: 1\nlive: database\nstaged: database\nkeep: kept\n",
	} {
		t.Run(name, func(t *testing.T) {
			parent := newParent(t)
			must(t, os.WriteFile(filepath.Join(parent, PlanFile), []byte(content), 0o600))
			_, _, err := Finish(parent)
			if err == nil {
				t.Fatal("no error")
			}

			want(t, parent, "old", "", "database", "staged", PlanFile)
		})
	}
}

func TestRunRefuses(t *testing.T) {
	t.Run("kept name taken", func(t *testing.T) {
		parent := newParent(t)
		must(t, os.Mkdir(filepath.Join(parent, "kept"), 0o700))
		done, err := Run(parent, plan())
		if done || err == nil {
			t.Errorf("done %v, error %v", done, err)
		}

		want(t, parent, "old", "", "database", "staged", "kept")
	})
	t.Run("nothing staged", func(t *testing.T) {
		parent := newParent(t)
		must(t, os.RemoveAll(filepath.Join(parent, "staged")))
		done, err := Run(parent, plan())
		if done || err == nil {
			t.Errorf("done %v, error %v", done, err)
		}

		want(t, parent, "old", "", "database")
	})
}
