// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/bundle/bundletest"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// backupLab is node2 in a cluster whose key is known.
type backupLab struct{ stateLab }

func newBackupLab(t testing.TB) backupLab {
	t.Helper()
	l := backupLab{newStateLab(t)}
	key := bundletest.Key(t)
	bundletest.WritePair(t, l.dir.path, "cluster", bundletest.Certificate(t, key, time.Now().Add(-time.Hour)), key)
	return l
}

func (l backupLab) backup(t testing.TB, with func(*BackupOptions)) (*BackupReport, error) {
	t.Helper()
	opts := BackupOptions{LXDDir: l.dir.path, Output: filepath.Join(t.TempDir(), "backup.tar.gz"), Version: "test", Wait: 10 * time.Second, NoVerify: true}
	if with != nil {
		with(&opts)
	}

	return Backup(t.Context(), opts)
}

// heartbeat has the leader write that it has heard from node1 at a time.
func (l backupLab) heartbeat(t testing.TB, at time.Time) uint64 {
	t.Helper()
	return l.transact(t, fmt.Sprintf("UPDATE nodes SET heartbeat = '%s' WHERE id = 1", at.UTC().Format(time.RFC3339Nano)))
}

// prove looks once for what proves a backup that began at a time. The log's end counts from the beginning.
func (l backupLab) prove(t *testing.T, began time.Time, nonce string) (bool, *BackupReport) {
	t.Helper()
	b := &backup{dir: l.dir, report: &BackupReport{}, nonce: nonce}
	v, err := b.look(t.Context(), nil)
	must(t, err)
	defer v.held.Close()

	p := &prover{backup: b, begun: true, from: 1, later: began}
	found, err := p.look(t.Context(), v)
	must(t, err)
	return found, b.report
}

// A transaction is proven by a later one of the same term, and made after the beginning if a heartbeat says so, or the nonce is in it.
func TestBackupProof(t *testing.T) {
	l := newBackupLab(t)
	began := time.Now()
	l.heartbeat(t, began.Add(-time.Second))
	l.heartbeat(t, began.Add(-time.Second/2))
	found, r := l.prove(t, began, "")
	if found {
		t.Errorf("no heartbeat is later, and this proves it: %+v", r)
	}

	later := l.heartbeat(t, began.Add(time.Second))
	found, r = l.prove(t, began, "")
	if found {
		t.Errorf("nothing proves the last transaction to be committed, and this is taken: %+v", r)
	}

	next := l.transact(t, "INSERT INTO config (key, value) VALUES ('user.lxd-recover.nonce', 'c0ffee42')")
	found, r = l.prove(t, began, "")
	if term := r.Raft.Term; !found || r.Proof != bundle.ProofHeartbeat || r.Raft.Index != later || r.Next != (bundle.Position{Index: next, Term: term}) {
		t.Errorf("%v, %+v; want %d, by %d", found, r, later, next)
	}

	// The nonce, too, has to be followed by a transaction, of the same term.
	found, r = l.prove(t, began, "c0ffee42")
	if found {
		t.Errorf("nothing proves the nonce to be committed: %+v", r)
	}

	log := openDir(t, l.dir.global())
	var last raftlog.Entry
	for entry, err := range log.Entries(t.Context(), log.LastIndex) {
		must(t, err)
		last = entry
	}

	l.appendIn(t, log.LastTerm+1, raftlog.CommandEntry, []byte(strings.ReplaceAll(string(last.Data), "c0ffee42", "c0ffee43")))
	found, r = l.prove(t, began, "c0ffee42")
	if found {
		t.Errorf("a transaction of the next term proves nothing: %+v", r)
	}

	l.transact(t, "DELETE FROM config WHERE key = 'user.lxd-recover.nonce'")
	found, r = l.prove(t, began, "c0ffee43")
	if !found || r.Proof != bundle.ProofNonce || r.Raft != (bundle.Position{Index: log.LastIndex + 1, Term: log.LastTerm + 1}) {
		t.Errorf("%v, %+v", found, r)
	}
}

