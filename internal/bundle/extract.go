// SPDX-License-Identifier: AGPL-3.0-only

package bundle

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/klauspost/pgzip"
	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/member"
)

// Extracted is what Extract found.
type Extracted struct {
	Origin

	// Members is the member list: the manifest's, or that of raft_nodes.yaml.
	Members member.List

	// Digest is the SHA-256 of the compressed tarball, lower-case hexadecimal: the same file has the same digest.
	Digest string

	// Size is the number of bytes written to disk.
	Size int64

	// Microcluster tells that it is a recovery tarball for microcluster's own loader: it has a list of members in recovery.yaml, and no manifest.
	Microcluster bool

	// Identity is what identity.age has, encrypted; nil if there is none. It is not unpacked: no raft directory has such a file.
	Identity []byte

	// Newest is the latest modification time in the archive, Unix seconds.
	Newest int64
}

// Run is the id of the run that the tarball belongs to: the one that the manifest names, or, as no such name is known, one that every
// member makes of the same file.
func (e *Extracted) Run() string {
	if e.Manifest != nil && e.Manifest.Run != "" {
		return e.Manifest.Run
	}

	return e.Digest[:32]
}

// NoSpaceError says that the tarball's content does not fit on the disk.
type NoSpaceError struct {
	Need, Free int64 // bytes
}

func (e *NoSpaceError) Error() string {
	return fmt.Sprintf("not enough disk space: the database needs %s and only %s is free", megabytes(e.Need), megabytes(e.Free))
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// ExtractOptions say how Extract works.
type ExtractOptions struct {
	// Judge is told where the tarball says that it comes from, once, before anything else of it is looked at or unpacked. An error
	// ends the extraction. Nil takes everything.
	Judge func(*Origin) error

	// Microcluster takes microcluster's own recovery tarball as well, which LXD cannot load. Else that is ErrMicrocluster.
	Microcluster bool

	// Progress is called with the number of bytes read since the last call; it may be nil.
	Progress func(int64)
}

// Extract unpacks a tarball's raft files into root, which must be an empty directory, with mode 0600. It goes on to the last
// byte of the tarball: sums, sizes, the gzip trailer and the end of the file are all checked. Any error that the tarball
// itself is to blame for wraps ErrDamaged. Nothing outside root is ever touched; what was unpacked before an error stays for
// the caller to remove.
func Extract(ctx context.Context, r io.Reader, root *os.Root, opts ExtractOptions) (*Extracted, error) {
	digest := sha256.New()
	in := bufio.NewReaderSize(io.TeeReader(&meter{ctx: ctx, r: r, progress: opts.Progress}, digest), 1<<20)
	zip, err := pgzip.NewReaderN(in, aheadBlock, aheadBlocks) // unpacks ahead, beside the sums and the writing
	if err != nil {
		return nil, damaged(ctx, "not a gzip file", err)
	}

	defer zip.Close() // which says nothing that reading does not

	zip.Multistream(false)
	x := &extractor{ctx: ctx, root: root, tar: tar.NewReader(zip), judge: opts.Judge, seen: map[string]bool{}, microAllowed: opts.Microcluster}
	err = x.run()
	if err != nil {
		return nil, err
	}

	err = drain(zip)
	if err != nil {
		return nil, damaged(ctx, "after the end of the archive", err)
	}

	_, err = in.ReadByte()
	if !errors.Is(err, io.EOF) {
		return nil, damaged(ctx, "after the end of the archive", errors.Join(errors.New("trailing bytes"), err))
	}

	return &Extracted{Origin: x.origin, Members: x.members, Size: x.written, Newest: x.newest, Identity: x.identity,
		Microcluster: x.micro, Digest: hex.EncodeToString(digest.Sum(nil))}, nil
}

// damaged wraps what a tarball is to blame for; a cancelled context and an error of the machine are not.
func damaged(ctx context.Context, where string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}

	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		err = errors.New("it ends too early: was it copied whole?")
	}

	var errno unix.Errno
	if errors.As(err, &errno) {
		return fmt.Errorf("%s: %w", where, err)
	}

	return fmt.Errorf("%w: %s: %w", ErrDamaged, where, err)
}

// How far unpacking goes ahead: blocks of so many bytes.
const (
	aheadBlock  = 256 << 10
	aheadBlocks = 8
)

type extractor struct {
	ctx  context.Context
	root *os.Root
	tar  *tar.Reader

	judge   func(*Origin) error
	judged  bool
	seen    map[string]bool
	origin  Origin
	files   map[string]File // the manifest's, by name
	members member.List

	identity []byte // content of identity.age

	written int64
	newest  int64
	backup  bool // one of LXD's backups, for inspection: every file is taken as it is

	micro        bool // a recovery tarball of microcluster's
	microAllowed bool
}

func (x *extractor) run() error {
	for {
		h, err := x.tar.Next()
		if errors.Is(err, io.EOF) {
			return x.complete()
		}

		if err != nil {
			return damaged(x.ctx, "read the archive", err)
		}

		err = x.entry(h)
		if err != nil {
			return err
		}
	}
}

