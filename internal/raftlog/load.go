// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"cmp"
	"fmt"
	"slices"
)

// loader follows libdqlite through the loading of a directory: the same steps in the same order (docs/raft-directory.md, "Loading"), on
// what the scan found, without touching a file. It keeps a picture of the directory as libdqlite would have left it, as a second
// attempt after auto-recovery begins from there.
type loader struct {
	l        *Log
	pl       *problemList
	said     map[string]bool // problems already reported, as an attempt may be made twice
	pieces   []*piece
	snapshot *Snapshot // nil for none

	outcome Outcome
	actions []Action
	dropped uint64

	placed span
}

// piece is a segment in libdqlite's eyes: it may have been renamed.
type piece struct {
	name        string
	segment     *Segment
	open        bool
	first, last uint64 // of a closed one
	gone        bool   // deleted, or renamed to corrupt-…
	cut         bool   // was open and has been finalised
	next        *piece // the next open one that has entries
}

// verdict is how one attempt ended.
type verdict uint8

const (
	loaded  verdict = iota
	corrupt         // auto-recovery may act, then there is one more attempt
	refused
	crashed
)

// load finds the effective log, and what loading would do to the directory.
func (l *Log) load(pl *problemList) {
	ld := &loader{l: l, pl: pl, said: map[string]bool{}, snapshot: l.loadable()}
	for i := range l.Segments {
		s := &l.Segments[i]
		ld.pieces = append(ld.pieces, &piece{name: s.File, segment: s, open: s.Open, first: s.First, last: s.Last})
	}

	v := ld.attempt()
	if v == corrupt {
		ld.placed = nil
		v = ld.attempt()
		if v == corrupt {
			v = refused
		}
	}

	switch v {
	case refused:
		ld.worst(Refuses)
	case crashed:
		ld.worst(Crashes)
	}

	l.Libdqlite.Dropped = ld.dropped
	n := len(l.Snapshots)
	if n > 0 && l.Snapshots[n-1].load != LoadsClean {
		// The effective log is what remains without the unusable snapshots.
		l.Libdqlite.Load = max(l.Libdqlite.Load, l.Snapshots[n-1].load)
	}

	if l.Libdqlite.Load < Refuses { // otherwise libdqlite never comes as far as the segments
		l.Libdqlite.Load = max(l.Libdqlite.Load, ld.outcome)
		l.Libdqlite.Actions = append(l.Libdqlite.Actions, ld.actions...)
	}

	l.conclude(ld)
}

// loadable is the newest snapshot that libdqlite can load. It does not look at the databases in it until a member starts.
func (l *Log) loadable() *Snapshot {
	for i := len(l.Snapshots) - 1; i >= 0; i-- {
		if l.Snapshots[i].load < Crashes && l.Snapshots[i].readable {
			return &l.Snapshots[i]
		}
	}

	return nil
}

func (ld *loader) worst(o Outcome) { ld.outcome = max(ld.outcome, o) }

// say reports a problem, once.
func (ld *loader) say(p Problem) {
	key := p.File + "\x00" + p.Text
	if !ld.said[key] {
		ld.said[key] = true
		ld.pl.add(p)
	}
}

func (ld *loader) act(a Action) { ld.actions = append(ld.actions, a) }

// base is the index of the last entry in the snapshot.
func (ld *loader) base() uint64 {
	if ld.snapshot == nil {
		return 0
	}

	return ld.snapshot.Index
}

// attempt is one pass of libdqlite's loading.
func (ld *loader) attempt() verdict {
	ld.pieces = slices.DeleteFunc(ld.pieces, func(p *piece) bool { return p.gone })
	slices.SortFunc(ld.pieces, func(a, b *piece) int { return cmp.Compare(a.name, b.name) }) // libuv's scandir sorts
	a, b, found := sameCounter(ld.pieces)
	if found {
		ld.say(Problem{Severity: Error, File: b, Offset: -1,
			Text:      fmt.Sprintf("names the same open segment as %s", a),
			Libdqlite: "aborts the process (assertion)",
			Advice:    adviseRepair})
		return crashed
	}

	pieces := mergeSort(ld.pieces)
	start := ld.base() + 1
	if ld.snapshot != nil {
		var v verdict
		pieces, v = ld.filter(pieces)
		if v != loaded {
			return v
		}

		if len(pieces) > 0 && !pieces[0].open {
			start = pieces[0].first
		}
	}

	if start == 0 {
		return ld.assertFails(pieces[0])
	}

	return ld.loadAll(pieces, start)
}

