// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// otherFiles is what was carried over into the staging directory: the names in the database directory, each with what it, and
// everything below it, was like.
type otherFiles map[string]string

// copyOtherFiles copies what the staged directory does not have of its own, and writes it to disk. Somebody may keep gigabytes in the
// database directory, so this is done before LXD is stopped, and again afterwards: then only what has changed since is copied.
func (d directory) copyOtherFiles(ctx context.Context, before otherFiles) (otherFiles, error) {
	live, staging := d.database(), d.join(stagingName)
	if before == nil {
		err := d.checkRoom(ctx)
		if err != nil {
			return nil, err
		}
	}

	entries, err := os.ReadDir(live)
	if err != nil {
		return nil, err
	}

	now := otherFiles{}
	for _, e := range entries {
		if replaced[e.Name()] {
			continue
		}

		from, to := filepath.Join(live, e.Name()), filepath.Join(staging, e.Name())
		now[e.Name()], err = look(from) // before it is copied: a later change makes another look
		if err != nil {
			return nil, err
		}

		old, ok := before[e.Name()]
		if ok && old == now[e.Name()] {
			continue
		}

		err = os.RemoveAll(to)
		if err == nil {
			err = copyTree(ctx, from, to)
		}

		if err == nil {
			err = syncCopy(to)
		}

		if err != nil {
			return nil, err
		}
	}

	for name := range before {
		_, ok := now[name]
		if !ok {
			err = os.RemoveAll(filepath.Join(staging, name))
			if err != nil {
				return nil, err
			}
		}
	}

	return now, nil
}

// look tells what a file, or everything below a directory, is like without reading it: any write gives another one.
func look(path string) (string, error) {
	sum := sha256.New()
	err := filepath.WalkDir(path, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}

		info, err := e.Info()
		if err != nil {
			return err
		}

		fmt.Fprintf(sum, "%q %v\n", name, identity(info))
		return nil
	})

	return string(sum.Sum(nil)), err
}

// syncCopy writes what copyTree has made to disk; of sockets, pipes and devices it makes nothing.
func syncCopy(path string) error {
	info, err := os.Lstat(path)
	switch {
	case os.IsNotExist(err):
		return nil
	case err != nil:
		return err
	case info.IsDir():
		return swapdir.SyncTree(path)
	case info.Mode().IsRegular():
		return swapdir.SyncFile(path)
	}

	return nil
}

// otherSize is what all that would be carried over takes on disk, in bytes.
func otherSize(ctx context.Context, live string) (int64, error) {
	entries, err := os.ReadDir(live)
	if err != nil {
		return 0, err
	}

	var n int64
	for _, e := range entries {
		if replaced[e.Name()] {
			continue
		}

		err = filepath.WalkDir(filepath.Join(live, e.Name()), func(_ string, e fs.DirEntry, err error) error {
			if err == nil {
				err = ctx.Err()
			}

			if err != nil || !e.Type().IsRegular() {
				return err
			}

			info, err := e.Info()
			if err == nil {
				n += onDisk(info)
			}

			return err
		})
		if err != nil && !errors.Is(err, os.ErrNotExist) { // LXD may be at work
			return 0, err
		}
	}

	return n, nil
}
