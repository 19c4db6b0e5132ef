// SPDX-License-Identifier: AGPL-3.0-only

package lz4frame

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/pierrec/lz4/v4"
)

// content compresses a little: words in an order that does not repeat.
func content(size int) []byte {
	var b bytes.Buffer
	words := strings.Fields("member raft node voter spare term index segment snapshot")
	for n := uint32(1); b.Len() < size; n = n*1664525 + 1013904223 {
		b.WriteString(words[n>>24%uint32(len(words))])
	}

	return b.Bytes()[:size]
}

func frame(t *testing.T, p []byte, options ...lz4.Option) []byte {
	var b bytes.Buffer
	w := lz4.NewWriter(&b)
	err := w.Apply(append([]lz4.Option{lz4.SizeOption(uint64(len(p))), lz4.BlockSizeOption(lz4.Block64Kb)}, options...)...)
	if err == nil {
		_, err = w.Write(p)
	}

	err = errors.Join(err, w.Close())
	if err != nil {
		t.Fatal(err)
	}

	return b.Bytes()
}

func read(src io.Reader) ([]byte, error) {
	r, err := NewReader(src)
	if err != nil {
		return nil, err
	}

	defer r.Close()

	return io.ReadAll(r)
}

func TestRead(t *testing.T) {
	for _, size := range []int{0, 1, 1000, 64 << 10, 64<<10 + 1, 3 << 20} {
		want := content(size)
		for _, options := range [][]lz4.Option{
			nil, {lz4.ChecksumOption(true)}, {lz4.ChecksumOption(true), lz4.BlockChecksumOption(true)}, {lz4.SizeOption(0), lz4.BlockSizeOption(lz4.Block4Mb)},
		} {
			packed := frame(t, want, options...)
			for what, src := range map[string]io.Reader{
				"whole":        bytes.NewReader(packed),
				"in halves":    iotest.HalfReader(bytes.NewReader(packed)),
				"with the end": iotest.DataErrReader(bytes.NewReader(packed)),
			} {
				got, err := read(src)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes, %s: got %d, %v", size, what, len(got), err)
				}
			}
		}
	}
}

// TestReadLinked reads a frame as libdqlite writes them: the second block refers to the first one.
func TestReadLinked(t *testing.T) {
	packed := "\x04\x22\x4d\x18\x40\x40\xc0" + // version 1, linked blocks, nothing else; blocks of up to 64 KiB; checksum of these
		"\x10\x00\x00\x80" + "0123456789abcdef" + // a block of 16 bytes that is not compressed
		"\x11\x00\x00\x00" + "\x0f\x10\x00\x00" + "\xc0the end of i" + // 19 bytes from 16 bytes before, 12 literals
		"\x00\x00\x00\x00"
	got, err := read(strings.NewReader(packed))
	if want := "0123456789abcdef" + "0123456789abcdef012" + "the end of i"; err != nil || string(got) != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

// TestReadDamaged has every byte of a frame changed, and the frame cut off before it.
func TestReadDamaged(t *testing.T) {
	want := content(300)
	packed := frame(t, want, lz4.ChecksumOption(true))
	for i := range packed {
		_, err := read(bytes.NewReader(packed[:i]))
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut off at %d: %v", i, err)
		}

		damaged := bytes.Clone(packed)
		damaged[i] ^= 0x10
		_, err = read(bytes.NewReader(damaged))
		if err == nil {
			t.Errorf("the byte at %d is damaged, and read as if nothing were", i)
		}
	}

	_, err := read(bytes.NewReader(append(bytes.Clone(packed), 0)))
	if !errors.Is(err, ErrTrailing) {
		t.Errorf("with a byte after the frame: %v", err)
	}
}

func TestReadFailing(t *testing.T) {
	packed := frame(t, content(1<<20))
	broken := errors.New("broken")
	_, err := read(io.MultiReader(bytes.NewReader(packed[:len(packed)/2]), iotest.ErrReader(broken)))
	if !errors.Is(err, broken) {
		t.Errorf("the source's error became %v", err)
	}

	r, err := NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}

	_ = r.Close()
	_, err = r.Read(make([]byte, 10))
	if err == nil {
		t.Error("a closed reader reads")
	}
}
