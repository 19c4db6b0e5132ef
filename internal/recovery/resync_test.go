// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// resyncLab is node2, and a copy of it on which the cluster goes on.
type resyncLab struct {
	backupLab
	cluster backupLab
}

func newResyncLab(t testing.TB) resyncLab {
	t.Helper()
	l := resyncLab{backupLab: newBackupLab(t)}
	l.cluster = l.backupLab
	l.cluster.dir = directory{filepath.Join(t.TempDir(), "lxd")}
	must(t, os.CopyFS(l.cluster.dir.path, os.DirFS(l.dir.path)))
	return l
}

func (l resyncLab) prepare(t testing.TB) string {
	t.Helper()
	r, err := PrepareResync(t.Context(), ResyncOptions{LXDDir: l.dir.path, Version: "test", Timeout: time.Minute})
	must(t, err)
	return r.Nonce
}

// write has the cluster write a nonce, and a transaction after it.
func (l resyncLab) write(t testing.TB, nonce string) uint64 {
	t.Helper()
	index := l.cluster.transact(t, "INSERT OR REPLACE INTO config (key, value) VALUES ('"+nonceKey+"', '"+nonce+"')")
	l.cluster.transact(t, "DELETE FROM config WHERE key = '"+nonceKey+"'")
	return index
}

// backupWith is a backup of the cluster with a nonce.
func (l resyncLab) backupWith(t testing.TB, nonce string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "backup.tar.gz")
	b := &backup{opts: BackupOptions{LXDDir: l.cluster.dir.path, Output: file, NoVerify: true, Trailing: true}, nonce: nonce, report: &BackupReport{}}
	must(t, b.open(t.Context()))
	b.nonce = nonce
	v, err := b.look(t.Context(), nil)
	must(t, err)
	defer v.held.Close()

	p := &prover{backup: b, begun: true, from: 1}
	found, err := p.look(t.Context(), v)
	must(t, err)
	if !found {
		t.Fatalf("the nonce %s is not proven", nonce)
	}

	must(t, b.describe(t.Context(), v))
	must(t, b.write(t.Context(), v))
	return file
}

func (l resyncLab) resync(t testing.TB, file string, with func(*ResyncOptions)) (*ResyncReport, error) {
	t.Helper()
	opts := ResyncOptions{LXDDir: l.dir.path, Version: "test", Timeout: time.Minute, Backup: file, NoStart: true}
	if with != nil {
		with(&opts)
	}

	return Resync(t.Context(), opts)
}

// The log is taken up to the nonce, unchanged, with this member's own term and vote; what it had is kept.
func TestResyncTakes(t *testing.T) {
	l := newResyncLab(t)
	own := openDir(t, l.dir.global())
	l.write(t, l.prepare(t)) // the nonce of a resync that was given up
	nonce := l.prepare(t)
	l.cluster.transact(t, "UPDATE profiles SET description = 'confirmed' WHERE name = 'default'")
	index := l.write(t, nonce)
	r, err := l.resync(t, l.backupWith(t, nonce), nil)
	must(t, err)
	log := openDir(t, l.dir.global())
	want := bundle.Position{Index: index, Term: own.LastTerm}
	if !r.Done || r.Raft != want || r.Committed != want || log.LastIndex != index || log.LastTerm != own.LastTerm || log.Edited || !log.Healthy() {
		t.Errorf("%+v; the log ends at %d, %v", r, log.LastIndex, log.Problems)
	}

	if log.Term != own.Term || log.Vote != own.Vote || r.Term != own.Term || len(r.Discarded) != 0 {
		t.Errorf("term %d and vote %d, were %d and %d; discarded %v", log.Term, log.Vote, own.Term, own.Vote, r.Discarded)
	}

	if kept := openDir(t, filepath.Join(r.Kept, globalName)); kept.LastIndex != own.LastIndex {
		t.Errorf("kept up to %d, want %d", kept.LastIndex, own.LastIndex)
	}

	if exists(l.dir.join(pendingName)) || exists(l.dir.join(stagingName)) {
		t.Error("something is left")
	}

	s, err := Status(t.Context(), l.dir.path, Progress{})
	must(t, err)
	if s.Resync == nil || s.Resync.Source != "node2" || s.Import != nil {
		t.Errorf("status: %+v", s)
	}
}

