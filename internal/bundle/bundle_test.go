// SPDX-License-Identifier: AGPL-3.0-only

package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle/bundletest"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

var members = member.List{
	{ID: 1, Name: "one", Address: "10.0.0.1:8443", Role: raftlog.Voter},
	{ID: 2, Name: "two", Address: "[fd00::2]:8443", Role: raftlog.StandBy},
	{ID: 3, Name: "three", Address: "three.example:8443", Role: raftlog.Spare},
}

// one is how dqlite's files begin: their format, 1.
const one = "\x01\x00\x00\x00\x00\x00\x00\x00"

var content = map[string]string{
	"metadata1":                         one + strings.Repeat("m", 24),
	"snapshot-1-1024-77.meta":           one + "meta",
	"snapshot-1-1024-77":                "\x04\x22\x4d\x18" + strings.Repeat("snapshot", 9999),
	"0000000000001025-0000000000001030": one + "segment",
}

func newManifest() *Manifest {
	return &Manifest{
		Run: NewRun(), Version: "test", Created: time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC),
		Source:  Source{ID: 1, Name: "one", Address: "10.0.0.1:8443"},
		Cluster: Cluster{Certificate: strings.Repeat("ab", 32)},
		Raft:    Raft{Before: Position{1030, 2}, After: Position{1030, 2}},
		Members: members,
	}
}

// pieces are the content as it is packed, in the order of names.
func pieces(files fstest.MapFS) []Piece {
	var all []Piece
	for _, name := range names {
		if files[name] == nil {
			files[name] = &fstest.MapFile{Data: []byte(content[name])}
		}

		all = append(all, FilePiece(files, name, name, int64(len(content[name])), ""))
	}

	return all
}

var names = []string{"metadata1", "snapshot-1-1024-77.meta", "snapshot-1-1024-77", "0000000000001025-0000000000001030"}

// written is a whole tarball of ours.
func written(t testing.TB) []byte {
	t.Helper()
	var buf bytes.Buffer
	must(t, Write(t.Context(), &buf, Content{Manifest: newManifest(), Pieces: pieces(fstest.MapFS{}), Key: bundletest.Key(t)}))
	return buf.Bytes()
}

// extract unpacks a tarball into a new directory and returns what was unpacked.
func extract(t testing.TB, tarball []byte) (*Extracted, map[string]string, error) {
	t.Helper()
	parent := t.TempDir()
	dir := filepath.Join(parent, "in")
	must(t, os.Mkdir(dir, 0o700))
	root, err := os.OpenRoot(dir)
	must(t, err)
	defer root.Close()
	x, err := Extract(t.Context(), bytes.NewReader(tarball), root, ExtractOptions{})
	outside, globErr := filepath.Glob(filepath.Join(parent, "*"))
	must(t, globErr)
	if len(outside) != 1 {
		t.Errorf("written outside the directory: %v", outside)
	}

	files := map[string]string{}
	entries, readErr := os.ReadDir(dir)
	must(t, readErr)
	for _, e := range entries {
		data, readErr := os.ReadFile(filepath.Join(dir, e.Name()))
		must(t, readErr)
		info, readErr := e.Info()
		must(t, readErr)
		if info.Mode() != 0o600 {
			t.Errorf("%s has mode %s", e.Name(), info.Mode())
		}

		files[e.Name()] = string(data)
	}

	return x, files, err
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestRoundTrip(t *testing.T) {
	x, files, err := extract(t, written(t))
	must(t, err)
	if !x.Members.Same(members) || x.Manifest == nil || x.Manifest.Source.Name != "one" || x.Manifest.Raft.After.Index != 1030 {
		t.Errorf("got %+v", x)
	}

	if fmt.Sprint(files) != fmt.Sprint(content) {
		t.Errorf("got %v", files)
	}
}

// The order and shape that LXD's own loader wants, with our manifest and its signature before the files that they vouch for.
func TestEntries(t *testing.T) {
	zip, err := gzip.NewReader(bytes.NewReader(written(t)))
	must(t, err)
	tr := tar.NewReader(zip)
	var got []string
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}

		must(t, err)
		got = append(got, h.Name)
		if h.Name == raftNodesName {
			data, err := io.ReadAll(tr)
			must(t, err)
			const want = "- nodeinfo:\n    ID: 1\n    Address: 10.0.0.1:8443\n    Role: 0\n  name: one\n"
			if !strings.HasPrefix(string(data), want) {
				t.Errorf("raft_nodes.yaml is\n%s", data)
			}
		}
	}

	want := append([]string{".", ManifestName, SignatureName, raftNodesName}, names...)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("entries %v, want %v", got, want)
	}
}

