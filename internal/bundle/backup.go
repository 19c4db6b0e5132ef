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

// IsBackup tells whether a gzip'd tar is one of LXD's db_backup tarballs, or of microcluster's: the first entry of those is the directory
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

// besideRaft are files that microcluster has beside those of raft, and that its backups have.
var besideRaft = map[string]bool{"info.yaml": true, "cluster.yaml": true, ManifestName: true}

// ExtractBackup unpacks the raft files and the node database of one of LXD's db_backup tarballs into root, where a directory
// global must exist: global/FILE and local.db. Those of microcluster have raft's files in database itself: they become global/FILE, too, with
// what is beside them; ofMicrocluster tells such a one. Everything else in it is passed over; the same bounds hold as for Extract.
func ExtractBackup(ctx context.Context, r io.Reader, root *os.Root, progress func(int64)) (ofMicrocluster bool, err error) {
	zip, err := gzip.NewReader(&meter{ctx: ctx, r: r, progress: progress})
	if err != nil {
		return false, damaged(ctx, "not a gzip file", err)
	}

	x := &extractor{ctx: ctx, root: root, tar: tar.NewReader(zip), backup: true}
	var nested, flat bool // where raft's files are
	for range maxFiles {
		h, err := x.tar.Next()
		switch {
		case errors.Is(err, io.EOF) && flat && !nested:
			return true, errors.Join(root.RemoveAll("global"), root.Rename(flatName, "global"))
		case errors.Is(err, io.EOF):
			return false, root.RemoveAll(flatName)
		case err != nil:
			return false, damaged(ctx, "read the backup", err)
		}

		name, ok := strings.CutPrefix(h.Name, backupPrefix+"/")
		if !ok || h.Typeflag != tar.TypeReg || sparse(h) {
			continue
		}

		switch {
		case path.Dir(name) == "global" && IsRaftFile(path.Base(name)):
			nested, h.Name = true, name
		case name == "local.db":
			h.Name = name
		case IsRaftFile(name) || besideRaft[name] && h.Size <= maxSmallFile:
			if !flat {
				err = root.Mkdir(flatName, 0o700)
			}

			flat, h.Name = true, path.Join(flatName, name)
		default:
			continue
		}

		if err == nil {
			err = x.write(h)
		}

		if err != nil {
			return false, err
		}
	}

	return false, damaged(ctx, "read the backup", errors.New("more files than a raft directory can hold"))
}

// flatName is where raft's files go that are in database itself, until it is known that there are no other ones.
const flatName = "flat"
