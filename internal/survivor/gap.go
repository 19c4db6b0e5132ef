// SPDX-License-Identifier: AGPL-3.0-only

package survivor

import (
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Gap is a place in a log where entries are missing that its files should have: what comes after it has too low indexes.
type Gap struct {
	Log     int    // whose it is
	Index   uint64 // of the first missing entry
	Entries uint64 // how many are missing
	From    int    // the log that has them
}

// minShifted is how many entries in a row have to be those of another log before entries are taken for shifted.
const minShifted = 3

// gaps looks for logs of which a segment is gone: their entries go on as those of another log, but at too low indexes. Such a log is
// sound up to there, and its end is not known.
func (c *comparison) gaps() {
	for i := range c.logs {
		for j := range c.logs {
			l, other := &c.logs[i], &c.logs[j]
			if i == j || len(l.Entries) == 0 {
				continue
			}

			s := compare(other, l)
			if s.branch <= l.Snapshot.Index || s.hidden { // 0 for none
				continue
			}

			n := shifted(l, other, s.branch)
			if n > 0 {
				c.result.Gaps = append(c.result.Gaps, Gap{Log: i, Index: s.branch, Entries: n, From: j})
				l.truncate(int(l.end() - s.branch + 1))
				l.changes = slices.DeleteFunc(l.changes, func(index uint64) bool { return index > l.end() })
				l.Whole = false
			}
		}
	}
}

// shifted is by how much the indexes of a log's entries are too low from an index on, against another log; 0 if they are not those of the
// other one. Transactions tell: barriers and changes repeat.
func shifted(l *Log, other *Log, from uint64) uint64 {
	first := from
	for ; first <= l.end(); first++ {
		e, _ := l.At(first)
		if e.Type == raftlog.CommandEntry {
			break
		}
	}

	if first > l.end() {
		return 0
	}

	found, by := 0, uint64(0)
	want, _ := l.At(first)
	for at := from; at <= other.end(); at++ {
		e, ok := other.At(at)
		if ok && e.same(want) {
			found++
			by = at - first
		}
	}

	if found != 1 || by == 0 || by > other.end() {
		return 0
	}

	for n := uint64(0); first+n <= l.end(); n++ {
		e, _ := l.At(first + n)
		o, ok := other.At(first + n + by)
		if !ok || !e.same(o) {
			if n < minShifted {
				return 0
			}

			break
		}
	}

	return by
}
