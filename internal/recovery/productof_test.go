// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/pierrec/lz4/v4"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// What is in a directory says whose it is, wherever a database of it lies.
func TestProductOf(t *testing.T) {
	member := raftlogtest.Application(t, "incus-6.0.4-member")
	database := filepath.Join(member, databaseName)
	alone := filepath.Join(t.TempDir(), "taken-away")
	must(t, os.CopyFS(alone, os.DirFS(database)))
	beside := filepath.Join(alone, "lxd-recover-scratch-1") // as /tmp/local.db would lie beside a copy of raft's files
	incus, lxd := t.TempDir(), t.TempDir()
	must(t, os.Mkdir(filepath.Join(incus, "guestapi"), 0o700))
	must(t, os.Mkdir(filepath.Join(lxd, "devlxd"), 0o700))
	for _, test := range []struct {
		name, global string
		want         *product.Product
	}{
		{"a member of Incus", filepath.Join(database, globalName), product.Incus},
		{"its database directory alone, by local.db", filepath.Join(alone, globalName), product.Incus},
		{"a kept database", filepath.Join(incus, "database.before-import-20261127T010203Z", globalName), product.Incus},
		{"a staged one", filepath.Join(incus, stagingName, globalName), product.Incus},
		{"the copy of a run over the cluster", filepath.Join(incus, runCopyName, databaseName, globalName), product.Incus},
		{"an LXD", filepath.Join(lxd, databaseName, globalName), product.LXD},
		{"a copy of raft's files", beside, product.LXD},
		{"nothing that tells", filepath.Join(t.TempDir(), databaseName, globalName), product.LXD},
	} {
		if got := productOf(t.Context(), test.global); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got.Name, test.want.Name)
		}
	}
}

// An Incus that was an LXD has that one's certificates: nothing but the tarball says that it is another product's.
func TestOtherProductsTarball(t *testing.T) {
	incus, lxd := t.TempDir(), t.TempDir()
	must(t, os.Mkdir(filepath.Join(incus, "guestapi"), 0o700))
	must(t, os.Mkdir(filepath.Join(lxd, "devlxd"), 0o700))
	ofIncus, ofLXD := &bundle.Manifest{Cluster: bundle.Cluster{Product: "Incus"}}, &bundle.Manifest{}
	for _, test := range []struct {
		dir      string
		manifest *bundle.Manifest
		refused  bool
	}{
		{incus, ofIncus, false}, {lxd, ofLXD, false}, {lxd, nil, false}, // LXD's own has no manifest
		{incus, ofLXD, true}, {lxd, ofIncus, true}, {incus, nil, true},
	} {
		err := (directory{path: test.dir}).checkProduct(test.manifest)
		if errors.Is(err, ErrWrongCluster) != test.refused {
			t.Errorf("%s, %+v: %v", product.Of(test.dir).Name, test.manifest, err)
		}
	}
}

// A raw snapshot is packed as it was verified, or not at all.
func TestFramed(t *testing.T) {
	raw := bytes.Repeat([]byte("a page of a database, "), 20000)
	piece := bundle.BytesPiece("snapshot-1-2-3", raw)
	packed, err := framed(t.Context(), piece)
	must(t, err)
	for range 2 { // it is read for its copy that libdqlite opens, and for the tarball
		f, err := packed.Open()
		must(t, err)
		data, err := io.ReadAll(f)
		must(t, err)
		content, err := io.ReadAll(lz4.NewReader(bytes.NewReader(data)))
		must(t, err)
		if !bytes.Equal(content, raw) || int64(len(data)) != packed.Size || bundle.BytesPiece("", data).SHA256 != packed.SHA256 {
			t.Errorf("%d bytes of %d, packed %d of %d, sum %s", len(content), len(raw), len(data), packed.Size, packed.SHA256)
		}
	}

	changed := bundle.BytesPiece(piece.Name, append(bytes.Clone(raw[1:]), 'x'))
	changed.SHA256 = piece.SHA256
	_, err = framed(t.Context(), changed)
	if err == nil {
		t.Error("what has changed since it was verified was packed")
	}
}
