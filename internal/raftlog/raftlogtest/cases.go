// SPDX-License-Identifier: AGPL-3.0-only

package raftlogtest

import (
	"bytes"
	"encoding/binary"
	"io"

	"github.com/pierrec/lz4/v4"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Case is one kind of damage and what libdqlite 1.18.7 makes of it, as the differential test has established with the real one.
type Case struct {
	Name   string
	Base   Base
	Damage Damage

	Load raftlog.Outcome // of loading
	Last uint64          // last index that libdqlite holds then; 0 when it does not load
	// Healthy says that the damage is none, or one that nobody can see.
	Healthy bool
	// Older says that the verdict is worse than what 1.18.7 does, because an older or newer version of the family does worse, or it may
	// do worse another time.
	Older bool
	// Start is the outcome of starting a member, when it is not that of Load.
	Start raftlog.Outcome
}

func decompress(p []byte) []byte {
	content, err := io.ReadAll(lz4.NewReader(bytes.NewReader(p)))
	must(err)
	return content
}

const (
	clean   = raftlog.LoadsClean
	loses   = raftlog.LoadsButLoses
	refuses = raftlog.Refuses
	crashes = raftlog.Crashes
)

// Cases returns every kind of damage.
func Cases() []Case {
	var list []Case
	for _, group := range [][]Case{undamaged(), metadataCases(), openCases(), closedCases(), nameCases(), snapshotCases(), contentCases()} {
		list = append(list, group...)
	}

	return list
}

func nothing(string) error { return nil }

func undamaged() []Case {
	return []Case{
		{Name: "killed member", Base: Killed, Last: KilledLast, Healthy: true,
			Damage: func(dir string) error { return resizeOpen(dir, wholeOpenSize) }},
		{Name: "killed member with small open segments", Base: Killed, Damage: nothing, Last: KilledLast, Healthy: true},
		{Name: "stopped member", Base: Stopped, Damage: nothing, Last: StoppedLast, Healthy: true},
		{Name: "snapshot and log", Base: Snapshot, Damage: nothing, Last: SnapshotLast, Healthy: true},
		{Name: "snapshot with wal", Base: WAL, Damage: nothing, Last: SnapshotLast, Healthy: true},
		{Name: "no directory content", Base: Stopped, Damage: func(dir string) error {
			names, err := closedSegments(dir)
			if err != nil {
				return err
			}

			return remove(append(names, "metadata1", "metadata2")...)(dir)
		}, Last: 0},
	}
}

func metadataCases() []Case {
	meta := func(v, term, vote uint64) []byte {
		return raftlog.Metadata{Version: v, Term: term, Vote: vote}.Encode()
	}

	ok := func(name string, d Damage) Case {
		return Case{Name: "metadata " + name, Base: Snapshot, Damage: d, Last: SnapshotLast, Healthy: true}
	}

	sick := func(name string, d Damage) Case {
		return Case{Name: "metadata " + name, Base: Snapshot, Damage: d, Last: SnapshotLast}
	}

	bad := func(name string, d Damage) Case {
		return Case{Name: "metadata " + name, Base: Snapshot, Damage: d, Load: refuses}
	}

	lost := func(name string, b Base, last uint64, d Damage) Case {
		return Case{Name: "metadata " + name, Base: b, Damage: d, Last: last, Start: refuses}
	}

	none, zero := remove("metadata1", "metadata2"), all(put("metadata1", 16, 0), put("metadata2", 16, 0))
	return []Case{
		sick("both missing", none),
		sick("term 0", zero),
		lost("both missing, no snapshot", Killed, KilledLast, none),
		lost("both missing, one closed segment first", Stopped, StoppedLast, none),
		lost("term 0, no snapshot", Killed, KilledLast, zero),
		lost("term 0, one closed segment first", Stopped, StoppedLast, zero),
		ok("1 missing", remove("metadata1")),
		ok("2 missing", remove("metadata2")),
		ok("1 short", cut("metadata1", 31)),
		ok("2 empty", cut("metadata2", 0)),
		sick("both short", all(cut("metadata1", 8), cut("metadata2", 31))),
		bad("1 long", grow("metadata1", []byte{0})),
		bad("2 long", grow("metadata2", make([]byte, 4064))),
		bad("1 format 0", put("metadata1", 0, 0)),
		bad("1 format 2", put("metadata1", 0, 2)),
		bad("2 format flipped", flip("metadata2", 7)),
		bad("1 version 0", put("metadata1", 8, 0)),
		bad("zeroed", write("metadata2", make([]byte, 32))),
		bad("same version", put("metadata2", 8, 5)),
		ok("wrong parity", all(write("metadata1", meta(6, 2, 1)), write("metadata2", meta(5, 2, 0)))),
		ok("versions apart", put("metadata1", 8, 99)),
		ok("term lower than the log's", all(put("metadata1", 16, 1), put("metadata2", 16, 1))),
		ok("vote for nobody known", put("metadata1", 24, 77)),
		bad("is a directory", all(remove("metadata1"), mkdir("metadata1"))),
	}
}

// batchHurt is something done to a batch of a segment.
type batchHurt struct {
	name string
	fn   func(p []byte, b batchAt) []byte
}

// openHurts are what libdqlite takes for the end of an open segment.
var openHurts = []batchHurt{
	{"data flipped in", func(p []byte, b batchAt) []byte { p[b.data] ^= 1; return p }},
	{"data checksum flipped in", func(p []byte, b batchAt) []byte { p[b.start+4] ^= 1; return p }},
	{"header checksum flipped in", func(p []byte, b batchAt) []byte { p[b.start] ^= 1; return p }},
	{"term flipped in", func(p []byte, b batchAt) []byte { p[b.headers] ^= 1; return p }},
	{"garbage byte flipped in", func(p []byte, b batchAt) []byte { p[b.headers+9] ^= 1; return p }},
	{"size flipped in", func(p []byte, b batchAt) []byte { p[b.headers+13] ^= 1; return p }},
	{"count zero in", func(p []byte, b batchAt) []byte { clear(p[b.start+8 : b.start+16]); return p }},
	{"count too high in", func(p []byte, b batchAt) []byte { p[b.start+15] = 1; return p }},
	{"count one more in", func(p []byte, b batchAt) []byte { p[b.start+8]++; return p }},
	{"zeroed from the middle of", func(p []byte, b batchAt) []byte { clear(p[(b.headers+b.end)/2:]); return p }},
	{"first sector zeroed of", func(p []byte, b batchAt) []byte { clear(p[b.start : b.start+16]); return p }},
}

// openCuts are where an open segment ends too early.
var openCuts = []batchHurt{
	{"cut within the data of", func(p []byte, b batchAt) []byte { return p[:b.data+4] }},
	{"cut within the header of", func(p []byte, b batchAt) []byte { return p[:b.headers+8] }},
	{"cut within the preamble of", func(p []byte, b batchAt) []byte { return p[:b.start+8] }},
}

func openCases() []Case {
	const open1 = "open-1"
	var list []Case
	add := func(name string, b Base, d Damage, load raftlog.Outcome, last uint64) {
		list = append(list, Case{Name: "open segment " + name, Base: b, Damage: d, Load: load, Last: last})
	}

	end := func(p []byte) int { l := batchesOf(p); return l[len(l)-1].end }

	// A real one, 127-188, most batches with one entry.
	for _, n := range []int{0, 1, 30, -5, -2, -1} {
		for _, h := range openHurts {
			add(numbered(h.name+" batch", n), Killed, atBatch(open1, n, h.fn), loses, killedBefore(n))
		}

		class := crashes
		if n == 0 {
			class = refuses
		}

		add(numbered("unknown type in batch", n), Killed, resealed(open1, n, func(p []byte, b batchAt) { p[b.headers+8] = 4 }), class, 0)
		for _, h := range openCuts {
			add(numbered(h.name+" batch", n), Killed, atBatch(open1, n, h.fn), class, 0)
		}
	}

	add("junk after the end", Killed, edit(open1, func(p []byte) []byte { copy(p[end(p)+16:], "junk"); return p }), loses, KilledLast)
	add("junk far after the end", Killed, edit(open1, func(p []byte) []byte { p[len(p)-1] = 1; return p }), loses, KilledLast)
	add("junk checksum at the end", Killed, edit(open1, func(p []byte) []byte { p[end(p)] = 1; return p }), loses, KilledLast)
	add("8 zeros after the end", Killed, edit(open1, func(p []byte) []byte { return p[:end(p)+8] }), crashes, 0)
	list = append(list,
		Case{Name: "open segment 16 zeros after the end", Base: Killed, Last: KilledLast, Healthy: true,
			Damage: edit(open1, func(p []byte) []byte { return p[:end(p)+16] })},
		Case{Name: "open segment cut at its end", Base: Killed, Last: KilledLast, Healthy: true,
			Damage: edit(open1, func(p []byte) []byte { return p[:end(p)] })},
		Case{Name: "open segment spares missing", Base: Killed, Last: KilledLast, Healthy: true, Damage: remove("open-2", "open-3")},
		Case{Name: "open segment spare empty", Base: Killed, Last: KilledLast, Healthy: true, Damage: cut("open-2", 0)},
		Case{Name: "open segment spare short", Base: Killed, Last: KilledLast, Healthy: true, Damage: cut("open-2", 8)},
	)
	add("spare of 7 bytes", Killed, cut("open-2", 7), refuses, 0)
	add("spare of 1 byte", Killed, cut("open-3", 1), refuses, 0)
	add("only a format", Killed, cut(open1, 8), refuses, 0)
	add("spare with a format and zeros", Killed, put("open-2", 0, 1), clean, KilledLast)
	list[len(list)-1].Healthy = true
	add("spare with junk", Killed, put("open-2", 4096, 1), loses, KilledLast)
	add("format flipped", Killed, flip(open1, 0), loses, 126)
	add("format 2", Killed, put(open1, 0, 2), loses, 126)
	add("format zero", Killed, put(open1, 0, 0), loses, 126)
	add("first block zeroed", Killed, edit(open1, func(p []byte) []byte { clear(p[:4096]); return p }), loses, 126)

	// Two with entries: 136-145 and 146-150.
	add("first emptied", Snapshot, edit(open1, func(p []byte) []byte { return make([]byte, len(p)) }), loses, 140)
	add("first of size 0", Snapshot, cut(open1, 0), loses, 140)
	add("damaged before another", Snapshot, atBatch(open1, 2, func(p []byte, b batchAt) []byte { p[b.data] ^= 1; return p }), loses, 144)
	add("first batch damaged before another", Snapshot, atBatch(open1, 0, func(p []byte, b batchAt) []byte { p[b.data] ^= 1; return p }), loses, 140)
	add("tail zeroed at a batch before another", Snapshot, atBatch(open1, 3, func(p []byte, b batchAt) []byte { clear(p[b.start:]); return p }), loses, 146)
	add("format damaged before another", Snapshot, flip(open1, 3), loses, 135)
	add("second format damaged", Snapshot, flip("open-2", 0), loses, 145)
	add("second cut short", Snapshot, atBatch("open-2", -1, func(p []byte, b batchAt) []byte { return p[:b.end-8] }), crashes, 0)
	add("second cut in its first batch", Snapshot, atBatch("open-2", 0, func(p []byte, b batchAt) []byte { return p[:b.end-8] }), refuses, 0)
	add("is a directory", Snapshot, all(remove("open-3"), mkdir("open-3")), refuses, 0)
	return list
}

// killedBefore is the last index before batch n of open-1 of the killed member, whose 62 entries are in one batch each.
func killedBefore(n int) uint64 {
	if n >= 0 {
		return 126 + uint64(n)
	}

	return uint64(KilledLast + n)
}

// closedHurts are done to a closed segment.
var closedHurts = []struct {
	name    string
	damage  func(segment string) Damage
	corrupt bool // libdqlite calls it corrupt, and auto-recovery may act
}{
	{"data flipped", func(s string) Damage { return flip(s, -1) }, true},
	{"first data flipped", func(s string) Damage {
		return atBatch(s, 0, func(p []byte, b batchAt) []byte { p[b.data] ^= 1; return p })
	}, true},
	{"header flipped", func(s string) Damage {
		return atBatch(s, 0, func(p []byte, b batchAt) []byte { p[b.headers] ^= 1; return p })
	}, true},
	{"format flipped", func(s string) Damage { return flip(s, 0) }, true},
	{"format 2", func(s string) Damage { return put(s, 0, 2) }, true},
	{"empty", func(s string) Damage { return cut(s, 0) }, true},
	{"all zero", func(s string) Damage { return edit(s, func(p []byte) []byte { return make([]byte, len(p)) }) }, true},
	{"16 zeros after it", func(s string) Damage { return grow(s, make([]byte, 16)) }, true},
	{"tail zeroed", func(s string) Damage { return edit(s, func(p []byte) []byte { clear(p[len(p)/2:]); return p }) }, true},
	{"count zero", func(s string) Damage { return put(s, 16, 0) }, true},
	{"count too high", func(s string) Damage { return put(s, 16, 262145) }, true},
	{"count as high as can be", func(s string) Damage { return put(s, 16, 1<<63) }, true},
	{"last batch missing", func(s string) Damage {
		return atBatch(s, -1, func(p []byte, b batchAt) []byte { return p[:b.start] })
	}, false}, // the last one of these is a single batch, and then too short
	{"a batch twice", func(s string) Damage {
		return atBatch(s, -1, func(p []byte, b batchAt) []byte { return append(p, p[b.start:b.end]...) })
	}, true},
	{"of 7 bytes", func(s string) Damage { return cut(s, 7) }, false},
	{"of 8 bytes", func(s string) Damage { return cut(s, 8) }, false},
	{"one byte short", func(s string) Damage { return cut(s, -1) }, false},
	{"one byte more", func(s string) Damage { return grow(s, []byte{0}) }, false},
	{"cut in the middle", func(s string) Damage { return edit(s, func(p []byte) []byte { return p[:len(p)/2] }) }, false},
	{"count 262144", func(s string) Damage { return put(s, 16, 262144) }, false},
	{"unknown type", func(s string) Damage { return resealed(s, 0, func(p []byte, b batchAt) { p[b.headers+8] = 0 }) }, false},
}

// lastClosed is the last closed segment of the member that was killed.
const lastClosed = "0000000000000063-0000000000000126"

func closedCases() []Case {
	const first, second, third, last = "0000000000000001-0000000000000001", "0000000000000002-0000000000000026",
		"0000000000000028-0000000000000062", lastClosed
	var list []Case
	add := func(name string, d Damage, load raftlog.Outcome, at uint64) {
		list = append(list, Case{Name: "closed segment " + name, Base: Killed, Damage: d, Load: load, Last: at})
	}

	for _, h := range closedHurts {
		for _, where := range []struct {
			name, file string
			last       bool
		}{{"second", second, false}, {"last", last, true}} {
			name := h.name + " (" + where.name + ")"
			if where.last && h.corrupt {
				add(name, h.damage(where.file), loses, 62)
			} else {
				add(name, h.damage(where.file), refuses, 0)
			}
		}
	}

	add("first missing", remove(first), refuses, 0)
	add("middle missing", remove(third), refuses, 0)
	add("name one too far", rename(last, raftlog.SegmentName(63, 127)), loses, 62)
	add("name one too short", rename(last, raftlog.SegmentName(63, 125)), loses, 62)
	add("name one late", rename(last, raftlog.SegmentName(64, 127)), refuses, 0)
	add("overlap with the same first", duplicate(last, raftlog.SegmentName(63, 100)), refuses, 0)
	add("overlap in the middle", duplicate(last, raftlog.SegmentName(20, 30)), refuses, 0)
	add("is a directory", all(remove(last), mkdir(last)), refuses, 0)
	add("all missing", remove(first, second, "0000000000000027-0000000000000027", third, last), clean, 62)
	list[len(list)-1].Start = crashes

	return append(list, closedBesideSnapshot()...)
}

// closedBesideSnapshot are cases of closed segments of which a snapshot makes some superfluous.
func closedBesideSnapshot() []Case {
	const trail, after, newest = "0000000000000062-0000000000000126", "0000000000000127-0000000000000130", "0000000000000131-0000000000000135"
	var list []Case
	add := func(name string, d Damage, load raftlog.Outcome, at uint64) *Case {
		list = append(list, Case{Name: "closed segment " + name, Base: Snapshot, Damage: d, Load: load, Last: at})
		return &list[len(list)-1]
	}

	early := rename(trail, raftlog.SegmentName(32, 96))
	add("missing before the snapshot", remove(trail), clean, SnapshotLast).Healthy = true
	add("missing after the snapshot", remove(after), refuses, 0)
	add("damaged before the snapshot", flip(trail, -1), refuses, 0)
	add("damaged after the snapshot", flip(after, -1), refuses, 0)
	add("last damaged after the snapshot", flip(newest, -1), loses, 130)
	add("all missing after the snapshot and open ones too", remove(after, newest, "open-1", "open-2"), clean, SnapshotIndex).
		Healthy = true // nothing tells of them
	add("ends before the snapshot", all(early, remove(after, newest, "open-1", "open-2")), clean, SnapshotIndex).Healthy = true
	add("ends before the snapshot, open ones follow", all(early, remove(after, newest)), loses, SnapshotIndex)
	add("overlap before the snapshot", duplicate(trail, raftlog.SegmentName(50, 114)), loses, 0)
	return list
}

func nameCases() []Case {
	var list []Case
	add := func(name string, load raftlog.Outcome, last uint64) {
		list = append(list, Case{Name: "stray name " + name, Base: Killed, Damage: write(name, []byte("x")), Load: load, Last: last})
	}

	fine := func(name string) {
		add(name, clean, KilledLast)
		list[len(list)-1].Healthy = true
	}

	add("7-9", refuses, 0)
	add("2024-10", crashes, 0)
	add("20240101-1200", crashes, 0)
	add("9-7", crashes, 0)
	add("0-0", crashes, 0)
	add("+5-6", refuses, 0)
	add("127- 130", refuses, 0)
	add("189-190", refuses, 0)
	add("open-01", crashes, 0)
	add("open-+9", refuses, 0)
	add("open-0", refuses, 0)
	add("snapshot-01-5-7", clean, KilledLast)
	add("snapshot-01-5-7.meta", clean, KilledLast)
	add(longName, crashes, 0)
	fine("snapshot-1-5-7")
	fine("snapshot-1-5-7.meta")
	for _, name := range []string{
		"foo.bak", "open-x", "raft_nodes.yaml", "open-1.bak", "0000000000000001-0000000000000001.bak", "00000000000000001-00000000000000001",
		"tmp-metadata1", "tmp-abcdef", "corrupt-1-open-1", "1-2-3", "-", "metadata3", "snapshot-1-2", "tmp-" + longName,
	} {
		fine(name)
	}

	return list
}

// contentCases have every checksum right and something wrong all the same.
func contentCases() []Case {
	var list []Case
	add := func(name string, d Damage, last uint64, start raftlog.Outcome) {
		list = append(list, Case{Name: "content " + name, Base: Killed, Damage: d, Last: last, Start: start})
	}

	add("command format", command(func(c []byte) { c[0] = 9 }), KilledLast, crashes)
	add("command kind", command(func(c []byte) { c[1] = 9 }), KilledLast, crashes)
	add("not a commit", command(func(c []byte) { c[8+8+12] = 0 }), KilledLast, crashes)
	add("too many pages", command(func(c []byte) { c[8+8+16+1] = 1 }), KilledLast, crashes)
	config := func(c raftlog.Configuration) Damage {
		e := raftlog.Entry{Term: 1, Type: raftlog.ChangeEntry, Data: raftlog.EncodeConfiguration(c)}
		return all(remove("open-1", "open-2", "open-3"), write(raftlog.SegmentName(127, 127), Segment(0, []raftlog.Entry{e})))
	}

	one := raftlog.Server{ID: 1, Address: "a:1", Role: raftlog.Voter}
	add("configuration with a role that is none", config(raftlog.Configuration{{ID: 1, Address: "a:1", Role: 3}}), 127, crashes)
	add("configuration with an id twice", config(raftlog.Configuration{one, {ID: 1, Address: "b:1"}}), 127, crashes)
	add("configuration with an address twice", config(raftlog.Configuration{one, {ID: 2, Address: "a:1"}}), 127, crashes)
	add("configuration with id 0", config(raftlog.Configuration{{ID: 0, Address: "a:1"}}), 127, crashes)
	add("configuration without servers", config(nil), 127, clean)
	list = append(list, Case{Name: "content recovery entry", Base: Killed, Damage: config(raftlog.Configuration{one}), Last: 127, Healthy: true})
	fenced := raftlog.Entry{Term: 1 << 31, Type: raftlog.ChangeEntry, Data: raftlog.EncodeConfiguration(raftlog.Configuration{one})}
	list = append(list, Case{Name: "content fenced recovery entry", Base: Stopped, Last: 127, Healthy: true, Damage: all(
		write(raftlog.SegmentName(127, 127), Segment(0, []raftlog.Entry{fenced})),
		write("metadata1", raftlog.Metadata{Version: 101, Term: 1 << 31}.Encode()),
		write("metadata2", raftlog.Metadata{Version: 102, Term: 1 << 31}.Encode()))})
	odd := raftlog.Entry{Term: 2, Type: raftlog.BarrierEntry, Data: make([]byte, 12)}
	list = append(list, Case{Name: "content uneven size", Base: Stopped, Last: 128, Load: loses,
		Damage: write(raftlog.SegmentName(127, 128), Segment(0, []raftlog.Entry{odd, odd}))})
	zero := raftlog.Entry{Term: 0, Type: raftlog.BarrierEntry, Data: make([]byte, 8)}
	list = append(list, Case{Name: "content term 0", Base: Stopped, Last: 127, Load: loses, Start: crashes,
		Damage: write(raftlog.SegmentName(127, 127), Segment(0, []raftlog.Entry{zero}))})
	return list
}

func snapshotCases() []Case {
	const data, meta, older = NewerSnapshot, NewerSnapshot + ".meta", OlderSnapshot
	var list []Case
	add := func(name string, d Damage, load raftlog.Outcome, last uint64) *Case {
		list = append(list, Case{Name: "snapshot " + name, Base: Snapshot, Damage: d, Load: load, Last: last})
		return &list[len(list)-1]
	}

	for _, offset := range []int{0, 8, 16, 24, 32, 41, 52} {
		add(numbered("metadata flipped at", offset), flip(meta, offset), refuses, 0)
	}

	add("metadata short", cut(meta, 31), refuses, 0)
	add("metadata empty", cut(meta, 0), refuses, 0)
	add("metadata cut in the configuration", cut(meta, 40), refuses, 0)
	add("metadata length 0", put(meta, 24, 0), refuses, 0)
	add("metadata length 1 MiB and more", put(meta, 24, 1<<20+1), refuses, 0)
	add("metadata length 2^63", put(meta, 24, 1<<63), refuses, 0)
	add("metadata with junk after it", grow(meta, []byte("junk")), clean, SnapshotLast).Healthy = true
	add("metadata bad configuration", edit(meta, func(p []byte) []byte {
		return raftlog.EncodeSnapshotMeta(51, raftlog.Configuration{{ID: 1, Address: "a", Role: 7}})
	}), refuses, 0)
	add("metadata missing", remove(meta), clean, SnapshotLast).Healthy = true
	add("data missing", remove(data), clean, SnapshotLast).Healthy = true
	add("data empty", cut(data, 0), clean, SnapshotLast).Healthy = true
	add("both missing", remove(data, meta), clean, SnapshotLast).Healthy = true
	add("both gone and no older one", remove(data, meta, older, older+".meta"), refuses, 0)
	add("older one damaged", flip(older, 100), clean, SnapshotLast).Healthy = true
	add("older metadata damaged", flip(older+".meta", 16), clean, SnapshotLast).Healthy = true
	add("magic flipped", flip(data, 0), refuses, 0).Start = crashes // not by 1.18.7, which does not come as far
	add("frame flags flipped", flip(data, 4), refuses, 0)
	add("content size flipped", flip(data, 6), refuses, 0)
	add("data flipped", edit(data, func(p []byte) []byte { p[len(p)/2] ^= 1; return p }), refuses, 0)
	add("data flipped early", flip(data, 60), refuses, 0)
	add("data cut", edit(data, func(p []byte) []byte { return p[:len(p)/2] }), refuses, 0)
	add("checksum flipped", flip(data, -1), refuses, 0).Older = true
	add("checksum cut off", cut(data, -4), refuses, 0).Older = true
	add("end mark cut off", cut(data, -8), refuses, 0).Older = true
	add("junk after the frame", grow(data, []byte("junk")), refuses, 0).Older = true
	add("raw", edit(data, decompress), refuses, 0)
	add("of 4 bytes", cut(data, 4), refuses, 0)
	add("of 1 byte", cut(data, 1), refuses, 0).Start = crashes
	packed := func(option lz4.Option) Damage {
		return edit(data, func(p []byte) []byte { return Compress(decompress(p), option) })
	}

	pair := func(from, to string) Damage { return all(rename(from, to), rename(from+".meta", to+".meta")) }
	add("frame without size", packed(lz4.SizeOption(0)), crashes, 0).Older = true
	add("frame without checksum", packed(lz4.ChecksumOption(false)), clean, SnapshotLast).Healthy = true
	add("older by term wins", pair(older, "snapshot-3-100-1000"), loses, SnapshotLast) // its term is not that of the entry at its index
	add("term 0", all(remove(older, older+".meta"), pair(data, "snapshot-0-126-2000")), clean, SnapshotLast).Start = crashes
	add("ahead of the log", pair(data, "snapshot-2-200-2000"), loses, 200)
	add("index beyond all bounds", pair(data, "snapshot-2-18446744073709551615-2000"), crashes, 0).Older = true

	return append(list, snapshotContentCases()...)
}

// snapshotContentCases have a snapshot in a right frame with something wrong in it.
func snapshotContentCases() []Case {
	const data = NewerSnapshot
	var list []Case
	inner := func(name string, fn func(p []byte) []byte, start raftlog.Outcome) *Case {
		list = append(list, Case{Name: "snapshot content " + name, Base: Snapshot, Damage: reframe(data, fn), Last: SnapshotLast, Start: start})
		return &list[len(list)-1]
	}

	set := func(offset int, v uint64) func(p []byte) []byte {
		return func(p []byte) []byte { binary.LittleEndian.PutUint64(p[offset:], v); return p }
	}

	inner("format 2", set(0, 2), crashes)
	inner("two databases", set(8, 2), crashes)
	inner("many databases", set(8, 1<<40), crashes)
	inner("one page short", func(p []byte) []byte { return p[:len(p)-4096] }, crashes).Older = true // it reads beyond its memory
	inner("one byte more", func(p []byte) []byte { return append(p, 0) }, crashes).Older = true
	inner("size not a multiple of the page", func(p []byte) []byte {
		return set(24, binary.LittleEndian.Uint64(p[24:])-100)(p[:len(p)-100])
	}, crashes)
	inner("size enormous", set(24, 1<<62), crashes)
	inner("name without end", func(p []byte) []byte { return append(p[:16], bytes.Repeat([]byte("n"), 4096)...) }, crashes)
	inner("no SQLite header", func(p []byte) []byte { p[40] ^= 1; return p }, refuses)
	inner("page size 1024", func(p []byte) []byte { p[40+16] = 4; return p }, refuses)
	inner("more pages in the header", func(p []byte) []byte { p[40+30] = 9; return p }, refuses)

	wal := func(name string, fn func(p, wal []byte) []byte, start raftlog.Outcome) {
		damage := reframe(data, func(p []byte) []byte { return fn(p, p[len(p)-4096-24-32:]) })
		list = append(list, Case{Name: "snapshot wal " + name, Base: WAL, Last: SnapshotLast, Start: start, Damage: damage})
	}

	wal("of half a frame", func(p, w []byte) []byte { return set(32, 32+2000)(p[:len(p)-len(w)+32+2000]) }, crashes)
	wal("without commit", func(p, w []byte) []byte { clear(w[32+4 : 32+8]); return p }, crashes)
	wal("with page 0", func(p, w []byte) []byte { clear(w[32 : 32+4]); return p }, crashes)
	wal("with another magic", func(p, w []byte) []byte { w[0] = 0; return p }, refuses)
	list[len(list)-1].Older = true // 1.18.5 and later do not look at it
	return list
}
