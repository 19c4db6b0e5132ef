// SPDX-License-Identifier: AGPL-3.0-only

//go:build linux && amd64

package faults

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tree is a directory in memory: what is in it, to the byte, with modes, owners and times. Sockets are left out.
type tree map[string]node

// node is one file, directory or link of a tree.
type node struct {
	mode     fs.FileMode
	uid, gid uint32
	modified time.Time
	content  []byte // of a file; the target of a link
}

// noForks keeps this process from starting others until the returned function is called. Between its fork and its exec such a process
// has the files open that another goroutine has: on a busy machine long enough for a run to take it for a daemon.
func noForks() (done func()) {
	syscall.ForkLock.RLock()
	return syscall.ForkLock.RUnlock
}

// readTree reads a directory into memory.
func readTree(dir string) (tree, error) {
	defer noForks()()
	t := tree{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}

		info, err := e.Info()
		if err != nil {
			return err
		}

		st := info.Sys().(*syscall.Stat_t)
		n := node{mode: info.Mode(), uid: st.Uid, gid: st.Gid, modified: info.ModTime()}
		switch {
		case info.Mode().IsRegular():
			n.content, err = os.ReadFile(path)
		case info.Mode()&fs.ModeSymlink != 0:
			var target string
			target, err = os.Readlink(path)
			n.content = []byte(target)
		case !info.IsDir():
			return nil
		}

		if err != nil {
			return err
		}

		name, err := filepath.Rel(dir, path)
		t[name] = n
		return err
	})
	return t, err
}

// names returns the tree's names in order: a directory comes before what is in it.
func (t tree) names() []string {
	var names []string
	for name := range t {
		names = append(names, name)
	}

	slices.Sort(names)
	return names
}

// write makes a directory that is the tree. Blocks of zeros become holes: LXD's unused segments are 8 MiB of them.
func (t tree) write(dir string) error {
	defer noForks()()
	names := t.names()
	for _, name := range names {
		err := t[name].write(filepath.Join(dir, name))
		if err != nil {
			return err
		}
	}

	slices.Reverse(names) // writing into a directory changes its time
	for _, name := range names {
		when := unix.NsecToTimespec(t[name].modified.UnixNano())
		err := unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, name), []unix.Timespec{when, when}, unix.AT_SYMLINK_NOFOLLOW)
		if err != nil {
			return err
		}
	}

	return nil
}

func (n node) write(path string) error {
	var err error
	switch {
	case n.mode.IsDir():
		err = os.Mkdir(path, 0o700)
	case n.mode&fs.ModeSymlink != 0:
		err = os.Symlink(string(n.content), path)
	default:
		err = writeSparse(path, n.content)
	}

	if err == nil {
		err = os.Lchown(path, int(n.uid), int(n.gid))
	}

	if err == nil && n.mode&fs.ModeSymlink == 0 {
		err = os.Chmod(path, n.mode)
	}

	return err
}

func writeSparse(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}

	defer f.Close()
	zeros := make([]byte, 64<<10)
	for at := 0; at < len(content); at += len(zeros) {
		block := content[at:min(at+len(zeros), len(content))]
		if bytes.Equal(block, zeros[:len(block)]) {
			continue
		}

		_, err = f.WriteAt(block, int64(at))
		if err != nil {
			return err
		}
	}

	err = f.Truncate(int64(len(content)))
	if err != nil {
		return err
	}

	return f.Close()
}

// differ tells what distinguishes two trees, in a line each; empty where nothing does. Times count where both have the
// same content only if times is true.
func (t tree) differ(want tree, times bool) string {
	var b strings.Builder
	for _, name := range t.names() {
		if _, ok := want[name]; !ok {
			fmt.Fprintf(&b, "%s should not be there\n", name)
		}
	}

	for _, name := range want.names() {
		have, ok := t[name]
		switch n := want[name]; {
		case !ok:
			fmt.Fprintf(&b, "%s is missing\n", name)
		case have.mode != n.mode || have.uid != n.uid || have.gid != n.gid:
			fmt.Fprintf(&b, "%s is %s of %d:%d, want %s of %d:%d\n", name, have.mode, have.uid, have.gid, n.mode, n.uid, n.gid)
		case !bytes.Equal(have.content, n.content):
			fmt.Fprintf(&b, "%s has %d bytes, want %d, or other ones\n", name, len(have.content), len(n.content))
		case times && !have.modified.Equal(n.modified):
			fmt.Fprintf(&b, "%s is of %s, want %s\n", name, have.modified, n.modified)
		}
	}

	return b.String()
}

// without returns the tree without one of its files.
func (t tree) without(name string) tree {
	rest := tree{}
	for n := range t {
		if n != name {
			rest[n] = t[n]
		}
	}

	return rest
}

// ofOneMode returns the tree as if all its files and directories had the same permissions.
func (t tree) ofOneMode() tree {
	same := tree{}
	for name, n := range t {
		n.mode = n.mode.Type()
		same[name] = n
	}

	return same
}
