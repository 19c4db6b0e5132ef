// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

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

// Discarded is an entry of this member's log that the tarball lacks: what it did is lost with the import.
type Discarded struct {
	Index uint64               `json:"index" yaml:"index"`
	Term  uint64               `json:"term" yaml:"term"`
	Rows  []globaldb.RowChange `json:"rows" yaml:"rows"` // that it changed

	// Unknown says why rows were not worked out; empty where all were.
	Unknown string `json:"unknown,omitempty" yaml:"unknown,omitempty"`
}

// changesRows tells whether an entry is a transaction.
func changesRows(entry raftlog.Entry) bool {
	if entry.Type != raftlog.CommandEntry {
		return false
	}

	cmd, err := raftlog.ParseCommand(entry.Data)
	return err != nil || cmd.Kind == raftlog.Frames
}

// describeRows works out what each entry did to the rows.
func describeRows(ctx context.Context, log *raftlog.Log, found []Discarded) error {
	snapshot := uint64(0)
	if s := log.Snapshot(); s != nil {
		snapshot = s.Index
	}

	var steps *globaldb.Steps
	for i := range found {
		d := &found[i]
		if d.Index <= snapshot {
			d.Unknown = "they are in the snapshot already"
			continue
		}

		if steps == nil {
			var err error
			steps, err = globaldb.OpenSteps(ctx, log, d.Index)
			if err != nil {
				return err
			}

			defer steps.Close()
		}

		rows, more, err := steps.Rows(ctx, d.Index)
		if err != nil {
			return err
		}

		d.Rows = append(d.Rows, rows...)
		if more {
			d.Unknown = moreRows
		}
	}

	return nil
}

// moreRows is said of a transaction that changed more rows than are told.
const moreRows = "only the first 1000 of each table"

// listDiscarded lists discarded entries for a message, one a line.
func listDiscarded(all []Discarded) string {
	var text strings.Builder
	for _, d := range all {
		text.WriteString("\n  " + d.String())
	}

	return text.String() + "\n"
}

// String is the entry and its rows, for people.
func (d Discarded) String() string {
	text := fmt.Sprintf("index %d, term %d", d.Index, d.Term)
	if d.Unknown != "" {
		text += " (not all rows worked out: " + d.Unknown + ")"
	}

	for _, row := range d.Rows {
		text += "\n    " + row.String()
	}

	return text
}
