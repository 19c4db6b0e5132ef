// SPDX-License-Identifier: AGPL-3.0-only

package raftlogtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/pierrec/lz4/v4"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Base names a kind of undamaged directory.
type Base string

// The bases.
const (
	Killed   Base = "killed"   // a real LXD 6.9 member killed hard: closed segments 1-126, open-1 with 127-188 (cut to 1 MiB), no snapshot
	Stopped  Base = "stopped"  // a real LXD 6.9 member stopped cleanly: closed segments 1-126
	Snapshot Base = "snapshot" // snapshots at 100 and 126, closed segments 62-126, 127-130, 131-135, open-1 with 136-145, open-2 with 146-150
	WAL      Base = "wal"      // as Snapshot, but the snapshot has a write-ahead log as 1.16 and earlier wrote it
)

// What the bases hold.
const (
	SnapshotIndex = 126
	SnapshotLast  = 150
	KilledLast    = 188
	StoppedLast   = 126
)

// Names in the Snapshot base.
const (
	OlderSnapshot = "snapshot-2-100-1000"
	NewerSnapshot = "snapshot-2-126-2000"
)

// Make returns a new directory of that kind.
func Make(t testing.TB, b Base) string {
	t.Helper()
	switch b {
	case Killed:
		dir := Copy(t, Global(t, "forgotten/n1-preedit"))
		err := resizeOpen(dir, openSize)
		if err != nil {
			t.Fatal(err)
		}

		return dir
	case Stopped:
		return Copy(t, Global(t, "small/n2-preimport"))
	}

	Fixtures(t)
	made := makeSnapshot
	if b == WAL {
		made = makeWAL
	}

	dir, err := made()
	if err != nil {
		t.Fatal(err)
	}

	return Copy(t, dir)
}

// The directories that are made, once in a process, beside the unpacked ones.
var (
	makeSnapshot = sync.OnceValues(func() (string, error) { return makeBase(Snapshot) })
	makeWAL      = sync.OnceValues(func() (string, error) { return makeBase(WAL) })
)

func makeBase(b Base) (string, error) {
	fixtures, err := unpack()
	if err != nil {
		return "", err
	}

	dir := filepath.Join(fixtures, "made-"+string(b))
	err = os.Mkdir(dir, 0o700)
	if err != nil {
		return "", err
	}

	return dir, makeSnapshotBase(dir, filepath.Join(fixtures, "small", "n2-preimport", "database", "global"), b == WAL)
}

// makeSnapshotBase builds a directory from a stopped member: its database dump becomes a snapshot, its last segment the trailing log,
// and its last change of the database is written again and again after it, which changes nothing.
func makeSnapshotBase(dir, member string, wal bool) error {
	log, err := raftlog.Open(context.Background(), os.DirFS(member), raftlog.Options{})
	if err != nil {
		return err
	}

	var again raftlog.Entry
	for e, err := range log.Entries(context.Background(), 1) {
		if err != nil {
			return err
		}

		if e.Type != raftlog.CommandEntry {
			continue
		}

		c, err := raftlog.ParseCommand(e.Data)
		if err == nil && c.Kind == raftlog.Frames {
			again = e
			again.Data = bytes.Clone(e.Data)
		}
	}

	database, err := os.ReadFile(filepath.Join(member, "db.bin"))
	if err != nil {
		return err
	}

	w := writer{dir: dir}
	const trailing = "0000000000000062-0000000000000126"
	w.err = copyFile(filepath.Join(member, trailing), filepath.Join(dir, trailing))
	w.file("metadata1", raftlog.Metadata{Version: 5, Term: 2, Vote: 1}.Encode())
	w.file("metadata2", raftlog.Metadata{Version: 4, Term: 2}.Encode())
	for _, name := range []string{OlderSnapshot, NewerSnapshot} {
		w.file(name, Compress(EncodeSnapshot("db.bin", database, walOf(database, wal))))
		w.file(name+".meta", raftlog.EncodeSnapshotMeta(log.ConfigurationIndex, log.Configuration))
	}

	w.file(raftlog.SegmentName(127, 130), Segment(0, Batches(again, 1, 1, 1, 1)...))
	w.file(raftlog.SegmentName(131, 135), Segment(0, Batches(again, 2, 3)...))
	w.file("open-1", Segment(openSize, Batches(again, 2, 2, 2, 2, 2)...))
	// open-1 is full: the next batch would not have fitted.
	w.err = firstError(w.err, os.Truncate(filepath.Join(dir, "open-1"), int64(len(Segment(0, Batches(again, 2, 2, 2, 2, 2)...))+16)))
	w.file("open-2", Segment(openSize, Batches(again, 3, 2)...))
	w.file("open-3", make([]byte, openSize))
	w.file("open-4", make([]byte, openSize))
	return w.err
}

