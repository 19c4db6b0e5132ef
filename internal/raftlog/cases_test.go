// SPDX-License-Identifier: AGPL-3.0-only

package raftlog_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// States that people have reported in public, made of real members, each with its neighbours. What counts is the index that the disk
// holds a log up to.

// The last indexes of the members, undamaged.
var lastOf = map[raftlogtest.HistoryName]uint64{
	raftlogtest.Member502: 2725, raftlogtest.Standalone502: 3729, raftlogtest.Young502: 2433, raftlogtest.Member66: 3067,
}

// holds damages a member's directory, and says what is then to be read: a log up to an index, without a question, each entry that of
// the undamaged log.
func holds(t *testing.T, name raftlogtest.HistoryName, last uint64, damage func(d *raftlogtest.Directory)) *raftlog.Log {
	t.Helper()
	d := raftlogtest.HistoryOf(t, name).Real()
	damage(d)
	log := open(t, d.FS())
	if log.LastIndex != last || log.SoundIndex != last || log.Undecided() {
		t.Errorf("a log up to index %d (%d), undecided: %v; want %d", log.LastIndex, log.SoundIndex, log.Undecided(), last)
	}

	sameEntries(t, log, d.History)
	if t.Failed() {
		t.Logf("readings %v, problems %v", log.Readings, log.Problems)
	}

	return log
}

// sick is holds where libdqlite does not get the same out of it.
func sick(t *testing.T, name raftlogtest.HistoryName, last uint64, damage func(d *raftlogtest.Directory)) *raftlog.Log {
	t.Helper()
	log := holds(t, name, last, damage)
	if log.Healthy() {
		t.Error("it is said to be healthy")
	}

	return log
}

// flipBit inverts a bit of a byte.
func flipBit(at int) func(p []byte) []byte {
	return func(p []byte) []byte {
		p[at] ^= 1
		return p
	}
}

// lxc/lxc#3482: a closed segment that the newest snapshot covers is damaged, and nothing is lost. libdqlite reads it on every start.
func TestDamagedBelowSnapshot(t *testing.T) {
	for _, name := range raftlogtest.HistoryNames() {
		d := raftlogtest.HistoryOf(t, name).Real()
		snapshots := d.Snapshots()
		var covered []string
		for _, segment := range d.Closed() {
			_, _, last := d.Batch(segment, -1)
			if last <= snapshots[len(snapshots)-1] {
				covered = append(covered, segment)
			}
		}

		for i, segment := range covered {
			size := len(d.Content(segment))
			begin, _, _ := d.Batch(segment, -1)
			damages := map[string]func(p []byte) []byte{"flipped in the middle": flipBit(size / 2)} // as reported
			if i == len(covered)-1 {
				damages["flipped in the format"] = flipBit(0)
				damages["flipped in the last batch header"] = flipBit(begin)
				damages["flipped in the last byte"] = flipBit(size - 1)
				damages["cut"] = func(p []byte) []byte { return p[:size/2] }
				damages["zero"] = func([]byte) []byte { return make([]byte, size) }
				damages["empty"] = func([]byte) []byte { return nil }
			}

			for what, damage := range damages {
				t.Run(fmt.Sprintf("%s, %s, %s", name, segment, what), func(t *testing.T) {
					t.Parallel()
					sick(t, name, lastOf[name], func(d *raftlogtest.Directory) { d.Edit(segment, damage) })
				})
			}
		}
	}
}

// canonical/microk8s#2997, canonical/lxd#6298: a batch after the newest snapshot is damaged, and what comes before it in the same
// segment is not.
func TestDamagedAfterSnapshot(t *testing.T) {
	garbage := func(start int) func(p []byte) []byte {
		return func(p []byte) []byte {
			copy(p[start+8:], "k8s-dqli")
			return p
		}
	}
	t.Run("as reported", func(t *testing.T) {
		const segment = "0000000000002049-0000000000002392"
		start, _, _ := raftlogtest.HistoryOf(t, raftlogtest.Member502).Real().Batch(segment, 300)
		t.Parallel()
		log := sick(t, raftlogtest.Member502, 2348, func(d *raftlogtest.Directory) { d.Edit(segment, garbage(start)) })
		if lost := unreadable(log); lost != 1 {
			t.Errorf("%d entries cannot be read, want 1: %v", lost, log.LeftOut)
		}
	})
	segments := map[raftlogtest.HistoryName][]string{
		raftlogtest.Member502: {"0000000000002049-0000000000002392", "open-8"}, raftlogtest.Standalone502: {"open-2"},
		raftlogtest.Young502: {"open-5"}, raftlogtest.Member66: {"0000000000002050-0000000000002450", "0000000000002451-0000000000003034", "open-2"},
	}
	for name, files := range segments {
		for _, file := range files {
			for _, number := range []int{0, 10, -1} {
				start, end, first := raftlogtest.HistoryOf(t, name).Real().Batch(file, number)
				for what, damage := range map[string]func(p []byte) []byte{
					"count": garbage(start), "header": flipBit(start), "data": flipBit(end - 1),
				} {
					t.Run(fmt.Sprintf("%s, %s, batch %d, %s", name, file, number, what), func(t *testing.T) {
						t.Parallel()
						sick(t, name, first-1, func(d *raftlogtest.Directory) { d.Edit(file, damage) })
					})
				}
			}
		}
	}
}

