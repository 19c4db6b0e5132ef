// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
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
				if q.header.Typeflag == tar.TypeReg && q.header.Name != bundle.ManifestName {
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

// Tarballs made to do harm, given to the real program on a real member: one error, nothing changed, nothing left, and never
// more than 64 MiB of memory.
func TestHostileTarballs(t *testing.T) {
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 8*time.Minute)
	m := c.Member(2)
	must(t, c.Member(1).CreateProfile(ctx, "kept"))
	must(t, c.MakeSnapshot(ctx))
	c.KillAll()
	must(t, c.Member(1).EditReplace(ctx, ":8443", ":9393"))
	good := export(t, c.Member(1))

	try := func(name string, status int, files []packed) {
		t.Run(name, func(t *testing.T) {
			check := unchanged(t, m.Dir())
			r, memory := limited(t, m, "global-db-import", "--yes", pack(t, files))
			r.want(t, status)
			if memory > maxMemory {
				t.Errorf("%d KiB of memory", memory)
			}

			check()
		})
	}

	for _, p := range unpack(t, good)[1:] {
		name := p.header.Name
		change := func(do func([]byte) []byte) []packed {
			files := unpack(t, good)
			for i := range files {
				if files[i].header.Name == name {
					files[i].data = do(bytes.Clone(files[i].data))
				}
			}

			return files
		}
		flip := func(data []byte) []byte { data[len(data)*2/3] ^= 0x10; return data }
		try("flipped bit in "+name, 4, change(flip))
		if !strings.Contains(name, ".yaml") && !strings.HasPrefix(name, "metadata") {
			try("flipped bit behind a believable manifest in "+name, 4, believable(t, change(flip)))
			try("cut short behind a believable manifest: "+name, 4, believable(t, change(func(d []byte) []byte { return d[:len(d)-8] })))
		}

		missing := unpack(t, good)
		for i := range missing {
			if missing[i].header.Name == name {
				missing = append(missing[:i], missing[i+1:]...)
				break
			}
		}

		try("missing "+name, 4, missing)
	}

	add := func(p packed) []packed { return append(unpack(t, good), p) }
	file := func(name string, data []byte) packed {
		return packed{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600}, data}
	}
	segment := binary.LittleEndian.AppendUint64(nil, 1)
	for name, p := range map[string]packed{
		"a segment too many":     file("0000000000099999-0000000000099999", segment),
		"overlapping segment":    file("0000000000000001-0000000000099999", segment),
		"a name that is misread": file("7-9", segment),
		"outside":                file("../outside", nil),
		"absolute":               file("/outside", nil),
		"symbolic link":          {tar.Header{Name: "open-1", Typeflag: tar.TypeSymlink, Linkname: "/etc/shadow"}, nil},
		"hard link":              {tar.Header{Name: "open-1", Typeflag: tar.TypeLink, Linkname: "metadata1"}, nil},
		"fifo":                   {tar.Header{Name: "open-1", Typeflag: tar.TypeFifo}, nil},
	} {
		try(name, 4, add(p))
		if p.header.Typeflag == tar.TypeReg {
			try(name+" behind a believable manifest", 4, believable(t, add(p)))
		}
	}

	for _, name := range []string{"open-1", "0000000000000001-0000000000000001", "snapshot-1-1-1", "db.bin"} {
		t.Run("two GiB of zeros as "+name, func(t *testing.T) {
			check := unchanged(t, m.Dir())
			r, memory := limited(t, m, "global-db-import", "--yes", bomb(t, name, 2<<30))
			r.want(t, 4)
			if memory > maxMemory {
				t.Errorf("%d KiB of memory", memory)
			}

			check()
		})
	}

	t.Run("many entries", func(t *testing.T) {
		var files []packed
		for i := range 150_000 {
			files = append(files, file(fmt.Sprintf("%016d-%016d", i+1, i+1), nil))
		}

		try("without a manifest", 4, files)
	})
	if found, _ := filepath.Glob(filepath.Join(m.Dir(), "..", "outside")); len(found) > 0 {
		t.Errorf("written outside: %v", found)
	}

	importOn(t, good, m)
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
