// SPDX-License-Identifier: AGPL-3.0-only

package frontend

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

// programName is the base name of what the link points to.
const programName = "lxd-recover"

// snapRoots are where snaps are mounted: as /snap/NAME/REVISION, with a link "current" beside the revisions.
var snapRoots = []string{"/snap", "/var/lib/snapd/snap"}

// Report is how the front-end stands.
type Report struct {
	Link      string   `json:"link" yaml:"link"`
	Installed bool     `json:"installed" yaml:"installed"`
	Target    string   `json:"target" yaml:"target"`       // what the link points to; empty unless installed
	Found     string   `json:"found" yaml:"found"`         // what `lxd` stands for in this PATH; empty if nothing
	Effective bool     `json:"effective" yaml:"effective"` // Found is lxd-recover
	LXD       string   `json:"lxd" yaml:"lxd"`             // LXD's own program; empty if there is none
	Warnings  []string `json:"warnings,omitempty" yaml:"warnings,omitempty"`

	Changed bool `json:"changed,omitempty" yaml:"changed,omitempty"` // Install or Remove had something to do
}

// ForeignError says that there is something in the place of the link that is not ours.
type ForeignError struct{ Path string }

func (e *ForeignError) Error() string {
	return fmt.Sprintf("%s is there already, and is not a link to %s: see what it is, and move it away (mv %s %s.old) if it is not needed",
		e.Path, programName, e.Path, e.Path)
}

// Install makes the link in dir. One that points to another copy of lxd-recover is pointed to this one.
func Install(dir string) (*Report, error) {
	target, err := stableName()
	if err != nil {
		return nil, err
	}

	err = os.MkdirAll(dir, 0o755)
	if err != nil {
		return nil, err
	}

	link := filepath.Join(dir, Name())
	before, err := readLink(link)
	changed := before != target
	switch {
	case err != nil:
		return nil, err
	case before == "":
		err = os.Symlink(target, link) // does not replace what appears in this instant
	case changed:
		err = replaceLink(target, link)
	}

	if err != nil {
		return nil, err
	}

	r, err := Status(dir)
	if err != nil {
		return nil, err
	}

	r.Changed = changed
	if !r.Effective {
		r.Warnings = append(r.Warnings, notEffective(dir, r))
	}

	if r.LXD == "" {
		r.Warnings = append(r.Warnings, product.Text("no LXD of its own was found to hand other commands over to: install LXD"))
	}

	weak := exposed(target)
	if weak != "" {
		r.Warnings = append(r.Warnings, product.Sprintf("%s can be changed by others than root, and root runs it as `lxd`: "+
			"move %s to /usr/local/bin, owned by root, and install again", weak, programName))
	}

	return r, nil
}

func notEffective(dir string, r *Report) string {
	if r.Found == "" || !inPath(dir) {
		return product.Sprintf("`lxd` is not the front-end yet in this PATH: put %s into it, first", dir)
	}

	return product.Sprintf("`lxd` is still %s in this PATH: put %s before %s", r.Found, dir, filepath.Dir(r.Found))
}

func inPath(dir string) bool {
	for _, d := range filepath.SplitList(os.Getenv("PATH")) {
		if sameFile(d, dir) {
			return true
		}
	}

	return false
}

// Remove removes the link, to whichever copy of lxd-recover it points.
func Remove(dir string) (*Report, error) {
	link := filepath.Join(dir, Name())
	target, err := readLink(link)
	if err != nil {
		return nil, err
	}

	if target != "" {
		err = os.Remove(link)
		if err != nil {
			return nil, err
		}
	}

	r, err := Status(dir)
	if err != nil {
		return nil, err
	}

	r.Changed = target != ""
	return r, nil
}

// RemoveOwn removes the front-ends of all products for a copy of lxd-recover that is about to go: a link to another copy stays.
func RemoveOwn(dir string) error {
	own, err := stableName()
	if err != nil {
		return err
	}

	var errs []error
	for _, p := range product.All {
		link := filepath.Join(dir, p.Program)
		target, err := os.Readlink(link)
		if err == nil && target == own {
			errs = append(errs, os.Remove(link))
		}
	}

	return errors.Join(errs...)
}

