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

// maxTried is how many entries of a log are looked for in another one.
const maxTried = 50

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
// other one. A transaction that the other log has once tells: all else repeats.
func shifted(l *Log, other *Log, from uint64) uint64 {
	by := uint64(0)
	for at := from; at <= min(l.end(), from+maxTried) && by == 0; at++ {
		by = other.once(l, at)
	}

	if by == 0 {
		return 0
	}

	for n := uint64(0); from+n <= l.end(); n++ {
		e, _ := l.At(from + n)
		o, ok := other.At(from + n + by)
		if !ok || !e.same(o) {
			if n < minShifted {
				return 0
			}

			break
		}
	}

	return by
}

// once is by how much later a log has the transaction with an index of another one; 0 if it has it earlier, not at all, or several times.
func (l *Log) once(other *Log, index uint64) uint64 {
	want, _ := other.At(index)
	if want.Type != raftlog.CommandEntry {
		return 0
	}

	by := uint64(0)
	for at := l.First; at <= l.end(); at++ {
		e, _ := l.At(at)
		if !e.same(want) {
			continue
		}

		if at <= index || by > 0 {
			return 0
		}

		by = at - index
	}

	return by
}
