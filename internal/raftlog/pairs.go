// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"fmt"
	"slices"
	"strings"
)

// readSnapshots finds the pairs of snapshot data and metadata, and verifies each of them.
func (l *Log) readSnapshots(d *directory, pl *problemList) error {
	for _, f := range l.Files {
		if f.Kind != SnapshotFile && f.Kind != SnapshotMetaFile {
			continue
		}

		partner := f.Name + ".meta"
		if f.Kind == SnapshotMetaFile {
			partner = strings.TrimSuffix(f.Name, ".meta")
		}

		other := l.file(partner)
		if other == nil {
			l.Libdqlite.Actions = append(l.Libdqlite.Actions, Action{Kind: Delete, File: f.Name})
			pl.add(Problem{Severity: Warning, File: f.Name, Offset: -1,
				Text:      fmt.Sprintf("there is no %s beside it", partner),
				Libdqlite: "deletes it whenever a node is constructed on the directory",
				Advice:    "normal after a crash in the middle of a snapshot; the log then still has the entries"})
			continue
		} else if f.Kind == SnapshotMetaFile || other.Kind != SnapshotMetaFile {
			continue
		}

		if f.Size == 0 {
			pl.add(Problem{Severity: Warning, File: f.Name, Offset: -1,
				Text:      "the snapshot is empty",
				Libdqlite: "ignores it",
				Advice:    "normal after a crash in the middle of a snapshot; the log then still has the entries"})
			continue
		}

		s := Snapshot{File: f.Name, Meta: partner}
		s.Term, s.Index, s.Timestamp, _ = parseSnapshotName(f.Name)
		l.EntryTerm = max(l.EntryTerm, s.Term)
		l.MaxTerm = max(l.MaxTerm, l.EntryTerm)
		l.Snapshots = append(l.Snapshots, s)
	}

	slices.SortFunc(l.Snapshots, compareSnapshots)
	err := d.each(len(l.Snapshots), func(d *directory, i int) error {
		s := l.knownSnapshot(d.known, l.Snapshots[i])
		if s != nil {
			l.Snapshots[i] = *s
			return nil
		}

		return d.scanSnapshot(&l.Snapshots[i], d.allSums || d.sums && i == len(l.Snapshots)-1)
	})
	if err != nil {
		return err
	}

	for i := range l.Snapshots {
		s := &l.Snapshots[i]
		doubt, found := d.doubts[s.File]
		if found {
			s.doubted(doubt)
		}
	}

	l.unread = slices.ContainsFunc(l.Snapshots, func(s Snapshot) bool { return s.unread })
	newest := len(l.Snapshots) - 1
	for i := range l.Snapshots {
		s := &l.Snapshots[i]
		for _, p := range s.problems {
			if i != newest && p.Severity == Error {
				p.Severity = Warning
				p.Libdqlite = "nothing, as it uses the newer snapshot; if that were gone: " + p.Libdqlite
				p.Advice = "nothing, as long as the newer snapshot is sound"
			}

			pl.add(p)
		}

		if newest >= 0 && s.Index > l.Snapshots[newest].Index {
			pl.add(Problem{Severity: Warning, File: s.File, Offset: -1, Index: s.Index,
				Text:      fmt.Sprintf("reaches index %d, but %s has the higher term", s.Index, l.Snapshots[newest].File),
				Libdqlite: "uses the one with the higher term, although it is older",
				Advice:    adviseRepair})
		}
	}

	return nil
}
