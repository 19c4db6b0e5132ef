// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import "golang.org/x/sys/cpu"

// reverseBits writes every byte of src, its bits in opposite order, to dst of the same length.
func reverseBits(dst, src []byte) {
	n := len(src) &^ 63
	if n > 0 && cpu.X86.HasAVX2 {
		reverseBlocks(&dst[0], &src[0], n)
		dst, src = dst[n:], src[n:]
	}

	reverseWords(dst, src)
}

// reverseBlocks does the same for n bytes, a positive multiple of 64, with two
// table look-ups (one for each half of a byte) of 32 bytes at once. It needs
// AVX2.
//
//go:noescape
func reverseBlocks(dst, src *byte, n int)
