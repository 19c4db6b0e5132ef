// SPDX-License-Identifier: AGPL-3.0-only

package raftlog_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"testing/fstest"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// bounded runs fn and fails when it allocates more than factor times the size of its input, and something.
func bounded(t *testing.T, size, factor, something int, fn func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	if got, limit := after.TotalAlloc-before.TotalAlloc, uint64(size*factor+something); got > limit {
		t.Errorf("%d bytes of input made it allocate %d, more than %d", size, got, limit)
	}
}

func FuzzMetadata(f *testing.F) {
	f.Add(raftlog.Metadata{Version: 3, Term: 2, Vote: 1}.Encode())
	f.Add(make([]byte, 32))
	f.Fuzz(func(t *testing.T, p []byte) {
		m, err := raftlog.ParseMetadata(p)
		if err == nil && !bytes.Equal(m.Encode(), p) {
			t.Errorf("%x became %x", p, m.Encode())
		}
	})
}

func FuzzConfiguration(f *testing.F) {
	f.Add(raftlog.EncodeConfiguration(raftlog.Configuration{{ID: 1, Address: "10.0.0.1:8443", Role: raftlog.Voter}, {ID: 2, Address: "b"}}))
	f.Add([]byte{1, 255, 255, 255, 255, 255, 255, 255, 255})
	f.Add(append([]byte{1, 3, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 30)...))
	f.Fuzz(func(t *testing.T, p []byte) {
		bounded(t, len(p), 64, 64<<10, func() {
			c, err := raftlog.ParseConfiguration(p)
			if err != nil {
				return
			}

			again, err := raftlog.ParseConfiguration(raftlog.EncodeConfiguration(c))
			if err != nil || !slices.Equal(c, again) {
				t.Errorf("%v became %v, %v", c, again, err)
			}
		})
	})
}

func frames(pages, size int) []byte {
	p := append([]byte{1, 2, 0, 0, 0, 0, 0, 0}, "db.bin\x00\x00"...)
	p = append(p, make([]byte, 12)...)
	p = append(p, 1, 0, 0, 0)
	p = binary.LittleEndian.AppendUint32(p, uint32(pages))
	p = binary.LittleEndian.AppendUint16(p, uint16(size))
	p = append(p, 0, 0)
	for i := range pages {
		p = binary.LittleEndian.AppendUint64(p, uint64(i+1))
	}

	return append(p, make([]byte, pages*size)...)
}

func FuzzCommand(f *testing.F) {
	f.Add(frames(2, 16))
	f.Add(frames(0, 4096))
	f.Add(append([]byte{1, 1, 0, 0, 0, 0, 0, 0}, "db.bin\x00\x00"...))
	f.Add(make([]byte, 16))
	f.Add(append([]byte{1, 3, 0, 0, 0, 0, 0, 0}, make([]byte, 8)...))
	f.Fuzz(func(t *testing.T, p []byte) {
		bounded(t, len(p), 1, 64<<10, func() {
			c, err := raftlog.ParseCommand(p)
			if err != nil {
				return
			}

			for i := range c.Len() {
				if number, image := c.Page(i); number == 0 || len(image) != c.PageSize {
					t.Errorf("page %d: number %d, %d bytes", i, number, len(image))
				}
			}
		})
	})
}

// openFuzzed opens a directory and reads everything that comes out of it.
func openFuzzed(t *testing.T, fsys fstest.MapFS) *raftlog.Log {
	size := 0
	for _, f := range fsys {
		size += len(f.Data)
	}

	var log *raftlog.Log
	// Readers and windows take their part whatever the input.
	bounded(t, size, 64, 8<<20, func() {
		var err error
		log, err = raftlog.Open(context.Background(), fsys, raftlog.Options{})
		if err != nil {
			t.Fatal(err)
		}

		var last uint64
		for e, err := range log.Entries(context.Background(), 0) {
			if err != nil {
				t.Fatal(err)
			}

			last = e.Index
		}

		if last > log.LastIndex {
			t.Errorf("entry %d, but the log ends at %d", last, log.LastIndex)
		}

		if log.Healthy() {
			for _, p := range log.Problems {
				if p.Severity == raftlog.Error {
					t.Errorf("healthy with %v", p)
				}
			}
		}
	})
	return log
}

// bootstrap is the first entry of a log: a configuration with one voter.
func bootstrap() raftlog.Entry {
	one := raftlog.Configuration{{ID: 1, Address: "1", Role: raftlog.Voter}}
	return raftlog.Entry{Term: 1, Type: raftlog.ChangeEntry, Data: raftlog.EncodeConfiguration(one)}
}

