// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
)

// Segment is one file of the log, closed (its name says which indexes it holds) or open (it continues whatever comes before).
type Segment struct {
	File    string
	Size    int64 // bytes
	Open    bool
	Counter uint64 // of an open one

	// First and Last are the indexes of its entries: by name when closed, by place in the effective log when open (0 when it has no
	// place there).
	First, Last uint64

	Entries   uint64 // sound entries from its beginning
	End       int64  // offset after the last of them
	Unused    bool   // open, prepared, never written
	After     uint64 // sound entries found after damage; libdqlite does not look for them
	DirtyTail bool   // an open one with something other than zeros after End

	FirstTerm, LastTerm, MaxTerm uint64 // of its sound entries

	// SHA256 is that of the first End bytes, lower-case hexadecimal, where Options.Sums is set and the segment reaches beyond the
	// newest snapshot.
	SHA256 string

	fault      *batchFault // why reading stopped; nil at the exact end of the file
	firstType  EntryType
	lastType   EntryType
	firstBatch int         // size of the first batch, bytes
	change     foundChange // the last configuration in it
	findings   []finding   // entries that are sound to raft but not to dqlite
	unlisted   int         // findings beyond the bound
}

// foundChange is a configuration entry; ordinal counts from 0 in its segment.
type foundChange struct {
	found         bool
	ordinal       uint64
	offset        int64
	configuration Configuration
	err           error
}

// findingKind says which of libdqlite's steps stumbles over an entry.
type findingKind uint8

const (
	badCommand findingKind = iota // does not decode
	notCommit                     // frames without the commit mark
	badChange                     // configuration does not decode
	unevenSize                    // payload not a multiple of 8
	noServers                     // a configuration of nobody
	zeroTerm                      // term 0
	lowerTerm                     // lower than the entry before, and not a configuration
)

// finding is an entry with sound checksums that means nothing to dqlite.
type finding struct {
	kind    findingKind
	ordinal uint64
	offset  int64
	text    string
}

// maxFindings bounds the findings kept for one segment.
const maxFindings = 100

func (s *Segment) find(kind findingKind, ordinal uint64, offset int64, format string, args ...any) {
	if len(s.findings) >= maxFindings {
		s.unlisted++
		return
	}

	s.findings = append(s.findings, finding{kind, ordinal, offset, fmt.Sprintf(format, args...)})
}

// wantsSum says whether a sum is wanted of a segment: of those that reach beyond the snapshot, or of all.
func (d *directory) wantsSum(s *Segment, base uint64) bool {
	return d.sums && (d.allSums || s.Open || s.Last > base)
}

// scanSegment reads a segment from its first byte to its last; base is the index of the newest snapshot. The error is one of the file
// system; damage is in the result.
func (d *directory) scanSegment(f File, base uint64) (*Segment, error) {
	s := &Segment{File: f.Name, End: segmentHeader}
	if first, last, ok := parseLooseClosed(f.Name); ok {
		s.First, s.Last = first, last
	} else {
		s.Open = true
		s.Counter, _ = parseLooseOpen(f.Name)
	}

	file, size, err := d.open(f.Name)
	if err != nil {
		return nil, err
	}

	defer file.Close()
	s.Size = size

	if size < segmentHeader {
		s.End = 0
		if size == 0 {
			s.Unused = s.Open
			s.fault = &batchFault{class: faultCorrupt, text: "the file is empty"}
			return s, nil
		}

		s.fault = &batchFault{class: faultShort, text: fmt.Sprintf("the file has only %d bytes", size)}
		return s, nil
	}

	var header [segmentHeader]byte
	_, err = io.ReadFull(file, header[:])
	if err != nil {
		return nil, shortIsShrunk(err)
	}

	format := binary.LittleEndian.Uint64(header[:])
	if format != diskFormat {
		return s, d.scanForeign(s, format, file)
	}

	return s, d.scanBatches(s, file, d.wantsSum(s, base))
}

