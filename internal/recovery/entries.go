// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"iter"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// checksum sums an entry's payload. A configuration is decoded and encoded again first: dqlite pads it with uninitialised
// memory, which differs from member to member.
func checksum(entry raftlog.Entry) string {
	data := entry.Data
	if entry.Type == raftlog.ChangeEntry {
		servers, err := raftlog.ParseConfiguration(data)
		if err == nil {
			data = raftlog.EncodeConfiguration(servers)
		}
	}

	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:16])
}

// differentEntry compares a log with a copy of its end: from the copy's first entry on, up to an index. It returns the index of the first
// entry that is not the same in both, 0 where there is none.
func differentEntry(ctx context.Context, log *raftlog.Log, made *raftlog.Log, last uint64) (uint64, error) {
	next, stop := iter.Pull2(made.Entries(ctx, max(made.FirstIndex, 1)))
	defer stop()

	for before, err := range log.Entries(ctx, max(made.FirstIndex, 1)) {
		if err != nil {
			return 0, err
		}

		if before.Index > last {
			break
		}

		after, err, ok := next()
		if err != nil {
			return 0, err
		}

		if !ok || before.Index != after.Index || before.Term != after.Term || before.Type != after.Type || checksum(before) != checksum(after) {
			return before.Index, nil
		}
	}

	return 0, nil
}

// Discarded is an entry of this member's log that the tarball lacks: what it did is lost with the import.
type Discarded struct {
	Index uint64               `json:"index" yaml:"index"` // 0 if it is not known
	Term  uint64               `json:"term" yaml:"term"`
	Rows  []globaldb.RowChange `json:"rows" yaml:"rows"` // that it changed

	// Unknown says why rows were not worked out; empty where all were.
	Unknown string `json:"unknown,omitempty" yaml:"unknown,omitempty"`

	// AfterMissing is true if entries before it are missing: what those changed may be among its rows.
	AfterMissing bool `json:"after_missing,omitempty" yaml:"after_missing,omitempty"`

	// File is the segment of an entry that is in none of the log's places; empty for one of the log.
	File string `json:"file,omitempty" yaml:"file,omitempty"`

	checksum string // of the payload, where File is set
}

// changesRows tells whether an entry is a transaction.
func changesRows(entry raftlog.Entry) bool {
	if entry.Type != raftlog.CommandEntry {
		return false
	}

	cmd, err := raftlog.ParseCommand(entry.Data)
	return err != nil || cmd.Kind == raftlog.Frames
}

// isTransaction tells whether an entry is known to be a whole transaction of LXD's one database.
func isTransaction(entry raftlog.Entry) bool { return isTransactionOn(entry, globaldb.Name) }

// isTransactionOn is isTransaction for another database.
func isTransactionOn(entry raftlog.Entry, database string) bool {
	if entry.Type != raftlog.CommandEntry {
		return false
	}

	cmd, err := raftlog.ParseCommand(entry.Data)
	return err == nil && cmd.Kind == raftlog.Frames && cmd.IsCommit && cmd.Database == database
}

// describeRows works out what each entry of a log did to the rows. They are in the order of the log.
func describeRows(ctx context.Context, log *raftlog.Log, found []Discarded) error {
	r := rowReader{log: log}
	defer r.close()

	for i := range found {
		d := &found[i]
		rows, unknown, err := r.read(ctx, d.Index)
		if err != nil {
			return err
		}

		d.Rows, d.Unknown = append(d.Rows, rows...), unknown
	}

	return nil
}

// rowReader works out what the transactions of a log did to the rows. It is asked with rising indexes.
type rowReader struct {
	log   *raftlog.Log
	steps *globaldb.Steps
	next  uint64 // first index that steps has not replayed
}

// read returns the rows that an entry changed; unknown says why they are not, or not all, told.
func (r *rowReader) read(ctx context.Context, index uint64) (rows []globaldb.RowChange, unknown string, err error) {
	if r.steps == nil || !r.log.Has(r.next, index) {
		unknown, err = r.begin(ctx, index)
		if unknown != "" || err != nil {
			return nil, unknown, err
		}
	}

	rows, more, err := r.steps.Rows(ctx, index)
	r.next = index + 1
	if more {
		unknown = moreRows
	}

	return rows, unknown, err
}

// begin replays the log up to the entry before one.
func (r *rowReader) begin(ctx context.Context, index uint64) (unknown string, err error) {
	_, err = globaldb.Base(ctx, r.log, index-1)
	if err != nil && (ctx.Err() != nil || machineFault(err)) {
		return "", err
	}

	oldest := globaldb.Oldest(r.log)
	switch {
	case err != nil && index <= oldest:
		return fmt.Sprintf("the rows are in the snapshot at index %d already", oldest), nil
	case err != nil:
		return "entries before it are missing", nil
	}

	r.close()
	r.steps, err = globaldb.OpenSteps(ctx, r.log, index)
	return "", err
}

func (r *rowReader) close() {
	if r.steps != nil {
		r.steps.Close()
		r.steps = nil
	}
}

// moreRows is said of a transaction that changed more rows than are told.
const moreRows = "only the first 1000 of each table"
