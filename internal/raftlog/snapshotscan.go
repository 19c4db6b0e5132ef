// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

const (
	sqliteHeader   = 100  // bytes at the beginning of page 1
	dqlitePageSize = 4096 // bytes; libdqlite 1.18 asserts it, and dqlite cannot change it
	walHeader      = 32   // bytes
	walFrameHeader = 24   // bytes before each page: page number, size after commit, salts, checksum; big endian
	walMagic       = 0x377F0682
)

const (
	refusesSnapshot = "refuses to load the directory when this is its newest snapshot; it never falls back to an older one"
)

// scanSnapshot fills in what the two files of a pair say and whether they are sound, and their sums where they are wanted; of the data
// only the size where it is left for later. The error is one of the file system.
func (d *directory) scanSnapshot(s *Snapshot, sums bool) error {
	s.Usable, s.readable = true, true
	err := d.scanSnapshotMeta(s, sums)
	if err != nil {
		return fmt.Errorf("read %s: %w", s.Meta, err)
	}

	err = d.scanSnapshotData(s, sums)
	if err != nil {
		return fmt.Errorf("read %s: %w", s.File, err)
	}

	return nil
}

// scanSnapshotMeta reads the metadata of a pair, and looks at its name.
func (d *directory) scanSnapshotMeta(s *Snapshot, sums bool) error {
	const limit = snapshotMetaHeader + maxMetaConfiguration
	raw, err := d.readAll(s.Meta, limit)
	if err != nil {
		return err
	}

	if sums && len(raw) < limit { // else there may be more of it
		sum := sha256.Sum256(raw)
		s.MetaSHA256 = hex.EncodeToString(sum[:])
	}

	s.ConfigurationIndex, s.Configuration, err = parseSnapshotMeta(raw)
	if err != nil {
		s.damaged(Refuses, Refuses, s.Meta, err.Error(), refusesSnapshot)
	}

	if s.Term == 0 || s.Index == 0 || s.Index > maxIndex {
		load := LoadsClean
		if s.Index > maxIndex {
			load = Crashes
		}

		s.damaged(load, Crashes, s.File, "the name says a term or an index that cannot be",
			"loads it and aborts the process when the member starts (assertion)")
	}

	if s.ConfigurationIndex > s.Index {
		s.problem(Warning, s.Meta, fmt.Sprintf("its configuration has index %d, after the snapshot", s.ConfigurationIndex), "does not check that")
	}

	return nil
}

// scanSnapshotData reads the data of a pair to its end.
func (d *directory) scanSnapshotData(s *Snapshot, sums bool) error {
	file, size, err := d.open(s.File)
	if err != nil {
		return err
	}

	defer file.Close()
	s.Size = size
	if d.later {
		s.unread = true
		return nil
	}

	sum := sha256.New()
	outer := &watchedReader{r: file}
	if sums {
		outer.r = io.TeeReader(file, sum)
	}

	r, compressed, err := openSnapshot(outer)
	if err != nil {
		return err
	}

	defer r.Close()
	s.Compressed, s.engine = compressed, d.engine
	inner := &watchedReader{r: r}
	err = walkSnapshot(inner, s.scanDatabase)
	if inner.err == nil {
		// Go on to the end mark and the checksum of the LZ4 frame.
		_, _ = io.Copy(io.Discard, inner)
	}

	if sums && outer.err == nil {
		_, _ = io.Copy(io.Discard, outer) // what comes after the frame
		s.SHA256 = hex.EncodeToString(sum.Sum(nil))
	}

	if outer.err != nil {
		return outer.err
	}

	s.checkFrame(d)
	switch {
	case inner.err != nil:
		s.damaged(Refuses, Refuses, s.File, "the LZ4 frame is damaged: "+inner.err.Error(), refusesSnapshot+
			" (1.18.3 and later overlook damage in the end mark and the checksum)")
	case err != nil:
		s.damaged(LoadsClean, Crashes, s.File, err.Error(), "loads it unseen; refuses or crashes when a member starts on it")
	}

	return nil
}

