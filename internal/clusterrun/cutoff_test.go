// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/clusterrun"
)

// fakeSSH stands in for ssh: it takes its last two arguments for the destination, which is a member's name, and the command line, and runs that here on
// the member's directory.
const fakeSSH = `#!/bin/sh
while [ $# -gt 2 ]; do shift; done
PATH=$LAB/bin:$PATH LXD_DIR=$LAB/$1 exec sh -c "$2"
`

// commandLab is a lab whose runs are given by the program itself, in a process of its own; each member's agent is one, too.
type commandLab struct {
	*lab
	root string
}

func newCommandLab(t testing.TB) *commandLab {
	t.Helper()
	c := &commandLab{lab: newLab(t), root: t.TempDir()}
	program, err := os.Executable()
	must(t, err)
	must(t, os.Mkdir(filepath.Join(c.root, "bin"), 0o700))
	must(t, os.Symlink(program, filepath.Join(c.root, "bin", "lxd-recover")))
	must(t, os.WriteFile(filepath.Join(c.root, "ssh"), []byte(fakeSSH), 0o700))
	for name, dir := range c.dirs {
		must(t, os.Rename(dir, filepath.Join(c.root, name)))
		must(t, os.Mkdir(dir, 0o700)) // t.TempDir is to find it
		c.dirs[name] = filepath.Join(c.root, name)
	}

	return c
}

// command is `lxd-recover cluster recover` on node1.
func (c *commandLab) command(ctx context.Context, args ...string) *exec.Cmd {
	program, err := os.Executable()
	must(c.t, err)
	line := append(append([]string{"cluster", "recover"}, args...), "--yes", "--format", "json", "--ssh", filepath.Join(c.root, "ssh"),
		"--host", "node2=node2,node3=node3")
	cmd := exec.CommandContext(ctx, program, line...)
	cmd.Env = append(os.Environ(), "LAB="+c.root, "LXD_DIR="+c.dirs["node1"], "XDG_STATE_HOME="+c.root)
	return cmd
}

// agents are the processes of a member's agents.
func (c *commandLab) agents(name string) []int { return processesOn(c.t, c.dirs[name], "agent") }

// processesOn are those of a kind, agent or relay, on a member's directory.
func processesOn(t testing.TB, dir string, kind string) (pids []int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	for _, file := range files {
		line, err := os.ReadFile(file)
		words := strings.Split(string(line), "\x00")
		if err != nil || len(words) < 2 || words[1] != kind {
			continue
		}

		env, err := os.ReadFile(filepath.Join(filepath.Dir(file), "environ"))
		if err != nil || !strings.Contains(string(env), "LXD_DIR="+dir+"\x00") {
			continue
		}

		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		must(t, err)
		pids = append(pids, pid)
	}

	return pids
}

// waitNoAgents waits until all agents have ended.
func (c *commandLab) waitNoAgents() {
	c.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		left := 0
		for name := range c.dirs {
			left += len(c.agents(name))
		}

		if left == 0 {
			return
		}

		if time.Now().After(deadline) {
			c.t.Fatalf("%d agents are left", left)
		}

		time.Sleep(20 * time.Millisecond) // an agent is nobody's child any more
	}
}

// outcome is how a run has ended.
type outcome struct {
	status int
	events int
	text   string
}

// give gives a run, and calls at for each event, with its number.
func (c *commandLab) give(cmd *exec.Cmd, at func(number int, e clusterrun.Event)) outcome {
	c.t.Helper()
	var said, told strings.Builder
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	must(c.t, err)
	must(c.t, cmd.Start())
	o := outcome{}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e clusterrun.Event
		if json.Unmarshal(lines.Bytes(), &e) != nil || e.Text == "" {
			continue
		}

		o.events++
		fmt.Fprintf(&told, "%s %s %s\n", e.Member, e.Phase, e.Text)
		if at != nil {
			at(o.events, e)
		}
	}

	_, _ = io.Copy(io.Discard, out)
	_ = cmd.Wait()
	o.status, o.text = cmd.ProcessState.ExitCode(), told.String()+said.String()
	return o
}

