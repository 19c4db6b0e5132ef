// SPDX-License-Identifier: AGPL-3.0-only

package bundle

import (
	"archive/tar"
	"context"
	"errors"
	"io"

	"github.com/klauspost/compress/gzip"
)

// ReadHead reads no more of a tarball than its first file, and returns the manifest that this must be. Neither the signature nor anything that the manifest
// says is checked. The error wraps ErrDamaged if the tarball is to blame.
func ReadHead(ctx context.Context, r io.Reader) (*Manifest, error) {
	zip, err := gzip.NewReader(&meter{ctx: ctx, r: r})
	if err != nil {
		return nil, damaged(ctx, "not a gzip file", err)
	}

	x := &extractor{ctx: ctx, tar: tar.NewReader(zip), seen: map[string]bool{ManifestName: true}}
	h, err := x.tar.Next()
	if err == nil && h.Typeflag == tar.TypeDir && (h.Name == "." || h.Name == "./") {
		h, err = x.tar.Next()
	}

	if err != nil {
		return nil, damaged(ctx, "not a tar archive inside the gzip file", err)
	}

	if h.Name != ManifestName || h.Typeflag != tar.TypeReg || sparse(h) {
		return nil, damaged(ctx, "read the archive", errors.New(ManifestName+" is not the first file"))
	}

	err = x.readManifest(h)
	return x.origin.Manifest, err
}
