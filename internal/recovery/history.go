// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"fmt"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// HistoryOptions say what of a raft log to list.
type HistoryOptions struct {
	Source   string
	Reading  string // digest of the reading to take where there are several
	From, To uint64 // indexes; 0: the first and the last that there are
	Last     uint64 // only so many of them, the newest; 0: all
	Rows     bool   // work out which rows each transaction changed
	Database string // one of several: the entries of the others are not listed

	Progress Progress
}

// History is what ReadHistory says of the source itself.
type History struct {
	RunningDaemon string       // the daemon that runs on the source, empty where none does
	Signature     Signature    // of a recovery tarball
	Damage        *DamageError // of the source, nil where it is sound; what is listed is sound all the same
}

// HistoryEntry is one entry of a raft log.
type HistoryEntry struct {
	Index uint64 `json:"index" yaml:"index"`
	Term  uint64 `json:"term" yaml:"term"`
	Kind  string `json:"kind" yaml:"kind"` // transaction, open, checkpoint, undo, barrier, configuration
	Size  int64  `json:"size" yaml:"size"` // of the payload, bytes
	File  string `json:"file" yaml:"file"` // segment that holds it

	// Written is when the segment was last written to, which is not before the entry was. Nil in a tarball, which does not
	// keep it.
	Written *time.Time `json:"written,omitempty" yaml:"written,omitempty"`

	Database string         `json:"database,omitempty" yaml:"database,omitempty"` // of a log with several
	Pages    int            `json:"pages,omitempty" yaml:"pages,omitempty"`       // of the database that a transaction wrote
	Recovery bool           `json:"recovery,omitempty" yaml:"recovery,omitempty"` // a configuration that no leader wrote: an edited member list
	Members  []MemberChange `json:"members,omitempty" yaml:"members,omitempty"`   // that a configuration changed, against the one before

	Rows    []globaldb.RowChange `json:"rows,omitempty" yaml:"rows,omitempty"`       // that a transaction changed
	Unknown string               `json:"unknown,omitempty" yaml:"unknown,omitempty"` // why they are not, or not all, told
}

// ReadHistory hands over the entries of a source's log, the newest last. It changes nothing, and does not hold the rows of more
// than one entry in memory; but where LXD works on the source, all of them, as it may have to begin anew.
func ReadHistory(ctx context.Context, opts HistoryOptions, use func(HistoryEntry) error) (*History, error) {
	h := &History{}
	var held []HistoryEntry
	err := readSourceDatabase(ctx, opts.Source, opts.Database, opts.Progress, func(src *Source, log *raftlog.Log) error {
		err := readAs(src.Path, log, opts.Reading)
		if err != nil {
			return err
		}

		h.Signature, err = src.signature("")
		if err != nil {
			return err
		}

		held, h.RunningDaemon, h.Damage = nil, src.daemon, damageOf(src, log)
		first, last, err := opts.bounds(src, log)
		if err != nil || first > last {
			return err
		}

		databases, err := opts.databases(ctx, src, log)
		if err != nil {
			return err
		}

		names, err := src.names(ctx, log)
		if err != nil {
			return err
		}

		entries, err := listEntries(ctx, log, names, first, last)
		if err != nil {
			return err
		}

		use := use
		if src.daemon != "" {
			use = func(e HistoryEntry) error {
				held = append(held, e)
				return nil
			}
		}

		r := rowReader{log: log}
		defer r.close()

		for _, e := range entries {
			if src.database != "" && e.Database != "" && e.Database != src.database {
				continue
			}

			if len(databases) < 2 {
				e.Database = ""
			}

			if !src.inPlace() {
				e.Written = nil
			}

			if opts.Rows && e.Pages > 0 {
				e.Rows, e.Unknown, err = r.read(ctx, e.Index)
				if err != nil {
					return err
				}
			}

			err = use(e)
			if err != nil {
				return err
			}
		}

		return nil
	})
	if err != nil {
		return nil, err
	}

	for _, e := range held {
		err = use(e)
		if err != nil {
			return nil, err
		}
	}

	return h, nil
}

