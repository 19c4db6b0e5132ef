// SPDX-License-Identifier: AGPL-3.0-only

package member

import (
	"slices"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// list is a new list of three members, a voter, a stand-by and a spare.
func list() List {
	return List{
		{ID: 1, Name: "one", Address: "10.0.0.1:8443", Role: raftlog.Voter},
		{ID: 2, Name: "two", Address: "10.0.0.2:8443", Role: raftlog.StandBy},
		{ID: 7, Name: "seven", Address: "[fd00::7]:8443", Role: raftlog.Spare},
	}
}

// changed is that list with one member changed.
func changed(i int, change func(*Member)) List {
	l := list()
	change(&l[i])
	return l
}

func TestByID(t *testing.T) {
	for _, want := range list() {
		m, ok := list().ByID(want.ID)
		if !ok || m != want {
			t.Errorf("id %d is %+v, %v", want.ID, m, ok)
		}
	}

	for _, id := range []uint64{0, 3} { // no id, and one that is only a place in the list
		m, ok := list().ByID(id)
		if ok || m != (Member{}) {
			t.Errorf("id %d is %+v, %v", id, m, ok)
		}
	}
}

func TestSame(t *testing.T) {
	backwards := list()
	slices.Reverse(backwards)
	for name, test := range map[string]struct {
		other List
		same  bool
	}{
		"the same":           {list(), true},
		"another order":      {backwards, true},
		"one less":           {list()[:2], false},
		"one more":           {append(list(), Member{ID: 8}), false},
		"one twice":          {List{list()[0], list()[1], list()[1]}, false},
		"another id":         {changed(2, func(m *Member) { m.ID = 3 }), false},
		"another name":       {changed(1, func(m *Member) { m.Name = "too" }), false},
		"another address":    {changed(1, func(m *Member) { m.Address = "10.0.0.2:9393" }), false},
		"another role":       {changed(1, func(m *Member) { m.Role = raftlog.Voter }), false},
		"nobody":             {nil, false},
		"a member of zeroes": {List{list()[0], list()[1], {}}, false},
	} {
		if list().Same(test.other) != test.same {
			t.Errorf("%s: same is %v", name, !test.same)
		}

		if name != "one twice" && test.other.Same(list()) != test.same {
			t.Errorf("%s, the other way: same is %v", name, !test.same)
		}
	}

	if !(List{}).Same(nil) {
		t.Error("two lists of nobody differ")
	}
}

func TestMajority(t *testing.T) {
	for voters, majority := range []int{0: 1, 1: 1, 2: 2, 3: 2, 4: 3, 5: 3} {
		l := List{{ID: 100, Role: raftlog.StandBy}, {ID: 101, Role: raftlog.Spare}} // who have no vote
		for i := range voters {
			l = append(l, Member{ID: uint64(i + 1), Role: raftlog.Voter})
		}

		if l.Voters() != voters || l.Majority() != majority {
			t.Errorf("%d voters are counted as %d, their majority is %d", voters, l.Voters(), l.Majority())
		}
	}
}

func TestSameServers(t *testing.T) {
	servers := func() raftlog.Configuration {
		return raftlog.Configuration{
			{ID: 7, Address: "[fd00::7]:8443", Role: raftlog.Spare},
			{ID: 1, Address: "10.0.0.1:8443", Role: raftlog.Voter},
			{ID: 2, Address: "10.0.0.2:8443", Role: raftlog.StandBy},
		}
	}

	if !list().SameServers(servers()) {
		t.Error("the same servers in another order differ")
	}

	for name, change := range map[string]func(raftlog.Configuration) raftlog.Configuration{
		"one less":        func(c raftlog.Configuration) raftlog.Configuration { return c[:2] },
		"one more":        func(c raftlog.Configuration) raftlog.Configuration { return append(c, raftlog.Server{ID: 8}) },
		"another id":      func(c raftlog.Configuration) raftlog.Configuration { c[0].ID = 3; return c },
		"another address": func(c raftlog.Configuration) raftlog.Configuration { c[1].Address = "10.0.0.1:9393"; return c },
		"another role":    func(c raftlog.Configuration) raftlog.Configuration { c[2].Role = raftlog.Voter; return c },
	} {
		if list().SameServers(change(servers())) {
			t.Errorf("%s: the same", name)
		}
	}
}

func TestValidate(t *testing.T) {
	err := list().Validate()
	if err != nil {
		t.Error(err)
	}

	for want, l := range map[string]List{
		`member "two" has no id`:                                        changed(1, func(m *Member) { m.ID = 0 }),
		"two members have id 1":                                         changed(1, func(m *Member) { m.ID = 1 }),
		"member 2 has no name":                                          changed(1, func(m *Member) { m.Name = "" }),
		`two members are named "one"`:                                   changed(2, func(m *Member) { m.Name = "one" }),
		`member "two": address "x" is not HOST:PORT`:                    changed(1, func(m *Member) { m.Address = "x" }),
		`members "one" and "seven" have the same address 10.0.0.1:8443`: changed(2, func(m *Member) { m.Address = "10.0.0.1:8443" }),
		`no member has the role "voter"`:                                changed(0, func(m *Member) { m.Role = raftlog.StandBy }),
	} {
		err := l.Validate()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}

	err = List{}.Validate()
	if err == nil {
		t.Error("a list of nobody is valid")
	}
}

func TestValidAddress(t *testing.T) {
	for _, good := range []string{"10.0.0.1:8443", "[fd00::1]:1", "server1:65535", "server1.example.net:8443", "@abstract:8443"} {
		err := validAddress(good)
		if err != nil {
			t.Error(err)
		}
	}

	for bad, want := range map[string]string{
		"":                                 "is not HOST:PORT",
		"10.0.0.1":                         "is not HOST:PORT",
		"fd00::1:8443":                     "is not HOST:PORT", // without brackets
		"a:1:2":                            "is not HOST:PORT",
		":8443":                            "no usable host",
		"a b:8443":                         "no usable host",
		"a'b:8443":                         "no usable host", // it is written into SQL
		`a\b:8443`:                         "no usable host",
		"a/b:8443":                         "no usable host",
		"a;b:8443":                         "no usable host",
		"a\nb:8443":                        "no usable host",
		"a\x1bcb:8443":                     "no usable host",
		"a\u202eb:8443":                    "no usable host",
		"10.0.0.1:":                        "no port from 1 to 65535",
		"10.0.0.1:0":                       "no port from 1 to 65535",
		"10.0.0.1:65536":                   "no port from 1 to 65535",
		"10.0.0.1:-1":                      "no port from 1 to 65535",
		"10.0.0.1:https":                   "no port from 1 to 65535",
		"10.0.0.1:8443 ":                   "no port from 1 to 65535",
		"10.0.0.1:0x20fb":                  "no port from 1 to 65535",
		strings.Repeat("a", 256) + ":8443": "no usable host",
	} {
		err := validAddress(bad)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", bad, err, want)
		}
	}
}
