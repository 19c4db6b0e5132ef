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

// scanAfter counts the sound entries in a segment after damage, from offset on: batches that libdqlite never gets to see. Every
// payload is a multiple of 8 bytes, so a batch can only begin at a multiple of 8. The search is bounded, as every 8 bytes of a hostile
// file can look like the beginning of a long batch header.
func (d *directory) scanAfter(s *Segment, offset int64) error {
	for offset = (offset + 7) &^ 7; offset+preambleSize+entryHeaderSize <= s.Size; {
		found, next, err := d.findBatch(s, offset)
		if err != nil {
			return err
		}

		if !found {
			offset = next
			continue
		}

		entries, end, err := d.countBatches(s, next)
		if err != nil {
			return err
		}

		s.After += entries
		// A sound header may stand before damaged data: then go on after it.
		offset = max(end, next+preambleSize+entryHeaderSize)
	}

	return nil
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

// countBatches counts the entries of the sound batches from offset on, and returns the end of the last of them.
func (d *directory) countBatches(s *Segment, offset int64) (entries uint64, end int64, err error) {
	file, size, err := d.openAt(s.File, offset)
	if err != nil {
		return 0, 0, err
	}

	defer file.Close()
	br := d.newBatchReader(file, offset, size)
	for {
		b, err := br.next()
		var fault *batchFault
		if errors.Is(err, io.EOF) || errors.As(err, &fault) {
			return entries, br.offset, nil
		}

		if err != nil {
			return 0, 0, err
		}

		entries += uint64(b.n)
		for i := range b.n {
			term, _, _ := b.entryHeader(i)
			s.MaxTerm = max(s.MaxTerm, term)
		}
	}
}
