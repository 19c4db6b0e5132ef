// SPDX-License-Identifier: AGPL-3.0-only

package frontend

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

// place is a directory for the link, first in PATH, and one with an LXD, after it.
func place(t *testing.T) (dir string, link string, lxd string) {
	t.Helper()
	top := t.TempDir()
	dir, lxd = filepath.Join(top, "sbin"), filepath.Join(top, "bin", Name())
	must(t, os.Mkdir(filepath.Dir(lxd), 0o755))
	must(t, os.WriteFile(lxd, []byte("#!/bin/sh\n"), 0o755))
	t.Setenv("PATH", dir+":"+filepath.Dir(lxd))
	return dir, filepath.Join(dir, Name()), lxd
}

func TestInstallAndRemove(t *testing.T) {
	dir, link, lxd := place(t)
	self, err := os.Executable()
	must(t, err)

	for i, changed := range []bool{true, false} {
		r, err := Install(dir)
		must(t, err)
		if r.Changed != changed || !r.Installed || r.Link != link || r.Target != self || r.Found != link || !r.Effective || r.LXD != lxd {
			t.Errorf("install %d: %+v", i+1, r)
		}

		warnings := unexposed(r.Warnings)
		if len(warnings) != 0 {
			t.Errorf("install %d: warnings %q", i+1, warnings)
		}

		wantLink(t, link, self)
	}

	for i, changed := range []bool{true, false} {
		r, err := Remove(dir)
		must(t, err)
		if r.Changed != changed || r.Installed || r.Target != "" || r.Found != lxd || r.Effective || r.LXD != lxd {
			t.Errorf("remove %d: %+v", i+1, r)
		}

		wantEmpty(t, dir)
	}
}

// unexposed leaves out the warning that depends on whose directory the tests are run from.
func unexposed(warnings []string) []string {
	var left []string
	for _, w := range warnings {
		if !strings.Contains(w, "can be changed by others") {
			left = append(left, w)
		}
	}

	return left
}

func TestInstallReplacesOurLinks(t *testing.T) {
	for name, target := range map[string]string{
		"dangling, of a snap that is gone": "/snap/lxd-recover/current/bin/lxd-recover",
		"relative":                         "lxd-recover",
		"a copy of another name":           "COPY",
	} {
		t.Run(name, func(t *testing.T) {
			dir, link, _ := place(t)
			self, err := os.Executable()
			must(t, err)
			must(t, os.Mkdir(dir, 0o755))
			if target == "COPY" {
				target = filepath.Join(t.TempDir(), "lxd-recover-1.0")
				copyProgram(t, self, target)
			}

			must(t, os.Symlink(target, link))
			must(t, os.Symlink("left by a killed run", filepath.Join(dir, ".lxd.lxd-recover")))

			r, err := Install(dir)
			must(t, err)
			if !r.Changed || !r.Effective {
				t.Errorf("%+v", r)
			}

			wantLink(t, link, self)
			must(t, os.Remove(link))
			wantEmpty(t, dir)
		})
	}
}

func TestForeignFilesAreLeftAlone(t *testing.T) {
	for name, make := range map[string]func(link string, lxd string) error{
		"a program":              func(link, _ string) error { return os.WriteFile(link, []byte("#!/bin/sh\n"), 0o755) },
		"a link to LXD":          func(link, lxd string) error { return os.Symlink(lxd, link) },
		"a dangling link":        func(link, _ string) error { return os.Symlink("/opt/lxd/bin/lxd", link) },
		"a directory":            func(link, _ string) error { return os.Mkdir(link, 0o755) },
		"a copy of lxd-recover":  func(link, _ string) error { return os.WriteFile(link, []byte("lxd-recover"), 0o755) },
		"a hard link of another": func(link, lxd string) error { return os.Link(lxd, link) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, link, lxd := place(t)
			must(t, os.Mkdir(dir, 0o755))
			must(t, make(link, lxd))
			before, err := os.Lstat(link)
			must(t, err)

			for what, do := range map[string]func(string) (*Report, error){"install": Install, "remove": Remove} {
				_, err := do(dir)
				var foreign *ForeignError
				if !errors.As(err, &foreign) || !strings.Contains(err.Error(), link) || !strings.Contains(err.Error(), "mv ") {
					t.Errorf("%s: %v", what, err)
				}
			}

			after, err := os.Lstat(link)
			must(t, err)
			if !os.SameFile(before, after) {
				t.Error("it was replaced")
			}

			r, err := Status(dir)
			must(t, err)
			if r.Installed || r.Target != "" || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], link) {
				t.Errorf("status %+v", r)
			}
		})
	}
}

func TestRemoveOwn(t *testing.T) {
	dir, link, _ := place(t)
	must(t, os.Mkdir(dir, 0o755))
	must(t, os.Symlink("/usr/bin/lxd-recover", link)) // a package's
	must(t, RemoveOwn(dir))
	wantLink(t, link, "/usr/bin/lxd-recover")
	_, err := Install(dir)
	must(t, err)
	own, err := os.Readlink(link)
	must(t, err)
	must(t, os.Symlink(own, filepath.Join(dir, product.Incus.Program))) // of a machine that had both
	must(t, RemoveOwn(dir))
	wantEmpty(t, dir)
}

