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

// same tells whether two configurations have the same servers, in any order.
func (c Configuration) same(o Configuration) bool {
	return len(c) == len(o) && !slices.ContainsFunc(c, func(s Server) bool { return !slices.Contains(o, s) })
}
