// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

// errShrunk says that a file ended before the size it had when it was opened: somebody else is writing.
var errShrunk = errors.New("file became shorter while it was read")

// File is one name in the directory.
type File struct {
	Name    string
	Kind    FileKind
	Size    int64 // bytes
	Mode    fs.FileMode
	ModTime time.Time

	Unused bool  // an open segment that was prepared but never written: all zero, or empty
	End    int64 // of a segment: offset after its last sound batch
	Needed bool  // the effective log or its snapshot lives in this file, or it is metadata: it belongs in an export
}

// MarshalText makes file kinds readable in JSON and YAML.
func (k FileKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// directory reads files of a raft directory for one caller: bounded, counted, and interrupted with its context.
type directory struct {
	ctx      context.Context
	fsys     fs.FS
	progress func(bytes int64)
	sums     bool // see Options
	allSums  bool
	later    bool
	known    *Log // see Options
	engine   product.Engine
	doubts   map[string]Doubt

	batches *batchReader // with its buffers, for the next segment
	window  []byte       // of the search after damage
}

// newDirectory returns a directory whose progress may be reported from several goroutines.
func newDirectory(ctx context.Context, fsys fs.FS, opts Options) *directory {
	d := &directory{ctx: ctx, fsys: fsys, sums: opts.Sums || opts.AllSums, allSums: opts.AllSums, later: opts.Later, known: opts.Known,
		engine: opts.Engine, doubts: opts.Doubts}
	if opts.Progress != nil {
		var mu sync.Mutex
		d.progress = func(bytes int64) {
			mu.Lock()
			defer mu.Unlock()
			opts.Progress(bytes)
		}
	}

	return d
}

// maxReaders bounds how many files are read at the same time, and so how many batches, the largest things in memory, there are at once.
const maxReaders = 4

// each calls do for 0 to n-1, on as many processors as there are: files are verified each for itself. A caller of do has buffers of its
// own. The error is that of the lowest number.
func (d *directory) each(n int, do func(d *directory, i int) error) error {
	errs := make([]error, n)
	var next atomic.Int64
	var group sync.WaitGroup
	for range min(n, runtime.GOMAXPROCS(0), maxReaders) {
		own := &directory{ctx: d.ctx, fsys: d.fsys, progress: d.progress, sums: d.sums, allSums: d.allSums, later: d.later, known: d.known,
			engine: d.engine}
		group.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				errs[i] = do(own, i)
				if errs[i] != nil {
					next.Store(int64(n))
				}
			}
		})
	}

	group.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}

	return nil
}

// list names and classifies everything in the directory, sorted by name. Names that vanish while we look are left out.
func (d *directory) list() ([]File, error) {
	entries, err := fs.ReadDir(d.fsys, ".")
	if err != nil {
		return nil, fmt.Errorf("read raft directory: %w", err)
	}

	files := make([]File, 0, len(entries))
	for _, e := range entries {
		err = d.ctx.Err()
		if err != nil {
			return nil, err
		}

		info, err := e.Info()
		if err == nil && info.Mode()&fs.ModeSymlink != 0 {
			// libdqlite follows links, so do we, as far as fsys lets us.
			target, err := fs.Stat(d.fsys, e.Name())
			if err == nil {
				info = target
			}
		}

		if errors.Is(err, fs.ErrNotExist) {
			continue
		}

		if err != nil {
			return nil, fmt.Errorf("read raft directory: %w", err)
		}

		f := File{Name: e.Name(), Size: info.Size(), Mode: info.Mode(), ModTime: info.ModTime()}
		switch {
		case info.IsDir():
			f.Kind = SubDirectory
		case !info.Mode().IsRegular():
			f.Kind = SpecialFile
		default:
			f.Kind = classifyName(f.Name)
		}

		files = append(files, f)
	}

	return files, nil
}

// open opens a regular file and returns its size now.
func (d *directory) open(name string) (*countedFile, int64, error) {
	f, err := d.fsys.Open(name)
	if err != nil {
		return nil, 0, err
	}

	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", name)
	}

	if err != nil {
		_ = f.Close()
		return nil, 0, err
	}

	return &countedFile{File: f, d: d}, info.Size(), nil
}

// openAt opens a file with its reading position at offset.
func (d *directory) openAt(name string, offset int64) (*countedFile, int64, error) {
	f, size, err := d.open(name)
	if err != nil {
		return nil, 0, err
	}

	if offset == 0 {
		return f, size, nil
	}

	if s, ok := f.File.(io.Seeker); ok {
		_, err = s.Seek(offset, io.SeekStart)
	} else {
		_, err = io.CopyN(io.Discard, f.File, offset)
	}

	if err != nil {
		_ = f.Close()
		return nil, 0, err
	}

	return f, size, nil
}

// readAll returns the first bytes of a file, at most limit.
func (d *directory) readAll(name string, limit int64) ([]byte, error) {
	f, size, err := d.open(name)
	if err != nil {
		return nil, err
	}

	defer f.Close()
	b := make([]byte, min(size, limit))
	_, err = io.ReadFull(f, b)
	if err != nil {
		return nil, shortIsShrunk(err)
	}

	return b, nil
}

// countedFile reports what is read from it and stops when the context does.
type countedFile struct {
	fs.File
	d *directory
}

func (f *countedFile) Read(p []byte) (int, error) {
	err := f.d.ctx.Err()
	if err != nil {
		return 0, err
	}

	n, err := f.File.Read(p)
	if n > 0 && f.d.progress != nil {
		f.d.progress(int64(n))
	}

	return n, err
}
