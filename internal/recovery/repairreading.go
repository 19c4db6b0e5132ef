// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"io/fs"
	"os"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Lost is what the disk does not give back: entries that it must have had once, and that cannot be read, or whose place is not known.
type Lost struct {
	Entries uint64 `json:"entries" yaml:"entries"` // as far as they can be counted
	Some    bool   `json:"some" yaml:"some"`       // there are such entries, counted or not

	// Unfinished is true where all that is missing is what was being written when the member was stopped: nobody was told that it was
	// written.
	Unfinished bool `json:"unfinished" yaml:"unfinished"`
}

// uncertain tells whether a log is one of several that the files can be read as, or indexes of it up to the last one are not proven.
func uncertain(log *raftlog.Log, last uint64) bool {
	return len(log.Readings) > 1 || unproven(log, last)
}

// provenEnd is the last entry that the disk proves. That there is none is damage.
func provenEnd(log *raftlog.Log, what string) (bundle.Position, error) {
	if log.SoundIndex == 0 {
		return bundle.Position{}, &DamageError{What: what, Problems: log.Problems,
			Advice: product.Text("Nothing is left that a repair could begin with. A kept database (`lxd-recover global-db-kept list`), one of LXD's own " +
				"backups (db_backup.*.tar.gz), or another member may have it.")}
	}

	return bundle.Position{Index: log.LastIndex, Term: log.LastTerm}, nil
}

// libdqliteOf is what libdqlite would make of a directory.
func libdqliteOf(log *raftlog.Log) Libdqlite {
	l := Libdqlite{Load: log.Libdqlite.Load, Start: log.Libdqlite.Start, Actions: []string{}, Dropped: log.Libdqlite.Dropped}
	if l.Start < raftlog.Refuses {
		l.Last = log.Libdqlite.LastIndex
	}

	for _, a := range log.Libdqlite.Actions {
		l.Actions = append(l.Actions, a.String())
	}

	return l
}

// lostOf is what is not in a log. Entries that others have replaced are no loss: raft itself gave them up.
func lostOf(log *raftlog.Log) Lost {
	lost := Lost{Unfinished: true}
	for _, o := range log.LeftOut {
		if o.Reason != raftlog.ReasonReplaced {
			lost = Lost{Entries: lost.Entries + o.Entries, Some: true, Unfinished: lost.Unfinished && cutShort(log, o)}
		}
	}

	lost.Unfinished = lost.Unfinished && lost.Some
	return lost
}

// cutShort tells whether what is left out is what was being written when the member was stopped.
func cutShort(log *raftlog.Log, o raftlog.LeftOut) bool {
	last := "" // the last open segment that was written to
	for _, s := range log.Segments {
		if s.Open && !s.Unused {
			last = s.File
		}
	}

	return o.Reason == raftlog.ReasonUnfinished && o.File == last
}

// files are those of the raft directory.
func (rp *repairer) files() fs.FS { return os.DirFS(rp.dir.global()) }