// unreadable is how many entries are said to be unreadable.
func unreadable(log *raftlog.Log) uint64 {
	n := uint64(0)
	for _, o := range log.LeftOut {
		if !o.Sound {
			n += o.Entries
		}
	}

	return n
}

// canonical/microk8s#1578, canonical/lxd#6298: a closed segment is gone.
func TestMissingSegment(t *testing.T) {
	// Where it was the one before the open one, and ended where the newest snapshot does, everything is still there. After the snapshot
	// its entries are lost, and with them those of the open one.
	lasts := map[string]uint64{
		"0000000000002434-0000000000003072": 3729, // as reported: libdqlite takes the entries from 3073 on for those from 2434 on
		"0000000000002049-0000000000002392": 2048,
		"0000000000002050-0000000000002450": 2049,
		"0000000000001844-0000000000002049": 2048, // it has one entry after the snapshot
	}
	for _, name := range raftlogtest.HistoryNames() {
		closed := raftlogtest.HistoryOf(t, name).Real().Closed()
		for i, segment := range closed {
			t.Run(fmt.Sprintf("%s, %s", name, segment), func(t *testing.T) {
				t.Parallel()
				if segment == "0000000000002451-0000000000003034" {
					asksFor(t, name, 2450, segment)
					return
				}

				last, ok := lasts[segment]
				if !ok {
					last = lastOf[name]
				}

				log := holds(t, name, last, func(d *raftlogtest.Directory) { d.Remove(segment) })
				if healthy := !ok && i < len(closed)-1; log.Healthy() != healthy {
					t.Errorf("healthy: %v, want %v", log.Healthy(), healthy)
				}

				if last < lastOf[name] && len(log.LeftOut) == 0 {
					t.Error("entries are left out, and none is named")
				}
			})
		}
	}
}

// asksFor removes the last closed segment of a run that a new leader has begun: it could have cut it away, so that the open one goes on
// before it. One of the readings ends where the files do.
func asksFor(t *testing.T, name raftlogtest.HistoryName, last uint64, segment string) {
	t.Helper()
	d := raftlogtest.HistoryOf(t, name).Real()
	d.Remove(segment)
	log := open(t, d.FS())
	if !log.Undecided() || log.LastIndex > last || log.Healthy() {
		t.Errorf("undecided: %v, healthy: %v, last index %d", log.Undecided(), log.Healthy(), log.LastIndex)
	}

	sameEntries(t, log, d.History)
	for _, r := range log.Readings {
		if r.Last == last && !r.Excluded {
			return
		}
	}

	t.Errorf("none of %v ends at index %d", log.Readings, last)
}

// LXD's manual, "How to troubleshoot (some) Dqlite errors": closed segments that overlap.
func TestOverlappingSegments(t *testing.T) {
	type bounds struct{ first, last uint64 }
	overlaps := map[raftlogtest.HistoryName][]bounds{
		raftlogtest.Member502: {
			{1200, 1500}, {1100, 1367}, {1025, 1200}, {1025, 1718}, {1, 402}, // inside the log
			{2000, 2100}, {2048, 2049}, {2049, 2100}, {1719, 2392}, {2048, 2048}, {1000, 2392}, // at the snapshot
			{2300, 2392}, {2392, 2392}, // at the end of the closed ones
		},
		raftlogtest.Standalone502: {{3000, 3072}, {3072, 3072}, {2434, 3000}, {1, 634}, {2049, 3072}},
		raftlogtest.Member66:      {{2040, 2060}, {2049, 2050}, {1844, 2450}, {3000, 3034}, {2451, 2451}},
	}
	for name, list := range overlaps {
		for _, o := range list {
			for _, batches := range []int{1, int(o.last - o.first + 1)} {
				t.Run(fmt.Sprintf("%s, %d to %d in %d batches", name, o.first, o.last, batches), func(t *testing.T) {
					t.Parallel()
					log := holds(t, name, lastOf[name], func(d *raftlogtest.Directory) { d.PutSegment(o.first, o.last, batches) })
					if len(log.LeftOut) > 0 {
						t.Errorf("nothing is lost, but %v is left out", log.LeftOut)
					}
				})
			}
		}
	}
}

