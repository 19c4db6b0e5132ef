// SPDX-License-Identifier: AGPL-3.0-only

// Package newfile makes files that must not exist yet. It never replaces one.
package newfile

import (
	"context"
	"errors"
	"io"
	"os"
)

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
	src, err := os.Open(from)
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
