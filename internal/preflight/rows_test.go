// SPDX-License-Identifier: AGPL-3.0-only

package preflight

import (
	"slices"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// three are the members of a cluster, with their rows.
func three() Facts {
	facts := Facts{Self: 1}
	for i, name := range []string{"node1", "node2", "node3"} {
		id, address := uint64(i+1), name+":8443"
		facts.Members = append(facts.Members, member.Member{ID: id, Name: name, Address: address, Role: raftlog.Voter})
		facts.Nodes = append(facts.Nodes, Node{ID: id, Name: name, Address: address, Schema: 60, APIExtensions: 318})
	}

	return facts
}

// What is found about members: by what is wrong, in the order in which it is told.
func TestMembers(t *testing.T) {
	const lost = "for ever if that is lost. If node2 is lost: `lxd-recover cluster edit --lost node2`, or `lxd-recover global-db-patch` with: " +
		"UPDATE nodes SET schema = 60, api_extensions = 318 WHERE id = 2 AND schema = 59 AND api_extensions = 300;"
	type want struct {
		code, member string
		fatal        bool
		says         string
	}
	for name, test := range map[string]struct {
		change func(f *Facts)
		want   []want
	}{
		"nothing":           {func(*Facts) {}, nil},
		"no rows are known": {func(f *Facts) { f.Nodes = nil }, nil},
		"a lost member":     {func(f *Facts) { f.Members = f.Members[:1] }, nil},
		"only spares": {func(f *Facts) {
			for i := range f.Members {
				f.Members[i].Role = raftlog.Spare
			}
		}, []want{{NoVoter, "", true, "none of the 3 members in the raft log's configuration is a voter"}}},
		"no row here": {func(f *Facts) { f.Nodes = f.Nodes[1:] },
			[]want{{NoRow, "node1", true, "node1 (id 1) is a member in the raft log, " +
				"and has no row in the table nodes of the global database: LXD does not start here"}}},
		"no rows": {func(f *Facts) { f.Members, f.Nodes = f.Members[:1], []Node{} }, []want{{NoRow, "node1", true, "does not start here"}}},
		"no row of another": {func(f *Facts) { f.Nodes = f.Nodes[:2] },
			[]want{{NoRow, "node3", false, "`lxc cluster remove` cannot find it. If it is no member any more, `lxd-recover cluster edit` can leave it out"}}},
		"no row of one without a name": {func(f *Facts) { f.Nodes, f.Members[2].Name = f.Nodes[:2], "" },
			[]want{{NoRow, "", false, "member 3 (node3:8443) is a member in the raft log"}}},
		"behind": {func(f *Facts) { f.Nodes[1].Schema, f.Nodes[1].APIExtensions = 59, 300 }, []want{{VersionBehind, "node2", false, lost}}},
		"behind, and no raft member": {func(f *Facts) { f.Members = f.Members[:1]; f.Nodes[1].Schema, f.Nodes[1].APIExtensions = 59, 300 },
			[]want{{VersionBehind, "node2", false, lost}}},
		"ahead": {func(f *Facts) { f.Nodes[2].APIExtensions = 400 },
			[]want{{VersionAhead, "node3", false, "does not start here before it is upgraded"}}},
		"inconsistent": {func(f *Facts) { f.Nodes[2].Schema, f.Nodes[2].APIExtensions = 61, 300 }, []want{{VersionAhead, "node3", false, "node3"}}},
		"not known who this is": {func(f *Facts) { f.Self = 0; f.Nodes[1].Schema = 1; f.Nodes = f.Nodes[:2] },
			[]want{{NoRow, "node3", false, "its LXD does not start"}}},
	} {
		t.Run(name, func(t *testing.T) {
			facts := three()
			test.change(&facts)
			found := Check(facts)
			ok := slices.EqualFunc(found, test.want, func(f Finding, w want) bool {
				return f.Code == w.code && f.Member == w.member && f.Fatal == w.fatal && strings.Contains(f.String(), w.says)
			})
			if !ok {
				t.Errorf("%+v, want %+v", found, test.want)
			}
		})
	}
}
