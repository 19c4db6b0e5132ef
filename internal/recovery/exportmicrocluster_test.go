// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/godqlite"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// editedState is a copy of the state directory on which microcluster's own edit was run.
func editedState(t *testing.T) string {
	t.Helper()
	state := filepath.Join(t.TempDir(), "state")
	must(t, os.CopyFS(state, os.DirFS(applicationDir(t, edited))))
	return state
}

// exportState exports it to the file that its daemon loads.
func exportState(t *testing.T, state string, change func(*ExportOptions)) (*ExportReport, error) {
	t.Helper()
	opts := ExportOptions{LXDDir: state, Output: MicroclusterTarball(state), NoVerify: true}
	if change != nil {
		change(&opts)
	}

	return ExportMicrocluster(t.Context(), opts)
}

// packed are the files of a gzip'd tar.
func packed(t *testing.T, tarball string) map[string]string {
	t.Helper()
	data, err := os.ReadFile(tarball)
	must(t, err)
	zip, err := gzip.NewReader(bytes.NewReader(data))
	must(t, err)
	files := map[string]string{}
	for archive := tar.NewReader(zip); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files
		}

		must(t, err)
		content, err := io.ReadAll(archive)
		must(t, err)
		files[h.Name] = string(content)
	}
}

func TestExportMicrocluster(t *testing.T) {
	state := editedState(t)
	own := packed(t, MicroclusterTarball(state))
	r, err := exportState(t, state, nil)
	must(t, err)
	made := packed(t, MicroclusterTarball(state))
	if r.Source.Name != "m1" || len(r.Members) != 3 || r.Raft.Index != 20 || r.Raft.Term < termStep || len(r.Warnings) > 0 {
		t.Errorf("%+v", r)
	}

	// What its own tarball has is there as it was, but for the last entry and the metadata.
	const fence = "0000000000000020-0000000000000020"
	for name, content := range own {
		switch name {
		case fence, "metadata1":
			if made[name] == content || len(made[name]) == 0 {
				t.Errorf("%s was not changed", name)
			}
		default:
			if made[name] != content {
				t.Errorf("%s was changed: %q, want %q", name, made[name], content)
			}
		}
	}

	if len(made) != len(own)+1 || made["metadata2"] == "" {
		t.Errorf("%d files, want those of its own tarball and metadata2", len(made))
	}

	inside, err := Inspect(t.Context(), MicroclusterTarball(state), Progress{})
	must(t, err)
	if inside.Fenced == nil || !*inside.Fenced || !inside.Healthy || inside.Raft.MetadataTerm != r.Raft.Term || inside.Raft.LastTerm != r.Raft.Term {
		t.Errorf("%s, %+v", found(inside), inside.Raft)
	}

	// Once more: the fence is a later one, as the first one may have been used.
	again, err := exportState(t, state, nil)
	must(t, err)
	if again.Raft.Term < r.Raft.Term+termStep {
		t.Errorf("term %d after %d", again.Raft.Term, r.Raft.Term)
	}

	// Elsewhere it is of no use to this member.
	other := filepath.Join(t.TempDir(), "x.tar.gz")
	r, err = exportState(t, state, func(o *ExportOptions) { o.Output = other })
	must(t, err)
	if len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "the daemon here loads "+MicroclusterTarball(state)+" only") {
		t.Errorf("%q", r.Warnings)
	}

	// A fence by a snapshot.
	_, err = exportState(t, state, func(o *ExportOptions) { o.SnapshotFence = true })
	must(t, err)
	inside, err = Inspect(t.Context(), MicroclusterTarball(state), Progress{})
	must(t, err)
	if inside.Fenced == nil || !*inside.Fenced || !inside.Healthy || inside.Raft.SnapshotIndex == 0 || inside.Data.Rows != 12 {
		t.Errorf("%s, %+v", found(inside), inside.Raft)
	}
}

// A list that was not edited is taken if that is what is wanted. The recovery entry then comes after the last one.
func TestExportMicroclusterUnedited(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	must(t, os.CopyFS(state, os.DirFS(applicationDir(t, stopped+"m2"))))
	r, err := exportState(t, state, func(o *ExportOptions) { o.Unedited = true })
	must(t, err)
	inside, err := Inspect(t.Context(), MicroclusterTarball(state), Progress{})
	must(t, err)
	if r.Source.Name != "m2" || r.Edited || r.Raft.Index != 20 || inside.Fenced == nil || !*inside.Fenced || inside.Raft.LastIndex != 20 ||
		len(inside.Members) != 3 {
		t.Errorf("%+v, %s", r, found(inside))
	}
}

