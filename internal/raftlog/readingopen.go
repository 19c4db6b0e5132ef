// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// chain is a way back through the closed segments, by their names: each ends right before the one that comes before it in the list. They
// are what libdqlite had there, damaged or not.
type chain []*Segment

// named are the closed segments with a name of dqlite's own, but for those that are known to have a wrong one.
func (l *Log) named() []*Segment {
	var list []*Segment
	for _, s := range l.all {
		if !s.Open && s.trust == inForce && s.First > 0 && s.First <= s.Last && s.Last <= maxIndex &&
			!slices.Contains(l.copies, s) && !slices.Contains(l.misnamed, s) {
			list = append(list, s)
		}
	}

	slices.SortStableFunc(list, func(a, b *Segment) int { return cmp.Or(cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last)) })
	return list
}

// reach is the last index that the closed segments, by their names, go on to from the index last without a hole. beyond are those that
// come after a hole, and show that the log went on to them.
func (l *Log) reach(last uint64) (end uint64, beyond []*Segment) {
	end = last
	before := uint64(0) // last index by a name, up to last
	for _, s := range l.named() {
		switch {
		case s.First <= end+1:
			end = max(end, s.Last)
			before = max(before, s.Last)
		case l.shows(s, s.First-last <= nearHole):
			beyond = append(beyond, s)
		}
	}

	return before, beyond
}

// shows says whether a segment after a hole shows that the log went on to it. A damaged one does, too, as its name was right when dqlite
// gave it; one of which nothing can be read only where it is near. Another number of entries than the name says is that of a stray, but
// where a near one was cut.
func (l *Log) shows(s *Segment, near bool) bool {
	want := s.Last - s.First + 1
	switch {
	case s.fault != nil:
		return near || s.Entries+s.After > 0
	case s.Entries == want:
		return true
	}

	twin := func(o *Segment) bool { return o != s && o.mark.set && o.mark == s.mark }
	return near && s.Entries < want && !slices.ContainsFunc(l.all, twin)
}

// maxChains bounds in how many ways segments that overlap are walked back.
const maxChains = 32

// chains are the ways back from the segments that end at an index.
func (l *Log) chains(end uint64) []chain {
	ending := map[uint64][]*Segment{}
	for _, s := range l.named() {
		ending[s.Last] = append(ending[s.Last], s)
	}

	var done []chain
	open := []chain{nil}
	for len(open) > 0 && len(done) < maxChains {
		c := open[len(open)-1]
		open = open[:len(open)-1]
		at := end
		if len(c) > 0 {
			at = c[len(c)-1].First - 1
		}

		if at == 0 || len(ending[at]) == 0 {
			done = append(done, c)
			continue
		}

		for _, s := range ending[at] {
			open = append(open, append(slices.Clone(c), s))
		}
	}

	return done
}

