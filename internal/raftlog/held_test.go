// SPDX-License-Identifier: AGPL-3.0-only

package raftlog_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/fstest"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// fakeWriter writes to a raft directory as libdqlite does: batches in place at the end of a prepared open segment, which is cut, given another name and
// replaced by the next one when it is full.
type fakeWriter struct {
	dir     string
	written atomic.Uint64 // index of the last entry that is whole on the disk
	counter int
	file    *os.File
	first   uint64 // of the open segment
	end     int64
}

// perSegment is how many entries of this size fit into a segment of the fake writer: one more would not.
const (
	perSegment = 7
	entrySize  = 1150 << 10
)

func (w *fakeWriter) prepare() error {
	w.counter++
	var err error
	w.file, err = os.OpenFile(filepath.Join(w.dir, fmt.Sprintf("open-%d", w.counter)), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err == nil {
		err = w.file.Truncate(8 << 20)
	}

	w.first, w.end = w.written.Load()+1, 0
	return err
}

// write writes one entry.
func (w *fakeWriter) write() error {
	var data []byte
	if w.end == 0 {
		data = raftlog.SegmentHeader()
	}

	index := w.written.Load() + 1
	data = raftlog.AppendBatch(data, raftlog.Entry{Index: index, Term: 2, Type: raftlog.BarrierEntry, Data: make([]byte, entrySize)})
	_, err := w.file.WriteAt(data, w.end)
	err = errors.Join(err, w.file.Sync())
	w.end += int64(len(data))
	w.written.Store(index)
	if err != nil || index-w.first+1 < perSegment {
		return err
	}

	old, last := w.file, index
	name, first, end := fmt.Sprintf("open-%d", w.counter), w.first, w.end
	err = w.prepare() // the next one is there before this one is closed
	return errors.Join(err, old.Truncate(end), old.Close(),
		os.Rename(filepath.Join(w.dir, name), filepath.Join(w.dir, raftlog.SegmentName(first, last))))
}

// Whatever a writer does to the directory, what is held is a whole log with all that was written before.
func TestHoldWhileWritten(t *testing.T) {
	dir := raftlogtest.Make(t, raftlogtest.Snapshot)
	log, err := raftlog.Open(t.Context(), os.DirFS(dir), raftlog.Options{})
	must(t, err)
	closeOpen(t, dir, log)
	w := &fakeWriter{dir: dir}
	w.written.Store(log.LastIndex)
	must(t, w.prepare())
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		var err error
		for err == nil && ctx.Err() == nil {
			err = w.write()
		}

		ended <- err
	}()
	const looks = 25
	for i := range looks {
		if i == looks/2 { // what the snapshot has made superfluous goes
			must(t, os.Remove(filepath.Join(dir, raftlog.SegmentName(62, 126))))
		}

		before := w.written.Load()
		held, err := raftlog.Hold(t.Context(), dir)
		must(t, err)
		log, err := raftlog.Open(t.Context(), held, raftlog.Options{})
		must(t, err)
		if log.SoundIndex < before || log.Undecided() || log.Changed {
			t.Fatalf("look %d: sound up to %d, and %d were written before; left out %v, changed %v: %v",
				i, log.SoundIndex, before, log.LeftOut, log.Changed, log.Problems)
		}

		held.Close()
	}

	stop()
	must(t, <-ended)
	t.Logf("%d entries were written meanwhile", w.written.Load()-log.LastIndex)
}

// closeOpen closes the open segments of a directory, as the start of a daemon does.
func closeOpen(t *testing.T, dir string, log *raftlog.Log) {
	t.Helper()
	for _, s := range log.Segments {
		if s.Open && s.Unused {
			must(t, os.Remove(filepath.Join(dir, s.File)))
		} else if s.Open {
			path := filepath.Join(dir, s.File)
			must(t, os.Truncate(path, s.End))
			must(t, os.Rename(path, filepath.Join(dir, raftlog.SegmentName(s.First, s.Last))))
		}
	}
}

// What is held in memory without the zeros at its end is read as the file is; and files that are not part of the log are held only if they are asked for.
func TestHoldAll(t *testing.T) {
	dir := t.TempDir()
	const step = 64 << 10
	files := map[string][]byte{"open-1": make([]byte, 3*step), "open-2": make([]byte, 2*step+100), "open-3": nil, "tmp-snapshot": []byte("half")}
	files["open-2"][7], files["open-2"][2*step+1] = 1, 2
	for name, data := range files {
		must(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}

	socket, err := net.Listen("unix", filepath.Join(dir, "socket")) // cannot be opened
	must(t, err)
	defer socket.Close()

	for all, hold := range map[bool]func(context.Context, string) (*raftlog.Held, error){false: raftlog.Hold, true: raftlog.HoldAll} {
		held, err := hold(t.Context(), dir)
		must(t, err)
		for name, want := range files {
			data, err := fs.ReadFile(held, name)
			if !all && name == "tmp-snapshot" {
				if !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s is held: %v", name, err)
				}

				continue
			}

			must(t, err)
			if !bytes.Equal(data, want) {
				t.Errorf("%s: %d bytes, want %d", name, len(data), len(want))
			}
		}

		data, err := held.Open("open-2")
		must(t, err)
		seeker, ok := data.(io.ReadSeeker)
		if !ok {
			t.Fatal("no seeker")
		}

		for _, from := range []int64{0, 6, step - 1, 2 * step, 2*step + 99, 2*step + 100} {
			_, err := seeker.Seek(from, io.SeekStart)
			must(t, err)
			rest, err := io.ReadAll(seeker)
			must(t, err)
			if !bytes.Equal(rest, files["open-2"][from:]) {
				t.Errorf("from %d: %d bytes", from, len(rest))
			}
		}

		held.Close()
	}
}

// A file that is deleted, and a directory that another one takes the place of, stay as they were.
func TestHoldStays(t *testing.T) {
	dir := raftlogtest.Make(t, raftlogtest.Stopped)
	held, err := raftlog.Hold(t.Context(), dir)
	must(t, err)
	defer held.Close()

	var names []string
	must(t, fs.WalkDir(held, ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, path)
		}

		return err
	}))
	want := map[string][]byte{}
	for _, name := range names {
		want[name], err = os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		must(t, os.Remove(filepath.Join(dir, name)))
	}

	if !held.Same(dir) {
		t.Error("the directory is said to be another one")
	}

	must(t, fstest.TestFS(held, names...))
	for name, content := range want {
		f, err := held.Open(name)
		must(t, err)
		got, err := io.ReadAll(f)
		must(t, err)
		if string(got) != string(content) {
			t.Errorf("%s has changed", name)
		}
	}

	must(t, os.Rename(dir, dir+".old"))
	must(t, os.Mkdir(dir, 0o700))
	if held.Same(dir) {
		t.Error("another directory is taken for the one that is held")
	}
}
