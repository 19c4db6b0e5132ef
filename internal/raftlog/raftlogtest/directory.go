// SPDX-License-Identifier: AGPL-3.0-only

package raftlogtest

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing/fstest"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Directory is a raft directory in memory that knows what its files hold in truth.
type Directory struct {
	History *History
	Last    uint64   // of the entries that were in it before any damage
	Done    []string // what was done to it, in words
	Kinds   []string // and the names of the kinds of damage that it was

	files map[string]*file

	before  string   // the closed segment that the first open one goes on after, empty for none
	counter uint64   // of the first open segment: one more than the daemon has closed since it started
	run     []string // those that it has closed and that were still there, before any damage
	cutAway int      // how many more it has closed, and a new leader has made it remove
	cutAt   uint64   // where raft began to cut the log, and was killed; 0 for never: from there on there are two logs
}

// file is one of its files.
type file struct {
	data []byte // as it is: never written to, only replaced
	was  []byte // before any damage
	kind fileKind

	first, last uint64    // of a segment: its entries, in truth. Of a snapshot: last is the index it was taken at
	batches     []batchAt // of a segment, before any damage
}

// fileKind is what a file is, whatever its name has become.
type fileKind uint8

const (
	closedFile fileKind = iota
	openFile
	snapshotFile
	metaFile
	metadataFile
	otherFile
)

var (
	closedPattern   = regexp.MustCompile(`^([0-9]{16})-([0-9]{16})$`)
	openPattern     = regexp.MustCompile(`^open-([0-9]+)$`)
	snapshotPattern = regexp.MustCompile(`^snapshot-([0-9]+)-([0-9]+)-([0-9]+)(\.meta)?$`)
)

func kindOf(name string) fileKind {
	switch {
	case closedPattern.MatchString(name):
		return closedFile
	case openPattern.MatchString(name):
		return openFile
	case strings.HasPrefix(name, "metadata"):
		return metadataFile
	case snapshotPattern.MatchString(name) && strings.HasSuffix(name, ".meta"):
		return metaFile
	case snapshotPattern.MatchString(name):
		return snapshotFile
	}

	return otherFile
}

// number is a number that a pattern has found in a name, 0 for none.
func number(pattern *regexp.Regexp, name string, group int) uint64 {
	m := pattern.FindStringSubmatch(name)
	if m == nil {
		return 0
	}

	n, err := strconv.ParseUint(m[group], 10, 64)
	must(err)
	return n
}

func openCounter(name string) uint64   { return number(openPattern, name, 1) }
func snapshotIndex(name string) uint64 { return number(snapshotPattern, name, 2) }
func openName(counter uint64) string   { return fmt.Sprintf("open-%d", counter) }

// Real is the directory as the member has left it.
func (h *History) Real() *Directory { return h.real.clone() }

func (d *Directory) clone() *Directory {
	c := *d
	c.files = make(map[string]*file, len(d.files))
	for name, f := range d.files {
		same := *f
		c.files[name] = &same
	}

	c.Done, c.run = slices.Clone(d.Done), slices.Clone(d.run)
	return &c
}

// Names are those of all files, sorted.
func (d *Directory) Names() []string { return slices.Sorted(maps.Keys(d.files)) }

// Closed are the names of the closed segments that still have their own, in the order of their indexes.
func (d *Directory) Closed() []string {
	return d.where(func(name string, f *file) bool { return f.kind == closedFile && f.owns(name) })
}

// where are the names of the files for which it is true, sorted.
func (d *Directory) where(is func(name string, f *file) bool) []string {
	var names []string
	for _, name := range d.Names() {
		if is(name, d.files[name]) {
			names = append(names, name)
		}
	}

	return names
}

// FS is the directory as raftlog takes it.
func (d *Directory) FS() fs.FS {
	fsys := fstest.MapFS{}
	for name, f := range d.files {
		fsys[name] = &fstest.MapFile{Data: f.data, Mode: 0o600}
	}

	return fsys
}

