// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/scratch"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

func existing(path string) error {
	return &Refusal{Code: "file-exists", Reason: fmt.Sprintf("%s exists already", path), Flag: "--force"}
}

// writeOutput creates a file all or nothing: nobody ever sees half a tarball under its name. approve is asked when all is
// written, before the file gets its name; it may be nil.
func writeOutput(path string, force bool, write func(io.Writer) error, approve func() error) error {
	parent := filepath.Dir(path)
	f, end, err := scratch.File(parent)
	if err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}

	defer end()

	err = write(f)
	if err == nil {
		err = f.Sync()
	}

	closeErr := f.Close()
	if err == nil {
		err = closeErr
	}

	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}

	if approve != nil {
		err = approve()
		if err != nil {
			return err
		}
	}

	flags := uint(unix.RENAME_NOREPLACE)
	if force {
		flags = 0
	}

	err = unix.Renameat2(unix.AT_FDCWD, f.Name(), unix.AT_FDCWD, path, flags)
	if errors.Is(err, unix.EINVAL) && !force {
		// A file system without RENAME_NOREPLACE (NFS, some FUSE): a link refuses an existing name as well.
		err = os.Link(f.Name(), path)
	}

	if errors.Is(err, unix.EEXIST) {
		return existing(path)
	}

	if err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}

	return swapdir.SyncDir(parent)
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
