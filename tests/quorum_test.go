// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"slices"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// TestLeaderWithoutQuorum looks at a member whose cluster works, and at the leader right after the others were killed, while it still answers.
func TestLeaderWithoutQuorum(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{Members: 3})
	ctx := within(t, 3*time.Minute)
	must(t, c.WaitFormed(ctx))
	look, err := recovery.Look(ctx, c.Member(3).Dir(), recovery.Progress{})
	must(t, err)
	err = recovery.HasQuorum(ctx, c.Member(3).Dir())
	if !look.Answers || len(look.Listed) != 3 || err != nil {
		t.Fatalf("a cluster that works: %v; answers %v, listed %v", err, look.Answers, look.Listed)
	}

	listed, err := daemon.ListMembers(ctx, c.Member(3).Dir())
	must(t, err)
	leader := slices.IndexFunc(listed, func(m daemon.ListedMember) bool { return m.Leader })
	var others []*cluster.Member
	var left *cluster.Member
	for _, m := range c.Members() {
		if leader >= 0 && m.Name == listed[leader].Name {
			left = m
		} else {
			others = append(others, m)
		}
	}

	if left == nil {
		t.Fatalf("nobody leads: %+v", listed)
	}

	c.KillAll(others...)
	began := time.Now()
	err = recovery.HasQuorum(ctx, left.Dir())
	t.Logf("the leader was asked for %s: %v", time.Since(began).Round(time.Millisecond), err)
	if err == nil {
		t.Error("a leader without a quorum is taken for a cluster that works")
	}
}
