// SPDX-License-Identifier: AGPL-3.0-only

package newfile

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// chunk is how much is copied, in bytes, before the context is asked again.
const chunk = 8 << 20

// copySparse copies what src has up to a size, in bytes, to dst, which is empty, and leaves out its holes (lseek(2), SEEK_DATA). On a file
// system that knows of no holes all is data. A file that grows meanwhile is copied to the size that it had, one that shrinks to its end.
func copySparse(ctx context.Context, dst *os.File, src *os.File, size int64) error {
	if !mayHaveHoles(src, size) {
		err := copyAll(ctx, dst, src, size)
		if errors.Is(err, io.EOF) {
			return nil
		}

		return err
	}

	for end := int64(0); end < size; {
		data, err := src.Seek(end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // a hole up to its end
		}

		hole := size
		switch {
		case err != nil:
			data = end // the file system cannot tell
		default:
			hole, err = src.Seek(data, unix.SEEK_HOLE)
			if err != nil {
				return err
			}
		}

		end = min(hole, size)
		err = copyRange(ctx, dst, src, data, end)
		if errors.Is(err, io.EOF) {
			return nil
		}

		if err != nil {
			return err
		}
	}

	return dst.Truncate(size)
}

// mayHaveHoles tells whether a file may have holes: it has fewer blocks than it is long. What cannot be told may.
func mayHaveHoles(f *os.File, size int64) bool {
	var stat unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &stat)
	return err != nil || stat.Blocks*512 < size // stat(2) counts in blocks of 512 bytes, whatever the file system's are
}

// copyRange copies the bytes from one offset to another. The error is io.EOF if there are fewer.
func copyRange(ctx context.Context, dst *os.File, src *os.File, from int64, to int64) error {
	for _, f := range []*os.File{dst, src} {
		_, err := f.Seek(from, io.SeekStart)
		if err != nil {
			return err
		}
	}

	return copyAll(ctx, dst, src, to-from)
}

// copyAll copies so many bytes from where the files stand. The error is io.EOF if there are fewer.
func copyAll(ctx context.Context, dst *os.File, src *os.File, left int64) error {
	for left > 0 {
		err := ctx.Err()
		if err != nil {
			return err
		}

		n, err := io.CopyN(dst, src, min(chunk, left))
		left -= n
		if err != nil {
			return err
		}
	}

	return nil
}
