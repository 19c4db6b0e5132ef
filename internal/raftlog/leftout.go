// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

// LeftOut is what is in a file, or was, and is not in the log.
type LeftOut struct {
	File string `json:"file" yaml:"file"`

	// First and Last are the indexes of its entries, 0 where they are not known.
	First uint64 `json:"first,omitempty" yaml:"first,omitempty"`
	Last  uint64 `json:"last,omitempty" yaml:"last,omitempty"`

	Entries uint64 `json:"entries" yaml:"entries"` // how many, 0 where that is not known
	Sound   bool   `json:"sound" yaml:"sound"`     // they can be read
	Reason  string `json:"reason" yaml:"reason"`   // why they are not in the log

	placed placed // of sound ones
}

func (o LeftOut) String() string {
	text := "an unknown number of entries"
	switch {
	case o.Entries == 1:
		text = "1 entry"
	case o.Entries > 1:
		text = fmt.Sprintf("%d entries", o.Entries)
	}

	switch {
	case o.First > 0 && o.First == o.Last:
		text += fmt.Sprintf(", index %d,", o.First)
	case o.First > 0:
		text += fmt.Sprintf(", index %d to %d,", o.First, o.Last)
	}

	return fmt.Sprintf("%s in %s: %s", text, o.File, o.Reason)
}

// Reasons of entries that are no loss: raft itself gives them up, or has never counted on them.
const (
	ReasonReplaced   = "entries of a later term have replaced them"
	ReasonUnfinished = "the last write was cut short, so no leader was told that they were written"
)

// Why other entries are left out.
const (
	reasonUnreadable   = "they cannot be read"
	reasonHole         = "entries before them are missing"
	reasonContradicted = "another segment has other entries with the same indexes"
	reasonMisnamed     = "other segments contradict the name of the file"
	reasonNoPlace      = "nothing tells their place in the log"
)

// LeftOutEntries returns the entries of what is left out, if they are sound. Where their indexes are not known, they count from 1.
func (l *Log) LeftOutEntries(ctx context.Context, o LeftOut) iter.Seq2[Entry, error] {
	if !o.Sound {
		return func(func(Entry, error) bool) {}
	}

	return l.entriesOf(ctx, span{o.placed}, 0)
}

// leftOut lists what a reading leaves out.
func (l *Log) leftOut(r Reading) []LeftOut {
	var list []LeftOut
	for _, p := range r.lost {
		if p.last() > r.start() {
			list = append(list, sound(p.cut(r.start()+1, p.last()), p.reason))
		}
	}

	for _, s := range l.all {
		switch {
		case slices.Contains(l.copies, s) || s.Unused:
		case slices.Contains(l.misnamed, s):
			for _, p := range s.parts() {
				list = append(list, LeftOut{File: s.File, Entries: p.Entries, Sound: true, Reason: reasonMisnamed, placed: placed{s, p, 0, 1, p.Entries}})
			}

		case s.trust == temporary && s.Entries == 0:
		case s.Open:
			list = append(list, l.leftOutOpen(r, s)...)
		default:
			list = append(list, l.leftOutClosed(r, s)...)
		}
	}

	slices.SortStableFunc(list, func(a, b LeftOut) int { return cmp.Compare(a.First, b.First) })
	return list
}

func sound(p placed, reason string) LeftOut {
	return LeftOut{File: p.segment.File, First: p.first, Last: p.last(), Entries: p.count, Sound: true, Reason: reason, placed: p}
}

// leftOutClosed lists what is left out of a closed segment: what no other file, or the snapshot, has.
func (l *Log) leftOutClosed(r Reading, s *Segment) []LeftOut {
	var list []LeftOut
	known := span{}
	for _, c := range s.claims() {
		known = known.fill(c.placed)
		for _, p := range missing(r.log, c.placed, r.start()) {
			if !slices.ContainsFunc(r.lost, func(q lostRun) bool { return q.part == p.part }) {
				list = append(list, sound(p, reasonHole))
			}
		}
	}

	if s.First == 0 || s.First > s.Last || s.Last > maxIndex || s.fault == nil && s.Entries == 0 {
		return list
	}

	whole := placed{segment: s, first: s.First, count: s.Last - s.First + 1}
	for _, gap := range missing(known, whole, 0) {
		for _, p := range missing(r.log, gap, r.start()) {
			list = append(list, LeftOut{File: s.File, First: p.first, Last: p.last(), Entries: p.count, Reason: reasonUnreadable})
		}
	}

	return list
}

// leftOutOpen lists what is left out of an open segment.
func (l *Log) leftOutOpen(r Reading, s *Segment) []LeftOut {
	var list []LeftOut
	for _, p := range s.parts() {
		here := func(q placed) bool { return q.part == p }
		i := slices.IndexFunc(r.unreached, here)
		switch {
		case slices.ContainsFunc(r.log, here) || l.inSnapshot(r, s, p):
		case i >= 0:
			list = append(list, sound(r.unreached[i], reasonHole))
		default:
			reason := reasonNoPlace
			if s.First > 0 {
				reason = reasonHole
			}

			list = append(list, LeftOut{File: s.File, Entries: p.Entries, Sound: true, Reason: reason, placed: placed{s, p, 0, 1, p.Entries}})
		}
	}

	if !s.DirtyTail || s.fault == nil {
		return list
	}

	lost := LeftOut{File: s.File, Entries: uint64(s.fault.n), Reason: reasonUnreadable}
	if s.Unfinished {
		lost.Reason = ReasonUnfinished
	}

	if s.First > 0 && s.fault.n > 0 {
		lost.First, lost.Last = s.First+s.Entries, s.First+s.Entries+lost.Entries-1
		if lost.Last <= r.start() {
			return list
		}
	}

	return append(list, lost)
}

