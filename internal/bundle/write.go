// SPDX-License-Identifier: AGPL-3.0-only

package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"time"

	"github.com/klauspost/pgzip"
)

// How packing uses several processors: blocks of so many bytes, and at most so many of them at once. A block under way takes
// about three times its size in memory.
const (
	packedBlock  = 512 << 10
	packedBlocks = 8
)

// Piece is one file of a raft directory about to be packed.
type Piece struct {
	Name   string // in the tarball
	Size   int64  // bytes
	SHA256 string // of the content as it was verified, lower-case hexadecimal; empty where Write is to take the sum
	Open   func() (io.ReadCloser, error)
}

// FilePiece is a file, or its first size bytes, under a name. digest is the sum that these bytes had when they were verified.
func FilePiece(fsys fs.FS, file string, name string, size int64, digest string) Piece {
	return Piece{Name: name, Size: size, SHA256: digest, Open: func() (io.ReadCloser, error) { return fsys.Open(file) }}
}

// BytesPiece is a file made of bytes in memory.
func BytesPiece(name string, data []byte) Piece {
	return Piece{Name: name, Size: int64(len(data)), SHA256: sum(data), Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }}
}

// Size is the sum of the sizes of pieces, in bytes.
func Size(pieces []Piece) int64 {
	var n int64
	for _, p := range pieces {
		n += p.Size
	}

	return n
}

// Content is what a tarball is made of.
type Content struct {
	Manifest *Manifest
	Pieces   []Piece

	// Key belongs to the cluster certificate: the manifest is signed with it. Without one the tarball has format 1, which has no signature
	// and no run.
	Key crypto.Signer

	// Progress is called with the number of bytes read since the last call; it may be nil.
	Progress func(int64)
}

// Write packs a raft directory. It fills in the manifest's format, files and sums. The manifest comes first, so the sums are
// those that the pieces come with, and each piece must still have its own when it is packed; one that comes without is read
// before, once more.
func Write(ctx context.Context, w io.Writer, c Content) error {
	manifest := c.Manifest
	raftNodes, err := encodeRaftNodes(manifest.Members)
	if err != nil {
		return err
	}

	manifest.Format = manifestFormat
	if c.Key == nil {
		manifest.Format, manifest.Run = unsignedFormat, ""
	}

	manifest.Files = nil
	pieces := append([]Piece{BytesPiece(raftNodesName, raftNodes)}, c.Pieces...)
	for _, p := range pieces {
		digest := p.SHA256
		if digest == "" {
			digest, err = p.copy(ctx, io.Discard, nil)
			if err != nil {
				return fmt.Errorf("read %s: %w", p.Name, err)
			}
		}

		manifest.Files = append(manifest.Files, File{Name: p.Name, Size: p.Size, SHA256: digest})
	}

	err = manifest.validate()
	if err != nil {
		return err
	}

	head, err := manifest.sign(c.Key)
	if err != nil {
		return err
	}

	zip, err := pgzip.NewWriterLevel(w, pgzip.BestSpeed)
	if err == nil {
		err = zip.SetConcurrency(packedBlock, min(runtime.GOMAXPROCS(0), packedBlocks))
	}

	if err != nil {
		return err
	}

	archive := &packer{ctx: ctx, tar: tar.NewWriter(zip), created: manifest.Created, progress: c.Progress}
	err = archive.pack(head, pieces, manifest.Files)
	if err != nil {
		return err
	}

	return zip.Close()
}

// sign returns the manifest and, of a format that has one, its signature: the first files of a tarball.
func (m *Manifest) sign(key crypto.Signer) ([]Piece, error) {
	data, err := m.Encode()
	if err != nil {
		return nil, err
	}

	head := []Piece{BytesPiece(ManifestName, data)}
	if !m.signed() {
		return head, nil
	}

	signature, err := Sign(key, data)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", ManifestName, err)
	}

	return append(head, BytesPiece(SignatureName, signature)), nil
}

// copy copies a piece and returns its SHA-256.
func (p Piece) copy(ctx context.Context, w io.Writer, progress func(int64)) (string, error) {
	src, err := p.Open()
	if err != nil {
		return "", err
	}

	defer src.Close()

	hash := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, hash), &meter{ctx: ctx, r: io.LimitReader(src, p.Size), progress: progress})
	if err != nil {
		return "", err
	}

	if n != p.Size {
		return "", fmt.Errorf("the file became shorter while it was read: %d bytes in place of %d", n, p.Size)
	}

	return hex.EncodeToString(hash.Sum(nil)), nil
}

type packer struct {
	ctx      context.Context
	tar      *tar.Writer
	created  time.Time
	progress func(int64)
}

// pack writes the whole archive: the directory that LXD's loader expects first, the manifest and its signature, the files.
func (a *packer) pack(head []Piece, pieces []Piece, files []File) error {
	err := a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: ".", Mode: 0o700, ModTime: a.created, Format: tar.FormatPAX})
	if err != nil {
		return err
	}

	for _, p := range head {
		_, err = a.file(p)
		if err != nil {
			return err
		}
	}

	for i, p := range pieces {
		digest, err := a.file(p)
		if err != nil {
			return fmt.Errorf("pack %s: %w", p.Name, err)
		}

		if digest != files[i].SHA256 {
			return fmt.Errorf("pack %s: the file changed while it was read", p.Name)
		}
	}

	return a.tar.Close()
}

func (a *packer) file(p Piece) (string, error) {
	err := a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: p.Name, Mode: 0o600, Size: p.Size, ModTime: a.created, Format: tar.FormatPAX})
	if err != nil {
		return "", err
	}

	return p.copy(a.ctx, a.tar, a.progress)
}

func sum(data []byte) string {
	h := sha256.Sum256(data)
	return hex.EncodeToString(h[:])
}

// meter is a reader that stops with its context and reports how much went through it.
type meter struct {
	ctx      context.Context
	r        io.Reader
	progress func(int64)
}

func (m *meter) Read(p []byte) (int, error) {
	err := m.ctx.Err()
	if err != nil {
		return 0, err
	}

	n, err := m.r.Read(p)
	if m.progress != nil {
		m.progress(int64(n))
	}

	return n, err
}
