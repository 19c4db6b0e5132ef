// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"cmp"
	"context"
	"fmt"
	"slices"
)

// The index of an open segment is not written in it. What its place says is how dqlite works: it closes a segment if the next batch
// does not fit any more, if it takes a snapshot, if it cuts the log, and when it stops; and the counter of open segments begins at 1
// with every start. So before open-N are N-1 segments that the same run of the daemon has closed, one right before the other.

// opened is an open segment as it was: a copy may have been made under another counter.
type opened struct {
	*Segment
	counter uint64
}

// fit is how well an open segment goes with the closed ones before it.
type fit uint8

const (
	fits        fit = iota // all that the same run has closed is there
	maybe                  // nothing speaks for it, nothing against it
	contradicts            // something that the same run has closed cannot be what is there
)

// snapshotStep is the least number of entries between two snapshots that is assumed: LXD takes one every 1024 entries, other programs
// every 512.
const snapshotStep = 512

// absent is how many of the segments that the same run of the daemon has closed before an open one are not there, if the closed ones
// before it end at the index end. known is false if that cannot be told.
func (l *Log) absent(end uint64, open opened) (n int64, known bool) {
	for _, c := range l.chains(end) {
		m, ok := l.absentIn(c, open)
		switch {
		case !ok:
			return 0, false
		case !known || m == 0 || n != 0 && m < n:
			n, known = m, true
		}
	}

	return n, known
}

func (l *Log) absentIn(c chain, open opened) (n int64, known bool) {
	there, next := int64(0), open.Segment
	for _, s := range c {
		switch l.closedRunning(s, next) {
		case contradicts:
			return int64(open.counter) - 1 - there, true
		case maybe:
			return 0, false
		}

		there, next = there+1, s
	}

	// The log goes no further back: that is its beginning, or it was trimmed, or there is a hole.
	n = int64(open.counter) - 1 - there
	begins := len(c) > 0 && c[len(c)-1].First == 1
	return n, begins || n == 0 && there > 0
}

// continues says whether an open segment continues the closed ones that end at the index end.
func (l *Log) continues(end uint64, open opened) (fit, string) {
	n, known := l.absent(end, open)
	closed := open.counter - 1
	switch {
	case !known || n < 0, closed == 0 && n == 0: // any segment that was closed by a stop can be before an open-1
		return maybe, ""
	case n == 0:
		return fits, fmt.Sprintf("the daemon had closed %d segments before it began with %s, and they are there", closed, open.File)
	}

	return contradicts, fmt.Sprintf("the daemon had closed %d segments before it began with %s, and %d of them are not there", closed, open.File, n)
}

// closedRunning says whether a segment was closed by a daemon that went on with the next one: fits if it was, contradicts if it was
// closed because the daemon stopped.
func (l *Log) closedRunning(c, next *Segment) fit {
	if c.fault != nil || c.Entries != c.Last-c.First+1 || next.firstBatch == 0 || c.LastTerm != next.FirstTerm && c.batches == 1 {
		return maybe // not known, or cut by a new leader, which leaves a single batch
	}

	room := segmentSize - c.Size
	switch {
	case int64(next.firstBatch) > room:
		return fits
	case int64(next.firstBatch) > room-2*block: // it is written in blocks
		return maybe
	}

	return l.closedBySnapshot(c)
}

// closedBySnapshot says whether a snapshot was taken with the end of a segment.
func (l *Log) closedBySnapshot(c *Segment) fit {
	var oldest, newest uint64
	for i, s := range l.Snapshots {
		if c.First <= s.Index && s.Index <= c.Last {
			return fits
		}

		if i == 0 {
			oldest = s.Index
		}

		oldest, newest = min(oldest, s.Index), max(newest, s.Index)
	}

	// One that is gone: before the oldest, or after the newest; two are kept, and if only one is there it may be on either side.
	switch {
	case c.Last < snapshotStep:
		return contradicts
	case len(l.Snapshots) == 0, c.Last+snapshotStep <= oldest+nearSnapshot, c.Last >= newest+snapshotStep:
		return maybe
	}

	return contradicts
}

// usedOpen are the open segments that hold, or held, entries, by counter: those that libdqlite would read, and those that were set aside,
// if there are no others, or if the others continue them. Copies of other segments are left out.
func (l *Log) usedOpen(ctx context.Context, end uint64) ([]opened, error) {
	var list, aside []opened
	for _, s := range l.all {
		if !s.Open || s.Unused {
			continue
		}

		switch {
		case s.trust == inForce:
			list = append(list, opened{s, s.Counter})
		case s.trust < temporary && s.Entries+s.After > 0:
			aside = append(aside, opened{s, s.Counter})
		}
	}

	list, err := l.dropOpenCopies(ctx, end, list)
	if err != nil {
		return nil, err
	}

	aside, err = l.dropOpenCopies(ctx, end, aside)
	if len(list) == 0 || len(aside) == 0 || err != nil {
		return append(list, aside...), err
	}

	// One that was set aside may be what is missing before the others.
	follow, _ := l.continues(end, aside[0])
	if follow != fits || aside[len(aside)-1].counter+1 != list[0].counter {
		return list, nil
	}

	return append(aside, list...), nil
}

