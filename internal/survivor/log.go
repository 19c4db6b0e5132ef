// SPDX-License-Identifier: AGPL-3.0-only

package survivor

import (
	"cmp"
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Position is a place in a log.
type Position struct {
	Index uint64 `json:"index" yaml:"index"`
	Term  uint64 `json:"term" yaml:"term"`
}

// Compare orders positions as raft's voters do: by term, then by index.
func (p Position) Compare(q Position) int {
	return cmp.Or(cmp.Compare(p.Term, q.Term), cmp.Compare(p.Index, q.Index))
}

// Entry is an entry without its content. It is small: a log may have hundreds of thousands.
type Entry struct {
	Term uint64
	Type raftlog.EntryType

	// Transaction is true of a CommandEntry that is known to write to the database, dqlite's "frames". One of which nobody told is no
	// transaction here, so it proves nothing.
	Transaction bool

	Sum    [16]byte               // of the decoded content
	Change *raftlog.Configuration // of a ChangeEntry
}

func (e Entry) same(o Entry) bool { return e.Term == o.Term && e.Type == o.Type && e.Sum == o.Sum }

// Log is what was found of one member's log.
type Log struct {
	Member  uint64 // raft id; 0 where the source does not tell: it has no vote then
	Cluster string // certificate; empty where the source does not tell

	Snapshot              Position // zero where there is none
	SnapshotConfiguration raftlog.Configuration

	// The entries, First is the index of the first; those up to the snapshot's index may be missing.
	First   uint64
	Entries []Entry

	Term   uint64 // the member's current term, 0 where it is not known
	Edited bool   // the last entry is a recovery's
	InTerm bool   // a recovery's entry has the term of the entry before it, as with cowsql
	Whole  bool   // the end of the log is beyond doubt
	Copy   bool   // of an earlier time: sound as it is, but it does not tell where the member's log ended

	// Filled in by withoutRecovery: the indexes of the configurations among the entries, and the one up to which the log was committed,
	// as its snapshot or its transactions prove.
	changes []uint64
	certain uint64
}

// Last is the last position.
func (l *Log) Last() Position {
	n := len(l.Entries)
	if n > 0 && l.end() > l.Snapshot.Index {
		return Position{Index: l.end(), Term: l.Entries[n-1].Term}
	}

	return l.Snapshot
}

// end is the index of the last entry.
func (l *Log) end() uint64 { return l.First + uint64(len(l.Entries)) - 1 }

// At returns the entry at an index; ok is false where there is none, or only the snapshot has it.
func (l *Log) At(index uint64) (e Entry, ok bool) {
	if len(l.Entries) == 0 || index < l.First || index > l.end() {
		return Entry{}, false
	}

	return l.Entries[index-l.First], true
}

// truncate cuts entries off the end.
func (l *Log) truncate(n int) { l.Entries = l.Entries[:len(l.Entries)-n] }

// withoutRecovery returns the log without the recovery entries at its end, and the configurations that may have been the
// last one of a leader. More than one: where an entry after which others were cut off looks like a recovery's, and like a
// leader's.
func (l *Log) withoutRecovery() (Log, []raftlog.Configuration) {
	c := *l
	c.changes = changesOf(&c)
	var doubtful []raftlog.Configuration
	if n := len(c.Entries); !c.Edited && n > 0 && c.end() > max(c.Snapshot.Index, 1) {
		last := c.Entries[n-1] // a term falls with a recovery's entry only, wherever that lies
		c.Edited = last.Change != nil && last.Term < c.termBefore(c.end())
	}

	if c.Edited {
		c.truncate(1)
		for n := len(c.Entries); n > 0 && c.end() > max(c.Snapshot.Index, 1); n = len(c.Entries) {
			last, before := c.Entries[n-1], c.termBefore(c.end())
			if last.Type != raftlog.ChangeEntry {
				break
			}

			if last.Term != 1 && last.Term <= before && !c.noLeaders(last) {
				if c.InTerm && last.Change != nil && last.Term == before { // a recovery's, or a leader's
					doubtful = append(doubtful, c.inForce(c.end()-1))
				}

				break
			}

			if last.Term == 1 && before == 1 && last.Change != nil { // no drop in terms that would tell
				doubtful = append(doubtful, *last.Change)
			}

			c.truncate(1)
		}
	}

	c.changes = changesOf(&c)
	c.certain = max(c.Snapshot.Index, c.confirmed())
	configurations := slices.Concat([]raftlog.Configuration{c.inForce(c.Last().Index)}, doubtful)
	return c, configurations
}

// changesOf are the indexes of the configurations among a log's entries.
func changesOf(l *Log) []uint64 {
	var indexes []uint64
	for i, e := range l.Entries {
		if e.Change != nil {
			indexes = append(indexes, l.First+uint64(i))
		}
	}

	return indexes
}

// noLeaders tells whether the last entry of a log, a configuration, is none that a leader can have written after the one before it, if that is known.
func (l *Log) noLeaders(last Entry) bool {
	before := l.inForce(l.end() - 1)
	return last.Change != nil && len(before) > 0 && !before.LeadsTo(*last.Change)
}

// confirmed is the last index of which the log itself proves that it, and all before it, was committed; 0 where it proves nothing. A leader
// of dqlite begins a transaction only when its last one is applied: so of two in one term the first was committed. Where the terms
// fall, at a recovery entry, another history begins that may go on in a term of before.
func (l *Log) confirmed() uint64 {
	var found, at, term uint64 // at is the last transaction so far, which has that term
	for i, e := range l.Entries {
		if e.Term != term {
			at, term = 0, e.Term
		}

		if !e.Transaction {
			continue
		}

		if at > 0 {
			found = at
		}

		at = l.First + uint64(i)
	}

	return found
}

// termBefore is the highest term before an index.
func (l *Log) termBefore(index uint64) uint64 {
	term := l.Snapshot.Term
	for i := l.First; i < index; i++ {
		e, _ := l.At(i)
		term = max(term, e.Term)
	}

	return term
}

// inForce is the configuration in force at an index that is not below the snapshot's.
func (l *Log) inForce(index uint64) raftlog.Configuration {
	c, _ := l.lastChange(index)
	return c
}

// lastChange returns the configuration in force at an index and the index of its entry, 0 where the snapshot has it.
func (l *Log) lastChange(index uint64) (raftlog.Configuration, uint64) {
	n, found := slices.BinarySearch(l.changes, index)
	if found {
		n++
	}

	if n > 0 && l.changes[n-1] > l.Snapshot.Index {
		e, _ := l.At(l.changes[n-1])
		return *e.Change, l.changes[n-1]
	}

	return l.SnapshotConfiguration, 0
}

// voters are the ids of a configuration's voters.
func voters(c raftlog.Configuration) []uint64 {
	var ids []uint64
	for _, s := range c {
		if s.Role == raftlog.Voter {
			ids = append(ids, s.ID)
		}
	}

	return ids
}

// shared is how far two logs are the same.
type shared struct {
	upTo     uint64 // the last index that both have, as far as that is known
	branch   uint64 // the first index at which they have different entries; 0 where one ends first
	hidden   bool   // the branch is at that index or before: a snapshot hides where
	sameTerm bool   // at the branch both have the same term: raft cannot tell them apart
}

// compare finds out how far two logs are the same. Where one has only a snapshot, the other's entries are taken for
// part of it, unless a term shows that they are not: a snapshot's entries are committed, and its log matches the other's
// up to the snapshot's index if the terms agree there.
func compare(a *Log, b *Log) shared {
	end := min(a.Last().Index, b.Last().Index)
	index := uint64(1)
	if a.First > 1 || b.First > 1 || len(a.Entries) == 0 || len(b.Entries) == 0 {
		index = min(a.known(), b.known())
	}

	certain := min(a.certain, b.certain) // both committed, so in one history the same
	for ; index <= end; index++ {
		x, okA := a.At(index)
		y, okB := b.At(index)
		switch {
		case okA && okB:
			if !x.same(y) {
				return shared{upTo: index - 1, branch: index, sameTerm: x.Term == y.Term}
			}

			certain = max(certain, index)

		case okA && !b.covers(index, x.Term), okB && !a.covers(index, y.Term), !okA && !okB && !snapshotsAgree(a, b, index):
			return shared{upTo: min(certain, index-1), branch: index, hidden: true}
		}
	}

	return shared{upTo: end}
}

// known is the first index of which anything is known.
func (l *Log) known() uint64 {
	if len(l.Entries) == 0 {
		return max(l.Snapshot.Index, 1)
	}

	if l.Snapshot.Index > 0 {
		return min(l.First, l.Snapshot.Index)
	}

	return l.First
}

// covers tells whether an entry of that index and term can be part of the snapshot.
func (l *Log) covers(index uint64, term uint64) bool {
	return index < l.Snapshot.Index && term <= l.Snapshot.Term || index == l.Snapshot.Index && term == l.Snapshot.Term
}

// snapshotsAgree tells whether two snapshots that both hide an index can be of one history.
func snapshotsAgree(a *Log, b *Log, index uint64) bool {
	if a.Snapshot.Index > b.Snapshot.Index {
		a, b = b, a
	}

	return index != a.Snapshot.Index || b.covers(index, a.Snapshot.Term)
}
