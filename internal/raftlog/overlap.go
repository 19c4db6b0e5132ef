// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"bytes"
	"cmp"
	"context"
	"iter"
	"slices"
)

// difference is the first index at which two runs of entries are not the same; index 0: there is none.
type difference struct {
	index uint64
	a, b  Entry // without payload
}

// compareRuns compares the entries that two runs both claim to have. A payload is compared as [SameEntry] does.
func (l *Log) compareRuns(ctx context.Context, a, b placed) (difference, error) {
	first, last := max(a.first, b.first), min(a.last(), b.last())
	if first > last {
		return difference{}, nil
	}

	l.comparisons++

	next, stop := iter.Pull2(l.entriesOf(ctx, span{b.cut(first, last)}, first))
	defer stop()

	for ours, err := range l.entriesOf(ctx, span{a.cut(first, last)}, first) {
		if err != nil {
			return difference{}, err
		}

		theirs, err, ok := next()
		if err != nil || !ok {
			return difference{}, err
		}

		if !SameEntry(ours, theirs) {
			ours.Data, theirs.Data = nil, nil
			return difference{index: ours.Index, a: ours, b: theirs}, nil
		}
	}

	return difference{}, nil
}

// SameEntry says whether two entries are the same to raft: term, type and payload. A configuration is compared decoded, as dqlite pads
// it with uninitialised memory.
func SameEntry(a, b Entry) bool {
	if a.Term != b.Term || a.Type != b.Type {
		return false
	}

	if bytes.Equal(a.Data, b.Data) {
		return true
	}

	if a.Type != ChangeEntry {
		return false
	}

	one, errOne := ParseConfiguration(a.Data)
	two, errTwo := ParseConfiguration(b.Data)
	return errOne == nil && errTwo == nil && slices.Equal(one, two)
}

// alternative is one way to read the closed segments.
type alternative struct {
	log    span
	reason string // why it is a way of its own; empty where there is only one
	cutAt  uint64 // a member that was killed while it cut its log at this index would go on from it; 0 where it was not
	placed []claim
	lost   []lostRun // what was cut away
}

// lostRun is a run of entries that others at the same indexes were taken instead of.
type lostRun struct {
	placed
	reason string
}

// maxAlternatives bounds in how many ways segments that contradict each other are read.
const maxAlternatives = 4

// closed works out what the closed segments hold: which entry is at which index. Segments that agree where they overlap are one.
// Where two do not, the later term counts, as only a later leader cuts entries away; if terms do not decide, there are two alternatives.
func (l *Log) closed(ctx context.Context) ([]alternative, error) {
	var claims, others []claim
	for _, s := range l.all {
		for _, c := range s.claims() {
			if c.trust == inForce {
				claims = append(claims, c)
			} else {
				others = append(others, c)
			}
		}
	}

	claims = l.dropCopies(ctx, claims)
	claims, err := l.dropMisnamed(ctx, claims)
	if err != nil {
		return nil, err
	}

	slices.SortStableFunc(claims, func(a, b claim) int { return sortPlaced(a.placed, b.placed) })
	list, err := l.resolve(ctx, alternative{placed: claims})
	if err != nil {
		return nil, err
	}

	list = l.cutShort(list)
	slices.SortStableFunc(others, func(a, b claim) int { return cmp.Or(cmp.Compare(a.trust, b.trust), sortPlaced(a.placed, b.placed)) })
	for i := range list {
		list[i].log = l.inOrder(list[i].merge())
		for _, c := range others {
			list[i].log, err = l.fillIn(ctx, list[i].log, c)
			if err != nil {
				return nil, err
			}
		}
	}

	return list, nil
}

// merge makes one span of claims that agree; whole segments come first.
func (a *alternative) merge() span {
	var s span
	for _, whole := range []bool{true, false} {
		for _, c := range a.placed {
			if c.whole == whole && c.count > 0 {
				s = s.fill(c.placed)
			}
		}
	}

	return s
}

// dropMisnamed leaves out segments that others contradict, and whose beginning follows nothing: their name is not the one that dqlite
// gave them. Where the log was cut, the beginning of what was cut away follows what is before it.
func (l *Log) dropMisnamed(ctx context.Context, claims []claim) ([]claim, error) {
	slices.SortStableFunc(claims, func(a, b claim) int { return sortPlaced(a.placed, b.placed) })
	follows := l.following(claims)
	wrong := map[*Segment]bool{}
	for i, c := range claims {
		if !follows[i] && l.goesPast(c.segment) {
			wrong[c.segment] = true
		}
	}

	for i, a := range claims {
		for j := i + 1; j < len(claims) && claims[j].first <= a.last() && l.comparisons < maxComparisons; j++ {
			b := claims[j]
			if a.segment == b.segment || follows[i] == follows[j] {
				continue
			}

			d, err := l.compareRuns(ctx, a.placed, b.placed)
			if err != nil {
				return nil, err
			}

			switch {
			case d.index == 0:
			case follows[i]:
				wrong[b.segment] = true
			default:
				wrong[a.segment] = true
			}
		}
	}

	for s := range wrong {
		l.misnamed = append(l.misnamed, s)
	}

	return slices.DeleteFunc(claims, func(c claim) bool { return wrong[c.segment] }), nil
}

