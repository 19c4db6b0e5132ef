// SPDX-License-Identifier: AGPL-3.0-only

package scratch

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// sweepIn has this process look again for what is left, in another directory for temporary files.
func sweepIn(t *testing.T, tmp string) {
	t.Helper()
	t.Setenv("TMPDIR", tmp)
	sweep = sync.Once{}
}

// makerVariable tells this program to make a directory and a file in it, and then to wait until it is killed.
const makerVariable = "SCRATCH_TEST_MAKER"

func TestMain(m *testing.M) {
	parent := os.Getenv(makerVariable)
	if parent == "" {
		os.Exit(m.Run())
	}

	dir, _, err := Dir("test")
	if err == nil {
		err = os.MkdirAll(filepath.Join(dir, "deep", "er"), 0o700)
	}

	f, _, fileErr := File(parent)
	if err != nil || fileErr != nil {
		os.Exit(1)
	}

	fmt.Printf("%s %s\n", dir, f.Name())
	select {}
}

// maker starts a process that makes a directory and a file, and returns their names, and what kills it.
func maker(t *testing.T, tmp string) (dir string, file string, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, makerVariable+"="+tmp)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	killed := false
	kill = func() {
		if !killed {
			killed = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(kill)
	_, err = fmt.Fscan(stdout, &dir, &file)
	must(t, err)
	return dir, file, kill
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// TestKilled wants what a killed process left to be removed by the next one, and what one has that lives to stay.
func TestKilled(t *testing.T) {
	tmp := t.TempDir()
	deadDir, deadFile, kill := maker(t, tmp)
	kill()
	if !exists(deadDir) || !exists(deadFile) {
		t.Fatal("the killed process has left nothing")
	}

	_, livingFile, _ := maker(t, tmp) // which looks for what is left, too
	if exists(deadDir) || exists(deadFile) {
		t.Error("what a killed process left is still there")
	}

	sweepIn(t, tmp)
	mine, remove, err := Dir("mine")
	must(t, err)
	f, end, err := File(tmp)
	must(t, err)
	sweepIn(t, tmp)
	_, removeOther, err := Dir("other")
	must(t, err)
	_, endOther, err := File(tmp)
	must(t, err)
	for _, path := range []string{livingFile, mine, f.Name()} {
		if !exists(path) {
			t.Errorf("%s was removed, and is in use", path)
		}
	}

	must(t, f.Close())
	clean(tmp, fileName, 0o100600)
	if !exists(f.Name()) {
		t.Error("a file was removed that is closed, and not renamed yet")
	}

	remove()
	removeOther()
	end()
	endOther()
	if exists(mine) || exists(f.Name()) {
		t.Error("not removed")
	}
}

// TestForeign wants nothing to be removed that only looks like ours.
func TestForeign(t *testing.T) {
	tmp, elsewhere := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(elsewhere, "precious"), nil, 0o600))
	name := func(n string) string { return filepath.Join(tmp, dirPrefix+n) }
	must(t, os.Mkdir(name("verify-1"), 0o755))
	must(t, os.Mkdir(name("verify-2"), 0o700))
	must(t, os.Chown(name("verify-2"), 1000, 0))
	must(t, os.Symlink(elsewhere, name("verify-3")))
	must(t, os.WriteFile(name("verify-4"), nil, 0o600))
	must(t, os.Mkdir(name("verify-5x"), 0o700))
	must(t, os.Mkdir(filepath.Join(tmp, "lxd-recover-verify-6"), 0o700))
	must(t, os.WriteFile(filepath.Join(tmp, ".lxd-recover-7.part"), nil, 0o644))
	must(t, os.WriteFile(filepath.Join(tmp, ".lxd-recover-8.part"), nil, 0o600))
	must(t, os.Link(filepath.Join(tmp, ".lxd-recover-8.part"), filepath.Join(elsewhere, "also mine")))
	must(t, os.Symlink(filepath.Join(elsewhere, "precious"), filepath.Join(tmp, ".lxd-recover-9.part")))
	must(t, os.Mkdir(filepath.Join(tmp, ".lxd-recover-10.part"), 0o700))
	must(t, os.Mkdir(name("verify-11"), 0o700)) // the only one that is ours
	must(t, os.Symlink(elsewhere, filepath.Join(name("verify-11"), "link")))
	before, err := os.ReadDir(tmp)
	must(t, err)

	sweepIn(t, tmp)
	_, remove, err := Dir("test")
	must(t, err)
	remove()
	_, end, err := File(tmp)
	must(t, err)
	end()
	var gone []string
	for _, e := range before {
		if !exists(filepath.Join(tmp, e.Name())) {
			gone = append(gone, e.Name())
		}
	}

	if strings.Join(gone, " ") != dirPrefix+"verify-11" {
		t.Errorf("removed: %q", gone)
	}

	if !exists(filepath.Join(elsewhere, "precious")) {
		t.Error("a link was followed")
	}
}

// TestManyAtOnce has directories and files made while others look for what is left: none may lose its own.
func TestManyAtOnce(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 50 {
				clean(tmp, dirName, 0o040700)
				dir, remove, err := Dir("test")
				f, end, fileErr := File(tmp)
				if err != nil || fileErr != nil {
					t.Errorf("%v, %v", err, fileErr)
					return
				}

				if !exists(dir) || !exists(f.Name()) {
					t.Error("something is gone")
				}

				_ = f.Close()
				remove()
				end()
			}
		})
	}

	group.Wait()
	left, err := os.ReadDir(tmp)
	if len(left) > 0 || err != nil {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestNames has the names that are made be those that are looked for.
func TestNames(t *testing.T) {
	sweepIn(t, t.TempDir())
	dir, remove, err := Dir("test")
	must(t, err)
	f, end, err := File(t.TempDir())
	must(t, err)
	for name, want := range map[string]*regexp.Regexp{dir: dirName, f.Name(): fileName} {
		if !want.MatchString(filepath.Base(name)) {
			t.Errorf("%s is not one of %v", name, want)
		}
	}

	remove()
	end()
}