// Status looks how the front-end in dir stands.
func Status(dir string) (*Report, error) {
	r := &Report{Link: filepath.Join(dir, Name())}
	var foreign *ForeignError
	var err error
	r.Target, err = readLink(r.Link)
	switch {
	case errors.As(err, &foreign):
		r.Warnings = append(r.Warnings, err.Error())
	case err != nil:
		return nil, err
	}

	r.Installed = r.Target != ""
	if r.Installed && !isOurs(r.Link) {
		r.Warnings = append(r.Warnings, fmt.Sprintf("%s points to %s, which is no %s: shells skip it if nothing is there; "+
			"install it again, or remove it", r.Link, r.Target, programName))
	}

	r.Found = find(os.Getenv("PATH"), nil, func(string) bool { return true })
	r.Effective = r.Found != "" && isOurs(r.Found)
	r.LXD, err = Next()
	if err != nil && !errors.Is(err, ErrNoLXD) {
		return nil, err
	}

	return r, nil
}

// readLink returns what our link points to; "" if there is nothing in its place, and an error if something else is. A link is
// ours by what it points to, or by that file's name where it is gone.
func readLink(link string) (string, error) {
	target, err := os.Readlink(link)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case errors.Is(err, unix.EINVAL): // no link
		return "", &ForeignError{link}
	case err != nil:
		return "", err
	}

	if filepath.Base(target) != programName && !isOurs(link) {
		return "", &ForeignError{link}
	}

	return target, nil
}

// replaceLink points an existing link to target, in one step.
func replaceLink(target string, link string) error {
	temporary := filepath.Join(filepath.Dir(link), "."+filepath.Base(link)+"."+programName)
	err := os.Remove(temporary)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}

	err = os.Symlink(target, temporary)
	if err != nil {
		return err
	}

	err = os.Rename(temporary, link)
	if err != nil {
		_ = os.Remove(temporary)
	}

	return err
}

// stableName is the name of this program that stays when it is updated.
func stableName() (string, error) {
	self, err := os.Executable() // all links resolved
	if err != nil {
		return "", err
	}

	_, err = os.Stat(self)
	if err != nil {
		return "", fmt.Errorf("this program's own file is gone: %w", err)
	}

	return stableNameOf(self, os.Args[0])
}

// stableNameOf maps a snap's program to the revision that is current. Its entry in /snap/bin would not do: that is a link to
// snapd's own program, which goes by the name that it is called as, and runs the snap lxd for `lxd`. Any other program has the
// name that it was called as, if that leads to it: /usr/bin/lxd-recover may be a link to a file of another name in every version.
func stableNameOf(self string, argv0 string) (string, error) {
	for _, root := range snapRoots {
		below, err := filepath.Rel(root, self)
		if err != nil {
			continue
		}

		parts := strings.SplitN(below, "/", 3) // name, revision, path
		if len(parts) == 3 && parts[0] != ".." {
			return filepath.Join(root, parts[0], "current", parts[2]), nil
		}
	}

	called, err := exec.LookPath(argv0)
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return self, nil
	}

	called, err = filepath.Abs(called)
	if err != nil {
		return "", err
	}

	// Not the front-end itself, and only a name that readLink will know again.
	if filepath.Base(called) != programName || !sameFile(called, self) {
		return self, nil
	}

	return called, nil
}

// exposed returns the file or directory on the way to program that others than root can change; "" if there is none.
func exposed(program string) string {
	path, err := filepath.EvalSymlinks(program)
	if err != nil {
		return ""
	}

	for ; path != "/"; path = filepath.Dir(path) {
		var stat unix.Stat_t
		err = unix.Stat(path, &stat)
		open := stat.Mode&unix.S_IWOTH != 0 && stat.Mode&unix.S_ISVTX == 0 // /tmp is everybody's, but not what is in it
		if err == nil && (stat.Uid != 0 || open) {
			return path
		}
	}

	return ""
}