// filter drops the closed segments that a snapshot makes superfluous.
func (ld *loader) filter(pieces []*piece) ([]*piece, verdict) {
	closed := 0
	for closed < len(pieces) && !pieces[closed].open {
		closed++
	}

	if closed == 0 {
		return pieces, loaded
	}

	last := pieces[closed-1]
	if last.last < ld.base() {
		p := Problem{Severity: Warning, File: last.name, Offset: -1, Index: last.last,
			Text:      fmt.Sprintf("the closed segments end before the snapshot's index %d", ld.base()),
			Libdqlite: "ignores all closed segments and continues after the snapshot",
			Advice: "normal when this member was stopped right after it got a snapshot from the leader; " +
				"otherwise entries after the snapshot may be missing: compare with the other members, if there are any"}
		if closed == len(pieces) {
			ld.say(p)
			return nil, loaded
		}

		p.Libdqlite = "takes the open segments as the continuation of the closed ones, and refuses if that does not reach the snapshot"
		ld.say(p)
	}

	i := closed - 1
	for i > 0 && pieces[i-1].last == pieces[i].first-1 {
		i--
	}

	if pieces[i].first > ld.base()+1 {
		ld.say(Problem{Severity: Error, File: pieces[i].name, Offset: -1, Index: ld.base() + 1,
			Text:      fmt.Sprintf("entries %d to %d are missing between the snapshot and this segment", ld.base()+1, pieces[i].first-1),
			Libdqlite: fmt.Sprintf("refuses: \"closed segment %s is past last snapshot %s\"", pieces[i].name, ld.snapshot.File),
			Advice:    adviseRepair})
		for _, p := range pieces[i:closed] {
			ld.dropped += p.segment.Entries + p.segment.After
		}

		return nil, refused
	}

	for _, p := range pieces[:i] {
		ld.say(Problem{Severity: Info, File: p.name, Offset: -1, Index: p.first,
			Text:      "there is a hole between this segment and the newer ones, before the snapshot",
			Libdqlite: "ignores it; nothing in it is needed",
			Advice:    "nothing"})
		if p.last > ld.base() {
			ld.dropped += p.last - max(ld.base()+1, p.first) + 1
			ld.worst(LoadsButLoses)
		}
	}

	return pieces[i:], loaded
}

// assertFails reports a segment name that libdqlite 1.18 asserts against.
func (ld *loader) assertFails(p *piece) verdict {
	ld.say(Problem{Severity: Error, File: p.name, Offset: -1,
		Text:      "the name says indexes that cannot be",
		Libdqlite: "1.18 aborts the process (assertion), earlier versions refuse",
		Advice:    adviseRepair})
	return crashed
}

// loadAll reads the segments in order.
func (ld *loader) loadAll(pieces []*piece, start uint64) verdict {
	var used *piece
	for _, p := range slices.Backward(pieces) {
		p.next = used
		if p.open && p.segment.Entries+p.segment.After > 0 {
			used = p
		}
	}

	next := start
	for i := range pieces {
		p := pieces[i]
		var v verdict
		if p.open {
			next, v = ld.loadOpen(p, next)
		} else {
			next, v = ld.loadClosed(pieces, i, start, next)
		}

		if v == corrupt {
			ld.autoRecover(pieces, i)
		}

		if v != loaded {
			return v
		}
	}

	last := next - 1
	if len(pieces) > 0 && last < ld.base() {
		return ld.endsBeforeSnapshot(pieces, last)
	}

	return loaded
}