func TestFileChangesWhileWritten(t *testing.T) {
	files := fstest.MapFS{}
	err := Write(t.Context(), &changer{files: files}, Content{Manifest: newManifest(), Pieces: pieces(files), Key: bundletest.Key(t)})
	if err == nil || !strings.Contains(err.Error(), "changed while it was read") {
		t.Errorf("error %v", err)
	}
}

// A piece that comes with a sum is not read before it is packed, and is an error when it is not what was summed.
func TestGivenSums(t *testing.T) {
	reads := 0
	piece := BytesPiece("metadata1", []byte(content["metadata1"]))
	open := piece.Open
	piece.Open = func() (io.ReadCloser, error) {
		reads++
		return open()
	}

	manifest := newManifest()
	must(t, Write(t.Context(), io.Discard, Content{Manifest: manifest, Pieces: []Piece{piece}, Key: bundletest.Key(t)}))
	want := File{Name: "metadata1", Size: 32, SHA256: fmt.Sprintf("%x", sha256.Sum256([]byte(content["metadata1"])))}
	if reads != 1 || len(manifest.Files) != 2 || manifest.Files[1] != want {
		t.Errorf("%d reads, manifest %v", reads, manifest.Files)
	}

	piece.SHA256 = strings.Repeat("0", 64)
	err := Write(t.Context(), io.Discard, Content{Manifest: newManifest(), Pieces: []Piece{piece}, Key: bundletest.Key(t)})
	if err == nil || !strings.Contains(err.Error(), "pack metadata1: the file changed while it was read") {
		t.Errorf("error %v", err)
	}
}

// changer changes the last file at the first write, when it was summed already and not packed yet.
type changer struct{ files fstest.MapFS }

func (c *changer) Write(p []byte) (int, error) {
	c.files["0000000000001025-0000000000001030"] = &fstest.MapFile{Data: []byte(one + "SEGMENT")}
	return len(p), nil
}

func TestTruncated(t *testing.T) {
	whole := written(t)
	for size := range len(whole) {
		_, _, err := extract(t, whole[:size])
		if !errors.Is(err, ErrDamaged) {
			t.Fatalf("cut to %d of %d bytes: %v", size, len(whole), err)
		}
	}
}

// A flipped bit is noticed, wherever it is, unless it changes nothing: gzip has a few that carry no information, in its
// header and where it fills up to whole bytes.
func TestFlippedBits(t *testing.T) {
	whole := written(t)
	unnoticed := 0
	for i := range whole {
		bad := bytes.Clone(whole)
		bad[i] ^= 1 << (i % 8)
		_, files, err := extract(t, bad)
		if err == nil && fmt.Sprint(files) == fmt.Sprint(content) {
			unnoticed++
			continue
		}

		if !errors.Is(err, ErrDamaged) {
			t.Fatalf("bit %d of byte %d flipped: %v", i%8, i, err)
		}
	}

	if unnoticed > len(whole)/40 {
		t.Errorf("%d of %d bits changed nothing", unnoticed, len(whole))
	}
}

