// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"cmp"
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

// writeTo is writeOutput, or writes to a stream if there is one. That gets nothing before approve has agreed, either.
func writeTo(path string, stdout io.Writer, force bool, write func(io.Writer) error, approve func() error) error {
	if stdout == nil {
		return writeOutput(path, force, write, approve)
	}

	err := approve()
	if err != nil {
		return err
	}

	return write(stdout)
}

// checkOutput refuses a place for a tarball that is in LXD's database, and a file that exists, unless it may be replaced.
func (d directory) checkOutput(path string, stdout io.Writer, force bool) error {
	output := cmp.Or(path, fileOf(stdout))
	if output != "" {
		err := d.keepOut(output)
		if err != nil {
			return err
		}
	}

	if stdout == nil && !force {
		_, err := os.Lstat(path)
		if err == nil {
			return existing(path)
		}
	}

	return nil
}
