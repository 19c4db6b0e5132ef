// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/agent"
	"github.com/lxd-recover/lxd-recover/internal/clusterrun"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/internal/remote"
)

// everything tells whether faults come at each event of a run, or at some.
var everything = os.Getenv("CAMPAIGN") != ""

// relayedSSH is fakeSSH with a relay between giver and agent, which stands for the connection.
const relayedSSH = `#!/bin/sh
while [ $# -gt 2 ]; do shift; done
PATH=$LAB/bin:$PATH LXD_DIR=$LAB/$1 exec "$LAB/bin/lxd-recover" relay "$LAB/$1.cut" "$LAB/$1.carried" "$2"
`

// relay carries what a connection carries: CUT CARRIED COMMAND. If there is a file CUT, it has the number of bytes after which this connection is cut, one
// that goes to the agent or, below zero, one that comes from there; the next one is whole. CARRIED gets the numbers in the end.
func relay(args []string) int {
	limit := int64(0)
	text, err := os.ReadFile(args[0])
	if err == nil {
		limit, _ = strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		_ = os.Remove(args[0])
	}

	cmd := exec.Command("sh", "-c", args[2])
	cmd.Stderr = os.Stderr
	in, inErr := cmd.StdinPipe()
	out, outErr := cmd.StdoutPipe()
	err = errors.Join(inErr, outErr)
	if err == nil {
		err = cmd.Start()
	}

	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}

	var sent int64
	carry := func(to io.Writer, from io.Reader, most int64) (n int64) {
		if most > 0 {
			n, _ = io.CopyN(to, from, most)
			if n == most {
				os.Exit(1) // the kernel closes both directions
			}

			return n
		}

		n, _ = io.Copy(to, from)
		return n
	}
	go func() {
		sent = carry(in, os.Stdin, limit)
		_ = in.Close()
	}()
	got := carry(os.Stdout, out, -limit)
	_ = os.WriteFile(args[1], fmt.Appendf(nil, "%d %d", sent, got), 0o600)
	return 0
}

// farLab is a lab whose runs are given by this process, to agents that are processes of their own, which it reaches through relays.
type farLab struct {
	*commandLab
	beat   time.Duration
	before map[string]string
	number int // of the events of the run under way
}

func newFarLab(t testing.TB) *farLab {
	t.Helper()
	f := &farLab{commandLab: newCommandLab(t), beat: remote.DefaultHeartbeat}
	must(t, os.WriteFile(filepath.Join(f.root, "ssh"), []byte(relayedSSH), 0o700))
	f.before = f.contents()
	t.Cleanup(func() {
		for name := range f.dirs {
			f.signal(name, "agent", unix.SIGKILL)
			f.signal(name, "relay", unix.SIGKILL)
		}

		f.waitNoAgents() // t.TempDir is removed after that
	})
	return f
}

// options are those of a run whose events are counted, from 1. at is called for each, and no other one happens meanwhile; nil for nothing.
func (f *farLab) options(at func(number int, e clusterrun.Event)) clusterrun.Options {
	opts := f.lab.options()
	opts.AgainTime = 15 * time.Second
	opts.Connect = func(ctx context.Context, m clusterrun.Member) (agent.Agent, error) {
		name := m.Name
		if name == "" {
			name = "node1"
		}

		a, err := agent.Dial(ctx, remote.Options{
			Destination: name, SSH: []string{"env", "LAB=" + f.root, filepath.Join(f.root, "ssh")}, Batch: true, Command: []string{"agent"},
			Version: "unknown", Heartbeat: f.beat,
		})
		if err != nil {
			return nil, err // a nil *Remote is no nil Agent
		}

		return a, nil
	}
	opts.Event = func(e clusterrun.Event) {
		f.mu.Lock()
		defer f.mu.Unlock()

		f.events = append(f.events, e)
		f.number++
		if at != nil {
			at(f.number, e)
		}
	}
	return opts
}

// run gives a run.
func (f *farLab) run(at func(number int, e clusterrun.Event)) (*clusterrun.Plan, error) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 5*time.Minute)
	defer cancel()

	for try := 1; ; try++ {
		f.number, f.events = 0, nil
		p, s, err := clusterrun.MakePlan(ctx, f.options(at))
		if err == nil {
			_, err = s.Apply(ctx, p)
			return p, errors.Join(err, s.Close())
		}

		var refusal *recovery.Refusal
		notReached := !errors.As(err, &refusal) || refusal.Code == "unreachable"
		if !notReached || f.number > 1 || try == planTries {
			return nil, err
		}

		f.t.Logf("on a busy machine: %v", err)
		f.waitNoAgents()
	}
}

// planTries is how often a plan is made. A member is taken for lost that is not heard for some seconds, and on a busy machine it may be silent so long.
const planTries = 4

// wholeEvents is how many events a run has without a fault.
const wholeEvents = 22

// sampled are the numbers of events at which a fault comes: all of them, or some, of which the first is given.
func sampled(first int, step int) (numbers []int) {
	if everything {
		first, step = 1, 1
	}

	for number := first; number <= wholeEvents; number += step {
		numbers = append(numbers, number)
	}

	return numbers
}

// processes are those of a kind, agent or relay, on a member.
func (f *farLab) processes(name string, kind string) []int {
	return processesOn(f.t, f.dirs[name], kind)
}

func (f *farLab) signal(name string, kind string, signal unix.Signal) {
	for _, pid := range f.processes(name, kind) {
		_ = unix.Kill(pid, signal)
	}
}

