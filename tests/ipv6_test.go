// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/tests/cluster"
	"github.com/lxd-recover/lxd-recover/tests/machines"
)

// firewall has a machine drop what comes from one address to a port of its own, without an answer; "" for no firewall any more.
func firewall(t *testing.T, m *machines.Machine, from string, port string) {
	t.Helper()
	rules := "add table inet test\ndelete table inet test\n"
	if from != "" {
		rules += "table inet test { chain in { type filter hook input priority 0; ip6 saddr { " + from + " } tcp dport " + port + " drop; }; }\n"
	}

	cmd := exec.CommandContext(t.Context(), "nsenter", "--net="+m.Network().Path(), "nft", "--file", "-")
	cmd.Stdin = strings.NewReader(rules)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %v: %s", err, bytes.TrimSpace(out))
	}
}

// give gives a run that starts nothing, on the giver's machine.
func (l *sizesLab) give(args ...string) result {
	l.t.Helper()
	args = slices.Concat([]string{"cluster", "recover"}, args, []string{"--yes"}, l.reach())
	return run(l.t, l.machines.Giver.Command(within(l.t, time.Minute), "lxd-recover", args...))
}

// A cluster whose members have IPv6 addresses only gets new ones, by one command that finds its members in the list, and is taken back
// to before. First two firewalls are in the way, which drop what they get: one of them keeps the giver off a member, the other one members from each other.
func TestClusterRecoverIPv6(t *testing.T) {
	t.Parallel()
	lxd, _ := bothLXD(t)
	m := machines.ForTest(t, cluster.Options{LXD: lxd, Members: 3, IPv6: true}, tool)
	l := &sizesLab{t: t, Cluster: m.Cluster, machines: m}
	w := l.write(20)
	l.lose(w)
	addresses := l.addresses()
	second, third := l.Member(2), l.Member(3)
	if second.Address() != "[fd77::102]:8443" || !strings.Contains(addresses[1], "node2=[fd77::1:102]:8443") {
		t.Fatalf("%s, to be %v", second.Address(), addresses)
	}

	plan := append([]string{"plan", "/root/plan.yaml"}, addresses...)
	firewall(t, l.machines.Of(second), "fd77::250", "22")
	began := time.Now()
	r := l.give(addresses...)
	r.want(t, 3, "not all members are reached: node2: fd77::1:102: cannot connect: ssh: connect to host fd77::1:102 port 22: Connection timed out; ")
	if took := time.Since(began); took > 25*time.Second {
		t.Errorf("it was known after %s", took)
	}

	firewall(t, l.machines.Of(second), "", "")
	firewall(t, l.machines.Of(third), l.machines.Of(second).NewIP()+", fd77::102", "8443")
	r = l.give(plan...)
	const doubt = "Warning: no machine answers at [fd77::1:103]:8443, the new address of node3, as seen from node2: a firewall may be in the way\n"
	if r.status != 0 || strings.Count(r.stdout, "no machine answers") != 1 || !strings.Contains(r.stdout, doubt) {
		t.Errorf("exit status %d, want one doubt: %s", r.status, doubt)
	}

	firewall(t, l.machines.Of(third), "", "")
	for _, m := range l.Members() {
		left, err := filepath.Glob(filepath.Join(m.Dir(), "database.*"))
		must(t, err)
		if len(left) > 0 {
			t.Errorf("%s: %v: nothing was to be changed", m.Name, left)
		}
	}

	l.recover(addresses...)
	l.moved = true
	l.wantRecovered()
	l.stopCleanly()
	r = l.give("undo", "--no-start") // the addresses that the run has changed are no user's change, which --discard-local-entries would have to give up
	if r.status != 0 || strings.Contains(r.stderr, "lacks") {
		t.Errorf("undo: exit status %d", r.status)
	}
}
