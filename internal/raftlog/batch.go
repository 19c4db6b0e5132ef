// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

const (
	segmentSize     = 8 << 20 // nominal size of a segment, and of every open one; one batch may exceed it
	segmentHeader   = 8       // bytes: format
	preambleSize    = 16      // bytes: CRC of header, CRC of data, number of entries
	entryHeaderSize = 16      // bytes: term, type, 3 of garbage, payload size
	maxBatchEntries = segmentSize / 32
)

// AppendBatch appends one batch to dst: both checksums, the entry headers, the payloads. Only Term, Type and Data of the entries are
// used. Every payload must be a multiple of 8 bytes and smaller than 4 GiB. A segment is 8 bytes from [SegmentHeader] and batches
// one after the other.
func AppendBatch(dst []byte, entries ...Entry) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, 8)...) // the checksums, filled in below
	dst = binary.LittleEndian.AppendUint64(dst, uint64(len(entries)))
	for _, e := range entries {
		dst = binary.LittleEndian.AppendUint64(dst, e.Term)
		dst = append(dst, byte(e.Type), 0, 0, 0)
		dst = binary.LittleEndian.AppendUint32(dst, uint32(len(e.Data)))
	}

	dataStart := len(dst)
	for _, e := range entries {
		dst = append(dst, e.Data...)
	}

	binary.LittleEndian.PutUint32(dst[start:], Checksum(0, dst[start+8:dataStart]))
	binary.LittleEndian.PutUint32(dst[start+4:], Checksum(0, dst[dataStart:]))
	return dst
}

// SegmentHeader returns the first 8 bytes of a segment.
func SegmentHeader() []byte {
	return binary.LittleEndian.AppendUint64(nil, diskFormat)
}

// faultClass is what libdqlite makes of a batch that it cannot read.
type faultClass uint8

const (
	faultNone      faultClass = iota
	faultCorrupt              // ends an open segment silently; damages a closed one, and auto-recovery may act
	faultShort                // an I/O error to libdqlite: the file ends too early
	faultMalformed            // an entry type that does not exist: never recovered from
)

func (c faultClass) String() string {
	switch c {
	case faultCorrupt:
		return "corrupt"
	case faultShort:
		return "short read"
	case faultMalformed:
		return "malformed"
	}

	return "none"
}

// batchFault says why a batch cannot be read.
type batchFault struct {
	class  faultClass
	offset int64 // of the batch
	at     int64 // of the field at fault
	text   string
	zeroes bool  // the preamble is all zero: the normal end of an open segment
	n      int   // entries of the batch, when its header is sound; else 0
	end    int64 // of the batch in the file, bytes, when its header is sound; else 0
	reach  int64 // end of what the batch claims, as far as it can be read: of its header, or of its data
}

func (f *batchFault) Error() string { return f.text }

// batch is one batch in memory.
type batch struct {
	offset int64 // in the file
	end    int64
	n      int
	raw    []byte // all of it
	header []byte // n entry headers
	data   []byte
}

// entryHeader returns the header of entry i.
func (b *batch) entryHeader(i int) (term uint64, typ EntryType, size int) {
	h := b.header[i*entryHeaderSize:]
	return binary.LittleEndian.Uint64(h), EntryType(h[8]), int(binary.LittleEndian.Uint32(h[12:]))
}

// batchBuffer is how much of a segment is read at once, bytes: a second-level cacheful, as every byte is looked at again for the
// checksum.
const batchBuffer = 256 << 10

// batchReader reads the batches of a segment one after the other. It checks both checksums, and every length against what is left of
// the file before it takes memory for it. Batches are decoded where they lie in its buffer, which grows to the largest batch and is
// used again.
type batchReader struct {
	r      io.Reader
	offset int64  // of the next batch
	size   int64  // of the file
	buf    []byte // buf[lo:hi] is read and not yet consumed; it begins at offset
	lo, hi int
	cur    batch
}

// newBatchReader reads from offset, where r stands, to size. Its buffers are those of the directory's last batch reader, which must not
// be used any more.
func (d *directory) newBatchReader(r io.Reader, offset, size int64) *batchReader {
	if d.batches == nil {
		d.batches = &batchReader{buf: make([]byte, batchBuffer)}
	}

	br := d.batches
	br.r, br.lo, br.hi = r, 0, 0
	br.offset, br.size = offset, size
	return br
}

