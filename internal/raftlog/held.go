// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Held are the files of a raft directory as they were in one moment, whatever a daemon that works there does to the directory: it closes segments, takes
// snapshots and deletes what they make superfluous. Closed segments and snapshots, which nobody writes to again, are held open: a file that is deleted stays
// readable. What is written to in place, open segments and metadata, is copied into memory.
//
// It is an [fs.FS] with one directory. Of open segments the newest is copied first, and closed segments come last: no entry is there without those before it.
// The last entries of the last segment may be half written, as after a power cut. None of the files was deleted before all were held: so none is of a log that
// another leader's has replaced meanwhile, beside files of that one.
type Held struct {
	dir   fs.FileInfo // of the directory
	files map[string]*heldFile
}

// Same tells whether a directory is the one whose files are held, and no other one that has taken its place.
func (h *Held) Same(dir string) bool {
	info, err := os.Stat(dir)
	return err == nil && os.SameFile(h.dir, info)
}

// heldFile is one of them.
type heldFile struct {
	info  fs.FileInfo // as it was
	file  *os.File    // nil if it is in memory
	bytes *padded     // of a file that is written to in place
}

// padded is content that ends in zeros, which it does not hold: libdqlite fills a segment with them before it writes to it.
type padded struct {
	data []byte // up to the zeros, or some way into them
	size int64  // with the zeros
}

// paddedStep is how many bytes are read and looked at at once.
const paddedStep = 64 << 10

// readPadded reads up to a number of bytes.
func readPadded(r io.Reader, limit int64) (*padded, error) {
	p := &padded{}
	step, zeros := make([]byte, paddedStep), make([]byte, paddedStep)
	for {
		n, err := io.ReadFull(r, step[:min(paddedStep, limit-p.size)])
		if !bytes.Equal(step[:n], zeros[:n]) {
			p.data = append(append(p.data, make([]byte, p.size-int64(len(p.data)))...), step[:n]...)
		}

		p.size += int64(n)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), err == nil && p.size == limit:
			return p, nil
		case err != nil:
			return nil, err
		}
	}
}

// ReadAt reads as from a file.
func (p *padded) ReadAt(b []byte, from int64) (int, error) {
	n := int(max(0, min(int64(len(b)), p.size-from)))
	copied := 0
	if from < int64(len(p.data)) {
		copied = copy(b[:n], p.data[from:])
	}

	clear(b[copied:n])
	if n < len(b) {
		return n, io.EOF
	}

	return n, nil
}

// maxWritten bounds what is copied into memory of one file: libdqlite prepares 8 MiB for an open segment, and writes more only if a batch of entries is larger.
const maxWritten = 1 << 30

// How often the directory is listed again if it has changed meanwhile, and how long it is left alone before that.
const (
	holdTries = 100
	holdPause = 5 * time.Millisecond
)

// Hold takes hold of the files of a raft directory that belong to its log. [ErrChanging] says that files went whenever it was tried. Close lets go.
func Hold(ctx context.Context, dir string) (*Held, error) { return holdFiles(ctx, dir, isOfLog) }

// HoldAll takes hold of the other files as well. They may go meanwhile: then they are left out.
func HoldAll(ctx context.Context, dir string) (*Held, error) {
	return holdFiles(ctx, dir, func(string) bool { return true })
}

func holdFiles(ctx context.Context, dir string, wanted func(name string) bool) (*Held, error) {
	for range holdTries {
		h, err := holdOnce(dir, wanted)
		if err == nil {
			return h, nil
		}

		if !errors.Is(err, ErrChanging) {
			return nil, err
		}

		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(holdPause):
		}
	}

	return nil, fmt.Errorf("%w: %s", ErrChanging, dir)
}

// holdOnce is one try. ErrChanging says that files were deleted, or got other names before they were opened.
func holdOnce(dir string, wanted func(name string) bool) (*Held, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}

	names, err := heldNames(dir, wanted)
	if err != nil {
		return nil, err
	}

	h := &Held{dir: info, files: map[string]*heldFile{}}
	err = h.take(dir, names)
	if err == nil {
		err = h.settle(dir)
	}

	if err != nil {
		h.Close()
		return nil, err
	}

	return h, nil
}

// take takes hold of files. ErrChanging says that one is gone.
func (h *Held) take(dir string, names []string) error {
	for _, name := range names {
		f, err := hold(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			if !isOfLog(name) {
				continue
			}

			return ErrChanging
		}

		if err != nil {
			return err
		}

		if f != nil {
			h.files[name] = f
		}
	}

	return nil
}

