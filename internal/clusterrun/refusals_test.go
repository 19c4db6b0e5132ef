// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/agent"
	"github.com/lxd-recover/lxd-recover/internal/clusterrun"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// refusalCase is what a run is refused for, with one line that has a text in it.
type refusalCase struct {
	name, code, member, text string

	args []string // of the command
	ssh  string   // what the shell does in place of ssh when it goes to node2; empty for nothing else

	change func(look *recovery.MemberLook) // of node2, in place of a command
}

// unrooted runs the command line as a user who is not root, on a machine without sudo.
const unrooted = `mkdir -p "$LAB/none"; for p in sh id sed; do ln -sf "$(command -v $p)" "$LAB/none/"; done; chmod 755 "$LAB" "$(dirname "$LAB")"; cd /
PATH=$LAB/none exec /usr/bin/setpriv --reuid 65534 --regid 65534 --clear-groups sh -c "$2"`

var refusalCases = []refusalCase{
	{name: "a firewall that drops", code: "unreachable", member: "node2", ssh: "echo 'ssh: connect to host node2 port 22: Connection timed out' >&2; exit 255",
		text: "not all members are reached: node2: node2: cannot connect: ssh: connect to host node2 port 22: Connection timed out; --host NAME=DESTINATION"},
	{name: "host key changed", code: "host-key", member: "node2", ssh: "echo 'Host key verification failed.' >&2; exit 255",
		text: "node2 is not reached: node2: cannot connect: Host key verification failed.; if the machine has a new key, and you know why, take it"},
	{name: "no root", code: "not-root", member: "node2", ssh: unrooted,
		text: "node2 is not reached: node2: the user there is not root (user id 65534), and sudo is not installed: connect as root"},
	{name: "two hosts, one member", code: "wrong-host", member: "node2", ssh: `set -- node3 "$2"`, text: "at node2 there is node3, not node2; --host node2="},
	{name: "another cluster's host", code: "another-cluster", member: "node2", ssh: "LAB=$LAB/other; PATH=$LAB/../bin:$PATH",
		text: "it is a member of another cluster than node1"},
	{name: "wrong address", code: "address-absent", member: "node2", args: []string{"--address", "node2=[fd99::9]:8443"},
		text: "its machine does not have the new address [fd99::9]:8443"},
	{name: "no address", code: "member-list", args: []string{"--address", "node2=fd99::9:8443,node3=nowhere"}, text: "the new member list: "},
	{name: "clock off", code: "clock-off", member: "node2", text: "its clock is 2m0s off this machine's. Set the clocks, with NTP for instance",
		change: func(look *recovery.MemberLook) { look.Clock = look.Clock.Add(2 * time.Minute) }},
	{name: "another schema", code: "schema-newer", member: "node2", text: "its LXD 4.0.9 knows the database's schema up to version 14",
		change: func(look *recovery.MemberLook) { look.Status.LXD.Version, look.Status.LXD.Schema = "4.0.9", 14 }},
	{name: "snap beside package", code: "two-lxd", member: "node2", text: "there is another one's database in /var/lib/lxd beside it",
		change: func(look *recovery.MemberLook) { look.Beside = "/var/lib/lxd" }},
	{name: "too little disk", code: "disk-full", member: "node2", text: "its disk has 5 MiB left, and the run needs ",
		change: func(look *recovery.MemberLook) { look.Free = 5 << 20 }},
	{name: "working cluster", code: "working-cluster", member: "node2", text: "LXD on node2 answers, and a majority of the voters has confirmed what it wrote",
		change: func(look *recovery.MemberLook) { look.Answers = true }},
	{name: "LXD that nothing runs", code: "no-service", member: "node2", text: "neither systemd nor snapd runs it: stop it first",
		change: func(look *recovery.MemberLook) { look.Status.Running = true }},
	{name: "no exchange", code: "cannot-exchange", member: "node2", text: "node2: overlay",
		change: func(look *recovery.MemberLook) { look.Obstacle = "overlay" }},
}

// What cannot be recovered is refused before anything is stopped: exit status 3, and one line that names the member.
func TestRefusals(t *testing.T) {
	c, other := newCommandLab(t), newOtherLab(t)
	must(t, os.CopyFS(filepath.Join(c.root, "other", "node2"), os.DirFS(other.dirs["node2"])))
	before := c.contents()
	for _, test := range refusalCases {
		t.Run(test.name, func(t *testing.T) {
			c.t = t
			if test.change != nil {
				c.refusesLook(test)
			} else {
				c.refuses(test)
			}

			c.waitNoAgents()
			if !maps.Equal(c.contents(), before) {
				t.Error("a database was changed")
			}

			c.wantClean()
		})
	}
}

