// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"path/filepath"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/scratch"
)

// Steps tells, entry by entry, which rows a log changes. Two scratch files hold the database before and after an entry; what
// an entry costs depends on the pages it wrote, see stepDiff.
type Steps struct {
	log           *raftlog.Log
	remove        func() // of the directory with the scratch files
	before, after *replayer
	diff          *stepDiff // nil before the first entry that was asked about

	next func() (raftlog.Entry, error, bool)
	stop func()
	held *raftlog.Entry // taken from next and not yet replayed
}

// OpenSteps begins at the oldest index from which from can be reached; from is the first entry that will be asked about. Close
// removes the scratch files.
func OpenSteps(ctx context.Context, log *raftlog.Log, from uint64) (*Steps, error) {
	dir, remove, err := scratch.Dir("rows")
	if err != nil {
		return nil, err
	}

	s := &Steps{log: log, remove: remove, stop: func() {}}
	s.before, err = newReplayer(log, filepath.Join(dir, "before"))
	if err == nil {
		s.after, err = newReplayer(log, filepath.Join(dir, "after"))
	}

	if err == nil && from > 0 {
		err = s.before.begin(ctx, from-1)
	}

	if err != nil {
		s.Close()
		return nil, err
	}

	s.next, s.stop = iter.Pull2(log.Entries(ctx, s.before.next))
	return s, nil
}

// Close removes the scratch files.
func (s *Steps) Close() {
	s.stop()
	if s.diff != nil {
		_ = s.diff.Close()
	}

	for _, r := range []*replayer{s.before, s.after} {
		if r != nil {
			_ = r.close()
		}
	}

	s.remove()
}

// Rows returns the rows that the entry with this index changed, by table and key; none where it is no transaction. more tells
// that a table had more than 1000 of them. Ask with rising indexes.
func (s *Steps) Rows(ctx context.Context, index uint64) (rows []RowChange, more bool, err error) {
	for {
		entry, ok, err := s.take(index)
		if err != nil {
			return nil, false, fmt.Errorf("replay the raft log: %w", err)
		}

		if !ok {
			return nil, false, nil
		}

		if s.diff == nil && entry.Index == index {
			err = s.begin(ctx)
			if err != nil {
				return nil, false, err
			}
		}

		rows, more, err = s.step(ctx, entry)
		if err != nil || entry.Index == index {
			return rows, more, err
		}
	}
}

// take returns the next entry, unless it comes after index.
func (s *Steps) take(index uint64) (raftlog.Entry, bool, error) {
	if s.held == nil {
		entry, err, ok := s.next()
		if err != nil || !ok {
			return entry, false, err
		}

		s.held = &entry
	}

	if s.held.Index > index {
		return raftlog.Entry{}, false, nil
	}

	entry := *s.held
	s.held = nil
	return entry, true, nil
}

// begin makes the file after a copy of the one before.
func (s *Steps) begin(ctx context.Context) error {
	err := s.before.finishIfAny()
	if err != nil {
		return fmt.Errorf("replay the raft log: %w", err)
	}

	_, err = io.Copy(s.after.file, io.NewSectionReader(s.before.file, 0, 1<<62))
	if err != nil {
		return err
	}

	s.after.pages.words = append([]uint64{}, s.before.pages.words...)
	s.diff, err = newStepDiff(ctx, s.before.file, s.after.file)
	return err
}

// step replays an entry; before the first entry that was asked about, into the file before only.
func (s *Steps) step(ctx context.Context, entry raftlog.Entry) (rows []RowChange, more bool, err error) {
	if entry.Type != raftlog.CommandEntry {
		return nil, false, nil
	}

	fail := func(err error) ([]RowChange, bool, error) {
		return nil, false, fmt.Errorf("replay the raft log: %s: entry with index %d: %w", entry.File, entry.Index, err)
	}

	cmd, err := raftlog.ParseCommand(entry.Data)
	if err != nil {
		return fail(err)
	}

	if cmd.Kind != raftlog.Frames {
		return nil, false, nil
	}

	ok, err := s.before.takes(cmd.Database)
	if err != nil {
		return fail(fmt.Errorf("transaction on %w", err))
	}

	if !ok {
		return nil, false, nil
	}

	if s.diff != nil {
		err = s.after.command(entry)
		if err == nil {
			err = s.after.finishIfAny()
		}

		if err != nil {
			return fail(err)
		}

		written := make([]uint32, cmd.Len())
		for i := range written {
			number, _ := cmd.Page(i)
			written[i] = uint32(number)
		}

		rows, more, err = s.diff.step(ctx, written)
		if err != nil {
			return nil, false, fmt.Errorf("compare the rows before and after index %d: %w", entry.Index, err)
		}
	}

	err = s.before.command(entry)
	if err == nil && s.diff != nil {
		err = s.before.finishIfAny()
	}

	if err != nil {
		return fail(err)
	}

	return rows, more, nil
}

// finishIfAny is finish, but no error if the log has had no transaction yet.
func (r *replayer) finishIfAny() error {
	err := r.finish()
	if errors.Is(err, ErrNoDatabase) {
		return nil
	}

	return err
}

// OpenStepsAfter begins with the database as it is at an index; the entries that follow are given to Apply one by one.
func OpenStepsAfter(ctx context.Context, log *raftlog.Log, upTo uint64) (*Steps, error) {
	s, err := OpenSteps(ctx, log, upTo+1)
	if err != nil {
		return nil, err
	}

	err = s.before.replay(ctx, upTo)
	if err == nil || errors.Is(err, ErrNoDatabase) {
		err = s.begin(ctx)
	}

	if err != nil {
		s.Close()
		return nil, fmt.Errorf("replay the raft log: %w", err)
	}

	return s, nil
}

// Apply replays an entry that is not one of the log, and returns the rows that it changed as [Steps.Rows] does.
func (s *Steps) Apply(ctx context.Context, entry raftlog.Entry) (rows []RowChange, more bool, err error) {
	return s.step(ctx, entry)
}
