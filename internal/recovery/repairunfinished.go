// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Sizes in a segment, bytes; see docs/raft-directory.md.
const (
	batchPreamble    = 16 // checksums of headers and data, number of entries
	batchEntryHeader = 16 // term, type, size of the payload
	diskBlock        = 4096
	maxBatchEntries  = 262144 // libdqlite's own bound
)

// neverWritten makes sure of what raftlog takes for a last batch whose writing was cut short. Where that was within the headers of the
// entries, no checksum can tell, and what seems to be missing may only be claimed by a damaged number of entries: the batch may be a
// shorter one, which is whole and was acknowledged. So the headers that were written must be such.
func neverWritten(fsys fs.FS, s *raftlog.Segment) (bool, error) {
	if !s.Unfinished {
		return false, nil
	}

	headers, err := readAt(fsys, s.File, s.End, batchPreamble+maxBatchEntries*batchEntryHeader)
	if err != nil || len(headers) < batchPreamble {
		return false, err
	}

	n := binary.LittleEndian.Uint64(headers[8:])
	if n == 0 || n > maxBatchEntries {
		return false, nil
	}

	headers = headers[:min(len(headers), batchPreamble+batchEntryHeader*int(n))]
	if raftlog.Checksum(0, headers[8:]) == binary.LittleEndian.Uint32(headers) {
		return true, nil // it was within the data
	}

	written := len(headers)
	for written > 0 && headers[written-1] == 0 {
		written--
	}

	block := int(s.End) + written + diskBlock - 1 // zeros begin with a block of the disk
	written = min(block/diskBlock*diskBlock-int(s.End), len(headers))
	return plausibleEntries(headers[batchPreamble:max(written, batchPreamble)], s.LastTerm), nil
}

// plausibleEntries tells whether these can be the headers of entries after one of that term.
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

// readAt reads up to n bytes of a file from an offset on.
func readAt(fsys fs.FS, name string, offset int64, n int64) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}

	defer f.Close()

	_, err = io.CopyN(io.Discard, f, offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}

	return io.ReadAll(io.LimitReader(f, n))
}
