// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"context"
	"fmt"
	"iter"
)

// Entries returns the entries of the log from index from on, read again from the files; memory is bounded by one batch. Entries that
// only a snapshot has are left out, see [Log.Holes]. An error ends the iteration: of the file system, of the context, or because a file
// is no longer what it was when the log was opened.
func (l *Log) Entries(ctx context.Context, from uint64) iter.Seq2[Entry, error] {
	return l.entriesOf(ctx, l.placed, from)
}

// LibdqliteEntries returns the entries that libdqlite would hold, see [Log.Libdqlite], with the indexes that it would give them.
func (l *Log) LibdqliteEntries(ctx context.Context, from uint64) iter.Seq2[Entry, error] {
	return l.entriesOf(ctx, l.Libdqlite.placed, from)
}

func (l *Log) entriesOf(ctx context.Context, log span, from uint64) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		d := &directory{ctx: ctx, fsys: l.fsys}
		for _, p := range log {
			if p.last() < from {
				continue
			}

			ok, err := d.entries(p, from, yield)
			if err != nil {
				yield(Entry{}, fmt.Errorf("read %s: %w", p.segment.File, err))
				return
			}

			if !ok {
				return
			}
		}
	}
}

// entries yields the entries of one run; ok is false when the caller has had enough.
func (d *directory) entries(p placed, from uint64, yield func(Entry, error) bool) (ok bool, err error) {
	file, size, err := d.openAt(p.segment.File, p.part.Offset)
	if err != nil {
		return false, err
	}

	defer file.Close()
	br := d.newBatchReader(file, p.part.Offset, min(size, p.part.End))
	for ordinal := uint64(0); ordinal < p.skip+p.count; {
		b, err := br.next()
		if err != nil {
			return false, fmt.Errorf("changed since it was verified: %w", err)
		}

		at := b.end - int64(len(b.data))
		rest := b.data
		for i := range b.n {
			term, typ, size := b.entryHeader(i)
			e := Entry{Index: p.first + ordinal - p.skip, Term: term, Type: typ, Data: rest[:size:size], File: p.segment.File, Offset: at}
			rest, at = rest[size:], at+int64(size)
			if ordinal >= p.skip && ordinal < p.skip+p.count && e.Index >= from && !yield(e, nil) {
				return false, nil
			}

			ordinal++
		}
	}

	return true, nil
}
