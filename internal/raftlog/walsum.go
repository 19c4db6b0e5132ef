// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"bytes"
	"encoding/binary"
)

// walSum follows the checksums of an SQLite write-ahead log: each frame's is that of all frames before it, too. SQLite takes the log to end before the first
// frame whose checksum is wrong, without a word. Source: SQLite's file format, section 4.2.
type walSum struct {
	order  binary.ByteOrder // of the 32-bit words that are added up; the sums themselves are big-endian
	salts  [8]byte
	s0, s1 uint32
}

// newWALSum begins with the header of a log, of 32 bytes. ok is false if that has a wrong checksum.
func newWALSum(head []byte) (w *walSum, ok bool) {
	w = &walSum{order: binary.LittleEndian}
	if binary.BigEndian.Uint32(head)&1 != 0 {
		w.order = binary.BigEndian
	}

	copy(w.salts[:], head[16:24])
	w.add(head[:24])
	return w, w.is(head[24:32])
}

// frame adds a frame: its header of 24 bytes, and its page. ok is false if its salts or its checksum are wrong.
func (w *walSum) frame(head, page []byte) (ok bool) {
	w.add(head[:8])
	w.add(page)
	return bytes.Equal(head[8:16], w.salts[:]) && w.is(head[16:24])
}

// add adds a multiple of 8 bytes.
func (w *walSum) add(p []byte) {
	for ; len(p) >= 8; p = p[8:] {
		w.s0 += w.order.Uint32(p) + w.s1
		w.s1 += w.order.Uint32(p[4:]) + w.s0
	}
}

func (w *walSum) is(sum []byte) bool {
	return binary.BigEndian.Uint32(sum) == w.s0 && binary.BigEndian.Uint32(sum[4:]) == w.s1
}