// scanForeign looks at a segment with another format, of which the first bytes are read.
func (d *directory) scanForeign(s *Segment, format uint64, file io.Reader) error {
	s.End = 0
	s.fault = &batchFault{class: faultCorrupt, text: fmt.Sprintf("the file has format %d instead of %d", format, diskFormat)}
	switch format {
	case 2:
		s.fault.text += " (only libdqlite 1.16.5 to 1.16.7 built with --enable-dqlite-next wrote that)"
	case 0:
		zero, err := onlyZeros(file, s.Size-segmentHeader)
		if err != nil {
			return err
		}

		s.Unused = zero && s.Open
		if zero {
			s.fault.text = "the file is all zero"
		}
	}

	if s.Unused {
		return nil
	}

	return d.scanAfter(s, segmentHeader)
}

// scanBatches reads the batches of a segment, of which the header is read.
func (d *directory) scanBatches(s *Segment, file io.Reader, wantsSum bool) error {
	var sum hash.Hash
	if wantsSum {
		sum = sha256.New()
		sum.Write(SegmentHeader())
		defer func() { s.SHA256 = hex.EncodeToString(sum.Sum(nil)) }()
	}

	br := d.newBatchReader(file, segmentHeader, s.Size)
	for {
		b, err := br.next()
		if errors.Is(err, io.EOF) {
			if s.Entries == 0 {
				s.fault = &batchFault{class: faultShort, offset: segmentHeader, text: "the file has no batch"}
			}

			return nil
		}

		var fault *batchFault
		if errors.As(err, &fault) {
			s.fault = fault
			return d.scanTail(s, br)
		}

		if err != nil {
			return err
		}

		s.addBatch(b)
		if sum != nil {
			sum.Write(b.raw)
		}
	}
}

// scanTail looks at what comes after the last sound batch of a segment.
func (d *directory) scanTail(s *Segment, br *batchReader) error {
	if s.fault.zeroes {
		zero, err := onlyZeros(br.rest(), s.Size-s.fault.offset)
		if err != nil {
			return err
		}

		if zero {
			return nil
		}
	}

	s.DirtyTail = true
	return d.scanAfter(s, s.fault.offset+8)
}

// addBatch takes a sound batch into the segment's account.
func (s *Segment) addBatch(b *batch) {
	at := b.end - int64(len(b.data))
	rest := b.data
	for i := range b.n {
		term, typ, size := b.entryHeader(i)
		data := rest[:size]
		rest = rest[size:]
		if s.Entries == 0 {
			s.FirstTerm, s.firstType = term, typ
		}

		if size%8 != 0 {
			s.find(unevenSize, s.Entries, at, "the entry's size of %d bytes is not a multiple of 8", size)
		}

		switch typ {
		case CommandEntry:
			c, err := ParseCommand(data)
			if err != nil {
				s.find(badCommand, s.Entries, at, "%v", err)
			} else if c.Kind == Frames && !c.IsCommit {
				s.find(notCommit, s.Entries, at, "a frames command without commit mark")
			}
		case ChangeEntry:
			s.change = foundChange{found: true, ordinal: s.Entries, offset: at}
			s.change.configuration, s.change.err = ParseConfiguration(data)
			if s.change.err != nil {
				s.find(badChange, s.Entries, at, "%v", s.change.err)
			} else if len(s.change.configuration) == 0 {
				s.find(noServers, s.Entries, at, "the configuration has no servers")
			}
		}

		switch {
		case term == 0:
			s.find(zeroTerm, s.Entries, at, "the entry has term 0")
		case s.Entries > 0 && term < s.LastTerm && typ != ChangeEntry:
			s.find(lowerTerm, s.Entries, at, "the entry has term %d after one of term %d", term, s.LastTerm)
		}

		s.LastTerm, s.lastType = term, typ
		s.MaxTerm = max(s.MaxTerm, term)
		s.Entries++
		at += int64(size)
	}

	if s.firstBatch == 0 {
		s.firstBatch = int(b.end - b.offset)
	}

	s.End = b.end
}

// zeros is compared with, to find out fast whether memory is all zero.
var zeros [64 << 10]byte

// onlyZeros reads n bytes and says whether all are zero; it stops at the first that is not.
func onlyZeros(r io.Reader, n int64) (bool, error) {
	var buf [64 << 10]byte
	for n > 0 {
		p := buf[:min(n, int64(len(buf)))]
		_, err := io.ReadFull(r, p)
		if err != nil {
			return false, shortIsShrunk(err)
		}

		if !bytes.Equal(p, zeros[:len(p)]) {
			return false, nil
		}

		n -= int64(len(p))
	}

	return true, nil
}

func shortIsShrunk(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errShrunk
	}

	return err
}
