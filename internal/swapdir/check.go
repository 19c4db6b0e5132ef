// SPDX-License-Identifier: AGPL-3.0-only

package swapdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/mounts"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// ErrImpossible says that the live directory cannot be exchanged where it is. The error that wraps it says why and what to
// do.
var ErrImpossible = errors.New("the directory cannot be exchanged in one step")

// Check tells whether the directory live in parent can be exchanged with a directory beside it: it must be a directory
// itself, neither a symbolic link nor a mount point, nothing may be mounted below it, in this mount namespace and in those of the
// processes with these ids, and no file may be protected from changes. Whether the file system can exchange at all is for Probe to find
// out.
func Check(parent string, live string, pids ...int) error {
	path := filepath.Join(parent, live)
	err := checkType(parent, path)
	if err != nil {
		return err
	}

	below, err := mounts.Below(path, pids...)
	if err != nil {
		return err
	}

	if len(below) > 0 {
		return fmt.Errorf("%w: something is mounted below %s, and would go away with the replaced directory: %s; "+
			"copy what is on it into plain directories, unmount it, and keep it from being mounted again", ErrImpossible, path, list(below))
	}

	return checkProtected(parent, path)
}

func checkType(parent string, path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}

	if info.Mode()&os.ModeSymlink != 0 {
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}

		return fmt.Errorf("%w: %s is a symbolic link to %s; put the directory itself in its place, or use a bind mount of the whole of %s instead",
			ErrImpossible, path, target, parent)
	}

	if !info.IsDir() {
		return product.Errorf("%w: %s is not a directory; see what it is, and put LXD's directory in its place", ErrImpossible, path)
	}

	outer, err := stat(parent, 0)
	if err != nil {
		return err
	}

	inner, err := stat(path, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return err
	}

	if outer.Mnt_id != inner.Mnt_id {
		return fmt.Errorf("%w: %s is a mount point; copy its content into a plain directory in %s and unmount it", ErrImpossible, path, parent)
	}

	return nil
}

// checkProtected refuses files that even root cannot rename or delete: those with the attributes that `chattr +i` and `chattr +a` set.
// The directory itself could not be renamed; a file in it could, but neither be carried over as it is nor be deleted afterwards.
func checkProtected(parent string, path string) error {
	err := protected(parent)
	if err != nil {
		return err
	}

	return filepath.WalkDir(path, func(name string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = protected(name)
		}

		if errors.Is(err, os.ErrNotExist) && name != path {
			return nil // LXD may be at work
		}

		return err
	})
}

func protected(path string) error {
	st, err := stat(path, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err != nil:
		return err
	case st.Attributes&unix.STATX_ATTR_IMMUTABLE != 0:
		return fmt.Errorf("%w: %s is immutable: `chattr -i` on it takes that away", ErrImpossible, path)
	case st.Attributes&unix.STATX_ATTR_APPEND != 0:
		return fmt.Errorf("%w: %s is append-only: `chattr -a` on it takes that away", ErrImpossible, path)
	}

	return nil
}

// Probe tries an exchange on two empty directories inside dir, which is beside live, and removes them again. The error is ErrImpossible
// where the file system cannot exchange, or not this directory.
func Probe(dir string, live string) error {
	one, two := filepath.Join(dir, ".probe-1"), filepath.Join(dir, ".probe-2")
	err := probe(one, two)
	if err == nil {
		err = probeOverlay(dir, live)
	}

	for _, path := range []string{one, two} {
		removeErr := os.Remove(path)
		if !errors.Is(removeErr, os.ErrNotExist) {
			err = errors.Join(err, removeErr) // dir is to become the database: nothing of ours may stay in it
		}
	}

	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) {
		return product.Errorf("%w: the file system of %s has no RENAME_EXCHANGE (%w); move LXD's directory to ext4, xfs, btrfs or zfs", ErrImpossible, dir, err)
	}

	return err
}

func probe(one string, two string) error {
	for _, path := range []string{one, two} {
		err := os.Mkdir(path, 0o700)
		if err != nil {
			return err
		}
	}

	for {
		err := unix.Renameat2(unix.AT_FDCWD, one, unix.AT_FDCWD, two, unix.RENAME_EXCHANGE)
		if err == nil {
			return nil
		}

		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("exchange %s and %s: %w", one, two, err)
		}
	}
}

// probeOverlay finds out whether live is a directory that an overlay has from its lower layer, without redirect_dir: the overlay renames no
// such directory. Only the overlay itself knows that. So a rename is tried that comes to nothing either way, over the directory dir, which
// is not empty: the overlay says EXDEV before it looks at dir, and ENOTEMPTY after it.
func probeOverlay(dir string, live string) error {
	var fs unix.Statfs_t
	err := unix.Statfs(live, &fs)
	if err != nil {
		return &os.PathError{Op: "statfs", Path: live, Err: err}
	}

	if fs.Type != unix.OVERLAYFS_SUPER_MAGIC || redirects(live) {
		return nil
	}

	err = unix.Renameat2(unix.AT_FDCWD, live, unix.AT_FDCWD, dir, 0)
	switch {
	case errors.Is(err, unix.EXDEV):
		return product.Errorf("%w: %s is in the lower layer of an overlay, which cannot rename it; "+
			"mount the overlay with redirect_dir=on, or have LXD's directory on a file system of its own", ErrImpossible, live)
	case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST):
		return nil
	}

	return fmt.Errorf("try whether %s can be renamed: %w", live, err)
}

// redirectDefault says whether overlays that are mounted without the option redirect_dir have it on: Y or N.
const redirectDefault = "/sys/module/overlay/parameters/redirect_dir"

// redirects tells whether the overlay that a path is in is known to rename directories of its lower layer.
func redirects(path string) bool {
	m, err := mounts.Of(path)
	if err != nil {
		return false
	}

	for option := range strings.SplitSeq(m.Options, ",") {
		mode, ok := strings.CutPrefix(option, "redirect_dir=")
		if ok {
			return mode == "on"
		}
	}

	standard, err := os.ReadFile(redirectDefault)
	return err == nil && strings.HasPrefix(string(standard), "Y")
}

func stat(path string, flags int) (unix.Statx_t, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, flags, unix.STATX_MNT_ID, &st)
	if err != nil {
		return st, &os.PathError{Op: "statx", Path: path, Err: err}
	}

	return st, nil
}

// maxListed bounds how many mounts a message lists.
const maxListed = 5

func list(all []mounts.Mount) string {
	var texts []string
	for i, m := range all {
		if i == maxListed {
			texts = append(texts, fmt.Sprintf("and %d more", len(all)-i))
			break
		}

		texts = append(texts, m.String())
	}

	return strings.Join(texts, ", ")
}