// endsBeforeSnapshot reports a log that ends before the snapshot although there are open segments. libdqlite calls that corrupt, but by
// now every segment is closed, and its second attempt drops them all.
func (ld *loader) endsBeforeSnapshot(pieces []*piece, last uint64) verdict {
	p := Problem{Severity: Warning, Offset: -1, Index: last,
		Text:      fmt.Sprintf("the log ends at index %d, before the snapshot's index %d", last, ld.base()),
		Libdqlite: "loads the snapshot at the second attempt; with auto-recovery switched off it refuses",
		Advice:    "normal when this member was killed right after it got a snapshot from the leader"}
	for _, q := range pieces {
		if q.segment.Open && q.segment.Entries > 0 {
			p.Severity = Error
			p.Libdqlite = "drops all segments, the open ones too, at its second attempt, and reports success; " +
				"with auto-recovery switched off it refuses"
			p.Advice = adviseRepair
			ld.dropped += q.segment.Entries
			ld.worst(LoadsButLoses)
		}
	}

	ld.say(p)
	return corrupt
}

// take puts the first count entries of a segment into the effective log.
func (ld *loader) take(p *piece, first, count uint64) {
	if count == 0 {
		return
	}

	ld.placed = append(ld.placed, placed{p.segment, &p.segment.Part, 0, first, count})
}

// loadClosed reads a closed segment.
func (ld *loader) loadClosed(pieces []*piece, i int, start, next uint64) (uint64, verdict) {
	p := pieces[i]
	if p.first < start || p.first > p.last {
		return next, ld.assertFails(p)
	}

	if p.first != next {
		text := fmt.Sprintf("entries %d to %d are missing before this segment", next, p.first-1)
		if p.first < next {
			text = fmt.Sprintf("the segment begins at index %d again, which an earlier one has reached", p.first)
		}

		ld.say(Problem{Severity: Error, File: p.name, Offset: -1, Index: next, Text: text,
			Libdqlite: fmt.Sprintf("refuses: \"unexpected closed segment %s: first index should have been %d\"", p.name, next),
			Advice:    adviseRepair})
		for _, q := range pieces[i:] {
			ld.dropped += q.segment.Entries + q.segment.After
		}

		return next, refused // corrupt to libdqlite, but nothing is moved and the second attempt ends the same
	}

	s := p.segment
	want := p.last - p.first + 1
	if (s.fault == nil || p.cut) && s.Entries == want {
		ld.take(p, next, want)
		return next + want, loaded
	}

	// Damaged. What comes before the damage is sound, but only we can use it.
	class, offset := faultCorrupt, s.End
	text := fmt.Sprintf("the segment has %d entries instead of %d", s.Entries, want)
	if s.fault != nil {
		class, offset, text = s.fault.class, s.fault.at, s.fault.text
	}

	problem := Problem{Severity: Error, File: p.name, Offset: offset, Index: next + min(s.Entries, want), Text: text,
		Advice: fmt.Sprintf("the %d entries before the damage are sound, %d after it; ", min(s.Entries, want), s.After) + adviseRepair}
	lastClosed := i+1 == len(pieces) || pieces[i+1].open
	switch {
	case class != faultCorrupt:
		problem.Libdqlite = "refuses (" + class.String() + "); its auto-recovery does nothing about it"
		ld.take(p, next, min(s.Entries, want))
		ld.dropped += s.After
		ld.say(problem)
		return next, refused
	case !lastClosed:
		problem.Libdqlite = "refuses; its auto-recovery only moves the last closed segment away"
		ld.take(p, next, min(s.Entries, want))
		ld.dropped += s.After
	default:
		problem.Libdqlite = fmt.Sprintf("renames it and every open segment to corrupt-…, drops its %d entries, and reports success", want)
	}

	ld.say(problem)
	return next, corrupt
}

// autoRecover renames what libdqlite would rename after finding piece i corrupt.
func (ld *loader) autoRecover(pieces []*piece, i int) {
	if !pieces[i].open && i+1 < len(pieces) && !pieces[i+1].open {
		return
	}

	for _, p := range pieces[i:] {
		ld.act(Action{Kind: Rename, File: p.name, To: "corrupt-<ns>-" + p.name})
		if p.open {
			ld.dropped += p.segment.Entries + p.segment.After
		} else {
			ld.dropped += p.last - p.first + 1
		}

		ld.worst(LoadsButLoses)
		p.gone = true
	}
}
