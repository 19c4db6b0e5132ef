// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// maxMemory is what an import may take, whatever the tarball: KiB.
const maxMemory = 64 << 10

// packed is a file of a tarball.
type packed struct {
	header tar.Header
	data   []byte
}

func unpack(t testing.TB, tarball string) []packed {
	t.Helper()
	f, err := os.Open(tarball)
	must(t, err)
	defer f.Close()
	zip, err := gzip.NewReader(f)
	must(t, err)
	archive := tar.NewReader(zip)
	var all []packed
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return all
		}

		must(t, err)
		data, err := io.ReadAll(archive)
		must(t, err)
		all = append(all, packed{*h, data})
	}
}

func pack(t testing.TB, files []packed) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hostile.tar.gz")
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	zip, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	must(t, err)
	archive := tar.NewWriter(zip)
	for _, p := range files {
		p.header.Size = int64(len(p.data))
		must(t, archive.WriteHeader(&p.header))
		_, err = archive.Write(p.data)
		must(t, err)
	}

	must(t, archive.Close())
	must(t, zip.Close())
	return path
}

// believable makes the manifest agree with the files again: a liar who knows the format.
func believable(t testing.TB, files []packed) []packed {
	t.Helper()
	var m bundle.Manifest
	for i, p := range files {
		if p.header.Name == bundle.ManifestName {
			must(t, yaml.Unmarshal(p.data, &m))
			m.Files = nil
			for _, q := range files {
				if q.header.Typeflag == tar.TypeReg && q.header.Name != bundle.ManifestName && q.header.Name != bundle.SignatureName {
					sum := sha256.Sum256(q.data)
					m.Files = append(m.Files, bundle.File{Name: q.header.Name, Size: int64(len(q.data)), SHA256: hex.EncodeToString(sum[:])})
				}
			}

			data, err := m.Encode()
			must(t, err)
			files[i].data = data
		}
	}

	return files
}

// signed is believable, and signed anew: the liar has the cluster's key, too.
func (l hostileLab) signed(t testing.TB, files []packed) []packed {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(l.m.Dir(), "cluster.crt"), filepath.Join(l.m.Dir(), "cluster.key"))
	must(t, err)
	files = believable(t, files)
	head := slices.IndexFunc(files, func(p packed) bool { return p.header.Name == bundle.ManifestName })
	signature := slices.IndexFunc(files, func(p packed) bool { return p.header.Name == bundle.SignatureName })
	files[signature].data, err = bundle.Sign(pair.PrivateKey.(crypto.Signer), files[head].data)
	must(t, err)
	return files
}

// hostileLab is what the cases of TestHostileTarballs share: a member that is down, and a tarball that is made for it.
type hostileLab struct {
	m    *cluster.Member
	good string
}

// Tarballs made to do harm, given to the real program on a real member: one error, nothing changed, nothing left, and never
// more than 64 MiB of memory.
func TestHostileTarballs(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 8*time.Minute)
	must(t, c.Member(1).CreateProfile(ctx, "kept"))
	must(t, c.MakeSnapshot(ctx))
	c.KillAll()
	must(t, c.Member(1).EditReplace(ctx, ":8443", ":9393"))
	l := hostileLab{m: c.Member(2), good: export(t, c.Member(1))}
	for _, p := range unpack(t, l.good)[1:] {
		l.tryDamaged(t, p.header.Name)
	}

	for name, p := range foreignFiles() {
		l.tryForeign(t, name, p)
	}

	for _, name := range []string{"open-1", "0000000000000001-0000000000000001", "snapshot-1-1-1", "db.bin"} {
		t.Run("two GiB of zeros as "+name, func(t *testing.T) { l.wantHarmless(t, bomb(t, name, 2<<30)) })
	}

	t.Run("many entries", func(t *testing.T) {
		var files []packed
		for i := range 150_000 {
			files = append(files, regular(fmt.Sprintf("%016d-%016d", i+1, i+1), nil))
		}

		l.try(t, "without a manifest", files)
	})
	if found, _ := filepath.Glob(filepath.Join(l.m.Dir(), "..", "outside")); len(found) > 0 {
		t.Errorf("written outside: %v", found)
	}

	importOn(t, l.good, l.m)
}

// try is a subtest with a tarball of these files.
func (l hostileLab) try(t *testing.T, name string, files []packed) {
	t.Run(name, func(t *testing.T) { l.wantHarmless(t, pack(t, files)) })
}