// withOpen adds the open segments to a reading of the closed ones.
func (l *Log) withOpen(r Reading, opens []opened) []Reading {
	named, beyond := l.reach(r.Last)
	for _, p := range r.log { // those that do not have their own name any more, too
		if !p.segment.Open && p.segment.First <= p.first && p.last() <= p.segment.Last {
			named = max(named, p.segment.Last)
		}
	}

	if named > r.Last { // the end of the closed ones is damaged: there is a hole before the open ones
		r.unreached, _ = l.placeOpen(opens, named+1)
		return []Reading{r}
	}

	if l.emptiedBefore(opens[0]) || r.base == nil && r.Last == 0 && !opens[0].beginsWithChange() {
		return []Reading{r}
	}

	beyond = slices.DeleteFunc(beyond, func(s *Segment) bool { return l.foreign(s, r) })
	other := contradicts
	for _, s := range beyond {
		follow, _ := l.continues(s.Last, opens[0])
		other = min(other, follow)
	}

	var list []Reading
	follow, why := fits, ""
	if named < r.start() {
		list, follow = l.besideSnapshot(r, named, opens)
	} else {
		follow, why = l.continues(named, opens[0])
		list = l.placedAfter(r, opens, r.Last+1)
	}

	near := len(beyond) > 0 && beyond[0].First-r.Last <= nearHole
	switch {
	case follow == contradicts && named >= r.start() && l.cutWhileLive(r, opens[0]):
		return list
	case follow == contradicts && named >= r.start():
		short := r
		short.For = append(slices.Clone(r.For), why)
		if other != contradicts {
			return []Reading{short}
		}

		for i := range list {
			// A new leader that cuts a whole segment away leaves the same picture.
			list[i].Against, list[i].Excluded = append(list[i].Against, why), near || opens[0].FirstTerm == r.LastTerm
			if !list[i].Excluded {
				list[i].For = append(list[i].For, fmt.Sprintf("%s begins with a later term: a new leader may have had them removed", opens[0].File))
			}
		}

		return slices.Concat([]Reading{short}, l.withoutLast(r, named, opens), list)
	case len(beyond) == 0, !near && (other == contradicts || follow == fits && other == maybe && !slices.ContainsFunc(beyond, (*Segment).damaged)):
		return l.besideLostSnapshot(r, list, opens)
	}

	short := r
	why = fmt.Sprintf("%s, with later entries, is between them and %s", beyond[0].File, opens[0].File)
	short.For = append(slices.Clone(r.For), why)
	excluded := near && (follow != fits || other != contradicts) || follow != fits && other == fits
	for i := range list {
		list[i].Against, list[i].Excluded = append(list[i].Against, why), excluded
	}

	return append(list, short)
}

// cutWhileLive says whether the daemon that works in the directory has removed the segments that are missing before an open one: it has read the log when it
// started, nobody else removes files under it, and there was another leader since the closed segments end.
func (l *Log) cutWhileLive(r Reading, next opened) bool {
	return l.live && max(l.Term, next.FirstTerm) > r.LastTerm
}

// besideLostSnapshot adds the reading without the open segments if those with them end before a snapshot of which only the name is left, or
// one of its two files: the log had reached that index. Damage in an open segment explains that, too.
func (l *Log) besideLostSnapshot(r Reading, list []Reading, opens []opened) []Reading {
	if slices.ContainsFunc(opens, func(o opened) bool { return o.DirtyTail || o.After > 0 || o.End == 0 }) {
		return list
	}

	name, index := "", r.Last
	for _, f := range l.Files {
		if f.Kind != SnapshotFile && f.Kind != SnapshotMetaFile {
			continue
		}

		term, at, _, _ := parseSnapshotName(f.Name)
		if at > index && at <= maxIndex && (l.Term == 0 || term <= l.Term) {
			name, index = f.Name, at
		}
	}

	ends := func(with Reading) bool { return with.Last < index }
	if !slices.ContainsFunc(list, ends) {
		return list
	}

	for i := range list {
		if ends(list[i]) {
			list[i].Against = append(list[i].Against, fmt.Sprintf("%s was taken at index %d", name, index))
		}
	}

	r.For = append(slices.Clone(r.For), fmt.Sprintf("%s was taken at index %d, and with the open segments the log would end before it", name, index))
	return append(list, r)
}

// damaged says whether a closed segment does not hold what its name says.
func (s *Segment) damaged() bool { return s.fault != nil || s.Entries != s.Last-s.First+1 }

// nearHole is how many entries may be missing before closed segments that are taken for this log's own, and not for strays.
const nearHole = 2048

// maxMisplaced is how many of the last closed segments are tried to be none of the log.
const maxMisplaced = 3

// withoutLast are readings without the last closed segments, if the open ones continue what is left then: the names of those may not be
// the ones that dqlite gave them.
func (l *Log) withoutLast(r Reading, named uint64, opens []opened) []Reading {
	ends := map[uint64]bool{}
	for _, c := range l.chains(named) {
		for i := range min(len(c), maxMisplaced) {
			ends[c[i].First-1] = true
		}
	}

	var list []Reading
	for _, end := range slices.Sorted(maps.Keys(ends)) {
		follow, why := l.continues(end, opens[0])
		if follow != fits || end < r.start() {
			continue
		}

		short := r
		short.log = r.log.between(1, end)
		short.finish()
		if short.Last != end {
			continue
		}

		for _, with := range l.placedAfter(short, opens, end+1) {
			with.For = append(with.For, why)
			list = append(list, with)
		}
	}

	return list
}

