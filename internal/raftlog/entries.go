// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"context"
	"fmt"
	"iter"
)

// Entries returns the entries of the effective log from index from on, read again from the files; memory is bounded by one batch. An
// error ends the iteration: of the file system, of the context, or because a file is no longer what it was when the log was opened.
func (l *Log) Entries(ctx context.Context, from uint64) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		d := &directory{ctx: ctx, fsys: l.fsys}
		for _, p := range l.placed {
			if p.first+p.count <= from {
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
	file, size, err := d.openAt(p.segment.File, segmentHeader)
	if err != nil {
		return false, err
	}

	defer file.Close()
	br := d.newBatchReader(file, segmentHeader, min(size, p.segment.End))
	index, end := p.first, p.first+p.count
	for index < end {
		b, err := br.next()
		if err != nil {
			return false, fmt.Errorf("changed since it was verified: %w", err)
		}

		at := b.end - int64(len(b.data))
		rest := b.data
		for i := range b.n {
			term, typ, size := b.entryHeader(i)
			e := Entry{Index: index, Term: term, Type: typ, Data: rest[:size:size], File: p.segment.File, Offset: at}
			rest, at = rest[size:], at+int64(size)
			if index >= from && index < end && !yield(e, nil) {
				return false, nil
			}

			index++
		}
	}

	return true, nil
}