func (l hostileLab) wantHarmless(t testing.TB, tarball string) {
	t.Helper()
	check := unchanged(t, l.m.Dir())
	r, memory := limited(t, l.m, "global-db-import", "--yes", "--unsigned", tarball)
	r.want(t, 4)
	if memory > maxMemory {
		t.Errorf("%d KiB of memory", memory)
	}

	check()
}

// tryDamaged tries the good tarball with one of its files damaged, cut short, or missing.
func (l hostileLab) tryDamaged(t *testing.T, name string) {
	flipBit := func(data []byte) []byte { data[len(data)*2/3] ^= 0x10; return data }
	cutShort := func(data []byte) []byte { return data[:len(data)-8] }
	l.try(t, "flipped bit in "+name, l.changed(t, name, flipBit))
	if !strings.HasPrefix(name, "recovery.") && name != "raft_nodes.yaml" && !strings.HasPrefix(name, "metadata") {
		l.try(t, "flipped bit behind a believable, signed manifest in "+name, l.signed(t, l.changed(t, name, flipBit)))
		l.try(t, "cut short behind a believable, signed manifest: "+name, l.signed(t, l.changed(t, name, cutShort)))
	}

	if name == "raft_nodes.yaml" {
		other := func(data []byte) []byte { return bytes.ReplaceAll(data, []byte(":9393"), []byte(":9394")) }
		l.try(t, "another address behind a believable manifest in "+name, believable(t, l.changed(t, name, other)))
	}

	l.try(t, "missing "+name, slices.DeleteFunc(unpack(t, l.good), func(p packed) bool { return p.header.Name == name }))
}

// changed is the good tarball with other content of one of its files.
func (l hostileLab) changed(t testing.TB, name string, change func([]byte) []byte) []packed {
	t.Helper()
	files := unpack(t, l.good)
	for i := range files {
		if files[i].header.Name == name {
			files[i].data = change(bytes.Clone(files[i].data))
		}
	}

	return files
}

// foreignFiles are files that no tarball may have, by what they are.
func foreignFiles() map[string]packed {
	segment := binary.LittleEndian.AppendUint64(nil, 1)
	return map[string]packed{
		"a segment too many":     regular("0000000000099999-0000000000099999", segment),
		"overlapping segment":    regular("0000000000000001-0000000000099999", segment),
		"a name that is misread": regular("7-9", segment),
		"outside":                regular("../outside", nil),
		"absolute":               regular("/outside", nil),
		"symbolic link":          {tar.Header{Name: "open-1", Typeflag: tar.TypeSymlink, Linkname: "/etc/shadow"}, nil},
		"hard link":              {tar.Header{Name: "open-1", Typeflag: tar.TypeLink, Linkname: "metadata1"}, nil},
		"fifo":                   {tar.Header{Name: "open-1", Typeflag: tar.TypeFifo}, nil},
	}
}

func regular(name string, data []byte) packed {
	return packed{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600}, data}
}

// tryForeign tries the good tarball with one more file.
func (l hostileLab) tryForeign(t *testing.T, name string, p packed) {
	with := func() []packed { return append(unpack(t, l.good), p) }
	l.try(t, name, with())
	if p.header.Typeflag == tar.TypeReg {
		l.try(t, name+" behind a believable, signed manifest", l.signed(t, with()))
	}
}

// bomb is a tarball of LXD's kind with a file of zeros.
func bomb(t testing.TB, name string, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bomb.tar.gz")
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	zip, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	must(t, err)
	archive := tar.NewWriter(zip)
	must(t, archive.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: size, Mode: 0o600}))
	zeros := make([]byte, 1<<20)
	for range size >> 20 {
		_, err = archive.Write(zeros)
		must(t, err)
	}

	must(t, archive.Close())
	must(t, zip.Close())
	return path
}

// limited runs lxd-recover on a member and returns the most memory it had resident, in KiB, as GNU time measures it: this
// process's own memory would count for a child of its own.
func limited(t testing.TB, m *cluster.Member, args ...string) (result, int) {
	t.Helper()
	report := filepath.Join(t.TempDir(), "time")
	r := run(t, m.Command(t.Context(), "/usr/bin/time", append([]string{"-o", report, "-f", "%M", tool}, args...)...))
	data, err := os.ReadFile(report)
	must(t, err)
	lines := strings.Fields(string(data)) // a line about the exit status may come first
	memory, err := strconv.Atoi(lines[len(lines)-1])
	must(t, err)
	return r, memory
}
