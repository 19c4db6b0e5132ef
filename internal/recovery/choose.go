// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// warnOfLost warns against what makes two clusters of one: the lost members, started on the databases that they had.
func (ed *editor) warnOfLost() {
	var lost []string
	for _, m := range ed.node.Members {
		if m.ID != ed.node.Self.ID && m.Name != "" {
			lost = append(lost, m.Name)
		}
	}

	if len(lost) > 0 {
		ed.report.warn(product.Sprintf("the lost members, %s, must never start LXD on their old databases again: they would go on as a cluster of their own, "+
			"and each side would lack what the other one writes. A machine that comes back gets a new LXD, and joins again", strings.Join(lost, ", ")))
	}
}

// choose finds out the new member list and what changes with it.
func (ed *editor) choose(ctx context.Context) error {
	current := namedServers(ed.log.Configuration, ed.node.Members)
	switch {
	case ed.opts.Alone:
		self := ed.node.Self
		self.Role = raftlog.Voter
		ed.members = member.List{self}
		ed.warnOfLost()
	default:
		list := ed.current(current)
		edited, err := ed.opts.Ask(ctx, list, ed.report.Before, func(l member.List) error {
			err := ed.checkList(list, l)
			if err == nil {
				err = ed.checkAddresses(ctx, l)
			}

			return err
		})
		if err != nil {
			return err
		}

		ed.members = edited
		ed.tellLeftOut(list)
	}

	self, _ := ed.members.ByID(ed.node.Self.ID)
	ed.report.Member = self
	ed.settleLost()
	for _, m := range ed.known() {
		change := MemberChange{ID: m.ID, Name: m.Name, OldAddress: m.Address, OldRole: m.Role.String()}
		edited, ok := ed.members.ByID(m.ID)
		if ok {
			change.NewAddress, change.NewRole = edited.Address, edited.Role.String()
		}

		ed.report.Members = append(ed.report.Members, change)
	}

	ed.report.Settings = changedSettings(ed.node, ed.update())
	ed.report.Patch = SQL(composed(ed.pending, ed.rows, ed.members))
	record := ed.sameEdit()
	if record != nil {
		ed.report.NothingToDo, ed.report.Raft = true, record.Raft
		if exists(ed.dir.join(record.Kept)) {
			ed.report.Kept = ed.dir.join(record.Kept)
		}

		return nil
	}

	return ed.describeNeeds(ctx)
}

// sameEdit returns the record of the live database where an edit has made it just what this one would make it: one that was killed right
// after the exchange, for instance, and is run again. Edited a second time, the newest kept database would not be the one from
// before any more. What cannot be read is edited anew.
func (ed *editor) sameEdit() *Record {
	record, err := readRecord(ed.dir.database())
	if err != nil || record == nil || record.Purpose != purposeEdit || record.Raft != ed.report.Before {
		return nil
	}

	patch, err := newfile.Read(filepath.Join(ed.dir.database(), patchName))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil
	}

	same := ed.members.SameServers(ed.log.Configuration) && ed.members.Same(ed.node.Members) && SQL(patch) == ed.report.Patch &&
		len(ed.report.Settings) == 0 && len(ed.report.Damage) == 0
	if !same {
		return nil
	}

	return record
}

// current is the list to be edited: LXD's own, which is the node database's. Where the raft log knows other roles, as it does
// until the next heartbeat, the log's count. Lost members are offered as spares.
func (ed *editor) current(logged member.List) member.List {
	list := ed.known()
	for i, m := range list {
		server, ok := logged.ByID(m.ID)
		if ok {
			list[i].Role = server.Role
		}

		if slices.Contains(ed.opts.Lost, m.Name) {
			list[i].Role = raftlog.Spare
		}
	}

	return list
}

// checkEdit tells whether one member list may take the place of another: LXD's own rules, and that it can work at all.
func checkEdit(old member.List, edited member.List) error {
	switch {
	case len(edited) < len(old):
		return product.Errorf("the list has %d members and had %d: "+
			"none can be removed here, give a lost one the role %q and remove it later with `lxc cluster remove --force`", len(edited), len(old), raftlog.Spare)
	case len(edited) > len(old):
		return fmt.Errorf("the list has %d members and had %d: none can be added here", len(edited), len(old))
	}

	for _, m := range edited {
		before, ok := old.ByID(m.ID)
		if !ok {
			return fmt.Errorf("no member has the id %d: ids cannot be changed", m.ID)
		}

		if before.Name != "" && before.Name != m.Name {
			return fmt.Errorf("member %d is named %q, not %q: names cannot be changed", m.ID, before.Name, m.Name)
		}
	}

	return edited.Validate()
}

func (ed *editor) update() nodedb.Update {
	return nodeUpdate(ed.node, ed.members, ed.report.Member, ed.report.Raft, formerAddresses(ed.node, ed.nodes, ed.node.Self.ID))
}
