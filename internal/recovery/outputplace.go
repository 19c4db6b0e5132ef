// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

// CheckOutput refuses a file that is to be written into a database directory of this machine's LXD. The file need not exist.
func CheckOutput(path string) error {
	lxd, err := FindLXD()
	if err != nil {
		return nil // and no database of it
	}

	return directory{path: lxd}.keepOut(path)
}

// keepOut refuses a file that is to be written into LXD's database directory, or into one that is kept beside it, by whatever name that
// leads there. LXD loads a tarball that it finds there, and what else is there goes where the database goes.
func (d directory) keepOut(path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}

	in, err := d.databaseAround(path)
	if err != nil || in == "" {
		return err
	}

	return &Refusal{Code: "output-in-database", Reason: product.Sprintf("%s would be in %s: LXD (5.21.3 and later, 6.2 and later) loads a tarball "+
		"that it finds in its database directory when it starts, and an import takes what else is there along; name a file elsewhere", path, in)}
}

// databaseAround returns the database directory, live or kept, that a file is in, or would be; empty if it is in none.
func (d directory) databaseAround(path string) (string, error) {
	lxd, err := filepath.EvalSymlinks(d.path)
	if err != nil {
		return "", err
	}

	live, liveErr := os.Stat(d.database())
	for dir := realParent(path); ; dir = filepath.Dir(dir) {
		if filepath.Dir(dir) == lxd && (filepath.Base(dir) == databaseName || strings.HasPrefix(filepath.Base(dir), databaseName+".")) {
			return d.join(filepath.Base(dir)), nil
		}

		info, err := os.Stat(dir)
		if err == nil && liveErr == nil && os.SameFile(info, live) { // through a bind mount, for one
			return d.database(), nil
		}

		if dir == filepath.Dir(dir) {
			return "", nil
		}
	}
}

// realParent is the directory that a file is in, or would be, without links: of the file itself too, if it is one. What does not exist has
// none.
func realParent(path string) string {
	real, err := filepath.EvalSymlinks(path)
	if err == nil {
		return filepath.Dir(real)
	}

	for dir, rest := filepath.Dir(path), ""; ; dir, rest = filepath.Dir(dir), filepath.Join(filepath.Base(dir), rest) {
		real, err = filepath.EvalSymlinks(dir)
		if err == nil {
			return filepath.Join(real, rest)
		}

		if dir == filepath.Dir(dir) {
			return filepath.Dir(path)
		}
	}
}

// fileOf is the name of the file that a writer writes to, as standard output may; empty if it is none, or nothing with a name.
func fileOf(w io.Writer) string {
	f, ok := w.(*os.File)
	if !ok {
		return ""
	}

	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return ""
	}

	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return ""
	}

	return name
}
