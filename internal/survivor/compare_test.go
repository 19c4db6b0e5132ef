// SPDX-License-Identifier: AGPL-3.0-only

package survivor

import (
	"fmt"
	"slices"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// three is a configuration of three voters.
var three = raftlog.Configuration{{ID: 1, Role: raftlog.Voter}, {ID: 2, Role: raftlog.Voter}, {ID: 3, Role: raftlog.Voter}}

// logOf makes a member's log of the terms of its entries; an entry's content is its term, so that logs agree where they
// should. The current term is the last entry's.
func logOf(member uint64, terms ...uint64) *Log {
	l := &Log{Member: member, First: 1, Whole: true, Entries: []Entry{{Term: 1, Type: raftlog.ChangeEntry, Change: &three}}, Term: 1}
	for _, term := range terms {
		l.Entries = append(l.Entries, Entry{Term: term, Type: raftlog.CommandEntry, Sum: [16]byte{byte(term)}})
		l.Term = term
	}

	return l
}

// edited adds LXD's recovery entry.
func edited(l *Log) *Log {
	l.Entries = append(l.Entries, Entry{Term: 1, Type: raftlog.ChangeEntry, Change: &raftlog.Configuration{three[0]}, Sum: [16]byte{0xed}})
	l.Edited = true
	return l
}

// fenced adds a recovery entry as lxd-recover's own edit does.
func fenced(l *Log) *Log {
	edited(l)
	last := &l.Entries[len(l.Entries)-1]
	last.Term = l.Term + 1000
	l.Term = last.Term
	return l
}

func copied(l *Log) *Log   { l.Copy = true; return l }
func doubtful(l *Log) *Log { l.Whole = false; return l }

// changed gives an entry another content.
func changed(l *Log, index uint64) *Log {
	l.Entries[index-l.First].Sum[15]++
	return l
}

func with(l *Log, change func(*Log)) *Log {
	change(l)
	return l
}

// writes makes transactions of the entries with these indexes.
func writes(l *Log, indexes ...uint64) *Log {
	for _, index := range indexes {
		l.Entries[index-l.First].Transaction = true
	}

	return l
}

// snapshotAt replaces the entries up to an index by a snapshot.
func snapshotAt(l *Log, index uint64) *Log {
	e, _ := l.At(index)
	l.Snapshot, l.SnapshotConfiguration = Position{Index: index, Term: e.Term}, three
	l.Entries, l.First = l.Entries[index:], index+1
	return l
}

// A log whose end is in doubt is not the best one, but the longest it may be.
func TestLongest(t *testing.T) {
	r := Compare([]*Log{logOf(1, 2), doubtful(logOf(2, 2, 2)), logOf(3, 2), doubtful(logOf(4, 2, 2))})
	if !slices.Equal(r.Best, []int{0, 2}) || !slices.Equal(r.Longest, []int{1, 3}) {
		t.Errorf("best %v, longest %v", r.Best, r.Longest)
	}

	r = Compare([]*Log{logOf(1, 2, 2), doubtful(logOf(2, 2))})
	if !slices.Equal(r.Longest, r.Best) {
		t.Errorf("best %v, longest %v", r.Best, r.Longest)
	}
}

// describe is the last place at which a log branches off, and the tails, as the table has them.
func describe(r Result) (branches string, tails string) {
	branches, tails = "[]", "[]"
	for _, b := range r.Branches {
		branches = fmt.Sprintf("%d: %d %d", b.Index, b.BestTerm, b.Term)
	}

	for i, tail := range r.Tails {
		text := fmt.Sprintf("%d-%d", tail.First.Index, tail.Last.Index)
		if tail.Never {
			text += " never"
		}

		if i > 0 {
			text = tails + ", " + text
		}

		tails = text
	}

	return branches, tails
}

func TestCompare(t *testing.T) {
	for _, test := range []struct {
		name      string
		logs      []*Log
		verdict   Verdict
		best      []int
		common    uint64
		committed uint64
		branches  string
		tails     string
	}{
		{"two of three alike", []*Log{logOf(1, 2, 2, 3), logOf(2, 2, 2, 3), logOf(3, 2)}, Known, []int{0, 1}, 2, 4, "[]", "[]"},
		{"one alone has the last", []*Log{logOf(1, 2, 2, 3), logOf(2, 2, 2), logOf(3, 2, 2)}, Known, []int{0}, 3, 3, "[]", "4-4 never"},
		{"the same, one unseen", []*Log{logOf(1, 2, 2, 3), logOf(2, 2, 2)}, Known, []int{0}, 3, 3, "[]", "4-4"},
		{"only one seen", []*Log{logOf(1, 2, 2, 3)}, TooFew, []int{0}, 4, 0, "[]", "1-4"},
		{"two transactions of a term", []*Log{writes(logOf(1, 2, 2, 3, 3, 3), 4, 6)}, TooFew, []int{0}, 6, 4, "[]", "5-6"},
		{"transactions of two terms", []*Log{writes(logOf(1, 2, 2, 3, 3), 3, 4)}, TooFew, []int{0}, 5, 0, "[]", "1-5"},
		{"a recovery entry between them", []*Log{writes(with(logOf(1, 2, 2, 2), func(l *Log) { l.Entries[2].Term = 1 }), 2, 4)},
			TooFew, []int{0}, 4, 0, "[]", "1-4"},
		{"another log proves it", []*Log{logOf(1, 2, 2, 2, 2, 4), writes(logOf(2, 2, 2, 2, 2), 3, 5)}, Known, []int{0}, 5, 3, "[]", "4-5, 6-6"},
		{"outranked, and committed", []*Log{logOf(1, 3), logOf(2, 3), writes(logOf(3, 2, 2, 2), 3, 4)}, Conflict, nil, 0, 0, "", ""},
		{"an edit hides the term", []*Log{edited(logOf(1, 2, 2, 3)), logOf(2, 2, 2), logOf(3, 2, 2)}, Known, []int{0}, 3, 3, "[]", "4-4 never"},
		{"edited everywhere in term 1", []*Log{edited(logOf(1, 1, 1)), edited(logOf(2, 1, 1)), edited(logOf(3, 1))}, Known, []int{0, 1}, 2, 3, "[]", "[]"},
		{"shorter but newer", []*Log{logOf(1, 2, 2, 2, 2), logOf(2, 2, 3), logOf(3, 2, 3)}, Known, []int{1, 2}, 2, 3, "3: 3 2", "3-5 never"},
		{"figure 8", []*Log{with(logOf(1, 2), func(l *Log) { l.Term = 4 }), with(logOf(2, 2), func(l *Log) { l.Term = 4 }), logOf(3)},
			Known, []int{0, 1}, 1, 2, "[]", "[]"},
		{"figure 8, one unseen", []*Log{with(logOf(1, 2), func(l *Log) { l.Term = 4 }), with(logOf(2, 2), func(l *Log) { l.Term = 4 })},
			Known, []int{0, 1}, 2, 0, "[]", "1-2"},
		{"a snapshot", []*Log{snapshotAt(logOf(1, 2, 2, 3), 3), logOf(2, 2, 2), logOf(3, 2)}, Known, []int{0}, 2, 3, "[]", "4-4 never"},
		{"a snapshot of another history", []*Log{snapshotAt(logOf(1, 2, 2, 2), 4), logOf(2, 3), logOf(3, 3)}, Conflict, nil, 0, 0, "", ""},
		{"diverged under one term", []*Log{logOf(1, 2, 2, 2, 3), changed(logOf(2, 2, 2, 2, 3), 4), logOf(3, 2)}, Conflict, nil, 0, 0, "", ""},
		{"nothing in common", []*Log{logOf(1, 2, 2), changed(logOf(2, 2, 2), 2), logOf(3, 2, 2)}, Different, nil, 0, 0, "", ""},
		{"other certificates", []*Log{with(logOf(1, 2), func(l *Log) { l.Cluster = "a" }), logOf(2, 2),
			with(logOf(3, 2), func(l *Log) { l.Cluster = "b" })}, Different, nil, 0, 0, "", ""},
		{"damage", []*Log{logOf(1, 2, 2), with(logOf(2, 2), func(l *Log) { l.Whole = false })}, Damaged, []int{0}, 2, 2, "[]", "3-3"},
		{"damage that does not matter", []*Log{logOf(1, 2, 2), with(logOf(2, 2), func(l *Log) { l.Whole = false }), logOf(3, 2, 2)},
			Known, []int{0, 2}, 2, 3, "[]", "[]"},
		{"one member twice", []*Log{logOf(1, 2, 2), logOf(1, 2, 2)}, TooFew, []int{0, 1}, 3, 0, "[]", "1-3"},
		{"one member's backup, too", []*Log{logOf(1, 2), logOf(1, 2, 2), logOf(2, 2, 2)}, Known, []int{1, 2}, 2, 3, "[]", "[]"},
		{"unknown member", []*Log{logOf(0, 2, 2), logOf(0, 2, 2), logOf(1, 2)}, TooFew, []int{0, 1}, 2, 0, "[]", "1-2, 3-3"},
		{"edited and fenced twice, and lagging", []*Log{fenced(fenced(logOf(1, 2))), logOf(2, 2, 2, 2), logOf(3, 2, 2, 2)},
			Known, []int{1, 2}, 2, 4, "[]", "[]"},
		{"fenced, then LXD's own edit", []*Log{edited(fenced(logOf(1, 2))), logOf(2, 2, 2, 2), logOf(3, 2, 2, 2)}, Known, []int{1, 2}, 2, 4, "[]", "[]"},
		{"one of three, and copies", []*Log{logOf(1, 2), copied(logOf(2, 2)), copied(logOf(3, 2))}, TooFew, []int{0, 1, 2}, 2, 2, "[]", "[]"},
		{"a copy has the best log", []*Log{logOf(1, 2), logOf(2, 2), copied(logOf(3, 2, 2))}, Known, []int{2}, 2, 2, "[]", "3-3 never"},
		{"a copy of what was replaced since", []*Log{logOf(1, 2, 4), logOf(2, 2, 4), logOf(3, 2, 4), copied(logOf(1, 2, 3, 3))},
			Known, []int{0, 1, 2}, 2, 3, "3: 4 3", "3-4 never"},
		{"none whole, the longest last", []*Log{doubtful(logOf(1, 2)), doubtful(logOf(2, 2, 2)), doubtful(logOf(3))}, Damaged, []int{1}, 1, 2, "[]", "3-3"},
		{"a damaged one's snapshot beyond what is seen", []*Log{doubtful(snapshotAt(logOf(1, 2, 2, 2), 4)), logOf(2, 2), logOf(3, 2)},
			Conflict, nil, 0, 0, "", ""},
		{"a damaged one's snapshot beyond the only one seen", []*Log{doubtful(snapshotAt(logOf(1, 2, 2, 2), 4)), logOf(2, 2)},
			Damaged, []int{1}, 2, 2, "[]", "[]"},
		{"snapshots only", []*Log{with(snapshotAt(logOf(1, 2, 2), 3), func(l *Log) { l.First, l.Entries = 0, nil }),
			with(snapshotAt(logOf(2, 2, 2), 3), func(l *Log) { l.First, l.Entries = 0, nil })}, Known, []int{0, 1}, 3, 3, "[]", "[]"},
		{"empty", []*Log{{Whole: true}, {Whole: true}}, Nothing, nil, 0, 0, "[]", "[]"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := Compare(test.logs)
			if r.Verdict != test.verdict {
				t.Fatalf("verdict %q, want %q: %+v", r.Verdict, test.verdict, r)
			}

			if test.verdict == Different || test.verdict == Conflict {
				return
			}

			branches, tails := describe(r)
			if !slices.Equal(r.Best, test.best) || r.Common != test.common || r.Committed != test.committed || branches != test.branches ||
				tails != test.tails {
				t.Errorf("best %v, common %d, committed %d, branches %s, tails %s", r.Best, r.Common, r.Committed, branches, tails)
			}
		})
	}
}

