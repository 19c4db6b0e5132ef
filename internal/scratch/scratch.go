// SPDX-License-Identifier: AGPL-3.0-only

// Package scratch makes directories and files that are of no use to anybody once the process that made them has ended, and removes those of
// processes that were killed.
//
// Each is locked (flock(2)) by the process that made it, as long as that lives, so that whether its owner is dead is no guess: the kernel lets
// go of the lock when a process ends, however it ends. What Dir and File find besides, in the place where they make something new, is removed
// if it is one of ours by its name, belongs to this user and to nobody else, is no link, and is not locked.
package scratch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"golang.org/x/sys/unix"
)

// Names of what is made here, all before the random number that os.MkdirTemp and os.CreateTemp put in.
const (
	dirPrefix  = "lxd-recover-scratch-"
	filePrefix = ".lxd-recover-"
	fileSuffix = ".part"
)

var (
	dirName  = regexp.MustCompile(`^` + dirPrefix + `[a-z]+-[0-9]+$`)
	fileName = regexp.MustCompile(`^\.lxd-recover-[0-9]+\.part$`)
)

// tries is how often something is made anew that another process has taken for a dead one's, in the moment between making and locking it.
const tries = 100

// sweep removes what dead processes have left in the directory for temporary files, once in a process.
var sweep sync.Once

// Dir makes a directory for temporary files, mode 0700. what says in one word, in small letters, what it is for. remove removes it with all
// that is in it.
func Dir(what string) (path string, remove func(), err error) {
	parent := os.TempDir()
	sweep.Do(func() { clean(parent, dirName, unix.S_IFDIR|0o700) })
	for range tries {
		path, err = os.MkdirTemp(parent, dirPrefix+what+"-")
		if err != nil {
			return "", nil, err
		}

		lock, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}

		if err != nil {
			_ = os.Remove(path)
			return "", nil, err
		}

		ours, err := own(lock)
		if err == nil && ours {
			return path, func() { _ = os.RemoveAll(path); _ = lock.Close() }, nil
		}

		_ = lock.Close()
		if err != nil {
			_ = os.Remove(path)
			return "", nil, err
		}
	}

	return "", nil, errors.New("temporary directories vanish from " + parent)
}

// File makes a file, mode 0600, in the directory parent, for something that is to get another name there when it is complete. end removes it,
// unless it has that name by then, and must be called in any case; the file may have been closed before.
func File(parent string) (f *os.File, end func(), err error) {
	clean(parent, fileName, unix.S_IFREG|0o600)
	for range tries {
		f, err = os.CreateTemp(parent, filePrefix+"*"+fileSuffix)
		if err != nil {
			return nil, nil, err
		}

		// A second descriptor of the same open file: the lock outlives the first one, which is closed before the file is renamed.
		ours, err := own(f)
		lock := -1
		if err == nil && ours {
			lock, err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		}

		if err == nil && ours {
			return f, func() { _ = os.Remove(f.Name()); _ = unix.Close(lock) }, nil
		}

		_ = f.Close()
		if err != nil {
			_ = os.Remove(f.Name())
			return nil, nil, err
		}
	}

	return nil, nil, errors.New("temporary files vanish from " + parent)
}

// own locks what was just made. It is not ours where another process was quicker, which then removes it.
func own(f *os.File) (bool, error) {
	err := flock(f)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return false, nil
	case errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.ENOLCK), errors.Is(err, unix.ENOSYS):
		return true, nil // a file system without locks: nobody can lock it to remove it, either
	case err != nil:
		return false, &os.PathError{Op: "flock", Path: f.Name(), Err: err}
	}

	here, err := os.Lstat(f.Name())
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}

	if err != nil {
		return false, err
	}

	locked, err := f.Stat()
	return err == nil && os.SameFile(here, locked), err
}

func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// clean removes from a directory what dead processes have left there: of such a name, of this user, of this type and mode. It is no
// error if something cannot be removed: it is in nobody's way but the disk's.
func clean(parent string, name *regexp.Regexp, mode uint32) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return
	}

	for _, e := range entries {
		if name.MatchString(e.Name()) {
			removeDead(filepath.Join(parent, e.Name()), mode)
		}
	}
}

// removeDead removes what is under a path if it is a dead process's. Everything is done with what was opened and locked, so that it does
// not matter what somebody puts in its place meanwhile: a name is removed only where it still leads to that, or to an empty directory.
func removeDead(path string, mode uint32) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}

	f := os.NewFile(uintptr(fd), path)
	defer f.Close()

	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err != nil || st.Mode != mode || int(st.Uid) != os.Geteuid() || mode&unix.S_IFMT == unix.S_IFREG && st.Nlink != 1 {
		return
	}

	err = flock(f)
	if err != nil {
		return
	}

	if mode&unix.S_IFMT == unix.S_IFDIR {
		empty(f)
		_ = unix.Rmdir(path)
		return
	}

	here, err := os.Lstat(path)
	if err != nil {
		return
	}

	info, err := f.Stat()
	if err == nil && os.SameFile(here, info) {
		_ = os.Remove(path)
	}
}

// empty removes all that is in a directory that is open.
func empty(dir *os.File) {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		return
	}

	defer root.Close()

	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		_ = root.RemoveAll(name)
	}
}
