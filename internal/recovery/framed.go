// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/scratch"
)

// framed packs a snapshot that is no LZ4 frame into one: libdqlite, which proves a copy, reads no other, and cowsql reads both. The packed one is a file
// without a name, which goes when nobody holds the piece any more. What is packed must have the sum that it was verified with.
func framed(ctx context.Context, raw bundle.Piece) (bundle.Piece, error) {
	file, err := nameless()
	if err != nil {
		return bundle.Piece{}, err
	}

	size, digest, err := frame(ctx, file, raw)
	if err != nil {
		_ = file.Close()
		return bundle.Piece{}, fmt.Errorf("pack %s: %w", raw.Name, err)
	}

	return bundle.Piece{Name: raw.Name, Size: size, SHA256: digest, Open: func() (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(file, 0, size)), nil
	}}, nil
}

// frame writes the packed piece to a file. It returns its size, bytes, and its SHA-256.
func frame(ctx context.Context, file *os.File, raw bundle.Piece) (int64, string, error) {
	in, err := raw.Open()
	if err != nil {
		return 0, "", err
	}

	defer in.Close()

	read, written := sha256.New(), sha256.New()
	w, err := frameWriter(io.MultiWriter(file, written), raw.Size)
	if err == nil {
		_, err = io.Copy(struct{ io.Writer }{w}, io.TeeReader(io.LimitReader(contextReader{ctx, in}, raw.Size), read))
	}

	if err == nil {
		err = w.Close()
	}

	if err != nil {
		return 0, "", err
	}

	if raw.SHA256 != "" && hex.EncodeToString(read.Sum(nil)) != raw.SHA256 {
		return 0, "", errors.New("it has changed since it was verified")
	}

	size, err := file.Seek(0, io.SeekCurrent)
	return size, hex.EncodeToString(written.Sum(nil)), err
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	err := r.ctx.Err()
	if err != nil {
		return 0, err
	}

	return r.Reader.Read(p)
}

// nameless makes a scratch file that has no name any more.
func nameless() (*os.File, error) {
	dir, remove, err := scratch.Dir("snapshot")
	if err != nil {
		return nil, err
	}

	defer remove()

	return os.OpenFile(filepath.Join(dir, "snapshot"), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
}
