// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// MemberChange is a member before and after.
type MemberChange struct {
	ID         uint64 `json:"id" yaml:"id"`
	Name       string `json:"name" yaml:"name"`
	OldAddress string `json:"old_address" yaml:"old_address"` // empty: not in this member's list
	NewAddress string `json:"new_address" yaml:"new_address"`
	OldRole    string `json:"old_role" yaml:"old_role"`
	NewRole    string `json:"new_role" yaml:"new_role"`
}

// Change is a setting before and after.
type Change struct {
	Key string `json:"key" yaml:"key"`
	Old string `json:"old" yaml:"old"`
	New string `json:"new" yaml:"new"`
}

// nodeUpdate is what becomes of a node database: it gets the members, this one's address, and the mark of the recovery.
// core.https_address is changed where it named one of this member's former addresses.
func nodeUpdate(node *nodedb.Node, members member.List, self member.Member, raft bundle.Position, former map[string]bool) nodedb.Update {
	update := nodedb.Update{Members: members, ClusterAddress: self.Address, Mark: nodedb.Mark{Index: raft.Index, Term: raft.Term}}
	if former[node.CoreAddress] {
		update.CoreAddress = self.Address
	}

	return update
}

// formerAddresses are those that a member is known to have had. On one that LXD's own edit ran on, only the table nodes still
// knows the old one.
func formerAddresses(node *nodedb.Node, nodes []globaldb.Node, id uint64) map[string]bool {
	former := map[string]bool{node.ClusterAddress: true}
	for _, n := range nodes {
		if n.ID == id {
			former[n.Address] = true
		}
	}

	return former
}

// changedSettings lists the settings that an update changes.
func changedSettings(node *nodedb.Node, update nodedb.Update) []Change {
	changed := []Change{}
	for _, c := range []Change{
		{Key: "cluster.https_address", Old: node.ClusterAddress, New: update.ClusterAddress},
		{Key: "core.https_address", Old: node.CoreAddress, New: update.CoreAddress},
	} {
		if c.New != "" && c.New != c.Old {
			changed = append(changed, c)
		}
	}

	return changed
}

// serverChanges are the members by which two configurations differ.
func serverChanges(before raftlog.Configuration, after raftlog.Configuration, names member.List) []MemberChange {
	was, is := namedServers(before, names), namedServers(after, names)
	changes := []MemberChange{}
	for _, m := range is {
		change := MemberChange{ID: m.ID, Name: m.Name, NewAddress: m.Address, NewRole: m.Role.String()}
		old, ok := was.ByID(m.ID)
		if ok {
			change.OldAddress, change.OldRole = old.Address, old.Role.String()
		}

		if !ok || old != m {
			changes = append(changes, change)
		}
	}

	for _, m := range was {
		_, ok := is.ByID(m.ID)
		if !ok {
			changes = append(changes, MemberChange{ID: m.ID, Name: m.Name, OldAddress: m.Address, OldRole: m.Role.String()})
		}
	}

	return changes
}

// addressesBut returns the addresses of all members but one.
func addressesBut(id uint64, members member.List) []string {
	var all []string
	for _, m := range members {
		if m.ID != id {
			all = append(all, m.Address)
		}
	}

	return all
}
