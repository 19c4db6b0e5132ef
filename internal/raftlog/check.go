// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"fmt"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

// checkNames reports what the names alone say: strays, leftovers, names that libdqlite misreads or dies of, and what its maintenance
// deletes whenever a node is constructed on the directory.
func (l *Log) checkNames(pl *problemList) {
	for _, f := range l.Files {
		p := Problem{Severity: Info, File: f.Name, Offset: -1, Libdqlite: "ignores it", Advice: "nothing"}
		switch {
		case strings.HasPrefix(f.Name, "tmp-"):
			p.Text = "a file that was never finished"
			p.Libdqlite = "deletes it"
			if len(f.Name) >= maxName {
				p.Libdqlite = "tries to delete it, and cannot: its name is too long"
			} else if f.Kind != SubDirectory {
				l.Libdqlite.Actions = append(l.Libdqlite.Actions, Action{Kind: Delete, File: f.Name})
			}
		case len(f.Name) >= maxName:
			l.Libdqlite.Load = Crashes
			p.Severity = Error
			p.Text = fmt.Sprintf("the name has %d bytes, %d or more", len(f.Name), maxName)
			p.Libdqlite = "1.18 aborts the process (assertion); 1.11 ignores it"
			p.Advice = adviseRepair
		case f.Kind == SubDirectory || f.Kind == SpecialFile:
			switch kind := classifyName(f.Name); kind {
			case MetadataFile, ClosedSegmentFile, OpenSegmentFile, SnapshotFile, SnapshotMetaFile, MisreadFile:
				l.Libdqlite.Load = max(l.Libdqlite.Load, Refuses)
				p.Severity = Error
				p.Text = fmt.Sprintf("is not a regular file, but has the name of a %s", kind)
				p.Libdqlite = "refuses, or waits for ever"
				p.Advice = adviseRepair
			default:
				if f.Kind == SpecialFile {
					p.Severity = Warning
					p.Text = "is neither a file nor a directory, or a link that leads nowhere"
				}
			}
		case f.Kind == CorruptFile:
			p.Severity = Warning
			p.Text = "libdqlite's auto-recovery has set this segment aside earlier: its entries, and those after it, were lost then"
			p.Advice = "nothing by hand: what of it still counts is part of the log"
		case f.Kind == MisreadFile:
			p.Severity = Error
			p.Text = "this is not a file of dqlite, but libdqlite takes it for one"
			p.Libdqlite = "takes it for a segment or a snapshot: deletes it, refuses or crashes"
			p.Advice = adviseRepair
			parts := looseSnapshotName.FindStringSubmatch(f.Name)
			if parts != nil {
				l.misreadSnapshot(f)
			}
		case f.Kind == StrayFile:
			p.Text = product.Text("not a file of dqlite or LXD")
		}

		if p.Text != "" {
			pl.add(p)
		}
	}
}

// misreadSnapshot follows the maintenance for a snapshot name that libdqlite would have written differently: it looks for the partner
// under the name that it would have written, and deletes the file when there is none.
func (l *Log) misreadSnapshot(f File) {
	term, index, timestamp, _ := parseSnapshotName(f.Name)
	partner := fmt.Sprintf("snapshot-%d-%d-%d", term, index, timestamp)
	if !strings.HasSuffix(f.Name, ".meta") {
		partner += ".meta"
	}

	if l.file(partner) == nil {
		l.Libdqlite.Actions = append(l.Libdqlite.Actions, Action{Kind: Delete, File: f.Name})
		return
	}

	l.Libdqlite.Load = max(l.Libdqlite.Load, Refuses) // it may become the newest snapshot
}

