// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// InspectTransaction is one of the last transactions of a log, in words: so that reports that are compared on another machine name rows.
type InspectTransaction struct {
	Index   uint64   `json:"index" yaml:"index"`
	Term    uint64   `json:"term" yaml:"term"`
	Changes []string `json:"changes" yaml:"changes"`                     // rows, in words, without those that LXD writes all the time
	Unknown string   `json:"unknown,omitempty" yaml:"unknown,omitempty"` // why rows are not, or not all, told
}

// The bounds of what a report tells of the last transactions.
const (
	maxLastRead    = 1000     // transactions looked at
	maxLastEntries = 200      // transactions told
	maxLastRows    = 50       // rows of one of them
	maxLastText    = 64 << 10 // bytes of words of all
)

// moreLastRows is said of a transaction that changed more rows than a report tells.
const moreLastRows = "there are more rows than the report tells"

// lastEntries works out the rows of the last transactions, of which it gets the index and the term. Those that changed nothing but what
// LXD writes all the time are not told. Where there are too many the newest count.
//
// What an earlier look has told of the same log is not worked out again.
func (r *InspectReport) lastEntries(ctx context.Context, log *raftlog.Log, last []InspectTransaction, told *Told) error {
	r.LastEntries, r.LastEntriesFrom = []InspectTransaction{}, r.Raft.SnapshotIndex+1
	if r.Data == nil {
		r.LastEntriesFrom = r.Raft.LastIndex + 1
		return nil
	}

	if told.holds(r) {
		r.LastEntries, r.LastEntriesFrom = slices.Clone(told.entries), told.from
		last = slices.DeleteFunc(last, func(t InspectTransaction) bool { return t.Index <= told.last.Index })
	}

	if n := len(last) - maxLastRead; n > 0 {
		last, r.LastEntries, r.LastEntriesFrom = last[n:], []InspectTransaction{}, last[n].Index
	}

	reader := rowReader{log: log}
	defer reader.close()

	for _, t := range last {
		rows, unknown, err := reader.read(ctx, t.Index)
		if err != nil {
			return r.damaged(err)
		}

		t.tell(rows, unknown)
		if len(t.Changes) > 0 || t.Unknown != "" {
			r.LastEntries = append(r.LastEntries, t)
		}
	}

	r.boundLast()
	return nil
}

// boundLast leaves the newest transactions, as many as there is room for.
func (r *InspectReport) boundLast() {
	size := 0
	for i, t := range slices.Backward(r.LastEntries) {
		for _, line := range t.Changes {
			size += len(line)
		}

		if size > maxLastText || len(r.LastEntries)-i > maxLastEntries {
			r.LastEntriesFrom = t.Index + 1
			r.LastEntries = slices.Delete(r.LastEntries, 0, i+1)
			return
		}
	}
}

// tell fills in the words of rows.
func (t *InspectTransaction) tell(rows []globaldb.RowChange, unknown string) {
	t.Changes, t.Unknown = []string{}, unknown
	for _, row := range rows {
		switch {
		case row.ByLXD():
		case len(t.Changes) < maxLastRows:
			t.Changes = append(t.Changes, row.String())
		default:
			t.Unknown = moreLastRows
		}
	}
}

// Told is what a look has told of the last transactions of a log.
type Told struct {
	last     InspectEntry // up to where
	snapshot uint64       // index of the log's snapshot
	entries  []InspectTransaction
	from     uint64
}

// told is what a report has told; nil if that is nothing.
func (r *InspectReport) told() *Told {
	if r == nil || r.Data == nil || len(r.Entries) == 0 || r.Raft.SoundIndex != r.Raft.LastIndex {
		return nil
	}

	return &Told{last: r.Entries[len(r.Entries)-1], snapshot: r.Raft.SnapshotIndex, entries: slices.Clone(r.LastEntries), from: r.LastEntriesFrom}
}

// holds tells whether what was told is true of a report's log: it has the same last entry, and so all before it.
func (t *Told) holds(r *InspectReport) bool {
	return t != nil && t.snapshot == r.Raft.SnapshotIndex && slices.ContainsFunc(r.Entries, func(e InspectEntry) bool {
		return e.Index == t.last.Index && e.Term == t.last.Term && e.Checksum == t.last.Checksum && e.Type == t.last.Type
	})
}
