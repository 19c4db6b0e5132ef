// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Lost is what the disk does not give back: entries that it must have had once, and that cannot be read, or whose place is not known. What
// they did to the rows cannot be told.
type Lost struct {
	Entries uint64   `json:"entries" yaml:"entries"` // as far as they can be counted
	What    []string `json:"what" yaml:"what"`       // what, and where

	// Unfinished is true where all that is missing is what was being written when the member was stopped: nobody was told that it was
	// written.
	Unfinished bool `json:"unfinished" yaml:"unfinished"`
}

// nothing tells whether nothing is known to be lost.
func (l Lost) nothing() bool { return len(l.What) == 0 }

// choose takes one of several readings, and refuses where none was named.
func (rp *repairer) choose() error {
	if rp.opts.Reading != "" {
		return rp.log.Choose(rp.opts.Reading)
	}

	if !rp.log.Undecided() {
		return nil
	}

	var text strings.Builder
	fmt.Fprintf(&text, "the files in %s can be read as %d different logs, which are the same up to index %d:\n", rp.dir.global(), len(rp.log.Readings), rp.log.LastIndex)
	for _, r := range rp.log.Readings {
		fmt.Fprintf(&text, "  %s: %s\n", r.Digest, r)
	}

	return &Refusal{Reason: text.String(), Flag: "--reading DIGEST"}
}

// uncertain tells whether a log is one of several that the files can be read as, or indexes of it are likely and not proven.
func uncertain(log *raftlog.Log) bool {
	readings := log.Readings
	return len(readings) > 1 || len(readings) == 1 && readings[0].Unproven > 0
}

// provenEnd is the last entry that the disk proves. That there is none is damage.
func provenEnd(log *raftlog.Log, what string) (bundle.Position, error) {
	if log.SoundIndex == 0 {
		return bundle.Position{}, &DamageError{What: what, Problems: log.Problems,
			Advice: "Nothing is left that a repair could begin with. A kept database (`lxd-recover global-db-kept list`), one of LXD's own backups " +
				"(db_backup.*.tar.gz), or another member may have it."}
	}

	return bundle.Position{Index: log.LastIndex, Term: log.LastTerm}, nil
}

// libdqliteOf is what libdqlite would make of a log.
func libdqliteOf(log *raftlog.Log) Libdqlite {
	l := Libdqlite{Load: log.Libdqlite.Load, Start: log.Libdqlite.Start, Actions: []string{}, Dropped: log.Libdqlite.Dropped}
	for _, a := range log.Libdqlite.Actions {
		l.Actions = append(l.Actions, a.String())
	}

	return l
}

// lostOf is what is not in a log. Entries that others have replaced are no loss: raft itself gave them up.
func lostOf(log *raftlog.Log, fsys fs.FS) (Lost, error) {
	lost := Lost{What: []string{}}
	unfinished := true
	for _, o := range log.LeftOut {
		if o.Last > 0 && o.Last <= log.LastIndex {
			continue
		}

		lost.Entries += o.Entries
		lost.What = append(lost.What, o.String())
		cut, err := cutShort(log, o, fsys)
		if err != nil {
			return lost, err
		}

		unfinished = unfinished && cut
	}

	lost.Unfinished = unfinished && len(lost.What) > 0
	return lost, nil
}

// cutShort tells whether what is left out is what was being written when the member was stopped.
func cutShort(log *raftlog.Log, o raftlog.LeftOut, fsys fs.FS) (bool, error) {
	last := -1 // the last open segment that was written to
	for i, s := range log.Segments {
		if s.Open && !s.Unused {
			last = i
		}
	}

	if o.Sound || last < 0 || log.Segments[last].File != o.File {
		return false, nil
	}

	return unfinishedBatch(fsys, &log.Segments[last])
}

// givenUpReadings lists the transactions that only another reading has, with the rows that they change there.
func (rp *repairer) givenUpReadings(ctx context.Context) ([]Discarded, error) {
	has := map[string]bool{}
	for entry, err := range rp.log.Entries(ctx, max(rp.log.FirstIndex, 1)) {
		if err != nil {
			return nil, err
		}

		has[checksum(entry)] = true
	}

	all := []Discarded{}
	for _, r := range rp.log.Readings {
		other, err := readLog(ctx, rp.dir.global(), Progress{})
		if err == nil {
			err = other.Choose(r.Digest)
		}

		if err != nil {
			return nil, err
		}

		found := []Discarded{}
		for entry, err := range other.Entries(ctx, max(other.FirstIndex, 1)) {
			if err != nil {
				return nil, err
			}

			if changesRows(entry) && !has[checksum(entry)] {
				found = append(found, Discarded{Index: entry.Index, Term: entry.Term, Rows: []globaldb.RowChange{}})
			}
		}

		err = describeRows(ctx, other, found)
		if err != nil {
			return nil, err
		}

		all = append(all, found...)
	}

	return all, nil
}

// files are those of the raft directory.
func (rp *repairer) files() fs.FS { return os.DirFS(rp.dir.global()) }
