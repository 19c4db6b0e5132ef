// SPDX-License-Identifier: AGPL-3.0-only

package raftlogtest

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Kind is one kind of damage.
type Kind struct {
	Name string
	// Harmless says that all entries are still there under their own names: files were only copied, or others came. Nothing is to be
	// asked then, and nothing may be missing.
	Harmless bool

	// apply does it once, to something that rnd chooses, and says what it did; empty if there is nothing to do it to.
	apply func(b *breaker) string
}

// breaker damages a directory.
type breaker struct {
	*Directory
	rnd *rand.Rand
}

// Kinds are all kinds of damage.
func Kinds() []Kind {
	return slices.Concat(flipKinds(), cutKinds(), zeroKinds(), removeKinds(), copyKinds(), overlapKinds(), renameKinds(), otherKinds())
}

// Break damages a directory at random once, in the way of the given kind, and up to twice more in any way. It says whether there was
// anything that the kind applies to.
func (d *Directory) Break(rnd *rand.Rand, first Kind) bool {
	if !d.Apply(rnd, first) {
		return false
	}

	kinds := Kinds()
	for range rnd.IntN(3) {
		d.Apply(rnd, kinds[rnd.IntN(len(kinds))])
	}

	return true
}

// Apply does one kind of damage once, and says whether there was anything to do it to.
func (d *Directory) Apply(rnd *rand.Rand, k Kind) bool {
	what := k.apply(&breaker{d, rnd})
	if what == "" {
		return false
	}

	d.Done = append(d.Done, k.Name+": "+what)
	d.Kinds = append(d.Kinds, k.Name)
	return true
}

// pick is one of the names, empty if there is none.
func (b *breaker) pick(names []string) string {
	if len(names) == 0 {
		return ""
	}

	return names[b.rnd.IntN(len(names))]
}

// between is a number from low to high.
func (b *breaker) between(low, high uint64) uint64 { return low + b.rnd.Uint64N(high-low+1) }

// closed are all closed segments under whatever name, as long as they have entries.
func closed(_ string, f *file) bool { return f.kind == closedFile && len(f.data) > segmentHeader }

// used are open segments with entries.
func used(_ string, f *file) bool {
	return f.kind == openFile && len(f.batches) > 0 && len(f.data) > segmentHeader
}

// unused are open segments without.
func unused(_ string, f *file) bool {
	return f.kind == openFile && len(f.batches) == 0 && len(f.data) > segmentHeader
}

func ofKind(kind fileKind) func(string, *file) bool {
	return func(_ string, f *file) bool { return f.kind == kind && len(f.data) > 0 }
}

const segmentHeader = 8 // bytes

// segmentKind is a kind of segment to do something to.
type segmentKind struct {
	name string
	is   func(name string, f *file) bool
}

func segmentKinds() []segmentKind {
	return []segmentKind{{"a closed segment", closed}, {"an open segment", used}}
}

// batch is one of the batches that are still in a file.
func (b *breaker) batch(f *file) (batchAt, bool) {
	n := 0
	for n < len(f.batches) && f.batches[n].end <= len(f.data) {
		n++
	}

	if n == 0 {
		return batchAt{}, false
	}

	return f.batches[b.rnd.IntN(n)], true
}

// flipIn inverts one bit of the bytes from one offset to another.
func (b *breaker) flipIn(name string, from, to int) string {
	at := from + b.rnd.IntN(to-from)
	bit := b.rnd.IntN(8)
	b.Edit(name, func(p []byte) []byte {
		p[at] ^= 1 << bit
		return p
	})
	return fmt.Sprintf("%s at byte %d, bit %d", name, at, bit)
}

func flipKinds() []Kind {
	places := []struct {
		name  string
		where func(b batchAt) (from, to int)
	}{
		{"the checksum of a batch header", func(b batchAt) (int, int) { return b.start, b.start + 4 }},
		{"the checksum of a batch's data", func(b batchAt) (int, int) { return b.start + 4, b.start + 8 }},
		{"an entry count", func(b batchAt) (int, int) { return b.start + 8, b.headers }},
		{"an entry header", func(b batchAt) (int, int) { return b.headers, b.data }},
		{"the data", func(b batchAt) (int, int) { return b.data, b.end }},
		{"the format", func(batchAt) (int, int) { return 0, segmentHeader }},
	}
	var list []Kind
	for _, s := range segmentKinds() {
		for _, p := range places {
			list = append(list, Kind{Name: fmt.Sprintf("flip %s of %s", p.name, s.name), apply: func(b *breaker) string {
				name := b.pick(b.where(s.is))
				if name == "" {
					return ""
				}

				batch, ok := b.batch(b.files[name])
				if !ok {
					return ""
				}

				from, to := p.where(batch)
				return b.flipIn(name, from, to)
			}})
		}
	}

	anywhere := func(what string, is func(string, *file) bool) {
		list = append(list, Kind{Name: "flip " + what, apply: func(b *breaker) string {
			name := b.pick(b.where(is))
			if name == "" {
				return ""
			}

			return b.flipIn(name, 0, len(b.files[name].data))
		}})
	}
	anywhere("snapshot data", ofKind(snapshotFile))
	anywhere("snapshot metadata", ofKind(metaFile))
	anywhere("metadata", ofKind(metadataFile))
	anywhere("a spare open segment", unused)
	return append(list, Kind{Name: "flip the zeros of an open segment", apply: func(b *breaker) string {
		name := b.pick(b.where(func(name string, f *file) bool { return used(name, f) && f.end() < len(f.data) }))
		if name == "" {
			return ""
		}

		f := b.files[name]
		return b.flipIn(name, f.end(), len(f.data))
	}})
}

