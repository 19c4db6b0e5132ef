// SPDX-License-Identifier: AGPL-3.0-only

//go:build linux && amd64

package systrace

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Kind tells what a call means to the directories that are watched.
type Kind int

const (
	// Other is a call that has nothing to do with them.
	Other Kind = iota
	// Read is a call that reads something below them.
	Read
	// Change is a call that may change something below them, make a change durable, or lock.
	Change
)

// Call is a system call that a program is about to make.
type Call struct {
	Name  string
	Kind  Kind
	Files []string // absolute paths
}

// String is the call with its files' last names.
func (c *Call) String() string {
	text := c.Name
	for _, file := range c.Files {
		text += " " + filepath.Base(file)
	}

	return text
}

// describe classifies a call.
func (t *tracer) describe(tid int, info *callInfo) (*Call, error) {
	number := int(info.number)
	rule, ok := rules[number]
	if !ok && (t.program.Lenient || t.aside(tid)) {
		return &Call{Kind: Other}, nil
	}

	if !ok {
		return nil, fmt.Errorf("%w: system call number %d", ErrCoverage, number)
	}

	call := &Call{Name: rule.name, Kind: rule.kind}
	if call.Kind == Other {
		return call, nil
	}

	if harmless(number, info.args) {
		call.Kind = Read
	}

	ours := false
	for _, op := range rule.files {
		file, err := t.file(tid, op, info.args)
		if t.program.Lenient && errors.Is(err, ErrCoverage) {
			file, err = "no descriptor", nil
		}

		if err != nil {
			return nil, fmt.Errorf("%s: %w", rule.name, err)
		}

		call.Files = append(call.Files, file)
		in := t.below(file)
		ours = ours || in
		if !in && call.Kind == Change && !t.program.Lenient && !t.outside(call.Name, file) {
			return nil, fmt.Errorf("%w: %s of %s, outside the directories that may be changed", ErrCoverage, rule.name, file)
		}

		if call.Kind == Change && below(file, t.program.Roots[:1]) && t.aside(tid) {
			return nil, fmt.Errorf("%w: %s of %s by a child that is to work on scratch files", ErrCoverage, rule.name, file)
		}
	}

	if !ours {
		call.Kind = Other
	}

	return call, nil
}

// file returns the absolute path of the file that an operand stands for, or what the kernel calls a descriptor that is none.
func (t *tracer) file(tid int, op operand, args [6]uint64) (string, error) {
	path := ""
	if op.path >= 0 && args[op.path] != 0 { // futimens(3) has none
		var err error
		path, err = readString(tid, args[op.path])
		if err != nil {
			return "", err
		}

		if filepath.IsAbs(path) {
			return filepath.Clean(path), nil
		}
	}

	link := fmt.Sprintf("/proc/%d/cwd", tid)
	if op.control {
		fd, err := controlFile(tid, args)
		if err != nil {
			return "", err
		}

		link = fmt.Sprintf("/proc/%d/fd/%d", tid, fd)
	} else if op.fd >= 0 && int32(args[op.fd]) != unix.AT_FDCWD {
		link = fmt.Sprintf("/proc/%d/fd/%d", tid, int32(args[op.fd]))
	}

	base, err := os.Readlink(link)
	if err != nil {
		return "no descriptor", nil // the call will fail by itself; mmap without a file has none
	}

	return filepath.Join(strings.TrimSuffix(base, " (deleted)"), path), nil
}

func (t *tracer) below(file string) bool { return below(file, t.program.Roots) }

func below(file string, roots []string) bool {
	for _, root := range roots {
		if file == root || strings.HasPrefix(file, root+"/") {
			return true
		}
	}

	return false
}

// outside tells whether a change of a file that is not below the roots is none of a file system: of a pipe, a socket, a
// device, of the program's output. Closing and locking leave nothing behind anywhere.
func (t *tracer) outside(name string, file string) bool {
	switch {
	case !strings.HasPrefix(file, "/"), strings.HasPrefix(file, "/dev/"), strings.HasPrefix(file, "/proc/"), strings.HasPrefix(file, "/memfd:"):
		return true
	case name == "close", name == "flock", name == "fcntl", name == "ioctl":
		return true
	}

	return t.program.Output != nil && file == t.program.Output.Name()
}

// controlFile returns the descriptor in the control block that io_submit(2) is given.
func controlFile(pid int, args [6]uint64) (uint32, error) {
	if args[1] != 1 {
		return 0, fmt.Errorf("%w: %d control blocks at once", ErrCoverage, args[1])
	}

	pointer, err := readMemory(pid, args[2], 8)
	if err != nil {
		return 0, err
	}

	const descriptor = 20 // its place in the block
	data, err := readMemory(pid, binary.LittleEndian.Uint64(pointer)+descriptor, 4)
	if err != nil {
		return 0, err
	}

	return binary.LittleEndian.Uint32(data), nil
}

func readMemory(pid int, address uint64, size int) ([]byte, error) {
	buf := make([]byte, size)
	local := []unix.Iovec{{Base: &buf[0], Len: uint64(size)}}
	n, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: uintptr(address), Len: size}}, 0)
	if err != nil || n != size {
		return nil, fmt.Errorf("read the program's memory: %d of %d bytes: %w", n, size, err)
	}

	return buf, nil
}

// readString reads a NUL-terminated string from the program's memory, page by page: the next page may not exist.
func readString(pid int, address uint64) (string, error) {
	const page = 4096
	var text []byte
	for len(text) <= unix.PathMax {
		buf := make([]byte, page-address%page)
		local := []unix.Iovec{{Base: &buf[0], Len: uint64(len(buf))}}
		n, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: uintptr(address), Len: len(buf)}}, 0)
		if err != nil {
			return "", fmt.Errorf("read the program's memory: %w", err)
		}

		if end := bytes.IndexByte(buf[:n], 0); end >= 0 {
			return string(append(text, buf[:end]...)), nil
		}

		text = append(text, buf[:n]...)
		address += uint64(n)
	}

	return "", fmt.Errorf("a path longer than %d bytes", unix.PathMax)
}
