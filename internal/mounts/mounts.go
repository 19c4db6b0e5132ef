// SPDX-License-Identifier: AGPL-3.0-only

// Package mounts tells what is mounted at and below a directory, and what is announced to be mounted there later. It changes nothing.
//
// A mount travels with the directory that it is on: when that is renamed, so is the mount point. So a directory with a mount below it
// cannot be replaced by renaming, and nothing says so until the next reboot mounts the old content over the new one.
package mounts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount is a line of a mount table (proc_pid_mountinfo(5)).
type Mount struct {
	ID      uint64
	Parent  uint64 // id of the mount that this one is mounted on
	Device  string // MAJOR:MINOR of the file system
	Root    string // the directory of the file system that is mounted
	Point   string // where it is mounted, as the processes of that mount namespace see it
	Type    string // of the file system
	Source  string
	Options string // of the file system, not of this mount
}

// String names a mount as a message shows it.
func (m Mount) String() string { return fmt.Sprintf("%s (%s, %s)", m.Point, m.Type, m.Source) }

// own is the mount table that this thread sees. A thread of a test may have a mount namespace of its own.
const own = "/proc/thread-self/mountinfo"

// Of returns the mount that a path, which must exist, is in.
func Of(path string) (Mount, error) {
	m, _, err := of(path)
	return m, err
}

func of(path string) (Mount, []Mount, error) {
	table, err := read(own)
	if err != nil {
		return Mount{}, nil, err
	}

	var st unix.Statx_t
	err = unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &st)
	if err != nil {
		return Mount{}, nil, &os.PathError{Op: "statx", Path: path, Err: err}
	}

	for _, m := range table {
		if m.ID == st.Mnt_id {
			return m, table, nil
		}
	}

	return Mount{}, nil, fmt.Errorf("the mount of %s is not in %s", path, own)
}

// Below returns what is mounted below a directory, in the mount namespace of this process, of the first one (which a service gets that
// starts anew), and of those with these ids. It goes by the file system's own directories: whatever the names are by which a namespace
// reaches the directory, a mount below it is found. A process that is gone is no error.
func Below(dir string, pids ...int) ([]Mount, error) {
	holding, table, err := of(dir)
	if err != nil {
		return nil, err
	}

	path, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}

	inside := holding.inside(path)
	found := below(table, holding.Device, inside)
	for _, pid := range append([]int{1}, pids...) {
		table, err = read(fmt.Sprintf("/proc/%d/mountinfo", pid))
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.EINVAL) {
			return nil, err
		}

		found = append(found, below(table, holding.Device, inside)...)
	}

	return unique(found), nil
}

// below returns the mounts of a table that are on a directory of a file system, or below that directory, without those on other mounts.
func below(table []Mount, device string, dir string) []Mount {
	byID := map[uint64]Mount{}
	for _, m := range table {
		byID[m.ID] = m
	}

	var found []Mount
	for _, m := range table {
		parent, ok := byID[m.Parent]
		if ok && parent.Device == device && m.Parent != m.ID && within(parent.inside(m.Point), dir) {
			found = append(found, m)
		}
	}

	return found
}

// inside is the name, in the mounted file system itself, of what a mount shows under a path.
func (m Mount) inside(path string) string {
	rest, err := filepath.Rel(m.Point, path)
	if err != nil {
		return path
	}

	return filepath.Join(m.Root, rest)
}

// unique leaves out what has the same place and file system as one before it.
func unique(all []Mount) []Mount {
	seen := map[string]bool{}
	var kept []Mount
	for _, m := range all {
		key := m.Point + "\x00" + m.Device + "\x00" + m.Root
		if !seen[key] {
			kept = append(kept, m)
		}

		seen[key] = true
	}

	return kept
}

// within tells whether a path is a directory or something below it.
func within(path string, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

func read(file string) ([]Mount, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}

	var table []Mount
	for line := range strings.Lines(string(data)) {
		m, ok := parse(line)
		if ok {
			table = append(table, m)
		}
	}

	return table, nil
}

// parse reads a line: "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue".
func parse(line string) (Mount, bool) {
	before, after, ok := strings.Cut(line, " - ")
	fields, rest := strings.Fields(before), strings.Fields(after)
	if !ok || len(fields) < 6 || len(rest) < 3 {
		return Mount{}, false
	}

	id, err := strconv.ParseUint(fields[0], 10, 64)
	parent, parentErr := strconv.ParseUint(fields[1], 10, 64)
	return Mount{
		ID: id, Parent: parent, Device: fields[2], Root: unescape(fields[3]), Point: unescape(fields[4]),
		Type: rest[0], Source: unescape(rest[1]), Options: rest[2],
	}, err == nil && parentErr == nil
}

// unescape takes the octal escapes out of a name, as mount tables and fstab have them for blanks and backslashes: \040.
func unescape(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '\\' && i+3 < len(text) {
			n, err := strconv.ParseUint(text[i+1:i+4], 8, 8)
			if err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}

		b.WriteByte(text[i])
	}

	return b.String()
}
