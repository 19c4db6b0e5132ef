// SPDX-License-Identifier: AGPL-3.0-only

package survivor

import (
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// committed returns the index up to which no leader can lack the best log's entries.
func (c *comparison) committed() uint64 {
	floor := uint64(0)
	for i, l := range c.logs {
		if l.certain <= c.shared[i].upTo {
			floor = max(floor, l.certain)
		}
	}

	for index := c.best.Last().Index; index > floor; index-- {
		if c.acknowledged(index) || c.unlosable(index, floor) {
			return index
		}
	}

	return floor
}

// since are the configurations that were in force from an index to the end of a log.
func since(l *Log, index uint64) []raftlog.Configuration {
	last := l.Last().Index
	c, at := l.lastChange(last)
	all := []raftlog.Configuration{c}
	for at > index {
		c, at = l.lastChange(at - 1)
		all = append(all, c)
	}

	return all
}

// acknowledged tells whether a majority of voters holds an entry that no later leader can have brought to them.
func (c *comparison) acknowledged(index uint64) bool {
	entry, ok := c.best.At(index)
	if !ok {
		return false
	}

	for _, configuration := range since(c.best, index) {
		all := voters(configuration)
		count := 0
		for _, id := range all {
			if !c.holds(id, index) {
				continue
			}

			term := c.logs[c.voter[id]].Term
			if term == entry.Term || term == entry.Term+1 {
				count++
			}
		}

		if 2*count <= len(all) {
			return false
		}
	}

	return true
}

// unlosable tells whether all members were seen that can take themselves for voters, and none of them that lacks the entry could be
// elected. One that a change of configuration has made a stand-by may not know it.
func (c *comparison) unlosable(index uint64, floor uint64) bool {
	for _, configuration := range since(c.best, max(floor, 1)) {
		for _, server := range configuration {
			if !c.seen(server.ID) {
				return false
			}
		}
	}

	for id, i := range c.voter {
		if c.holds(id, index) {
			continue
		}

		candidate := &c.logs[i]
		all := voters(candidate.inForce(candidate.Last().Index))
		if !slices.Contains(all, id) {
			continue
		}

		votes := 0
		for _, voter := range all {
			if !c.seen(voter) || c.logs[c.voter[voter]].Last().Compare(candidate.Last()) <= 0 {
				votes++
			}
		}

		if 2*votes > len(all) {
			return false
		}
	}

	return true
}

// tails lists the entries that were not committed for certain: of the best log, and of those that leave it.
func (c *comparison) tails() {
	r := c.result
	c.tail(c.best, r.Committed+1)
	for _, b := range r.Branches {
		longest := b.Logs[0]
		for _, i := range b.Logs {
			if c.logs[i].Last().Compare(c.logs[longest].Last()) > 0 {
				longest = i
			}
		}

		c.tail(&c.logs[longest], b.Index)
	}
}

// tail lists the entries of a log from an index on, as runs that the same voters hold.
func (c *comparison) tail(l *Log, first uint64) {
	all := voters(c.result.Configuration)
	with := make([]shared, len(c.logs))
	leaves := compare(c.best, l).branch
	for i := range c.logs {
		with[i] = compare(l, &c.logs[i])
		if leaves > 0 && c.shared[i].upTo >= leaves { // goes with the best log, which a snapshot may hide
			with[i].upTo = min(with[i].upTo, leaves-1)
		}
	}

	var run *Tail
	for index := max(first, l.First, 1); index <= l.Last().Index; index++ {
		entry, ok := l.At(index)
		if !ok {
			continue
		}

		at := Position{Index: index, Term: entry.Term}
		var t Tail
		for i := range c.logs {
			if with[i].upTo >= index {
				t.Logs = append(t.Logs, i)
			}
		}

		for _, id := range all {
			i, ok := c.voter[id]
			if ok && with[i].upTo >= index {
				t.Voters = append(t.Voters, id)
			}
		}

		t.Never = c.never(l, index, with)
		if run == nil || run.Never != t.Never || !slices.Equal(run.Logs, t.Logs) {
			t.First = at
			c.result.Tails = append(c.result.Tails, t)
			run = &c.result.Tails[len(c.result.Tails)-1]
		}

		run.Last = at
	}
}

// never tells whether an entry cannot have been committed: fewer than half of the voters can hold it.
func (c *comparison) never(l *Log, index uint64, with []shared) bool {
	for _, configuration := range slices.Concat(since(l, index), []raftlog.Configuration{l.inForce(max(index-1, l.Snapshot.Index))}) {
		all := voters(configuration)
		possible := 0
		for _, id := range all {
			if !c.seen(id) || with[c.voter[id]].upTo >= index {
				possible++
			}
		}

		if 2*possible >= len(all) {
			return false
		}
	}

	return true
}