// databases are the names of the databases in a source's log. Rows are told of one of them.
func (o HistoryOptions) databases(ctx context.Context, src *Source, log *raftlog.Log) ([]string, error) {
	if o.Rows {
		err := src.oneDatabase(ctx, log)
		if err != nil {
			return nil, err
		}
	}

	return src.databases(ctx, log)
}

// bounds are the first and the last index to list.
func (o HistoryOptions) bounds(src *Source, log *raftlog.Log) (first uint64, last uint64, err error) {
	switch {
	case log.SoundIndex == 0 && log.LastIndex > 0:
		return 0, 0, &DamageError{What: src.Path, Problems: log.Problems, Advice: "Nothing in its log is sound."}
	case log.FirstIndex == 0 && log.LastIndex > 0:
		return 0, 0, fmt.Errorf("%s has no entries, only a snapshot at index %d", src.Path, log.LastIndex)
	case log.FirstIndex == 0:
		return 1, 0, nil // a member that joined a moment ago
	case o.From > log.SoundIndex:
		return 0, 0, fmt.Errorf("%s ends at index %d: there is no index %d", src.Path, log.SoundIndex, o.From)
	case o.To > 0 && o.To < log.FirstIndex:
		return 0, 0, fmt.Errorf("%s begins at index %d: there is no index %d any more", src.Path, log.FirstIndex, o.To)
	}

	first, last = max(o.From, log.FirstIndex), log.SoundIndex
	if o.To > 0 {
		last = min(o.To, last)
	}

	if o.Last > 0 && last >= first && last-first >= o.Last {
		first = last - o.Last + 1
	}

	return first, last, nil
}

// listEntries reads the entries but for the rows. Those before the first one are read as well, as they tell what a
// configuration changed.
func listEntries(ctx context.Context, log *raftlog.Log, names member.List, first uint64, last uint64) ([]HistoryEntry, error) {
	entries := []HistoryEntry{}
	written := map[string]*time.Time{}
	for _, f := range log.Files {
		at := f.ModTime.UTC()
		written[f.Name] = &at
	}

	var servers raftlog.Configuration // in force, nil while that is not known
	if s := log.Snapshot(); s != nil && s.ConfigurationIndex < log.FirstIndex {
		servers = s.Configuration
	}

	known := servers != nil || log.FirstIndex == 1
	term := uint64(0)
	for entry, err := range log.Entries(ctx, log.FirstIndex) {
		if err != nil {
			return nil, err
		}

		if entry.Index > last {
			break
		}

		e := HistoryEntry{Index: entry.Index, Term: entry.Term, Kind: entry.Type.String(), Size: int64(len(entry.Data)), File: entry.File,
			Written: written[entry.File]}
		switch entry.Type {
		case raftlog.ChangeEntry:
			e.Kind = "configuration"
			e.Recovery = term > 0 && entry.Term != term || log.Edited && entry.Index == log.LastIndex
			now, err := raftlog.ParseConfiguration(entry.Data)
			if err != nil {
				return nil, fmt.Errorf("%s: entry with index %d: %w", entry.File, entry.Index, err)
			}

			e.Members = serverChanges(servers, now, names)
			if !known {
				e.Unknown = "the one before is not in the log any more: all members are listed"
			}

			servers, known = now, true
		case raftlog.CommandEntry:
			cmd, err := raftlog.ParseCommand(entry.Data)
			if err != nil {
				return nil, fmt.Errorf("%s: entry with index %d: %w", entry.File, entry.Index, err)
			}

			e.Kind, e.Database = cmd.Kind.String(), cmd.Database
			if cmd.Kind == raftlog.Frames {
				e.Kind, e.Pages = "transaction", cmd.Len()
			}
		}

		term = entry.Term
		if entry.Index >= first {
			entries = append(entries, e)
		}
	}

	return entries, nil
}
