// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/clusterrun"
	"github.com/lxd-recover/lxd-recover/tests/guest"
)

// recoverLab is a cluster of guests, which let each other in by ssh. Only the first one has lxd-recover.
type recoverLab struct {
	t      *testing.T
	guests []*guest.Guest
}

// newRecoverLab forms a cluster of so many members, with the profile "kept".
func newRecoverLab(t *testing.T, members int) *recoverLab {
	t.Helper()
	ctx := within(t, 5*time.Minute)
	network := guest.NetworkForTest(t)
	l := &recoverLab{t: t}
	for i := range members {
		g := guest.ForTest(t, guest.Options{Name: fmt.Sprintf("server%d", i+1), Network: network, Address: fmt.Sprintf("10.78.0.%d/16", i+1)})
		l.guests = append(l.guests, g)
	}

	must(t, l.guests[0].Put(ctx, tool, "/usr/bin/lxd-recover", 0o755))
	must(t, guest.FormCluster(ctx, l.guests...))
	letIn(t, l.guests)
	lxcInGuest(t, l.guests[0], "profile", "create", "kept")
	return l
}

// in is the lab for a part of the test.
func (l *recoverLab) in(t *testing.T) *recoverLab { return &recoverLab{t: t, guests: l.guests} }

// server is the one with this number.
func (l *recoverLab) server(number int) *guest.Guest { return l.guests[number-1] }

// run runs `lxd-recover cluster recover` on a member, and wants an exit status, and texts on standard output or error.
func (l *recoverLab) run(number int, status int, says []string, args ...string) {
	l.t.Helper()
	r := run(l.t, l.server(number).Command(within(l.t, 5*time.Minute), "lxd-recover", append([]string{"cluster", "recover"}, args...)...))
	if r.status != status {
		l.t.Fatalf("%v: exit status %d, want %d", args, r.status, status)
	}

	for _, text := range says {
		if !strings.Contains(r.stdout+r.stderr, text) {
			l.t.Errorf("%v does not say %q", args, text)
		}
	}
}

// cutOff gives a run, and kills the giver at the first event that is the wanted one.
func (l *recoverLab) cutOff(at func(e clusterrun.Event) bool, args ...string) {
	l.t.Helper()
	const pid = "/run/giver.pid"
	line := "echo $$ > " + pid + "; exec lxd-recover cluster recover --yes --format json " + strings.Join(args, " ")
	cmd := l.server(1).Command(within(l.t, 5*time.Minute), "sh", "-c", line)
	out, err := cmd.StdoutPipe()
	must(l.t, err)
	var said strings.Builder
	cmd.Stderr = &said
	must(l.t, cmd.Start())
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 16<<20)
	killed := false
	for lines.Scan() {
		var e clusterrun.Event
		if !killed && json.Unmarshal(lines.Bytes(), &e) == nil && at(e) {
			killed = true
			inGuest(l.t, l.server(1), "sh", "-c", "kill -KILL $(cat "+pid+")")
		}
	}

	_, _ = io.Copy(io.Discard, out)
	_ = cmd.Wait()
	if !killed {
		l.t.Fatalf("%v has ended before it was to be cut off: %s", args, said.String())
	}
}

// lose ends LXD on machines, and cuts them off.
func (l *recoverLab) lose(numbers ...int) {
	l.t.Helper()
	for _, n := range numbers {
		g := l.server(n)
		inGuest(l.t, g, "systemctl", "kill", "--signal=KILL", "lxd.service")
		inGuest(l.t, g, "systemctl", "stop", "--job-mode=ignore-dependencies", "lxd.socket", "lxd.service")
		inGuest(l.t, g, "ip", "link", "set", "eth0", "down")
	}
}

// wantRows wants members to have profiles, and to be told of no others.
func (l *recoverLab) wantRows(numbers []int, want ...string) {
	l.t.Helper()
	for _, n := range numbers {
		wantProfiles(l.t, l.server(n), append([]string{"default"}, want...)...)
	}
}

// leftOfRuns are what runs have left on a machine, but for what is kept.
const leftOfRuns = "ls -d /var/lib/lxd/database.* /etc/systemd/system/*.d/*lxd-recover* /var/lib/lxd-recover/agent/* 2> /dev/null | " +
	"grep --invert-match --extended-regexp '[.]before-|high-water'; true"

