// SPDX-License-Identifier: AGPL-3.0-only

#include "textflag.h"

// Reversed nibbles: entry i holds the four bits of i in opposite order, once in
// the upper and once in the lower half of the byte.
DATA reversedHigh<>+0(SB)/8, $0xE060A020C0408000
DATA reversedHigh<>+8(SB)/8, $0xF070B030D0509010
GLOBL reversedHigh<>(SB), RODATA|NOPTR, $16
DATA reversedLow<>+0(SB)/8, $0x0E060A020C040800
DATA reversedLow<>+8(SB)/8, $0x0F070B030D050901
GLOBL reversedLow<>(SB), RODATA|NOPTR, $16
DATA lowNibbles<>+0(SB)/8, $0x0F0F0F0F0F0F0F0F
GLOBL lowNibbles<>(SB), RODATA|NOPTR, $8

// func reverseBlocks(dst, src *byte, n int)
TEXT ·reverseBlocks(SB), NOSPLIT, $0-24
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ n+16(FP), CX
	VBROADCASTI128 reversedHigh<>(SB), Y0
	VBROADCASTI128 reversedLow<>(SB), Y1
	VPBROADCASTQ   lowNibbles<>(SB), Y2
loop:
	VMOVDQU (SI), Y3
	VMOVDQU 32(SI), Y4
	VPSRLQ  $4, Y3, Y5
	VPSRLQ  $4, Y4, Y6
	VPAND   Y2, Y3, Y3
	VPAND   Y2, Y4, Y4
	VPAND   Y2, Y5, Y5
	VPAND   Y2, Y6, Y6
	VPSHUFB Y3, Y0, Y3
	VPSHUFB Y4, Y0, Y4
	VPSHUFB Y5, Y1, Y5
	VPSHUFB Y6, Y1, Y6
	VPOR    Y5, Y3, Y3
	VPOR    Y6, Y4, Y4
	VMOVDQU Y3, (DI)
	VMOVDQU Y4, 32(DI)
	ADDQ    $64, SI
	ADDQ    $64, DI
	SUBQ    $64, CX
	JNZ     loop
	VZEROUPPER
	RET