// A tarball that is damaged on its way is never one that is whole and fenced.
func TestMicroclusterTarballDamaged(t *testing.T) {
	state := editedState(t)
	_, err := exportState(t, state, nil)
	must(t, err)
	data, err := os.ReadFile(MicroclusterTarball(state))
	must(t, err)
	whole, damaged := packed(t, MicroclusterTarball(state)), filepath.Join(t.TempDir(), "recovery_db.tar.gz")
	for i := range 80 {
		changed := bytes.Clone(data)
		at := 10 + i*(len(data)-10)/80 // after gzip's header, which has a time
		changed[at] ^= 1 << (i % 8)
		if i%4 == 3 {
			changed = changed[:at]
		}

		must(t, os.WriteFile(damaged, changed, 0o600))
		_, err := Inspect(t.Context(), damaged, Progress{})
		switch { // some bits of what deflate writes say nothing
		case err == nil && !reflect.DeepEqual(packed(t, damaged), whole):
			t.Errorf("byte %d: nothing is found", at)
		case err != nil && !errors.Is(err, bundle.ErrDamaged):
			t.Errorf("byte %d: %v", at, err)
		}
	}
}

func TestExportMicroclusterRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		change func(t *testing.T, state string)
		opts   func(*ExportOptions)
		want   string
	}{
		"another tarball is there": {func(t *testing.T, state string) {
			must(t, os.WriteFile(MicroclusterTarball(state), []byte("x"), 0o600))
		}, nil, "exists already, and is not the one that the last edit here has made; --force"},
		"not edited": {func(t *testing.T, state string) {
			must(t, os.RemoveAll(state))
			must(t, os.CopyFS(state, os.DirFS(applicationDir(t, stopped+"m2"))))
		}, nil, "Run the application's own edit here first"},
		"info.yaml was not written": {func(t *testing.T, state string) {
			info := []byte("ID: 3297041220608546238\nAddress: 127.0.0.11:9001\nRole: 0\n")
			must(t, os.WriteFile(filepath.Join(state, "database", godqlite.InfoFile), info, 0o600))
		}, nil, "an edit was cut short"},
		"cluster.yaml was not written": {func(t *testing.T, state string) {
			data, err := os.ReadFile(filepath.Join(applicationDir(t, stopped+"m1"), "database", godqlite.ClusterFile))
			must(t, err)
			must(t, os.WriteFile(filepath.Join(state, "database", godqlite.ClusterFile), data, 0o600))
		}, nil, "an edit was cut short"},
		"nobody knows whose it is": {func(t *testing.T, state string) {
			must(t, os.Remove(filepath.Join(state, "database", godqlite.InfoFile)))
		}, nil, "whose database it is cannot be told"},
		"the loader was cut off": {func(t *testing.T, state string) {
			must(t, os.Mkdir(filepath.Join(state, godqlite.UnpackDir), 0o700))
		}, nil, "Move it away first"},
		"a flipped bit": {func(t *testing.T, state string) {
			path := filepath.Join(state, "database", "0000000000000002-0000000000000019")
			data, err := os.ReadFile(path)
			must(t, err)
			data[len(data)/2] ^= 1
			must(t, os.WriteFile(path, data, 0o600))
		}, nil, "Recover from another member, whose database is sound"},
		"a daemon answers": {func(t *testing.T, state string) {
			socket, err := net.Listen("unix", filepath.Join(state, godqlite.ControlSocket))
			must(t, err)
			t.Cleanup(func() { _ = socket.Close() })
		}, nil, "is running, as"},
		"a clock that is behind": {nil, func(o *ExportOptions) { o.TermAbove = 1 << 63 }, "no raft counts that far"},
		"into the database":      {nil, func(o *ExportOptions) { o.Output = filepath.Join(o.LXDDir, "database", "x.tar.gz") }, "would be in"},
		"no state directory":     {nil, func(o *ExportOptions) { o.LXDDir = applicationDir(t, "k8s-dqlite/k1") }, "is not the state directory"},
	} {
		t.Run(name, func(t *testing.T) {
			state := editedState(t)
			if test.change != nil {
				test.change(t, state)
			}

			before := contents(t, state)
			_, err := exportState(t, state, test.opts)
			wantError(t, err, test.want)
			if contents(t, state) != before {
				t.Error("the state directory was changed")
			}
		})
	}
}

