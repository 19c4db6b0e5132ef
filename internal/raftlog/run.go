// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

// Run is a stretch of the effective log that lies in one file.
type Run struct {
	File        string
	First, Last uint64 // indexes
	MaxTerm     uint64 // none of its entries has a higher one

	// Size is the number of bytes from the beginning of the file that hold the run and nothing else, so that they are a sound closed
	// segment by themselves; 0 when the file holds more sound entries than the run.
	Size int64

	// SHA256 is that of these bytes, see [Segment].
	SHA256 string
}

// Runs returns the effective log as stretches of files, in order.
func (l *Log) Runs() []Run {
	runs := make([]Run, len(l.placed))
	for i, p := range l.placed {
		runs[i] = Run{File: p.segment.File, First: p.first, Last: p.first + p.count - 1, MaxTerm: p.segment.MaxTerm}
		if p.count == p.segment.Entries {
			runs[i].Size, runs[i].SHA256 = p.segment.End, p.segment.SHA256
		}
	}

	return runs
}
