// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// Members are broken one after the other, and get the cluster's database by one command, while somebody writes, and while the leader, the giving member, the
// command or an agent is killed at a random moment. Each time nothing that was confirmed is lost on any member's disk, and the member is a voter again.
// CAMPAIGN=1 does it 50 times with each LXD, RESYNCS=N so often.
func TestResyncKilled(t *testing.T) {
	t.Parallel()
	cluster.EachLXD(t, resyncsKilled)
}

// resyncKills are what is killed, in turns.
var resyncKills = []string{"leader", "command", "agent", "member", "giving agent", "nothing"}

func resyncsKilled(t *testing.T, lxd cluster.LXD) {
	number, first := 2, 0
	switch {
	case os.Getenv("RESYNCS") != "":
		var err error
		number, err = strconv.Atoi(os.Getenv("RESYNCS"))
		must(t, err)
	case os.Getenv("CAMPAIGN") != "":
		number = 50
	case !strings.HasPrefix(lxd.Name, "LXD 5"):
		number, first = 1, 2
	}

	l := newResyncKillLab(t, cluster.ForTest(t, cluster.Options{LXD: lxd}))
	defer l.writer.stop()

	for seed := first; seed < first+number; seed++ {
		l.resync(t, seed)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}

	confirmed, pauses := l.writer.stop()
	t.Logf("sample: %s: %d resyncs, %d of them killed and given again, %d confirmed rows looked for on all disks; longest pause of the writer: "+
		"%.1f s while no LXD was killed, %.1f s when one was", lxd.Name, number, l.again, len(confirmed),
		pauses[false].Seconds(), pauses[true].Seconds())
}

type resyncKillLab struct {
	c      *cluster.Cluster
	ssh    string // stands in for ssh: its destinations are the members' names
	writer *steadyWriter
	again  int // resyncs that were given again
}

func newResyncKillLab(t *testing.T, c *cluster.Cluster) *resyncKillLab {
	t.Helper()
	l := &resyncKillLab{c: c, ssh: filepath.Join(t.TempDir(), "ssh")}
	script := "#!/bin/sh\nwhile [ $# -gt 2 ]; do shift; done\nPATH=" + filepath.Dir(tool) + ":$PATH\nexport PATH LXD_DIR\ncase $1 in\n"
	for _, m := range c.Members() {
		script += fmt.Sprintf("%s) LXD_DIR=%s ;;\n", m.Name, m.Dir())
	}

	must(t, os.WriteFile(l.ssh, []byte(script+"esac\nexec sh -c \"$2\"\n"), 0o700))
	l.writer = startSteadyWriter(c)
	return l
}

// resync breaks a member and brings it back.
func (l *resyncKillLab) resync(t *testing.T, seed int) {
	t.Helper()
	ctx := within(t, 5*time.Minute)
	random := rand.New(rand.NewPCG(15, uint64(seed)))
	kill := resyncKills[seed%len(resyncKills)]
	broken := l.c.Member(1 + random.IntN(3))
	others := make([]*cluster.Member, 0, 2)
	for _, m := range l.c.Members() {
		if m != broken {
			others = append(others, m)
		}
	}

	giving, giver := others[random.IntN(2)], l.c.Member(1+random.IntN(3))
	delay := time.Duration(random.IntN(2500)) * time.Millisecond
	l.writer.mark(true) // the broken one may be the leader
	how := breakMember(t, broken, random.IntN(4))
	what := fmt.Sprintf("seed %d: %s, %s; from %s, given on %s; %s killed after %s", seed, broken.Name, how, giving.Name, giver.Name, kill, delay)
	t.Log(what)
	must(t, waitWrites(ctx, l.writer))
	l.writer.mark(kill == "leader" || kill == "member")
	cmd := l.command(ctx, giver, broken, giving)
	done := make(chan result, 1)
	go func() { done <- run(t, cmd) }()
	var r result
	select {
	case r = <-done:
	case <-time.After(delay):
		l.kill(ctx, t, kill, cmd, broken, giving, others)
		r = <-done
	}

	waitNoAgents(ctx, t, l.c)
	if r.status != 0 {
		l.again++
		r = run(t, l.command(ctx, giver, broken, giving))
	}

	if r.status != 0 {
		t.Fatalf("%s: exit status %d: %s%s", what, r.status, r.stdout, r.stderr)
	}

	must(t, l.c.StartAll(ctx, broken))
	l.writer.mark(false)
	must(t, l.c.WaitRoles(ctx, cluster.Roles{Voters: 3}))
	l.wantAll(t, what)
}

// breakMember kills LXD on a member and breaks its database in one of four ways.
func breakMember(t *testing.T, m *cluster.Member, way int) string {
	t.Helper()
	m.Kill()
	global := filepath.Join(m.Dir(), "database/global")
	switch way {
	case 0:
		must(t, os.RemoveAll(global))
		must(t, os.Mkdir(global, 0o700))
		return "its raft directory is empty"
	case 1:
		loseMetadata(t, global)
		return "its metadata are gone"
	case 2:
		cutLog(t, global)
		return "the end of its log is lost"
	}

	return "nothing is wrong with it"
}

func (l *resyncKillLab) command(ctx context.Context, giver, broken, giving *cluster.Member) *exec.Cmd {
	return giver.Command(ctx, tool, "cluster", "recover", "--resync", broken.Name, "--from", giving.Name, "--yes", "--no-start", "--ssh", l.ssh,
		"--host", "node1=node1,node2=node2,node3=node3")
}

