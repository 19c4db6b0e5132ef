// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/lxd-recover/lxd-recover/internal/lz4frame"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

const (
	snapshotMetaHeader   = 32       // bytes: format, CRC, configuration index, configuration length
	maxMetaConfiguration = 1 << 20  // bytes, libdqlite's own bound
	maxDatabases         = 1024     // LXD has one
	maxDatabaseName      = 512      // bytes, libdqlite's own bound
	maxIndex             = 1e16 - 1 // the largest that fits the 16 digits of a segment name
)

// Snapshot is a pair of snapshot data and metadata.
type Snapshot struct {
	Term, Index uint64 // of the last entry in it
	Timestamp   uint64 // milliseconds of a clock that starts anywhere
	File, Meta  string // names of the data and of the metadata
	Size        int64  // of the data file, bytes
	Compressed  bool   // an LZ4 frame; otherwise raw, without any checksum

	// SHA256 is that of the data file, lower-case hexadecimal, where Options.AllSums is set, or Options.Sums and it is the last in
	// libdqlite's order; MetaSHA256 is that of the metadata.
	SHA256, MetaSHA256 string

	ConfigurationIndex uint64
	Configuration      Configuration
	Databases          []DatabaseImage
	Usable             bool // metadata and data are sound

	engine   product.Engine
	unread   bool    // its data, see Options.Later
	readable bool    // some libdqlite can load it, although its databases may be damaged
	load     Outcome // what libdqlite makes of it when it loads
	start    Outcome // and when a member starts from it
	problems []Problem
}

// DatabaseImage describes one database in a snapshot.
type DatabaseImage struct {
	Name     string
	MainSize int64  // bytes of SQLite's main file
	WALSize  int64  // bytes of SQLite's write-ahead log; 0 in snapshots of libdqlite 1.17 and later
	pages    uint32 // size by the newest page 1, in pages; 0 where that is not known
	PageSize int    // by the header of the main file, bytes
}

// SnapshotDatabase is one database while a snapshot is being read. Main and WAL are to be read in this order; what is left unread is
// skipped.
type SnapshotDatabase struct {
	Name     string
	MainSize int64
	WALSize  int64
	Main     io.Reader
	WAL      io.Reader
}

// compareSnapshots is libdqlite's order: by term first.
func compareSnapshots(a, b Snapshot) int {
	return cmp.Or(cmp.Compare(a.Term, b.Term), cmp.Compare(a.Index, b.Index), cmp.Compare(a.Timestamp, b.Timestamp))
}

// parseSnapshotMeta decodes the metadata of a snapshot. It needs the first snapshotMetaHeader+maxMetaConfiguration bytes of the file,
// or all of it.
func parseSnapshotMeta(p []byte) (index uint64, c Configuration, err error) {
	if len(p) < snapshotMetaHeader {
		return 0, nil, fmt.Errorf("snapshot metadata has only %d bytes", len(p))
	}

	format := binary.LittleEndian.Uint64(p)
	if format != diskFormat {
		return 0, nil, fmt.Errorf("snapshot metadata has format %d instead of %d", format, diskFormat)
	}

	size := binary.LittleEndian.Uint64(p[24:])
	if size == 0 || size > maxMetaConfiguration {
		return 0, nil, fmt.Errorf("snapshot metadata claims a configuration of %d bytes", size)
	}

	if size > uint64(len(p)-snapshotMetaHeader) {
		return 0, nil, fmt.Errorf("snapshot metadata ends within its configuration of %d bytes", size)
	}

	p = p[:snapshotMetaHeader+size]
	want := uint32(binary.LittleEndian.Uint64(p[8:]))
	got := Checksum(0, p[16:])
	if got != want {
		return 0, nil, fmt.Errorf("snapshot metadata has checksum %08x instead of %08x", got, want)
	}

	c, err = ParseConfiguration(p[snapshotMetaHeader:])
	if err != nil {
		return 0, nil, fmt.Errorf("snapshot metadata: %w", err)
	}

	return binary.LittleEndian.Uint64(p[16:]), c, nil
}

// EncodeSnapshotMeta is the inverse: the content of a .meta file.
func EncodeSnapshotMeta(configurationIndex uint64, c Configuration) []byte {
	body := EncodeConfiguration(c)
	b := make([]byte, snapshotMetaHeader, snapshotMetaHeader+len(body))
	binary.LittleEndian.PutUint64(b, diskFormat)
	binary.LittleEndian.PutUint64(b[16:], configurationIndex)
	binary.LittleEndian.PutUint64(b[24:], uint64(len(body)))
	b = append(b, body...)
	binary.LittleEndian.PutUint64(b[8:], uint64(Checksum(0, b[16:])))
	return b
}

// openSnapshot returns a reader of the uncompressed content, which is to be closed.
func openSnapshot(file io.Reader) (r io.ReadCloser, compressed bool, err error) {
	br := bufio.NewReader(file)
	head, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, false, err
	}

	if len(head) < 4 || binary.LittleEndian.Uint32(head) != lz4frame.Magic {
		return io.NopCloser(br), false, nil
	}

	frame, err := lz4frame.NewReader(br)
	if err != nil {
		return nil, false, err
	}

	return frame, true, nil
}