// inSnapshot says whether a part of an open segment is before the snapshot, where it has a place.
func (l *Log) inSnapshot(r Reading, s *Segment, p *Part) bool {
	return s.First > 0 && p.before >= 0 && s.First+uint64(p.before)+p.Entries-1 <= r.start()
}

// missing are the entries of a run that a log does not have, after the index from.
func missing(log span, p placed, from uint64) []placed {
	if p.last() <= from || p.count == 0 {
		return nil
	}

	p = p.cut(max(p.first, from+1), p.last())
	var list []placed
	next := p.first
	for _, q := range log {
		if q.last() < next || q.first > p.last() {
			continue
		}

		if q.first > next {
			list = append(list, p.cut(next, q.first-1))
		}

		next = q.last() + 1
	}

	if next <= p.last() {
		list = append(list, p.cut(next, p.last()))
	}

	return list
}

// judgeReading reports where libdqlite would have another log than the disk holds, and whether that can be told.
func (l *Log) judgeReading(pl *problemList) {
	if l.Undecided() {
		var texts string
		for _, r := range l.possible() {
			texts += fmt.Sprintf("\n%s: %s", r.Digest, r)
		}

		pl.add(Problem{Severity: Error, Offset: -1, Index: l.LastIndex,
			Text:      fmt.Sprintf("the files can be read as %d different logs, which are the same up to index %d:%s", len(l.possible()), l.LastIndex, texts),
			Libdqlite: "does not ask",
			Advice:    "compare with the other members, if there are any; --reading chooses one"})
		return
	}

	lost := l.lostOpen()
	if lost != "" {
		l.EndGone = true
		pl.add(Problem{Severity: Warning, File: lost, Offset: -1, Index: l.LastIndex + 1,
			Text:      fmt.Sprintf("the segment is gone, and with it the entries after index %d: later ones, empty, are there", l.LastIndex),
			Libdqlite: "does not notice it",
			Advice:    "look for the file; compare with the other members, if there are any"})
	}

	l.judgeSnapshot(pl)
	absent := l.notLoaded()
	l.Libdqlite.Dropped = max(l.Libdqlite.Dropped, absent)
	switch {
	case l.Libdqlite.Load >= Refuses, absent == 0, l.SoundIndex == 0:
	default:
		l.Libdqlite.Load, l.Libdqlite.Start = max(l.Libdqlite.Load, LoadsButLoses), max(l.Libdqlite.Start, LoadsButLoses)
		pl.add(Problem{Severity: Error, Offset: -1, Index: l.LastIndex,
			Text: fmt.Sprintf("the disk holds a log up to index %d, and libdqlite would lose %d entries of it, or take them for others",
				l.LastIndex, absent),
			Libdqlite: fmt.Sprintf("loads a log up to index %d and reports success", l.Libdqlite.LastIndex),
			Advice:    product.Text("do not start LXD on it: `lxd-recover global-db-repair` makes it load whole")})
	}
}

// judgeSnapshot reports a snapshot that libdqlite would begin with and that is not what the entries before it lead to.
func (l *Log) judgeSnapshot(pl *problemList) {
	s := l.Libdqlite.base
	if s == nil || !s.Usable || l.base != nil && l.base.File == s.File || !l.contradicted(l.placed, s) {
		return
	}

	l.Libdqlite.Load, l.Libdqlite.Start = max(l.Libdqlite.Load, LoadsButLoses), max(l.Libdqlite.Start, LoadsButLoses)
	pl.add(Problem{Severity: Error, File: s.File, Offset: -1, Index: s.Index,
		Text:      fmt.Sprintf("its database has %d pages, and that is not what the entries before it lead to", s.Databases[0].pages),
		Libdqlite: "begins with it, and serves a database with rows missing",
		Advice:    product.Text("do not start LXD on it: `lxd-recover global-db-repair` goes on from what was before it")})
}

// notLoaded counts the entries after the snapshot that libdqlite would not have, or not at their index, and those that it would have
// instead.
func (l *Log) notLoaded() uint64 {
	start := uint64(0)
	if l.base != nil {
		start = l.base.Index
	}

	count := func(a, b span) (n uint64) {
		for _, p := range a.between(start+1, maxIndex) {
			n += p.count
			for _, q := range b {
				if q.part == p.part && q.first-q.skip == p.first-p.skip {
					n -= q.cut(p.first, p.last()).count
				}
			}
		}

		return n
	}

	return max(count(l.placed, l.Libdqlite.placed), count(l.Libdqlite.placed, l.placed))
}
