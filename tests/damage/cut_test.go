// SPDX-License-Identifier: AGPL-3.0-only

package damage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/canonical/go-dqlite/v3/client"
	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/engine"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
	"github.com/lxd-recover/lxd-recover/tests/tied"
)

// What a child is asked to do for a cluster of five, whose directories are 1 to 5 of one.
const (
	form  = "form"  // make the five members of the log in directory 1
	voter = "voter" // be the member with that directory, until it is killed
)

// netVariable is the environment variable with the loopback network of the members, which children get. An abstract socket of libdqlite's answers its own
// process only.
const netVariable = "LXD_RECOVER_TEST_NET"

// addressOf is where a member listens.
func addressOf(id uint64) string { return fmt.Sprintf("%s.%d:9000", os.Getenv(netVariable), id) }

// fiveIDs are those of the members.
var fiveIDs = []uint64{1, 2, 3, 4, 5}

// five are the members.
func five() []engine.Node {
	var nodes []engine.Node
	for _, id := range fiveIDs {
		nodes = append(nodes, engine.NewNode(id, addressOf(id), 0))
	}

	return nodes
}

// beVoter is a member at work.
func beVoter(dir string) error {
	id, err := strconv.ParseUint(filepath.Base(dir), 10, 64)
	if err != nil {
		return err
	}

	server, err := engine.Open(id, addressOf(id), dir)
	if err == nil {
		err = server.Start(addressOf(id))
	}

	if err != nil {
		return err
	}

	select {}
}

// voters are five real members of libdqlite, in a process each.
type voters struct {
	t    *testing.T
	dir  string
	cmds map[uint64]*exec.Cmd
}

func newVoters(t *testing.T) *voters {
	t.Helper()
	t.Setenv(netVariable, fmt.Sprintf("127.%d.%d", 1+os.Getpid()>>8%250, os.Getpid()%256))
	v := &voters{t: t, dir: t.TempDir(), cmds: map[uint64]*exec.Cmd{}}
	must(t, os.CopyFS(v.of(1), os.DirFS(raftlogtest.Make(t, raftlogtest.Stopped))))
	outcome, said := ask(t, form, v.dir)
	if outcome != raftlog.LoadsClean {
		t.Fatal(said)
	}

	for _, id := range fiveIDs[1:] {
		must(t, os.CopyFS(v.of(id), os.DirFS(v.of(1))))
	}

	t.Cleanup(func() {
		for id := range v.cmds {
			v.kill(id)
		}
	})
	return v
}

// of is the directory of a member.
func (v *voters) of(id uint64) string { return filepath.Join(v.dir, strconv.FormatUint(id, 10)) }

func (v *voters) start(ids ...uint64) {
	v.t.Helper()
	self, err := os.Executable()
	must(v.t, err)
	for _, id := range ids {
		v.cmds[id] = exec.Command(self, childCommand, voter, v.of(id))
		v.cmds[id].Stderr = os.Stderr
		must(v.t, tied.Start(v.cmds[id]))
	}
}

func (v *voters) kill(id uint64) {
	_ = v.cmds[id].Process.Kill()
	_ = v.cmds[id].Wait()
	delete(v.cmds, id)
}

// leader waits until one of these members leads.
func (v *voters) leader(ctx context.Context, ids ...uint64) uint64 {
	v.t.Helper()
	for {
		for _, id := range ids {
			found, err := leaderOf(ctx, addressOf(id))
			if err == nil && slices.Contains(ids, found) {
				return found
			}
		}

		select {
		case <-ctx.Done():
			v.t.Fatal("no leader")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func leaderOf(ctx context.Context, address string) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second) // one that is stopped does not answer
	defer cancel()

	c, err := client.New(ctx, address)
	if err != nil {
		return 0, err
	}

	defer c.Close()

	node, err := c.Leader(ctx)
	if err != nil || node == nil {
		return 0, errors.Join(err, errors.New("it knows none"))
	}

	return node.ID, nil
}

// write gives the leader a statement.
func (v *voters) write(ctx context.Context, id uint64, statement string) error {
	db, err := engine.Connect(ctx, addressOf(id), globaldb.Name)
	if err != nil {
		return err
	}

	defer db.Close()

	_, err = db.ExecContext(ctx, statement)
	return err
}

// log is what the directory of a member at work says.
func (v *voters) log(id uint64, live bool) *raftlog.Log {
	v.t.Helper()
	held, err := raftlog.Hold(v.t.Context(), v.of(id))
	must(v.t, err)
	defer held.Close()

	log, err := raftlog.Open(v.t.Context(), held, raftlog.Options{Live: live})
	must(v.t, err)
	return log
}

// without are the members but for some.
func without(some ...uint64) []uint64 {
	return slices.DeleteFunc(slices.Clone(fiveIDs), func(id uint64) bool { return slices.Contains(some, id) })
}

// reaches waits until the log of a member at work goes up to an index, and returns what its directory says then.
func (v *voters) reaches(ctx context.Context, id uint64, want uint64) *raftlog.Log {
	v.t.Helper()
	for {
		log := v.log(id, true)
		if log.LastIndex >= want {
			return log
		}

		select {
		case <-ctx.Done():
			v.t.Fatalf("the log of %d ends at index %d, not at %d: %v", id, log.LastIndex, want, log.Problems)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// A member that has written nothing since its start but what another leader's log lacks removes that segment when it follows that one. Its directory looks as
// if a segment were lost, unless it is known that a daemon works there.
func TestCutByNewLeader(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()

	v := newVoters(t)
	v.start(fiveIDs...)
	leader := v.leader(ctx, fiveIDs...)
	follower := without(leader)[0]
	for i := range 3 { // so that the last segment before has several batches: a single one may be what is left of a segment that was cut
		must(t, v.write(ctx, leader, fmt.Sprintf("CREATE TABLE before%d (id INTEGER)", i)))
	}

	before := v.log(leader, true).LastIndex
	v.reaches(ctx, follower, before)
	v.kill(follower)
	v.start(follower)
	for found := uint64(0); found != leader; { // it follows
		must(t, ctx.Err())
		found, _ = leaderOf(ctx, addressOf(follower))
	}

	others := without(leader, follower)
	for _, id := range others {
		v.kill(id)
	}

	limited, stop := context.WithTimeout(ctx, 2*time.Second)
	err := v.write(limited, leader, "CREATE TABLE alone (id INTEGER)")
	stop()
	if err == nil {
		t.Fatal("two members of five have committed something")
	}

	v.reaches(ctx, follower, before+1) // what no majority has
	v.kill(leader)
	must(t, v.cmds[follower].Process.Signal(unix.SIGSTOP))
	v.start(others...)
	next := v.leader(ctx, others...)
	for i := range 5 {
		must(t, v.write(ctx, next, fmt.Sprintf("CREATE TABLE together%d (id INTEGER)", i)))
	}

	want := v.log(next, true).LastIndex
	must(t, v.cmds[follower].Process.Signal(unix.SIGCONT))
	live := v.reaches(ctx, follower, want)
	if !live.Healthy() {
		t.Errorf("while it works: %v", live.Problems)
	}

	log := v.log(follower, false)
	if log.Healthy() || !slices.ContainsFunc(log.Readings, func(r raftlog.Reading) bool { return r.Last >= want }) {
		t.Errorf("as if no daemon worked there, it goes up to index %d: %v, readings %v", log.LastIndex, log.Problems, log.Readings)
		for _, s := range log.Segments {
			t.Logf("%s: entries %d to %d, terms %d to %d", s.File, s.First, s.Last, s.FirstTerm, s.LastTerm)
		}
	}
}
