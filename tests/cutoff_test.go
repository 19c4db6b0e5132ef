// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/tests/guest"
)

// importLine is an import as it is typed.
const importLine = "lxd-recover global-db-import --yes --discard-local-entries " + guestTarball

// resumeUnit finishes, when the machine starts, what was cut off.
const resumeUnit = "lxd-recover-resume.service"

// stoppedNote is what an import notes before it stops LXD.
const stoppedNote = guestLXD + "/database.stopped.yaml"

// TestCutOff cuts runs off while LXD is down, in every way but the power: it runs again when they end, or when the machine starts. Program and
// unit are where the Debian package has them. Each part finds LXD running, in a cluster of one, with a row that the tarball lacks.
func TestCutOff(t *testing.T) {
	t.Parallel()
	g := guest.ForTest(t, guest.Options{Name: "node1", Address: "10.78.0.1/16"})
	must(t, g.Put(t.Context(), tool, "/usr/bin/lxd-recover", 0o755))
	must(t, g.Put(t.Context(), "../deb/"+resumeUnit, "/usr/lib/systemd/system/"+resumeUnit, 0o644))
	inGuest(t, g, "systemctl", "add-wants", "multi-user.target", resumeUnit)
	letIn(t, []*guest.Guest{g})
	must(t, guest.FormCluster(t.Context(), g))
	lxcInGuest(t, g, "profile", "create", "exported")
	exportInGuest(t, g)
	putText(t, g, "/etc/systemd/system/lxd.service.d/slow.conf", "[Service]\nExecStop=/bin/sh -c 'while [ -e "+slowStop+" ]; do sleep 0.05; done'\n")
	inGuest(t, g, "systemctl", "daemon-reload")
	start := func(t testing.TB, g *guest.Guest) {
		startLXD(t, g)
		if !slices.Contains(profileNames(t, g), "local") {
			lxcInGuest(t, g, "profile", "create", "local")
		}
	}
	runParts(t, g, start, []guestPart{
		{"connection of a terminal", testTerminalLost},
		{"connection without a terminal", testConnectionLost},
		{"output that is read no further", testReadNoFurther},
		{"signals of a session that ends", testSessionEnds},
		{"a FIFO", testFIFO},
		{"SIGKILL", testBoot},
	})
}

// slowStop is there as long as LXD is not to get any further while it is stopped.
const slowStop = "/run/stop-is-slow"

// holdStop keeps LXD from stopping until it is let.
func holdStop(t testing.TB, g *guest.Guest) (let func()) {
	t.Helper()
	inGuest(t, g, "touch", slowStop)
	return func() {
		t.Helper()
		inGuest(t, g, "rm", slowStop)
	}
}

// overSSH is a command line, or an interactive shell if there is none, of somebody who has come by ssh.
func overSSH(line ...string) []string {
	return append([]string{"-o", "HostKeyAlias=node1", "root@127.0.0.1"}, line...)
}

