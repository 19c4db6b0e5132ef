// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// tarFile is a file of a tarball.
type tarFile struct {
	name string
	data []byte
}

func readTarball(t testing.TB, tarball string) []tarFile {
	t.Helper()
	f, err := os.Open(tarball)
	must(t, err)
	defer f.Close()
	zip, err := gzip.NewReader(f)
	must(t, err)
	tr := tar.NewReader(zip)
	var files []tarFile
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}

		must(t, err)
		if h.Typeflag == tar.TypeReg {
			data, err := io.ReadAll(tr)
			must(t, err)
			files = append(files, tarFile{h.Name, data})
		}
	}
}

func writeTarball(t testing.TB, files []tarFile) string {
	t.Helper()
	var buf bytes.Buffer
	zip := gzip.NewWriter(&buf)
	tw := tar.NewWriter(zip)
	for _, f := range files {
		must(t, tw.WriteHeader(&tar.Header{Name: f.name, Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(f.data))}))
		_, err := tw.Write(f.data)
		must(t, err)
	}

	must(t, tw.Close())
	must(t, zip.Close())
	path := filepath.Join(t.TempDir(), "changed.tar.gz")
	must(t, os.WriteFile(path, buf.Bytes(), 0o600))
	return path
}

// content is a file's content; nil if there is none of that name.
func content(files []tarFile, name string) *[]byte {
	for i := range files {
		if files[i].name == name {
			return &files[i].data
		}
	}

	return nil
}

// trustStranger makes the owner of another key an administrator, in the schema of LXD 6.
const trustStranger = "INSERT INTO identities (auth_method, type, identifier, name, metadata) VALUES (1, 1, hex(randomblob(32)), 'stranger', '{}')"

// intrude is the attack that the issue was about: with nothing but a tarball, another transaction goes before its recovery entry, with
// its own index, which trusts one certificate more; the recovery entry moves up, and the manifest is made to agree with all of it.
func intrude(t testing.TB, tarball string) []tarFile {
	t.Helper()
	files := readTarball(t, tarball)
	dir := t.TempDir()
	for _, f := range files {
		must(t, os.WriteFile(filepath.Join(dir, f.name), f.data, 0o600))
	}

	log := openDir(t, dir)
	last := lastEntry(t, log)
	intruder := raftlog.Entry{Index: last.Index, Term: 2, Type: raftlog.CommandEntry, Data: transaction(t, log, trustStranger)}
	*content(files, raftlog.SegmentName(last.Index, last.Index)) = raftlog.AppendBatch(raftlog.SegmentHeader(), intruder)
	last.Index++
	files = append(files, tarFile{raftlog.SegmentName(last.Index, last.Index), raftlog.AppendBatch(raftlog.SegmentHeader(), last)})
	return agree(t, files, bundle.Position{Index: last.Index, Term: last.Term})
}

// lastEntry is the last entry of a log.
func lastEntry(t testing.TB, log *raftlog.Log) raftlog.Entry {
	t.Helper()
	for entry, err := range log.Entries(t.Context(), log.LastIndex) {
		must(t, err)
		entry.Data = bytes.Clone(entry.Data)
		return entry
	}

	t.Fatal("no entry")
	return raftlog.Entry{}
}

// agree makes the manifest name all files as they are, and the raft log's end.
func agree(t testing.TB, files []tarFile, after bundle.Position) []tarFile {
	t.Helper()
	head := content(files, bundle.ManifestName)
	var m bundle.Manifest
	must(t, yaml.Unmarshal(*head, &m))
	m.Files, m.Raft.After = nil, after
	for _, f := range files {
		if f.name != bundle.ManifestName && f.name != bundle.SignatureName {
			sum := sha256.Sum256(f.data)
			m.Files = append(m.Files, bundle.File{Name: f.name, Size: int64(len(f.data)), SHA256: hex.EncodeToString(sum[:])})
		}
	}

	var err error
	*head, err = m.Encode()
	must(t, err)
	return files
}

// transaction is the payload of an entry that does to a log's database what a statement does.
func transaction(t testing.TB, log *raftlog.Log, statement string) []byte {
	t.Helper()
	before, after := filepath.Join(t.TempDir(), "before"), filepath.Join(t.TempDir(), "after")
	must(t, globaldb.Replay(t.Context(), log, before, 0))
	old, err := os.ReadFile(before)
	must(t, err)
	must(t, os.WriteFile(after, old, 0o600))
	execSQL(t, after, statement)
	changed, err := os.ReadFile(after)
	must(t, err)
	copy(changed[18:20], old[18:20]) // journal mode
	const size = 4096
	var numbers, pages []byte
	n := 0
	for at := 0; at < len(changed); at += size {
		if at >= len(old) || !bytes.Equal(old[at:at+size], changed[at:at+size]) {
			numbers = binary.LittleEndian.AppendUint64(numbers, uint64(at/size+1))
			pages = append(pages, changed[at:at+size]...)
			n++
		}
	}

	data := []byte{1, byte(raftlog.Frames), 0, 0, 0, 0, 0, 0}
	data = append(data, "db.bin\x00\x00"...)
	data = append(data, make([]byte, 8)...) // transaction
	data = binary.LittleEndian.AppendUint32(data, uint32(len(changed)/size))
	data = append(data, 1, 0, 0, 0)
	data = binary.LittleEndian.AppendUint32(data, uint32(n))
	data = binary.LittleEndian.AppendUint16(data, size)
	data = append(data, 0, 0)
	return append(append(data, numbers...), pages...)
}
