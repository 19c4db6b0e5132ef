// SPDX-License-Identifier: AGPL-3.0-only

package raftlogtest

import (
	"regexp"
)

// Truth is what the files of a damaged directory still prove.
type Truth struct {
	// Last is the last index that can be reached without a doubt: from a sound snapshot or the log's beginning on, each entry lies in a
	// file that tells its index. Nothing that is given back may end before it.
	Last uint64
	// Certain says of each index whether such a file has its entry, reached or not.
	Certain []bool
	// OnDisk says of each file which entries it holds, by their true indexes, in order, whether the file tells them or not.
	OnDisk map[string][]uint64
	// Untold is the index of the first entry that is missing where nothing tells that any is: the last closed segment before open-1 is
	// gone without a trace, or all of them after a snapshot. Open segments are counted from 1 after every start, so it cannot be known.
	// 0 if there is no such place.
	Untold uint64
}

// setAside is a closed segment's name in a longer one: what libdqlite, LXD's manual and people make of it.
var setAside = regexp.MustCompile(`^(?:corrupt-[0-9]+-|tmp-)?([0-9]{16}-[0-9]{16})(?:\.bak| \(copy\))?$`)

// Truth looks at the files as they are, and at what they were.
func (d *Directory) Truth() Truth {
	t := Truth{Certain: make([]bool, d.History.Last()+2), OnDisk: map[string][]uint64{}}
	place := d.openPlaces()
	for name, f := range d.files {
		known := false
		switch f.kind {
		case closedFile:
			m := setAside.FindStringSubmatch(name)
			known = m != nil && f.owns(m[1])
		case openFile:
			known = place[name]
		}

		t.take(name, f, known)
	}

	if t.Certain[1] {
		t.reach(0)
	}

	for _, index := range d.Snapshots() {
		t.reach(index)
	}

	t.Untold = d.untold(t)
	if d.cutAt > 0 {
		t.Last = min(t.Last, d.cutAt-1)
	}

	return t
}

// take takes a segment's entries into account. They are counted from its beginning, as long as the batch headers are what they were.
func (t *Truth) take(name string, f *file, known bool) {
	index := f.first
	for _, b := range f.batches {
		if f.intact(b.start, b.end) {
			for i := range uint64(b.n) {
				t.OnDisk[name] = append(t.OnDisk[name], index+i)
				t.Certain[index+i] = t.Certain[index+i] || known
			}
		}

		known = known && f.intact(b.start, b.data)
		index += uint64(b.n)
	}
}

// reach goes on from the entry with an index.
func (t *Truth) reach(index uint64) {
	for t.Certain[index+1] {
		index++
	}

	t.Last = max(t.Last, index)
}

// openPlaces says of which open segments the place is certain. Their files tell no index: it takes the closed segment that they go on
// after, and all others of the same run of the daemon, as their number counts these.
func (d *Directory) openPlaces() map[string]bool {
	place := map[string]bool{}
	for _, name := range d.run {
		if !d.has(name) {
			return place
		}
	}

	first := d.counter
	f := d.files[openName(first)]
	if f == nil || f.kind != openFile || len(f.batches) == 0 || d.strangerFrom(f.first) {
		return place
	}

	if d.before != "" {
		if !d.has(d.before) || d.files[d.before].last+1 != f.first {
			return place
		}
	} else if f.first > 1 && !d.hasSnapshot(f.first-1) {
		return place
	}

	for counter := first; ; counter++ {
		f := d.files[openName(counter)]
		if f == nil || f.kind != openFile || len(f.batches) == 0 {
			return place
		}

		if counter > first {
			previous := d.files[openName(counter-1)]
			if previous.last+1 != f.first || !previous.intact(0, previous.batches[len(previous.batches)-1].end) {
				return place
			}
		}

		place[openName(counter)] = true
	}
}

// strangerFrom says whether a closed segment has the name of a place from an index on, and no other file has its entries: for all
// that can be told it may be the one that an open segment goes on after.
func (d *Directory) strangerFrom(index uint64) bool {
	for name, f := range d.files {
		if !d.Misnamed(name) || number(closedPattern, name, 1) < index {
			continue
		}

		copied := false
		for other, g := range d.files {
			copied = copied || other != name && g.kind == closedFile && g.first == f.first && g.last == f.last && !d.Misnamed(other)
		}

		if !copied {
			return true
		}
	}

	return false
}

// untold is Truth.Untold.
func (d *Directory) untold(t Truth) uint64 {
	open := d.files[openName(1)]
	if d.counter != 1 || d.before == "" || d.has(d.before) || open == nil || open.kind != openFile || len(open.batches) == 0 {
		return 0
	}

	end := uint64(0) // of the closed segments that are left
	for _, name := range d.Closed() {
		end = max(end, d.files[name].last)
	}

	for _, index := range d.Snapshots() {
		if index > end && len(d.Closed()) > 0 {
			return 0
		}

		end = max(end, index)
	}

	for _, indexes := range t.OnDisk {
		for _, i := range indexes {
			if i > end && i < open.first {
				return 0
			}
		}
	}

	if end == 0 || end+1 >= open.first {
		return 0
	}

	return end + 1
}

// has says whether a closed segment is there under its own name.
func (d *Directory) has(name string) bool {
	f := d.files[name]
	return f != nil && f.kind == closedFile && f.owns(name)
}

func (d *Directory) hasSnapshot(index uint64) bool {
	for _, s := range d.Snapshots() {
		if s == index {
			return true
		}
	}

	return false
}
