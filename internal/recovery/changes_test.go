// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"reflect"
	"slices"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

var (
	one   = member.Member{ID: 1, Name: "n1", Address: "10.0.0.1:8443", Role: raftlog.Voter}
	two   = member.Member{ID: 2, Name: "n2", Address: "10.0.0.2:8443", Role: raftlog.StandBy}
	three = member.Member{ID: 3, Name: "n3", Address: "10.0.0.3:8443", Role: raftlog.Spare}
)

// movedTo is a member with another address.
func movedTo(m member.Member, address string) member.Member {
	m.Address = address
	return m
}

func TestNodeUpdate(t *testing.T) {
	self := movedTo(one, "10.9.0.1:8443")
	members := member.List{self, two}
	raft := bundle.Position{Index: 7, Term: 1_800_000_000}
	nodes := []globaldb.Node{{ID: 1, Name: "n1", Address: "10.1.0.1:8443"}, {ID: 2, Name: "n2", Address: two.Address}}
	for name, test := range map[string]struct {
		core string // core.https_address, as it is
		want string // what it becomes, empty if it stays
	}{
		"the address in force":                 {one.Address, self.Address},
		"the one that the table nodes has":     {"10.1.0.1:8443", self.Address},
		"another member's":                     {two.Address, ""},
		"one for clients":                      {"192.0.2.1:8443", ""},
		"none":                                 {"", ""},
		"all addresses":                        {"[::]:8443", ""},
		"the new one, which is no former one":  {self.Address, ""},
		"one that only begins as a former one": {one.Address + "0", ""},
	} {
		t.Run(name, func(t *testing.T) {
			node := &nodedb.Node{Self: one, ClusterAddress: one.Address, CoreAddress: test.core}
			got := nodeUpdate(node, members, self, raft, formerAddresses(node, nodes, 1))
			want := nodedb.Update{Members: members, ClusterAddress: self.Address, CoreAddress: test.want, Mark: nodedb.Mark{Index: 7, Term: 1_800_000_000}}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%+v, want %+v", got, want)
			}

			changes := []Change{{"cluster.https_address", one.Address, self.Address}}
			if test.want != "" {
				changes = append(changes, Change{"core.https_address", test.core, test.want})
			}

			if got := changedSettings(node, got); !slices.Equal(got, changes) {
				t.Errorf("changes %+v, want %+v", got, changes)
			}
		})
	}
}

func TestServerChanges(t *testing.T) {
	servers := func(list ...member.Member) raftlog.Configuration { return servers(list) }
	names := member.List{one, two, three}
	for name, test := range map[string]struct {
		before, after raftlog.Configuration
		want          []MemberChange
	}{
		"none": {servers(one, two), servers(one, two), []MemberChange{}},
		"first": {nil, servers(one), []MemberChange{
			{ID: 1, Name: "n1", NewAddress: one.Address, NewRole: "voter"},
		}},
		"joined and left": {servers(one, two), servers(one, three), []MemberChange{
			{ID: 3, Name: "n3", NewAddress: three.Address, NewRole: "spare"},
			{ID: 2, Name: "n2", OldAddress: two.Address, OldRole: "stand-by"},
		}},
		"moved": {servers(one, two), servers(movedTo(one, "10.9.0.1:8443"), two), []MemberChange{
			{ID: 1, Name: "n1", OldAddress: one.Address, NewAddress: "10.9.0.1:8443", OldRole: "voter", NewRole: "voter"},
		}},
		"another order": {servers(one, two), servers(two, one), []MemberChange{}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := serverChanges(test.before, test.after, names); !slices.Equal(got, test.want) {
				t.Errorf("%+v, want %+v", got, test.want)
			}
		})
	}
}

func TestAddressesBut(t *testing.T) {
	if got := addressesBut(2, member.List{one, two, three}); !slices.Equal(got, []string{one.Address, three.Address}) {
		t.Errorf("%q", got)
	}
}

