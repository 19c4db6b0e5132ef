// SPDX-License-Identifier: AGPL-3.0-only

package bundle

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
)

// backupPrefix is the directory that all entries of one of LXD's database backups are in.
const backupPrefix = "database"

// IsBackup tells whether a gzip'd tar is one of LXD's db_backup tarballs: the first entry of those is the directory
// database.
func IsBackup(ctx context.Context, r io.Reader) (bool, error) {
	zip, err := gzip.NewReader(r)
	if err != nil {
		return false, damaged(ctx, "not a gzip file", err)
	}

	h, err := tar.NewReader(zip).Next()
	if err != nil {
		return false, damaged(ctx, "not a tar archive inside the gzip file", err)
	}

	return h.Typeflag == tar.TypeDir && path.Clean(h.Name) == backupPrefix, nil
}

// ExtractBackup unpacks the raft files and the node database of one of LXD's db_backup tarballs into root, where a directory
// global must exist: global/FILE and local.db. Everything else in it is passed over; the same bounds hold as for Extract.
func ExtractBackup(ctx context.Context, r io.Reader, root *os.Root, progress func(int64)) error {
	zip, err := gzip.NewReader(&meter{ctx: ctx, r: r, progress: progress})
	if err != nil {
		return damaged(ctx, "not a gzip file", err)
	}

	x := &extractor{ctx: ctx, root: root, tar: tar.NewReader(zip), backup: true}
	for range maxFiles {
		h, err := x.tar.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}

		if err != nil {
			return damaged(ctx, "read the backup", err)
		}

		name, ok := strings.CutPrefix(h.Name, backupPrefix+"/")
		isRaft := path.Dir(name) == "global" && IsRaftFile(path.Base(name))
		if !ok || h.Typeflag != tar.TypeReg || sparse(h) || !isRaft && name != "local.db" {
			continue
		}

		h.Name = name
		err = x.write(h)
		if err != nil {
			return err
		}
	}

	return damaged(ctx, "read the backup", errors.New("more files than a raft directory can hold"))
}