// next reads the batch at the reader's offset. At the exact end of the file it returns io.EOF. A *batchFault says that there is no
// sound batch here; any other error is one of the file system.
func (br *batchReader) next() (*batch, error) {
	if br.offset == br.size {
		return nil, io.EOF
	}

	dataCRC, err := br.readHeader()
	if err != nil {
		return nil, err
	}

	dataSize, err := br.dataSize()
	if err != nil {
		return nil, err
	}

	b := &br.cur
	dataStart := preambleSize + b.n*entryHeaderSize
	size := dataStart + dataSize
	p, err := br.peek(size)
	if err != nil {
		return nil, err
	}

	b.raw, b.header, b.data = p, p[preambleSize:dataStart], p[dataStart:]
	got := Checksum(0, b.data)
	if got != dataCRC {
		fault := br.fault(faultCorrupt, b.offset+4, "the data of the batch has checksum %08x instead of %08x", got, dataCRC)
		fault.n, fault.end, fault.reach = b.n, b.offset+int64(size), b.offset+int64(size)
		return nil, fault
	}

	b.end = b.offset + int64(size)
	br.offset = b.end
	br.lo += size
	return b, nil
}

// fault is what is wrong with the batch at the reader's offset.
func (br *batchReader) fault(class faultClass, at int64, format string, args ...any) *batchFault {
	return &batchFault{class: class, offset: br.offset, at: at, text: fmt.Sprintf(format, args...)}
}

// readHeader reads the preamble and the entry headers of a batch into cur, and returns the checksum that its data should have.
func (br *batchReader) readHeader() (dataCRC uint32, err error) {
	start, left := br.offset, br.size-br.offset
	if left < preambleSize {
		return 0, br.fault(faultShort, start, "only %d bytes are left where a batch should begin", left)
	}

	p, err := br.peek(preambleSize)
	if err != nil {
		return 0, err
	}

	headerCRC := binary.LittleEndian.Uint32(p[0:])
	dataCRC = binary.LittleEndian.Uint32(p[4:])
	n := binary.LittleEndian.Uint64(p[8:])
	switch {
	case n == 0:
		fault := br.fault(faultCorrupt, start+8, "the batch has no entries")
		fault.zeroes = headerCRC == 0 && dataCRC == 0
		return 0, fault
	case n > maxBatchEntries:
		return 0, br.fault(faultCorrupt, start+8, "the batch claims %d entries, more than %d", n, maxBatchEntries)
	case int64(n)*entryHeaderSize > left-preambleSize:
		return 0, br.fault(faultShort, start+8, "the file ends within the header of a batch of %d entries", n)
	}

	p, err = br.peek(preambleSize + int(n)*entryHeaderSize)
	if err != nil {
		return 0, err
	}

	got := Checksum(0, p[8:])
	if got != headerCRC { // the count is part of what it covers
		fault := br.fault(faultCorrupt, start, "the header of the batch has checksum %08x instead of %08x", got, headerCRC)
		fault.reach = start + int64(len(p))
		return 0, fault
	}

	br.cur = batch{offset: start, n: int(n), header: p[preambleSize:]}
	return dataCRC, nil
}

// dataSize is what the entries of cur take by their headers, bytes: no more than the file has.
func (br *batchReader) dataSize() (int, error) {
	b := &br.cur
	headers := b.offset + preambleSize
	left := br.size - headers - int64(b.n)*entryHeaderSize
	var total int64
	for i := range b.n {
		_, typ, size := b.entryHeader(i)
		if typ < CommandEntry || typ > ChangeEntry {
			return 0, br.fault(faultMalformed, headers+int64(i)*entryHeaderSize+8, "entry %d of the batch has the unknown type %d", i+1, uint8(typ))
		}

		total += int64(size)
	}

	if total > left {
		return 0, br.fault(faultShort, b.offset, "the file ends within the %d bytes of data of a batch", total)
	}

	return int(total), nil
}

// peek returns the next n bytes without consuming them. They are valid until the next call.
func (br *batchReader) peek(n int) ([]byte, error) {
	have := br.hi - br.lo
	if have < n {
		if n > len(br.buf) {
			// Somewhat more, so that slowly growing batches do not each take new memory.
			buf := make([]byte, n+n/8)
			copy(buf, br.buf[br.lo:br.hi])
			br.buf = buf
		} else {
			copy(br.buf, br.buf[br.lo:br.hi])
		}

		br.lo, br.hi = 0, have
		got, err := io.ReadAtLeast(br.r, br.buf[have:], n-have)
		br.hi += got
		if err != nil {
			return nil, shortIsShrunk(err)
		}
	}

	return br.buf[br.lo : br.lo+n : br.lo+n], nil
}

// rest returns a reader of everything from offset on; it ends the use of br.
func (br *batchReader) rest() io.Reader {
	return io.MultiReader(bytes.NewReader(br.buf[br.lo:br.hi]), br.r)
}