// foreign says whether a segment after a hole cannot be of this log.
func (l *Log) foreign(s *Segment, r Reading) bool {
	parts := s.parts()
	if len(parts) == 0 {
		return false
	}

	first := parts[0]
	return l.Term > 0 && s.highestTerm() > l.Term || first.FirstTerm < r.LastTerm && first.firstType != ChangeEntry
}

// emptiedBefore says whether an open segment with a lower counter is there, and empty: what was in it is gone.
func (l *Log) emptiedBefore(open opened) bool {
	return slices.ContainsFunc(l.all, func(s *Segment) bool {
		return s.Open && s.trust == open.trust && s.Unused && s.Counter < open.counter
	})
}

// placedAfter are the readings with the open segments from an index on: as far as they go, and, at every place where entries may be
// missing between two of them, only up to there.
func (l *Log) placedAfter(r Reading, opens []opened, first uint64) []Reading {
	s, joints := l.placeOpen(opens, first)
	full := r
	full.log = r.log
	for _, p := range s {
		full.log = full.log.fill(p)
	}

	full.finish()
	full.log = full.log.between(1, full.Last)
	list := []Reading{full}
	for _, j := range joints {
		if j.broken {
			continue
		}

		list[0].Against = append(list[0].Against, j.reason)
		short := r
		short.log, short.For = full.log.between(1, j.index-1), append(slices.Clone(r.For), j.reason)
		short.finish()
		list = append(list, short)
	}

	return list
}

// besideSnapshot are the readings where the closed segments end before the snapshot: the open ones continue them, across the
// snapshot, or they continue the snapshot, and the segments between are gone. More segments than those may be gone.
func (l *Log) besideSnapshot(r Reading, named uint64, opens []opened) ([]Reading, fit) {
	after := l.placedAfter(r, opens, r.start()+1)
	if named == 0 {
		return after, maybe // a leader's snapshot has replaced all that was before
	}

	for i := range after {
		after[i].Unproven = r.start() + 1
		after[i].For = append(after[i].For, "it begins right after the snapshot")
	}

	across := l.placedAfter(r, opens, named+1)
	follow, why := l.continues(named, opens[0])
	reaches := across[0].log.end(named+1) >= r.start() && l.leadsTo(across[0].log, r.base)
	if follow == fits {
		across[0].For = append(across[0].For, why)
		if reaches {
			return across, fits
		}

		return []Reading{r}, fits // a leader's snapshot has replaced it all
	}

	n, known := l.absent(named, opens[0])
	if known && n == 1 && l.endsWithSnapshots(r.base) { // the one that ended with the snapshot
		return after, fits
	}

	short := r
	short.For = append(slices.Clone(r.For), "segments are missing before "+opens[0].File)
	after = append(after, short)
	if follow == contradicts || !reaches {
		return after, maybe
	}

	return append(across, after...), maybe
}

// endsWithSnapshots says whether the segment that an older snapshot has closed ends with it, and not some entries after it.
func (l *Log) endsWithSnapshots(newest *Snapshot) bool {
	return slices.ContainsFunc(l.Snapshots, func(s Snapshot) bool {
		return s.Index < newest.Index && slices.ContainsFunc(l.named(), func(c *Segment) bool { return c.Last == s.Index })
	})
}

// leadsTo says whether the entries up to a snapshot may be those that led to it.
func (l *Log) leadsTo(log span, s *Snapshot) bool {
	if s == nil || l.contradicted(log, s) {
		return false
	}

	term := log.termAt(s.Index)
	return term == 0 || term == s.Term
}
