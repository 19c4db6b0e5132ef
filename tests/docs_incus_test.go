// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/tests/guest"
	"github.com/lxd-recover/lxd-recover/tests/progress"
)

// TestDocsIncus runs every command of the page about Incus as it stands there, on machines on which systemd runs Debian's Incus.
func TestDocsIncus(t *testing.T) {
	t.Parallel()
	p := readPage(t, "docs/howto-incus.md")
	l := newIncusDocsLab(t)
	t.Run("members are lost", func(t *testing.T) {
		l.resetIncus(t)
		l.start(t, "server1", "server2", "server3")
		l.wantIncusMembers(t, 3)
		l.lost(t, "server2", "server3")
		l.awaitLoss(t, "server1")
		l.run(t, p, []string{"Members are lost"})
		l.wantIncusProfile(t, "server1")
	})
	t.Run("the addresses have changed", func(t *testing.T) {
		l.resetIncus(t)
		l.network(t, "10.79")
		l.run(t, p, []string{"The addresses have changed"})
		for name := range l.guests {
			l.wantIncusProfile(t, name)
		}
	})
	p.wantAllRun(t)
}

// newIncusDocsLab boots three machines with Incus, and forms a cluster of them.
func newIncusDocsLab(t *testing.T) *docsLab {
	t.Helper()
	ctx := within(t, 5*time.Minute)
	l := &docsLab{variant: "incus", lxdDir: "/var/lib/incus", guests: map[string]*guest.Guest{}}
	network := guest.NetworkForTest(t)
	var nodes []*guest.Guest
	for i := range 3 {
		name, ip := fmt.Sprintf("server%d", i+1), fmt.Sprintf("10.78.0.%d", i+1)
		g := guest.ForTest(t, guest.Options{Name: name, Network: network, Address: ip + "/16", Image: incus(t).Image})
		l.guests[name] = g
		nodes = append(nodes, g)
		must(t, g.Put(ctx, tool, "/root/lxd-recover", 0o755))
		putText(t, g, "/etc/systemd/system/incus.service.d/stop.conf", "[Service]\nTimeoutStopSec=8\n")
		inGuest(t, g, "systemctl", "daemon-reload")
	}

	for i, g := range nodes {
		cluster := map[string]any{"enabled": true, "server_name": g.Name}
		answers := map[string]any{"config": map[string]string{"core.https_address": g.IP() + ":8443", "images.auto_update_interval": "0"}, "cluster": cluster}
		if i > 0 {
			cluster["server_address"] = g.IP() + ":8443"
			cluster["cluster_token"] = strings.TrimSpace(inGuest(t, nodes[0], "incus", "cluster", "add", "--quiet", g.Name))
			delete(answers, "config")
		}

		yaml, err := json.Marshal(answers)
		must(t, err)
		cmd := g.Command(ctx, "incus", "admin", "init", "--preseed")
		cmd.Stdin = strings.NewReader(string(yaml))
		if r := run(t, cmd); r.status != 0 {
			t.Fatalf("%s: init: exit status %d", g.Name, r.status)
		}
	}

	l.wantIncusMembers(t, 3)
	inGuest(t, nodes[0], "incus", "profile", "create", "precious")
	letIn(t, nodes)
	l.freezeAlike(t, nodes...)
	l.each(t, func(g *guest.Guest) {
		inGuest(t, g, "cp", "--archive", l.lxdDir+"/database", "/root/saved")
		l.kill(t, g)
	})
	return l
}

// resetIncus gives all members the database back that they had when the cluster had just been formed. Incus is down everywhere.
func (l *docsLab) resetIncus(t *testing.T) {
	t.Helper()
	l.real = map[string]string{}
	l.each(t, func(g *guest.Guest) {
		l.kill(t, g)
		inGuest(t, g, "sh", "-c", "rm -rf "+l.lxdDir+"/database* /root/*.tar.gz; rm -f /usr/local/bin/lxd-recover")
		inGuest(t, g, "cp", "--archive", "/root/saved", l.lxdDir+"/database")
	})
	l.network(t, "10.78")
}

// wantIncusMembers waits until that many members are online, and all of them voters.
func (l *docsLab) wantIncusMembers(t *testing.T, count int) {
	t.Helper()
	ctx := within(t, progress.Far)
	for {
		list, err := l.guests["server1"].Exec(ctx, "timeout", "--signal=KILL", "25", "incus", "cluster", "list", "--format", "json")
		var members []struct {
			Roles  []string `json:"roles"`
			Status string   `json:"status"`
		}
		voters := 0
		if err == nil && json.Unmarshal([]byte(list), &members) == nil {
			for _, m := range members {
				if m.Status == "Online" && slices.Contains(m.Roles, "database") {
					voters++
				}
			}
		}

		if voters == count {
			return
		}

		select {
		case <-ctx.Done():
			t.Fatalf("%v: %s", err, list)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// wantIncusProfile checks that nothing was lost on a member, and that its cluster works: it can write.
func (l *docsLab) wantIncusProfile(t *testing.T, server string) {
	t.Helper()
	if list := inGuest(t, l.guests[server], "incus", "profile", "list", "--format", "csv"); !strings.Contains(list, "precious") {
		t.Errorf("%s has the profiles %s", server, list)
	}

	inGuest(t, l.guests[server], "incus", "profile", "create", fmt.Sprintf("after-%s", server))
}