// A stray file has the name of a segment that is far ahead.
func TestStraySegment(t *testing.T) {
	const stray = "0000000000013101-0000000000013468"
	for _, name := range raftlogtest.HistoryNames() {
		closed := raftlogtest.HistoryOf(t, name).Real().Closed()
		for _, from := range closed {
			t.Run(fmt.Sprintf("%s, %s", name, from), func(t *testing.T) {
				t.Parallel()
				holds(t, name, lastOf[name], func(d *raftlogtest.Directory) { d.Copy(from, stray) })
			})
		}

		for what, content := range map[string][]byte{
			"empty": {}, "short": {1}, "header": raftlog.SegmentHeader(), "zero": make([]byte, 1<<16),
			"text": []byte("this is not a segment, whatever it is called"),
		} {
			t.Run(fmt.Sprintf("%s, %s", name, what), func(t *testing.T) {
				t.Parallel()
				holds(t, name, lastOf[name], func(d *raftlogtest.Directory) { d.Put(stray, content) })
			})
		}
	}
}

// The metadata have term 0, are lost, or short: the log is whole, and LXD does not start, or not well.
func TestLostMetadata(t *testing.T) {
	both := func(d *raftlogtest.Directory, change func(name string)) {
		for _, name := range d.Names() {
			if name == "metadata1" || name == "metadata2" {
				change(name)
			}
		}
	}
	for _, name := range raftlogtest.HistoryNames() {
		t.Run(string(name)+", term 0", func(t *testing.T) {
			t.Parallel()
			sick(t, name, lastOf[name], func(d *raftlogtest.Directory) {
				both(d, func(name string) {
					d.Edit(name, func(p []byte) []byte {
						clear(p[16:24])
						return p
					})
				})
			})
		})
		t.Run(string(name)+", lost", func(t *testing.T) {
			t.Parallel()
			sick(t, name, lastOf[name], func(d *raftlogtest.Directory) { both(d, func(name string) { d.Remove(name) }) })
		})
		t.Run(string(name)+", short", func(t *testing.T) {
			t.Parallel()
			sick(t, name, lastOf[name], func(d *raftlogtest.Directory) {
				both(d, func(name string) { d.Edit(name, func(p []byte) []byte { return p[:31] }) })
			})
		})
	}
}

// LXD's manual, "How to troubleshoot (some) Dqlite errors": the newest snapshot is wrongly small. The older one and the segments have all.
func TestSmallSnapshot(t *testing.T) {
	const older, newest = 1024, 2048
	d := raftlogtest.HistoryOf(t, raftlogtest.Member502).Real()
	name := ""
	for _, n := range d.Names() {
		if strings.HasPrefix(n, fmt.Sprintf("snapshot-1-%d-", newest)) && !strings.HasSuffix(n, ".meta") {
			name = n
		}
	}

	database := bytes.Clone(raftlogtest.HistoryOf(t, raftlogtest.Member502).Database(newest)[:2*4096])
	binary.BigEndian.PutUint32(database[28:], 2) // its size in pages
	d.Put(name, raftlogtest.Compress(raftlogtest.EncodeSnapshot("db.bin", database, nil)))
	log := open(t, d.FS())
	if log.LastIndex != lastOf[raftlogtest.Member502] || log.Snapshot() == nil || log.Snapshot().Index != older || log.Undecided() {
		t.Errorf("a log up to index %d from %+v, undecided: %v", log.LastIndex, log.Snapshot(), log.Undecided())
	}

	if log.Healthy() || log.Libdqlite.Load != raftlog.LoadsButLoses || log.Libdqlite.Start != raftlog.LoadsButLoses {
		t.Errorf("healthy: %v, libdqlite %s, a member that starts: %s", log.Healthy(), log.Libdqlite.Load, log.Libdqlite.Start)
	}

	sameEntries(t, log, d.History)
}

// A young server: its only segment is open, and the format of it is damaged. What begins with a change begins at index 1.
func TestDamagedFormatOfOnlySegment(t *testing.T) {
	for _, name := range raftlogtest.HistoryNames() {
		t.Run(string(name), func(t *testing.T) {
			t.Parallel()
			d := raftlogtest.HistoryOf(t, name).Real()
			first := d.Closed()[0]
			var from, last uint64
			_, err := fmt.Sscanf(first, "%d-%d", &from, &last)
			if err != nil || from != 1 {
				t.Fatalf("%s is not the first segment", first)
			}

			sick(t, name, last, func(d *raftlogtest.Directory) {
				for _, other := range d.Names() {
					if other != first && !strings.HasPrefix(other, "metadata") {
						d.Remove(other)
					}
				}

				d.Rename(first, "open-1")
				d.Edit("open-1", flipBit(0))
			})
		})
	}
}
