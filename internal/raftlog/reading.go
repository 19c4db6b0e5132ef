// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Reading is one log that the files of a directory can be read as: a snapshot, or the beginning, and the entries after it.
type Reading struct {
	// Digest names the reading: it is made of the entries after the snapshot, so that every command and every copy of the directory has
	// the same one. Empty where there is only one reading.
	Digest string

	Last, LastTerm uint64   // of its last entry
	For, Against   []string // what speaks for and against it

	// Unproven is the index from which on the indexes of its entries are likely, and not proven: files that would prove them are gone.
	// 0: there is none.
	Unproven uint64

	// Excluded is true if what speaks against it says that it cannot be. It is there to be chosen, but is none of those that decide.
	Excluded bool

	base *Snapshot
	log  span
	lost []lostRun // entries that others are taken instead of

	// unreached are the entries of open segments whose place is known, and that come after missing ones.
	unreached span
}

// String describes the reading in a line.
func (r Reading) String() string {
	text := fmt.Sprintf("up to index %d, term %d", r.Last, r.LastTerm)
	if r.base != nil {
		text += fmt.Sprintf(", from the snapshot at index %d", r.base.Index)
	}

	for _, reason := range r.For {
		text += "; for it: " + reason
	}

	for _, reason := range r.Against {
		text += "; against it: " + reason
	}

	return text
}

// start is the index of the last entry in the snapshot that the reading begins with.
func (r *Reading) start() uint64 {
	if r.base == nil {
		return 0
	}

	return r.base.Index
}

// finish works out where the reading ends.
func (r *Reading) finish() {
	r.Last = r.start()
	if r.base != nil || r.log.startsLog() {
		r.Last = r.log.end(r.start() + 1)
	} else if len(r.log) > 0 {
		r.Last = r.log.end(r.log[0].first) // entries without a beginning
	}

	if r.Last == r.start() && r.base != nil {
		r.LastTerm = r.base.Term
	} else {
		r.LastTerm = r.log.termAt(r.Last)
	}
}

// read finds the readings of the directory.
func (l *Log) readings(ctx context.Context) ([]Reading, error) {
	ways, err := l.closed(ctx)
	if err != nil {
		return nil, err
	}

	var list []Reading
	for _, way := range ways {
		readings, err := l.complete(ctx, way)
		if err != nil {
			return nil, err
		}

		for _, r := range readings {
			if way.reason != "" {
				r.For = append([]string{way.reason}, r.For...)
			}

			list = append(list, r)
		}
	}

	return l.distinct(ctx, list)
}

// complete makes readings of one way to read the closed segments.
func (l *Log) complete(ctx context.Context, way alternative) ([]Reading, error) {
	r := Reading{base: l.anchor(way.log), log: way.log, lost: way.lost}
	if r.base != nil && r.base.Term > way.log.termAt(r.base.Index) && way.log.termAt(r.base.Index) > 0 {
		for _, p := range way.log.between(1, maxIndex) {
			r.lost = append(slices.Clone(r.lost), lostRun{p, ReasonReplaced})
		}

		r.log = nil
	}

	r.finish()
	r.log = l.reachable(r, way.log)
	if way.cutAt > 0 {
		return []Reading{r}, nil
	}

	opens, err := l.usedOpen(ctx, r.Last)
	if err != nil || len(opens) == 0 {
		return []Reading{r}, err
	}

	return l.withOpen(r, opens), nil
}

// reachable are the entries of a reading that something leads to, or that lead to its snapshot: those after a hole before it, of which
// only the name of a file tells, are left out.
func (l *Log) reachable(r Reading, log span) span {
	if r.base == nil {
		return log.between(1, r.Last)
	}

	kept := log.between(log.firstBefore(r.start()+1), r.Last)
	if len(kept) > 0 && kept.end(kept[0].first) < r.start() {
		kept = log.between(r.start()+1, r.Last) // it does not lead up to the snapshot
	}

	starts := []uint64{1}
	for i := range l.Snapshots {
		s := &l.Snapshots[i]
		term := log.termAt(s.Index)
		if s.Usable && (term == 0 || term == s.Term) {
			starts = append(starts, s.Index+1)
		}
	}

	for _, first := range starts {
		p, ok := log.at(first)
		if !ok || first == 1 && !log.startsLog() {
			continue
		}

		_, follows := log.at(p.first - 1)
		if p.first < first && p.first > 1 && !follows {
			continue // only its name tells where it belongs
		}

		for _, p := range log.between(first, min(log.end(first), r.Last)) {
			kept = kept.fill(p)
		}
	}

	return kept
}