// numbered makes every entry of logs another transaction, by its index.
func numbered(logs ...*Log) []*Log {
	for _, l := range logs {
		for i := range l.Entries {
			if l.Entries[i].Type == raftlog.CommandEntry {
				l.Entries[i].Sum = [16]byte{byte(l.Entries[i].Term), byte(i >> 8), byte(i)}
			}
		}
	}

	return logs
}

// terms are so many entries of one term.
func terms(n int, term uint64) []uint64 { return slices.Repeat([]uint64{term}, n) }

// without removes the entries from one index to another: those after it get their indexes.
func without(l *Log, first, last uint64) *Log {
	l.Entries = slices.Concat(l.Entries[:first-l.First], l.Entries[last+1-l.First:])
	return l
}

// A segment of a log is gone: that is not what an edit leaves, the log is sound up to there, and its end is not known.
func TestGap(t *testing.T) {
	for _, first := range []uint64{2, 5, 15} {
		for _, length := range []uint64{1, 2, 4} {
			logs := numbered(logOf(1, terms(19, 1)...), logOf(2, terms(19, 1)...), logOf(3, terms(19, 1)...))
			for _, l := range logs { // a command that repeats, as when the database is opened
				l.Entries[first+length-1].Sum, l.Entries[18].Sum = [16]byte{1}, [16]byte{1}
			}

			without(logs[1], first, first+length-1)
			r := Compare(logs)
			want := Gap{Log: 1, Index: first, Entries: length, From: 0}
			if r.Verdict != Known || !slices.Equal(r.Gaps, []Gap{want}) || !slices.Equal(r.Best, []int{0, 2}) || r.Ends[1].Index != first-1 {
				t.Errorf("%d from index %d are gone: %+v", length, first, r)
			}

			r = Compare(logs[:2])
			if r.Verdict != Damaged || !slices.Equal(r.Gaps, []Gap{want}) || !slices.Equal(r.Best, []int{0}) || r.Committed != first-1 {
				t.Errorf("%d from index %d are gone, of two: %+v", length, first, r)
			}
		}
	}
}

