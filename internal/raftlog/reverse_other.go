// SPDX-License-Identifier: AGPL-3.0-only

//go:build !amd64

package raftlog

// reverseBits writes every byte of src, its bits in opposite order, to dst of the same length.
func reverseBits(dst, src []byte) { reverseWords(dst, src) }
