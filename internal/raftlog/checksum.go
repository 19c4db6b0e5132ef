// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"
	"sync"
)

// checksumBlock is how many bytes are bit-reversed at a time: small enough that the reversed copy is still in the first-level cache
// when crc32 reads it.
const checksumBlock = 8 << 10

// checksumBlocks holds blocks to use again: crc32 reads through a function pointer, so a block on the stack would be allocated anew for
// every call.
var checksumBlocks = sync.Pool{New: func() any { return new([checksumBlock]byte) }}

// Checksum continues a dqlite checksum over p and returns the new value; start with 0. It is the CRC-32 with polynomial 0x04C11DB7,
// most significant bit first, no initial value and no final xor. The check value, over the ASCII digits 1 to 9, is 0x89A1897F.
//
// hash/crc32 has only the reflected form of that polynomial, but that one with the processor's carry-less multiplication. Reflected
// means that the bits of every byte, and of the register, are in the opposite order. So we reverse the bits of every byte, a cacheful
// at a time, and of the register before and after.
func Checksum(crc uint32, p []byte) uint32 {
	block := checksumBlocks.Get().(*[checksumBlock]byte)
	defer checksumBlocks.Put(block)
	// crc32.Update inverts the register before and after; undo both.
	reg := ^bits.Reverse32(crc)
	for len(p) > 0 {
		n := min(len(p), len(block))
		reverseBits(block[:n], p[:n])
		reg = crc32.Update(reg, crc32.IEEETable, block[:n])
		p = p[n:]
	}

	return bits.Reverse32(^reg)
}

// reverseWords writes every byte of src, its bits in opposite order, to dst of the same length, eight bytes at a time in ordinary
// arithmetic.
func reverseWords(dst, src []byte) {
	const m1, m2, m4 = 0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F
	dst = dst[:len(src)]
	for len(src) >= 32 {
		a := binary.LittleEndian.Uint64(src)
		b := binary.LittleEndian.Uint64(src[8:])
		c := binary.LittleEndian.Uint64(src[16:])
		d := binary.LittleEndian.Uint64(src[24:])
		a, b, c, d = a>>1&m1|a&m1<<1, b>>1&m1|b&m1<<1, c>>1&m1|c&m1<<1, d>>1&m1|d&m1<<1
		a, b, c, d = a>>2&m2|a&m2<<2, b>>2&m2|b&m2<<2, c>>2&m2|c&m2<<2, d>>2&m2|d&m2<<2
		a, b, c, d = a>>4&m4|a&m4<<4, b>>4&m4|b&m4<<4, c>>4&m4|c&m4<<4, d>>4&m4|d&m4<<4
		binary.LittleEndian.PutUint64(dst, a)
		binary.LittleEndian.PutUint64(dst[8:], b)
		binary.LittleEndian.PutUint64(dst[16:], c)
		binary.LittleEndian.PutUint64(dst[24:], d)
		dst, src = dst[32:], src[32:]
	}

	for i, b := range src {
		dst[i] = bits.Reverse8(b)
	}
}
