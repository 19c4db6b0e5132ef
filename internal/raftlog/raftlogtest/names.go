// SPDX-License-Identifier: AGPL-3.0-only

package raftlogtest

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Kinds of damage by removing, copying and renaming whole files, and the leftovers of what was cut short.

func removeKinds() []Kind {
	var list []Kind
	add := func(what string, which func(b *breaker) []string) {
		list = append(list, Kind{Name: "remove " + what, apply: func(b *breaker) string {
			names := which(b)
			b.Remove(names...)
			return strings.Join(names, " and ")
		}})
	}
	one := func(is func(string, *file) bool) func(b *breaker) []string {
		return func(b *breaker) []string {
			name := b.pick(b.where(is))
			if name == "" {
				return nil
			}

			return []string{name}
		}
	}
	add("a closed segment", one(closed))
	add("the last closed segment", func(b *breaker) []string {
		names := b.Closed()
		return names[max(0, len(names)-1):]
	})
	add("an open segment", one(used))
	add("a spare open segment", one(unused))
	add("a snapshot", func(b *breaker) []string {
		name := b.pick(b.where(ofKind(snapshotFile)))
		if b.files[name+".meta"] == nil {
			return nil
		}

		return []string{name, name + ".meta"}
	})
	add("snapshot data", one(ofKind(snapshotFile)))
	add("snapshot metadata", one(ofKind(metaFile)))
	add("one of the metadata", one(ofKind(metadataFile)))
	add("both metadata", func(b *breaker) []string { return b.where(ofKind(metadataFile)) })
	return list
}

// asideNames are the names that files get when they are copied or set aside.
var asideNames = []struct {
	what string
	name func(b *breaker, name string) string
}{
	{"NAME.bak", func(_ *breaker, name string) string { return name + ".bak" }},
	{"NAME (copy)", func(_ *breaker, name string) string { return name + " (copy)" }},
	{"corrupt-TIME-NAME", func(b *breaker, name string) string {
		return fmt.Sprintf("corrupt-%d-%s", 1e18+b.rnd.Int64N(1e17), name)
	}},
	{"tmp-NAME", func(_ *breaker, name string) string { return "tmp-" + name }},
}

func copyKinds() []Kind {
	var list []Kind
	for _, aside := range asideNames {
		list = append(list, Kind{Name: "copy a file to " + aside.what, Harmless: true, apply: func(b *breaker) string {
			from := b.pick(b.where(func(name string, f *file) bool { return f.kind != otherFile && f.untouched() && kindOf(name) == f.kind }))
			if from == "" {
				return ""
			}

			return b.copyTo(from, aside.name(b, from))
		}})
	}

	return append(list,
		Kind{Name: "copy a closed segment far ahead, right count", Harmless: true, apply: func(b *breaker) string { return b.stray(0) }},
		Kind{Name: "copy a closed segment far ahead, wrong count", Harmless: true, apply: func(b *breaker) string {
			return b.stray(1 + b.rnd.Uint64N(300))
		}},
		Kind{Name: "copy a closed segment under an overlapping name", Harmless: true, apply: func(b *breaker) string {
			from := b.pick(b.Closed())
			if from == "" {
				return ""
			}

			return b.copyTo(from, b.shifted(b.files[from]))
		}},
		Kind{Name: "copy a closed segment as an open one", Harmless: true, apply: func(b *breaker) string {
			from := b.pick(b.Closed())
			to := b.freeOpen()
			if from == "" || to == "" {
				return ""
			}

			what := b.copyTo(from, to)
			if b.rnd.IntN(2) == 0 { // as it was before it was closed
				b.Edit(to, func(p []byte) []byte { return append(p, make([]byte, max(0, segmentSize-len(p)))...) })
			}

			return what
		}},
		Kind{Name: "copy an open segment as another one", Harmless: true, apply: func(b *breaker) string {
			from := b.pick(b.where(func(name string, f *file) bool { return used(name, f) && kindOf(name) == openFile }))
			to := b.freeOpen()
			if from == "" || to == "" {
				return ""
			}

			return b.copyTo(from, to)
		}},
	)
}

func (b *breaker) copyTo(from, to string) string {
	if to == "" || b.files[to] != nil && len(b.files[to].batches) > 0 {
		return ""
	}

	b.Copy(from, to)
	return from + " to " + to
}

// stray copies a closed segment far ahead, with so many entries more or less in its name.
func (b *breaker) stray(wrong uint64) string {
	from := b.pick(b.Closed())
	if from == "" {
		return ""
	}

	f := b.files[from]
	first := b.History.Last() + b.between(20, 12000)
	last := first + f.last - f.first
	if wrong > 0 && wrong <= last-first && b.rnd.IntN(2) == 0 {
		last -= wrong
	} else {
		last += wrong
	}

	return b.copyTo(from, raftlog.SegmentName(first, last))
}

// shifted is the name of a closed segment moved by less than its length, empty if there is none.
func (b *breaker) shifted(f *file) string {
	n := f.last - f.first + 1
	by := b.between(1, n)
	first := f.first + by
	if b.rnd.IntN(2) == 0 && f.first > by {
		first = f.first - by
	}

	name := raftlog.SegmentName(first, first+n-1)
	if b.files[name] != nil {
		return ""
	}

	return name
}

// freeOpen is an open segment's name that no entries go by: a spare one's, or the next.
func (b *breaker) freeOpen() string {
	counter := b.counter
	for b.files[openName(counter)] != nil && len(b.files[openName(counter)].batches) > 0 {
		counter++
	}

	return openName(counter + b.rnd.Uint64N(5))
}