// settle makes sure that no file was deleted before all were held, and lets go of those that are in memory.
func (h *Held) settle(dir string) error {
	for name, f := range h.files {
		if !isOfLog(name) {
			continue
		}

		now, err := f.file.Stat()
		if err != nil {
			return err
		}

		system, ok := now.Sys().(*syscall.Stat_t)
		if ok && system.Nlink == 0 {
			return ErrChanging
		}
	}

	for _, f := range h.files {
		if f.bytes != nil {
			_ = f.file.Close()
			f.file = nil
		}
	}

	if !h.Same(dir) {
		return ErrChanging
	}

	return nil
}

// isOfLog tells whether a file belongs to a raft log, by its name.
func isOfLog(name string) bool {
	switch classifyName(name) {
	case MetadataFile, SnapshotFile, SnapshotMetaFile, ClosedSegmentFile, OpenSegmentFile:
		return true
	}

	return false
}

// heldNames lists the files that are wanted: the newest open segment first.
func heldNames(dir string, wanted func(name string) bool) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}

	var names []string
	for _, e := range entries {
		if e.Type()&fs.ModeSocket == 0 && wanted(e.Name()) {
			names = append(names, e.Name())
		}
	}

	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(written(b), written(a)), openCounter(b, a), strings.Compare(a, b))
	})
	return names, nil
}

// written is 1 for a file that is written to in place.
func written(name string) int {
	switch classifyName(name) {
	case OpenSegmentFile, MetadataFile:
		return 1
	}

	return 0
}

// openCounter compares the counters of open segments.
func openCounter(a, b string) int {
	if classifyName(a) != OpenSegmentFile || classifyName(b) != OpenSegmentFile {
		return 0
	}

	return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
}

// hold takes hold of a file; nil if it is no regular one.
func hold(path string) (*heldFile, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}

	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, file.Close())
	}

	if written(filepath.Base(path)) == 0 {
		return &heldFile{info: info, file: file}, nil
	}

	data, err := readPadded(file, min(info.Size(), maxWritten))
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}

	return &heldFile{info: info, file: file, bytes: data}, nil
}

// Close lets go of the files.
func (h *Held) Close() {
	for _, f := range h.files {
		if f.file != nil {
			_ = f.file.Close()
		}
	}
}

// Open opens a file, or the directory, which is called ".".
func (h *Held) Open(name string) (fs.File, error) {
	if name == "." {
		return &heldDir{held: h}, nil
	}

	f, ok := h.files[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}

	if f.file == nil {
		return &heldReader{heldFile: f, ReadSeeker: io.NewSectionReader(f.bytes, 0, f.bytes.size)}, nil
	}

	return &heldReader{heldFile: f, ReadSeeker: io.NewSectionReader(f.file, 0, f.info.Size())}, nil
}

// heldReader reads a held file from its beginning. The descriptor is shared, and each has a position of its own.
type heldReader struct {
	*heldFile
	io.ReadSeeker
}

// Stat returns what the file was when it was held; one in memory has the size that was read.
func (r *heldReader) Stat() (fs.FileInfo, error) { return r.stat(), nil }

// Close does nothing: the file is held until all are let go.
func (r *heldReader) Close() error { return nil }

func (f *heldFile) stat() fs.FileInfo {
	if f.file == nil {
		return sized{FileInfo: f.info, size: f.bytes.size}
	}

	return f.info
}

// sized is a file with another size.
type sized struct {
	fs.FileInfo
	size int64
}

func (s sized) Size() int64 { return s.size }

// heldDir is the directory.
type heldDir struct {
	held *Held
	left []fs.DirEntry // that were not listed yet; nil before the first
}

// Stat says that it is a directory.
func (d *heldDir) Stat() (fs.FileInfo, error) { return heldDirInfo{}, nil }

// Read is an error, as of any directory.
func (d *heldDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: ".", Err: errors.New("is a directory")}
}

// Close does nothing.
func (d *heldDir) Close() error { return nil }

// ReadDir lists the next n files, or all that are left, in the order of their names.
func (d *heldDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if d.left == nil {
		d.left = []fs.DirEntry{}
		for _, f := range d.held.files {
			d.left = append(d.left, fs.FileInfoToDirEntry(f.stat()))
		}

		slices.SortFunc(d.left, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	}

	if n > 0 && len(d.left) == 0 {
		return nil, io.EOF
	}

	if n <= 0 || n > len(d.left) {
		n = len(d.left)
	}

	entries := d.left[:n]
	d.left = d.left[n:]
	return entries, nil
}

// heldDirInfo describes the directory.
type heldDirInfo struct{}

func (heldDirInfo) Name() string       { return "." }
func (heldDirInfo) Size() int64        { return 0 }
func (heldDirInfo) Mode() fs.FileMode  { return fs.ModeDir | 0o500 }
func (heldDirInfo) ModTime() time.Time { return time.Time{} }
func (heldDirInfo) IsDir() bool        { return true }
func (heldDirInfo) Sys() any           { return nil }
