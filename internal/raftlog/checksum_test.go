// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"bytes"
	"hash/crc32"
	"math/bits"
	"math/rand/v2"
	"testing"
)

// tableChecksum is the definition, bit by bit.
func tableChecksum(crc uint32, p []byte) uint32 {
	for _, b := range p {
		crc ^= uint32(b) << 24
		for range 8 {
			if crc&(1<<31) != 0 {
				crc = crc<<1 ^ 0x04C11DB7
			} else {
				crc <<= 1
			}
		}
	}

	return crc
}

func TestChecksum(t *testing.T) {
	if got := Checksum(0, []byte("123456789")); got != 0x89A1897F {
		t.Fatalf("check value is %#x, want 0x89A1897F", got)
	}

	rnd := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 3*checksumBlock+7)
	for i := range data {
		data[i] = byte(rnd.Uint32())
	}

	for _, n := range []int{0, 1, 7, 8, 31, 32, 33, 4096, checksumBlock, checksumBlock + 1, len(data)} {
		want := tableChecksum(0, data[:n])
		if got := Checksum(0, data[:n]); got != want {
			t.Errorf("%d bytes: %#x, want %#x", n, got, want)
		}

		if cut := n / 3; Checksum(Checksum(0, data[:cut]), data[cut:n]) != want {
			t.Errorf("%d bytes in two parts differ", n)
		}
	}
}

func TestReverse(t *testing.T) {
	src := make([]byte, 300)
	for i := range src {
		src[i] = byte(i * 37)
	}

	for n := range src {
		fast, plain := make([]byte, n), make([]byte, n)
		reverseBits(fast, src[:n])
		reverseWords(plain, src[:n])
		if !bytes.Equal(fast, plain) {
			t.Fatalf("%d bytes: the two ways differ", n)
		}

		for i := range plain {
			if plain[i] != bits.Reverse8(src[i]) {
				t.Fatalf("%d bytes: byte %d is wrong", n, i)
			}
		}
	}
}

func BenchmarkChecksum(b *testing.B) {
	data := make([]byte, 8<<20)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range data {
		data[i] = byte(rnd.Uint32())
	}

	b.Run("dqlite", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			Checksum(0, data)
		}
	})
	b.Run("ieee", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			crc32.ChecksumIEEE(data)
		}
	})
}
