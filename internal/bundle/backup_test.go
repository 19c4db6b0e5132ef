// SPDX-License-Identifier: AGPL-3.0-only

package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// packedBackup is a tarball with these entries, a directory where the name ends in a slash.
func packedBackup(t *testing.T, names ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	zip := gzip.NewWriter(&buf)
	tw := tar.NewWriter(zip)
	for _, name := range names {
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(name))}
		if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Size = tar.TypeDir, 0
		}

		must(t, tw.WriteHeader(h))
		if h.Size > 0 {
			_, err := tw.Write([]byte(name))
			must(t, err)
		}
	}

	must(t, tw.Close())
	must(t, zip.Close())
	return buf.Bytes()
}

func TestIsBackup(t *testing.T) {
	for _, test := range []struct {
		names []string
		want  bool
	}{
		{[]string{"database/", "database/local.db"}, true},
		{[]string{"./database/"}, true},
		{[]string{"database"}, false}, // a file
		{[]string{"database/local.db", "database/"}, false},
		{[]string{"./", "recovery.yaml"}, false},
	} {
		is, err := IsBackup(t.Context(), bytes.NewReader(packedBackup(t, test.names...)))
		if err != nil || is != test.want {
			t.Errorf("%q is a backup: %v, %v", test.names, is, err)
		}
	}

	for _, data := range [][]byte{nil, []byte("no gzip at all"), packedBackup(t)[:20]} {
		_, err := IsBackup(t.Context(), bytes.NewReader(data))
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%q: %v", data, err)
		}
	}
}

// Only the raft files and the node database are unpacked, and nothing outside the directory.
func TestExtractBackup(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "in")
	must(t, os.MkdirAll(filepath.Join(dir, "global"), 0o700))
	root, err := os.OpenRoot(dir)
	must(t, err)
	defer root.Close()
	tarball := packedBackup(t, "database/", "database/local.db", "database/local.db.bak", "database/global/", "database/global/metadata1",
		"database/global/0000000000000001-0000000000000009", "database/global/db.bin", "database/global/7-9", "database/global/deep/metadata1",
		"database/metadata1", "metadata2", "database/global/../../outside", "database/../local.db", "database/patch.global.sql")
	_, err = ExtractBackup(t.Context(), bytes.NewReader(tarball), root, nil)
	must(t, err)

	var got []string
	must(t, filepath.WalkDir(parent, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			name, _ := filepath.Rel(parent, path)
			content, readErr := os.ReadFile(path)
			must(t, readErr)
			if string(content) != "database/"+strings.TrimPrefix(name, "in/") {
				t.Errorf("%s has the content of %s", name, content)
			}

			got = append(got, name)
		}

		return err
	}))
	want := []string{"in/global/0000000000000001-0000000000000009", "in/global/metadata1", "in/local.db"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("unpacked %v, want %v", got, want)
	}

	_, err = ExtractBackup(t.Context(), bytes.NewReader(tarball), root, nil)
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("over what is there: %v", err)
	}

	_, err = ExtractBackup(t.Context(), bytes.NewReader(tarball[:len(tarball)/2]), root, nil)
	if err == nil {
		t.Error("half a tarball is enough")
	}
}

func TestNoSpaceErrorSays(t *testing.T) {
	err := &NoSpaceError{Need: 3 << 20, Free: 1<<20 + 1<<19}
	got := err.Error()
	if got != "not enough disk space: the database needs 3.0 MiB and only 1.5 MiB is free" {
		t.Error(got)
	}
}

func TestSize(t *testing.T) {
	n := Size([]Piece{BytesPiece("a", make([]byte, 3)), BytesPiece("b", nil), {Size: 1 << 40}})
	if n != 1<<40+3 || Size(nil) != 0 {
		t.Errorf("%d bytes, %d of nothing", n, Size(nil))
	}
}