// What only this member has, and a later leader has replaced, is named. Its term is raised to that leader's, without a vote.
func TestResyncNamesDiscarded(t *testing.T) {
	l := newResyncLab(t)
	term := openDir(t, l.dir.global()).LastTerm
	local := l.transact(t, "UPDATE profiles SET description = 'never confirmed' WHERE name = 'default'")
	l.cluster.appendIn(t, term+1, raftlog.BarrierEntry, make([]byte, 8))
	nonce := l.prepare(t)
	l.write(t, nonce)
	r, err := l.resync(t, l.backupWith(t, nonce), nil)
	must(t, err)
	log := openDir(t, l.dir.global())
	if len(r.Discarded) != 1 || r.Discarded[0].Index != local || log.Term != term+1 || log.Vote != 0 {
		t.Errorf("discarded %+v, term %d, vote %d", r.Discarded, log.Term, log.Vote)
	}
}

// Without metadata this member votes for nobody in the term that it takes.
func TestResyncWithoutMetadata(t *testing.T) {
	l := newResyncLab(t)
	must(t, os.RemoveAll(l.dir.global()))
	must(t, os.Mkdir(l.dir.global(), 0o700))
	nonce := l.prepare(t)
	l.write(t, nonce)
	r, err := l.resync(t, l.backupWith(t, nonce), nil)
	must(t, err)
	log := openDir(t, l.dir.global())
	if !r.Done || log.Term < log.LastTerm || log.Vote != 2 {
		t.Errorf("%+v: term %d, vote %d", r, log.Term, log.Vote)
	}
}

// What is no proof that this member lacks nothing is refused, and nothing is changed.
func TestResyncRefused(t *testing.T) {
	tests := []struct {
		name string
		file func(t testing.TB, l resyncLab) string
		code string
		text string
	}{
		{"without a first step", func(t testing.TB, l resyncLab) string {
			l.write(t, strings.Repeat("ab", 16))
			return l.backupWith(t, strings.Repeat("ab", 16))
		}, "", "was not stopped for a resync"},
		{"LXD has run since", func(t testing.TB, l resyncLab) string {
			nonce := l.prepare(t)
			l.write(t, nonce)
			l.transact(t, "UPDATE profiles SET description = 'written since' WHERE name = 'default'")
			return l.backupWith(t, nonce)
		}, "", "LXD has run here since"},
		{"another nonce", func(t testing.TB, l resyncLab) string {
			l.prepare(t)
			l.write(t, strings.Repeat("ab", 16))
			return l.backupWith(t, strings.Repeat("ab", 16))
		}, "no-nonce", "lacks the mark"},
		{"removed", func(t testing.TB, l resyncLab) string {
			nonce := l.prepare(t)
			servers := raftlog.Configuration{{ID: 1, Address: addressOf(1), Role: raftlog.Voter}, {ID: 3, Address: addressOf(3), Role: raftlog.Voter}}
			l.cluster.append(t, raftlog.ChangeEntry, raftlog.EncodeConfiguration(servers))
			l.write(t, nonce)
			return l.backupWith(t, nonce)
		}, "", "has no id 2"},
		{"of another history", func(t testing.TB, l resyncLab) string {
			l.appendIn(t, openDir(t, l.dir.global()).LastTerm+7, raftlog.BarrierEntry, make([]byte, 8))
			nonce := l.prepare(t)
			l.write(t, nonce)
			return l.backupWith(t, nonce)
		}, "own-term-above", "not of one history"},
		{"a recovery tarball", func(t testing.TB, l resyncLab) string {
			l.prepare(t)
			return newSignedLab(t).tarball
		}, "", "is no backup"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l := newResyncLab(t)
			file := test.file(t, l)
			before := tree(t, l.dir.database())
			_, err := l.resync(t, file, nil)
			var refusal *Refusal
			code := ""
			if errors.As(err, &refusal) {
				code = refusal.Code
			}

			if err == nil || code != test.code || !strings.Contains(err.Error(), test.text) {
				t.Errorf("%q, %v", code, err)
			}

			if tree(t, l.dir.database()) != before || exists(l.dir.join(stagingName)) {
				t.Error("something was changed")
			}
		})
	}
}

// What is of another history is taken all the same if that is wanted.
func TestResyncDiscards(t *testing.T) {
	l := newResyncLab(t)
	l.appendIn(t, openDir(t, l.dir.global()).LastTerm+7, raftlog.BarrierEntry, make([]byte, 8))
	nonce := l.prepare(t)
	l.write(t, nonce)
	r, err := l.resync(t, l.backupWith(t, nonce), func(o *ResyncOptions) { o.DiscardLocal = true })
	must(t, err)
	if !r.Done {
		t.Errorf("%+v", r)
	}
}

// tree is what is in a directory.
func tree(t testing.TB, dir string) string {
	t.Helper()
	return namesAndContent(t, dir)
}
