// SPDX-License-Identifier: AGPL-3.0-only

package raftlogtest

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Live is a history lived once more, in another way: cut into other batches and segments, with snapshots, stops, kills and elections at
// other places, up to a random index. The files are those that libdqlite would have left:
//
//   - it closes a segment when the next batch does not fit into its 8 MiB, when it takes a snapshot, and when the daemon stops; the loader
//     closes the open ones when it starts after a kill
//   - open segments are counted from 1 in every run of the daemon, and each closed one has used a number up
//   - two snapshots are kept, and closed segments as far as a number of entries before the newest one
//   - two spare open segments of zeros follow the one in use
func (h *History) Live(rnd *rand.Rand) *Directory { return h.live(rnd, false) }

// LiveWithCuts is Live of a member of a cluster that new leaders have cut the log of: what it had written of another leader's, and they have not.
func (h *History) LiveWithCuts(rnd *rand.Rand) *Directory { return h.live(rnd, true) }

func (h *History) live(rnd *rand.Rand, cuts bool) *Directory {
	last := 150 + rnd.Uint64N(h.Last()-149)
	l := &life{
		rnd:       rnd,
		d:         &Directory{History: h, Last: last, files: map[string]*file{}},
		threshold: []uint64{512, 1024}[rnd.IntN(2)],
		restart:   1 / []float64{200, 600, 2000}[rnd.IntN(3)],
		follower:  rnd.IntN(2) == 0,
	}
	l.trailing = []uint64{l.threshold, 2 * l.threshold, 8192}[rnd.IntN(3)]
	if h.clustered() && rnd.IntN(2) == 0 {
		l.elected = l.elections(last)
		l.d.History = h.withTerms(l.elected)
	}

	if cuts {
		l.elected = append(l.elected, 100+rnd.Uint64N(last-99), last-rnd.Uint64N(min(last, 20)))
		l.d.History = h.withTerms(l.elected)
	}

	l.begin()
	if rnd.IntN(2) == 0 { // the member has bootstrapped; otherwise it has joined
		l.batch(1)
		l.close()
		l.begin()
	}

	for l.next() <= last {
		size := l.batchSize(last)
		if cuts {
			size = l.upToElection(size)
		}

		l.batch(size)
		l.takeSnapshot()

		if rnd.Float64() < l.restart {
			l.close()
			l.begin()
		}
	}

	l.end()
	return l.d
}

// clustered says whether there were ever other members.
func (h *History) clustered() bool {
	_, c := h.Configuration(h.Last())
	return len(c) > 1
}

// life is a member at work.
type life struct {
	rnd *rand.Rand
	d   *Directory

	threshold, trailing uint64  // entries from one snapshot to the next; before a snapshot that are kept
	restart             float64 // probability of one after a batch
	follower            bool    // gets several entries in a batch now and then

	open      segmentWriter // the segment in use
	written   uint64        // index of the last entry written
	snapshot  uint64        // index of the newest snapshot
	older     uint64        // and of the one before
	snapshots int           // that were taken
	full      bool          // whether the last closed segment was closed for being full

	elected []uint64 // indexes of the first entries of new terms
}

func (l *life) next() uint64 { return l.written + 1 }

// elections are the indexes of the first entries of new terms.
func (l *life) elections(last uint64) []uint64 {
	var list []uint64
	for range l.rnd.IntN(6) {
		list = append(list, 20+l.rnd.Uint64N(last-20))
	}

	return list
}

// batchSize is how many entries come next.
func (l *life) batchSize(last uint64) uint64 {
	n := uint64(1)
	if l.follower && l.rnd.IntN(10) == 0 {
		n += l.rnd.Uint64N(8)
	}

	if l.follower && l.rnd.IntN(200) == 0 {
		n += l.rnd.Uint64N(60) // it has caught up
	}

	return min(n, last-l.written)
}

// upToElection is how many of the next entries come before one of a new term. If that is the very next one, what the member had written in its place is cut
// away first, half of the times.
func (l *life) upToElection(n uint64) uint64 {
	for _, first := range l.elected {
		switch {
		case first == l.next():
			if l.rnd.IntN(2) == 0 { // the member was away, and comes back with what only it has
				l.close()
				l.begin()
			}

			if l.rnd.IntN(2) == 0 {
				l.cut()
			}

		case first > l.next():
			n = min(n, first-l.next())
		}
	}

	return n
}

// cut is what a new leader makes the member do that has written entries after the last one which that leader has, too: it closes the segment in use. If
// that has other entries, they stay, as one batch; else the segment is removed. Closed segments before it are not cut here.
func (l *life) cut() {
	if len(l.open.batches) == 0 {
		l.d.counter++
		l.d.cutAway++
		return
	}

	entries := l.d.History.Entries[l.open.first-1 : l.open.last]
	l.open = segmentWriter{}
	l.open.append(entries...)
	l.close()
}

// segmentSize is what an open segment has room for, bytes.
const segmentSize = 8 << 20