// waitIdle waits until no lxd-recover is at work any more.
func waitIdle(t testing.TB, g *guest.Guest) {
	t.Helper()
	ctx := within(t, time.Minute)
	for toolInGuest(t, g, "hook", "pre-refresh").status != 0 {
		select {
		case <-ctx.Done():
			t.Fatal("an lxd-recover is still at work")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// wantUpAgain wants LXD to run on a whole database, with these rows, and nothing to be left to be finished.
func wantUpAgain(t testing.TB, g *guest.Guest, profiles ...string) {
	t.Helper()
	waitIdle(t, g)
	wantState(t, g, "active", "lxd.service", "lxd.socket")
	wantMissing(t, g.Root()+stoppedNote)
	wantMissing(t, g.Root()+guestLXD+"/database.import")
	wantProfiles(t, g, profiles...)
}

// testTerminalLost loses the connection of an interactive shell: SIGHUP comes twice, from the shell and from the kernel. Where these two come so
// fast that they are one, there is a third.
func testTerminalLost(t *testing.T, g *guest.Guest) {
	let := holdStop(t, g)
	term := onTerminal(t, g.Command(within(t, 2*time.Minute), "ssh", append([]string{"-tt"}, overSSH()...)...))
	term.expect("#")
	term.types("sh -c 'echo $$ > " + backgroundPID + "; exec " + importLine + " --log-file /root/import.log'\n")
	term.expect("Stopping LXD")
	waitUnit(t, g, "lxd.service", "deactivating")
	must(t, term.cmd.Process.Kill())
	term.end()
	inGuest(t, g, "sh", "-c", "pid=$(cat "+backgroundPID+"); while [ -e /proc/$pid ] && ! grep -q 'tarting LXD again' /root/import.log; do sleep 0.02; done; "+
		"kill -HUP $pid; true")
	let()
	wantUpAgain(t, g, "default", "exported", "local")
}

// testConnectionLost loses the connection of a command that has no terminal: nothing but a closed pipe tells it.
func testConnectionLost(t *testing.T, g *guest.Guest) {
	let := holdStop(t, g)
	cmd := g.Command(within(t, 2*time.Minute), "ssh", overSSH(importLine)...)
	lines, err := cmd.StderrPipe()
	must(t, err)
	must(t, cmd.Start())
	b := &background{t: t, g: g, cmd: cmd, lines: lines}
	b.until("Stopping LXD")
	waitUnit(t, g, "lxd.service", "deactivating")
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	let()
	wantUpAgain(t, g, "default", "exported")
}

// testReadNoFurther reads what an import says up to the line that LXD is being stopped.
func testReadNoFurther(t *testing.T, g *guest.Guest) {
	script := "set -o pipefail; " + importLine + ` 2>&1 | sed -u "/Stopping LXD/q"`
	out := inGuest(t, g, "bash", "-c", script)
	if !strings.HasSuffix(out, "Stopping LXD (systemd unit lxd.service)\n") {
		t.Errorf("read: %q", out)
	}

	wantUpAgain(t, g, "default", "exported")
}

// testSessionEnds sends what systemd sends to a session that ends, and the shell and the kernel besides.
func testSessionEnds(t *testing.T, g *guest.Guest) {
	let := holdStop(t, g)
	b := inBackground(t, g, strings.Fields(importLine)[1:]...)
	b.until("Stopping LXD")
	waitUnit(t, g, "lxd.service", "deactivating")
	for _, sig := range []string{"TERM", "HUP", "TERM", "HUP", "PIPE", "QUIT"} {
		b.signal(sig)
	}

	let()
	if status := b.end(); status != 1 || !strings.Contains(string(b.said), "interrupted, the old database is in place") {
		t.Errorf("exit status %d: %s", status, b.said)
	}

	wantUpAgain(t, g, "default", "exported", "local")
}

// testFIFO names a FIFO to which nobody ever writes: it is refused at once, and no lock stays.
func testFIFO(t *testing.T, g *guest.Guest) {
	inGuest(t, g, "mkfifo", "/root/fifo")
	toolInGuest(t, g, "global-db-import", "--yes", "/root/fifo").want(t, 1, "/root/fifo is not a file")
	wantUpAgain(t, g, "default", "exported", "local")
}

// testBoot kills an import while LXD is down. Every command says so, and LXD runs again when the machine was started.
func testBoot(t *testing.T, g *guest.Guest) {
	let := holdStop(t, g)
	b := inBackground(t, g, strings.Fields(importLine)[1:]...)
	b.until("Stopping LXD")
	waitUnit(t, g, "lxd.service", "deactivating")
	b.signal("KILL")
	b.end()
	let()
	waitUnit(t, g, "lxd.service", "inactive")
	for _, command := range [][]string{{"global-db-status"}, {"global-db-kept", "list"}, {"global-db-inspect"}, {"global-db-sql", ".tables"}} {
		r := toolInGuest(t, g, command...)
		if !strings.Contains(r.stderr, "had stopped LXD when it was interrupted") || !strings.Contains(r.stderr, "`lxd-recover resume`") {
			t.Errorf("%v: exit status %d, %q", command, r.status, r.stderr)
		}
	}

	began := property(t, g, resumeUnit, "ConditionTimestampMonotonic")
	softReboot(t, g)
	if property(t, g, resumeUnit, "ConditionTimestampMonotonic") == began || property(t, g, resumeUnit, "Result") != "success" {
		t.Errorf("%s: %s", resumeUnit, inGuest(t, g, "systemctl", "show", resumeUnit))
	}

	wantUpAgain(t, g, "default", "exported", "local")
	ended, lxd := property(t, g, resumeUnit, "InactiveEnterTimestampMonotonic"), property(t, g, "lxd.service", "InactiveExitTimestampMonotonic")
	if len(ended) > len(lxd) || len(ended) == len(lxd) && ended > lxd {
		t.Errorf("LXD was started at %s, before the unit had ended at %s", lxd, ended)
	}

	r := toolInGuest(t, g, "global-db-kept", "list")
	if r.stderr != "" {
		t.Errorf("it is still said: %q", r.stderr)
	}

	inGuest(t, g, "systemctl", "start", resumeUnit)
	if property(t, g, resumeUnit, "ConditionResult") != "no" {
		t.Errorf("%s has run with nothing to do", resumeUnit)
	}
}

// softReboot starts everything on the machine anew but its kernel, and returns when all that is enabled is up.
func softReboot(t testing.TB, g *guest.Guest) {
	t.Helper()
	before := inGuest(t, g, "systemctl", "show", "--property=UserspaceTimestampMonotonic")
	inGuest(t, g, "systemctl", "soft-reboot")
	ctx := within(t, time.Minute)
	for {
		probe, cancel := context.WithTimeout(ctx, 5*time.Second) // one that is asked just before it goes away never answers
		now := run(t, g.Command(probe, "systemctl", "show", "--property=UserspaceTimestampMonotonic"))
		cancel()
		if now.status == 0 && now.stdout != before {
			break
		}

		select {
		case <-ctx.Done():
			t.Fatal("the machine has not started anew")
		case <-time.After(50 * time.Millisecond):
		}
	}

	run(t, g.Command(ctx, "systemctl", "is-system-running", "--wait")) // "degraded" is up, too
}
