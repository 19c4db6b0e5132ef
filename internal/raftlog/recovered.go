// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import "slices"

// RecoveryEntry is what a recovery's entry at the end of a log did.
type RecoveryEntry string

// The kinds of recovery entry.
const (
	NoRecovery      RecoveryEntry = ""        // the last entry is none
	MembersRecovery RecoveryEntry = "members" // it changed the member list
	FenceRecovery   RecoveryEntry = "fence"   // the member list is as it was
	SomeRecovery    RecoveryEntry = "unknown" // what the member list was before is not in the files any more
)

// Recovery tells what the last entry did to the member list, if a recovery wrote it: [Log.Edited].
func (l *Log) Recovery() RecoveryEntry {
	if !l.Edited {
		return NoRecovery
	}

	before, known := l.configurationBefore(l.LastIndex)
	switch {
	case !known:
		return SomeRecovery
	case before.same(l.Configuration):
		return FenceRecovery
	}

	return MembersRecovery
}

// configurationBefore is the configuration that was in force before an index of the log.
func (l *Log) configurationBefore(index uint64) (c Configuration, known bool) {
	at := uint64(0)
	if l.base != nil && l.base.Index < index {
		c, at, known = l.base.Configuration, l.base.ConfigurationIndex, true
	}

	for _, p := range l.placed.between(1, index-1) {
		for _, change := range p.part.changes {
			i := p.first + change.ordinal - p.skip
			if change.ordinal >= p.skip && change.ordinal < p.skip+p.count && i >= at && change.err == nil {
				c, at, known = change.configuration, i, true
			}
		}
	}

	return c, known
}

// LeadsTo tells whether a leader of raft may have written o as the configuration that follows c: it adds one server, as a spare, gives one another role, or
// removes one, each in an entry of its own. A recovery may change anything, nothing too. Source: raft_add, raft_assign and raft_remove of dqlite's raft.
func (c Configuration) LeadsTo(o Configuration) bool {
	added, removed, assigned := 0, 0, 0
	for _, s := range o {
		i := slices.IndexFunc(c, func(b Server) bool { return b.ID == s.ID })
		switch {
		case i < 0 && s.Role == Spare:
			added++
		case i < 0 || c[i].Address != s.Address:
			return false
		case c[i].Role != s.Role:
			assigned++
		}
	}

	for _, s := range c {
		if !slices.ContainsFunc(o, func(b Server) bool { return b.ID == s.ID }) {
			removed++
		}
	}

	return added+removed+assigned == 1
}

// same tells whether two configurations have the same servers, in any order.
func (c Configuration) same(o Configuration) bool {
	return len(c) == len(o) && !slices.ContainsFunc(c, func(s Server) bool { return !slices.Contains(o, s) })
}
