// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

// Run is a stretch of the log that lies in one file.
type Run struct {
	File        string
	First, Last uint64 // indexes
	MaxTerm     uint64 // none of its entries has a higher one

	// Size is the number of bytes from the beginning of the file that hold the run and nothing else, so that they are a sound closed
	// segment by themselves; 0 when the file holds more sound entries than the run, or has damage before it.
	Size int64

	// SHA256 is that of these bytes, see [Segment].
	SHA256 string
}

// Runs returns the log as stretches of files, in order.
func (l *Log) Runs() []Run {
	runs := make([]Run, len(l.placed))
	for i, p := range l.placed {
		runs[i] = Run{File: p.segment.File, First: p.first, Last: p.last(), MaxTerm: p.part.MaxTerm}
		if p.whole() {
			runs[i].Size, runs[i].SHA256 = p.part.End, p.segment.SHA256
		}
	}

	return runs
}

// Hole is a stretch of indexes that only a snapshot has.
type Hole struct{ First, Last uint64 }

// Holes are the stretches between FirstIndex and LastIndex that the log has no entries of. They are in the snapshot that the log goes
// on from.
func (l *Log) Holes() []Hole {
	var holes []Hole
	next := l.FirstIndex
	for _, p := range l.placed {
		if p.first > next {
			holes = append(holes, Hole{First: next, Last: p.first - 1})
		}

		next = p.last() + 1
	}

	return holes
}

// TermAt is the term of the entry at an index, or of the snapshot there; known is false where the log does not tell.
func (l *Log) TermAt(index uint64) (term uint64, known bool) {
	p, ok := l.placed.at(index)
	if ok {
		return p.termAt(index), true
	}

	s := l.Snapshot()
	if s != nil && s.Index == index {
		return s.Term, true
	}

	return 0, false
}

// Has says whether the log has all entries from index first to index last.
func (l *Log) Has(first, last uint64) bool {
	return first > last || l.FirstIndex > 0 && l.placed.end(max(first, 1)) >= last && first >= l.FirstIndex
}