func renameKinds() []Kind {
	var list []Kind
	for _, aside := range asideNames {
		list = append(list, Kind{Name: "rename a segment to " + aside.what, apply: func(b *breaker) string {
			from := b.pick(b.where(func(name string, f *file) bool { return (closed(name, f) || used(name, f)) && kindOf(name) == f.kind }))
			if from == "" {
				return ""
			}

			return b.renameTo(from, aside.name(b, from))
		}})
	}

	return append(list,
		Kind{Name: "rename a closed segment far ahead", apply: func(b *breaker) string {
			from := b.pick(b.Closed())
			if from == "" {
				return ""
			}

			f := b.files[from]
			first := b.History.Last() + b.between(20, 12000)
			return b.renameTo(from, raftlog.SegmentName(first, first+f.last-f.first))
		}},
		Kind{Name: "rename a closed segment to an overlapping name", apply: func(b *breaker) string {
			from := b.pick(b.Closed())
			if from == "" {
				return ""
			}

			return b.renameTo(from, b.shifted(b.files[from]))
		}},
		Kind{Name: "rename a closed segment so that it follows another one", apply: func(b *breaker) string {
			from, other := b.pick(b.Closed()), b.pick(b.Closed())
			if from == "" || from == other {
				return ""
			}

			first := b.files[other].last + 1
			if slices.ContainsFunc(b.Closed(), func(name string) bool { return b.files[name].first == first }) {
				return ""
			}

			f := b.files[from]
			return b.renameTo(from, raftlog.SegmentName(first, first+f.last-f.first))
		}},
		Kind{Name: "rename an open segment to another number", apply: func(b *breaker) string {
			from := b.pick(b.where(func(name string, f *file) bool { return used(name, f) && kindOf(name) == openFile }))
			to := b.freeOpen()
			if from == "" || to == "" || to == from {
				return ""
			}

			return b.renameTo(from, to)
		}},
		Kind{Name: "rename a snapshot to NAME.bak", apply: func(b *breaker) string {
			name := b.pick(b.where(ofKind(snapshotFile)))
			if b.files[name+".meta"] == nil {
				return ""
			}

			b.Rename(name+".meta", name+".meta.bak")
			return b.renameTo(name, name+".bak")
		}},
	)
}

func (b *breaker) renameTo(from, to string) string {
	what := b.copyTo(from, to)
	if what != "" {
		b.Remove(from)
	}

	return what
}

func otherKinds() []Kind {
	return []Kind{
		{Name: "crash while the log was cut", apply: (*breaker).cutLog},
		{Name: "metadata with term 0", apply: func(b *breaker) string {
			names := b.where(ofKind(metadataFile))
			for _, name := range names {
				b.Edit(name, func(p []byte) []byte {
					if len(p) >= 24 {
						clear(p[16:24])
					}

					return p
				})
			}

			return strings.Join(names, " and ")
		}},
		{Name: "short metadata", apply: func(b *breaker) string {
			names := b.where(ofKind(metadataFile))
			for _, name := range names {
				b.cut(name, min(len(b.files[name].data), b.rnd.IntN(32)))
			}

			return strings.Join(names, " and ")
		}},
		{Name: "half a snapshot, never finished", Harmless: true, apply: func(b *breaker) string {
			name := b.pick(b.where(ofKind(snapshotFile)))
			if name == "" {
				return ""
			}

			p := b.Content(name)
			to := fmt.Sprintf("tmp-snapshot-1-%d-99000", b.Last)
			b.Put(to, bytes.Clone(p[:b.rnd.IntN(len(p))]))
			return to
		}},
		{Name: "snapshot metadata without data", Harmless: true, apply: func(b *breaker) string {
			name := b.pick(b.where(ofKind(metaFile)))
			if name == "" {
				return ""
			}

			to := fmt.Sprintf("snapshot-%d-%d-99000.meta", b.History.At(b.Last).Term, b.Last)
			b.Put(to, b.Content(name))
			if b.rnd.IntN(2) == 0 {
				b.Put(strings.TrimSuffix(to, ".meta"), nil)
			}

			return to
		}},
	}
}

// cutLog leaves what raft leaves when it is killed while it cuts the last entries of the log away, as a new leader has others: a segment
// up to there, in one batch, beside the longer one.
func (b *breaker) cutLog() string {
	d := b.Directory
	if d.cutAt > 0 || !d.History.clustered() || len(d.Done) > 0 {
		return ""
	}

	// It closes the open segments first.
	for _, name := range d.where(used) {
		f := d.files[name]
		f.kind = closedFile
		f.data = f.data[:f.end():f.end()]
		f.was = f.data
		d.before = raftlog.SegmentName(f.first, f.last)
		d.run = append(d.run, d.before)
		d.counter++
		d.Rename(name, d.before)
	}

	committed := uint64(0)
	for _, s := range d.Snapshots() {
		committed = max(committed, s)
	}

	name := b.pick(d.where(func(_ string, f *file) bool { return closed("", f) && f.last > f.first && f.last > committed+1 }))
	if name == "" {
		return ""
	}

	f := d.files[name]
	d.cutAt = b.between(max(f.first, committed)+1, f.last)
	d.PutSegment(f.first, d.cutAt-1, 1)
	return fmt.Sprintf("%s at index %d", name, d.cutAt)
}
