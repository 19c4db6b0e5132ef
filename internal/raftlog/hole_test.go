// SPDX-License-Identifier: AGPL-3.0-only

package raftlog_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// hole is a directory of which closed segments are gone, whose newest snapshot is damaged, and whose last closed segment may be damaged.
type hole struct {
	open      string                        // what the open segment is called; in truth it goes on after all closed ones
	snapshot  bool                          // the older snapshot is there
	between   bool                          // there are undamaged segments between the hole and the last one
	last      string                        // what has become of the last one
	lastBytes func(p []byte, at int) []byte // does that; at is where one of its batches begins. nil: it is gone
	batch     int                           // which one
}

// The bounds of a server's last closed segments, lived once more: the first of them is gone.
const (
	holeLog  = raftlogtest.Standalone502
	holeFrom = 2049 // right after the older snapshot
	holeEnd  = 3072 // of the last one
)

func (h hole) String() string {
	return fmt.Sprintf("%s, snapshot %v, segments between %v, the last one %s", h.open, h.snapshot, h.between, h.last)
}

// directory is the directory with the hole.
func (h hole) directory(t *testing.T) *raftlogtest.Directory {
	t.Helper()
	d := raftlogtest.HistoryOf(t, holeLog).Real()
	for _, name := range d.Names() {
		newest := strings.HasPrefix(name, fmt.Sprintf("snapshot-1-%d-", holeEnd)) && !strings.HasSuffix(name, ".meta")
		if newest || !h.snapshot && strings.HasPrefix(name, "snapshot-") {
			d.Remove(name)
		}
	}

	d.Remove(raftlog.SegmentName(1025, 1704), raftlog.SegmentName(1705, 2048), raftlog.SegmentName(holeFrom, 2433), raftlog.SegmentName(2434, holeEnd))
	d.PutSegment(1025, 1700, 676) // closed by a stop, so that the next one is the first of a run
	d.PutSegment(1701, 2048, 348) // which a snapshot has closed: open-2 would fit
	if h.between {
		for _, b := range [][2]uint64{{2137, 2304}, {2305, 2439}} {
			d.PutSegment(b[0], b[1], int(b[1]-b[0]+1))
		}
	}

	if h.lastBytes != nil {
		const first = 2440
		d.PutSegment(first, holeEnd, holeEnd-first+1)
		name := raftlog.SegmentName(first, holeEnd)
		at, _, _ := d.Batch(name, h.batch)
		d.Edit(name, func(p []byte) []byte { return h.lastBytes(p, at) })
	}

	if h.open != "open-2" {
		d.Rename("open-2", h.open)
	}

	return d
}

// holes are all that are tried.
func holes() []hole {
	lasts := []hole{
		{last: "undamaged", lastBytes: func(p []byte, _ int) []byte { return p }},
		{last: "all zero", lastBytes: func(p []byte, _ int) []byte { return make([]byte, len(p)) }},
		{last: "empty", lastBytes: func([]byte, int) []byte { return nil }},
		{last: "cut in the middle", lastBytes: func(p []byte, _ int) []byte { return p[:len(p)/2] }},
	}
	for _, batch := range []int{0, 300, -1} {
		for what, offset := range map[string]int{"header": 0, "data checksum": 4, "count": 8} {
			lasts = append(lasts, hole{last: fmt.Sprintf("with a damaged %s in batch %d", what, batch), batch: batch,
				lastBytes: func(p []byte, at int) []byte { return flipBit(at + offset)(p) }})
		}
	}

	var list []hole
	for _, h := range lasts {
		for _, h.open = range []string{"open-1", "open-2"} {
			for _, h.snapshot = range []bool{true, false} {
				for _, h.between = range []bool{true, false} {
					list = append(list, h)
				}
			}
		}
	}

	return list
}