// errSnapshot marks damage in snapshot data, to tell it from I/O errors.
var errSnapshot = errors.New("snapshot data")

// walkSnapshot reads the content of a snapshot: its databases to the exact end.
func walkSnapshot(r io.Reader, fn func(db SnapshotDatabase) error) error {
	br := bufio.NewReaderSize(r, 64<<10)
	var head [16]byte
	_, err := io.ReadFull(br, head[:])
	if err != nil {
		return snapshotDamage(err, "the header is incomplete")
	}

	format := binary.LittleEndian.Uint64(head[:])
	if format != diskFormat {
		return fmt.Errorf("%w: format %d instead of %d", errSnapshot, format, diskFormat)
	}

	n := binary.LittleEndian.Uint64(head[8:])
	if n > maxDatabases {
		return fmt.Errorf("%w: %d databases, more than %d", errSnapshot, n, maxDatabases)
	}

	for i := range n {
		name, err := readText(br)
		if err != nil {
			return snapshotDamage(err, "the name of database %d is incomplete", i+1)
		}

		_, err = io.ReadFull(br, head[:])
		if err != nil {
			return snapshotDamage(err, "the sizes of database %q are missing", name)
		}

		mainSize, walSize := binary.LittleEndian.Uint64(head[:]), binary.LittleEndian.Uint64(head[8:])
		if mainSize > 1<<62 || walSize > 1<<62 {
			return fmt.Errorf("%w: database %q claims %d and %d bytes", errSnapshot, name, mainSize, walSize)
		}

		main := &io.LimitedReader{R: br, N: int64(mainSize)}
		wal := &io.LimitedReader{R: br, N: int64(walSize)}
		err = fn(SnapshotDatabase{Name: name, MainSize: int64(mainSize), WALSize: int64(walSize), Main: main, WAL: wal})
		if err != nil {
			return err
		}

		for _, part := range []*io.LimitedReader{main, wal} {
			_, err = io.Copy(io.Discard, part)
			if err != nil {
				return snapshotDamage(err, "database %q is damaged", name)
			}

			if part.N > 0 {
				return fmt.Errorf("%w: database %q ends %d bytes early", errSnapshot, name, part.N)
			}
		}
	}

	switch _, err := br.ReadByte(); err {
	case io.EOF: // also the end mark and the checksum of the LZ4 frame are right
		return nil
	case nil:
		return fmt.Errorf("%w: bytes after the last database", errSnapshot)
	default:
		return snapshotDamage(err, "the end is damaged")
	}
}

// snapshotDamage wraps an error of reading the content; what came from the file system or the context stays recognisable.
func snapshotDamage(err error, format string, args ...any) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %s", errSnapshot, fmt.Sprintf(format, args...))
	}

	return fmt.Errorf("%w: %s: %w", errSnapshot, fmt.Sprintf(format, args...), err)
}

// readText reads a NUL-terminated text, zero-padded to a multiple of 8.
func readText(br *bufio.Reader) (string, error) {
	var text []byte
	for len(text) <= maxDatabaseName {
		var word [8]byte
		_, err := io.ReadFull(br, word[:])
		if err != nil {
			return "", err
		}

		end := bytes.IndexByte(word[:], 0)
		if end >= 0 {
			return string(append(text, word[:end]...)), nil
		}

		text = append(text, word[:]...)
	}

	return "", fmt.Errorf("longer than %d bytes", maxDatabaseName)
}

// SnapshotDatabases reads the databases of a snapshot one after the other and calls fn with each. It verifies as it reads, so what fn
// got is only known to be right when SnapshotDatabases returns nil.
func (l *Log) SnapshotDatabases(ctx context.Context, s *Snapshot, fn func(db SnapshotDatabase) error) error {
	d := &directory{ctx: ctx, fsys: l.fsys}
	file, _, err := d.open(s.File)
	if err != nil {
		return fmt.Errorf("read snapshot: %w", err)
	}

	defer file.Close()
	r, _, err := openSnapshot(file)
	if err == nil {
		defer r.Close()
		err = walkSnapshot(r, fn)
	}

	if err != nil {
		return fmt.Errorf("read %s: %w", s.File, err)
	}

	return nil
}

// SnapshotHeader is what the content of a snapshot with one database begins with: mainSize bytes of SQLite's main file follow it, and
// no write-ahead log.
func SnapshotHeader(database string, mainSize int64) []byte {
	b := binary.LittleEndian.AppendUint64(nil, diskFormat)
	b = binary.LittleEndian.AppendUint64(b, 1)
	b = append(b, database...)
	b = append(b, make([]byte, 8-len(database)%8)...)
	b = binary.LittleEndian.AppendUint64(b, uint64(mainSize))
	return binary.LittleEndian.AppendUint64(b, 0)
}