// entry handles one tar entry. The order of the checks is from the cheapest to the one that writes.
func (x *extractor) entry(h *tar.Header) error {
	name := h.Name
	x.newest = max(x.newest, h.ModTime.Unix())
	if h.Typeflag == tar.TypeDir && (name == "." || name == "./") && len(x.seen) == 0 {
		x.seen["."] = true
		return nil
	}

	shown := fmt.Sprintf("%.80q", name)
	if h.Typeflag != tar.TypeReg || sparse(h) {
		return damaged(x.ctx, "entry "+shown, fmt.Errorf("type %q: only regular files belong into a recovery tarball", h.Typeflag))
	}

	if x.seen[name] {
		return damaged(x.ctx, "entry "+shown, errors.New("it is there twice"))
	}

	x.seen[name] = true
	if len(x.seen) > maxFiles {
		return damaged(x.ctx, "read the archive", errors.New("more files than a raft directory can hold"))
	}

	switch name {
	case ManifestName:
		return x.readRecovery(h)
	case microclusterMembers:
		return x.readMicrocluster(h)
	case SignatureName:
		return x.readSignature(h)
	}

	err := x.believe()
	if err != nil {
		return err
	}

	if leftOut[name] && x.origin.Manifest == nil {
		return x.skip(h)
	}

	if !allowed(name) {
		return damaged(x.ctx, "entry "+shown, errors.New("a file of this name does not belong into a recovery tarball"))
	}

	switch name {
	case raftNodesName:
		return x.readRaftNodes(h)
	case IdentityName:
		return x.readIdentity(h)
	}

	return x.write(h)
}

// believe has the origin judged, before the first file that the manifest vouches for.
func (x *extractor) believe() error {
	if x.judged {
		return nil
	}

	x.judged = true
	manifest := x.origin.Manifest
	if manifest != nil && manifest.signed() != x.origin.Signed() {
		return damaged(x.ctx, "read the archive", fmt.Errorf("%s does not come right after %s", SignatureName, ManifestName))
	}

	if x.judge != nil {
		err := x.judge(&x.origin)
		if err != nil {
			return err
		}
	}

	if manifest == nil {
		return nil
	}

	return x.checkSpace(manifest.Size())
}

// sparse tells whether archive/tar would expand holes: real tarballs have none.
func sparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}

	return h.Typeflag == tar.TypeGNUSparse
}

func (x *extractor) skip(h *tar.Header) error {
	_, err := io.Copy(io.Discard, x.tar)
	if err != nil {
		return damaged(x.ctx, "read "+h.Name, err)
	}

	return nil
}

func (x *extractor) small(h *tar.Header, limit int64) ([]byte, error) {
	if h.Size > limit {
		return nil, damaged(x.ctx, "read "+h.Name, fmt.Errorf("%d bytes is too large", h.Size))
	}

	data, err := io.ReadAll(x.tar)
	if err != nil {
		return nil, damaged(x.ctx, "read "+h.Name, err)
	}

	return data, nil
}

// readManifest reads a recovery.yaml that can be nothing but our own manifest.
func (x *extractor) readManifest(h *tar.Header) error {
	data, err := x.small(h, maxSmallFile)
	if err != nil {
		return err
	}

	return x.takeManifest(h, data)
}

func (x *extractor) takeManifest(h *tar.Header, data []byte) error {
	for name := range x.seen {
		if name != "." && name != ManifestName {
			return damaged(x.ctx, "read "+h.Name, errors.New("it is not the first file"))
		}
	}

	manifest, err := parseManifest(data)
	if err != nil {
		return err
	}

	x.origin = Origin{Manifest: manifest, head: data}
	x.members = manifest.Members
	x.files = make(map[string]File, len(manifest.Files))
	for _, f := range manifest.Files {
		x.files[f.Name] = f
	}

	return nil
}

func (x *extractor) readSignature(h *tar.Header) error {
	if x.origin.Manifest == nil || !x.origin.Manifest.signed() || x.judged {
		return damaged(x.ctx, "read "+h.Name, fmt.Errorf("it does not come right after a %s of format 2 or later", ManifestName))
	}

	data, err := x.small(h, maxSignature)
	if err != nil {
		return err
	}

	if len(data) == 0 {
		return damaged(x.ctx, "read "+h.Name, errors.New("it is empty"))
	}

	x.origin.signature = data
	return x.believe()
}

func (x *extractor) readRaftNodes(h *tar.Header) error {
	data, err := x.small(h, maxSmallFile)
	if err != nil {
		return err
	}

	members, err := parseRaftNodes(data)
	if err != nil {
		return err
	}

	if x.origin.Manifest == nil {
		x.members = members
		return nil
	}

	if x.files[h.Name].SHA256 != sum(data) {
		return damaged(x.ctx, "read "+h.Name, errors.New("it is not the file that the manifest names"))
	}

	return nil
}