// refuses gives the command, and wants what it says to be right for people and for programs.
func (c *commandLab) refuses(test refusalCase) {
	c.t.Helper()
	script := strings.Replace(fakeSSH, "PATH=", "if [ \"$1\" = node2 ]; then :; "+test.ssh+"\nfi\nPATH=", 1)
	must(c.t, os.WriteFile(filepath.Join(c.root, "ssh"), []byte(script), 0o700))
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()

	var said bytes.Buffer
	cmd := c.command(ctx, test.args...)
	cmd.Stderr = &said
	out, _ := cmd.Output()
	line := strings.TrimSuffix(said.String(), "\n")
	if cmd.ProcessState.ExitCode() != 3 || !strings.Contains(line, test.text) || strings.Contains(line, "\n") {
		c.t.Errorf("exit status %d: %s\nwant %q", cmd.ProcessState.ExitCode(), line, test.text)
	}

	var last struct {
		Refusals []struct{ Code, Member, Flag string }
	}
	events := json.NewDecoder(bytes.NewReader(out))
	for events.More() {
		var e clusterrun.Event
		var raw json.RawMessage
		must(c.t, events.Decode(&raw))
		must(c.t, errors.Join(json.Unmarshal(raw, &e), json.Unmarshal(raw, &last)))
		if e.Phase != "" {
			c.t.Errorf("%s has come to %s", e.Member, e.Phase)
		}
	}

	if len(last.Refusals) != 1 || last.Refusals[0].Code != test.code || last.Refusals[0].Member != test.member {
		c.t.Errorf("refusals %+v, want %s of %s", last.Refusals, test.code, test.member)
	}
}

// works is an agent of a member whose LXD has a quorum.
type works struct{ agent.Agent }

func (works) Quorum(context.Context) error { return nil }

// seenAgent is an agent of a member of a cluster that is as it was: it is looked at once for all tests.
type seenAgent struct {
	agent.Agent
	name string
}

var seenLooks sync.Map // by the members' names

func (a *seenAgent) Look(ctx context.Context) (*recovery.MemberLook, error) {
	known, ok := seenLooks.Load(a.name)
	if !ok {
		read, err := a.Agent.Look(ctx)
		if err != nil {
			return nil, err
		}

		known = read
		seenLooks.Store(a.name, read)
	}

	look := *known.(*recovery.MemberLook)
	status := *look.Status
	look.Status, look.Clock = &status, time.Now()
	return &look, nil
}

// A member that has lost its node database, with its log or without, is refused before anything is stopped, by a run and by a resync: neither makes a new one.
func TestNodeDatabaseLost(t *testing.T) {
	const command = "`lxd-recover global-db-resync --from HOST --node-db FILE` on node3 makes it"
	for name, lost := range map[string][]string{"alone": {"local.db"}, "with its log": {"local.db", "global"}} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			for _, part := range lost {
				must(t, os.RemoveAll(filepath.Join(l.dirs["node3"], "database", part)))
			}

			must(t, os.MkdirAll(filepath.Join(l.dirs["node3"], "database/global"), 0o700))
			before := l.contents()
			_, _, resyncErr := clusterrun.PlanResync(t.Context(), l.options(), "node3")
			_, _, runErr := clusterrun.MakePlan(t.Context(), l.options())
			for _, err := range []error{resyncErr, runErr} {
				var refusal *recovery.Refusal
				if !errors.As(err, &refusal) || refusal.Code != "node-database-lost" || refusal.Member != "node3" || !strings.Contains(err.Error(), command) {
					t.Errorf("%v", err)
				}
			}

			l.wantOld(before)
		})
	}
}

// refusesLook plans with a member that says something else of itself.
func (c *commandLab) refusesLook(test refusalCase) {
	c.t.Helper()
	opts := c.options()
	opts.Connect = func(_ context.Context, m clusterrun.Member) (agent.Agent, error) {
		a, err := c.connect(m)
		change := test.change
		if m.Name != "node2" {
			change = func(*recovery.MemberLook) {}
		}

		return works{changedLook{&seenAgent{a, m.Name}, change}}, err
	}
	_, s, err := clusterrun.MakePlan(c.t.Context(), opts)
	if err == nil {
		_ = s.Close()
	}

	var refusal *recovery.Refusal // exit status 3, see TestRecoverEnds
	if !errors.As(err, &refusal) || refusal.Code != test.code || refusal.Member != test.member || !strings.Contains(err.Error(), test.text) ||
		strings.Contains(err.Error(), "\n") {
		c.t.Errorf("%v\nwant %s of %s: %q", err, test.code, test.member, test.text)
	}
}
