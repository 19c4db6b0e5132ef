// SPDX-License-Identifier: AGPL-3.0-only

package guest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/tests/guest"
	"github.com/lxd-recover/lxd-recover/tests/progress"
)

// must ends the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// says checks what a command in the guest writes.
func says(t *testing.T, g *guest.Guest, want string, name string, args ...string) {
	t.Helper()
	out, err := g.Exec(t.Context(), name, args...)
	if err != nil || !strings.Contains(out, want) {
		t.Errorf("%s %s in %s: %q, %v, want %q", name, strings.Join(args, " "), g.Name, out, err, want)
	}
}

func TestGuest(t *testing.T) {
	ctx := t.Context()
	g := guest.ForTest(t, guest.Options{Name: "alone", Address: "10.78.0.1/16", Mask: []string{"lxd-containers.service"}})

	// systemd is up as soon as Boot returns, with everything that Debian enables and nothing failed.
	says(t, g, "running", "systemctl", "is-system-running")
	says(t, g, "active", "systemctl", "is-active", "lxd.socket")
	says(t, g, "LoadState=masked", "systemctl", "show", "lxd-containers.service")
	says(t, g, "alone", "hostname")
	says(t, g, "10.78.0.1/16", "ip", "address", "show", "eth0")
	out, err := g.Exec(ctx, "ip", "route", "get", "192.0.2.1")
	if err == nil {
		t.Errorf("a route leads out: %s", out)
	}

	// snapd is, too, and does not look for the store.
	says(t, g, "snapd   2.", "snap", "version")
	_, err = g.Exec(ctx, "snap", "install", "hello")
	if err == nil || !strings.Contains(err.Error(), "offline") {
		t.Errorf("snap install without a store: %v", err)
	}

	// Commands have their own environment, fail with what they said, and end with their context.
	says(t, g, "/root\n", "pwd")
	t.Setenv("LXD_DIR", "/nonexistent")
	says(t, g, "unset", "sh", "-c", "echo ${LXD_DIR-unset}")
	_, err = g.Exec(ctx, "sh", "-c", "echo sorry >&2; exit 7")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 || !strings.Contains(err.Error(), "sorry") {
		t.Errorf("error of a failed command: %v", err)
	}

	// Files go in and can be looked at from outside.
	source := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(source, []byte("content"), 0o600))
	must(t, g.Put(ctx, source, "/srv/deep/file", 0o751))
	says(t, g, "751 content", "sh", "-c", "stat -c %a /srv/deep/file | tr '\n' ' '; cat /srv/deep/file")
	if data, err := os.ReadFile(g.Root() + "/srv/deep/file"); err != nil || string(data) != "content" {
		t.Errorf("the file from outside: %q, %v", data, err)
	}

	err = g.Put(ctx, source, "/proc/file", 0o600)
	if err == nil {
		t.Error("a file was put into /proc")
	}

	// LXD starts when somebody calls.
	says(t, g, "inactive", "sh", "-c", "systemctl is-active lxd.service || true")
	says(t, g, "server_clustered: false", "lxc", "info")
	says(t, g, "lxd", "systemctl", "show", "--property=MainPID,ExecStart", "lxd.service")
}

func TestCommandEnds(t *testing.T) {
	g := guest.ForTest(t, guest.Options{})
	seconds := fmt.Sprintf("601.%d", os.Getpid())
	cmd := g.Command(t.Context(), "sh", "-c", "echo begun; exec sleep "+seconds)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	_, err = io.ReadFull(out, make([]byte, len("begun")))
	must(t, err)
	must(t, cmd.Process.Kill())
	err = cmd.Wait()
	if err == nil {
		t.Error("a killed command ended well")
	}

	must(t, progress.Watch{What: "the end of what the command ran", Every: time.Millisecond}.Until(t.Context(), func(context.Context) (bool, error) {
		left := running(t, seconds)
		return len(left) == 0, fmt.Errorf("still running in the guest: %v", left)
	}))
}

// TestCluster has three guests on one network, whose LXDs form a cluster, and one on another network in their midst.
func TestCluster(t *testing.T) {
	ctx := t.Context()
	network := guest.NetworkForTest(t)
	var guests []*guest.Guest
	for i := range 3 {
		guests = append(guests, guest.ForTest(t, guest.Options{
			Name: fmt.Sprintf("node%d", i+1), Network: network, Address: fmt.Sprintf("10.78.0.%d/16", i+1),
		}))
	}

	other := guest.ForTest(t, guest.Options{Name: "other", Address: "10.78.0.9/16"})
	must(t, guest.FormCluster(ctx, guests...))
	out, err := guests[2].Exec(ctx, "lxc", "cluster", "list", "--format", "csv")
	must(t, err)
	for _, g := range guests {
		if !strings.Contains(out, g.Name+",https://"+net.JoinHostPort(g.IP(), "8443")) {
			t.Errorf("%s is not in\n%s", g.Name, out)
		}
	}

	connect := []string{"-c", "exec 3<> /dev/tcp/10.78.0.1/8443"}
	_, err = guests[1].Exec(ctx, "bash", connect...)
	must(t, err)
	_, err = other.Exec(ctx, "bash", connect...)
	if err == nil {
		t.Error("networks see each other")
	}

	err = guest.FormCluster(ctx, other, guests[0])
	if err == nil {
		t.Error("a member of one cluster was made one of another")
	}
}