// Where one voter decides alone, what its disk holds is a backup, even while LXD is down. It is no recovery tarball, and becomes one.
func TestBackupSoleVoter(t *testing.T) {
	l := newBackupLab(t)
	l.configure(t, raftlog.Spare, raftlog.Voter, raftlog.Spare)
	l.transact(t, "UPDATE profiles SET description = 'backed up' WHERE name = 'default'")
	before := namesAndContent(t, l.dir.path)
	r, err := l.backup(t, nil)
	must(t, err)
	log := openDir(t, l.dir.global())
	if r.Raft != (bundle.Position{Index: log.LastIndex, Term: log.LastTerm}) || r.Proof != bundle.ProofSoleVoter || !r.Signed || r.Source.Name != "node2" ||
		len(r.Members) != 3 {
		t.Errorf("%+v, and the log ends at %d", r, log.LastIndex)
	}

	if namesAndContent(t, l.dir.path) != before {
		t.Error("something was changed")
	}

	i, err := Inspect(t.Context(), r.File, Progress{})
	must(t, err)
	if i.Kind != "backup" || !i.Copy || !i.Healthy || i.Raft.LastIndex != log.LastIndex || i.Raft.Edited {
		t.Errorf("inspect: %+v", i)
	}

	_, err = l.importDB(t.Context(), func(o *ImportOptions) { o.Tarball = r.File })
	wantRefusal(t, err, Refusal{Code: "backup", Reason: "is a backup, and no recovery tarball"})

	// Written since: it is named, and given up.
	l.transact(t, "UPDATE profiles SET description = 'written since' WHERE name = 'default'")
	l.checkExport(t, r.File)
	must(t, os.RemoveAll(l.dir.global()))
	must(t, os.Mkdir(l.dir.global(), 0o700))
	l.checkExport(t, r.File)
	must(t, os.RemoveAll(l.dir.global()))
	must(t, os.Remove(l.dir.local()))
	must(t, os.Mkdir(l.dir.global(), 0o700))
	l.checkExport(t, r.File)
}

// checkExport makes a recovery tarball of a backup, and wants what it has: this is asked about, and fenced by a snapshot.
func (l backupLab) checkExport(t *testing.T, backup string) {
	t.Helper()
	opts := ExportOptions{LXDDir: l.dir.path, Source: backup, Output: filepath.Join(t.TempDir(), "recovery.tar.gz"), NoVerify: true}
	_, err := Export(t.Context(), opts)
	wantRefusal(t, err, Refusal{Code: "transactions-given-up", Flag: "--yes"})
	opts.Confirm = func(*ExportReport) error { return nil }
	r, err := Export(t.Context(), opts)
	must(t, err)
	if r.SnapshotFence == "" || r.Kept != backup || r.Source.Name != "node2" || len(r.Members) != 3 {
		t.Errorf("%+v", r)
	}

	i, err := Inspect(t.Context(), opts.Output, Progress{})
	must(t, err)
	if i.Kind != "recovery tarball" || i.Data.Rows != r.Database.Rows || i.Raft.LastTerm != r.Raft.Term {
		t.Errorf("%+v", i)
	}
}

// What cannot be proven, or trusted, is refused, and nothing is written.
func TestBackupRefused(t *testing.T) {
	l := newBackupLab(t)
	_, err := l.backup(t, nil)
	wantRefusal(t, err, Refusal{Code: "not-running", Member: "node2", Reason: "LXD does not run"})
	l.configure(t, raftlog.Voter, raftlog.StandBy, raftlog.Spare)
	_, err = l.backup(t, nil)
	wantRefusal(t, err, Refusal{Code: "not-the-voter", Member: "node2", Reason: addressOf(1)})
	l.configure(t, raftlog.Spare, raftlog.Voter, raftlog.Spare)
	there := filepath.Join(t.TempDir(), "there")
	must(t, os.WriteFile(there, nil, 0o600))
	_, err = l.backup(t, func(o *BackupOptions) { o.Output = there })
	if err == nil || !strings.Contains(err.Error(), there) {
		t.Errorf("an existing file: %v", err)
	}

	_, err = l.backup(t, func(o *BackupOptions) { o.Output = l.dir.join("database", "backup") })
	if err == nil {
		t.Error("a backup is written into the database")
	}

	must(t, os.Remove(l.dir.join("cluster.key")))
	_, err = l.backup(t, nil)
	wantRefusal(t, err, Refusal{Code: "cannot-sign", Flag: "--unsigned", Reason: "cluster.key is missing"})
	r, err := l.backup(t, func(o *BackupOptions) { o.Unsigned = true })
	must(t, err)
	_, err = Export(t.Context(), ExportOptions{LXDDir: l.dir.path, Source: r.File, Output: there + "2", NoVerify: true, Unsigned: true})
	wantRefusal(t, err, Refusal{Code: "unsigned", Flag: "--unsigned-source", Reason: "is not signed"})
	must(t, os.WriteFile(l.dir.join("server.crt"), mustRead(t, l.dir.join("cluster.crt")), 0o600))
	_, err = Export(t.Context(), ExportOptions{LXDDir: l.dir.path, Source: r.File, Output: there + "2", NoVerify: true, Unsigned: true, UnsignedSource: true})
	if !errors.Is(err, ErrWrongCluster) {
		t.Errorf("a backup that does not know this member: %v", err)
	}
}

func mustRead(t testing.TB, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	must(t, err)
	return data
}
