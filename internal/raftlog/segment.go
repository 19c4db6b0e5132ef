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

// Segment is one file of the log, closed (its name says which indexes it holds) or open (it continues whatever comes before). Its own
// Part is what is sound from its beginning; End is 0 if not even the first 8 bytes are.
type Segment struct {
	Part

	File    string
	Size    int64 // bytes
	Open    bool
	Counter uint64 // of an open one

	// First and Last are the indexes of its entries: by name when closed, by place in the log when open (0 when it has no place there).
	First, Last uint64

	Unused    bool   // open, prepared, never written
	After     uint64 // sound entries found after damage; libdqlite does not look for them
	DirtyTail bool   // an open one with something other than zeros after End

	// Unfinished is true of an open one whose last write was cut short: the rest of its batch, and of the file, was never written.
	Unfinished bool

	// SHA256 is that of the first End bytes, lower-case hexadecimal, where Options.Sums is set and the segment reaches beyond the
	// newest snapshot.
	SHA256 string

	fault *batchFault // why reading stopped; nil at the exact end of the file
	tail  []Part      // what is sound after damage: After entries
	trust trust
}

// highestTerm is the highest term of its sound entries, those after damage included.
func (s *Segment) highestTerm() uint64 {
	t := s.MaxTerm
	for _, p := range s.tail {
		t = max(t, p.MaxTerm)
	}

	return t
}

// parts are all sound parts, in the order of the file.
func (s *Segment) parts() []*Part {
	var list []*Part
	if s.Entries > 0 {
		list = append(list, &s.Part)
	}

	for i := range s.tail {
		list = append(list, &s.tail[i])
	}

	return list
}

// beginsWithChange says whether the first entry of a segment is a change, as the first one of a log is. A damaged format hides no entry.
func (s *Segment) beginsWithChange() bool {
	parts := s.parts()
	return len(parts) > 0 && parts[0].before == 0 && parts[0].firstType == ChangeEntry
}

// wantsSum says whether a sum is wanted of a segment: of those that reach beyond the snapshot, or of all.
func (d *directory) wantsSum(s *Segment, base uint64) bool {
	return d.sums && (d.allSums || s.Open || s.Last > base)
}

// scanSegment reads a segment from its first byte to its last; base is the index of the newest snapshot. The error is one of the file
// system; damage is in the result.
func (d *directory) scanSegment(f File, base uint64) (*Segment, error) {
	s := &Segment{File: f.Name, Part: Part{Offset: segmentHeader, End: segmentHeader}}
	s.name(f)

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

	return d.scanAfter(s, segmentHeader, place{offset: segmentHeader})
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
	err := d.scanUnfinished(s)
	if err != nil {
		return err
	}

	return d.scanAfter(s, s.fault.offset+8, s.fault.after(s.Part))
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