// wantNothingLeft wants no trace of a run on machines but what is kept.
func (l *recoverLab) wantNothingLeft(numbers ...int) {
	l.t.Helper()
	for _, n := range numbers {
		eventually := within(l.t, time.Minute)
		for {
			left := inGuest(l.t, l.server(n), "sh", "-c", leftOfRuns)
			if left == "" {
				break
			}

			select {
			case <-eventually.Done():
				l.t.Fatalf("server%d: left: %s", n, left)
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// resyncs brings server4 back from server1, whose command is killed the first time: then LXD runs on server4 as before. It is
// no voter: LXD would make another member one, and the test goes on with those that there are.
func (l *recoverLab) resyncs() {
	l.t.Helper()
	l.cutOff(func(e clusterrun.Event) bool { return e.Member == "server4" && e.Phase == "stopped" }, "--resync", "server4")
	l.wantNothingLeft(4)
	waitUnit(l.t, l.server(4), "lxd.service", "active")
	says := []string{"server4 has the database of the cluster, from server1", "LXD is up.", "Its log follows the leader's."}
	l.run(1, 0, says, "--yes", "--resync", "server4")
	l.wantRows([]int{4}, "kept")
	l.wantNothingLeft(4)
	waitThreeVoters(l.t, l.server(1))
}

// A cluster of four loses two of three voters: one command on a survivor recovers it, whatever cuts it off. Instances go on running.
func TestClusterRecover(t *testing.T) {
	t.Parallel()
	l := newRecoverLab(t, 4)
	survivors := []int{1, 4}
	waitThreeVoters(t, l.server(1))
	must(t, l.server(4).Put(t.Context(), tool, "/root/lxd-recover", 0o755))
	waitDatabase(t, l.server(4))
	instance := startContainer(t, l.server(1))
	l.run(1, 3, []string{"the cluster works"}, "--yes")
	t.Run("one broken member", func(t *testing.T) { l.in(t).resyncs() })
	l.lose(2, 3)
	l.run(1, 3, []string{"--lost server2,server3"}, "--yes")
	lost := []string{"--lost", "server2,server3"}

	t.Run("cut off before all have staged", func(t *testing.T) {
		l := l.in(t)
		l.cutOff(func(e clusterrun.Event) bool { return e.Member == "server4" && e.Phase == "stopped" }, lost...)
		l.wantNothingLeft(survivors...)
		for _, n := range survivors {
			wantState(t, l.server(n), "active", "lxd.socket")
		}
	})

	t.Run("cut off when all are armed", func(t *testing.T) {
		l := l.in(t)
		armed := 0
		l.cutOff(func(e clusterrun.Event) bool {
			if e.Phase == "armed" {
				armed++
			}

			return armed == len(survivors)
		}, lost...)
		softReboot(t, l.server(4))
		for _, n := range survivors {
			inGuest(t, l.server(n), "systemctl", "start", "lxd.socket", "lxd.service")
			wantState(t, l.server(n), "inactive", "lxd.service", "lxd.socket")
		}

		r := run(t, l.server(1).Command(within(t, time.Minute), "lxd-recover", "resume"))
		r.want(t, 3, "`lxd-recover cluster recover resume` finishes it on all members")
		must(t, l.server(4).Put(t.Context(), tool, "/usr/bin/lxd-recover", 0o755))
		l.run(4, 0, []string{"server1, server4"}, "resume", "--yes")
		l.run(4, 0, []string{"One cluster of 2 members"}, append([]string{"verify"}, lost...)...)
	})

	l.wantRows(survivors, "kept")
	l.wantNothingLeft(survivors...)
	wantRunning(t, l.server(1), instance)
	lxcInGuest(t, l.server(4), "profile", "create", "after")
	pid := property(t, l.server(1), "lxd.service", "MainPID")
	l.run(1, 3, []string{"insert profile after"}, "undo", "--yes")
	if now := property(t, l.server(1), "lxd.service", "MainPID"); now != pid {
		t.Errorf("LXD was stopped before the undo was refused: process %s, then %s", pid, now)
	}

	l.run(1, 0, []string{"One cluster of 2 members"}, "undo", "--yes", "--discard-local-entries")
	l.wantRows(survivors, "kept")
	for _, n := range survivors {
		inGuest(t, l.server(n), "ip", "addr", "add", fmt.Sprintf("10.79.0.%d/16", n), "dev", "eth0")
	}

	moved := append([]string{"--yes", "--move", "--address", "server1=10.79.0.1:8443,server4=10.79.0.4:8443"}, lost...)
	absent := append([]string{"--yes", "--move", "--address", "server1=10.79.0.2:8443"}, lost...)
	l.run(1, 3, []string{"does not have the new address 10.79.0.2:8443"}, absent...)
	l.run(1, 0, []string{"One cluster of 2 members"}, moved...)
	for _, n := range survivors {
		list := lxcInGuest(t, l.server(n), "cluster", "list", "--format", "csv")
		if !strings.Contains(list, "https://10.79.0.1:8443") || !strings.Contains(list, "https://10.79.0.4:8443") {
			t.Errorf("server%d lists %s", n, list)
		}
	}

	l.wantRows(survivors, "kept")
	l.wantNothingLeft(survivors...)
	wantRunning(t, l.server(1), instance)
}
