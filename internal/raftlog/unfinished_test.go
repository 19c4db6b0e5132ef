// SPDX-License-Identifier: AGPL-3.0-only

package raftlog_test

import (
	"bytes"
	"encoding/binary"
	"testing"
	"testing/fstest"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// diskBlock is what libdqlite writes open segments in, bytes.
const diskBlock = 4096

// lastBatch is an open segment with a sound batch and a last one of so many entries of so many bytes, and where that begins and ends.
func lastBatch(n int, size int) (segment []byte, begin int, end int) {
	entry := raftlog.Entry{Term: 3, Type: raftlog.CommandEntry, Data: bytes.Repeat([]byte("12345678"), size/8)}
	if size > 3*diskBlock {
		clear(entry.Data[diskBlock : 3*diskBlock]) // pages have blocks of zeros
	}

	first := raftlogtest.Segment(0, []raftlog.Entry{entry})
	whole := raftlogtest.Segment(0, raftlogtest.Batches(entry, 1, n)...)
	return append(whole, make([]byte, 1<<20-len(whole))...), len(first), len(whole)
}

// TestUnfinishedBatch cuts off the writing of a batch at each block, and does what looks like that and is something else.
func TestUnfinishedBatch(t *testing.T) {
	wants := func(name string, segment []byte, want bool) {
		t.Helper()
		dir := fstest.MapFS{"open-1": &fstest.MapFile{Data: segment}}
		log := open(t, dir)
		got := log.Segments[0].Unfinished
		if got != want {
			t.Errorf("%s: unfinished %t, want %t", name, got, want)
		}
	}
	for n, size := range map[int]int{1: 4 * diskBlock, 2: 4 * diskBlock, 700: 64} { // of 700 the headers alone take more than two blocks
		segment, begin, end := lastBatch(n, size)
		wants("whole", segment, false)
		for block := (begin/diskBlock + 1) * diskBlock; block < end; block += diskBlock {
			cut := bytes.Clone(segment)
			clear(cut[block:end])
			wants("cut off", cut, true)
			cut[len(cut)-1] = 1
			wants("cut off, and something at the end of the file", cut, false)
		}

		flipped := bytes.Clone(segment)
		flipped[end-1] ^= 1
		wants("a bit flipped", flipped, false)
		holed := bytes.Clone(segment)
		block := (end/diskBlock - 1) * diskBlock
		clear(holed[block : block+diskBlock])
		wants("a block of zeros inside", holed, false)
	}

	// A batch in whose last page there is nothing but zeros, as far as they go, and a count that was damaged: the entries would have to be in
	// what is zero.
	segment, begin, _ := lastBatch(1, diskBlock)
	barrier := raftlogtest.Segment(0, []raftlog.Entry{{Term: 3, Type: raftlog.BarrierEntry, Data: make([]byte, 8)}})[8:]
	whole := append(bytes.Clone(segment[:begin]), barrier...)
	whole = append(whole, make([]byte, len(segment)-len(whole))...)
	wants("a whole barrier", whole, false)
	binary.LittleEndian.PutUint64(whole[begin+8:], 300)
	wants("a barrier with a damaged count", whole, false)
	binary.LittleEndian.PutUint64(whole[begin+8:], 1<<40)
	wants("a barrier with a count beyond all bounds", whole, false)
	binary.LittleEndian.PutUint64(whole[begin+8:], 1)
	whole[begin+16] ^= 2 // the term
	wants("a barrier with a damaged term", whole, false)
}

// TestUnfinishedAtBoundary has the batch begin right before a boundary, so that not even its number of entries was written.
func TestUnfinishedAtBoundary(t *testing.T) {
	for _, gap := range []int{8, 16, 24} {
		const header, entryHeaders = 8, 32
		fill := raftlog.Entry{Term: 3, Type: raftlog.CommandEntry, Data: make([]byte, diskBlock-gap-header-entryHeaders)}
		last := raftlog.Entry{Term: 3, Type: raftlog.CommandEntry, Data: bytes.Repeat([]byte{1}, 64)}
		segment := raftlogtest.Segment(1<<20, []raftlog.Entry{fill}, []raftlog.Entry{last})
		clear(segment[diskBlock:])
		dir := fstest.MapFS{"open-1": &fstest.MapFile{Data: segment}}
		log := open(t, dir)
		if log.Segments[0].End != int64(diskBlock-gap) {
			t.Fatalf("the batch begins at %d", log.Segments[0].End)
		}

		if !log.Segments[0].Unfinished && gap > 8 { // with 8 bytes not even the number of entries was written: that looks like anything
			t.Errorf("%d bytes before the boundary: not taken for unfinished", gap)
		}
	}
}
