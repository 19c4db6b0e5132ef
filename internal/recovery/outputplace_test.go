// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

// TestExportIntoDatabase refuses to write a tarball where LXD would load it, whatever the name is that leads there.
func TestExportIntoDatabase(t *testing.T) {
	l := newLostLab(t)
	elsewhere := t.TempDir()
	link, bind := filepath.Join(elsewhere, "link"), filepath.Join(elsewhere, "bind")
	must(t, os.Symlink(l.dir.path, link))
	must(t, os.Symlink(l.dir.local(), filepath.Join(elsewhere, "local.db")))
	must(t, os.Mkdir(l.dir.join(keptImport), 0o700))
	must(t, os.Mkdir(l.dir.join("databases"), 0o700))
	must(t, os.Mkdir(bind, 0o700))
	must(t, unix.Mount(l.dir.database(), bind, "", unix.MS_BIND, ""))
	defer func() { must(t, unix.Unmount(bind, unix.MNT_DETACH)) }()
	t.Chdir(l.dir.database())
	before := namesAndContent(t, l.dir.path)
	for _, output := range []string{
		filepath.Join(l.dir.database(), product.LXD.Loads), filepath.Join(l.dir.global(), "x"), filepath.Join(link, databaseName, "x"),
		filepath.Join(link, databaseName, "not", "there"), filepath.Join(bind, "x"), filepath.Join(l.dir.path, "not", "..", databaseName, "x"),
		l.dir.join(keptImport, "x"), filepath.Join(elsewhere, "local.db"), "x", "./" + product.LXD.Loads,
	} {
		_, err := Export(t.Context(), ExportOptions{LXDDir: l.dir.path, Output: output, Unedited: true, Force: true})
		wantOutputRefused(t, output, err)
	}

	stdout, err := os.Create(l.dir.join(keptImport, "stdout"))
	must(t, err)
	defer stdout.Close()
	_, err = Export(t.Context(), ExportOptions{LXDDir: l.dir.path, Stdout: stdout, Unedited: true})
	wantOutputRefused(t, "standard output", err)
	must(t, os.Remove(stdout.Name()))
	if namesAndContent(t, l.dir.path) != before {
		t.Error("something was changed")
	}

	for _, output := range []string{l.dir.join("x"), l.dir.join("databases", "x"), filepath.Join(elsewhere, "x"), filepath.Join(link, "y"), "../z"} {
		err = l.dir.keepOut(output)
		if err != nil {
			t.Errorf("%s: %v", output, err)
		}
	}
}

func wantOutputRefused(t *testing.T, output string, err error) {
	t.Helper()
	var refusal *Refusal
	if !errors.As(err, &refusal) || refusal.Code != "output-in-database" {
		t.Errorf("%s: %v, want a refusal", output, err)
	}
}

// TestOutputOfOthers has what else writes files refuse the same.
func TestOutputOfOthers(t *testing.T) {
	l := newLostLab(t)
	t.Setenv("LXD_DIR", l.dir.path)
	db, err := OpenDatabase(t.Context(), DatabaseOptions{})
	must(t, err)
	defer db.Close()
	wantOutputRefused(t, "SQLite file", db.CopyTo(filepath.Join(l.dir.database(), "copy.db"), true))
	_, err = Compare(t.Context(), CompareOptions{Sources: []string{l.dir.path, l.dir.path}, Survivors: filepath.Join(l.dir.global(), "new")})
	wantOutputRefused(t, "reports", err)
	must(t, db.CopyTo(filepath.Join(t.TempDir(), "copy.db"), false))
}
