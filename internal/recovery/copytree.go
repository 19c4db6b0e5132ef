// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/newfile"
)

// copyTree copies a file, directory or symbolic link with its mode, owner, times, access lists, labels and other extended attributes. Holes
// stay holes. Sockets, pipes and devices are left out.
func copyTree(ctx context.Context, from string, to string) error {
	return copyTreeBy(ctx, from, to, func(from string, to string) error { return newfile.CopyContext(ctx, from, to) })
}

// copyTreeBy is copyTree with another way to copy a regular file's content.
func copyTreeBy(ctx context.Context, from string, to string, file func(from string, to string) error) error {
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}

	switch {
	case info.Mode().IsRegular():
		err = file(from, to)
	case info.IsDir():
		err = copyDir(ctx, from, to, file)
	case info.Mode()&fs.ModeSymlink != 0:
		var target string
		target, err = os.Readlink(from)
		if err == nil {
			err = os.Symlink(target, to)
		}

	default:
		return nil
	}

	if err == nil {
		err = copyAttributes(from, info, to)
	}

	if err != nil {
		return fmt.Errorf("carry over %s: %w", from, err)
	}

	return nil
}

func copyDir(ctx context.Context, from string, to string, file func(from string, to string) error) error {
	err := os.Mkdir(to, 0o700)
	if err != nil {
		return err
	}

	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}

	for _, e := range entries {
		err = ctx.Err()
		if err == nil {
			err = copyTreeBy(ctx, filepath.Join(from, e.Name()), filepath.Join(to, e.Name()), file)
		}

		if err != nil {
			return err
		}
	}

	return nil
}

// copyAttributes gives a copy all that its original is besides its content.
func copyAttributes(from string, info fs.FileInfo, to string) error {
	err := standIn(from, info, to)
	if err != nil {
		return err
	}

	st := info.Sys().(*syscall.Stat_t)
	times := []unix.Timespec{unix.Timespec(st.Atim), unix.Timespec(st.Mtim)}
	err = unix.UtimesNanoAt(unix.AT_FDCWD, to, times, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return &os.PathError{Op: "utimensat", Path: to, Err: err}
	}

	return nil
}

// standIn gives what takes the place of a file or directory its owner, mode and extended attributes. Its times are its own.
func standIn(from string, info fs.FileInfo, to string) error {
	err := chown(to, info)
	if err != nil {
		return err
	}

	if info.Mode()&fs.ModeSymlink == 0 { // which has no mode
		err = os.Chmod(to, info.Mode())
		if err != nil {
			return err
		}
	}

	return copyXattrs(from, to) // last: an access list decides on the mode, too
}

// ofContent are the extended attributes that the kernel derives from the content and the number of a file; nobody else can.
var ofContent = []string{"security.ima", "security.evm"}

// label is the extended attribute with the label of SELinux.
const label = "security.selinux"

// copyXattrs gives a file the extended attributes of another one, access lists and labels among them, and takes away an access list that it
// got from the directory that it was made in.
func copyXattrs(from string, to string) error {
	names, err := xattrs(from)
	if err != nil {
		return err
	}

	inherited, err := xattrs(to)
	if err != nil {
		return err
	}

	for _, name := range inherited {
		if strings.HasPrefix(name, "system.posix_acl_") && !slices.Contains(names, name) {
			err = unix.Lremovexattr(to, name)
			if err != nil {
				return &os.PathError{Op: "removexattr " + name, Path: to, Err: err}
			}
		}
	}

	for _, name := range names {
		if slices.Contains(ofContent, name) {
			continue
		}

		err = copyXattr(name, from, to)
		if err != nil {
			return err
		}
	}

	return nil
}

// copyXattr copies one extended attribute, if it is there.
func copyXattr(name string, from string, to string) error {
	value, err := readXattr(func(to []byte) (int, error) { return unix.Lgetxattr(from, name, to) })
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return nil
	}

	if err != nil {
		return &os.PathError{Op: "getxattr " + name, Path: from, Err: err}
	}

	err = unix.Lsetxattr(to, name, value, 0)
	if err != nil {
		return &os.PathError{Op: "setxattr " + name, Path: to, Err: err}
	}

	return nil
}

// xattrs lists the extended attributes of a file, not of what a link leads to.
func xattrs(path string) ([]string, error) {
	list, err := readXattr(func(to []byte) (int, error) { return unix.Llistxattr(path, to) })
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}

	if err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: path, Err: err}
	}

	return strings.FieldsFunc(string(list), func(r rune) bool { return r == 0 }), nil
}

// readXattr calls what first tells how long a value is, and then returns it. Should it grow in between, that is done again.
func readXattr(call func([]byte) (int, error)) ([]byte, error) {
	for {
		size, err := call(nil)
		if err != nil || size == 0 {
			return nil, err
		}

		value := make([]byte, size)
		size, err = call(value)
		if !errors.Is(err, unix.ERANGE) {
			return value[:max(size, 0)], err
		}
	}
}

// globalMode is the mode that LXD makes its raft directory with.
const globalMode = 0o750

// standInForGlobal gives the staged raft directory and its files what the live ones have: owner, mode, access lists, labels. A file that is
// new takes those of one that raft has always had. info is that of the live database directory, whose owner counts if there is no live
// raft directory.
func standInForGlobal(live string, staged string, info fs.FileInfo) error {
	err := chownTree(staged, info)
	if err != nil {
		return err
	}

	old, err := os.Lstat(live)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !old.IsDir() {
		return os.Chmod(staged, globalMode) // see noglobal.go
	}

	if err != nil {
		return err
	}

	err = standIn(live, old, staged)
	if err != nil {
		return err
	}

	entries, err := os.ReadDir(staged)
	if err != nil {
		return err
	}

	for _, e := range entries {
		for _, name := range []string{e.Name(), "metadata1", "metadata2"} {
			model := filepath.Join(live, name)
			old, err = os.Lstat(model)
			if errors.Is(err, fs.ErrNotExist) || err == nil && !old.Mode().IsRegular() {
				continue
			}

			if err != nil {
				return err
			}

			err = standIn(model, old, filepath.Join(staged, e.Name()))
			if err != nil {
				return err
			}

			break
		}
	}

	return nil
}

// standInForNode gives a new node database the mode, access lists and labels of the live one, and the other files that are made anew beside it
// the label, so that LXD may read what it may read now.
func (d directory) standInForNode(staging string, made []string) error {
	old, err := os.Lstat(d.local())
	if errors.Is(err, fs.ErrNotExist) || err == nil && !old.Mode().IsRegular() {
		return nil // it is lost
	}

	if err != nil {
		return err
	}

	for _, name := range made {
		path := filepath.Join(staging, name)
		if name == filepath.Base(d.local()) {
			err = standIn(d.local(), old, path)
		} else {
			err = copyXattr(label, d.local(), path)
		}

		if err != nil {
			return err
		}
	}

	return nil
}

// onDisk is what a file takes on disk, in bytes: less than its size, if it has holes.
func onDisk(info fs.FileInfo) int64 { return info.Sys().(*syscall.Stat_t).Blocks * 512 }

// freeSpace is what root may still write to the file system of a directory, in bytes.
func freeSpace(dir string) (int64, error) {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	if err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}

	return int64(st.Bfree) * st.Frsize, nil
}

// sizeText is a number of bytes for people.
func sizeText(n int64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%d KiB", (n+1023)>>10)
	}

	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}
