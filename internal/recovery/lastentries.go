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

// lastEntries works out the rows of the last transactions, of which it gets the index and the term; of a log that cannot be replayed none are told.
func (r *InspectReport) lastEntries(ctx context.Context, log *raftlog.Log, last []InspectTransaction) error {
	if r.Data == nil {
		return nil
	}

	told, err := tellLast(ctx, log, last, r.Raft.SnapshotIndex+1)
	if err != nil {
		return r.damaged(err)
	}

	r.LastEntries, r.LastEntriesFrom = told.List, told.From
	return nil
}

// Transactions are the last transactions of a log that changed more than what LXD writes all the time, in words.
type Transactions struct {
	List []InspectTransaction `json:"list"`
	From uint64               `json:"from"` // from this index on all are told
}

// tellLast works out the rows of transactions, of which it gets the index and the term; these are all from an index on. Those that changed nothing but what
// LXD writes all the time are not told. Where there are too many the newest count.
func tellLast(ctx context.Context, log *raftlog.Log, last []InspectTransaction, from uint64) (*Transactions, error) {
	told := &Transactions{List: []InspectTransaction{}, From: from}
	if n := len(last) - maxLastRead; n > 0 {
		last, told.From = last[n:], last[n].Index
	}

	reader := rowReader{log: log}
	defer reader.close()

	for _, t := range last {
		rows, unknown, err := reader.read(ctx, t.Index)
		if err != nil {
			return nil, err
		}

		t.tell(rows, unknown)
		if len(t.Changes) > 0 || t.Unknown != "" {
			told.List = append(told.List, t)
		}
	}

	told.bound()
	return told, nil
}

// bound leaves the newest transactions, as many as there is room for.
func (told *Transactions) bound() {
	size := 0
	for i, t := range slices.Backward(told.List) {
		for _, line := range t.Changes {
			size += len(line)
		}

		if size > maxLastText || len(told.List)-i > maxLastEntries {
			told.From = t.Index + 1
			told.List = slices.Delete(told.List, 0, i+1)
			return
		}
	}
}

// TransactionsAfter tells the last transactions of this member's log, but for those up to an index. It changes nothing, and LXD may run: what it writes from
// then on is not told.
func TransactionsAfter(ctx context.Context, lxdDir string, after uint64, progress Progress) (*Transactions, error) {
	dir, err := openDirectory(lxdDir)
	if err != nil {
		return nil, err
	}

	var told *Transactions
	err = readSource(ctx, dir.path, progress, func(_ *Source, log *raftlog.Log) error {
		from := max(after, raftOf(log).SnapshotIndex) + 1
		var last []InspectTransaction
		for entry, err := range log.Entries(ctx, max(log.FirstIndex, from)) {
			if err != nil {
				return err
			}

			if changesRows(entry) && entry.Index <= log.SoundIndex {
				last = append(last, InspectTransaction{Index: entry.Index, Term: entry.Term})
			}
		}

		told, err = tellLast(ctx, log, last, from)
		return err
	})

	return told, err
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