// The three places that hold addresses: what one of them lacks is empty, and makes them differ.
func TestStatusCompare(t *testing.T) {
	servers := raftlog.Configuration{{ID: 2, Address: two.Address}, {ID: 1, Address: one.Address}}
	nodes := []globaldb.Node{{ID: 1, Name: "n1", Address: one.Address}, {ID: 2, Name: "n2", Address: two.Address}}
	for name, test := range map[string]struct {
		local member.List
		nodes []globaldb.Node
		agree bool
		want  []AddressRow
	}{
		"they agree": {member.List{one, two}, nodes, true, []AddressRow{
			{1, "n1", one.Address, one.Address, one.Address}, {2, "n2", two.Address, two.Address, two.Address},
		}},
		"a name in the global database only": {member.List{{ID: 1, Address: one.Address}, two}, nodes, true, []AddressRow{
			{1, "n1", one.Address, one.Address, one.Address}, {2, "n2", two.Address, two.Address, two.Address},
		}},
		"moved here only": {member.List{movedTo(one, "10.9.0.1:8443"), two}, nodes, false, []AddressRow{
			{1, "n1", "10.9.0.1:8443", one.Address, one.Address}, {2, "n2", two.Address, two.Address, two.Address},
		}},
		"no row in nodes": {member.List{one, two}, nodes[1:], false, []AddressRow{
			{1, "n1", one.Address, one.Address, ""}, {2, "n2", two.Address, two.Address, two.Address},
		}},
		"raft does not know it": {member.List{one, two, three}, nodes, false, []AddressRow{
			{1, "n1", one.Address, one.Address, one.Address}, {2, "n2", two.Address, two.Address, two.Address}, {3, "n3", three.Address, "", ""},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := &StatusReport{}
			r.compare(&nodedb.Node{Members: test.local}, servers, test.nodes)
			if r.Agree != test.agree || !slices.Equal(r.Addresses, test.want) {
				t.Errorf("agree %v, %+v, want %v, %+v", r.Agree, r.Addresses, test.agree, test.want)
			}
		})
	}
}

func TestCheckEdit(t *testing.T) {
	old := member.List{one, two, three, {ID: 4, Address: "10.0.0.4:8443", Role: raftlog.Voter}}
	four := member.Member{ID: 4, Name: "n4", Address: "10.0.0.4:8443", Role: raftlog.Voter}
	role := func(m member.Member, role raftlog.Role) member.Member {
		m.Role = role
		return m
	}
	named := func(m member.Member, name string) member.Member {
		m.Name = name
		return m
	}
	for name, test := range map[string]struct {
		edited member.List
		want   string // part of the error, empty for none
	}{
		"a name is still missing":      {member.List{one, two, three, old[3]}, "member 4 has no name"},
		"a name that was not known":    {member.List{one, two, three, four}, ""},
		"moved, other roles":           {member.List{movedTo(one, "10.9.0.1:8443"), role(two, raftlog.Voter), three, role(four, raftlog.Spare)}, ""},
		"one is missing":               {member.List{one, two, three}, "none can be removed here"},
		"one more":                     {member.List{one, two, three, four, {ID: 5, Name: "n5", Address: "10.0.0.5:8443"}}, "none can be added here"},
		"another id":                   {member.List{one, two, three, {ID: 5, Name: "n5", Address: "10.0.0.5:8443"}}, "no member has the id 5"},
		"another name":                 {member.List{named(one, "x"), two, three, four}, `named "n1", not "x"`},
		"a spare made voter":           {member.List{one, two, role(three, raftlog.Voter), four}, ""}, // see TestCheckRoles
		"a spare made stand-by":        {member.List{one, two, role(three, raftlog.StandBy), four}, ""},
		"no voter":                     {member.List{role(one, raftlog.Spare), two, three, role(four, raftlog.Spare)}, "voter"},
		"two with one address":         {member.List{one, movedTo(two, one.Address), three, four}, one.Address},
		"an address that is not valid": {member.List{movedTo(one, "bogus"), two, three, four}, "bogus"},
	} {
		t.Run(name, func(t *testing.T) { wantError(t, checkEdit(old, test.edited), test.want) })
	}
}