// following says of each claim whether something leads to its first entry: the beginning of the log, a snapshot, or another segment.
// The claims are sorted by their first index.
func (l *Log) following(claims []claim) []bool {
	list := make([]bool, len(claims))
	for i, c := range claims {
		list[i] = c.first == 1 || slices.ContainsFunc(l.Snapshots, func(s Snapshot) bool { return s.Index+1 == c.first }) ||
			slices.ContainsFunc(claims[:i], func(o claim) bool { return o.segment != c.segment && o.first < c.first && c.first <= o.last()+1 })
	}

	return list
}

// goesPast says whether a segment, by its name, goes on long after a snapshot in it: taking one closes it.
func (l *Log) goesPast(s *Segment) bool {
	return slices.ContainsFunc(l.Snapshots, func(snap Snapshot) bool {
		return snap.Usable && s.First <= snap.Index && snap.Index+nearSnapshot < s.Last
	})
}

// maxComparisons bounds how often segments are compared with each other: a hostile directory can have a million that overlap.
const maxComparisons = 10000

// inOrder leaves out segments with which a term falls: inside a log that only happens at a change, which a recovery has written.
func (l *Log) inOrder(s span) span {
	for i := 1; i < len(s); i++ {
		p, q := s[i-1], s[i]
		if q.first != p.last()+1 || q.termAt(q.first) >= p.termAt(p.last()) || q.changes(q.first) {
			continue
		}

		wrong := q.segment
		if i+1 < len(s) && s[i+1].first == q.last()+1 && (i < 2 || s[i-2].last()+1 != p.first) {
			wrong = p.segment // it is the other one that nothing leads to
		}

		l.misnamed = append(l.misnamed, wrong)
		return l.inOrder(slices.DeleteFunc(slices.Clone(s), func(o placed) bool { return o.segment == wrong }))
	}

	return s
}

// resolve finds claims that contradict each other and cuts one of them, or makes two alternatives of one.
func (l *Log) resolve(ctx context.Context, a alternative) ([]alternative, error) {
	var done []alternative
	for open := []alternative{a}; len(open) > 0; {
		a, open = open[0], open[1:]
		for i := range a.placed {
			for j := i + 1; j < len(a.placed) && a.placed[i].count > 0; j++ {
				one, two := &a.placed[i], &a.placed[j]
				if two.first > one.last() || two.count == 0 {
					continue
				}

				if l.comparisons >= maxComparisons {
					two.cutAt(one.first)
					continue
				}

				d, err := l.compareRuns(ctx, one.placed, two.placed)
				if err != nil {
					return nil, err
				}

				switch {
				case d.index == 0:
				case d.a.Term > d.b.Term && !isRecovery(d.a, d.b):
					a.lost = append(a.lost, lostRun{two.cut(d.index, two.last()), ReasonReplaced})
					two.cutAt(d.index)
				case d.a.Term < d.b.Term && !isRecovery(d.a, d.b):
					a.lost = append(a.lost, lostRun{one.cut(d.index, one.last()), ReasonReplaced})
					one.cutAt(d.index)
				default:
					other := alternative{placed: slices.Clone(a.placed), lost: slices.Clone(a.lost), reason: "with " + two.segment.File}
					other.lost = append(other.lost, lostRun{one.cut(d.index, one.last()), reasonContradicted})
					other.placed[i].cutAt(d.index)
					if len(done)+len(open)+1 < maxAlternatives {
						open = append(open, other)
					}

					a.reason = "with " + one.segment.File
					a.lost = append(a.lost, lostRun{two.cut(d.index, two.last()), reasonContradicted})
					two.cutAt(d.index)
				}
			}
		}

		a.placed = slices.DeleteFunc(a.placed, func(c claim) bool { return c.count == 0 })
		done = append(done, a)
	}

	return done, nil
}

// cutAt takes the entries from an index on away.
func (c *claim) cutAt(index uint64) {
	c.whole = false
	if index <= c.first {
		c.count = 0
		return
	}

	c.placed = c.cut(c.first, index-1)
}

