// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"encoding/binary"
	"errors"
	"io"
)

const (
	salvageWindow = 4 * segmentSize // bytes looked through after damage at once
	salvageBudget = 64              // header bytes checked for each byte of the window, at most
)

// place is where the next batch of a segment should begin after a damaged one whose header is sound, and how many entries are before it.
type place struct {
	offset int64 // bytes from the start of the file; -1 where it is not known
	before int64
}

// scanAfter reads the sound parts of a segment after damage, from offset on: batches that libdqlite never gets to see. next is where
// the next batch should begin. Every payload is a multiple of 8 bytes, so a batch can only begin at a multiple of 8. The search is
// bounded, as every 8 bytes of a hostile file can look like the beginning of a long batch header.
func (d *directory) scanAfter(s *Segment, offset int64, next place) error {
	for offset = (offset + 7) &^ 7; offset+preambleSize+entryHeaderSize <= s.Size; {
		found, at, err := d.findBatch(s, offset)
		if err != nil {
			return err
		}

		if !found {
			offset = at
			continue
		}

		part, fault, err := d.scanPart(s, at)
		if err != nil {
			return err
		}

		part.before = -1
		if at == next.offset {
			part.before = next.before
		}

		if part.Entries > 0 && len(s.tail) < maxParts {
			s.tail = append(s.tail, part)
			s.After += part.Entries
		}

		next = fault.after(part)
		// A sound header may stand before damaged data: then go on after it.
		offset = max(part.End, at+preambleSize+entryHeaderSize)
	}

	return nil
}

// maxParts bounds the parts kept of one segment.
const maxParts = 10000

// after is where the next batch should begin if a part ends in this fault, or nil.
func (f *batchFault) after(p Part) place {
	if f == nil || f.end == 0 || p.before < 0 {
		return place{offset: -1, before: -1}
	}

	return place{offset: f.end, before: p.before + int64(p.Entries) + int64(f.n)}
}

// findBatch looks for a batch header with a right checksum in the window at offset. When it finds none, next is where to go on.
func (d *directory) findBatch(s *Segment, offset int64) (found bool, next int64, err error) {
	file, size, err := d.openAt(s.File, offset)
	if err != nil {
		return false, 0, err
	}

	defer file.Close()
	length := int(min(size-offset, salvageWindow))
	if length > len(d.window) {
		d.window = make([]byte, length)
	}

	window := d.window[:length]
	if len(window) < preambleSize+entryHeaderSize {
		return false, s.Size, nil
	}

	_, err = io.ReadFull(file, window)
	if err != nil {
		return false, 0, shortIsShrunk(err)
	}

	at, ok := searchBatch(window, size-offset)
	if ok {
		return true, offset + int64(at), nil
	}

	if int64(len(window)) == size-offset {
		return false, size, nil
	}

	// The last batch header of the window may reach beyond it.
	return false, offset + int64(len(window)) - maxBatchEntries*entryHeaderSize - preambleSize, nil
}

// searchBatch returns the offset of the first sound batch header in window; left is how far the file goes from the beginning of the
// window.
func searchBatch(window []byte, left int64) (offset int, found bool) {
	budget := salvageBudget * len(window)
	for at := 0; at+preambleSize+entryHeaderSize <= len(window); at += 8 {
		n := binary.LittleEndian.Uint64(window[at+8:])
		if n == 0 || n > maxBatchEntries {
			continue
		}

		end := at + preambleSize + int(n)*entryHeaderSize
		if end > len(window) {
			continue
		}

		if !plausibleHeaders(window[at+preambleSize:end], left-int64(end)) {
			continue
		}

		budget -= end - at
		if budget < 0 {
			return 0, false
		}

		if Checksum(0, window[at+8:end]) == binary.LittleEndian.Uint32(window[at:]) {
			return at, true
		}
	}

	return 0, false
}

// plausibleHeaders says whether every entry has a type that exists and the payloads fit into what is left of the file.
func plausibleHeaders(headers []byte, left int64) bool {
	for ; len(headers) > 0; headers = headers[entryHeaderSize:] {
		typ, size := EntryType(headers[8]), int64(binary.LittleEndian.Uint32(headers[12:]))
		left -= size
		if typ < CommandEntry || typ > ChangeEntry || size%8 != 0 || left < 0 {
			return false
		}
	}

	return true
}

// scanPart reads the sound batches from offset on. fault is why it ends, nil at the end of the file.
func (d *directory) scanPart(s *Segment, offset int64) (part Part, fault *batchFault, err error) {
	part = Part{Offset: offset, End: offset}
	file, size, err := d.openAt(s.File, offset)
	if err != nil {
		return part, nil, err
	}

	defer file.Close()
	br := d.newBatchReader(file, offset, size)
	for {
		b, err := br.next()
		if errors.Is(err, io.EOF) {
			return part, nil, nil
		}

		if errors.As(err, &fault) {
			return part, fault, nil
		}

		if err != nil {
			return part, nil, err
		}

		part.addBatch(b)
	}
}