// Where closed segments come after a hole, however damaged, an open segment does not continue what is before it: the log ends there, and
// the open one is left out.
func TestOpenAfterHole(t *testing.T) {
	for _, h := range holes() {
		t.Run(h.String(), func(t *testing.T) {
			t.Parallel()
			d := h.directory(t)
			log := open(t, d.FS())
			if log.LastIndex != holeFrom-1 || log.SoundIndex != holeFrom-1 || log.Undecided() || log.Healthy() {
				t.Errorf("a log up to index %d (%d), undecided: %v, healthy: %v; want %d: %v", log.LastIndex, log.SoundIndex, log.Undecided(),
					log.Healthy(), holeFrom-1, log.Readings)
			}

			sameEntries(t, log, d.History)
			leavesOut(t, log, h.open)
		})
	}
}

// leavesOut sees that all entries of a file are said to be left out.
func leavesOut(t *testing.T, log *raftlog.Log, file string) {
	t.Helper()
	n := uint64(0)
	for _, o := range log.LeftOut {
		if o.File == file {
			n += o.Entries
		}
	}

	if want := lastOf[holeLog] - holeEnd; n != want {
		t.Errorf("%d entries of %s are left out, want %d: %v", n, file, want, log.LeftOut)
	}
}

// A copy with another number of entries than its name says, however near, is no part of the log.
func TestStrayNear(t *testing.T) {
	for _, name := range raftlogtest.HistoryNames() {
		for _, from := range raftlogtest.HistoryOf(t, name).Real().Closed() {
			for _, count := range []uint64{3, 2000} {
				t.Run(fmt.Sprintf("%s, %s as %d entries", name, from, count), func(t *testing.T) {
					t.Parallel()
					first := lastOf[name] + 100
					holds(t, name, lastOf[name], func(d *raftlogtest.Directory) { d.Copy(from, raftlog.SegmentName(first, first+count-1)) })
				})
			}
		}
	}
}

// asks sees that a directory can be read in several ways, that one of them is the log up to an index, and that all have that.
func asks(t *testing.T, d *raftlogtest.Directory, last uint64) {
	t.Helper()
	log := open(t, d.FS())
	if !log.Undecided() || log.LastIndex != last || log.Healthy() {
		t.Errorf("undecided: %v, healthy: %v, a log up to index %d, want %d: %v", log.Undecided(), log.Healthy(), log.LastIndex, last, log.Readings)
	}

	sameEntries(t, log, d.History)
	for _, r := range log.Readings {
		if r.Last == last && !r.Excluded {
			return
		}
	}

	t.Errorf("none of %v ends at index %d", log.Readings, last)
}

// The last closed segment is gone, too: what the counter fits is not where the open one belongs, and something tells.
func TestOpenAfterHoleInDoubt(t *testing.T) {
	for _, open := range []string{"open-1", "open-2"} {
		t.Run(open+", segments after the hole", func(t *testing.T) {
			t.Parallel()
			d := hole{open: open, snapshot: true, between: true}.directory(t)
			if open == "open-2" {
				asks(t, d, holeFrom-1)
			} else if log := openLogOf(t, d); log.LastIndex != holeFrom-1 || log.Undecided() {
				t.Errorf("a log up to index %d, undecided: %v", log.LastIndex, log.Undecided())
			}
		})
		t.Run(open+", only a part of the newest snapshot", func(t *testing.T) {
			t.Parallel()
			asks(t, hole{open: open, snapshot: true}.directory(t), holeFrom-1)
		})
		t.Run(open+", a segment far after the hole", func(t *testing.T) {
			t.Parallel()
			d := hole{open: open}.directory(t)
			for _, name := range d.Closed() {
				if name > raftlog.SegmentName(635, 0) {
					d.Remove(name)
				}
			}

			d.PutSegment(2921, holeEnd, holeEnd-2920)
			d.Edit(raftlog.SegmentName(2921, holeEnd), func(p []byte) []byte { return flipBit(len(p) / 2)(p) })
			asks(t, d, 634)
		})
	}
}

func openLogOf(t *testing.T, d *raftlogtest.Directory) *raftlog.Log {
	t.Helper()
	return open(t, d.FS())
}
