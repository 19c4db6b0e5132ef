// SPDX-License-Identifier: AGPL-3.0-only

package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Process is a process that has a file of the database open.
type Process struct {
	PID  int    `json:"pid" yaml:"pid"`
	Name string `json:"name" yaml:"name"` // the kernel's short name of it (comm)
	File string `json:"file" yaml:"file"` // one of the files, below the database directory

	reads bool // it has none of them open for writing
}

// String names the process as a message shows it.
func (p Process) String() string {
	return fmt.Sprintf("%s (pid %d, has %s open)", p.Name, p.PID, p.File)
}

// fileID identifies a file whatever name or mount namespace it is seen through.
type fileID struct{ dev, ino uint64 }

// Writers returns the processes, other than this one, that have a file below dir open for writing. A daemon has local.db open so from before it reads
// anything of the raft directory until it ends. Who only reads, such as another lxd-recover or a backup, is no daemon, and keeps what it has open whatever
// becomes of the directory.
func Writers(dir string) ([]Process, error) {
	holders, err := Holders(dir)
	return slices.DeleteFunc(holders, func(p Process) bool { return p.reads }), err
}

// Holders returns the processes, other than this one, that have a file below dir open. Seeing other users' processes takes
// root. A process or a file that vanishes meanwhile is not an error.
func Holders(dir string) ([]Process, error) {
	files, err := listFiles(dir)
	if err != nil || len(files) == 0 {
		return nil, err
	}

	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}

	var holders []Process
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}

		holder, ok := holds(pid, files)
		if ok {
			comm, _ := os.ReadFile(filepath.Join("/proc", p.Name(), "comm"))
			holder.Name = strings.TrimSpace(string(comm))
			holders = append(holders, holder)
		}
	}

	return holders, nil
}

// listFiles maps the regular files below dir to their names relative to it.
func listFiles(dir string) (map[fileID]string, error) {
	files := map[fileID]string{}
	root, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return files, nil
	}

	if err != nil {
		return nil, err
	}

	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}

		if err != nil || !e.Type().IsRegular() {
			return err
		}

		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil {
			name, _ := filepath.Rel(root, path)
			files[fileID{st.Dev, st.Ino}] = name
		}

		return nil
	})

	return files, err
}

// holds tells whether a process has one of the files open, and which: one that it may write to if there is one.
func holds(pid int, files map[fileID]string) (holder Process, ok bool) {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	fds, err := os.ReadDir(dir)
	if err != nil {
		return Process{}, false
	}

	for _, fd := range fds {
		var st unix.Stat_t
		if unix.Stat(filepath.Join(dir, fd.Name()), &st) != nil {
			continue
		}

		name, known := files[fileID{st.Dev, st.Ino}]
		if !known {
			continue
		}

		holder, ok = Process{PID: pid, File: name, reads: readOnly(pid, fd.Name())}, true
		if !holder.reads {
			break
		}
	}

	return holder, ok
}

// readOnly tells whether a process cannot write to a file through a descriptor: the last two bits of its flags, as proc(5) has them in octal.
func readOnly(pid int, fd string) bool {
	text, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "fdinfo", fd))
	for line := range strings.Lines(string(text)) {
		field, value, _ := strings.Cut(line, ":")
		if field == "flags" {
			flags, err := strconv.ParseUint(strings.TrimSpace(value), 8, 32)
			return err == nil && flags&unix.O_ACCMODE == unix.O_RDONLY
		}
	}

	return false
}