// resume finishes what is left, and says how it ended.
func (c *commandLab) resume() outcome {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Minute)
	defer cancel()

	return c.give(c.command(ctx, "resume"), nil)
}

// wantWhole wants all members to have one database, old or new, and nothing to be left.
func (c *commandLab) wantWhole(before map[string]string) (isNew bool) {
	c.t.Helper()
	if maps.Equal(c.contents(), before) {
		c.wantClean()
		return false
	}

	c.wantNew("node1", "node2", "node3")
	return true
}

// copyFrom gives the members the databases of before.
func (c *commandLab) copyFrom(saved string) {
	c.t.Helper()
	for name, dir := range c.dirs {
		must(c.t, os.RemoveAll(dir))
		must(c.t, os.CopyFS(dir, os.DirFS(filepath.Join(saved, name))))
	}
}

// TestCutOff kills the giver, or an agent, at each event of a run. Then all members have one database, or the next `resume` gets there. CAMPAIGN=1 does it at
// each event; else at some.
func TestCutOff(t *testing.T) {
	c := newCommandLab(t)
	saved := t.TempDir()
	for name, dir := range c.dirs {
		must(t, os.CopyFS(filepath.Join(saved, name), os.DirFS(dir)))
	}

	before := c.contents()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	whole := c.give(c.command(ctx, "--no-start"), nil)
	if whole.status != 0 || whole.events < 15 || !c.wantWhole(before) {
		t.Fatalf("exit status %d, %d events: %s", whole.status, whole.events, whole.text)
	}

	step := 8
	if everything {
		step = 1
	}

	for i, target := range targets() {
		for number := 1 + i%step; number <= whole.events; number += step {
			c.copyFrom(saved)
			c.cutOff(t, before, target, number)
		}
	}

	t.Logf("sample: runs over the cluster, giver or an agent killed: at every %d. of %d events, four of them", step, whole.events)
}

// targets are what is killed; CUT_OFF_TARGET names one.
func targets() []string {
	one := os.Getenv("CUT_OFF_TARGET")
	if one != "" {
		return []string{one}
	}

	return []string{"giver", "node1", "node2", "node3"}
}

func (c *commandLab) cutOff(t *testing.T, before map[string]string, target string, number int) {
	t.Helper()
	what := fmt.Sprintf("%s killed at event %d", target, number)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	cmd := c.command(ctx, "--no-start")
	phase := ""
	o := c.give(cmd, func(n int, e clusterrun.Event) {
		if n != number {
			return
		}

		phase = e.Member + " " + e.Phase
		pids := []int{cmd.Process.Pid}
		if target != "giver" {
			pids = c.agents(target)
		}

		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	})
	c.waitNoAgents()
	how := "at once"
	open := c.open()
	again := ""
	if len(open) > 0 {
		how = "by resume"
		r := c.resume()
		c.waitNoAgents()
		again = r.text
		if r.status != 0 {
			t.Errorf("%s (%s): resume: exit status %d: %s", what, phase, r.status, r.text)
		}
	}

	isNew := c.wantWhole(before)
	kind := "agent killed"
	if target == "giver" {
		kind = "giver killed"
	}

	count(kind, ending{isNew: isNew, byResume: len(open) > 0})
	if o.status == 0 && !isNew {
		t.Errorf("%s (%s): the run says that it is done, and the old database is in place", what, phase)
	}

	if t.Failed() {
		t.Fatalf("%s (%s): exit status %d, then %s, open on %v:\n%s\nresume:\n%s", what, phase, o.status, how, open, o.text, again)
	}
}

// open are the members that are part of an open run.
func (c *commandLab) open() (names []string) {
	for _, name := range slices.Sorted(maps.Keys(c.dirs)) {
		_, err := os.Stat(filepath.Join(c.dirs[name], "database.run.yaml"))
		if err == nil {
			names = append(names, name)
		}
	}

	return names
}