// batch writes the next entries.
func (l *life) batch(n uint64) {
	entries := l.d.History.Entries[l.written : l.written+n]
	size := 16
	for _, e := range entries {
		size += 16 + len(e.Data)
	}

	if len(l.open.data)+size > segmentSize && len(l.open.batches) > 0 {
		l.close()
		l.full = true
	}

	l.open.append(entries...)
	l.written += n
}

// close makes a closed segment of the one in use, if that has anything.
func (l *life) close() {
	if len(l.open.batches) == 0 {
		return
	}

	f := l.open.file(closedFile)
	name := raftlog.SegmentName(f.first, f.last)
	l.d.files[name] = f
	l.d.before = name
	l.d.run = append(l.d.run, name)
	l.d.counter++
	l.open = segmentWriter{}
	l.full = false
}

// begin is a start of the daemon.
func (l *life) begin() { l.d.run, l.d.counter, l.d.cutAway = nil, 1, 0 }

// takeSnapshot takes one at an entry that was just written, or a little earlier, if there were enough since the last one.
func (l *life) takeSnapshot() {
	index := l.written - min(l.written, []uint64{0, 0, 0, 1, 2}[l.rnd.IntN(5)])
	if index < l.snapshot+l.threshold {
		return
	}

	l.close()
	if l.older > 0 {
		for _, name := range l.d.where(func(_ string, f *file) bool {
			return f.last == l.older && (f.kind == snapshotFile || f.kind == metaFile)
		}) {
			l.d.Remove(name)
		}
	}

	l.older, l.snapshot = l.snapshot, index
	l.snapshots++
	l.d.putSnapshot(index, uint64(1000*l.snapshots))
	for _, name := range l.d.Closed() {
		if f := l.d.files[name]; f.last+l.trailing < index+1 {
			l.d.Remove(name)
			l.d.run = slices.DeleteFunc(l.d.run, func(of string) bool { return of == name })
		}
	}
}

// putSnapshot adds a pair of the database after the entry with an index.
func (d *Directory) putSnapshot(index, timestamp uint64) {
	name := fmt.Sprintf("snapshot-%d-%d-%d", d.History.At(index).Term, index, timestamp)
	data := Compress(EncodeSnapshot("db.bin", d.History.Database(index), nil))
	meta := raftlog.EncodeSnapshotMeta(d.History.Configuration(index))
	d.files[name] = &file{data: data, was: data, kind: snapshotFile, last: index}
	d.files[name+".meta"] = &file{data: meta, was: meta, kind: metaFile, last: index}
}

// end is how the files are found: killed while it wrote, as a rule.
func (l *life) end() {
	d := l.d
	term := d.History.At(d.Last).Term + l.rnd.Uint64N(2)
	version := 2 + l.rnd.Uint64N(9)
	for _, m := range []raftlog.Metadata{{Version: version, Term: term}, {Version: version + 1, Term: term, Vote: 1}} {
		data := m.Encode()
		d.files[m.FileName()] = &file{data: data, was: data, kind: metadataFile}
	}

	switch how := l.rnd.IntN(10); {
	case how == 0: // stopped
		l.close()
		l.begin()
		return
	case how == 1: // killed when it had written nothing since it had started
		l.close()
		l.begin()
	case how <= 3 && len(l.open.batches) > 0 && l.full: // killed before the segment that had become full was closed
		l.reopen()
	}

	counter := d.counter
	if d.files[openName(counter)] != nil {
		counter++
	}

	if len(l.open.batches) > 0 {
		d.files[openName(counter)] = l.open.file(openFile)
		counter++
	}

	for range 2 {
		d.files[openName(counter)] = &file{data: spare, was: spare, kind: openFile}
		counter++
	}
}

// spare is the content of an open segment that was never used.
var spare = make([]byte, segmentSize)

// reopen makes the last closed segment open again.
func (l *life) reopen() {
	d := l.d
	f := d.files[d.before]
	d.Remove(d.before)
	d.run = d.run[:len(d.run)-1]
	d.before = ""
	for _, name := range d.Closed() {
		d.before = name // the last one
	}

	f.kind = openFile
	f.data = append(f.data, make([]byte, segmentSize-len(f.data))...)
	f.was = f.data
	d.counter--
	d.files[openName(d.counter)] = f
}

// segmentWriter writes a segment.
type segmentWriter struct {
	data        []byte
	batches     []batchAt
	first, last uint64
}

// append writes one batch.
func (w *segmentWriter) append(entries ...raftlog.Entry) {
	if len(w.batches) == 0 {
		w.data = raftlog.SegmentHeader()
		w.first = entries[0].Index
	}

	start := len(w.data)
	w.data = raftlog.AppendBatch(w.data, entries...)
	headers := start + 16
	w.batches = append(w.batches, batchAt{start: start, headers: headers, data: headers + 16*len(entries), end: len(w.data), n: len(entries)})
	w.last = entries[len(entries)-1].Index
}

// file is the segment; an open one is filled up with zeros.
func (w *segmentWriter) file(kind fileKind) *file {
	f := &file{data: w.data, kind: kind, first: w.first, last: w.last, batches: w.batches}
	if kind == openFile {
		f.data = append(f.data, make([]byte, max(0, segmentSize-len(f.data)))...)
	}

	f.was = f.data
	return f
}
