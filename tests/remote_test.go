// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/remote"
	"github.com/lxd-recover/lxd-recover/tests/guest"
)

// agentHome is where the program is while it runs on another machine.
const agentHome = "/var/lib/lxd-recover"

// TestRemoteSSH starts an agent on a machine with real sshd, sudo and logind, as different users. The giving side's ssh runs on that
// machine, too.
func TestRemoteSSH(t *testing.T) {
	t.Parallel()
	agent := filepath.Join(t.TempDir(), "agent")
	build := run(t, exec.Command("go", "build", "-tags", "netgo,osusergo", "-o", agent, "./remoteagent"))
	if build.status != 0 {
		t.Fatal(build.stderr)
	}

	g := guest.ForTest(t, guest.Options{Name: "node1", Address: "10.78.0.1/16", WithoutLXD: true})
	letIn(t, []*guest.Guest{g})
	inGuest(t, g, "mkfifo", "/root/ended")
	putText(t, g, "/etc/sudoers.d/admin", "admin ALL=(ALL) NOPASSWD: ALL\n")
	for user, shell := range map[string]string{"admin": "/bin/bash", "plain": "/bin/dash"} {
		inGuest(t, g, "useradd", "--create-home", "--shell", shell, user)
		inGuest(t, g, "sh", "-c", "install -d -o "+user+" /home/"+user+"/.ssh; install -o "+user+" /root/.ssh/authorized_keys /home/"+user+"/.ssh")
	}

	putText(t, g, "/home/admin/.bashrc", "echo Good morning\nprintf 'no end of the line'\n")
	putText(t, g, "/root/other_hosts", "node1 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBtYvyMjMJSnbrhKMiB4DOmWWGTLcAEVzBjyNgVsWtyS\n")
	options := func(user string, ssh ...string) remote.Options {
		argv := g.Command(t.Context(), "ssh", append([]string{"-o", "HostKeyAlias=node1"}, ssh...)...).Args
		return remote.Options{Destination: user + "@127.0.0.1", SSH: argv, Batch: true, Version: "test",
			Binaries: map[string]string{runtime.GOARCH: agent}, Command: []string{"agent"}, Stderr: func(line string) { t.Log("stderr: " + line) }}
	}
	t.Run("refused", func(t *testing.T) {
		wantNoAgent(t, g, options("plain"), remote.CodeNotRoot, "plain@127.0.0.1: the user there is not root (user id ", "sudo: a password is required")
		wantNoAgent(t, g, options("nobody"), remote.CodeUnreachable, "nobody@127.0.0.1: cannot connect: nobody@127.0.0.1: Permission denied")
		wantNoAgent(t, g, options("root", "-o", "UserKnownHostsFile=/root/other_hosts"), remote.CodeHostKey,
			"Offending ED25519 key in /root/other_hosts:1: Host key verification failed.")
		wantNoAgent(t, g, options("root", "-p", "9"), remote.CodeUnreachable, "Connection refused")
	})
	for _, user := range []string{"root", "admin"} {
		t.Run(user, func(t *testing.T) { testRemoteUser(t, g, user, options(user)) })
	}

	t.Run("frozen", func(t *testing.T) {
		conn, lost := waitingAgent(t, options("root"))
		inGuest(t, g, "sh", "-c", "systemctl kill --signal=STOP "+sessionScopes)
		began := time.Now()
		wantLostIn(t, lost, conn, "root@127.0.0.1: the connection was lost: nothing was heard from the other end for 9s")
		wantEnded(t, g, "the connection was lost: nothing was heard from the other end for 9s")
		if took := time.Since(began); took > 11*time.Second {
			t.Errorf("both ends knew it after %s, of which 1 s may be this test's own", took)
		}

		inGuest(t, g, "sh", "-c", "systemctl kill --signal=KILL "+sessionScopes)
	})
}

// sessionScopes are the units of the sessions of users who have come in.
const sessionScopes = "$(systemctl list-units --plain --no-legend --state=running 'session-*.scope' | cut -d ' ' -f 1)"

