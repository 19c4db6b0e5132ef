// SPDX-License-Identifier: AGPL-3.0-only

package survivor

import (
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// recovery is a recovery entry that a log has gone on after.
type recovery struct {
	log   int // that shows it
	index uint64
}

// restore gives logs back the recovery entries at their ends that another log has gone on after: those are part of the history.
func (c *comparison) restore(whole []*Log) {
	for again := true; again; {
		again = false
		for i := range c.logs {
			l := &c.logs[i]
			n := len(l.Entries)
			if n == len(whole[i].Entries) || whole[i].Entries[n].Change == nil {
				continue
			}

			if slices.ContainsFunc(c.logs, func(o Log) bool {
				e, ok := o.At(l.First + uint64(n))
				return ok && e.same(whole[i].Entries[n])
			}) {
				l.Entries = whole[i].Entries[:n+1]
				l.changes = append(l.changes, l.end())
				again = true
			}
		}
	}
}

// recoveries are the recovery entries that the logs have gone on after, as far as they can be told from a leader's changes: the term
// falls there, or begins there, or another change is made than a leader makes.
func (c *comparison) recoveries() []recovery {
	var list []recovery
	for i := range c.logs {
		l := &c.logs[i]
		for _, index := range l.changes {
			if index <= max(l.Snapshot.Index, 1) {
				continue
			}

			e, _ := l.At(index)
			before, ok := l.At(index - 1)
			switch {
			case !ok && index-1 == l.Snapshot.Index:
				before.Term = l.Snapshot.Term
			case !ok:
				continue
			}

			if e.Term != before.Term || !l.inForce(index-1).LeadsTo(*e.Change) {
				list = append(list, recovery{i, index})
			}
		}
	}

	return list
}

// side says on which side of a recovery a log is.
type side uint8

const (
	before side = iota // it ends before it
	has                // it has it
	lacks              // it has another entry in its place
	hides              // a snapshot hides which
)

// sideOf tells on which side of a recovery a log is. A snapshot may hide the entry; what both have after it tells then.
func (c *comparison) sideOf(i int, r recovery) side {
	l, with := &c.logs[i], &c.logs[r.log]
	recovered, _ := with.At(r.index)
	e, ok := l.At(r.index)
	switch {
	case ok && e.same(recovered):
		return has
	case ok:
		return lacks
	case l.Last().Index < r.index:
		return before
	}

	for index := r.index + 1; index <= min(l.Last().Index, with.Last().Index); index++ {
		x, okX := l.At(index)
		y, okY := with.At(index)
		snapshot := okY && index == l.Snapshot.Index && y.Term == l.Snapshot.Term && slices.Equal(l.SnapshotConfiguration, with.inForce(index))
		if okX && okY && x.same(y) || snapshot {
			return has
		}
	}

	return hides
}

// split looks for a log that has parted from the best one, where one of them was recovered and has gone on: raft's rules hold on either
// side, and not between them, and each side may have committed what the other one lacks.
func (c *comparison) split(best int) {
	for _, r := range c.recoveries() {
		ours := c.sideOf(best, r)
		for i := range c.logs {
			theirs := c.sideOf(i, r)
			if theirs == before && ours == has && c.older(i, r) {
				continue
			}

			if ours == theirs && ours != hides || theirs == before && ours != has || ours == before && theirs != has {
				continue
			}

			lacking := i
			if ours != has {
				lacking = best
			}

			c.result.Verdict, c.result.Between = Split, [2]int{r.log, lacking}
			c.result.Recovered, c.result.RecoveredLog = r.index, r.log
			return
		}
	}
}

// older tells whether a log that ends before a recovery has nothing that raft would have preferred to what was recovered.
func (c *comparison) older(i int, r recovery) bool {
	with := &c.logs[r.log]
	if compare(with, &c.logs[i]).branch == 0 {
		return true
	}

	at := with.Snapshot
	if e, ok := with.At(r.index - 1); ok {
		at = Position{Index: r.index - 1, Term: e.Term}
	}

	return c.logs[i].Last().Compare(at) <= 0
}

// leftOut looks for a recovery after which voters that were not seen can have gone on, so that the best log lacks what they have: those
// of before, whom it has left out, where they were started on their old data; or those that it was made for, where no log shows more of
// it than its entry.
func (c *comparison) leftOut(best int, whole []*Log) {
	for _, r := range c.recoveries() {
		before := c.logs[r.log].inForce(r.index - 1)
		if c.sideOf(best, r) == has && len(before) > 1 { // the only server of a cluster was not left out of it
			c.needs(before, r)
		}
	}

	for i, l := range whole {
		for n := len(c.logs[i].Entries); n < len(l.Entries) && c.logs[i].Whole; n++ {
			if l.Entries[n].Change != nil {
				c.needs(*l.Entries[n].Change, recovery{i, l.First + uint64(n)})
			}
		}
	}
}

// needs notes that a majority of a configuration's voters was not seen.
func (c *comparison) needs(configuration raftlog.Configuration, r recovery) {
	if enough(configuration, c.seen, false) {
		return
	}

	c.result.Verdict, c.result.Recovered, c.result.RecoveredLog = LeftOut, r.index, r.log
	c.result.Missing = slices.DeleteFunc(voters(configuration), c.seen)
}