// kill kills what is to be killed. An LXD is started again at once, as a service manager does.
func (l *resyncKillLab) kill(ctx context.Context, t *testing.T, kill string, cmd *exec.Cmd, broken, giving *cluster.Member, others []*cluster.Member) {
	t.Helper()
	restart := func(m *cluster.Member) {
		m.Kill()
		must(t, l.c.StartAll(ctx, m))
	}
	switch kill {
	case "leader":
		for _, m := range others {
			if m.Address() == leaderAddress(ctx, others[0]) {
				restart(m)
				return
			}
		}
	case "member":
		restart(giving)
	case "command":
		_ = cmd.Process.Kill() // nsenter has become the command
	case "agent":
		killAgents(t, broken)
	case "giving agent":
		killAgents(t, giving)
	}
}

// leaderAddress is that of the leader as a member knows it; empty if it knows none.
func leaderAddress(ctx context.Context, m *cluster.Member) string {
	list, err := m.List(ctx)
	if err != nil {
		return ""
	}

	for _, state := range list {
		for _, role := range state.Roles {
			if role == "database-leader" {
				return strings.TrimPrefix(state.URL, "https://")
			}
		}
	}

	return ""
}

// agentsOn are the processes of agents on a member.
func agentsOn(t *testing.T, m *cluster.Member) (pids []int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	for _, file := range files {
		line, _ := os.ReadFile(file)
		words := strings.Split(string(line), "\x00")
		env, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "environ"))
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err == nil && len(words) > 1 && words[1] == "agent" && strings.Contains("\x00"+string(env), "\x00LXD_DIR="+m.Dir()+"\x00") {
			pids = append(pids, pid)
		}
	}

	return pids
}

func killAgents(t *testing.T, m *cluster.Member) {
	t.Helper()
	for _, pid := range agentsOn(t, m) {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// waitNoAgents waits until no agent is left: one whose command was killed ends by itself.
func waitNoAgents(ctx context.Context, t *testing.T, c *cluster.Cluster) {
	t.Helper()
	for _, m := range c.Members() {
		for len(agentsOn(t, m)) > 0 {
			select {
			case <-ctx.Done():
				t.Fatalf("an agent is left on %s", m.Name)
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
}

// wantAll wants all that was confirmed by now on each member's disk.
func (l *resyncKillLab) wantAll(t *testing.T, what string) {
	t.Helper()
	confirmed := l.writer.sofar()
	members := l.c.Members()
	for _, m := range members {
		for _, other := range members {
			if m != other {
				waitFollows(t, m, other)
			}
		}
	}

	for _, m := range members {
		r := m.Command(t.Context(), tool, "global-db-sql", "--format", "csv", "SELECT name FROM profiles WHERE name LIKE 'row-%'")
		var said bytes.Buffer
		r.Stderr = &said
		out, err := r.Output()
		if err != nil {
			t.Fatalf("%s: %v: %s", m.Name, err, &said)
		}

		have := map[string]bool{}
		for _, name := range strings.Fields(string(out)) {
			have[name] = true
		}

		for _, name := range confirmed {
			if !have[name] {
				t.Errorf("%s: %s was confirmed, and is lost on the disk of %s", what, name, m.Name)
			}
		}
	}
}

// steadyWriter adds rows through whichever member takes them, and notes when the last one was confirmed.
type steadyWriter struct {
	end  context.CancelFunc
	done chan struct{}

	mu        sync.Mutex
	confirmed []string
	last      time.Time
	harsh     bool                   // an LXD is being killed
	pauses    map[bool]time.Duration // longest one, by harsh
}

// writeTime is how long one member may take to confirm a row before the next one is asked; writePause is between two rows.
const (
	writeTime  = 3 * time.Second
	writePause = 20 * time.Millisecond
)

func startSteadyWriter(c *cluster.Cluster) *steadyWriter {
	ctx, cancel := context.WithCancel(context.Background())
	w := &steadyWriter{end: cancel, done: make(chan struct{}), last: time.Now(), pauses: map[bool]time.Duration{}}
	go func() {
		defer close(w.done)
		members, at := c.Members(), 0
		for n := 1; ctx.Err() == nil; n++ {
			name := fmt.Sprintf("row-%06d", n)
			limited, cancel := context.WithTimeout(ctx, writeTime)
			err := errors.New("LXD does not run")
			if members[at].Running() {
				err = members[at].CreateProfile(limited, name)
			}

			cancel()
			if err == nil {
				w.record(name)
			} else {
				at = (at + 1) % len(members)
			}

			select {
			case <-ctx.Done():
			case <-time.After(writePause):
			}
		}
	}()
	return w
}

func (w *steadyWriter) record(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()

	w.confirmed = append(w.confirmed, name)
	w.pauses[w.harsh] = max(w.pauses[w.harsh], time.Since(w.last))
	w.last = time.Now()
}

// mark says what is being killed from now on.
func (w *steadyWriter) mark(harsh bool) {
	w.mu.Lock()
	defer w.mu.Unlock()

	w.harsh = harsh
}

func (w *steadyWriter) sofar() []string {
	w.mu.Lock()
	defer w.mu.Unlock()

	return append([]string{}, w.confirmed...)
}

func (w *steadyWriter) stop() ([]string, map[bool]time.Duration) {
	w.end()
	<-w.done
	return w.confirmed, w.pauses
}

// waitWrites waits until one more row is confirmed: the two members that are left have a leader.
func waitWrites(ctx context.Context, w *steadyWriter) error {
	had := len(w.sofar())
	for len(w.sofar()) <= had {
		select {
		case <-ctx.Done():
			return errors.New("nothing is confirmed any more")
		case <-time.After(writePause):
		}
	}

	return nil
}