// testRemoteUser connects as a user who is root, or becomes root by sudo: the agent outlives the user's session.
func testRemoteUser(t *testing.T, g *guest.Guest, user string, opts remote.Options) {
	conn, lost := waitingAgent(t, opts)
	var place struct {
		UID             int
		Cgroup, Program string
	}
	must(t, conn.Call(t.Context(), "where", nil, &place))
	if place.UID != 0 || !strings.Contains(place.Cgroup, "/system.slice/lxd-recover-agent-") || !strings.HasPrefix(place.Program, agentHome+"/agent/") {
		t.Errorf("the agent is %+v", place)
	}

	peer := conn.Peer()
	if (peer.UID == 0) != (user == "root") || peer.Host != "node1" || !peer.Carried || peer.Arch != runtime.GOARCH || peer.Version != "test" {
		t.Errorf("%+v", peer)
	}

	const size = 20 << 20
	var n int64
	must(t, conn.Transfer(t.Context(), "count", nil, &n, remote.Files{From: io.LimitReader(zeros{}, size)}))
	if n != size {
		t.Errorf("%d bytes arrived, of %d", n, size)
	}

	inGuest(t, g, "sh", "-c", "timeout 20 systemctl stop "+sessionScopes) // which does not wait for sudo: it is not in the session, either
	wantLostIn(t, lost, conn, "@127.0.0.1: the connection was lost: the other end has ended, or the connection was cut")
	wantEnded(t, g, "the connection was lost: the other end has ended, or the connection was cut") // not: terminated
	wantMissing(t, g.Root()+agentHome)

	conn, _ = waitingAgent(t, opts)
	done := make(chan struct{})
	go func() {
		defer close(done)
		wantEnded(t, g, "<nil>")
	}()
	must(t, conn.Close())
	<-done
	wantMissing(t, g.Root()+agentHome)
}

type zeros struct{}

func (zeros) Read(data []byte) (int, error) {
	clear(data)
	return len(data), nil
}

// waitingAgent connects, and makes a call that waits for the end. lost has that call's error.
func waitingAgent(t *testing.T, opts remote.Options) (conn *remote.Conn, lost <-chan error) {
	t.Helper()
	waiting := make(chan string, 1)
	opts.Progress = func(line string) { waiting <- line }
	conn, err := remote.Dial(within(t, 30*time.Second), opts)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	ended := make(chan error, 1)
	go func() { ended <- conn.Call(context.Background(), "wait", nil, nil) }()
	select {
	case <-waiting:
	case err := <-ended:
		t.Fatal(err)
	}

	return conn, ended
}

// wantLostIn wants the connection to end so, and the call that was under way with it.
func wantLostIn(t *testing.T, lost <-chan error, conn *remote.Conn, why string) {
	t.Helper()
	err := <-lost
	if !remote.HasCode(err, remote.CodeLost) || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), "during wait") {
		t.Errorf("the call ended with: %v", err)
	}

	if conn.Err() == nil || !strings.Contains(conn.Err().Error(), why) {
		t.Errorf("the connection ended with: %v", conn.Err())
	}
}

// wantEnded waits for the agent's end, and for the reason that it noted.
func wantEnded(t *testing.T, g *guest.Guest, why string) {
	t.Helper()
	out, err := g.Exec(within(t, 20*time.Second), "timeout", "20", "cat", "/root/ended")
	if err != nil || strings.TrimSpace(out) != why {
		t.Errorf("the agent ended with: %s (%v), wanted %s", out, err, why)
	}
}

// wantNoAgent wants a machine not to be reached, with one line that says each of these, and nothing to be left there.
func wantNoAgent(t *testing.T, g *guest.Guest, opts remote.Options, code string, says ...string) {
	t.Helper()
	conn, err := remote.Dial(within(t, 30*time.Second), opts)
	if err == nil {
		_ = conn.Close()
		t.Errorf("connected to %s", opts.Destination)
		return
	}

	for _, text := range says {
		if !remote.HasCode(err, code) || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v; wanted %s, %s", err, code, text)
		}
	}

	_, err = os.Lstat(g.Root() + agentHome)
	if err == nil {
		t.Errorf("%s is there", agentHome)
	}
}
