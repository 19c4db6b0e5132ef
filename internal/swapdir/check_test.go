// SPDX-License-Identifier: AGPL-3.0-only

package swapdir

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// mount mounts something for the time of a test.
func mount(t *testing.T, source string, point string, kind string, options string) {
	t.Helper()
	must(t, os.MkdirAll(point, 0o700))
	must(t, unix.Mount(source, point, kind, 0, options))
	t.Cleanup(func() { must(t, unix.Unmount(point, unix.MNT_DETACH)) })
}

func wantImpossible(t *testing.T, err error, says ...string) {
	t.Helper()
	if !errors.Is(err, ErrImpossible) {
		t.Errorf("%v, want %v", err, ErrImpossible)
		return
	}

	for _, text := range says {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%q is not said: %v", text, err)
		}
	}
}

func TestCheck(t *testing.T) {
	parent := newParent(t)
	must(t, Check(parent, "database"))
	must(t, os.Symlink("database", filepath.Join(parent, "link")))
	must(t, os.WriteFile(filepath.Join(parent, "file"), nil, 0o600))
	wantImpossible(t, Check(parent, "link"), "symbolic link")
	wantImpossible(t, Check(parent, "file"), "not a directory")
	wantImpossible(t, Check("/", "proc"), "mount point")
}

// TestCheckMounts wants each mount below the directory, and none beside it.
func TestCheckMounts(t *testing.T) {
	parent := newParent(t)
	mount(t, "tmpfs", filepath.Join(parent, "elsewhere"), "tmpfs", "")
	must(t, Check(parent, "database"))
	for _, name := range []string{"global", "a/b/c"} {
		mount(t, "tmpfs", filepath.Join(parent, "database", name), "tmpfs", "")
		wantImpossible(t, Check(parent, "database"), "something is mounted below", filepath.Join(parent, "database", name)+" (tmpfs, tmpfs)")
	}
}

// TestCheckProtected sets what chattr sets: on the parent, the directory, and files in it.
func TestCheckProtected(t *testing.T) {
	parent := newParent(t)
	must(t, os.MkdirAll(filepath.Join(parent, "database", "a", "b"), 0o700))
	for _, name := range []string{"", "database", "database/which", "database/a/b"} {
		path := filepath.Join(parent, name)
		for flag, says := range map[string]string{"+i": path + " is immutable", "+a": path + " is append-only"} {
			undo := strings.Replace(flag, "+", "-", 1)
			must(t, exec.Command("chattr", flag, path).Run())
			err := Check(parent, "database")
			must(t, exec.Command("chattr", undo, path).Run())
			wantImpossible(t, err, says, "chattr "+undo)
		}
	}

	must(t, exec.Command("chattr", "+i", filepath.Join(parent, "staged")).Run())
	err := Check(parent, "database")
	must(t, exec.Command("chattr", "-i", filepath.Join(parent, "staged")).Run())
	must(t, err) // it is about the other one
}

func TestProbe(t *testing.T) {
	parent := newParent(t)
	dir := filepath.Join(parent, "import")
	must(t, os.Mkdir(dir, 0o700))
	must(t, Probe(dir, filepath.Join(parent, "database")))
	wantEmpty(t, dir)
	want(t, parent, "old", "", "database", "import", "staged")
	err := Probe("/proc/self", "/proc/self")
	if err == nil {
		t.Error("/proc can exchange directories")
	}
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) > 0 {
		t.Errorf("left over: %v", entries)
	}
}

// TestProbeOverlay has the directory in the lower layer of an overlay, in both layers, and in the upper layer only. That the kernel exchanges
// it where Probe says so, and does not otherwise, is tried.
func TestProbeOverlay(t *testing.T) {
	for name, test := range map[string]struct {
		options  string
		layer    string // where the directory is: lower or upper
		possible bool
	}{
		"lower":                {"redirect_dir=off", "lower", false},
		"lower by the default": {"", "lower", strings.HasPrefix(readFile(t, redirectDefault), "Y")},
		"lower redirected":     {"redirect_dir=on", "lower", true},
		"upper":                {"redirect_dir=off", "upper", true},
		"upper on top of one":  {"redirect_dir=off", "both", false},
	} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			mount(t, "tmpfs", base, "tmpfs", "") // which an overlay can have as its upper layer, whatever the machine's is
			for _, name := range []string{"lower", "upper", "work"} {
				must(t, os.Mkdir(filepath.Join(base, name), 0o700))
			}

			for _, layer := range []string{"lower", "upper"} {
				if test.layer == layer || test.layer == "both" {
					must(t, os.Mkdir(filepath.Join(base, layer, "database"), 0o700))
				}
			}

			options := strings.Trim("lowerdir="+base+"/lower,upperdir="+base+"/upper,workdir="+base+"/work,"+test.options, ",")
			parent := filepath.Join(base, "overlay")
			mount(t, "overlay", parent, "overlay", options)
			live, staged := filepath.Join(parent, "database"), filepath.Join(parent, "staged")
			must(t, os.Mkdir(staged, 0o700))
			err := Probe(staged, live)
			if test.possible {
				must(t, err)
			} else {
				wantImpossible(t, err, "lower layer of an overlay")
			}

			wantEmpty(t, staged)
			err = unix.Renameat2(unix.AT_FDCWD, live, unix.AT_FDCWD, staged, unix.RENAME_EXCHANGE)
			if test.possible != (err == nil) {
				t.Errorf("the kernel, when it comes to it: %v", err)
			}
		})
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	must(t, err)
	return string(data)
}
