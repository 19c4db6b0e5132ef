// SPDX-License-Identifier: AGPL-3.0-only

package member

import (
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

func TestCheckAddress(t *testing.T) {
	for address, wrong := range map[string]string{
		"10.0.0.1:8443":                 "",
		"server1.example.com:8443":      "",
		"server_1:8443":                 "",
		"[fd00::1]:8443":                "",
		"[fe80::1%eth0]:8443":           "",
		"10.0.0.1":                      "is not HOST:PORT",
		":8443":                         "has no usable host",
		"10.0.0.1:0":                    "has no port from 1 to 65535",
		"10.92.0.256:8443":              "10.92.0.256 is not an IP address",
		"10.92.0:8443":                  "10.92.0 is not an IP address",
		"10.92.0.1.5:8443":              "10.92.0.1.5 is not an IP address",
		"010.92.0.1:8443":               "010.92.0.1 is not an IP address",
		"1234:8443":                     "1234 is not an IP address",
		"0x7f000001:8443":               "0x7f000001 is not an IP address",
		"[fd00::g]:8443":                "fd00::g is not an IP address",
		"sérver:8443":                   "sérver is neither an IP address nor a host name",
		"-server:8443":                  "-server is neither an IP address nor a host name",
		"0.0.0.0:8443":                  "stands for all addresses of a machine",
		"[::]:8443":                     "stands for all addresses of a machine",
		"[::ffff:0.0.0.0]:8443":         "stands for all addresses of a machine",
		"127.0.0.1:8443":                "under which a machine reaches itself",
		"127.1.2.3:8443":                "under which a machine reaches itself",
		"[::1]:8443":                    "under which a machine reaches itself",
		"[::ffff:127.0.0.1]:8443":       "under which a machine reaches itself",
		"localhost:8443":                "under which a machine reaches itself",
		"LocalHost.:8443":               "under which a machine reaches itself",
		"224.0.0.1:8443":                "is not the address of one machine",
		"255.255.255.255:8443":          "is not the address of one machine",
		"10.0.0.1:08443":                "write 10.0.0.1:8443",
		"[::ffff:10.0.0.1]:8443":        "write 10.0.0.1:8443",
		"[FD00::1]:8443":                "write [fd00::1]:8443",
		"[fd00:0:0::1]:8443":            "write [fd00::1]:8443",
		"Server1.Example.com.:8443":     "write server1.example.com:8443",
		"10.0.0.1:+8443":                "has no port from 1 to 65535",
		strings.Repeat("a", 254) + ":1": "is neither an IP address nor a host name",
	} {
		err := CheckAddress(address)
		switch {
		case wrong == "" && err != nil:
			t.Errorf("%s: %v", address, err)
		case wrong != "" && (err == nil || !strings.Contains(err.Error(), wrong)):
			t.Errorf("%s: %v, want %q", address, err, wrong)
		}
	}
}

// What is in force already is not refused, and what takes its place is.
func TestValidateNew(t *testing.T) {
	list := func(one string, two string) List {
		return List{{ID: 1, Name: "n1", Address: one, Role: raftlog.Voter}, {ID: 2, Name: "n2", Address: two, Role: raftlog.Voter}}
	}
	odd := map[uint64]string{1: "127.0.0.1:8443", 2: "[::ffff:10.0.0.2]:8443"}
	for _, c := range []struct {
		name     string
		list     List
		inForce  map[uint64]string
		expected string
	}{
		{"odd ones in force", list(odd[1], odd[2]), odd, ""},
		{"new ones", list("10.0.0.1:8443", "10.0.0.2:8443"), odd, ""},
		{"another port", list("127.0.0.1:9393", "[::ffff:10.0.0.2]:9393"), odd, ""},
		{"another port in another spelling", list("127.0.0.1:09393", odd[2]), odd, "write 127.0.0.1:9393"},
		{"another's old one", list("10.0.0.1:8443", "127.0.0.1:8443"), odd, `member "n2": address "127.0.0.1:8443" is one under which`},
		{"nothing known", list("127.0.0.1:8443", "10.0.0.2:8443"), nil, `member "n1": address "127.0.0.1:8443" is one under which`},
		{"in two spellings, one of them new", list("10.0.0.2:8443", odd[2]), odd, `members "n1" and "n2" have the same address in two spellings`},
		{"in two spellings, in force", list("10.0.0.2:8443", odd[2]), map[uint64]string{1: "10.0.0.2:8443", 2: odd[2]}, ""},
		{"names in two spellings", list("a:1", "A:1"), map[uint64]string{2: "A:1"}, "have the same address in two spellings, a:1 and A:1"},
		{"the same twice", list("10.0.0.2:8443", "10.0.0.2:8443"), odd, "have the same address 10.0.0.2:8443"},
	} {
		err := c.list.ValidateNew(c.inForce)
		switch {
		case c.expected == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.expected != "" && (err == nil || !strings.Contains(err.Error(), c.expected)):
			t.Errorf("%s: %v, want %q", c.name, err, c.expected)
		}
	}
}

func TestMentions(t *testing.T) {
	for _, c := range []struct {
		text, host string
		expected   bool
	}{
		{"ssl:10.0.0.1:6641,ssl:10.0.0.2:6641", "10.0.0.1", true},
		{"ssl:10.0.0.11:6641,ssl:110.0.0.1:6641", "10.0.0.1", false},
		{"110.0.0.1, 10.0.0.1", "10.0.0.1", true},
		{"10.0.0.1.5 or 1.10.0.0.1", "10.0.0.1", false},
		{"see 10.0.0.1.", "10.0.0.1", true},
		{"10.0.0.1/24", "10.0.0.1", true},
		{"http://Server1.lan:3128", "server1.lan", true},
		{"http://myserver1.lan:3128", "server1.lan", false},
		{"http://server1.lan.example:3128", "server1.lan", false},
		{"http://server1-lan", "server1", false},
		{"[fd00::1]:8443", "fd00::1", true},
		{"[2001:fd00::1]:8443", "fd00::1", false},
		{"fd00::1:2", "fd00::1", false},
		{"10.0.0.1:8443", "10.0.0.1:8443", true},
		{"10.0.0.1:84430", "10.0.0.1:8443", false},
		{"anything", "", false},
	} {
		if Mentions(c.text, c.host) != c.expected {
			t.Errorf("%q names %q: %v", c.text, c.host, !c.expected)
		}
	}
}
