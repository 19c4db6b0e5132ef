// SPDX-License-Identifier: AGPL-3.0-only

package frontend

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// This test's own program is one of our module: it stands for lxd-recover.

func TestNextSkipsOurs(t *testing.T) {
	top := t.TempDir()
	in := func(dir string) string {
		path := filepath.Join(top, dir, Name())
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		return path
	}

	self, err := os.Executable()
	must(t, err)

	copied := filepath.Join(top, "copied", programName)
	must(t, os.MkdirAll(filepath.Dir(copied), 0o755))
	copyProgram(t, self, copied)
	must(t, os.Symlink(self, in("link")))
	must(t, os.Symlink(in("link"), in("chain")))
	must(t, os.Symlink("../chain/lxd", in("longer-chain")))
	must(t, os.Symlink(copied, in("link-to-copy")))
	must(t, os.Link(copied, in("hard-link-of-copy")))
	copyProgram(t, self, in("copy"))

	// What a shell skips, too.
	must(t, os.Symlink("/nothing/here", in("dangling")))
	must(t, os.Symlink(in("endless"), in("endless")))
	must(t, os.MkdirAll(in("directory"), 0o755))
	must(t, os.WriteFile(in("not-executable"), []byte("#!/bin/sh\n"), 0o644))

	ours := []string{"link", "chain", "longer-chain", "link-to-copy", "hard-link-of-copy", "copy",
		"dangling", "endless", "directory", "not-executable", "missing"}
	var path []string
	for _, dir := range ours {
		path = append(path, filepath.Join(top, dir))
	}

	own := in("own")
	must(t, os.WriteFile(own, []byte("#!/bin/sh\n"), 0o755))

	t.Run("LXD's own after them", func(t *testing.T) {
		wantNext(t, append(path, filepath.Dir(own)), nil, own)
	})
	t.Run("LXD's own not in PATH", func(t *testing.T) {
		wantNext(t, path, []string{"/nothing", filepath.Dir(own)}, own)
	})
	t.Run("no PATH", func(t *testing.T) {
		wantNext(t, nil, append(path, filepath.Dir(own)), own)
	})
	t.Run("none", func(t *testing.T) {
		got, err := next(strings.Join(path, ":"), path)
		if !errors.Is(err, ErrNoLXD) || got != "" {
			t.Errorf("found %q, %v", got, err)
		}
	})
	t.Run("the first one of two", func(t *testing.T) {
		second := in("second")
		must(t, os.WriteFile(second, []byte("#!/bin/sh\n"), 0o755))
		wantNext(t, []string{filepath.Dir(second), filepath.Dir(own)}, nil, second)
	})
	t.Run("the working directory is not searched", func(t *testing.T) {
		t.Chdir(filepath.Dir(own))
		got, err := next(":.:"+strings.Join(path, ":"), nil)
		if !errors.Is(err, ErrNoLXD) {
			t.Errorf("found %q, %v", got, err)
		}
	})
}

// TestNextUnresolved: /snap/bin/lxd is a link to a program that looks at its own name.
func TestNextUnresolved(t *testing.T) {
	top := t.TempDir()
	snap := filepath.Join(top, "usr", "snap")
	bin := filepath.Join(top, "snap", "bin")
	must(t, os.MkdirAll(filepath.Dir(snap), 0o755))
	must(t, os.MkdirAll(bin, 0o755))
	must(t, os.WriteFile(snap, []byte("#!/bin/sh\n"), 0o755))
	must(t, os.Symlink(snap, filepath.Join(bin, Name())))
	wantNext(t, []string{bin}, nil, filepath.Join(bin, Name()))
}

func wantNext(t *testing.T, path []string, more []string, want string) {
	t.Helper()
	got, err := next(strings.Join(path, ":"), more)
	if err != nil || got != want {
		t.Errorf("found %q (%v), want %s", got, err, want)
	}
}

func copyProgram(t *testing.T, from string, to string) {
	t.Helper()
	in, err := os.Open(from)
	must(t, err)
	defer in.Close()

	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	must(t, err)
	_, err = io.Copy(out, in)
	must(t, err)
	must(t, out.Close())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
