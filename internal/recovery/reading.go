// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"fmt"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// InspectReading is one of several logs that the files of a directory can be read as.
type InspectReading struct {
	Digest   string   `json:"digest" yaml:"digest"`
	LastTerm uint64   `json:"last_term" yaml:"last_term"`
	Last     uint64   `json:"last_index" yaml:"last_index"`
	For      []string `json:"for" yaml:"for"`         // what speaks for it
	Against  []string `json:"against" yaml:"against"` // what speaks against it

	// Excluded is true if it cannot be, by what speaks against it.
	Excluded bool `json:"excluded" yaml:"excluded"`
}

func readingsOf(log *raftlog.Log) []InspectReading {
	list := []InspectReading{}
	if len(log.Readings) < 2 {
		return list
	}

	for _, r := range log.Readings {
		list = append(list, InspectReading{Digest: r.Digest, LastTerm: r.LastTerm, Last: r.Last, For: append([]string{}, r.For...),
			Against: append([]string{}, r.Against...), Excluded: r.Excluded})
	}

	return list
}

// readAs takes the reading of a log that was asked for. Without one, a log that can be read in several ways is refused.
func readAs(what string, log *raftlog.Log, reading string) error {
	if reading != "" {
		err := log.Choose(reading)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}

		return nil
	}

	if !log.Undecided() {
		return nil
	}

	var text strings.Builder
	fmt.Fprintf(&text, "the files in %s can be read as %d different logs, which are the same up to index %d:\n", what, len(log.Readings), log.LastIndex)
	for _, r := range log.Readings {
		fmt.Fprintf(&text, "  %s: %s\n", r.Digest, r)
	}

	text.WriteString("docs/raft-directory.md tells how a reading is judged. ")
	return &Refusal{Code: "several-readings", Reason: text.String(), Flag: "--reading DIGEST"}
}

// leftOut are the transactions that lie in the files of a log and are not in it, with their rows as far as they can be told, and, as
// text, what cannot be told.
func leftOut(ctx context.Context, log *raftlog.Log) (found []Discarded, untold []string, err error) {
	untold = []string{}
	reader := leftOutReader{log: log}
	defer reader.close()

	for _, o := range log.LeftOut {
		if !o.Sound {
			untold = append(untold, o.String())
			continue
		}

		list, err := reader.read(ctx, o)
		if err != nil {
			return nil, nil, err
		}

		found = append(found, list...)
	}

	return found, untold, nil
}

// leftOutReader tells the rows of what is left out. Entries that come after missing ones are tried on the end of the log, one after the
// other: what the missing ones changed may be among the rows.
type leftOutReader struct {
	log    *raftlog.Log
	steps  *globaldb.Steps // after the end of the log
	failed string          // why no more can be told
}

func (r *leftOutReader) close() {
	if r.steps != nil {
		r.steps.Close()
	}
}

func (r *leftOutReader) read(ctx context.Context, o raftlog.LeftOut) ([]Discarded, error) {
	replaced := o.Reason == raftlog.ReasonReplaced
	steps := r.steps
	var err error
	switch {
	case r.log.SoundIndex == 0:
		r.failed = "there is no database that they could be applied to"
	case replaced:
		steps, err = globaldb.OpenStepsAfter(ctx, r.log, o.First-1)
		if err == nil {
			defer steps.Close()
		}

	case steps == nil && r.failed == "":
		steps, err = globaldb.OpenStepsAfter(ctx, r.log, r.log.SoundIndex)
		r.steps = steps
	}

	if err != nil {
		if ctx.Err() != nil || machineFault(err) {
			return nil, err
		}

		r.failed = err.Error()
	}

	found := []Discarded{}
	for entry, err := range r.log.LeftOutEntries(ctx, o) {
		if err != nil {
			return nil, err
		}

		if !changesRows(entry) {
			continue
		}

		d := Discarded{Term: entry.Term, File: o.File, Rows: []globaldb.RowChange{}, checksum: checksum(entry)}
		if o.First > 0 {
			d.Index = entry.Index
		}

		if r.failed != "" {
			d.Unknown = r.failed
			found = append(found, d)
			continue
		}

		rows, more, err := steps.Apply(ctx, entry)
		switch {
		case ctx.Err() != nil || err != nil && machineFault(err):
			return nil, err
		case err != nil:
			r.failed = "they do not fit the database before them: " + err.Error()
			d.Unknown = r.failed
		case more:
			d.Unknown = moreRows
		}

		d.AfterMissing = !replaced && d.Unknown == ""

		d.Rows = append(d.Rows, rows...)
		found = append(found, d)
	}

	return found, nil
}

// without takes those out that another log has, too, wherever it has them.
func without(ctx context.Context, found []Discarded, log *raftlog.Log) ([]Discarded, error) {
	if len(found) == 0 {
		return found, nil
	}

	has := map[string]bool{}
	for entry, err := range log.Entries(ctx, 0) {
		if err != nil {
			return nil, err
		}

		if entry.Type == raftlog.CommandEntry {
			has[checksum(entry)] = true
		}
	}

	var left []Discarded
	for _, d := range found {
		if !has[d.checksum] {
			left = append(left, d)
		}
	}

	return left, nil
}
