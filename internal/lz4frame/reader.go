// SPDX-License-Identifier: AGPL-3.0-only

// Package lz4frame reads LZ4 frames with liblz4, the library that libdqlite writes and reads its snapshots with. The blocks of those
// frames build on each other, for which the reader written in Go that there is takes a new buffer every other block: several times a
// database in garbage.
package lz4frame

/*
#cgo LDFLAGS: -llz4
#include <lz4frame.h>
*/
import "C"

import (
	"errors"
	"fmt"
	"io"
	"unsafe"
)

// Magic is what a frame begins with, 32 bits, little endian (lz4_Frame_format.md, "Magic Number").
const Magic = 0x184D2204

// ErrTrailing says that the source goes on after the frame.
var ErrTrailing = errors.New("bytes after the frame")

const inputSize = 256 << 10 // bytes read from the source at once

// Reader reads the content of one frame. It returns io.EOF only when the frame's end mark, its content size and its checksum, where it
// has them, are right, and the source ends after it. Errors of the source are returned as they are; a source that ends early is
// io.ErrUnexpectedEOF.
type Reader struct {
	src      io.Reader
	dctx     *C.LZ4F_dctx
	buffer   []byte
	input    []byte // what is left of the buffer
	inputErr error  // that the source returned with it
	ended    bool   // the frame, not the source
	err      error
}

// NewReader reads a frame from src. Close frees what it takes.
func NewReader(src io.Reader) (*Reader, error) {
	r := &Reader{src: src, buffer: make([]byte, inputSize)}
	err := failure(C.LZ4F_createDecompressionContext(&r.dctx, C.LZ4F_VERSION))
	if err != nil {
		return nil, err
	}

	return r, nil
}

// Close frees the memory that Go does not know of. It does not close the source, and never fails.
func (r *Reader) Close() error {
	C.LZ4F_freeDecompressionContext(r.dctx)
	r.dctx, r.err = nil, errors.New("read from a closed LZ4 reader")
	return nil
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	for r.err == nil && len(p) > 0 {
		n := 0
		n, r.err = r.step(p)
		if n > 0 {
			return n, nil
		}
	}

	return 0, r.err
}

// step has liblz4 go on, which may take input without any output.
func (r *Reader) step(p []byte) (int, error) {
	if len(r.input) == 0 && r.inputErr == nil {
		n := 0
		n, r.inputErr = r.src.Read(r.buffer)
		r.input = r.buffer[:n]
	}

	switch {
	case len(r.input) > 0 && r.ended:
		return 0, ErrTrailing
	case len(r.input) > 0:
	case errors.Is(r.inputErr, io.EOF) && !r.ended:
		return 0, io.ErrUnexpectedEOF
	default:
		return 0, r.inputErr
	}

	out, in := C.size_t(len(p)), C.size_t(len(r.input))
	code := C.LZ4F_decompress(r.dctx, unsafe.Pointer(&p[0]), &out, unsafe.Pointer(&r.input[0]), &in, nil)
	err := failure(code)
	if err != nil {
		return 0, err
	}

	if in == 0 && out == 0 {
		return 0, io.ErrNoProgress
	}

	r.input, r.ended = r.input[in:], code == 0
	return int(out), nil
}

func failure(code C.LZ4F_errorCode_t) error {
	if C.LZ4F_isError(code) == 0 {
		return nil
	}

	return fmt.Errorf("liblz4: %s", C.GoString(C.LZ4F_getErrorName(code)))
}
