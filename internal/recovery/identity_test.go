// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/bundle/bundletest"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/sealed"
)

// identityLab is node2, the only voter of a cluster whose keys are known, and a key for its identity.
type identityLab struct {
	backupLab
	lock *sealed.Lock
	key  *sealed.Key
}

func newIdentityLab(t testing.TB) identityLab {
	t.Helper()
	l := identityLab{backupLab: newBackupLab(t)}
	l.configure(t, raftlog.Spare, raftlog.Voter, raftlog.Spare)
	key := bundletest.Key(t)
	bundletest.WritePair(t, l.dir.path, "server", bundletest.Certificate(t, key, time.Now().Add(-time.Hour)), key)
	own, err := l.dir.serverCertificate()
	must(t, err)
	l.transact(t, "UPDATE identities SET identifier = '"+own+"' WHERE name = 'node2'")
	must(t, os.WriteFile(l.dir.join("server.ca"), []byte("a certificate authority"), 0o600))
	l.lock, l.key = newLock(t)
	return l
}

func newLock(t testing.TB) (*sealed.Lock, *sealed.Key) {
	t.Helper()
	identity, err := age.GenerateX25519Identity()
	must(t, err)
	lock, err := sealed.LockFor([]string{identity.Recipient().String()})
	must(t, err)
	file := filepath.Join(t.TempDir(), "key")
	must(t, os.WriteFile(file, []byte(identity.String()), 0o600))
	key, err := sealed.ReadKey(file)
	must(t, err)
	return lock, key
}

func (l identityLab) sealed(t testing.TB) string {
	t.Helper()
	r, err := l.backup(t, func(o *BackupOptions) { o.Identity = l.lock })
	must(t, err)
	if !r.Identity {
		t.Errorf("%+v", r)
	}

	return r.File
}

func (l identityLab) restore(t testing.TB, file string, into string, with func(*IdentityOptions)) (*IdentityReport, error) {
	t.Helper()
	opts := IdentityOptions{LXDDir: into, Backup: file, Key: l.key}
	if with != nil {
		with(&opts)
	}

	return RestoreIdentity(t.Context(), opts)
}

// wantIdentity wants a directory to have this member's identity, with LXD's modes, and nothing else.
func (l identityLab) wantIdentity(t testing.TB, dir string, besides ...string) {
	t.Helper()
	want := append([]string{databaseName}, besides...)
	for _, f := range identityFiles {
		if !exists(l.dir.join(f.name)) {
			continue
		}

		want = append(want, f.name)
		info, err := os.Lstat(filepath.Join(dir, f.name))
		must(t, err)
		if info.Mode() != f.mode {
			t.Errorf("%s has mode %v, want %v", f.name, info.Mode(), f.mode)
		}

		if !bytes.Equal(mustRead(t, l.dir.join(f.name)), mustRead(t, filepath.Join(dir, f.name))) {
			t.Errorf("%s has another content", f.name)
		}
	}

	slices.Sort(want)
	if got := namesIn(t, dir); !slices.Equal(got, want) {
		t.Errorf("there are %v, want %v", got, want)
	}

	if got := namesIn(t, filepath.Join(dir, databaseName)); !slices.Equal(got, []string{globalName, nodedb.File}) {
		t.Errorf("the database directory has %v", got)
	}

	if got := namesIn(t, filepath.Join(dir, databaseName, globalName)); !slices.Equal(got, []string{barName}) {
		t.Errorf("the raft directory has %v", got)
	}

	node, err := nodedb.Read(t.Context(), filepath.Join(dir, databaseName))
	must(t, err)
	if node.Self.Name != "node2" || node.Self.Address != addressOf(2) || len(node.Members) != 3 {
		t.Errorf("%+v", node)
	}
}

// All comes back on a new machine, and none of it can be read in the tarball.
func TestIdentityRoundTrip(t *testing.T) {
	l := newIdentityLab(t)
	before := namesAndContent(t, l.dir.path)
	file := l.sealed(t)
	if namesAndContent(t, l.dir.path) != before {
		t.Error("a backup has changed LXD's directory")
	}

	plain := unpacked(t, file)
	for _, name := range []string{serverKeyName, clusterKeyName, serverCertificateName} {
		lines := strings.Split(string(mustRead(t, l.dir.join(name))), "\n")
		if bytes.Contains(plain, []byte(lines[1])) || bytes.Contains(mustRead(t, file), []byte(lines[1])) {
			t.Errorf("%s can be read in the tarball", name)
		}
	}

	if bytes.Contains(plain, []byte("PRIVATE KEY")) || bytes.Contains(plain, []byte("CREATE TABLE raft_nodes")) {
		t.Error("some of it can be read in the tarball")
	}

	i, err := Inspect(t.Context(), file, Progress{})
	must(t, err)
	if i.Identity != "node2" || i.Kind != "backup" || !i.Healthy {
		t.Errorf("%+v", i)
	}

	into := filepath.Join(t.TempDir(), "lxd")
	r, err := l.restore(t, file, into, nil)
	must(t, err)
	if r.Member.Name != "node2" || r.Member.ID != 2 || r.Replaced != "" || r.Finished || len(r.Files) != 6 {
		t.Errorf("%+v", r)
	}

	l.wantIdentity(t, into)
	_, err = l.restore(t, file, into, func(o *IdentityOptions) { o.Replace = true })
	wantRefusal(t, err, Refusal{Code: "identity-exists", Reason: "of a member of a cluster"})
	l.wantIdentity(t, into)

	// The new machine makes a recovery tarball of the backup.
	lab := l.backupLab
	lab.dir = directory{into}
	lab.checkExport(t, file)
}

