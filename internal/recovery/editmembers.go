// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// anyRoleFlag takes roles that make no sense as a rule.
const anyRoleFlag = "--any-role"

// examineMembers looks at what the database knows of the members, and at what is pending in patch.global.sql.
func (ed *editor) examineMembers(ctx context.Context, db *globaldb.DB, what string) error {
	var err error
	ed.nodes, err = db.Nodes(ctx)
	if err != nil {
		return replayError(what, err)
	}

	var dropped string
	ed.pending, dropped, err = ed.dir.takePatch(ed.opts.DropPatch)
	if err != nil {
		return err
	}

	if dropped != "" {
		ed.report.warn(dropped)
	}

	ed.needs, err = ed.dir.needsOf(ctx, db, namedServers(ed.log.Configuration, ed.node.Members), ed.node.Self.ID)
	if err != nil {
		return replayError(what, err)
	}

	ed.report.Carried = SQL(ed.pending.carried())
	ed.rows, err = patchedRows(ctx, db, ed.pending, what)
	if err != nil {
		return err
	}

	ed.lost, err = ed.findLost()
	if err != nil {
		return err
	}

	if !ed.opts.UnknownMembers {
		self := preflight.Facts{Self: ed.node.Self.ID, Members: member.List{ed.node.Self}, Nodes: ed.rows}
		err = checkKnown(self, func(id uint64) string { return beforeDeletion(ctx, ed.log, id) })
	}

	if err != nil || ed.opts.Alone {
		return err
	}

	ed.had, err = hadDatabase(ctx, ed.log)
	return err
}

// hadDatabase are the members that were voters or stand-bys in any configuration that the log still has: those have had its entries.
func hadDatabase(ctx context.Context, log *raftlog.Log) (map[uint64]bool, error) {
	had := map[uint64]bool{}
	take := func(servers raftlog.Configuration) {
		for _, s := range servers {
			had[s.ID] = had[s.ID] || s.Role != raftlog.Spare
		}
	}

	for _, s := range log.Snapshots {
		if s.Usable {
			take(s.Configuration)
		}
	}

	take(log.Configuration)
	for entry, err := range log.Entries(ctx, max(log.FirstIndex, 1)) {
		if err != nil {
			return nil, err
		}

		if entry.Type != raftlog.ChangeEntry {
			continue
		}

		servers, err := raftlog.ParseConfiguration(entry.Data)
		if err == nil {
			take(servers)
		}
	}

	return had, nil
}

// known are the members of the node database, and those that only the raft log has: a list without them would remove them.
func (ed *editor) known() member.List {
	list := slices.Clone(ed.node.Members)
	for _, m := range namedServers(ed.log.Configuration, nil) {
		_, ok := list.ByID(m.ID)
		if ok {
			continue
		}

		for _, r := range ed.rows {
			if r.ID == m.ID {
				m.Name = r.Name
			}
		}

		list = append(list, m)
	}

	return list
}

// ghosts are members that the global database does not know, but for this one: they can be left out of a list.
func (ed *editor) ghosts(list member.List) member.List {
	others := slices.DeleteFunc(slices.Clone(list), func(m member.Member) bool { return m.ID == ed.node.Self.ID })
	return preflight.Rowless(preflight.Facts{Members: others, Nodes: ed.rows})
}

// checkList tells whether a member list may take the place of the current one.
func (ed *editor) checkList(current member.List, edited member.List) error {
	left := slices.Clone(current)
	for _, ghost := range ed.ghosts(current) {
		_, ok := edited.ByID(ghost.ID)
		if !ok {
			left = slices.DeleteFunc(left, func(m member.Member) bool { return m.ID == ghost.ID })
		}
	}

	err := checkEdit(left, edited)
	if err != nil {
		return err
	}

	if !ed.opts.AnyRole {
		err = checkRoles(current, edited, ed.node.Self.ID, ed.had)
	}

	if err == nil && !ed.opts.UnknownMembers {
		facts := preflight.Facts{Self: ed.node.Self.ID, Members: edited, Nodes: ed.rows}
		err = checkKnown(facts, func(uint64) string { return "If it is no member any more, leave it out of the list" })
	}

	return err
}