// contents are the names and contents of all files in a directory.
func contents(t *testing.T, dir string) string {
	t.Helper()
	var all []string
	must(t, filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			data, err := os.ReadFile(path)
			all = append(all, path, string(data))
			return err
		}

		return err
	}))
	return strings.Join(all, "\n")
}

// What changes an LXD's directory leaves those of other applications alone, and says why.
func TestApplicationsAreNotChanged(t *testing.T) {
	for dir, want := range map[string]string{
		editedState(t): "daemon.yaml and truststore/ lie outside its database/",
		raftlogtest.Copy(t, applicationDir(t, "k8s-dqlite/k1")): "is the directory of another application of go-dqlite",
	} {
		before := contents(t, dir)
		for what, err := range map[string]error{
			"import":   errorOf(Import(t.Context(), ImportOptions{LXDDir: dir, Tarball: MicroclusterTarball(dir)})),
			"edit":     errorOf(Edit(t.Context(), EditOptions{LXDDir: dir})),
			"repair":   errorOf(Repair(t.Context(), RepairOptions{LXDDir: dir})),
			"rollback": errorOf(Rollback(t.Context(), RollbackOptions{LXDDir: dir})),
			"export":   errorOf(Export(t.Context(), ExportOptions{LXDDir: dir})),
			"status":   errorOf(Status(t.Context(), dir, Progress{})),
		} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", what, err, want)
			}
		}

		if contents(t, dir) != before {
			t.Errorf("%s was changed", dir)
		}
	}
}

// microcluster's tarball is none for LXD.
func TestMicroclusterTarballIsNotLXDs(t *testing.T) {
	state := editedState(t)
	for _, fenced := range []bool{false, true} {
		if fenced {
			_, err := exportState(t, state, nil)
			must(t, err)
		}

		data, err := os.ReadFile(MicroclusterTarball(state))
		must(t, err)
		root, err := os.OpenRoot(t.TempDir())
		must(t, err)
		_, err = bundle.Extract(t.Context(), bytes.NewReader(data), root, bundle.ExtractOptions{})
		if !errors.Is(err, bundle.ErrMicrocluster) {
			t.Errorf("fenced %v: %v", fenced, err)
		}
	}
}

// A log is fenced by what is in it, and not by its name.
func TestIsFenced(t *testing.T) {
	state := editedState(t)
	_, err := exportState(t, state, nil)
	must(t, err)
	for name, test := range map[string]struct {
		change func(files map[string][]byte)
		want   bool
	}{
		"as it is":          {func(map[string][]byte) {}, true},
		"a vote":            {withMetadata(func(m *raftlog.Metadata) { m.Vote = firstID }), false},
		"an earlier term":   {withMetadata(func(m *raftlog.Metadata) { m.Term = 3 }), false},
		"without its fence": {func(files map[string][]byte) { delete(files, "0000000000000020-0000000000000020") }, false},
	} {
		files := map[string][]byte{}
		for file, content := range packed(t, MicroclusterTarball(state)) {
			files[file] = []byte(content)
		}

		test.change(files)
		dir := t.TempDir()
		for _, file := range slices.Collect(maps.Keys(files)) {
			if bundle.IsRaftFile(file) {
				must(t, os.WriteFile(filepath.Join(dir, file), files[file], 0o600))
			}
		}

		log, err := raftlog.Open(t.Context(), os.DirFS(dir), raftlog.Options{})
		must(t, err)
		if isFenced(log) != test.want {
			t.Errorf("%s: fenced %v", name, !test.want)
		}
	}
}

// withMetadata changes both metadata files.
func withMetadata(change func(*raftlog.Metadata)) func(map[string][]byte) {
	return func(files map[string][]byte) {
		for _, name := range []string{"metadata1", "metadata2"} {
			m, err := raftlog.ParseMetadata(files[name])
			if err == nil {
				change(&m)
				files[name] = m.Encode()
			}
		}
	}
}
