// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/retention"
)

// putTarball makes a tarball, a backup by what its manifest says, unless that is changed.
func putTarball(t testing.TB, dir, server string, at time.Time, change func(*bundle.Manifest)) string {
	t.Helper()
	m := &bundle.Manifest{Version: "test", Kind: bundle.KindBackup, Created: at, Source: bundle.Source{ID: 1, Name: server, Address: "10.0.0.1:8443"},
		Cluster: bundle.Cluster{Certificate: strings.Repeat("ab", 32)}, Backup: &bundle.Backup{Began: at, Proof: bundle.ProofHeartbeat},
		Members: member.List{{ID: 1, Name: server, Address: "10.0.0.1:8443", Role: raftlog.Voter}}}
	if change != nil {
		change(m)
	}

	var out bytes.Buffer
	must(t, bundle.Write(t.Context(), &out, bundle.Content{Manifest: m, Pieces: []bundle.Piece{bundle.BytesPiece("metadata1", make([]byte, 32))}}))
	name := scheduledFileName(server, at)
	must(t, os.WriteFile(filepath.Join(dir, name), out.Bytes(), 0o600))
	return name
}

// forget is Forget, and what is left in the directory.
func forget(t testing.TB, dir string, keep retention.Policy, dryRun bool) (*ForgetReport, []string) {
	t.Helper()
	r, err := Forget(t.Context(), ForgetOptions{Directory: dir, Keep: keep, DryRun: dryRun})
	must(t, err)
	return r, namesIn(t, dir)
}

// What no reason keeps is removed, for each member and each cluster by itself.
func TestForget(t *testing.T) {
	dir := t.TempDir()
	now := time.Now().UTC().Truncate(time.Second)
	var own []string
	for i := range 5 {
		own = append(own, putTarball(t, dir, "server1", now.Add(-time.Duration(i)*24*time.Hour), nil))
	}

	theirs := putTarball(t, dir, "server2", now.Add(-1000*time.Hour), nil)
	other := putTarball(t, dir, "server1", now.Add(-2000*time.Hour), func(m *bundle.Manifest) { m.Cluster.Certificate = strings.Repeat("aa", 32) })
	future := putTarball(t, dir, "server1", now.Add(1000*time.Hour), nil)
	before := namesIn(t, dir)
	dry, left := forget(t, dir, retention.Policy{Last: 1, Daily: 2}, true)
	if !slices.Equal(left, before) || dry.Removed != 3 || dry.Freed == 0 {
		t.Errorf("a dry run: %+v, left %q", dry, left)
	}

	r, left := forget(t, dir, retention.Policy{Last: 1, Daily: 2}, false)
	want := []string{own[0], own[1], theirs, other, future}
	slices.Sort(want)
	slices.Sort(left)
	if !slices.Equal(left, want) || r.Removed != 3 || r.Freed != dry.Freed {
		t.Errorf("left %q, want %q; %+v", left, want, r)
	}

	reasons := map[string]string{}
	for _, f := range r.Backups {
		reasons[f.Name] = strings.Join(f.Reasons, " ")
		if f.Kept != (len(f.Reasons) > 0) || f.Kept != slices.Contains(want, f.Name) {
			t.Errorf("%+v", f)
		}
	}

	for name, why := range map[string]string{own[0]: "last daily", own[1]: "daily", own[2]: "", theirs: "last daily", other: "last daily", future: "future"} {
		if reasons[name] != why {
			t.Errorf("%s is kept for %q, want %q", name, reasons[name], why)
		}
	}

	_, err := Forget(t.Context(), ForgetOptions{Directory: dir})
	if err == nil || len(namesIn(t, dir)) != len(want) {
		t.Errorf("no policy: %v, left %q", err, namesIn(t, dir))
	}
}

// Whatever is no backup of ours is left alone, by name and by content.
func TestForgetOthers(t *testing.T) {
	dir := t.TempDir()
	now := time.Now().UTC().Truncate(time.Second)
	newest := putTarball(t, dir, "server1", now, nil)
	old := func(i int) time.Time { return now.Add(-time.Duration(i) * time.Hour) }
	gone := putTarball(t, dir, "server1", old(1), nil)
	copied := mustRead(t, filepath.Join(dir, gone))
	recovery := putTarball(t, dir, "server1", old(2), func(m *bundle.Manifest) { m.Kind, m.Backup = "", nil })
	names := map[string]string{recovery: "recovery tarball"}
	for i, content := range [][]byte{nil, []byte("text"), copied[:40]} {
		name := scheduledFileName("server1", old(3+i))
		must(t, os.WriteFile(filepath.Join(dir, name), content, 0o600))
		names[name] = "not a whole recovery tarball"
	}

	special := func(i int, make func(path string) error) {
		name := scheduledFileName("server1", old(i))
		must(t, make(filepath.Join(dir, name)))
		names[name] = "no regular file"
	}
	special(10, func(path string) error { return os.Mkdir(path, 0o700) })
	special(11, func(path string) error { return unix.Mkfifo(path, 0o600) })
	special(12, func(path string) error { return os.Symlink(newest, path) })
	for _, name := range []string{"lxd.tar.gz", "lxd-server1-20261127T000000Z.tar", "lxd-server1-20261127.tar.gz", "x-" + gone, gone + ".asc", backupMarkName} {
		must(t, os.WriteFile(filepath.Join(dir, name), copied, 0o600))
	}

	must(t, os.Mkdir(filepath.Join(dir, backupArchiveDir), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, backupArchiveDir, gone), copied, 0o600))
	want := slices.DeleteFunc(namesIn(t, dir), func(name string) bool { return name == gone })
	r, left := forget(t, dir, retention.Policy{Last: 1}, false)
	if !slices.Equal(left, want) || r.Removed != 1 || !exists(filepath.Join(dir, backupArchiveDir, gone)) {
		t.Errorf("left %q, want %q", left, want)
	}

	if len(r.Others) != len(names) {
		t.Errorf("named are %q, want %q", r.Others, names)
	}

	for name, why := range names {
		if !strings.Contains(r.Others[name], why) {
			t.Errorf("%s: %q, want %q", name, r.Others[name], why)
		}
	}
}

// A file that has got the name of a backup since that was looked at is left alone.
func TestForgetReplaced(t *testing.T) {
	dir := t.TempDir()
	now := time.Now().UTC()
	putTarball(t, dir, "server1", now, nil)
	name := putTarball(t, dir, "server1", now.Add(-time.Hour), nil)
	root, err := os.OpenRoot(dir)
	must(t, err)
	defer root.Close()
	r := &ForgetReport{Directory: dir, Others: map[string]string{}}
	must(t, r.find(t.Context(), root))
	r.apply(retention.Policy{Last: 1}, now)
	must(t, os.WriteFile(filepath.Join(dir, "other"), []byte("kept"), 0o600))
	must(t, os.Rename(filepath.Join(dir, "other"), filepath.Join(dir, name)))
	err = r.remove(t.Context(), root)
	if err == nil || string(mustRead(t, filepath.Join(dir, name))) != "kept" {
		t.Errorf("%v", err)
	}
}
