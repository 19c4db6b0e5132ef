// SPDX-License-Identifier: AGPL-3.0-only

package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// must ends the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestThreeMembers(t *testing.T) {
	t.Parallel()
	cluster.EachProduct(t, func(t *testing.T, build cluster.LXD) {
		threeMembers(t, cluster.ForTest(t, cluster.Options{LXD: build}))
	})
}

// threeMembers goes through the life of one cluster: each part starts from where the one before it stopped.
func threeMembers(t *testing.T, c *cluster.Cluster) {
	killedWhileWriting(t, c)
	must(t, c.WaitOnline(t.Context(), 3))
	must(t, c.WaitHeartbeat(t.Context()))
	madeSnapshots(t, c)
	clientsFail(t, c.Member(1))
	movedAndRestored(t, c)
}

// Rows that LXD confirmed are there after all members were killed at once, in the middle of writing.
func killedWhileWriting(t *testing.T, c *cluster.Cluster) {
	ctx := t.Context()
	writer := c.Member(1).StartWriter("row")
	must(t, writer.WaitConfirmed(ctx, 50))
	c.KillAll()
	writer.Stop()
	if c.Member(2).Running() || c.Member(2).Pid() != 0 {
		t.Error("member 2 runs after KillAll")
	}

	must(t, c.StartAll(ctx))
	profiles, err := c.Member(3).Profiles(ctx)
	must(t, err)
	for _, name := range writer.Confirmed() {
		if !slices.Contains(profiles, name) {
			t.Errorf("confirmed row %s is lost", name)
		}
	}

	if extra := len(profiles) - 1 - len(writer.Confirmed()); extra < 0 || extra > len(writer.Unanswered()) {
		t.Errorf("%d rows, %d confirmed, %d unanswered", len(profiles)-1, len(writer.Confirmed()), len(writer.Unanswered()))
	}
}

// The log can be grown until there is a snapshot.
func madeSnapshots(t *testing.T, c *cluster.Cluster) {
	must(t, c.MakeSnapshot(t.Context()))
	for _, m := range c.Members() {
		if names, err := m.Snapshots(); err != nil || len(names) == 0 {
			t.Errorf("%s has snapshots %v, %v", m.Name, names, err)
		}
	}
}

// Clients fail with what they said.
func clientsFail(t *testing.T, first *cluster.Member) {
	ctx := t.Context()
	_, err := first.LXC(ctx, "profile", "show", "nosuch")
	if err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("lxc profile show nosuch: %v", err)
	}

	_, err = first.SQL(ctx, "SELECT nosuch")
	if err == nil || !strings.Contains(err.Error(), "no such column") {
		t.Errorf("SELECT nosuch: %v", err)
	}

	rows, err := first.SQL(ctx, "INSERT INTO config (key, value) VALUES ('user.a', 'b'); SELECT id > 0, value, NULL FROM config WHERE key = 'user.a'")
	if err != nil || fmt.Sprint(rows) != "[[1 b NULL]]" {
		t.Errorf("rows %v, %v", rows, err)
	}
}

// The cluster can be changed and brought back.
func movedAndRestored(t *testing.T, c *cluster.Cluster) {
	ctx := t.Context()
	first := c.Member(1)
	must(t, c.StopAll(ctx))
	must(t, c.Save(ctx, "stopped"))
	before := files(t, first.Dir())
	for _, m := range c.Members() {
		must(t, m.EditReplace(ctx, "10.77.0.", "10.77.1.", ":8443", ":9393"))
		must(t, m.SetAddresses(ctx, fmt.Sprintf("10.77.1.%d/16", 100+m.ID)))
	}

	if show, err := c.Member(2).ShowYAML(ctx); err != nil || !strings.Contains(string(show), "address: 10.77.1.102:9393") {
		t.Errorf("after edit: %s, %v", show, err)
	}

	err := first.EditReplace(ctx, "nowhere", "")
	if err == nil {
		t.Error("replaced a string that is not there")
	}

	must(t, c.StartAll(ctx))
	must(t, c.WaitHeartbeat(ctx))
	must(t, c.WaitOnline(ctx, 3))
	wantAddress := func(want string) {
		t.Helper()
		rows, err := first.SQL(ctx, "SELECT address FROM nodes WHERE name = 'node1'")
		if err != nil || fmt.Sprint(rows) != "[["+want+"]]" {
			t.Errorf("address %s, want %s: %v", rows, want, err)
		}
	}
	wantAddress("10.77.1.101:9393")
	must(t, c.Restore(ctx, "stopped"))
	for _, m := range c.Members() {
		must(t, m.AddAddress(ctx, m.IP()+"/16"))
	}

	if after := files(t, first.Dir()); after != before {
		t.Errorf("restored\n%s\nwas\n%s", after, before)
	}

	must(t, c.StartAll(ctx))
	wantAddress(first.Address())
}

// files lists a directory with modes, sizes and times.
func files(t *testing.T, dir string) string {
	t.Helper()
	var list bytes.Buffer
	must(t, filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}

		info, err := entry.Info()
		if err == nil && !entry.IsDir() {
			fmt.Fprintln(&list, path[len(dir):], info.Mode(), info.Size(), info.ModTime())
		}

		return err
	}))
	return list.String()
}

func TestRoles(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := cluster.ForTest(t, cluster.Options{Members: 4, Config: map[string]string{"cluster.max_standby": "1"}})
	must(t, c.WaitRoles(ctx, cluster.Roles{Voters: 3, StandBys: 1}))
	_, err := c.AddMember(ctx)
	if err != nil {
		t.Fatal(err)
	}

	must(t, c.WaitRoles(ctx, cluster.Roles{Voters: 3, StandBys: 1, Spares: 1}))
	_, err = c.Member(1).LXC(ctx, "config", "set", "cluster.max_standby", "2")
	must(t, err)
	must(t, c.WaitRoles(ctx, cluster.Roles{Voters: 3, StandBys: 2}))
	must(t, c.WaitOnline(ctx, 5))
}

