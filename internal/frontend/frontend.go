// SPDX-License-Identifier: AGPL-3.0-only

// Package frontend makes `lxd` in root's PATH a link to lxd-recover, which carries out the commands that it owns and hands
// every other one over to LXD's own `lxd`; on a machine with Incus `incusd`, which `incus admin` runs as well.
//
// Whoever is handed over must not be able to tell the difference: Exec replaces the process, with the arguments, the
// environment, the signals and the limits that it was started with. And two copies of lxd-recover must never call each other:
// Next takes none of them for LXD's.
//
// It knows LXD's command line, and nothing of what our own commands do.
package frontend

import (
	"debug/buildinfo"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

// Name is what the front-end is called as.
func Name() string { return product.Current().Program }

// DefaultDir is where the link is put: Debian and Ubuntu have it first in the PATH of root's shells and in sudo's secure_path,
// before /usr/bin and /snap/bin, and no package ever installs anything in it.
const DefaultDir = "/usr/local/sbin"

// module is ours: no program of it is LXD's own.
const module = "github.com/lxd-recover/lxd-recover"

// fallbacks are where LXD's own program is looked for when PATH does not have it: sudo's secure_path on Debian lacks /snap/bin.
var fallbacks = func() []string { return product.Current().Programs }

// ErrNoLXD says that there is nothing to hand over to.
var ErrNoLXD error = noLXD{}

type noLXD struct{}

func (noLXD) Error() string {
	return product.Sprintf("no LXD to hand this over to: %s is neither in PATH nor in %s; install LXD, or remove the front-end with "+
		"`lxd-recover frontend remove`", Name(), strings.Join(fallbacks(), ", "))
}

// Called is the product whose front-end a process with this argv[0] was called as; nil for none.
func Called(argv0 string) *product.Product { return product.ByProgram(argv0) }

// Next returns LXD's own program. The path is not resolved: /snap/bin/lxd is a link to a program that looks at its own name.
func Next() (string, error) { return next(os.Getenv("PATH"), fallbacks()) }

func next(path string, more []string) (string, error) {
	found := find(path, more, func(program string) bool { return !isOurs(program) })
	if found == "" {
		return "", ErrNoLXD
	}

	return found, nil
}

// find returns the first program called lxd that is wanted, of those that a shell would find in path, and then of those in more.
func find(path string, more []string, wanted func(program string) bool) string {
	for _, dir := range append(filepath.SplitList(path), more...) {
		// A shell takes an empty entry for the working directory. Root's tools should not.
		if !filepath.IsAbs(dir) {
			continue
		}

		program := filepath.Join(dir, Name())
		if executable(program) && wanted(program) {
			return program
		}
	}

	return ""
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && unix.Faccessat(unix.AT_FDCWD, path, unix.X_OK, unix.AT_EACCESS) == nil
}

// isOurs tells whether a program is lxd-recover: this very file, under whatever name, or any other copy or version of it. The
// build info that Go puts into every program says so also in a stripped one.
func isOurs(program string) bool {
	self, err := os.Executable()
	if err == nil && sameFile(self, program) {
		return true
	}

	info, err := buildinfo.ReadFile(program)
	return err == nil && (info.Main.Path == module || strings.HasPrefix(info.Path, module+"/"))
}

func sameFile(a string, b string) bool {
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}
