// SPDX-License-Identifier: AGPL-3.0-only

package bundle

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/klauspost/compress/gzip"
	"go.yaml.in/yaml/v3"

	"github.com/lxd-recover/lxd-recover/internal/godqlite"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// microcluster's recovery tarball, recovery_db.tar.gz, is a gzip'd tar of its directory with raft's files, but for info.yaml: entries are relative to
// that, the first is the directory itself. recovery.yaml is a list of members there. The daemon of a MicroCloud, MicroCeph or MicroOVN that
// finds such a tarball in its state directory when it starts takes it in place of its database.

// ErrMicrocluster says that a tarball is one for microcluster's own loader.
var ErrMicrocluster error = product.Error("it is a recovery tarball of microcluster (MicroCloud, MicroCeph, MicroOVN), and not of LXD: " +
	"a daemon of theirs loads it when it starts and finds it in its state directory as " + godqlite.TarballFile)

// readRecovery reads recovery.yaml: our own manifest, or microcluster's list of members.
func (x *extractor) readRecovery(h *tar.Header) error {
	data, err := x.small(h, maxSmallFile)
	if err != nil {
		return err
	}

	var list []yaml.Node
	if x.origin.Manifest != nil || yaml.Unmarshal(data, &list) != nil || len(list) == 0 {
		return x.takeManifest(h, data)
	}

	err = x.isMicrocluster()
	if err != nil {
		return err
	}

	members, err := godqlite.ParseRecovery(data)
	if err == nil {
		err = members.Validate()
	}

	if err != nil {
		return damaged(x.ctx, "read "+h.Name, err)
	}

	x.members = members
	return nil
}

// readMicrocluster reads cluster.yaml, which only microcluster's tarballs have.
func (x *extractor) readMicrocluster(h *tar.Header) error {
	err := x.isMicrocluster()
	if err != nil {
		return err
	}

	data, err := x.small(h, maxSmallFile)
	if err != nil {
		return err
	}

	_, err = godqlite.ParseCluster(data)
	if err != nil {
		return damaged(x.ctx, "read "+h.Name, err)
	}

	return nil
}

// isMicrocluster notes that the tarball is one of microcluster's.
func (x *extractor) isMicrocluster() error {
	switch {
	case x.origin.Manifest != nil:
		return damaged(x.ctx, "read the archive", fmt.Errorf("%s does not belong into a recovery tarball with a manifest", microclusterMembers))
	case !x.microAllowed:
		return ErrMicrocluster
	}

	x.micro = true
	return x.believe()
}

// Microcluster is what a recovery tarball for microcluster's own loader is made of.
type Microcluster struct {
	Members member.List
	Pieces  []Piece // the raft directory; each must still have the sum that it came with when it is packed
	Created time.Time

	// Progress is called with the number of bytes read since the last call; it may be nil.
	Progress func(int64)
}

// WriteMicrocluster packs a raft directory for microcluster's own loader, with the list of members beside it as its own tarballs have it, and returns how
// many files it has.
func WriteMicrocluster(ctx context.Context, w io.Writer, m Microcluster) (files int, err error) {
	cluster, err := godqlite.EncodeCluster(m.Members)
	if err != nil {
		return 0, err
	}

	recovery, err := godqlite.EncodeRecovery(m.Members)
	if err != nil {
		return 0, err
	}

	pieces := append([]Piece{BytesPiece(microclusterMembers, cluster), BytesPiece(microclusterLock, nil), BytesPiece(ManifestName, recovery)}, m.Pieces...)
	sums := make([]File, len(pieces))
	for i, p := range pieces {
		sums[i].SHA256 = p.SHA256
		if p.SHA256 == "" {
			sums[i].SHA256, err = p.copy(ctx, io.Discard, nil)
			if err != nil {
				return 0, fmt.Errorf("read %s: %w", p.Name, err)
			}
		}
	}

	zip := gzip.NewWriter(w)
	archive := &packer{ctx: ctx, tar: tar.NewWriter(zip), created: m.Created, progress: m.Progress}
	err = archive.pack(nil, pieces, sums)
	if err != nil {
		return 0, err
	}

	return len(pieces), zip.Close()
}