// checkRoles refuses roles that do harm: this member, whose database becomes that of all, keeps a say in it, and a spare that has never had
// a database does not get a vote. self is the id of this member, had are those that have had a database.
func checkRoles(current member.List, edited member.List, self uint64, had map[uint64]bool) error {
	for _, m := range edited {
		before, _ := current.ByID(m.ID)
		switch {
		case m.ID == self && m.Role == raftlog.Spare:
			return &Refusal{Code: "spare-here", Member: m.Name, Flag: anyRoleFlag,
				Reason: fmt.Sprintf("%s is this member, whose database is to become that of all members: as a %s it has no vote, and is sent nothing of what "+
					"is written from then on. Give it the role %q", m.Name, raftlog.Spare, raftlog.Voter)}
		case m.ID != self && before.Role == raftlog.Spare && m.Role == raftlog.Voter && !had[m.ID]:
			return &Refusal{Code: "spare-to-voter", Member: m.Name, Flag: anyRoleFlag,
				Reason: fmt.Sprintf("member %q is a %s, and nothing in this member's log says that it ever had a database: as a %s it would vote without one "+
					"until the recovery tarball is imported there", m.Name, raftlog.Spare, raftlog.Voter)}
		}
	}

	return nil
}

// tellLeftOut says which members the new list leaves out.
func (ed *editor) tellLeftOut(current member.List) {
	for _, m := range ed.ghosts(current) {
		_, ok := ed.members.ByID(m.ID)
		if !ok {
			ed.report.warn(preflight.Named(m) + " is left out of the member list: the global database does not know it, and it is no raft member any more")
		}
	}
}

// settleLost adds to the patch what LXD needs in order not to wait for lost members, and says for whom else it would wait.
func (ed *editor) settleLost() {
	for _, m := range ed.members {
		if ed.lost[m.ID] && m.Role == raftlog.Voter {
			ed.report.warn(product.Sprintf("%s is lost, and stays a voter: LXD needs %d of the %d voters", m.Name, ed.members.Majority(), ed.members.Voters()))
		}
	}

	facts := preflight.Facts{Self: ed.node.Self.ID, Members: ed.members, Nodes: ed.rows}
	own, unlike := preflight.Unlike(facts)
	for _, n := range unlike {
		if !ed.lost[n.ID] {
			continue
		}

		ed.pending.versions += preflight.VersionSQL(n, own)
		ed.report.warn(product.Sprintf("%s is lost, and has schema %d and %d API extensions in the table nodes: LXD would wait for it. "+
			"%s gives its row this member's, %d and %d", n.Name, n.Schema, n.APIExtensions, patchName, own.Schema, own.APIExtensions))
		for i := range ed.rows {
			if ed.rows[i].ID == n.ID {
				ed.rows[i].Schema, ed.rows[i].APIExtensions = own.Schema, own.APIExtensions
			}
		}
	}

	ed.report.warn(versionWarnings(facts)...)
}

// findLost returns the ids of the members that are lost: those that were named, or, where this member is to be alone, all others.
func (ed *editor) findLost() (map[uint64]bool, error) {
	lost := map[uint64]bool{}
	if ed.opts.Alone {
		for _, r := range ed.rows {
			lost[r.ID] = r.ID != ed.node.Self.ID
		}

		return lost, nil
	}

	names := map[string]uint64{}
	for _, r := range ed.rows {
		names[r.Name] = r.ID
	}

	for _, m := range ed.known() {
		names[m.Name] = m.ID
	}

	for _, name := range ed.opts.Lost {
		id, ok := names[name]
		switch {
		case !ok:
			return nil, fmt.Errorf("--lost: no member is named %q", name)
		case id == ed.node.Self.ID:
			return nil, fmt.Errorf("--lost: %s is this member", name)
		}

		lost[id] = true
	}

	return lost, nil
}

// versionWarnings say for which members LXD would wait.
func versionWarnings(facts preflight.Facts) []string {
	var warnings []string
	for _, f := range preflight.Check(preflight.Facts{Self: facts.Self, Members: facts.Members, Nodes: facts.Nodes}) {
		if strings.HasPrefix(f.Code, "version-") {
			warnings = append(warnings, f.String())
		}
	}

	return warnings
}
