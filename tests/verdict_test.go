// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// The verdict over a real cluster, by each member's directory while LXD runs: good after a recovery to new addresses; good again with a
// member that was forgotten, once the cluster has brought it up to date, and its missing record is told; and not good with a member whose
// snapshot lies beyond the recovery entry, of which LXD says that it is ONLINE and fully operational.
func TestVerdict(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	ctx := within(t, 5*time.Minute)
	one, three := c.Member(1), c.Member(3)
	must(t, one.CreateProfile(ctx, "kept"))
	c.KillAll()
	must(t, c.Save(ctx, "down"))
	old := filepath.Join(t.TempDir(), "database")
	must(t, os.CopyFS(old, os.DirFS(filepath.Join(three.Dir(), "database"))))

	must(t, one.EditReplace(ctx, ":8443", ":9393"))
	tarball := export(t, one)
	importOn(t, tarball, c.Members()...)
	must(t, c.StartAll(ctx))
	good := judged(t, c, tarball, func(v *recovery.ClusterVerdict) bool { return v.Good })
	if !strings.HasPrefix(good.Line, "One cluster of 3 members, complete, from recovery ") || len(good.Findings) > 0 || good.Leader == "" ||
		good.Term < good.Fence.Term || good.At < good.Fence.Index {
		t.Errorf("recovered: %+v", good)
	}

	c.KillAll()
	must(t, c.Restore(ctx, "down"))
	must(t, one.EditReplace(ctx))
	tarball = export(t, one)
	importOn(t, tarball, one, c.Member(2))
	must(t, c.StartAll(ctx))
	good = judged(t, c, tarball, func(v *recovery.ClusterVerdict) bool { return v.Good })
	if len(good.Findings) != 1 || good.Findings[0].Code != "no-record" || good.Findings[0].Member != three.Name || good.At <= good.Fence.Index {
		t.Errorf("with a forgotten member: %+v", good)
	}

	c.KillAll()
	must(t, os.RemoveAll(filepath.Join(three.Dir(), "database")))
	must(t, os.CopyFS(filepath.Join(three.Dir(), "database"), os.DirFS(old)))
	receiveSnapshot(t, filepath.Join(three.Dir(), "database", "global"))
	must(t, c.StartAll(ctx))
	must(t, c.WaitOnline(ctx, 3))
	bad := judged(t, c, tarball, func(v *recovery.ClusterVerdict) bool { return !v.Good })
	if bad.Findings[0].Code != "snapshot-beyond" || bad.Findings[0].Member != three.Name || !strings.Contains(bad.Line, ", although LXD says ONLINE") {
		t.Errorf("with a snapshot beyond: %+v", bad)
	}

	// It is as the verdict says: what the others write from now on does not get there.
	written := endOf(t, one)
	createRow(t, one, "after")
	for endOf(t, c.Member(2)) <= written {
		must(t, ctx.Err())
		time.Sleep(20 * time.Millisecond)
	}

	if end := endOf(t, three); end != 1000000 {
		t.Errorf("the log of %s ends at index %d", three.Name, end)
	}
}

// receiveSnapshot leaves nothing of a raft log but a snapshot far beyond its last entry, as on a member that has received it from a leader.
func receiveSnapshot(t *testing.T, global string) {
	t.Helper()
	log, err := raftlog.Open(t.Context(), os.DirFS(global), raftlog.Options{})
	must(t, err)
	db, err := globaldb.Open(t.Context(), log, 0)
	must(t, err)
	defer db.Close()
	image, err := os.ReadFile(db.File)
	must(t, err)
	image[18], image[19] = 2, 2 // in WAL mode, as dqlite has it
	for _, f := range log.Files {
		if f.Kind != raftlog.MetadataFile {
			must(t, os.Remove(filepath.Join(global, f.Name)))
		}
	}

	name := filepath.Join(global, fmt.Sprintf("snapshot-%d-1000000-1", log.LastTerm))
	must(t, os.WriteFile(name, raftlogtest.Compress(raftlogtest.EncodeSnapshot(globaldb.Name, image, nil)), 0o600))
	must(t, os.WriteFile(name+".meta", raftlog.EncodeSnapshotMeta(log.ConfigurationIndex, log.Configuration), 0o600))
}

// endOf is the last index of a member's log.
func endOf(t *testing.T, m *cluster.Member) uint64 {
	t.Helper()
	s, err := recovery.ReadMemberState(t.Context(), recovery.MemberStateOptions{LXDDir: m.Dir(), Outline: true})
	must(t, err)
	return s.Raft.LastIndex
}

// judged is the verdict over all members, looked at again until it is as wanted.
func judged(t *testing.T, c *cluster.Cluster, tarball string, wanted func(*recovery.ClusterVerdict) bool) *recovery.ClusterVerdict {
	t.Helper()
	ctx := within(t, time.Minute)
	expected, err := recovery.ExpectedOf(ctx, tarball, recovery.Progress{})
	must(t, err)
	read := func(opts recovery.MemberStateOptions) (states []recovery.MemberState) {
		for _, m := range c.Members() {
			opts.LXDDir = m.Dir()
			s, err := recovery.ReadMemberState(ctx, opts)
			must(t, err)
			states = append(states, *s)
		}

		return states
	}
	for {
		at := recovery.CompareAt(read(recovery.MemberStateOptions{Outline: true}), expected)
		expected.Reached = at.Reached
		v := recovery.JudgeCluster(read(recovery.MemberStateOptions{Fence: at.Fence, At: at.At}), expected)
		t.Log(v.Line)
		if wanted(v) {
			return v
		}

		select {
		case <-ctx.Done():
			t.Fatalf("the verdict is still %+v", v)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
