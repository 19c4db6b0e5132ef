// SPDX-License-Identifier: AGPL-3.0-only

package raftlogtest

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Damage changes a directory.
type Damage func(dir string) error

// all applies several damages in turn.
func all(list ...Damage) Damage {
	return func(dir string) error {
		for _, d := range list {
			err := d(dir)
			if err != nil {
				return err
			}
		}

		return nil
	}
}

// edit rewrites one file.
func edit(name string, fn func(p []byte) []byte) Damage {
	return func(dir string) error {
		path := filepath.Join(dir, name)
		p, err := os.ReadFile(path)
		if err != nil {
			return err
		}

		return writeFile(path, fn(p))
	}
}

func write(name string, content []byte) Damage {
	return func(dir string) error { return os.WriteFile(filepath.Join(dir, name), content, 0o600) }
}

func remove(names ...string) Damage {
	return func(dir string) error {
		for _, name := range names {
			err := os.Remove(filepath.Join(dir, name))
			if err != nil {
				return err
			}
		}

		return nil
	}
}

func rename(from, to string) Damage {
	return func(dir string) error { return os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)) }
}

func duplicate(from, to string) Damage {
	return func(dir string) error { return copyFile(filepath.Join(dir, from), filepath.Join(dir, to)) }
}

func mkdir(name string) Damage {
	return func(dir string) error { return os.Mkdir(filepath.Join(dir, name), 0o700) }
}

// flip inverts one bit of a byte; a negative offset counts from the end.
func flip(name string, offset int) Damage {
	return edit(name, func(p []byte) []byte {
		if offset < 0 {
			offset += len(p)
		}

		p[offset] ^= 1
		return p
	})
}

// put writes a 64-bit number.
func put(name string, offset int, v uint64) Damage {
	return edit(name, func(p []byte) []byte {
		binary.LittleEndian.PutUint64(p[offset:], v)
		return p
	})
}

func cut(name string, size int) Damage {
	return edit(name, func(p []byte) []byte {
		if size < 0 {
			size += len(p)
		}

		return p[:size]
	})
}

func grow(name string, more []byte) Damage {
	return edit(name, func(p []byte) []byte { return append(p, more...) })
}

// batchAt is where a batch lies in its segment.
type batchAt struct {
	start, headers, data, end int
	n                         int
}

// batchesOf finds the batches of an undamaged segment.
func batchesOf(p []byte) []batchAt {
	var list []batchAt
	for at := 8; at+16 <= len(p); {
		b := batchAt{start: at, headers: at + 16, n: int(binary.LittleEndian.Uint64(p[at+8:]))}
		if b.n == 0 {
			break
		}

		b.data = b.headers + 16*b.n
		b.end = b.data
		for i := range b.n {
			b.end += int(binary.LittleEndian.Uint32(p[b.headers+16*i+12:]))
		}

		list = append(list, b)
		at = b.end
	}

	return list
}

// atBatch edits a segment with a batch of it at hand; a negative number counts from the last.
func atBatch(name string, number int, fn func(p []byte, b batchAt) []byte) Damage {
	return edit(name, func(p []byte) []byte {
		list := batchesOf(p)
		if number < 0 {
			number += len(list)
		}

		return fn(p, list[number])
	})
}

// seal computes the checksums of a batch again.
func seal(p []byte, b batchAt) {
	binary.LittleEndian.PutUint32(p[b.start:], raftlog.Checksum(0, p[b.start+8:b.data]))
	binary.LittleEndian.PutUint32(p[b.start+4:], raftlog.Checksum(0, p[b.data:b.end]))
}

// resealed edits a batch and computes its checksums again: not damage by accident, but what a bug or an enemy leaves.
func resealed(name string, number int, fn func(p []byte, b batchAt)) Damage {
	return atBatch(name, number, func(p []byte, b batchAt) []byte {
		fn(p, b)
		seal(p, b)
		return p
	})
}

// command edits the payload of the first frames command of the last batch of the last closed segment, and computes the checksums again.
func command(fn func(payload []byte)) Damage {
	return resealed(lastClosed, -1, func(p []byte, b batchAt) {
		at := b.data
		for i := range b.n {
			header := p[b.headers+16*i:]
			if raftlog.EntryType(header[8]) == raftlog.CommandEntry && p[at+1] == byte(raftlog.Frames) {
				fn(p[at:])
				return
			}

			at += int(binary.LittleEndian.Uint32(header[12:]))
		}
	})
}

// closedSegments lists the closed segments of a directory.
func closedSegments(dir string) ([]string, error) {
	log, err := raftlog.Open(context.Background(), os.DirFS(dir), raftlog.Options{})
	if err != nil {
		return nil, err
	}

	var names []string
	for _, s := range log.Segments {
		if !s.Open {
			names = append(names, s.File)
		}
	}

	return names, nil
}

// reframe rewrites the content of a compressed snapshot.
func reframe(name string, fn func(content []byte) []byte) Damage {
	return edit(name, func(p []byte) []byte { return Compress(fn(decompress(p))) })
}

var longName = strings.Repeat("n", 130)

func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("raftlogtest: %v", err))
	}
}

// numbered makes a case's name.
func numbered(name string, n int) string { return fmt.Sprintf("%s %d", name, n) }

// Seal makes the checksums of the batches of a segment right, as far as their lengths make sense.
func Seal(p []byte) []byte {
	p = append([]byte(nil), p...)
	for at := 8; at+16 <= len(p); {
		n := binary.LittleEndian.Uint64(p[at+8:])
		if n == 0 || n > uint64(len(p)-at-16)/16 {
			break
		}

		b := batchAt{start: at, headers: at + 16, n: int(n)}
		b.data = b.headers + 16*b.n
		b.end = b.data
		for i := range b.n {
			b.end += int(binary.LittleEndian.Uint32(p[b.headers+16*i+12:]))
		}

		if b.end > len(p) {
			break
		}

		seal(p, b)
		at = b.end
	}

	return p
}