// end is where the last batch of a segment ends.
func (f *file) end() int { return f.batches[len(f.batches)-1].end }

// written is how many bytes of a file hold something: the rest of an open segment is zeros.
func (b *breaker) written(name string) int {
	f := b.files[name]
	if used(name, f) {
		return min(len(f.data), f.end())
	}

	return len(f.data)
}

// cut leaves the first bytes of a file.
func (b *breaker) cut(name string, size int) string {
	was := len(b.files[name].data)
	b.files[name].data = b.files[name].data[:size:size]
	return fmt.Sprintf("%s to %d of %d bytes", name, size, was)
}

func cutKinds() []Kind {
	var list []Kind
	anywhere := func(what string, is func(string, *file) bool) {
		list = append(list, Kind{Name: "cut " + what, apply: func(b *breaker) string {
			name := b.pick(b.where(is))
			if name == "" {
				return ""
			}

			return b.cut(name, b.rnd.IntN(b.written(name)))
		}})
	}
	for _, s := range segmentKinds() {
		anywhere(s.name, s.is)
		list = append(list, Kind{Name: "cut " + s.name + " at a batch", apply: func(b *breaker) string {
			name := b.pick(b.where(s.is))
			if name == "" {
				return ""
			}

			batch, ok := b.batch(b.files[name])
			if !ok {
				return ""
			}

			return b.cut(name, []int{batch.start, batch.end}[b.rnd.IntN(2)])
		}})
	}

	anywhere("snapshot data", ofKind(snapshotFile))
	anywhere("snapshot metadata", ofKind(metaFile))
	anywhere("metadata", ofKind(metadataFile))
	anywhere("a spare open segment", unused)
	return list
}

func zeroKinds() []Kind {
	var list []Kind
	add := func(what string, is func(string, *file) bool) {
		list = append(list, Kind{Name: "zero a range of " + what, apply: func(b *breaker) string {
			name := b.pick(b.where(is))
			if name == "" {
				return ""
			}

			size := b.written(name)
			// A sector, a page, or much of the file.
			lengths := []int{512, 4096, 1 + b.rnd.IntN(size)}
			from := b.rnd.IntN(size)
			to := min(size, from+lengths[b.rnd.IntN(len(lengths))])
			b.Edit(name, func(p []byte) []byte {
				clear(p[from:to])
				return p
			})
			return fmt.Sprintf("%s from byte %d to %d", name, from, to)
		}})
	}
	for _, s := range segmentKinds() {
		add(s.name, s.is)
	}

	add("snapshot data", ofKind(snapshotFile))
	add("snapshot metadata", ofKind(metaFile))
	return list
}

// overlapKinds add a closed segment with entries that others have, too, under the right name.
func overlapKinds() []Kind {
	overlap := func(b *breaker, around uint64) string {
		d := b.Directory
		list := b.Closed()
		if len(list) == 0 {
			return ""
		}

		// Within one run of segments, so that every entry is one that was there.
		begin, end := b.files[list[0]].first, b.files[list[0]].last
		for _, name := range list[1:] {
			f := b.files[name]
			if f.first > end+1 && around > end {
				begin = f.first
			} else if f.first > end+1 {
				break
			}

			end = max(end, f.last)
		}

		if around == 0 {
			around = b.between(begin, end)
		}

		if around < begin || around >= end {
			return ""
		}

		first := b.between(begin+(around-begin)/2, around)
		last := b.between(around+1, min(end, around+200))
		name := raftlog.SegmentName(first, last)
		if d.files[name] != nil {
			return ""
		}

		d.PutSegment(first, last, 1+b.rnd.IntN(int(last-first+1)))
		return name
	}
	return []Kind{
		{Name: "overlap with the same entries", Harmless: true, apply: func(b *breaker) string { return overlap(b, 0) }},
		{Name: "overlap with the same entries at the snapshot", Harmless: true, apply: func(b *breaker) string {
			snapshots := b.Snapshots()
			if len(snapshots) == 0 {
				return ""
			}

			return overlap(b, snapshots[len(snapshots)-1])
		}},
	}
}
