// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"fmt"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

// loadOpen reads an open segment, which libdqlite finalises on the way: it cuts the file after the last sound batch and renames it to
// a closed one, or deletes it when it has none.
func (ld *loader) loadOpen(p *piece, next uint64) (uint64, verdict) {
	s := p.segment
	if s.Unused {
		ld.loadUnused(p, next)
		return next, loaded
	}

	if s.End == 0 {
		return next, ld.badFormat(p, next)
	}

	ld.take(p, next, s.Entries)
	if s.fault != nil && s.fault.class != faultCorrupt {
		return next, ld.unreadable(p, next)
	}

	ld.checkTail(p, next)
	if s.Entries == 0 {
		ld.act(Action{Kind: Delete, File: p.name})
		p.gone = true
		return next, loaded
	}

	last := next + s.Entries - 1
	closed := SegmentName(next, last)
	if s.End != s.Size {
		ld.act(Action{Kind: Truncate, File: p.name, Size: s.End})
	}

	ld.act(Action{Kind: Rename, File: p.name, To: closed})
	p.name, p.open, p.cut, p.first, p.last = closed, false, true, next, last
	return last + 1, loaded
}

// loadUnused deletes a segment that was never written to.
func (ld *loader) loadUnused(p *piece, next uint64) {
	ld.act(Action{Kind: Delete, File: p.name})
	p.gone = true
	if p.next != nil {
		ld.hole(Problem{Severity: Error, File: p.name, Offset: 0, Index: next,
			Text:      fmt.Sprintf("the segment is empty although the later %s is not: its entries are gone", p.next.name),
			Libdqlite: "deletes it and gives the entries of the later one its indexes; reports success",
			Advice:    adviseRepair})
	}
}

// badFormat reports a segment whose first 8 bytes are wrong.
func (ld *loader) badFormat(p *piece, next uint64) verdict {
	s := p.segment
	problem := Problem{Severity: Error, File: p.name, Offset: 0, Index: next, Text: s.fault.text,
		Advice: fmt.Sprintf("%d sound entries are in the file; ", s.After) + adviseRepair}
	if s.fault.class != faultCorrupt {
		problem.Libdqlite = "refuses (" + s.fault.class.String() + ")"
		ld.say(problem)
		return refused
	}

	problem.Libdqlite = "renames it and every later open segment to corrupt-…, and reports success without their entries"
	ld.say(problem)
	return corrupt
}

// unreadable reports a segment with a fault that libdqlite does not take for the end of what was written.
func (ld *loader) unreadable(p *piece, next uint64) verdict {
	s := p.segment
	problem := Problem{Severity: Error, File: p.name, Offset: s.fault.at, Index: next + s.Entries, Text: s.fault.text,
		Advice: fmt.Sprintf("the %d entries before the damage are sound, %d after it; ", s.Entries, s.After) + adviseRepair}
	ld.dropped += s.After + uint64(s.fault.n)
	if s.Entries == 0 {
		problem.Libdqlite = "refuses (" + s.fault.class.String() + ")"
		ld.say(problem)
		return refused
	}

	problem.Libdqlite = "crashes: it frees the file's content twice"
	ld.say(problem)
	return crashed
}

// checkTail reports what libdqlite overlooks after the last sound batch: something other than zeros, or zeros in place of entries.
func (ld *loader) checkTail(p *piece, next uint64) {
	s := p.segment
	end := next + s.Entries
	switch {
	case s.DirtyTail:
		lost := s.After + uint64(s.fault.n)
		ld.dropped += lost
		libdqlite := "cuts the segment here and reports success"
		if lost > 0 {
			libdqlite = fmt.Sprintf("cuts the segment here, drops the %d entries of the damaged batch and of the sound batches after it, "+
				"and reports success", lost)
		}

		ld.hole(Problem{Severity: Error, File: p.name, Offset: s.fault.at, Index: end, Text: s.fault.text,
			Libdqlite: libdqlite,
			Advice: "an unfinished last write of a member that was killed is harmless, lost entries are not: compare with the other members, " +
				"if there are any; `lxd-recover global-db-repair` cuts the segment here"})
	case p.next != nil && s.Entries > 0 && s.Size-s.End > int64(p.next.segment.firstBatch) && !ld.l.snapshotNear(end):
		ld.hole(Problem{Severity: Error, File: p.name, Offset: s.End, Index: end,
			Text: fmt.Sprintf("the segment ends in zeros where the first batch of the later %s would have fitted: "+
				"entries may be gone", p.next.name),
			Libdqlite: "takes the later segment as the continuation and reports success",
			Advice:    product.Text("harmless if LXD was killed while it took a snapshot; otherwise compare with the other members, if there are any")})
	}
}

// hole reports a problem, after which whatever follows has wrong indexes.
func (ld *loader) hole(p Problem) {
	ld.say(p)
	ld.worst(LoadsButLoses)
}

// sameCounter finds two open segments with one counter, as in open-1, open-01.
func sameCounter(pieces []*piece) (a, b string, found bool) {
	seen := map[uint64]string{}
	for _, p := range pieces {
		if !p.open {
			continue
		}

		if a, found := seen[p.segment.Counter]; found {
			return a, p.name, true
		}

		seen[p.segment.Counter] = p.name
	}

	return "", "", false
}

// mergeSort sorts as glibc's qsort does with libdqlite's comparison, which contradicts itself when closed segments overlap; only the
// same algorithm then ends in the same order.
func mergeSort(list []*piece) []*piece {
	if len(list) < 2 {
		return list
	}

	a, b := mergeSort(list[:len(list)/2]), mergeSort(list[len(list)/2:])
	sorted := make([]*piece, 0, len(list))
	for len(a) > 0 && len(b) > 0 {
		if before(a[0], b[0]) {
			sorted, a = append(sorted, a[0]), a[1:]
		} else {
			sorted, b = append(sorted, b[0]), b[1:]
		}
	}

	return append(append(sorted, a...), b...)
}

// before is libdqlite's comparison of segments.
func before(a, b *piece) bool {
	switch {
	case a.open != b.open:
		return b.open
	case a.open:
		return a.segment.Counter < b.segment.Counter
	}

	return b.first > a.last
}
