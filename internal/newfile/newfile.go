// SPDX-License-Identifier: AGPL-3.0-only

// Package newfile makes files that must not exist yet, and opens those that they are made from. It never replaces one, and never waits
// for the other end of a FIFO.
package newfile

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// ErrNotRegular says that something is no file: a directory, a FIFO, a socket, a device.
var ErrNotRegular = errors.New("not a regular file")

// Open opens a regular file to be read. Anything else is ErrNotRegular, at once.
func Open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // else this would wait until somebody opens a FIFO to write
	if errors.Is(err, unix.ENXIO) {                             // a socket
		return nil, &os.PathError{Op: "open", Path: path, Err: ErrNotRegular}
	}

	if err != nil {
		return nil, err
	}

	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &os.PathError{Op: "open", Path: path, Err: ErrNotRegular}
	}

	if err != nil {
		_ = f.Close()
		return nil, err
	}

	return f, nil
}

// Read is os.ReadFile for regular files, see Open.
func Read(path string) ([]byte, error) {
	f, err := Open(path)
	if err != nil {
		return nil, err
	}

	defer f.Close()

	return io.ReadAll(f)
}

// Write makes the file path, mode 0600, of what src has. The error is os.ErrExist if something of that name is there already.
// What is on disk after another error is the caller's to remove. Nothing is synced.
func Write(path string, src io.Reader) error {
	dst, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}

	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

// Copy makes the file to, mode 0600, of the content of the file from. Holes stay holes.
func Copy(from string, to string) error { return CopyContext(context.Background(), from, to) }

// CopyContext is Copy for files that may be large: it ends when the context does.
func CopyContext(ctx context.Context, from string, to string) error {
	src, err := Open(from)
	if err != nil {
		return err
	}

	defer src.Close()

	info, err := src.Stat()
	if err != nil {
		return err
	}

	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}

	err = copySparse(ctx, dst, src, info.Size())
	return errors.Join(err, dst.Close())
}
