// SPDX-License-Identifier: AGPL-3.0-only

package preflight

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

const nowhere = "192.0.2.7:8443" // TEST-NET-1

func TestBindable(t *testing.T) {
	for address, expected := range map[string]Presence{
		"127.0.0.1:8443":             Here,
		"127.9.9.9:8443":             Here,
		"[::ffff:127.0.0.1]:8443":    Here,
		":8443":                      Here,
		"0.0.0.0:8443":               Here,
		"localhost:8443":             Here,
		nowhere:                      Absent,
		"[2001:db8::7]:8443":         Absent,
		"[fe80::7%nowhere0]:8443":    Absent,
		"no-such-host.invalid:8443":  Unknown,
		"a name of no machine.:8443": Unknown,
	} {
		found, why := Bindable(t.Context(), address)
		if found != expected || (why == "") != (found != Unknown) {
			t.Errorf("%s: %d (%s), want %d", address, found, why, expected)
		}
	}
}

// The kernel decides, not a list of interfaces.
func TestBindableNonLocal(t *testing.T) {
	done := make(chan struct{})
	go func() { // its thread, which is in a network namespace of its own, ends with it
		defer close(done)
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err != nil {
			t.Errorf("%v: this test needs root", err)
			return
		}

		out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput() // with no interface up, the kernel lets everything pass
		if err != nil {
			t.Errorf("%v: %s", err, out)
		}

		before, _ := Bindable(t.Context(), nowhere)
		err = os.WriteFile("/proc/sys/net/ipv4/ip_nonlocal_bind", []byte("1"), 0o644)
		after, _ := Bindable(t.Context(), nowhere)
		if err != nil || before != Absent || after != Here {
			t.Errorf("%s is %d, and with ip_nonlocal_bind %d (%v)", nowhere, before, after, err)
		}
	}()
	<-done
}

func TestOwnAddresses(t *testing.T) {
	const old, new = "10.0.0.1:8443", "10.1.0.1:8443"
	facts := Facts{Self: 1, Members: member.List{{ID: 1, Name: "n1", Address: new, Role: raftlog.Voter}}}
	for _, c := range []struct {
		name  string
		own   []OwnAddress
		codes []string
	}{
		{"all here", []OwnAddress{{Key: KeyCluster, Address: new, Here: Here}, {Key: KeyCore, Address: new, Here: Here}}, nil},
		{"absent", []OwnAddress{{Key: KeyCluster, Address: new, New: true, Here: Absent}}, []string{"address-absent!"}},
		{"absent, as before", []OwnAddress{{Key: KeyCluster, Address: new, Here: Absent}}, []string{"address-gone!"}},
		{"cannot be told", []OwnAddress{{Key: KeyCluster, Address: "n1:8443", Why: "n1 cannot be looked up"}}, []string{"address-unknown"}},
		{"absent, all are listened on", []OwnAddress{{Key: KeyCluster, Address: new, Here: Absent}, {Key: KeyCore, Address: "[::]:8443", Here: Here}},
			[]string{"address-unknown"}},
		{"absent, all are listened on in short", []OwnAddress{{Key: KeyCluster, Address: new, Here: Absent}, {Key: KeyCore, Address: ":8443", Here: Here}},
			[]string{"address-unknown"}},
		{"absent, all are listened on on another port",
			[]OwnAddress{{Key: KeyCluster, Address: new, Here: Absent}, {Key: KeyCore, Address: ":8444", Here: Here}},
			[]string{"address-gone!"}},
		{"only the clients' is absent", []OwnAddress{{Key: KeyCluster, Address: new, Here: Here}, {Key: KeyCore, Address: old, Here: Absent}},
			[]string{"address-not-served"}},
		{"metrics", []OwnAddress{{Key: KeyCluster, Address: new, Here: Here}, {Key: "core.metrics_address", Address: "10.0.0.1:9100", New: true, Here: Absent}},
			[]string{"address-absent!"}},
	} {
		facts.OwnAddresses = c.own
		wantCodes(t, c.name, Check(facts), c.codes...)
	}

	sql := "UPDATE config SET value = '10.1.0.1:9100' WHERE key = 'core.metrics_address';"
	advice := Check(facts)[0].Advice
	if !strings.Contains(advice, "database/patch.local.sql") || !strings.HasSuffix(advice, sql) {
		t.Errorf("advised is %q, without %q", advice, sql)
	}
}

func TestMemberAddresses(t *testing.T) {
	facts := Facts{
		Members: member.List{{ID: 1, Name: "n1", Address: "127.0.0.1:8443", Role: raftlog.Voter}, {ID: 2, Name: "n2", Address: "10.92.0.256:8443"}},
		InForce: map[uint64]string{1: "127.0.0.1:8443", 2: "10.92.0.2:8443"},
		Silent:  []Silent{{Member: "n2", Address: "10.92.0.256:8443"}},
		Left:    []Left{{Where: "config core.proxy_http of the cluster", Address: "10.92.0.2", Member: "n2", New: "10.92.0.256:8443"}},
	}
	found := Check(facts)
	wantCodes(t, "members", found, "address-unusable!", "address-silent", "address-left")
	const left = "config core.proxy_http of the cluster still names 10.92.0.2, which was an address of n2 and is 10.92.0.256:8443 now"
	if found[0].Member != "n2" || found[2].Text != left {
		t.Errorf("found is %q", found)
	}

	facts = Facts{Members: facts.Members}
	wantCodes(t, "nothing known of what is in force", Check(facts))
}
