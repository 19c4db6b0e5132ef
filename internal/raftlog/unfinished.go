// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"encoding/binary"
	"io"
)

// block is what libdqlite writes open segments in, bytes.
const block = 4096

// maxTerm bounds what is believed of a term that no checksum vouches for.
const maxTerm = 1 << 62

// scanUnfinished finds out whether the last write to an open segment was cut short: its batch is damaged, and from the beginning of a
// block inside it everything is zero to the end of the file, as libdqlite had prepared it. Such a write was never acknowledged.
//
// Where it was cut short within the headers of the entries, no checksum can tell, and what seems to be missing may only be claimed by a
// damaged number of entries: the batch may be a shorter one, which is whole and was acknowledged. So the headers that were written must
// be such.
func (d *directory) scanUnfinished(s *Segment) error {
	if !s.Open || s.fault.class != faultCorrupt || s.fault.zeroes || s.fault.reach == 0 {
		return nil
	}

	begin := s.fault.offset
	file, _, err := d.openAt(s.File, begin)
	if err != nil {
		return err
	}

	defer file.Close()
	last, err := lastNotZero(file, s.Size-begin)
	if err != nil {
		return err
	}

	written := (begin + last + 1 + block - 1) / block * block
	if written >= s.fault.reach {
		return nil
	}

	if s.fault.end > 0 { // the headers are sound: it was within the data
		s.Unfinished = true
		return nil
	}

	headers, err := d.readFrom(s.File, begin+preambleSize, max(written-begin-preambleSize, 0))
	s.Unfinished = err == nil && plausibleEntries(headers, s.LastTerm)
	return err
}

// plausibleEntries says whether these can be the headers of entries after one of that term.
func plausibleEntries(headers []byte, term uint64) bool {
	for ; len(headers) >= entryHeaderSize; headers = headers[entryHeaderSize:] {
		its, typ, size := binary.LittleEndian.Uint64(headers), EntryType(headers[8]), binary.LittleEndian.Uint32(headers[12:])
		if its < max(term, 1) || its > maxTerm || typ < CommandEntry || typ > ChangeEntry || size == 0 || size%8 != 0 {
			return false
		}

		term = its
	}

	return true
}

// readFrom returns n bytes of a file from an offset on, or what there is of them.
func (d *directory) readFrom(name string, offset, n int64) ([]byte, error) {
	file, size, err := d.openAt(name, offset)
	if err != nil {
		return nil, err
	}

	defer file.Close()
	p := make([]byte, min(n, max(size-offset, 0)))
	_, err = io.ReadFull(file, p)
	return p, shortIsShrunk(err)
}

// lastNotZero reads n bytes and returns the place of the last that is not zero, -1 if all are.
func lastNotZero(r io.Reader, n int64) (int64, error) {
	var buf [64 << 10]byte
	last := int64(-1)
	for at := int64(0); at < n; {
		p := buf[:min(n-at, int64(len(buf)))]
		_, err := io.ReadFull(r, p)
		if err != nil {
			return 0, shortIsShrunk(err)
		}

		for i := len(p) - 1; i >= 0; i-- {
			if p[i] != 0 {
				last = at + int64(i)
				break
			}
		}

		at += int64(len(p))
	}

	return last, nil
}
