// SPDX-License-Identifier: AGPL-3.0-only

package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

var microclusterList = member.List{
	{ID: 3297041220608546238, Name: "m1", Address: "10.0.0.1:9001", Role: raftlog.Voter},
	{ID: 10259569891570830186, Name: "m2", Address: "10.0.0.2:9001", Role: raftlog.Spare},
}

// microclusterTarball is one as WriteMicrocluster packs it.
func microclusterTarball(t testing.TB) []byte {
	t.Helper()
	var buf bytes.Buffer
	m := raftlog.Metadata{Version: 1, Term: 7}
	files, err := WriteMicrocluster(t.Context(), &buf, Microcluster{Members: microclusterList, Created: time.Unix(1000, 0),
		Pieces: []Piece{BytesPiece(m.FileName(), m.Encode()), BytesPiece("0000000000000001-0000000000000001", raftlog.SegmentHeader())}})
	must(t, err)
	if files != 5 {
		t.Errorf("%d files, want cluster.yaml, dqlite-lock, recovery.yaml and two of raft's", files)
	}

	return buf.Bytes()
}

func TestMicroclusterTarball(t *testing.T) {
	root, err := os.OpenRoot(t.TempDir())
	must(t, err)
	got, err := Extract(t.Context(), bytes.NewReader(microclusterTarball(t)), root, ExtractOptions{Microcluster: true})
	must(t, err)
	if !got.Microcluster || got.Manifest != nil || !slices.Equal(got.Members, microclusterList) {
		t.Errorf("%+v", got)
	}

	entries, err := os.ReadDir(root.Name())
	must(t, err)
	if len(entries) != 2 {
		t.Errorf("%d files were unpacked, want the two of raft's", len(entries))
	}

	_, err = Extract(t.Context(), bytes.NewReader(microclusterTarball(t)), root, ExtractOptions{})
	if !errors.Is(err, ErrMicrocluster) {
		t.Errorf("%v, want %v", err, ErrMicrocluster)
	}
}

// A list of members is one in whatever place it is, and nothing else is taken for one.
func TestMicroclusterTarballWrong(t *testing.T) {
	const (
		members = "- {id: 1, name: m1, address: \"a:1\", role: voter}\n"
		cluster = "- {ID: 1, Address: \"a:1\", Role: 0}\n"
	)

	for name, test := range map[string]struct {
		files []string // name, content
		want  string
	}{
		"its own order":       {[]string{"cluster.yaml", cluster, "dqlite-lock", "", "recovery.yaml", members}, ""},
		"recovery.yaml first": {[]string{"recovery.yaml", members, "cluster.yaml", cluster}, ""},
		"no list of members":  {[]string{"cluster.yaml", cluster}, "no recovery.yaml in it"},
		"no voter": {[]string{"cluster.yaml", cluster, "recovery.yaml", strings.ReplaceAll(members, "voter", "spare")},
			"no member has the role"},
		"a manifest beside it": {[]string{"cluster.yaml", cluster, "recovery.yaml", "format: 2\n"}, "it is not the first file"},
		"a broken list":        {[]string{"cluster.yaml", "x", "recovery.yaml", members}, "cannot unmarshal"},
		"info.yaml":            {[]string{"cluster.yaml", cluster, "recovery.yaml", members, "info.yaml", cluster}, "does not belong into a recovery tarball"},
		"two of them":          {[]string{"recovery.yaml", members, "recovery.yaml", members}, "it is there twice"},
		"LXD's list as well":   {[]string{"recovery.yaml", members, "raft_nodes.yaml", "x"}, "raft_nodes.yaml"},
	} {
		var buf bytes.Buffer
		zip := gzip.NewWriter(&buf)
		tw := tar.NewWriter(zip)
		for i := 0; i < len(test.files); i += 2 {
			must(t, tw.WriteHeader(&tar.Header{Name: test.files[i], Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(test.files[i+1]))}))
			_, err := tw.Write([]byte(test.files[i+1]))
			must(t, err)
		}

		must(t, tw.Close())
		must(t, zip.Close())
		root, err := os.OpenRoot(t.TempDir())
		must(t, err)
		_, err = Extract(t.Context(), &buf, root, ExtractOptions{Microcluster: true})
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// A backup of microcluster's has raft's files in database itself.
func TestExtractMicroclusterBackup(t *testing.T) {
	root, err := os.OpenRoot(t.TempDir())
	must(t, err)
	must(t, root.Mkdir("global", 0o700))
	tarball := packedBackup(t, "database/", "database/metadata1", "database/info.yaml", "database/server.key", "database/open-1")
	is, err := ExtractBackup(t.Context(), bytes.NewReader(tarball), root, nil)
	must(t, err)
	var names []string
	entries, err := os.ReadDir(root.Name() + "/global")
	must(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}

	if !is || !slices.Equal(names, []string{"info.yaml", "metadata1", "open-1"}) {
		t.Errorf("of microcluster: %v, %q", is, names)
	}
}