// unpacked is what a tarball holds, without compression.
func unpacked(t testing.TB, file string) []byte {
	t.Helper()
	zip, err := gzip.NewReader(bytes.NewReader(mustRead(t, file)))
	must(t, err)
	data, err := io.ReadAll(zip)
	must(t, err)
	return data
}

// rewritten is a tarball with another content of identity.age, and the manifest changed by a function.
func rewritten(t testing.TB, file string, identity func([]byte) []byte, manifest func([]byte) []byte) string {
	t.Helper()
	var out bytes.Buffer
	zip := gzip.NewWriter(&out)
	to, from := tar.NewWriter(zip), tar.NewReader(bytes.NewReader(unpacked(t, file)))
	for {
		h, err := from.Next()
		if errors.Is(err, io.EOF) {
			break
		}

		must(t, err)
		data, err := io.ReadAll(from)
		must(t, err)
		switch h.Name {
		case bundle.IdentityName:
			data = identity(data)
		case bundle.ManifestName:
			data = manifest(data)
		}

		h.Size = int64(len(data))
		must(t, to.WriteHeader(h))
		_, err = to.Write(data)
		must(t, err)
	}

	must(t, errors.Join(to.Close(), zip.Close()))
	changed := filepath.Join(t.TempDir(), "changed.tar.gz")
	must(t, os.WriteFile(changed, out.Bytes(), 0o600))
	return changed
}

func same(data []byte) []byte { return data }

// What was changed, or is for another key, puts nothing in place.
func TestIdentityRefused(t *testing.T) {
	l := newIdentityLab(t)
	file := l.sealed(t)
	without, err := l.backup(t, nil)
	must(t, err)
	_, other := newLock(t)
	flip := func(data []byte) []byte {
		data = bytes.Clone(data)
		data[len(data)/2] ^= 1
		return data
	}

	// Somebody without the cluster's key encrypts another identity, of the same size, and has the manifest name it.
	node := nodeContent(t, l.dir)
	files := []sealed.File{{Name: nodedb.File, Data: node}}
	for _, name := range []string{serverCertificateName, serverKeyName, clusterCertificateName, clusterKeyName} {
		files = append(files, sealed.File{Name: name, Data: mustRead(t, l.dir.join(name))})
	}

	theirs, err := l.lock.Seal(files)
	must(t, err)
	cut := func(data []byte) []byte { return data[:len(data)-1] }
	swapped := func(data []byte) []byte { return swapIdentity(t, data, theirs) }
	for name, c := range map[string]struct {
		file string
		key  *sealed.Key
		is   error
		want string
	}{
		"another key":       {file, other, sealed.ErrKey, "cannot be opened: the key does not fit"},
		"a changed byte":    {rewritten(t, file, flip, same), l.key, bundle.ErrDamaged, "identity.age: its checksum is not the one in the manifest"},
		"cut off":           {rewritten(t, file, cut, same), l.key, bundle.ErrDamaged, "announce this file with this size"},
		"another one in it": {rewritten(t, file, func([]byte) []byte { return theirs }, swapped), l.key, bundle.ErrSignature, "was changed after"},
	} {
		t.Run(name, func(t *testing.T) {
			into := filepath.Join(t.TempDir(), "lxd")
			_, err := l.restore(t, c.file, into, func(o *IdentityOptions) { o.Key = c.key })
			if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v, want %q", err, c.want)
			}

			if !gone(into) {
				t.Errorf("something was left: %v", namesIn(t, into))
			}
		})
	}

	into := filepath.Join(t.TempDir(), "lxd")
	_, err = l.restore(t, without.File, into, nil)
	wantRefusal(t, err, Refusal{Code: "no-identity", Reason: "has no identity of a member"})
	must(t, os.WriteFile(l.dir.join(serverKeyName), mustRead(t, l.dir.join(clusterKeyName)), 0o600))
	_, err = l.backup(t, func(o *BackupOptions) { o.Identity = l.lock })
	if err == nil || !strings.Contains(err.Error(), "server.crt and server.key do not belong together") {
		t.Errorf("keys that do not fit: %v", err)
	}

	must(t, os.Remove(l.dir.join(clusterKeyName)))
	_, err = l.backup(t, func(o *BackupOptions) { o.Identity, o.Unsigned = l.lock, true })
	if err == nil || !strings.Contains(err.Error(), clusterKeyName) {
		t.Errorf("without the cluster's key: %v", err)
	}
}

// nodeContent is a copy of a node database.
func nodeContent(t testing.TB, d directory) []byte {
	t.Helper()
	data, err := d.copyNode(t.Context(), false)
	must(t, err)
	return data
}

// swapIdentity has a manifest name another identity.
func swapIdentity(t testing.TB, data []byte, identity []byte) []byte {
	t.Helper()
	lines := strings.Split(string(data), "\n")
	at := slices.IndexFunc(lines, func(line string) bool { return strings.HasSuffix(line, "name: "+bundle.IdentityName) })
	if at < 0 {
		t.Fatalf("%s is not in\n%s", bundle.IdentityName, data)
	}

	piece := bundle.BytesPiece(bundle.IdentityName, identity)
	lines[at+1] = lines[at+1][:strings.Index(lines[at+1], ":")+1] + " " + strconv.FormatInt(piece.Size, 10)
	lines[at+2] = lines[at+2][:strings.Index(lines[at+2], ":")+1] + " " + piece.SHA256
	return []byte(strings.Join(lines, "\n"))
}