// startsLog says whether the entries begin a log of their own.
func (s span) startsLog() bool {
	p, ok := s.at(1)
	return ok && p.part.firstType == ChangeEntry
}

// anchor is the snapshot that the log goes on from: the one with which it reaches furthest, of several the newest. nil is for a log
// that begins with its first entry.
func (l *Log) anchor(log span) *Snapshot {
	var best *Snapshot
	reach := uint64(0)
	if log.startsLog() {
		reach = log.end(1)
	}

	for i := range l.Snapshots {
		s := &l.Snapshots[i]
		if !s.Usable || l.contradicted(log, s) {
			continue
		}

		term, end := log.termAt(s.Index), s.Index
		if term == 0 || term == s.Term {
			end = log.end(s.Index + 1)
		}

		if term > 0 && s.Term > term {
			return s // a later leader's: raft gives up the entries that it replaces
		}

		if end > reach || end == reach && (best == nil || s.Index >= best.Index) {
			best, reach = s, end
		}
	}

	return best
}

// termAt is the term of the entry at an index, 0 where the log does not have it.
func (s span) termAt(index uint64) uint64 {
	p, ok := s.at(index)
	if !ok {
		return 0
	}

	return p.termAt(index)
}

// contradicted says whether a snapshot cannot be what the entries before it lead to: its database has another size than the last of
// them that tells it, or does not even have the pages that they write.
func (l *Log) contradicted(log span, s *Snapshot) bool {
	if len(s.Databases) != 1 || s.Databases[0].pages == 0 {
		return false
	}

	from := log.firstBefore(s.Index)
	if log.end(from) < s.Index {
		return false // they do not lead up to it
	}

	known, atLeast := uint64(0), uint64(0)
	for _, p := range log.between(from, s.Index) {
		told := false
		for _, size := range p.part.sizes {
			if size.ordinal >= p.skip && size.ordinal < p.skip+p.count {
				known, told = uint64(size.pages), true
			}
		}

		if !told && len(p.part.sizes) == 0 {
			atLeast = max(atLeast, p.part.firstPage)
		}
	}

	pages := uint64(s.Databases[0].pages)
	return known > 0 && known != pages || known == 0 && atLeast > pages
}