// FuzzSegments reads a closed and an open segment. With sealed, the checksums of the first batches are made right, so that the fuzzer
// gets past them.
func FuzzSegments(f *testing.F) {
	change := bootstrap()
	command := raftlog.Entry{Term: 2, Type: raftlog.CommandEntry, Data: frames(1, 32)}
	barrier := raftlog.Entry{Term: 2, Type: raftlog.BarrierEntry, Data: make([]byte, 8)}
	open := raftlogtest.Segment(400, []raftlog.Entry{barrier, command}, []raftlog.Entry{command})
	f.Add(raftlogtest.Segment(0, []raftlog.Entry{change}), open, true)
	f.Add(raftlogtest.Segment(0, []raftlog.Entry{change}), make([]byte, 100), false)
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0}, []byte{}, false)
	f.Fuzz(func(t *testing.T, closed, open []byte, sealed bool) {
		if sealed {
			closed, open = raftlogtest.Seal(closed), raftlogtest.Seal(open)
		}

		openFuzzed(t, fstest.MapFS{
			"metadata1":               {Data: raftlog.Metadata{Version: 1, Term: 2}.Encode()},
			raftlog.SegmentName(1, 1): {Data: closed},
			"open-1":                  {Data: open},
		})
	})
}

// FuzzSnapshot reads a pair of snapshot files. With packed, the content is put into a right LZ4 frame first.
func FuzzSnapshot(f *testing.F) {
	c := raftlog.Configuration{{ID: 1, Address: "1", Role: raftlog.Voter}}
	meta := raftlog.EncodeSnapshotMeta(1, c)
	page := make([]byte, 4096)
	copy(page, "SQLite format 3\x00\x10\x00")
	content := raftlogtest.EncodeSnapshot("db.bin", page, nil)
	f.Add(meta, content, true)
	f.Add(meta, content, false)
	f.Add(meta, raftlogtest.EncodeSnapshot("db.bin", page, make([]byte, 32+24+4096)), true)
	f.Add(meta, raftlogtest.Compress(content), false)
	f.Fuzz(func(t *testing.T, meta, data []byte, packed bool) {
		if packed {
			data = raftlogtest.Compress(data)
		}

		log := openFuzzed(t, fstest.MapFS{
			"metadata1":             {Data: raftlog.Metadata{Version: 1, Term: 2}.Encode()},
			"snapshot-2-9-100":      {Data: data},
			"snapshot-2-9-100.meta": {Data: meta},
		})
		s := log.Snapshot()
		if s == nil {
			return
		}

		err := log.SnapshotDatabases(context.Background(), s, func(db raftlog.SnapshotDatabase) error {
			n, err := io.Copy(io.Discard, db.Main)
			if err == nil && n != db.MainSize {
				t.Errorf("%d bytes of %d", n, db.MainSize)
			}

			return err
		})
		if err != nil {
			t.Errorf("usable, but: %v", err)
		}
	})
}

// FuzzNames opens a directory with a file of any name.
func FuzzNames(f *testing.F) {
	for _, name := range []string{
		"open-1", "7-9", "snapshot-1-2-3.meta", "snapshot-99999999999999999999-1-1", "0-0", "-5--3", "open--1", "+5- 6", "metadata2",
	} {
		f.Add(name, []byte("x"))
		f.Add(name, raftlogtest.Segment(0, []raftlog.Entry{{Term: 1, Type: raftlog.BarrierEntry, Data: make([]byte, 8)}}))
	}

	f.Fuzz(func(t *testing.T, name string, data []byte) {
		if filepath.Base(name) != name || name == "." || name == ".." || name == "" || name == "metadata1" {
			return
		}

		change := bootstrap()
		openFuzzed(t, fstest.MapFS{
			"metadata1":               {Data: raftlog.Metadata{Version: 1, Term: 2}.Encode()},
			raftlog.SegmentName(1, 1): {Data: raftlogtest.Segment(0, []raftlog.Entry{change})},
			name:                      {Data: data},
		})
	})
}

// BenchmarkOpen verifies a directory of 64 MiB of full segments.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	data := frames(400, 4096)
	size := 0
	write := func(name string, p []byte) {
		size += len(p)
		err := os.WriteFile(filepath.Join(dir, name), p, 0o600)
		if err != nil {
			b.Fatal(err)
		}
	}

	write("metadata1", raftlog.Metadata{Version: 1, Term: 2}.Encode())
	change := bootstrap()
	write(raftlog.SegmentName(1, 1), raftlogtest.Segment(0, []raftlog.Entry{change}))
	segment := raftlogtest.Segment(0, raftlogtest.Batches(raftlog.Entry{Term: 2, Type: raftlog.CommandEntry, Data: data}, 1, 1, 1, 1, 1)...)
	for i := range uint64(8) {
		write(raftlog.SegmentName(2+5*i, 6+5*i), segment)
	}

	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		log, err := raftlog.Open(context.Background(), os.DirFS(dir), raftlog.Options{})
		if err != nil || !log.Healthy() {
			b.Fatalf("%v %v", err, log)
		}
	}
}