// readIdentity reads what is encrypted. Only a manifest can announce it.
func (x *extractor) readIdentity(h *tar.Header) error {
	want, ok := x.files[h.Name]
	if !ok || want.Size != h.Size {
		return damaged(x.ctx, "read "+h.Name, errors.New("the manifest does not announce this file with this size"))
	}

	data, err := x.small(h, maxIdentity)
	if err != nil {
		return err
	}

	if want.SHA256 != sum(data) {
		return damaged(x.ctx, "read "+h.Name, errors.New("its checksum is not the one in the manifest"))
	}

	x.identity = data
	return nil
}

// checkSpace checks that so many more bytes fit on the disk.
func (x *extractor) checkSpace(size int64) error {
	free, err := freeSpace(x.root)
	if err != nil {
		return err
	}

	if size+probeReserve > free {
		return &NoSpaceError{Need: size + probeReserve, Free: free}
	}

	return nil
}

// write unpacks one raft file and compares it with what the manifest says of it.
func (x *extractor) write(h *tar.Header) error {
	if h.Size < 0 || h.Size > maxFileSize {
		return damaged(x.ctx, "unpack "+h.Name, fmt.Errorf("impossible size %d", h.Size))
	}

	var want File
	if x.origin.Manifest != nil {
		var ok bool
		want, ok = x.files[h.Name]
		if !ok || want.Size != h.Size {
			return damaged(x.ctx, "unpack "+h.Name, errors.New("the manifest does not announce this file with this size"))
		}
	} else {
		err := x.checkSpace(h.Size)
		if err != nil {
			return err
		}
	}

	content := bufio.NewReaderSize(x.tar, 1<<20)
	head, err := content.Peek(8)
	if err != nil && !errors.Is(err, io.EOF) {
		return damaged(x.ctx, "unpack "+h.Name, err)
	}

	if !x.backup && !plausible(h.Name, head) && !prepared(x, h, head) {
		return damaged(x.ctx, "unpack "+h.Name, errors.New("it does not begin like a file of this name"))
	}

	f, err := x.root.OpenFile(h.Name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}

	hash := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, hash), content)
	x.written += n
	closeErr := f.Close()
	if err != nil {
		return damaged(x.ctx, "unpack "+h.Name, err)
	}

	if closeErr != nil {
		return closeErr
	}

	if x.origin.Manifest != nil && want.SHA256 != hex.EncodeToString(hash.Sum(nil)) {
		return damaged(x.ctx, "unpack "+h.Name, errors.New("its checksum is not the one in the manifest"))
	}

	return nil
}

// plausible looks at the first bytes of a file: one that is not what its name says is not worth the disk it would fill. What
// comes after them is for the raft log's own checks.
func plausible(name string, head []byte) bool {
	isData := strings.HasPrefix(name, "snapshot-") && !strings.HasSuffix(name, ".meta")
	return isData && bytes.HasPrefix(head, lz4Magic) || bytes.Equal(head, formatOne)
}

// prepared tells whether a file is an open segment that was never used, which LXD's own tarballs may have: 8 MiB of zeros.
func prepared(x *extractor, h *tar.Header, head []byte) bool {
	return x.origin.Manifest == nil && strings.HasPrefix(h.Name, "open-") && h.Size <= preparedSize && bytes.Equal(head, make([]byte, 8))
}

// preparedSize is what libdqlite makes an open segment in advance, bytes.
const preparedSize = 8 << 20

// First bytes of dqlite's files: the format, 64 bits, little endian; a compressed snapshot begins with LZ4's magic number.
var (
	formatOne = []byte{1, 0, 0, 0, 0, 0, 0, 0}
	lz4Magic  = []byte{0x04, 0x22, 0x4d, 0x18}
)

// complete checks at the end of the archive that nothing is missing.
func (x *extractor) complete() error {
	err := x.believe() // there was nothing but a manifest, or not even that
	if err != nil {
		return err
	}

	if x.members == nil {
		name := raftNodesName
		if x.micro {
			name = ManifestName
		}

		return damaged(x.ctx, "read the archive", fmt.Errorf("no %s in it", name))
	}

	if x.origin.Manifest != nil {
		for _, f := range x.origin.Manifest.Files {
			if !x.seen[f.Name] {
				return damaged(x.ctx, "read the archive", fmt.Errorf("%s is missing", f.Name))
			}
		}
	}

	return nil
}

// drain reads the rest of the gzip stream, which makes the reader check its trailer, and refuses anything but padding.
func drain(r io.Reader) error {
	buf := make([]byte, 32<<10)
	for total := 0; ; {
		n, err := r.Read(buf)
		if len(bytes.Trim(buf[:n], "\x00")) > 0 {
			return errors.New("trailing bytes")
		}

		total += n
		if total > maxPadding {
			return errors.New("too much padding")
		}

		if errors.Is(err, io.EOF) {
			return nil
		}

		if err != nil {
			return err
		}
	}
}

func freeSpace(root *os.Root) (int64, error) {
	dir, err := root.Open(".")
	if err != nil {
		return 0, err
	}

	defer dir.Close()

	var st unix.Statfs_t
	err = unix.Fstatfs(int(dir.Fd()), &st)
	if err != nil {
		return 0, &fs.PathError{Op: "fstatfs", Path: root.Name(), Err: err}
	}

	return int64(st.Bavail) * st.Bsize, nil
}