// Write writes the directory to an empty one on disk.
func (d *Directory) Write(dir string) error {
	for name, f := range d.files {
		err := writeFile(filepath.Join(dir, name), f.data)
		if err != nil {
			return err
		}
	}

	return nil
}

// Content is what a file holds, not to be changed.
func (d *Directory) Content(name string) []byte { return d.files[name].data }

// Batch is where a batch of a segment begins and ends, bytes, and the index of its first entry; a negative number counts from the last.
func (d *Directory) Batch(name string, number int) (start, end int, first uint64) {
	f := d.files[name]
	if number < 0 {
		number += len(f.batches)
	}

	first = f.first
	for _, b := range f.batches[:number] {
		first += uint64(b.n)
	}

	return f.batches[number].start, f.batches[number].end, first
}

// CutAway tells whether new leaders have made the daemon remove whole segments since it started: the counter of the first open one is higher for it.
func (d *Directory) CutAway() bool { return d.cutAway > 0 }

// Edit has a function change a copy of a file's content.
func (d *Directory) Edit(name string, change func(p []byte) []byte) {
	f := d.files[name]
	f.data = change(bytes.Clone(f.data))
}

// Remove removes files.
func (d *Directory) Remove(names ...string) {
	for _, name := range names {
		delete(d.files, name)
	}
}

// Copy copies a file, over another one if that is there.
func (d *Directory) Copy(from, to string) {
	same := *d.files[from]
	d.files[to] = &same
}

// Rename renames a file.
func (d *Directory) Rename(from, to string) {
	d.Copy(from, to)
	d.Remove(from)
}

// Put adds a file that is none of the log.
func (d *Directory) Put(name string, data []byte) {
	d.files[name] = &file{data: data, kind: otherFile}
}

// PutSegment adds a closed segment with entries of the history in so many batches.
func (d *Directory) PutSegment(first, last uint64, batches int) {
	w := segmentWriter{}
	left := d.History.Entries[first-1 : last]
	for ; batches > 0; batches-- {
		n := len(left) / batches
		w.append(left[:n]...)
		left = left[n:]
	}

	d.files[raftlog.SegmentName(first, last)] = w.file(closedFile)
}

// Snapshots are the indexes of the pairs that are there under their own names and undamaged.
func (d *Directory) Snapshots() []uint64 {
	var indexes []uint64
	for name, f := range d.files {
		meta := d.files[name+".meta"]
		if f.kind == snapshotFile && kindOf(name) == snapshotFile && f.last == snapshotIndex(name) && f.untouched() &&
			meta != nil && meta.kind == metaFile && meta.last == f.last && meta.untouched() {
			indexes = append(indexes, f.last)
		}
	}

	slices.Sort(indexes)
	return indexes
}

// untouched says whether a file still has its content.
func (f *file) untouched() bool {
	return len(f.data) == len(f.was) && (same(f.data, f.was) || bytes.Equal(f.data, f.was))
}

// same says whether two slices begin at the same place in memory.
func same(a, b []byte) bool { return len(a) > 0 && len(b) > 0 && &a[0] == &b[0] }

// owns says whether a name of a closed segment is the file's own.
func (f *file) owns(name string) bool {
	return number(closedPattern, name, 1) == f.first && number(closedPattern, name, 2) == f.last
}

// intact says whether the bytes of a segment from one offset to another are what they were.
func (f *file) intact(from, to int) bool {
	return to <= len(f.data) && (same(f.data, f.was) || bytes.Equal(f.data[from:to], f.was[from:to]))
}

// Misnamed says whether a file is a closed segment under the name of another place in the log.
func (d *Directory) Misnamed(name string) bool {
	f := d.files[name]
	m := closedPattern.FindStringSubmatch(name)
	return f != nil && f.kind == closedFile && m != nil && !f.owns(name)
}

// Uncertain says whether a file is an open segment that something is missing before: its place is told by what is left of the closed ones
// and by its counter, and these may fit by chance.
func (d *Directory) Uncertain(name string) bool {
	f := d.files[name]
	return f != nil && f.kind == openFile && !d.openPlaces()[name]
}