func TestTrailingBytes(t *testing.T) {
	for name, tail := range map[string][]byte{"garbage": []byte("x"), "zeros": make([]byte, 512), "another gzip": written(t)} {
		_, _, err := extract(t, append(written(t), tail...))
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// entry is one entry of a tarball made by hand.
type entry struct {
	tar.Header
	data string
}

func file(name string, data string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, data}
}

func pack(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	zip := gzip.NewWriter(&buf)
	tw := tar.NewWriter(zip)
	for _, e := range entries {
		if e.Size == 0 {
			e.Size = int64(len(e.data))
		}

		must(t, tw.WriteHeader(&e.Header))
		_, err := tw.Write([]byte(e.data))
		must(t, err)
	}

	must(t, tw.Close())
	must(t, zip.Close())
	return buf.Bytes()
}

// The manifest of our own tarball, changed by one who has the key.
func lie(t testing.TB, change func(*Manifest)) []byte {
	t.Helper()
	m := newManifest()
	key := bundletest.Key(t)
	must(t, Write(t.Context(), io.Discard, Content{Manifest: m, Pieces: pieces(fstest.MapFS{}), Key: key}))
	change(m)
	head, err := m.Encode()
	must(t, err)
	signature, err := Sign(key, head)
	must(t, err)
	nodes, err := encodeRaftNodes(members)
	must(t, err)
	entries := []entry{file(ManifestName, string(head)), file(SignatureName, string(signature)), file(raftNodesName, string(nodes))}
	if !m.signed() {
		entries = slices.Delete(entries, 1, 2)
	}

	for _, name := range names {
		entries = append(entries, file(name, content[name]))
	}

	return pack(t, entries...)
}

func TestHostile(t *testing.T) {
	nodes := "- nodeinfo: {ID: 1, Address: '10.0.0.1:8443', Role: 0}\n  name: one\n"
	good := []entry{file(raftNodesName, nodes), file("metadata1", one)}
	with := func(e entry) []byte { return pack(t, append(good[:2:2], e)...) }
	bomb := "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'k'; c++ {
		bomb += fmt.Sprintf("%c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", c-1), 10), ","))
	}

	for name, tarball := range map[string][]byte{
		"empty archive":           pack(t),
		"no member list":          pack(t, file("metadata1", one)),
		"symbolic link":           with(entry{tar.Header{Name: "metadata2", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}, ""}),
		"hard link":               with(entry{tar.Header{Name: "metadata2", Typeflag: tar.TypeLink, Linkname: "metadata1"}, ""}),
		"device":                  with(entry{tar.Header{Name: "metadata2", Typeflag: tar.TypeBlock}, ""}),
		"fifo":                    with(entry{tar.Header{Name: "metadata2", Typeflag: tar.TypeFifo}, ""}),
		"directory":               with(entry{tar.Header{Name: "metadata2", Typeflag: tar.TypeDir}, ""}),
		"absolute name":           with(file("/metadata2", "x")),
		"parent":                  with(file("../metadata2", "x")),
		"parent inside":           with(file("x/../../metadata2", "x")),
		"dot slash":               with(file("./metadata2", "x")),
		"sub-directory":           with(file("x/metadata2", "x")),
		"twice":                   with(file("metadata1", "y")),
		"long name":               with(file(strings.Repeat("x", 5000), "x")),
		"misread name":            with(file("7-9", "x")),
		"corrupt name":            with(file("corrupt-1-open-1", "x")),
		"temporary name":          with(file("tmp-metadata1", "x")),
		"no zero padding":         with(file("1-1", "x")),
		"unknown name":            with(file("README", "x")),
		"empty name":              with(file("", "x")),
		"bad member list":         pack(t, file(raftNodesName, "- 1\n- 2\n")),
		"empty member list":       pack(t, file(raftNodesName, "[]\n")),
		"unknown role":            pack(t, file(raftNodesName, strings.Replace(nodes, "Role: 0", "Role: 7", 1))),
		"bad address":             pack(t, file(raftNodesName, strings.Replace(nodes, "10.0.0.1:8443", "bogus", 1))),
		"SQL in an address":       pack(t, file(raftNodesName, strings.Replace(nodes, "'10.0.0.1:8443'", `"x'; DROP TABLE nodes; --:1"`, 1))),
		"YAML bomb":               pack(t, file(raftNodesName, bomb)),
		"large member list":       pack(t, file(raftNodesName, strings.Repeat("# x\n", 300000))),
		"manifest is a YAML bomb": pack(t, file(ManifestName, bomb)),
		"manifest not first":      pack(t, append(good[:2:2], file(ManifestName, "format: 1\n"))...),
		"future manifest":         lie(t, func(m *Manifest) { m.Format = manifestFormat + 1 }),
		"no run":                  lie(t, func(m *Manifest) { m.Run = "" }),
		"wrong sum":               lie(t, func(m *Manifest) { m.Files[1].SHA256 = strings.Repeat("0", 64) }),
		"wrong member list sum":   lie(t, func(m *Manifest) { m.Files[0].SHA256 = strings.Repeat("0", 64) }),
		"wrong size":              lie(t, func(m *Manifest) { m.Files[2].Size-- }),
		"negative size":           lie(t, func(m *Manifest) { m.Files[2].Size = -1 }),
		"missing file":            lie(t, func(m *Manifest) { m.Files = append(m.Files, File{"metadata2", 32, strings.Repeat("0", 64)}) }),
		"unlisted file":           lie(t, func(m *Manifest) { m.Files = m.Files[:len(m.Files)-1] }),
		"listed twice":            lie(t, func(m *Manifest) { m.Files = append(m.Files, m.Files[1]) }),
		"listed outside":          lie(t, func(m *Manifest) { m.Files[1].Name = "../x" }),
		"no certificate":          lie(t, func(m *Manifest) { m.Cluster.Certificate = "" }),
		"certificate that hides":  lie(t, func(m *Manifest) { m.Cluster.Certificate = "\x1b[8m" + strings.Repeat("0", 60) }),
		"sum that hides":          lie(t, func(m *Manifest) { m.Files[1].SHA256 = "\x1b[8m" + strings.Repeat("0", 60) }),
		"source that hides":       lie(t, func(m *Manifest) { m.Source.Name = "n1\x1b[8m" }),
		"source of two lines":     lie(t, func(m *Manifest) { m.Source.Name = "n1\nn2" }),
		"address that hides":      lie(t, func(m *Manifest) { m.Source.Address = "\u202e10.0.0.1:8443" }),
		"version that hides":      lie(t, func(m *Manifest) { m.Version = "\u009b8m" }),
		"member that hides": lie(t, func(m *Manifest) {
			m.Members = append(member.List{{ID: 9, Name: "n9\x1b[8m", Address: "a:1"}}, m.Members...)
		}),
		"no members":    lie(t, func(m *Manifest) { m.Members = nil }),
		"same id twice": lie(t, func(m *Manifest) { m.Members = append(m.Members, m.Members[0]) }),
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := extract(t, tarball)
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// A tarball of LXD's own: no manifest, a stale dump and the lock file in it.
func TestLXDsOwn(t *testing.T) {
	nodes, err := encodeRaftNodes(members)
	must(t, err)
	x, files, err := extract(t, pack(t,
		entry{tar.Header{Name: ".", Typeflag: tar.TypeDir}, ""},
		file("metadata1", one), file("db.bin", "d"), file("db.bin-wal", "w"), file("dqlite-lock", ""), file(raftNodesName, string(nodes))))
	must(t, err)
	if x.Manifest != nil || !x.Members.Same(members) || fmt.Sprint(files) != "map[metadata1:"+one+"]" {
		t.Errorf("got %+v %v", x, files)
	}
}

// A tarball that announces more than the disk has is refused before anything is written.
func TestNoSpace(t *testing.T) {
	tarball := lie(t, func(m *Manifest) { m.Files[2].Size = 1 << 39; m.Files[1].Size = 1 << 39 })
	_, files, err := extract(t, tarball)
	var noSpace *NoSpaceError
	if !errors.As(err, &noSpace) || noSpace.Need < 1<<40 || len(files) > 0 {
		t.Errorf("error %v, files %v", err, files)
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	root, err := os.OpenRoot(t.TempDir())
	must(t, err)
	defer root.Close()
	_, err = Extract(ctx, bytes.NewReader(written(t)), root, ExtractOptions{})
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrDamaged) {
		t.Errorf("error %v", err)
	}
}

func FuzzExtract(f *testing.F) {
	f.Add(written(f))
	f.Add(formatOneTarball(f))
	certificate := certificateOf(f, bundletest.Key(f))
	f.Add(microclusterTarball(f))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, microcluster := range []bool{false, true} {
			root, err := os.OpenRoot(t.TempDir())
			must(t, err)
			defer root.Close()
			times := 0
			judge := func(o *Origin) error {
				times++
				if o.Signed() && o.Verify(certificate) == nil {
					t.Error("a key that never signed anything has signed this")
				}

				return nil
			}
			_, err = Extract(t.Context(), bytes.NewReader(data), root, ExtractOptions{Judge: judge, Microcluster: microcluster})
			if err == nil && times != 1 {
				t.Errorf("taken, and judged %d times", times)
			}
		}
	})
}