// waitGone waits until no process of these kinds is left on a member.
func (f *farLab) waitGone(name string, kinds ...string) {
	f.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for _, kind := range kinds {
		for len(f.processes(name, kind)) > 0 {
			if time.Now().After(deadline) {
				f.t.Fatalf("%s: a process of the kind %s is left", name, kind)
			}

			time.Sleep(10 * time.Millisecond) // it is nobody's child any more
		}
	}
}

// boot starts a member's machine: nothing runs that ran before, and the boot unit runs first of all.
func (f *farLab) boot(name string) (status int, said string) {
	f.t.Helper()
	program, err := os.Executable()
	must(f.t, err)
	cmd := exec.Command(program, "hook", "boot")
	cmd.Env = append(os.Environ(), "LXD_DIR="+f.dirs[name])
	out, _ := cmd.CombinedOutput()
	return cmd.ProcessState.ExitCode(), string(out)
}

// phase is how far a member has come, by its own note; empty if it is not part of a run.
func (f *farLab) phase(name string) string {
	text, err := os.ReadFile(filepath.Join(f.dirs[name], "database.run.yaml"))
	if errors.Is(err, os.ErrNotExist) {
		return ""
	}

	must(f.t, err)
	_, rest, _ := strings.Cut(string(text), "\nphase: ")
	word, _, _ := strings.Cut(rest, "\n")
	return word
}

// early are the phases before armed.
var early = []string{"reached", "gated", "stopped", "staged"}

// armedAnywhere tells whether a member has come so far that a run does not take itself back any more.
func (f *farLab) armedAnywhere() bool {
	for name := range f.dirs {
		phase := f.phase(name)
		if phase != "" && !slices.Contains(early, phase) {
			return true
		}
	}

	return false
}

// ending is how a run with a fault has ended.
type ending struct {
	isNew    bool
	byResume bool
}

// end finishes what a run with a fault has left, by resume or undo in turn, and wants all members to be whole then. what names the fault.
func (f *farLab) end(what string, p *clusterrun.Plan, runErr error) ending {
	f.t.Helper()
	f.waitNoAgents()
	e := ending{}
	open := f.open()
	told := fmt.Sprintf("%s; open on %v; the run: %v\n", what, open, runErr)
	if len(open) > 0 && p != nil {
		e.byResume = true
		told += f.finish(p, len(what)%3 == 0)
		f.waitNoAgents()
	}

	if len(f.open()) > 0 {
		f.t.Errorf("still open on %v", f.open())
	}

	e.isNew = f.wantWhole(f.before)
	if runErr == nil && !e.isNew {
		f.t.Error("the run says that it is done, and the old database is in place")
	}

	if f.t.Failed() {
		for _, event := range f.events {
			told += fmt.Sprintln(event.Member, event.Phase, event.Text)
		}

		f.t.Fatal(told)
	}

	return e
}

// finish calls resume or undo, and tells what that says. A resume is done, or has taken all back.
func (f *farLab) finish(p *clusterrun.Plan, undo bool) string {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 5*time.Minute)
	defer cancel()

	var back *clusterrun.TakenBack
	if !undo {
		_, err := clusterrun.Resume(ctx, f.options(nil), p)
		if err != nil && !errors.As(err, &back) {
			f.t.Errorf("resume: %v", err)
		}

		return fmt.Sprintf("resume: %v\n", err)
	}

	_, another, s, err := clusterrun.Undo(ctx, f.options(nil), p)
	if err == nil && s != nil {
		_, err = s.Apply(ctx, another)
		err = errors.Join(err, s.Close())
	}

	if err != nil {
		f.t.Errorf("undo: %v", err)
	}

	return fmt.Sprintf("undo: %v\n", err)
}

// faults counts how runs with faults have ended, by the kind of fault.
var faults = struct {
	mu    sync.Mutex
	kinds map[string]map[ending]int
}{kinds: map[string]map[ending]int{}}

func count(kind string, e ending) {
	faults.mu.Lock()
	defer faults.mu.Unlock()

	if faults.kinds[kind] == nil {
		faults.kinds[kind] = map[ending]int{}
	}

	faults.kinds[kind][e]++
	if faultReport != "" { // after each run: a campaign that is ended has counted what it did
		err := os.WriteFile(faultReport, []byte(faultTable()), 0o644)
		if err != nil {
			panic(err)
		}
	}
}

// faultReport is a file for the table of what was counted; empty for none.
var faultReport = os.Getenv("CLUSTER_FAULTS_REPORT")

// faultTable is what was counted, in Markdown. A run that does not end in one of these ways fails its test.
func faultTable() string {
	var b strings.Builder
	b.WriteString("| fault | runs | old database at once | new at once | old by `resume` or `undo` | new by `resume` or `undo` | lost rows |\n")
	b.WriteString("|---|--:|--:|--:|--:|--:|--:|\n")
	sum := map[ending]int{}
	row := func(name string, of map[ending]int) {
		runs := 0
		for _, n := range of {
			runs += n
		}

		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %d | 0 |\n", name, runs, of[ending{false, false}], of[ending{true, false}],
			of[ending{false, true}], of[ending{true, true}])
	}
	for _, kind := range slices.Sorted(maps.Keys(faults.kinds)) {
		row(kind, faults.kinds[kind])
		for e, n := range faults.kinds[kind] {
			sum[e] += n
		}
	}

	row("**all**", sum)
	return b.String()
}