// firstBefore is the first index of the run of entries without a hole that an index is in, or 1.
func (s span) firstBefore(index uint64) uint64 {
	first := uint64(0)
	last := uint64(0)
	for _, p := range s {
		if p.first > index {
			break
		}

		if first == 0 || p.first > last+1 {
			first = p.first
		}

		last = max(last, p.last())
	}

	return max(first, 1)
}

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
// come after a hole: damaged ones, too, as their names were right when dqlite gave them. Far ones of which nothing can be read count for
// nothing, nor do those with another number of entries than their name says.
func (l *Log) reach(last uint64) (end uint64, beyond []*Segment) {
	end = last
	before := uint64(0) // last index by a name, up to last
	for _, s := range l.named() {
		switch {
		case s.First <= end+1:
			end = max(end, s.Last)
			before = max(before, s.Last)
		case s.First-last <= nearHole || s.fault != nil && s.Entries+s.After > 0 || s.Entries == s.Last-s.First+1:
			beyond = append(beyond, s)
		}
	}

	return before, beyond
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
	case follow == contradicts && named >= r.start():
		short := r
		short.For = append(slices.Clone(r.For), why)
		if other != contradicts {
			return []Reading{short}
		}

		for i := range list {
			// A new leader that cuts a whole segment away leaves the same picture.
			list[i].Against, list[i].Excluded = append(list[i].Against, why), near || opens[0].FirstTerm == r.LastTerm
		}

		return slices.Concat([]Reading{short}, l.withoutLast(r, named, opens), list)
	case len(beyond) == 0, !near && other == contradicts:
		return l.besideLostSnapshot(r, list)
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

// besideLostSnapshot adds the reading without the open segments if those with them end before a snapshot of which only the name is left, or
// one of its two files: the log had reached that index.
func (l *Log) besideLostSnapshot(r Reading, list []Reading) []Reading {
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

// distinct leaves one of readings that are the same, and gives each of several its digest.
func (l *Log) distinct(ctx context.Context, list []Reading) ([]Reading, error) {
	if len(list) < 2 {
		return list, nil
	}

	var unlike []Reading
	for _, r := range list {
		err := l.digest(ctx, &r)
		if err != nil {
			return nil, err
		}

		i := slices.IndexFunc(unlike, func(other Reading) bool { return other.Digest == r.Digest })
		switch {
		case i < 0:
			unlike = append(unlike, r)
		case unlike[i].Excluded && !r.Excluded:
			unlike[i] = r
		}
	}

	slices.SortStableFunc(unlike, func(a, b Reading) int {
		switch {
		case a.Excluded == b.Excluded:
			return 0
		case b.Excluded:
			return -1
		}

		return 1
	})
	return unlike, nil
}

// digestSize is how much of the digest names a reading, bytes.
const digestSize = 6

func (l *Log) digest(ctx context.Context, r *Reading) error {
	sum := sha256.New()
	number := func(n uint64) { sum.Write(binary.LittleEndian.AppendUint64(nil, n)) }
	number(r.start())
	for e, err := range l.entriesOf(ctx, r.log, r.start()+1) {
		if err != nil {
			return err
		}

		number(e.Index)
		number(e.Term)
		number(uint64(e.Type))
		if e.Type == CommandEntry {
			data := sha256.Sum256(e.Data)
			sum.Write(data[:])
		}
	}

	r.Digest = hex.EncodeToString(sum.Sum(nil)[:digestSize])
	return nil
}

// Undecided says that there are several readings that can be, and that none was chosen: the log is what they have in common.
func (l *Log) Undecided() bool { return !l.chosen && len(l.possible()) > 1 }

// possible are the readings that are not excluded; all, if there is none.
func (l *Log) possible() []Reading {
	var list []Reading
	for _, r := range l.Readings {
		if !r.Excluded {
			list = append(list, r)
		}
	}

	if len(list) == 0 {
		return l.Readings
	}

	return list
}

// Choose takes the reading of that digest, or of a digest that begins like that; an error names those that there are.
func (l *Log) Choose(digest string) error {
	var found []int
	for i, r := range l.Readings {
		if digest != "" && strings.HasPrefix(r.Digest, strings.ToLower(digest)) {
			found = append(found, i)
		}
	}

	if len(found) != 1 {
		var names []string
		for _, r := range l.Readings {
			names = append(names, r.Digest)
		}

		if len(names) < 2 {
			return fmt.Errorf("there is no reading %s: the directory can be read in one way only", digest)
		}

		return fmt.Errorf("there is no reading %s: there are %s", digest, strings.Join(names, ", "))
	}

	l.chosen = true
	l.take(l.Readings[found[0]])
	l.conclusions()
	return nil
}

// Unproven is the index from which on the indexes of the log are likely, and not proven, see [Reading]; 0: all are.
func (l *Log) Unproven() uint64 { return l.unproven }

// common is what several readings have in common.
func common(list []Reading) Reading {
	r := list[0]
	for _, other := range list[1:] {
		if other.start() != r.start() {
			if other.start() < r.start() {
				r = other
			}

			r.log = r.log.between(1, r.start())
			continue
		}

		r.log = r.log.between(1, agreeUntil(r.log, other.log))
	}

	r.For, r.Against, r.Digest = nil, nil, ""
	r.finish()
	return r
}

// agreeUntil is the last index up to which two spans have the same entries from the same places.
func agreeUntil(a, b span) uint64 {
	for _, p := range a {
		for i := p.first; i <= p.last(); {
			q, ok := b.at(i)
			if !ok || q.part != p.part || q.first-q.skip != p.first-p.skip {
				return i - 1
			}

			i = q.last() + 1
		}
	}

	if len(a) == 0 {
		return 0
	}

	return a[len(a)-1].last()
}

// takeFirst takes the only reading, or what several have in common.
func (l *Log) takeFirst() {
	list := l.possible()
	switch len(list) {
	case 0:
	case 1:
		l.take(list[0])
	default:
		l.take(common(list))
	}
}

// take makes a reading the log.
func (l *Log) take(r Reading) {
	l.base, l.placed = r.base, r.log
	l.FirstIndex, l.LastIndex, l.SoundIndex = 0, r.Last, r.Last
	l.Configuration, l.ConfigurationIndex = nil, 0
	if r.base != nil {
		l.LastTerm = r.base.Term
		l.Configuration, l.ConfigurationIndex = r.base.Configuration, r.base.ConfigurationIndex
		l.need(r.base.File)
		l.need(r.base.Meta)
	}

	if len(r.log) > 0 {
		l.FirstIndex = r.log[0].first
	}

	if r.base == nil && !r.log.startsLog() {
		l.SoundIndex = 0
	}

	for _, s := range l.all {
		if s.Open {
			s.First, s.Last = 0, 0
		}
	}

	for _, p := range r.log {
		l.place(p)
	}

	l.unproven = r.Unproven
	l.Edited = l.edited()
	l.LeftOut = l.leftOut(r)
}

// place takes over what a run of entries says.
func (l *Log) place(p placed) {
	l.need(p.segment.File)
	if p.segment.Open && p.part == &p.segment.Part {
		p.segment.First, p.segment.Last = p.first-p.skip, p.last()
	}

	for _, c := range p.part.changes {
		index := p.first + c.ordinal - p.skip
		if c.ordinal >= p.skip && c.ordinal < p.skip+p.count && index > l.ConfigurationIndex && c.err == nil {
			l.Configuration, l.ConfigurationIndex = c.configuration, index
		}
	}

	if p.last() == l.LastIndex {
		l.LastTerm = p.termAt(l.LastIndex)
	}
}

// As is the log by one of its readings. It shares all else with l.
func (l *Log) As(reading int) *Log {
	other := l.clone()
	other.chosen = true
	other.take(l.Readings[reading])
	return other
}

// From is the log that begins with a snapshot of the directory; entries before it are as they are in l.
func (l *Log) From(s *Snapshot) *Log {
	other := l.clone()
	other.base = s
	return other
}

// Before is the log as it is without a snapshot and all later ones, up to its index: from an older snapshot, or from the beginning. It
// is nil if entries are missing there.
func (l *Log) Before(s *Snapshot) *Log {
	var older *Snapshot
	for i := range l.Snapshots {
		o := &l.Snapshots[i]
		if o.Usable && o.Index < s.Index && (older == nil || o.Index > older.Index) && l.Has(o.Index+1, s.Index) {
			older = o
		}
	}

	if older == nil && (!l.placed.startsLog() || !l.Has(1, s.Index)) {
		return nil
	}

	other := l.clone()
	other.base = older
	other.Snapshots = slices.DeleteFunc(slices.Clone(l.Snapshots), func(o Snapshot) bool { return o.Index >= s.Index })
	return other
}

func (l *Log) clone() *Log {
	other := *l
	other.Files = slices.Clone(l.Files)
	return &other
}

// Exclude takes readings out of those that can be, by digest, each with the reason. One that remains alone is taken.
func (l *Log) Exclude(reasons map[string]string) {
	for i, r := range l.Readings {
		reason, out := reasons[r.Digest]
		if out {
			l.Readings[i].Against, l.Readings[i].Excluded = append(slices.Clone(r.Against), reason), true
		}
	}

	l.takeFirst()
	l.conclusions()
}