// isRecovery says whether one of two entries was written by a recovery, whose term says nothing of what came first.
func isRecovery(a, b Entry) bool {
	return a.Type == ChangeEntry && a.Term < b.Term || b.Type == ChangeEntry && b.Term < a.Term
}

// cutShort looks for what a member leaves that was killed while it cut its log: a segment that holds the beginning of another one as a
// single batch, and nothing that was written since. Whether the rest of the longer one still counts cannot be told.
func (l *Log) cutShort(list []alternative) []alternative {
	for _, s := range l.all {
		if s.Open && s.Entries > 0 && s.trust == inForce {
			return list
		}
	}

	for _, a := range list {
		for _, short := range a.placed {
			if !short.whole || short.part.batches != 1 {
				continue
			}

			i := slices.IndexFunc(a.placed, func(long claim) bool {
				return long.whole && long.first == short.first && long.count > short.count && long.part.batches > 1
			})
			if i < 0 || len(list) >= maxAlternatives {
				continue
			}

			cut := alternative{cutAt: short.last() + 1, reason: "cut after " + short.segment.File}
			for _, c := range a.placed {
				if c.first <= short.last() {
					c.placed = c.cut(c.first, short.last())
					cut.placed = append(cut.placed, c)
				}
			}

			return append(list, cut)
		}
	}

	return list
}

// fillIn adds entries of a segment without its own name where the log has none: as the continuation of the log, or into a hole. They
// count only if they are the same as what the log has at the same indexes. What never got its name, and has no transaction, only fills
// holes: it may be the entry of a recovery that came to nothing.
func (l *Log) fillIn(ctx context.Context, s span, c claim) (span, error) {
	if l.comparisons >= maxComparisons {
		return s, nil
	}

	for _, p := range s {
		d, err := l.compareRuns(ctx, p, c.placed)
		if err != nil || d.index > 0 {
			return s, err
		}
	}

	last := uint64(0)
	if len(s) > 0 {
		last = s[len(s)-1].last()
	}

	if c.trust == temporary && !c.part.commands && (last > 0 || c.first > 1) {
		if c.first > last {
			return s, nil
		}

		c.placed = c.cut(c.first, last)
	}

	return s.fill(c.placed), nil
}

// dropCopies leaves out segments that are copies of others under a wrong name: the same entries at other indexes. Of two such the one
// stays that its neighbours go with, else the one with the lower indexes.
func (l *Log) dropCopies(ctx context.Context, claims []claim) []claim {
	fits := func(c claim) int {
		n := 0
		for _, other := range claims {
			switch {
			case other.segment == c.segment:
			case other.last()+1 == c.first, c.last()+1 == other.first:
				n++
			case other.part.mark == c.part.mark: // the same, as like as not
			case other.first <= c.last() && c.first <= other.last():
				n--
			}
		}

		for i := range l.Snapshots {
			if index := l.Snapshots[i].Index; index == c.last() || index+1 == c.first {
				n++
			}
		}

		return n
	}

	dropped := map[*Segment]bool{}
	for i := range claims {
		for j := i + 1; j < len(claims); j++ {
			a, b := claims[i], claims[j]
			if a.part.mark != b.part.mark || !a.part.mark.set || a.segment == b.segment || a.first == b.first || a.skip != b.skip ||
				dropped[a.segment] || dropped[b.segment] || l.comparisons >= maxComparisons {
				continue
			}

			same, err := l.sameContent(ctx, a.placed, b.placed)
			if err != nil || !same {
				continue
			}

			if !a.part.varied && min(fits(a), fits(b)) > 0 {
				continue // the same transaction again and again
			}

			drop, keep, at := b, a, j
			if cmp.Or(fits(b)-fits(a), cmp.Compare(a.first, b.first)) > 0 {
				drop, keep, at = a, b, i
			}

			if drop.count > keep.count { // it has more of the same entries
				claims[at].first, claims[at].whole = keep.first, false
				continue
			}

			dropped[drop.segment] = true
			l.copies = append(l.copies, drop.segment)
		}
	}

	return slices.DeleteFunc(claims, func(c claim) bool { return dropped[c.segment] })
}

// sameContent says whether two runs have the same entries, as far as the shorter one goes, wherever they stand in the log.
func (l *Log) sameContent(ctx context.Context, a, b placed) (bool, error) {
	n := min(a.count, b.count)
	a, b = a.cut(a.first, a.first+n-1), b.cut(b.first, b.first+n-1)
	b.first = a.first
	d, err := l.compareRuns(ctx, a, b)
	return err == nil && d.index == 0, err
}