// checkMetadata reports what is wrong with metadata1 and metadata2. It follows libdqlite's rules, which surface when a node is
// constructed.
func (l *Log) checkMetadata(pl *problemList) {
	names := [2]string{"metadata1", "metadata2"}
	refuse := func(name, text string) {
		l.Libdqlite.Load = max(l.Libdqlite.Load, Refuses)
		pl.add(Problem{Severity: Error, File: name, Offset: 0, Text: text,
			Libdqlite: "refuses to construct a node on the directory (go-dqlite 1.11 crashes instead)",
			Advice:    adviseRepair})
	}

	for i, name := range names {
		err := l.metadataErrors[i]
		if err != nil {
			f := l.file(name)
			if f.Size >= metadataSize {
				refuse(name, err.Error())
				continue
			}

			l.Libdqlite.Actions = append(l.Libdqlite.Actions, Action{Kind: Delete, File: name})
			pl.add(Problem{Severity: Warning, File: name, Offset: 0, Text: err.Error(),
				Libdqlite: "deletes it and takes the other one",
				Advice:    "normal after a power cut on a new member; otherwise the vote of this term may be forgotten"})
			continue
		}

		m := l.Metadata[i]
		if m != nil && m.FileName() != name {
			pl.add(Problem{Severity: Warning, File: name, Offset: 8,
				Text:      fmt.Sprintf("version %d belongs into %s", m.Version, m.FileName()),
				Libdqlite: "does not check that; the higher version counts",
				Advice:    "dqlite never wrote it like this: find out who did"})
		}
	}

	a, b := l.Metadata[0], l.Metadata[1]
	switch {
	case a == nil && b == nil:
		if len(l.Segments)+len(l.Snapshots) > 0 {
			pl.add(lostMetadata("both metadata files are missing or unusable, but there is a log"))
		}

		return
	case a != nil && b != nil:
		if a.Version == b.Version {
			refuse("metadata2", fmt.Sprintf("metadata1 and metadata2 both have version %d", a.Version))
		} else if max(a.Version, b.Version)-min(a.Version, b.Version) != 1 {
			pl.add(Problem{Severity: Warning, File: "metadata1", Offset: 8,
				Text:      fmt.Sprintf("the versions %d and %d of metadata1 and metadata2 do not follow each other", a.Version, b.Version),
				Libdqlite: "takes the higher one",
				Advice:    "one of the files is not as dqlite left it: compare the terms with the other members, if there are any"})
		}
	default:
		m := cmpPointer(a, b)
		if m.Version > 1 {
			pl.add(Problem{Severity: Warning, File: m.FileName(), Offset: -1,
				Text:      fmt.Sprintf("only one metadata file is usable, with version %d", m.Version),
				Libdqlite: "takes it; if the lost one was newer, the member falls back by one term or forgets a vote",
				Advice:    "compare the terms with the other members, if there are any"})
		}
	}

	highest := l.logTerm()
	if l.Term == 0 && highest > 0 {
		pl.add(lostMetadata(fmt.Sprintf("the metadata say term 0, as a new member's do, but the log has entries of term %d", highest)))
		return
	}

	if highest > l.Term {
		pl.add(Problem{Severity: Warning, File: "metadata1", Offset: 16,
			Text:      fmt.Sprintf("the metadata say term %d, but the log has entries of term %d", l.Term, highest),
			Libdqlite: "starts with the lower term and may vote again in a term that is over",
			Advice:    "an older metadata file has come back: `lxd-recover global-db-repair` and an export write new ones"})
	}
}

// lostMetadata is what a member without its term and vote is, however they were lost.
func lostMetadata(text string) Problem {
	return Problem{Severity: Error, File: "metadata1", Offset: -1, Text: text,
		Libdqlite: "loads the log with term 0 and takes the member for a new one: it may vote twice in one term, or bootstrap over the log",
		Advice:    adviseRepair}
}

// cmpPointer returns the one that is not nil.
func cmpPointer(a, b *Metadata) *Metadata {
	if a != nil {
		return a
	}

	return b
}

// logTerm is the highest term in segments and snapshots.
func (l *Log) logTerm() uint64 {
	var t uint64
	for _, s := range l.Segments {
		t = max(t, s.MaxTerm)
	}

	for _, s := range l.Snapshots {
		t = max(t, s.Term)
	}

	return t
}

// checkSegments reports closed segments that claim the same index.
func (l *Log) checkSegments(pl *problemList) {
	for i := 1; i < len(l.Segments); i++ {
		a, b := l.Segments[i-1], l.Segments[i]
		if a.Open || b.Open || b.First > a.Last {
			continue
		}

		l.Libdqlite.Load = max(l.Libdqlite.Load, LoadsButLoses)
		pl.add(Problem{Severity: Error, File: b.File, Offset: -1, Index: b.First,
			Text:      fmt.Sprintf("overlaps with %s", a.File),
			Libdqlite: "refuses, or drops one of the two, as the sorting happens to order them",
			Advice:    adviseRepair})
	}
}
