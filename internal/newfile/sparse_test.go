// SPDX-License-Identifier: AGPL-3.0-only

package newfile

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// sparse makes a file of that size with data at some offsets.
func sparse(t testing.TB, size int64, data string, at ...int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sparse")
	f, err := os.Create(path)
	must(t, err)
	must(t, f.Truncate(size))
	for _, offset := range at {
		_, err = f.WriteAt([]byte(data), offset)
		must(t, err)
	}

	must(t, f.Sync())
	must(t, f.Close())
	return path
}

// onDisk is what a file takes on disk, in bytes.
func onDisk(t testing.TB, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

// TestCopySparse copies files with holes at their beginning, in their middle and at their end, and without any.
func TestCopySparse(t *testing.T) {
	const size = 64 << 20
	for name, at := range map[string][]int64{
		"nothing but a hole": nil, "data first": {0}, "data last": {size - 4}, "in the middle": {10<<20 + 5, 30 << 20, 50 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			from := sparse(t, size, "data", at...)
			to := filepath.Join(t.TempDir(), "copy")
			must(t, Copy(from, to))
			one, err := os.ReadFile(from)
			must(t, err)
			two, err := os.ReadFile(to)
			must(t, err)
			if !bytes.Equal(one, two) {
				t.Errorf("another content, %d bytes of %d", len(two), len(one))
			}

			if onDisk(t, to) > onDisk(t, from)+64<<10 {
				t.Errorf("it takes %d bytes, the copy %d", onDisk(t, from), onDisk(t, to))
			}
		})
	}

	empty := sparse(t, 0, "")
	must(t, Copy(empty, empty+"2"))
	info, err := os.Stat(empty + "2")
	if err != nil || info.Size() != 0 {
		t.Errorf("%v, %v", info, err)
	}
}

// endingContext is over when it has been asked a number of times.
type endingContext struct {
	context.Context
	left int
}

func (c *endingContext) Err() error {
	c.left--
	if c.left < 0 {
		return context.Canceled
	}

	return nil
}

// TestCopyInterrupted wants a copy to end when its context does, in the middle of the data.
func TestCopyInterrupted(t *testing.T) {
	from := filepath.Join(t.TempDir(), "from")
	must(t, os.WriteFile(from, bytes.Repeat([]byte("x"), 3*chunk), 0o600))
	to := from + "-copy"
	err := CopyContext(&endingContext{t.Context(), 2}, from, to)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want %v", err, context.Canceled)
	}

	info, err := os.Stat(to)
	must(t, err)
	if info.Size() != 2*chunk {
		t.Errorf("%d bytes were copied, want %d", info.Size(), 2*chunk)
	}
}
