// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// One member is broken, in one way after the other, while the two others work and somebody writes. Each time it gets the cluster's database, is a voter
// again, and no confirmed row is lost, even if the leader of before fails next.
func TestResync(t *testing.T) {
	t.Parallel()
	cluster.EachLXD(t, resyncs)
}

func resyncs(t *testing.T, lxd cluster.LXD) {
	c := cluster.ForTest(t, cluster.Options{LXD: lxd})
	ctx := within(t, 15*time.Minute)
	one, three := c.Member(1), c.Member(3)
	w := one.StartWriter("row")
	defer w.Stop()

	must(t, w.WaitConfirmed(ctx, 10))
	global := filepath.Join(three.Dir(), "database/global")
	key, recipient := ageKey(t)
	identity := filepath.Join(t.TempDir(), "identity.tar.gz")
	mustRecover(t, three, "global-db-backup", "--nonce", "--identity", recipient, identity)
	breaks := []struct {
		name  string
		broke func()
	}{
		{"its raft directory is gone", func() { must(t, os.RemoveAll(global)); must(t, os.Mkdir(global, 0o700)) }},
		{"its metadata are gone", func() { loseMetadata(t, global) }},
		{"the end of its log is lost", func() { cutLog(t, global) }},
		{"nothing", func() {}},
		{"its whole directory is gone, and its identity restored", func() {
			must(t, os.Rename(three.Dir(), three.Dir()+".lost"))
			must(t, os.Mkdir(three.Dir(), 0o711))
			mustRecover(t, three, "global-db-identity", "restore", "--key", key, identity)
			wantNoStart(t, ctx, three)
		}},
	}
	for _, b := range breaks {
		three.Kill()
		b.broke()
		resyncMember(t, c, three)
		must(t, c.StartAll(ctx, three))
		before := len(w.Confirmed())
		must(t, w.WaitConfirmed(ctx, before+5))
		waitFollows(t, three, one)
		t.Logf("sample: %s: resync: %s", lxd.Name, b.name)
	}

	// It counts again: with the one that has the source's log gone, the two others have all rows.
	w.Stop()
	confirmed := w.Confirmed()
	must(t, c.WaitFormed(ctx))
	c.Member(2).Kill()
	lxc(t, three, "profile", "create", "after")
	have := map[string]bool{}
	for _, name := range profiles(t, three) {
		have[name] = true
	}

	for _, name := range confirmed {
		if !have[name] {
			t.Errorf("%s was confirmed, and is lost", name)
		}
	}
}

// resyncMember gives a member whose LXD is down the database of the others, by hand.
func resyncMember(t *testing.T, c *cluster.Cluster, m *cluster.Member) {
	t.Helper()
	prepared := decode[recovery.ResyncReport](t, mustRecover(t, m, "global-db-resync", "--yes", "--format", "json"))
	dir := t.TempDir()
	early := filepath.Join(dir, "other.tar.gz")
	mustRecover(t, c.Member(2), "global-db-backup", "--nonce", early)
	check := unchanged(t, m.Dir())
	recoverTool(t, m, "global-db-resync", "--yes", early).want(t, 3, "lacks the mark")
	check()
	file := filepath.Join(dir, "backup.tar.gz")
	mustRecover(t, c.Member(2), "global-db-backup", "--nonce="+prepared.Nonce, file)
	r := decode[recovery.ResyncReport](t, mustRecover(t, m, "global-db-resync", "--yes", "--format", "json", file))
	if !r.Done || r.Member.Name != m.Name || r.Source != "node2" || r.Committed != r.Raft || r.Term < r.Raft.Term {
		t.Errorf("%+v", r)
	}
}

// cutLog removes the last segments of a raft directory.
func cutLog(t *testing.T, global string) {
	t.Helper()
	log, err := raftlog.Open(t.Context(), os.DirFS(global), raftlog.Options{})
	must(t, err)
	for _, s := range log.Segments {
		if s.Open {
			must(t, os.Remove(filepath.Join(global, s.File)))
		}
	}
}

// loseMetadata removes a member's term and vote: two files, or one if it has written them only once.
func loseMetadata(t *testing.T, global string) {
	t.Helper()
	files, err := filepath.Glob(global + "/metadata[12]")
	must(t, err)
	if len(files) == 0 {
		t.Fatalf("%s has no metadata", global)
	}

	for _, file := range files {
		must(t, os.Remove(file))
	}
}

// waitFollows waits until a member's directory has what another one's had.
func waitFollows(t *testing.T, m *cluster.Member, leader *cluster.Member) {
	t.Helper()
	log := func(of *cluster.Member) *raftlog.Log {
		held, err := raftlog.Hold(t.Context(), filepath.Join(of.Dir(), "database/global"))
		must(t, err)
		defer held.Close()

		log, err := raftlog.Open(t.Context(), held, raftlog.Options{Live: true})
		must(t, err)
		return log
	}
	last := func(of *cluster.Member) uint64 { return log(of).SoundIndex }
	want := last(leader)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	for last(m) < want {
		select {
		case <-ctx.Done():
			for _, of := range []*cluster.Member{m, leader} {
				l := log(of)
				t.Logf("%s: term %d, vote %d, from index %d, configuration %+v, %v", of.Name, l.Term, l.Vote, l.FirstIndex, l.Configuration, l.Problems)
				for _, f := range l.Files {
					t.Logf("%s: %+v", of.Name, f)
				}
			}

			t.Fatalf("%s ends at %d, and %s had %d", m.Name, last(m), leader.Name, want)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