// problem adds a finding about the pair.
func (s *Snapshot) problem(severity Severity, file, text, libdqlite string) {
	s.problems = append(s.problems, Problem{Severity: severity, File: file, Offset: -1, Index: s.Index, Text: text, Libdqlite: libdqlite,
		Advice: adviseRepair})
}

// damaged adds a finding that makes the pair unusable.
func (s *Snapshot) damaged(load, start Outcome, file, text, libdqlite string) {
	s.Usable = false
	s.readable = s.readable && load == LoadsClean
	s.load, s.start = max(s.load, load), max(s.start, start, load)
	s.problem(Error, file, text, libdqlite)
}

// doubted adds what its rows say about it, which are read with all else that there is.
func (s *Snapshot) doubted(d Doubt) {
	s.problems = slices.Clone(s.problems) // of a log that is known, too
	if d.Certain {
		s.damaged(LoadsClean, LoadsClean, s.File, d.Text, "loads it unseen")
		return
	}

	s.problem(Error, s.File, d.Text, "loads it unseen")
}

// checkFrame looks at how the data is packed, which not every libdqlite likes.
func (s *Snapshot) checkFrame(d *directory) {
	if !s.Compressed && d.engine.RawSnapshots() {
		s.problems = append(s.problems, Problem{Severity: Info, File: s.File, Offset: -1, Index: s.Index,
			Text: "the snapshot is not compressed, so it has no checksum: " +
				"damage in the values of its rows is found only if the log has the entries before it",
			Libdqlite: "writes it so, and reads it", Advice: "nothing; `lxd-recover global-db-compare` compares its rows with another member's"})
		return
	}

	if !s.Compressed {
		s.load, s.start = max(s.load, Refuses), max(s.start, Refuses)
		s.problem(Error, s.File, "the snapshot is not compressed, so it has no checksum",
			"1.18.3 and later, built with LZ4 as usual, refuse to load the directory; earlier versions read it")
		return
	}

	const sizeFlag, checksumFlag = 1 << 3, 1 << 2
	head, err := d.readAll(s.File, 14) // magic, flags, block size, content size
	if err != nil || len(head) < 14 {
		return // damaged, and found to be
	}

	if head[4]&sizeFlag == 0 || binary.LittleEndian.Uint64(head[6:]) == 0 {
		s.load, s.start = Crashes, Crashes
		s.problem(Error, s.File, "the LZ4 frame does not say how large its content is",
			"1.18.3 and later take it for empty and use memory that was never set; earlier versions read it")
	}

	if head[4]&checksumFlag == 0 {
		s.problem(Warning, s.File, "the LZ4 frame has no checksum, so damage in it cannot be seen", "reads it")
	}
}

// What libdqlite does about a damaged database.
const (
	refusesAtStart = "loads it unseen; refuses when a member starts on it"
	assertsAtStart = "loads it unseen; 1.18 aborts the process when a member starts on it (assertion)"
)

// scanDatabase checks the outside of a database image: sizes, page size, the frames of the write-ahead log. Whether SQLite likes it is
// not decided here.
func (s *Snapshot) scanDatabase(db SnapshotDatabase) error {
	image := DatabaseImage{Name: db.Name, MainSize: db.MainSize, WALSize: db.WALSize}
	defer func() { s.Databases = append(s.Databases, image) }()
	if db.MainSize%dqlitePageSize != 0 {
		s.wrong(db, Crashes, "its size of %d bytes is not a multiple of %d", db.MainSize, dqlitePageSize)
	}

	var head [sqliteHeader]byte
	_, err := io.ReadFull(db.Main, head[:])
	if err == nil {
		image.PageSize = int(binary.BigEndian.Uint16(head[16:]))
		pages := int64(binary.BigEndian.Uint32(head[pageOneSize:]))
		image.pages = uint32(pages)
		switch {
		case string(head[:16]) != "SQLite format 3\x00":
			s.wrong(db, Refuses, "it is not an SQLite database")
		case image.PageSize != dqlitePageSize:
			s.wrong(db, Refuses, "its page size is %d instead of %d bytes", image.PageSize, dqlitePageSize)
		case db.WALSize <= walHeader && pages > db.MainSize/dqlitePageSize:
			s.wrong(db, Refuses, "its header says %d pages, but there are only %d", pages, db.MainSize/dqlitePageSize)
		}
	} else if db.MainSize >= sqliteHeader {
		return nil // the walk finds that it ends early
	} else if db.MainSize > 0 || db.WALSize <= walHeader {
		s.wrong(db, Refuses, "it has only %d bytes", db.MainSize)
	}

	if db.WALSize > walHeader {
		s.scanWAL(db, &image)
	}

	return nil
}

