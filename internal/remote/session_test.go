// SPDX-License-Identifier: AGPL-3.0-only

package remote

import "testing"

func TestInSession(t *testing.T) {
	for cgroups, want := range map[string]bool{
		"0::/user.slice/user-1000.slice/session-3.scope\n":               true,
		"0::/user.slice/user-0.slice/user@0.service/app.slice/a.scope\n": true,
		"0::/system.slice/ssh.service\n":                                 false,
		"0::/system.slice/lxd-recover-agent-7.scope\n":                   false,
		"0::/\n": false,
		"12:pids:/user.slice/x\n1:name=systemd:/user.slice/user-0.slice/session-c1.scope\n0::/\n":   true,
		"9:name=systemd:/\n8:pids:/\n0::/user.slice/user-0.slice/session-c1.scope\n":                true,
		"12:pids:/user.slice\n1:name=systemd:/system.slice/ssh.service\n0::/system.slice/user.sl\n": false,
		"": false,
	} {
		if inSession(cgroups) != want {
			t.Errorf("%q: in a session %t", cgroups, !want)
		}
	}
}

func TestParentOf(t *testing.T) {
	for stat, want := range map[string]int{
		"77 (sudo) S 76 77 77 0 -1": 76,
		"77 (sudo) S":               0,
		"77 (sh) S 76":              0,
		"77 (a (sudo) S 5) S 76":    0,
	} {
		parent, ok := parentOf(stat, "sudo")
		if ok != (want != 0) || ok && parent != want {
			t.Errorf("%q: %d, %t", stat, parent, ok)
		}
	}
}
