// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"fmt"
	"slices"
)

// conclude derives from the entries that libdqlite would hold what the rest of Log says: positions, configuration, and whether a member
// would start.
func (l *Log) conclude(ld *loader) {
	l.Start = l.Load
	n := len(l.Snapshots)
	if n > 0 {
		l.Start = max(l.Start, l.Snapshots[n-1].start)
	}

	if l.Term == 0 && n == 0 && len(ld.placed) > 0 {
		l.Start = max(l.Start, Refuses) // it bootstraps a member of term 0, and finds, or makes, two segments with the index 1
	}

	snap := ld.snapshot
	if snap != nil {
		l.LastIndex, l.LastTerm = snap.Index, snap.Term
		l.Configuration, l.ConfigurationIndex = snap.Configuration, snap.ConfigurationIndex
		l.need(snap.File)
		l.need(snap.Meta)
	}

	l.SoundIndex = l.LastIndex
	for _, p := range ld.placed {
		l.place(p, ld)
	}

	if len(ld.placed) > 0 {
		l.SoundIndex = max(ld.sound, ld.base())
	}

	if len(l.placed) > 0 && ld.snapshot == nil && l.placed[0].segment.firstType != ChangeEntry {
		l.Start = Crashes
		l.SoundIndex = 0
		ld.say(Problem{Severity: Error, File: l.placed[0].segment.File, Offset: segmentHeader, Index: 1,
			Text:      "the log begins with an entry that is no configuration, and there is no snapshot: its beginning is missing",
			Libdqlite: "loads it with index 1, and aborts the process when the member starts (assertion)",
			Advice:    "recover from another member"})
	}

	if len(l.placed) == 0 && ld.snapshot == nil {
		l.judgeEmpty(ld)
	}
}

// judgeEmpty judges a directory without a single entry to go by.
func (l *Log) judgeEmpty(ld *loader) {
	p := Problem{Severity: Error, Offset: -1,
		Text:      "there is no entry and no snapshot that libdqlite would load",
		Libdqlite: "starts as a new, empty database",
		Advice:    "recover from another member"}
	used := slices.ContainsFunc(l.Segments, func(s Segment) bool { return !s.Unused })
	if l.Load == LoadsClean && !used && (l.Term > 0 || len(l.Files) == 0) { // a spare has nothing at all
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

// place appends a run of entries to the effective log.
func (l *Log) place(p placed, ld *loader) {
	s := p.segment
	if len(l.placed) == 0 {
		l.FirstIndex = p.first
	} else if s.FirstTerm < l.LastTerm {
		l.lowerTerm(ld, s.firstType, p, 0)
	}

	l.placed = append(l.placed, p)
	if s.Open {
		s.First, s.Last = p.first, p.first+p.count-1
	}

	last := p.first + p.count - 1
	if last >= ld.base() {
		l.LastIndex, l.LastTerm = last, s.LastTerm
	}

	l.need(s.File)
	c := s.change
	if c.found && c.ordinal < p.count && p.first+c.ordinal > l.ConfigurationIndex && c.err == nil {
		l.Configuration, l.ConfigurationIndex = c.configuration, p.first+c.ordinal
	}

	for _, f := range s.findings {
		if f.ordinal < p.count {
			l.judge(f, p, ld)
		}
	}

	if s.unlisted > 0 {
		ld.say(Problem{Severity: Error, File: s.File, Offset: -1, Text: fmt.Sprintf("%d more such entries", s.unlisted),
			Libdqlite: "as above", Advice: "as above"})
	}
}

// lowerTerm reports a term that goes down from one segment to the next.
func (l *Log) lowerTerm(ld *loader, typ EntryType, p placed, ordinal uint64) {
	problem := Problem{Severity: Info, File: p.segment.File, Offset: -1, Index: p.first + ordinal,
		Text:      fmt.Sprintf("the entry has term %d after one of term %d: a recovery wrote it", p.segment.FirstTerm, l.LastTerm),
		Libdqlite: "loads it",
		Advice:    "nothing"}
	if typ != ChangeEntry {
		problem.Severity = Warning
		problem.Text = fmt.Sprintf("the entry has term %d after one of term %d", p.segment.FirstTerm, l.LastTerm)
		problem.Advice = "raft never does that: compare with the other members"
	}

	ld.say(problem)
}

// judge reports an entry that has the right checksums and the wrong content.
func (l *Log) judge(f finding, p placed, ld *loader) {
	index := p.first + f.ordinal
	problem := Problem{Severity: Error, File: p.segment.File, Offset: f.offset, Index: index, Text: f.text,
		Advice: "recover from another member"}
	switch f.kind {
	case badCommand, notCommit:
		problem.Libdqlite = "loads it, and the member stops with an error, or crashes, when it applies the entry"
		if f.kind == notCommit {
			problem.Libdqlite = "1.18 loads it and stops with an error when it applies the entry; 1.11 waits for the commit"
		}

		if index > ld.base() {
			l.Start = max(l.Start, Crashes)
		} else {
			problem.Severity = Warning
			problem.Advice = "nothing: the snapshot has the entry already, and it is only sent to members that lag far behind"
		}
	case badChange:
		problem.Libdqlite = "loads it; a member refuses to start, or crashes, when it is the last configuration of the log"
		if index > ld.base() {
			l.Start = max(l.Start, Crashes)
		}
	case noServers:
		problem.Libdqlite = "loads it; nobody can then become leader"
	case zeroTerm:
		problem.Libdqlite = "loads it, and aborts the process when the member starts (assertion)"
		l.Start = max(l.Start, Crashes)
	case unevenSize:
		problem.Libdqlite = "loads it and misreads every entry after it in the same batch"
		ld.worst(LoadsButLoses)
		l.Load, l.Start = max(l.Load, LoadsButLoses), max(l.Start, LoadsButLoses)
	case lowerTerm:
		problem.Severity = Warning
		problem.Libdqlite = "loads it"
		problem.Advice = "raft never does that: compare with the other members"
	}

	ld.say(problem)
}