// recoveredTo adds a recovery's entry of a term, for one voter, and entries after it.
func recoveredTo(l *Log, term uint64, after ...uint64) *Log {
	l.Entries = append(l.Entries, Entry{Term: term, Type: raftlog.ChangeEntry, Change: &raftlog.Configuration{three[0]}, Sum: [16]byte{0xed}})
	for i, term := range after {
		l.Entries = append(l.Entries, Entry{Term: term, Type: raftlog.CommandEntry, Sum: [16]byte{byte(term), 0xed, byte(i)}})
		l.Term = term
	}

	return l
}

// A member is recovered and goes on, the others are started on their old data, or not.
func TestRecoveredApart(t *testing.T) {
	for _, test := range []struct {
		name      string
		logs      []*Log
		verdict   Verdict
		recovered uint64
	}{
		{"fenced, and the others have a later term", []*Log{recoveredTo(logOf(1, 2, 2), 1000, 1000), logOf(2, 2, 2, 1001), logOf(3, 2, 2, 1001)}, Split, 4},
		{"fenced, and the others an earlier one", []*Log{recoveredTo(logOf(1, 2, 2), 1000, 1000), logOf(2, 2, 2, 3), logOf(3, 2, 2, 3)}, Split, 4},
		{"not fenced", []*Log{recoveredTo(logOf(1, 2, 2), 1, 3), logOf(2, 2, 2, 4), logOf(3, 2, 2, 4)}, Split, 4},
		{"not fenced, in the first term", []*Log{recoveredTo(logOf(1, 1, 1), 1, 2), logOf(2, 1, 1, 2), logOf(3, 1, 1, 2)}, Split, 4},
		{"the others have not gone on", []*Log{recoveredTo(logOf(1, 2, 2), 1000, 1000), logOf(2, 2, 2), logOf(3, 2)}, Known, 0},
		{"one of the others was not seen", []*Log{recoveredTo(logOf(1, 2, 2), 1000, 1000), logOf(2, 2, 2)}, Known, 0},
		{"the others were not seen", []*Log{recoveredTo(logOf(1, 2, 2), 1000, 1000)}, LeftOut, 4},
		{"the recovered one has not gone on", []*Log{fenced(logOf(1, 2, 2)), logOf(2, 2, 2, 3), logOf(3, 2, 2, 3)}, Known, 0},
		{"the others have more than was recovered", []*Log{recoveredTo(logOf(1, 2), 1000, 1000), logOf(2, 2, 2, 2, 2), logOf(3, 2, 2)}, Split, 3},
		{"recovered and gone on, and damaged", []*Log{doubtful(recoveredTo(logOf(1, 2, 2), 1000, 1000)), logOf(2, 2, 2), logOf(3, 2, 2)}, Split, 4},
		{"one has only the recovery's entry", []*Log{recoveredTo(logOf(1, 2, 2), 1000, 1001), fenced(logOf(2, 2, 2)), logOf(3, 2, 2)}, Known, 0},
		{"a leader's change", []*Log{with(logOf(1, 2, 2, 2), func(l *Log) {
			l.Entries[2] = Entry{Term: 2, Type: raftlog.ChangeEntry, Change: &raftlog.Configuration{three[0], three[1]}}
		}), logOf(2, 2, 3), logOf(3, 2, 3)}, Known, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := Compare(test.logs)
			if r.Verdict != test.verdict || r.Recovered != test.recovered {
				t.Errorf("%q, recovered at %d, want %q, %d: %+v", r.Verdict, r.Recovered, test.verdict, test.recovered, r)
			}
		})
	}
}
