// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
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