func TestWarnings(t *testing.T) {
	check := func(t *testing.T, dir string, says ...string) {
		t.Helper()
		r, err := Install(dir)
		must(t, err)
		warnings := unexposed(r.Warnings)
		if len(warnings) != len(says) {
			t.Fatalf("warnings %q", warnings)
		}

		for i, s := range says {
			if !strings.Contains(warnings[i], s) {
				t.Errorf("%q does not say %q", warnings[i], s)
			}
		}
	}

	t.Run("LXD's own comes earlier", func(t *testing.T) {
		dir, _, lxd := place(t)
		t.Setenv("PATH", filepath.Dir(lxd)+":"+dir)
		check(t, dir, "still "+lxd)
	})
	t.Run("not in PATH", func(t *testing.T) {
		dir, _, lxd := place(t)
		t.Setenv("PATH", filepath.Dir(lxd))
		check(t, dir, "put "+dir+" into it")
	})
	t.Run("no LXD", func(t *testing.T) {
		dir, _, _ := place(t)
		t.Setenv("PATH", dir)
		fallbacks = func() []string { return nil }
		defer func() { fallbacks = defaultFallbacks }()
		check(t, dir, "no LXD")
	})
	t.Run("link that leads nowhere", func(t *testing.T) {
		dir, link, lxd := place(t)
		must(t, os.Mkdir(dir, 0o755))
		must(t, os.Symlink("/nothing/lxd-recover", link))
		r, err := Status(dir)
		must(t, err)
		if !r.Installed || r.Effective || r.Found != lxd || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "/nothing/lxd-recover") {
			t.Errorf("%+v", r)
		}
	})
}

var defaultFallbacks = fallbacks

func TestStableName(t *testing.T) {
	top := t.TempDir()
	versioned := filepath.Join(top, "opt", "lxd-recover-1.0", "lxd-recover")
	must(t, os.MkdirAll(filepath.Dir(versioned), 0o755))
	must(t, os.WriteFile(versioned, nil, 0o755))
	bin := filepath.Join(top, "bin")
	must(t, os.Mkdir(bin, 0o755))
	stable := filepath.Join(bin, "lxd-recover")
	must(t, os.Symlink(versioned, stable))
	other := filepath.Join(bin, "recover-lxd")
	must(t, os.Symlink(versioned, other))
	t.Setenv("PATH", bin)
	t.Chdir(top)

	for _, test := range []struct{ name, self, argv0, want string }{
		{"snap", "/snap/lxd-recover/x1/bin/lxd-recover", "/snap/bin/lxd-recover", "/snap/lxd-recover/current/bin/lxd-recover"},
		{"snap by its revision", "/snap/lxd-recover/42/bin/lxd-recover", "/snap/lxd-recover/42/bin/lxd-recover", "/snap/lxd-recover/current/bin/lxd-recover"},
		{"snap, second instance", "/snap/lxd-recover_b/42/bin/lxd-recover", "lxd-recover", "/snap/lxd-recover_b/current/bin/lxd-recover"},
		{"snap on other distributions", "/var/lib/snapd/snap/lxd-recover/42/bin/lxd-recover", "lxd-recover",
			"/var/lib/snapd/snap/lxd-recover/current/bin/lxd-recover"},
		{"found in PATH", versioned, "lxd-recover", stable},
		{"by its path", versioned, stable, stable},
		{"by a relative path", versioned, "bin/lxd-recover", stable},
		{"by a path that is not clean", versioned, "./opt/../bin//lxd-recover", stable},
		{"by its real path", versioned, versioned, versioned},
		{"under another name", versioned, other, versioned},
		{"another file of that name", "/usr/bin/env", "lxd-recover", "/usr/bin/env"},
		{"a made-up name", versioned, "no such file", versioned},
		{"no name", versioned, "", versioned},
	} {
		got, err := stableNameOf(test.self, test.argv0)
		if err != nil || got != test.want {
			t.Errorf("%s: %q (%v), want %s", test.name, got, err, test.want)
		}
	}
}

func TestExposed(t *testing.T) {
	top := t.TempDir() // in a directory like /tmp, which is everybody's and sticky
	dir := filepath.Join(top, "dir")
	program := filepath.Join(dir, "lxd-recover")
	must(t, os.Mkdir(dir, 0o755))
	must(t, os.WriteFile(program, nil, 0o755))
	link := filepath.Join(top, "link")
	must(t, os.Symlink(program, link))
	if os.Geteuid() != 0 {
		t.Fatal("this test must run as root: it is about files that are not root's")
	}

	base := exposed(link) // what the test's own directory is exposed by, if it is
	if strings.HasPrefix(base, top) {
		t.Fatalf("%s is said to be exposed", base)
	}

	must(t, os.Chmod(dir, 0o777))
	got := exposed(link)
	if got != dir {
		t.Errorf("everybody can write to %s: %q", dir, got)
	}

	must(t, os.Chmod(dir, 0o755))
	must(t, os.Chown(program, 1000, 1000))
	got = exposed(link)
	if got != program {
		t.Errorf("%s is a user's: %q", program, got)
	}
}

func wantLink(t *testing.T, link string, want string) {
	t.Helper()
	got, err := os.Readlink(link)
	if err != nil || got != want {
		t.Errorf("%s points to %q (%v), want %s", link, got, err, want)
	}
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 0 {
		t.Errorf("left in %s: %v %v", dir, entries, err)
	}
}