// dropOpenCopies leaves out open segments that are copies of closed or open ones, whole or an earlier state. Of several copies the
// fullest one stays, in the place that fits best.
func (l *Log) dropOpenCopies(ctx context.Context, end uint64, list []opened) ([]opened, error) {
	slices.SortStableFunc(list, func(a, b opened) int { return cmp.Compare(a.counter, b.counter) })
	dropped := map[*Segment]bool{}
	for i := range list {
		a := &list[i]
		if dropped[a.Segment] {
			continue
		}

		for _, closed := range l.all {
			same, err := l.copied(ctx, a.Segment, closed)
			if err != nil {
				return nil, err
			}

			whole := !closed.Open && closed.trust == a.trust && closed.fault == nil && closed.Entries >= a.Entries
			if same && whole && (a.varied || a.firstType == ChangeEntry) {
				dropped[a.Segment] = true
			}
		}

		for j := i + 1; j < len(list) && !dropped[a.Segment]; j++ {
			b := list[j]
			same, err := l.copied(ctx, a.Segment, b.Segment)
			if err != nil {
				return nil, err
			}

			if dropped[b.Segment] || !same || !a.varied && l.joined(*a, b, 0).reason == "" {
				continue
			}

			fitA, _ := l.continues(end, *a)
			fitB, _ := l.continues(end, b)
			counter := a.counter
			if fitB < fitA {
				counter = b.counter
			}

			if b.Entries+b.After > a.Entries+a.After {
				dropped[a.Segment] = true
				list[j].counter = counter
				break
			}

			dropped[b.Segment] = true
			a.counter = counter
		}
	}

	for s := range dropped {
		l.copies = append(l.copies, s)
	}

	list = slices.DeleteFunc(list, func(o opened) bool { return dropped[o.Segment] })
	slices.SortStableFunc(list, func(a, b opened) int { return cmp.Compare(a.counter, b.counter) })
	return list, nil
}

// copied says whether two segments have the same entries from their beginning, as far as the shorter one goes.
func (l *Log) copied(ctx context.Context, a, b *Segment) (bool, error) {
	if a == b || !a.mark.set || a.mark != b.mark || l.comparisons >= maxComparisons {
		return false, nil
	}

	return l.sameContent(ctx, placed{a, &a.Part, 0, 1, a.Entries}, placed{b, &b.Part, 0, 1, b.Entries})
}

// joint is a place between two open segments at which the log may have a hole.
type joint struct {
	index  uint64 // of the first entry after it
	broken bool   // there is one for certain
	reason string
}

// placeOpen gives the entries of open segments the indexes from first on. The joints are the places where what follows may be wrong;
// after a broken one nothing is placed.
func (l *Log) placeOpen(list []opened, first uint64) (s span, joints []joint) {
	next := first
	for i, o := range list {
		if i > 0 {
			j := l.joined(list[i-1], o, next)
			if j.broken {
				return s, append(joints, j)
			}

			if j.reason != "" {
				joints = append(joints, j)
			}
		}

		end := next
		for _, p := range o.parts() {
			if p.before < 0 {
				continue
			}

			s = s.fill(placed{o.Segment, p, 0, next + uint64(p.before), p.Entries})
			end = next + uint64(p.before) + p.Entries
		}

		next = end
	}

	return s, joints
}

// joined looks at the end of an open segment that another one with entries comes after.
func (l *Log) joined(a, b opened, next uint64) joint {
	j := joint{index: next}
	room := a.Size - a.End
	switch {
	case b.counter != a.counter+1:
		j.broken, j.reason = true, fmt.Sprintf("open-%d is missing or empty, although %s has entries", a.counter+1, b.File)
	case a.DirtyTail || a.fault != nil && !a.fault.zeroes || a.End == 0:
		j.broken, j.reason = true, fmt.Sprintf("%s is damaged at its end, before %s", a.File, b.File)
	case int64(b.firstBatch) <= room && !l.snapshotNear(next):
		j.reason = fmt.Sprintf("%s ends in zeros where the first batch of %s would have fitted", a.File, b.File)
	}

	return j
}

// nearSnapshot is how many entries a member may have appended between the last one in a snapshot and the end of the segment that it
// closed for it.
const nearSnapshot = 64

// snapshotNear says whether a snapshot ends shortly before an index: the segment before was closed for it, and the member was killed
// before it could be cut to its size.
func (l *Log) snapshotNear(next uint64) bool {
	return slices.ContainsFunc(l.Snapshots, func(s Snapshot) bool { return s.Index < next && next-s.Index <= nearSnapshot })
}

// lostOpen finds an open segment that must have had entries and is gone: the spare ones after it are there, and the last closed one was
// not closed for a snapshot, so entries came after it. It returns the name; empty if there is none.
func (l *Log) lostOpen() string {
	lowest := uint64(0)
	for _, s := range l.all {
		if !s.Open || s.trust != inForce {
			continue
		}

		if !s.Unused {
			return ""
		}

		if lowest == 0 || s.Counter < lowest {
			lowest = s.Counter
		}
	}

	if lowest < 2 {
		return ""
	}

	for _, s := range l.named() {
		if s.Last == l.LastIndex && (s.fault != nil || l.closedBySnapshot(s) != contradicts) {
			return ""
		}
	}

	return fmt.Sprintf("open-%d", lowest-1)
}
