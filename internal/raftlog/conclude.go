// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"fmt"
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

// conclude derives from the entries that libdqlite would hold whether a member would start on them, and reports those that it would
// stumble over.
func (l *Log) conclude(ld *loader) {
	l.Libdqlite.Start = l.Libdqlite.Load
	n := len(l.Snapshots)
	if n > 0 {
		l.Libdqlite.Start = max(l.Libdqlite.Start, l.Snapshots[n-1].start)
	}

	if l.Term == 0 && n == 0 && len(ld.placed) > 0 {
		l.Libdqlite.Start = max(l.Libdqlite.Start, Refuses) // it bootstraps a member of term 0, and finds, or makes, two segments with the index 1
	}

	l.Libdqlite.base, l.Libdqlite.placed = ld.snapshot, ld.placed
	if ld.snapshot != nil {
		l.Libdqlite.LastIndex, l.Libdqlite.LastTerm = ld.snapshot.Index, ld.snapshot.Term
	}

	for i, p := range ld.placed {
		if i == 0 {
			l.Libdqlite.FirstIndex = p.first
		} else {
			l.compareTerms(ld.placed[i-1], p, ld)
		}

		l.follow(p, ld)
	}

	if len(ld.placed) > 0 && ld.snapshot == nil && ld.placed[0].part.firstType != ChangeEntry {
		l.Libdqlite.Start = Crashes
		ld.say(Problem{Severity: Error, File: ld.placed[0].segment.File, Offset: segmentHeader, Index: 1,
			Text:      "the log begins with an entry that is no configuration, and there is no snapshot: its beginning is missing",
			Libdqlite: "loads it with index 1, and aborts the process when the member starts (assertion)",
			Advice:    product.Text("recover from another member, or from a backup of LXD's database directory")})
	}

	if len(ld.placed) == 0 && ld.snapshot == nil {
		l.judgeEmpty(ld)
	}
}

// judgeEmpty judges a directory without a single entry to go by.
func (l *Log) judgeEmpty(ld *loader) {
	p := Problem{Severity: Error, Offset: -1,
		Text:      "there is no entry and no snapshot that libdqlite would load",
		Libdqlite: "starts as a new, empty database",
		Advice:    product.Text("recover from another member, or from a backup of LXD's database directory")}
	used := slices.ContainsFunc(l.Segments, func(s Segment) bool { return !s.Unused })
	if l.Libdqlite.Load == LoadsClean && !used && (l.Term > 0 || len(l.Files) == 0) { // a spare has nothing at all
		p.Severity = Warning
		p.Text = "there is no entry and no snapshot"
		p.Advice = "normal for a member that never got the database; recover from another one"
	}

	ld.say(p)
}

func (l *Log) need(name string) {
	f := l.file(name)
	if f != nil {
		f.Needed = true
	}
}

// follow judges the next run of entries that libdqlite would hold.
func (l *Log) follow(p placed, ld *loader) {
	if p.last() >= ld.base() {
		l.Libdqlite.LastIndex, l.Libdqlite.LastTerm = p.last(), p.part.LastTerm
	}

	for _, f := range p.part.findings {
		if f.ordinal < p.count {
			l.judge(f, p, ld)
		}
	}

	if p.part.unlisted > 0 {
		ld.say(Problem{Severity: Error, File: p.segment.File, Offset: -1, Text: fmt.Sprintf("%d more such entries", p.part.unlisted),
			Libdqlite: "as above", Advice: "as above"})
	}
}

// compareTerms reports a term that goes down from one segment to the next.
func (l *Log) compareTerms(before, p placed, ld *loader) {
	last := before.termAt(before.last())
	if p.part.FirstTerm >= last {
		return
	}

	problem := Problem{Severity: Info, File: p.segment.File, Offset: -1, Index: p.first,
		Text:      fmt.Sprintf("the entry has term %d after one of term %d: a recovery wrote it", p.part.FirstTerm, last),
		Libdqlite: "loads it",
		Advice:    "nothing"}
	if p.part.firstType != ChangeEntry {
		problem.Severity = Warning
		problem.Text = fmt.Sprintf("the entry has term %d after one of term %d", p.part.FirstTerm, last)
		problem.Advice = "raft never does that: compare with the other members, if there are any"
	}

	ld.say(problem)
}

// judge reports an entry that has the right checksums and the wrong content.
func (l *Log) judge(f finding, p placed, ld *loader) {
	index := p.first + f.ordinal
	problem := Problem{Severity: Error, File: p.segment.File, Offset: f.offset, Index: index, Text: f.text,
		Advice: "recover from another member; `lxd-recover global-db-repair --at` goes back to before it"}
	switch f.kind {
	case badCommand, notCommit:
		problem.Libdqlite = "loads it, and the member stops with an error, or crashes, when it applies the entry"
		if f.kind == notCommit {
			problem.Libdqlite = "1.18 loads it and stops with an error when it applies the entry; 1.11 waits for the commit"
		}

		if index > ld.base() {
			l.Libdqlite.Start = max(l.Libdqlite.Start, Crashes)
		} else {
			problem.Severity = Warning
			problem.Advice = "nothing: the snapshot has the entry already, and it is only sent to members that lag far behind"
		}
	case badChange:
		problem.Libdqlite = "loads it; a member refuses to start, or crashes, when it is the last configuration of the log"
		if index > ld.base() {
			l.Libdqlite.Start = max(l.Libdqlite.Start, Crashes)
		}
	case noServers:
		problem.Libdqlite = "loads it; nobody can then become leader"
	case zeroTerm:
		problem.Libdqlite = "loads it, and aborts the process when the member starts (assertion)"
		l.Libdqlite.Start = max(l.Libdqlite.Start, Crashes)
	case unevenSize:
		problem.Libdqlite = "loads it and misreads every entry after it in the same batch"
		ld.worst(LoadsButLoses)
		l.Libdqlite.Load, l.Libdqlite.Start = max(l.Libdqlite.Load, LoadsButLoses), max(l.Libdqlite.Start, LoadsButLoses)
	case lowerTerm:
		problem.Severity = Warning
		problem.Libdqlite = "loads it"
		problem.Advice = "raft never does that: compare with the other members, if there are any"
	}

	ld.say(problem)
}
