// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"cmp"
	"slices"
)

// placed is a run of entries with their place in the log: count entries of a part, from the one with the ordinal skip on, the first of
// them at index first.
type placed struct {
	segment      *Segment
	part         *Part
	skip         uint64
	first, count uint64
}

// last is the index of the last entry.
func (p placed) last() uint64 { return p.first + p.count - 1 }

// termAt is the term of the entry at an index of the run.
func (p placed) termAt(index uint64) uint64 { return p.part.termAt(p.skip + index - p.first) }

// changes says whether the entry at an index of the run is a configuration.
func (p placed) changes(index uint64) bool {
	ordinal := p.skip + index - p.first
	return slices.ContainsFunc(p.part.changes, func(c foundChange) bool { return c.ordinal == ordinal })
}

// cut leaves only the entries from index first to index last.
func (p placed) cut(first, last uint64) placed {
	if first > p.first {
		p.skip += first - p.first
		p.count -= min(first-p.first, p.count)
		p.first = first
	}

	if last < p.last() {
		p.count -= min(p.last()-last, p.count)
	}

	return p
}

// whole says whether the entries are all of a segment from its beginning, and all that is sound of it.
func (p placed) whole() bool {
	return p.part == &p.segment.Part && p.skip == 0 && p.count == p.part.Entries && len(p.segment.tail) == 0
}

// claim is a run of entries whose indexes the name of a closed segment proves.
type claim struct {
	placed
	whole bool // the segment is undamaged and has as many entries as its name says
	trust trust
}

// claims are what the name of a closed segment proves of its entries: those before the first damage have the indexes from its first
// on, those after the last the indexes up to its last, and between two damages those whose number is known from either side.
func (s *Segment) claims() []claim {
	if s.Open || s.First == 0 || s.First > s.Last || s.Last > maxIndex {
		return nil
	}

	want := s.Last - s.First + 1
	t := s.trust
	if s.fault == nil && s.Entries > want {
		t = max(t, renamed) // the name is not the one that dqlite gave it
		return []claim{{placed{s, &s.Part, 0, s.First, s.Entries}, false, t}}
	}

	ordinals := s.ordinals(want)
	var list []claim
	for i, p := range s.parts() {
		if ordinals[i] < 0 || uint64(ordinals[i])+p.Entries > want {
			continue
		}

		whole := s.fault == nil && p.Entries == want
		list = append(list, claim{placed{s, p, 0, s.First + uint64(ordinals[i]), p.Entries}, whole, t})
	}

	return list
}

// ordinals are the places of the parts in the segment, counted in entries: from its beginning, or from its end, as far as the headers
// of damaged batches let count; -1 where neither does, or both contradict each other. want is the number of entries by its name.
func (s *Segment) ordinals(want uint64) []int64 {
	parts := s.parts()
	list := make([]int64, len(parts))
	for i, p := range parts {
		list[i] = p.before
	}

	// From the end.
	for i, p := range slices.Backward(parts) {
		if p.End != s.Size || s.fault == nil || p == &s.Part {
			break
		}

		back := int64(want) - int64(p.Entries)
		if list[i] >= 0 && list[i] != back {
			back = -1
		}

		list[i] = back
	}

	return list
}

// span is a set of entries by index, in order, that do not overlap.
type span []placed

func sortPlaced(a, b placed) int {
	return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(b.count, a.count))
}

// end is the last index up to which the span goes on without a hole from index from on; from-1 if it does not have that.
func (s span) end(from uint64) uint64 {
	last := from - 1
	for _, p := range s {
		if p.first > last+1 {
			break
		}

		last = max(last, p.last())
	}

	return last
}

// has returns the run that an index is in.
func (s span) at(index uint64) (placed, bool) {
	for _, p := range s {
		if p.first <= index && index <= p.last() {
			return p, true
		}
	}

	return placed{}, false
}

// fill adds what is not there yet of a run.
func (s span) fill(p placed) span {
	var more span
	from := p.first
	for _, q := range s {
		if q.first > p.last() {
			break
		}

		if q.first > from {
			more = append(more, p.cut(from, q.first-1))
		}

		from = max(from, q.last()+1)
	}

	if from <= p.last() {
		more = append(more, p.cut(from, p.last()))
	}

	s = append(slices.Clone(s), more...)
	slices.SortFunc(s, sortPlaced)
	return s
}

// without removes the entries from index first to index last of one segment.
func (s span) between(first, last uint64) span {
	var list span
	for _, p := range s {
		if p.last() >= first && p.first <= last {
			list = append(list, p.cut(first, last))
		}
	}

	return list
}