// wrong adds a finding about a database, of which a member that starts makes that outcome.
func (s *Snapshot) wrong(db SnapshotDatabase, o Outcome, format string, args ...any) {
	libdqlite := refusesAtStart
	if o == Crashes {
		libdqlite = assertsAtStart
	}

	s.damaged(LoadsClean, o, s.File, fmt.Sprintf("database %q: ", db.Name)+fmt.Sprintf(format, args...), libdqlite)
}

// olderWAL is the finding that a database comes with a write-ahead log.
func (s *Snapshot) olderWAL(db SnapshotDatabase) Problem {
	return Problem{Severity: Info, File: s.File, Offset: -1, Index: s.Index,
		Text:      fmt.Sprintf("database %q has a write-ahead log in the snapshot, as 1.16 and earlier wrote it", db.Name),
		Libdqlite: "1.18.3 and 1.18.4 abort the process when a member starts on it (assertion); all others read it",
		Advice:    product.Text("nothing, as long as LXD does not come with one of these two")}
}

// scanWAL checks a write-ahead log. It says nothing of one that ends early: the walk finds that.
func (s *Snapshot) scanWAL(db SnapshotDatabase, image *DatabaseImage) {
	if !s.engine.RawSnapshots() {
		s.problems = append(s.problems, s.olderWAL(db))
	}

	_, err := io.Copy(io.Discard, db.Main)
	if err != nil {
		return
	}

	const frame = walFrameHeader + dqlitePageSize
	if (db.WALSize-walHeader)%frame != 0 {
		s.wrong(db, Crashes, "its write-ahead log of %d bytes does not end with a frame", db.WALSize)
		return
	}

	var head [walHeader]byte
	_, err = io.ReadFull(db.WAL, head[:])
	if err != nil {
		return
	}

	magic, size := binary.BigEndian.Uint32(head[:]), binary.BigEndian.Uint32(head[8:])
	if magic&^1 != walMagic || size != dqlitePageSize {
		s.wrong(db, Refuses, "its write-ahead log has magic number %#x and page size %d", magic, size)
	}

	sum, ok := newWALSum(head[:])
	if !ok && !s.Compressed {
		s.wrong(db, Crashes, "its write-ahead log begins with a wrong checksum")
		return
	}

	commit := uint32(0)
	var page [dqlitePageSize]byte
	for n := range (db.WALSize - walHeader) / frame {
		_, err = io.ReadFull(db.WAL, head[:walFrameHeader])
		if err == nil {
			_, err = io.ReadFull(db.WAL, page[:])
		}

		if err != nil {
			return
		}

		if !s.Compressed && !sum.frame(head[:walFrameHeader], page[:]) { // in a frame of LZ4 it is covered by that one's checksum
			s.wrong(db, Crashes, "frame %d of its write-ahead log has a wrong checksum", n+1)
			return
		}

		if binary.BigEndian.Uint32(head[:]) == 1 {
			image.pages = binary.BigEndian.Uint32(page[pageOneSize:])
		}

		if binary.BigEndian.Uint32(head[:]) == 0 {
			s.wrong(db, Crashes, "its write-ahead log has a page 0")
			return
		}

		commit = binary.BigEndian.Uint32(head[4:])
	}

	if commit == 0 {
		s.wrong(db, Crashes, "its write-ahead log does not end with a commit")
	}
}

// watchedReader remembers the first error of a reader, other than its end.
type watchedReader struct {
	r   io.Reader
	err error
}

func (w *watchedReader) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && w.err == nil {
		w.err = err
	}

	return n, err
}
