// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"encoding/binary"
	"io/fs"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Sizes in a segment, bytes; see docs/raft-directory.md.
const (
	batchPreamble    = 16 // checksums of headers and data, number of entries
	batchEntryHeader = 16 // term, type, size of the payload
	diskBlock        = 4096
	maxBatchEntries  = 262144    // libdqlite's own bound
	maxUnfinished    = 256 << 20 // bytes after the last sound batch that are looked at
)

// unfinishedBatch tells whether what an open segment has after its last sound batch is a batch whose writing was cut off: it, and what came
// with it, was never acknowledged to anybody, as that follows the write. libdqlite writes to a file full of zeros. So from a boundary of
// the disk's blocks on, inside the batch, there must be nothing but zeros up to the end of the file. A block of zeros that something
// follows says nothing: pages of a database have such.
func unfinishedBatch(fsys fs.FS, s *raftlog.Segment) (bool, error) {
	if !s.Open || !s.DirtyTail || s.End%8 != 0 || s.Size-s.End > maxUnfinished {
		return false, nil
	}

	tail, err := readTail(fsys, s)
	if err != nil {
		return false, err
	}

	written := int64(len(tail)) // bytes of the batch up to a block's boundary; zeros follow
	for written > 0 && tail[written-1] == 0 {
		written--
	}

	written = (s.End+written+diskBlock-1)/diskBlock*diskBlock - s.End
	if written >= int64(len(tail)) {
		return false, nil // no block of zeros
	}

	if written <= 8 {
		return true, nil // not even the number of entries
	}

	n := binary.LittleEndian.Uint64(tail[8:])
	if n == 0 || n > maxBatchEntries {
		return false, nil
	}

	data := batchPreamble + batchEntryHeader*int64(n)
	if written < data {
		return plausibleEntries(tail[batchPreamble:written], s.LastTerm), nil
	}

	if raftlog.Checksum(0, tail[8:data]) != binary.LittleEndian.Uint32(tail) {
		return false, nil // headers that were written, and are damaged
	}

	end := data
	for at := int64(batchPreamble); at < data; at += batchEntryHeader {
		end += int64(binary.LittleEndian.Uint32(tail[at+12:]))
	}

	return written < end, nil
}

// plausibleEntries tells whether the headers that were written of a batch can be what they seem: else the number of entries may be what is
// damaged, and the batch a shorter one.
func plausibleEntries(headers []byte, term uint64) bool {
	for ; len(headers) >= batchEntryHeader; headers = headers[batchEntryHeader:] {
		its, typ, size := binary.LittleEndian.Uint64(headers), raftlog.EntryType(headers[8]), binary.LittleEndian.Uint32(headers[12:])
		if its < max(term, 1) || its > maxTerm || typ < raftlog.CommandEntry || typ > raftlog.ChangeEntry || size == 0 || size%8 != 0 {
			return false
		}

		term = its
	}

	return true
}

// readTail reads what comes after a segment's last sound batch.
func readTail(fsys fs.FS, s *raftlog.Segment) ([]byte, error) {
	data, err := fs.ReadFile(fsys, s.File)
	if err != nil || int64(len(data)) < s.End {
		return nil, err
	}

	return data[s.End:], nil
}