func TestWithoutQuorum(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := cluster.ForTest(t, cluster.Options{})
	c.KillAll(c.Member(2), c.Member(3))
	short, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	err := c.Member(1).CreateProfile(short, "nowhere")
	if err == nil {
		t.Error("a write was confirmed without quorum")
	}

	must(t, c.Member(1).Stop(ctx))
	if status, err := c.Member(1).Wait(ctx); err != nil || status != 0 {
		t.Errorf("end after Stop: status %d, %v", status, err)
	}

	// One member alone does not become ready, and the caller says how long to wait.
	short, cancel = context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	err = c.Member(1).Start(short)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("start of one of three: %v", err)
	}

	c.Member(1).Kill()

	// A daemon that cannot start is reported at once, with its own words.
	must(t, os.Remove(filepath.Join(c.Member(1).Dir(), "server.key")))
	must(t, os.Mkdir(filepath.Join(c.Member(1).Dir(), "server.key"), 0o700))
	err = c.Member(1).Start(ctx)
	if err == nil || !strings.Contains(err.Error(), "server.key") || !strings.Contains(err.Error(), "its daemon is not running") {
		t.Errorf("start with a broken server.key: %v", err)
	}
}

// A daemon whose start fails as its LXD is known to fail is started again so and so often, and the log is told; one that fails
// otherwise is not.
func TestStartedAgain(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		known string
		again int
	}{{"file is not a database", 5}, {"Failed checking if schema table is there", 0}, {"", 0}} {
		t.Run(test.known, func(t *testing.T) {
			t.Parallel()
			lxd, err := cluster.Debian()
			must(t, err)
			lxd.FailsWith = test.known
			var log bytes.Buffer
			c := cluster.ForTest(t, cluster.Options{LXD: lxd, Members: 1, Log: &log})
			m := c.Member(1)
			must(t, m.Stop(t.Context()))
			must(t, os.WriteFile(filepath.Join(m.Dir(), "database", "local.db"), bytes.Repeat([]byte("no database "), 1000), 0o600))
			err = m.Start(t.Context())
			if err == nil || !strings.Contains(err.Error(), "file is not a database") {
				t.Errorf("start: %v", err)
			}

			if n := strings.Count(log.String(), "node1 started again: it failed as it is known to"); n != test.again {
				t.Errorf("started again %d times, want %d:\n%s", n, test.again, &log)
			}
		})
	}
}

// A daemon whose node database calls it a voter when it starts, and that is none, does not find the leader until it is started again:
// LXD looks up its role once. This is what the list's wait starts again, and the log is told.
func TestStaleRole(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	lxd, err := cluster.Debian()
	must(t, err)
	var log bytes.Buffer
	c := cluster.ForTest(t, cluster.Options{LXD: lxd, Members: 4, Log: &log})
	m := c.Member(1) // the one that is asked for the list
	must(t, m.Stop(ctx))
	must(t, c.WaitRoles(ctx, cluster.Roles{Voters: 3, Spares: 1}))
	must(t, m.Start(ctx))
	must(t, c.WaitRoles(ctx, cluster.Roles{Voters: 3, StandBys: 1}))
	for range 10 {
		m.Kill()
		must(t, os.WriteFile(filepath.Join(m.Dir(), "database", "patch.local.sql"), []byte("UPDATE raft_nodes SET role = 0"), 0o600))
		log.Reset()
		before, err := os.ReadFile(m.LogFile())
		must(t, err)
		must(t, m.Start(ctx))
		must(t, c.WaitOnline(ctx, 4))
		if n := strings.Count(log.String(), "node1 started again: it takes itself for a voter"); n == 1 {
			return
		}

		said, err := os.ReadFile(m.LogFile())
		must(t, err)
		if !strings.Contains(string(said[len(before):]), "Changing local dqlite raft role") {
			t.Fatalf("not started again, though it takes itself for a voter:\n%s", &log)
		}
		// The leader missed it while it was down, and has given it a role since, from which it knows.
	}

	t.Error("each time it was given a role")
}

// What LXD said when it lost its leader on a busy machine, and what it says when trying again is of no use.
func TestLosesLeader(t *testing.T) {
	debian, err := cluster.Debian()
	must(t, err)
	known := regexp.MustCompile(debian.FailsWith)
	const begin = "Error: Failed to initialize global database: "
	for _, words := range []string{
		"failed to ensure schema: Failed to begin transaction: failed to create dqlite connection: no available dqlite leader server found",
		"Failed to ensure schema: Failed ensuring schema: failed to execute queries from /x/database/patch.global.sql: interrupted",
		"Failed to ensure schema: Failed ensuring schema: failed to execute queries from /x/database/patch.global.sql: leader exec failed",
		"Failed to set page cache size: interrupted",
		"context deadline exceeded",
		"failed to ensure schema: Failed to begin transaction: context canceled",
		"failed to ensure schema: failed checking if schema table is there: x",
		"Failed to ensure schema: Failed ensuring schema: failed to check if schema table is there: COUNT(name)",
	} {
		if !known.MatchString(begin + words) {
			t.Errorf("not known: %s", words)
		}
	}

	for _, words := range []string{
		begin + "failed to ensure schema: failed to update node version info: updated 0 rows instead of 1",
		begin + "failed to ensure schema: schema check gracefully aborted: this node's version is behind, please upgrade",
		"Error: Found patch.global.sql: Custom patches",
		"Error: interrupted",
	} {
		if known.MatchString(words) {
			t.Errorf("known: %s", words)
		}
	}
}
