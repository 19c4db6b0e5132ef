// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// addresses compares the addresses in all places of all members with those that the members are to have: the expected ones, or those of raft's
// configuration.
func (j *judge) addresses() {
	if j.best == nil {
		return
	}

	members := j.members()
	for _, s := range j.aboard {
		for _, m := range members {
			if s.Member != nil && s.Member.ID == m.ID && s.ClusterAddress != m.Address {
				j.address("address-cluster", s, "cluster.https_address is %s, and it is to be %s", none(s.ClusterAddress), m.Address)
			}

			i := slices.IndexFunc(s.Addresses, func(r AddressRow) bool { return r.ID == m.ID })
			row := AddressRow{}
			if i >= 0 {
				row = s.Addresses[i]
			}

			if row.Local != m.Address {
				j.address("address-local", s, "the table raft_nodes of local.db has %s for %s, and it is to be %s", none(row.Local), m.Name, m.Address)
			}

			// A spare's log ends at an earlier time.
			if row.Raft != m.Address && s.Raft.LastIndex >= j.best.Raft.ConfigurationIndex {
				j.address("address-raft", s, "raft's configuration has %s for %s, and it is to be %s", none(row.Raft), m.Name, m.Address)
			}

			if row.Nodes != m.Address && s.hasNodes() && !j.isSpare(s) {
				j.address("address-nodes", s, "the table nodes has %s for %s, and it is to be %s", none(row.Nodes), m.Name, m.Address)
			}
		}

		j.strangers(s)
	}
}

// address adds a finding about an address on a member.
func (j *judge) address(code string, s *MemberState, format string, args ...any) {
	j.find(code, s.name(), "on %s "+format, append([]any{s.name()}, args...)...)
}

// none is an address, or what is said where there is none.
func none(address string) string {
	if address == "" {
		return "nothing"
	}

	return address
}

// hasNodes tells whether the table nodes could be read. It is never without a row.
func (s *MemberState) hasNodes() bool {
	return slices.ContainsFunc(s.Addresses, func(r AddressRow) bool { return r.Nodes != "" })
}

// strangers looks for members that only the tables have.
func (j *judge) strangers(s *MemberState) {
	for _, r := range s.Addresses {
		_, ok := j.best.Members.ByID(r.ID)
		switch {
		case ok:
		case r.Local != "":
			j.address("address-local", s, "the table raft_nodes of local.db has member %d (%s) at %s, which is not in raft's configuration",
				r.ID, r.Name, r.Local)
		case r.Nodes != "":
			j.address("address-nodes", s, "the table nodes has member %d (%s) at %s, which is not in raft's configuration", r.ID, r.Name, r.Nodes)
		}
	}
}

// rows compares the rows at the recovery entry with the exported ones, and those at the index that was asked for with each other.
func (j *judge) rows() {
	if j.verdict.Fence.Index > 0 {
		j.rowsAtFence()
	}

	told := j.told()
	groups := map[string][]*MemberState{} // by their rows
	for _, s := range told {
		key := printKey(s.RowsAt.Rows)
		groups[key] = append(groups[key], s)
	}

	most := j.most(groups)
	if len(most) == 0 {
		return
	}

	like, at := most[0], most[0].RowsAt.Position.Index
	for _, s := range told {
		tables := s.RowsAt.Rows.Differ(like.RowsAt.Rows)
		slices.Sort(tables)
		one, two := s.RowsAt.Entries, like.RowsAt.Entries
		switch {
		case len(tables) > 0:
			j.find("rows-differ", s.name(), "%s has other rows than %s at index %d, in %s", s.name(), like.name(), at, strings.Join(tables, ", "))
		case one != "" && two != "" && one != two:
			j.find("log-apart", s.name(), "%s has the same rows as %s at index %d, but other entries in its log since the recovery",
				s.name(), like.name(), at)
		}
	}

	if !j.found("rows-differ") && !j.found("rows-untold") && !j.found("log-apart") {
		j.verdict.At = at
	}
}

// told are the voters and stand-bys whose rows are told, all at one index.
func (j *judge) told() []*MemberState {
	var told []*MemberState
	for _, s := range j.aboard {
		switch r := s.RowsAt; {
		case j.isSpare(s):
		case r == nil:
			j.find("rows-untold", s.name(), "the rows of %s were not compared with the others'", s.name())
		case r.Untold != "":
			j.find("rows-untold", s.name(), "the rows of %s at index %d cannot be told: %s", s.name(), r.Position.Index, r.Untold)
		case len(told) > 0 && r.Position.Index != told[0].RowsAt.Position.Index:
			j.find("rows-untold", s.name(), "the rows of %s were read at index %d, and others' at index %d", s.name(), r.Position.Index,
				told[0].RowsAt.Position.Index)
		default:
			told = append(told, s)
		}
	}

	return told
}

// printKey is the same for equal fingerprints only.
func printKey(print globaldb.Fingerprint) string {
	var b strings.Builder
	for _, table := range slices.Sorted(maps.Keys(print)) {
		fmt.Fprintln(&b, table, print[table].Rows, print[table].Sum)
	}

	return b.String()
}

// most is the largest group, or of several the one with the log that an election would prefer.
func (j *judge) most(groups map[string][]*MemberState) []*MemberState {
	var found []*MemberState
	for _, key := range slices.Sorted(maps.Keys(groups)) {
		g := groups[key]
		if len(g) > len(found) || len(g) == len(found) && slices.Contains(g, j.best) {
			found = g
		}
	}

	return found
}

// rowsAtFence compares the rows at the recovery entry: with the exported ones, where they are known, or else with each other.
func (j *judge) rowsAtFence() {
	want, whose := j.expected.Rows, "in the tarball"
	told := false
	for _, s := range j.aboard {
		r := s.RowsAtFence
		if r == nil || r.Rows == nil || r.Position != j.verdict.Fence {
			continue
		}

		told = true
		if want == nil {
			want, whose = r.Rows, "on "+s.name()
		}

		tables := r.Rows.Differ(want)
		slices.Sort(tables)
		if len(tables) > 0 {
			j.find("rows-not-exported", s.name(), "%s has other rows at the recovery entry than %s, in %s", s.name(), whose, strings.Join(tables, ", "))
		}
	}

	if !told {
		j.find("fence-untold", "", "the rows at the recovery entry are not compared: no log reaches back to it any more, or nobody asked for it")
	}
}

// leftovers looks for what is pending, for problems, and for versions.
func (j *judge) leftovers() {
	versions := map[string]string{}
	for i := range j.states {
		s := &j.states[i]
		for _, p := range s.Pending {
			j.find("pending", s.name(), "on %s something is pending: %s", s.name(), p)
		}

		if s.OpenRun != "" && !j.expected.InRun {
			j.find("open-run", s.name(), "%s is part of a run over the whole cluster that is not at its end: %s", s.name(), s.OpenRun)
		}

		for _, p := range s.Problems {
			j.find("problem", s.name(), "%s: %s", s.name(), p)
		}

		if s.LXD.Version != "" && versions[s.LXD.Version] == "" {
			versions[s.LXD.Version] = s.name()
		}
	}

	if len(versions) > 1 {
		var texts []string
		for _, v := range slices.Sorted(maps.Keys(versions)) {
			texts = append(texts, fmt.Sprintf("%s on %s", v, versions[v]))
		}

		j.find("versions-differ", "", product.Text("the versions of LXD differ: %s"), strings.Join(texts, ", "))
	}
}