// openSize is the size of open segments, bytes. It is smaller than what libdqlite allocates, wholeOpenSize, to be quick; libdqlite does
// not look at the size.
const (
	openSize      = 1 << 20
	wholeOpenSize = 8 << 20
)

// resizeOpen gives the open segments another size, by zeros more or less at their end.
func resizeOpen(dir string, size int64) error {
	files, err := filepath.Glob(filepath.Join(dir, "open-*"))
	if err != nil {
		return err
	}

	for _, file := range files {
		err = os.Truncate(file, size)
		if err != nil {
			return err
		}
	}

	return nil
}

// writer writes files until the first error.
type writer struct {
	dir string
	err error
}

func (w *writer) file(name string, data []byte) {
	if w.err == nil {
		w.err = writeFile(filepath.Join(w.dir, name), data)
	}
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}

	return nil
}

// Batches makes one batch for every count, of so many copies of an entry.
func Batches(e raftlog.Entry, counts ...int) [][]raftlog.Entry {
	var batches [][]raftlog.Entry
	for _, n := range counts {
		var batch []raftlog.Entry
		for range n {
			batch = append(batch, e)
		}

		batches = append(batches, batch)
	}

	return batches
}

// Segment is the content of a segment, filled with zeros up to size.
func Segment(size int, batches ...[]raftlog.Entry) []byte {
	b := raftlog.SegmentHeader()
	for _, batch := range batches {
		b = raftlog.AppendBatch(b, batch...)
	}

	if len(b) < size {
		b = append(b, make([]byte, size-len(b))...)
	}

	return b
}

// EncodeSnapshot is the uncompressed content of a snapshot with one database.
func EncodeSnapshot(name string, main, wal []byte) []byte {
	b := binary.LittleEndian.AppendUint64(nil, 1)
	b = binary.LittleEndian.AppendUint64(b, 1)
	b = append(b, name...)
	b = append(b, make([]byte, 8-len(name)%8)...)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(main)))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(wal)))
	return append(append(b, main...), wal...)
}

// walOf returns a write-ahead log that writes page 1 again.
func walOf(database []byte, wanted bool) []byte {
	if !wanted {
		return nil
	}

	header := make([]byte, 32)
	for i, v := range []uint32{0x377F0682, 3007000, 4096, 0, 1, 2} {
		binary.BigEndian.PutUint32(header[4*i:], v)
	}

	sum1, sum2 := walChecksum(0, 0, header[:24])
	binary.BigEndian.PutUint32(header[24:], sum1)
	binary.BigEndian.PutUint32(header[28:], sum2)
	frame := make([]byte, 24, 24+4096)
	binary.BigEndian.PutUint32(frame, 1)
	binary.BigEndian.PutUint32(frame[4:], uint32(len(database)/4096))
	copy(frame[8:16], header[16:24])
	sum1, sum2 = walChecksum(sum1, sum2, frame[:8])
	sum1, sum2 = walChecksum(sum1, sum2, database[:4096])
	binary.BigEndian.PutUint32(frame[16:], sum1)
	binary.BigEndian.PutUint32(frame[20:], sum2)
	return append(append(header, frame...), database[:4096]...)
}

// walChecksum is SQLite's, over little-endian words.
func walChecksum(s1, s2 uint32, p []byte) (uint32, uint32) {
	for ; len(p) > 0; p = p[8:] {
		s1 += binary.LittleEndian.Uint32(p) + s2
		s2 += binary.LittleEndian.Uint32(p[4:]) + s1
	}

	return s1, s2
}

// Compress makes an LZ4 frame as libdqlite does: content size and checksum.
func Compress(p []byte, more ...lz4.Option) []byte {
	var b bytes.Buffer
	w := lz4.NewWriter(&b)
	options := append([]lz4.Option{lz4.SizeOption(uint64(len(p))), lz4.ChecksumOption(true), lz4.BlockSizeOption(lz4.Block64Kb)}, more...)
	err := w.Apply(options...)
	if err != nil {
		panic(fmt.Sprintf("lz4: %v", err))
	}

	_, err = w.Write(p)
	if err != nil {
		panic(fmt.Sprintf("lz4: %v", err))
	}

	err = w.Close()
	if err != nil {
		panic(fmt.Sprintf("lz4: %v", err))
	}

	return b.Bytes()
}
