// SPDX-License-Identifier: AGPL-3.0-only

package survivor

import (
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Verdict says whether a log can be recommended.
type Verdict string

// The verdicts.
const (
	Known     Verdict = "known"             // the best log holds every committed entry
	TooFew    Verdict = "too-few-voters"    // too few voters' logs were seen to know that
	Damaged   Verdict = "damaged"           // enough were seen, but the end of some is in doubt
	Different Verdict = "different-cluster" // certificates differ, or the logs have nothing in common
	Conflict  Verdict = "conflict"          // of one cluster, but not of one raft history any more
	Split     Verdict = "split"             // a member was recovered apart from others, and both have gone on
	LeftOut   Verdict = "left-out"          // a recovery has left voters out that were not seen, and that can have gone on
	Running   Verdict = "running"           // enough were given, but daemons are writing to some; never by Compare itself
	Nothing   Verdict = "nothing"           // no log holds anything
)

// Result is what comparing logs found out. Logs are named by their place in the list that was given.
type Result struct {
	Verdict Verdict
	Between [2]int // the two logs that do not fit together, where that is the verdict

	// Recovered is the index of the recovery that the verdict is about, Split or LeftOut; RecoveredLog is a log that has it.
	Recovered    uint64
	RecoveredLog int

	Gaps    []Gap
	Best    []int // the logs that raft would prefer: all the same
	Longest []int // the logs with the greatest end, in doubt or not: Best, or such as hold more whose end is in doubt
	Last    []Position
	Ends    []Position // last position of each without recovery entries

	Common    uint64   // index up to which all are the same
	Shared    []uint64 // index up to which each is the same as the best one
	Branches  []Branch // where a log leaves the best one
	Committed uint64   // up to this index, the best log was committed for certain
	Tails     []Tail   // what may not have been, or was not

	Configuration raftlog.Configuration // in force at the end of the best log
	Seen, Missing []uint64              // its voters whose logs were seen whole, and the others
}

// Branch is a place at which a log has another entry than the best one.
type Branch struct {
	Index    uint64
	Hidden   bool   // at that index or before
	BestTerm uint64 // of the entry there, 0 where a snapshot hides it
	Term     uint64
	Logs     []int
}

// Tail is a run of entries that were not committed for certain.
type Tail struct {
	First, Last Position
	Logs        []int    // that hold them
	Voters      []uint64 // of the configuration in force that hold them
	Never       bool     // they were never committed; otherwise they may have been
}

// Compare compares logs. It does not change them.
func Compare(logs []*Log) Result {
	r := Result{Verdict: Nothing, Ends: make([]Position, len(logs)), Last: make([]Position, len(logs))}
	c := comparison{logs: make([]Log, len(logs)), result: &r}
	configurations := make([][]raftlog.Configuration, len(logs))
	for i, l := range logs {
		c.logs[i], configurations[i] = l.withoutRecovery()
		r.Last[i] = l.Last()
	}

	c.restore(logs)
	c.gaps()
	for i := range logs {
		l := &c.logs[i]
		configurations[i][0] = l.inForce(l.Last().Index)
	}

	best, longest := c.choose()
	if len(logs) == 0 || r.Ends[best].Index == 0 {
		return r
	}

	c.best = &c.logs[best]
	c.shared = make([]shared, len(logs))
	r.Common = r.Ends[best].Index
	for i := range logs {
		c.shared[i] = compare(c.best, &c.logs[i])
		r.Common = min(r.Common, c.shared[i].upTo)
		r.Shared = append(r.Shared, c.shared[i].upTo)
		if c.logs[i].Whole == c.logs[best].Whole && c.shared[i].branch == 0 && r.Ends[i] == r.Ends[best] {
			r.Best = append(r.Best, i)
		}

		if r.Ends[i] == r.Ends[longest] {
			r.Longest = append(r.Longest, i)
		}
	}

	c.vote()
	c.branches()
	r.Configuration = configurations[best][0]
	c.judge(best, configurations[best], logs)
	if r.Verdict == Different || r.Verdict == Conflict || r.Verdict == Split {
		return r
	}

	r.Committed = c.committed()
	c.tails()
	return r
}

// comparison is the work on one result.
type comparison struct {
	logs   []Log // without recovery entries
	best   *Log
	shared []shared        // with the best log
	voter  map[uint64]int  // the log that stands for a member
	known  map[uint64]bool // the members whose log's end is known
	result *Result
}

// choose finds the best log and the one that holds most. Only a log whose end is known can be the best, see the package comment; where
// there is none, the one that holds most.
func (c *comparison) choose() (best int, longest int) {
	ends := c.result.Ends
	for i := range c.logs {
		ends[i] = c.logs[i].Last()
		whole := c.logs[i].Whole && ends[i].Index > 0
		bestWhole := c.logs[best].Whole && ends[best].Index > 0
		if whole && !bestWhole || whole == bestWhole && ends[i].Compare(ends[best]) > 0 {
			best = i
		}

		if ends[i].Compare(ends[longest]) > 0 {
			longest = i
		}
	}

	return best, longest
}

// vote chooses for each member the log that stands for it, where several sources are of one: the one raft would prefer, and a copy
// of an earlier time only where there is nothing else. A member
// with any source whose end is in doubt is in doubt; a copy of an earlier time says nothing about the end.
func (c *comparison) vote() {
	c.voter = map[uint64]int{}
	for i, l := range c.logs {
		if l.Member == 0 {
			continue
		}

		j, ok := c.voter[l.Member]
		if !ok || l.Copy == c.logs[j].Copy && l.Last().Compare(c.logs[j].Last()) > 0 || !l.Copy && c.logs[j].Copy {
			c.voter[l.Member] = i
		}
	}

	c.known = map[uint64]bool{}
	for i := range c.logs {
		l := &c.logs[i]
		if l.Member != 0 && l.Whole && !l.Copy {
			c.known[l.Member] = true
		}
	}

	for _, l := range c.logs {
		if l.Member != 0 && !l.Whole {
			c.known[l.Member] = false
		}
	}
}

// seen tells whether the end of a member's log is known.
func (c *comparison) seen(id uint64) bool { return c.known[id] }

// holds tells whether a member's log has the best log's entry at an index.
func (c *comparison) holds(id uint64, index uint64) bool {
	i, ok := c.voter[id]
	return ok && c.shared[i].upTo >= index
}

func (c *comparison) branches() {
	r := c.result
	for i, s := range c.shared {
		if s.branch == 0 {
			continue
		}

		b := Branch{Index: s.branch, Hidden: s.hidden, BestTerm: c.termAt(c.best, s.branch), Term: c.termAt(&c.logs[i], s.branch)}
		j := slices.IndexFunc(r.Branches, func(o Branch) bool {
			return o.Index == b.Index && o.Term == b.Term && o.Hidden == b.Hidden && compare(&c.logs[i], &c.logs[o.Logs[0]]).upTo >= b.Index
		})
		if j < 0 {
			r.Branches = append(r.Branches, b)
			j = len(r.Branches) - 1
		}

		r.Branches[j].Logs = append(r.Branches[j].Logs, i)
	}

	slices.SortStableFunc(r.Branches, func(a, b Branch) int { return int(int64(a.Index) - int64(b.Index)) })
}

func (c *comparison) termAt(l *Log, index uint64) uint64 {
	e, ok := l.At(index)
	if !ok && index == l.Snapshot.Index {
		return l.Snapshot.Term
	}

	return e.Term
}

// judge finds out whether the best log holds every committed entry.
func (c *comparison) judge(best int, configurations []raftlog.Configuration, whole []*Log) {
	r := c.result
	for i := range c.logs {
		a, b := c.logs[best].Cluster, c.logs[i].Cluster
		for j := 0; a == "" && j < i; j++ { // the best one does not tell: compare with any that does
			a = c.logs[j].Cluster
		}

		if a != "" && b != "" && a != b {
			r.Verdict, r.Between = Different, [2]int{best, i}
			return
		}
	}

	c.split(best)
	for i, s := range c.shared {
		switch {
		case s.branch > 0 && s.sameTerm && s.upTo <= 1:
			r.Verdict = Different
		case s.branch > 0 && s.sameTerm, r.Verdict != Split && c.logs[i].Whole && s.upTo < c.logs[i].certain:
			r.Verdict = Conflict
		default:
			continue
		}

		r.Between = [2]int{best, i}
		return
	}

	if r.Verdict == Split {
		return
	}

	before, index := c.before()
	if before != nil {
		configurations = append(configurations, before)
	}

	for _, id := range voters(configurations[0]) {
		if c.seen(id) {
			r.Seen = append(r.Seen, id)
		} else {
			r.Missing = append(r.Missing, id)
		}
	}

	r.Verdict = Known
	for i, configuration := range configurations {
		// With half of the voters a leader goes on only if it can make one of the others a stand-by, for which the
		// configuration must have been committed.
		half := i == 0 && index > 1 && !c.anyHolds(configuration, index)
		given := func(id uint64) bool {
			i, ok := c.voter[id]
			return ok && !c.logs[i].Copy
		}

		switch {
		case enough(configuration, c.seen, half):
		case enough(configuration, given, half) && r.Verdict != TooFew:
			r.Verdict = Damaged
		default:
			r.Verdict = TooFew
		}
	}

	if r.Verdict != Known {
		return
	}

	for i, s := range c.shared {
		if s.upTo < c.logs[i].certain {
			r.Verdict, r.Between = Conflict, [2]int{best, i}
			return
		}
	}

	c.leftOut(best, whole)
}

// enough tells whether a majority of a configuration's voters was seen, or, if that is enough, half of them.
func enough(configuration raftlog.Configuration, seen func(uint64) bool, half bool) bool {
	all := voters(configuration)
	count := 0
	for _, id := range all {
		if seen(id) {
			count++
		}
	}

	return 2*count > len(all) || half && 2*count == len(all)
}

// anyHolds tells whether a voter that was seen holds an entry.
func (c *comparison) anyHolds(configuration raftlog.Configuration, index uint64) bool {
	return slices.ContainsFunc(voters(configuration), func(id uint64) bool { return c.seen(id) && c.holds(id, index) })
}

// before returns the configuration before the one in force, if that may not have been committed: a voter that was seen lacks
// its entry, or none was seen. The index is that of the entry in force, 0 where a snapshot has it.
func (c *comparison) before() (raftlog.Configuration, uint64) {
	_, index := c.best.lastChange(c.best.Last().Index)
	if index <= 1 {
		return nil, index
	}

	before := c.best.inForce(index - 1)
	none := true
	for _, id := range voters(before) {
		if !c.seen(id) {
			continue
		}

		none = false
		if !c.holds(id, index) {
			return before, index
		}
	}

	if none {
		return before, index
	}

	return nil, index
}
