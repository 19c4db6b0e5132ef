// SPDX-License-Identifier: AGPL-3.0-only

package damage

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// check compares what is read from a damaged directory with the truth.
type check struct {
	t     *testing.T
	d     *raftlogtest.Directory
	truth raftlogtest.Truth
	log   *raftlog.Log

	undecided, healthy bool   // of the log, before a reading is chosen
	shift              uint64 // how much too low the indexes are that the log calls likely only, see raftlog.Log.Unproven
	mistakes           []mistake
}

// mistake is something that is not as it is in truth.
type mistake struct{ kind, text string }

// The kinds of mistake.
const (
	lessThanProven = "less than what is proven"
	moreThanTruth  = "more than the truth"
	wrongEntry     = "wrong entry"
	wrongRows      = "wrong rows"
	noReading      = "none of the readings is the truth"
	needlessAsking = "nothing was lost, and not all is there without a question"
	unsaid         = "left out unsaid"
	notServed      = "healthy, and libdqlite has something else"

	cannotBeKnown = "nothing can tell" // no failure: docs/raft-directory.md, Readings
)

func newCheck(t *testing.T, d *raftlogtest.Directory) *check {
	t.Helper()
	log, err := raftlog.Open(t.Context(), d.FS(), raftlog.Options{})
	must(t, err)
	must(t, globaldb.Judge(t.Context(), log))
	return &check{t: t, d: d, truth: d.Truth(), log: log, undecided: log.Undecided(), healthy: log.Healthy()}
}

func (c *check) add(kind string, format string, args ...any) {
	c.mistakes = append(c.mistakes, mistake{kind, fmt.Sprintf(format, args...)})
}

// taken looks at the log that is taken, or, when it asks, at the beginning that the readings have in common: one of them must be the
// truth then, as far as it is proven.
func (c *check) taken() {
	c.t.Helper()
	if harmless(c.d.Kinds) && (c.undecided || c.log.LastIndex != c.d.Last) {
		c.add(needlessAsking, "undecided: %v, last index %d of %d", c.undecided, c.log.LastIndex, c.d.Last)
	}

	found := c.compare()
	if !c.undecided {
		c.mistakes = append(c.mistakes, found...)
		return
	}

	for _, m := range found {
		if m.kind != lessThanProven {
			c.mistakes = append(c.mistakes, m)
		}
	}

	var texts []string
	for _, r := range c.log.Readings {
		if r.Excluded {
			continue
		}

		must(c.t, c.log.Choose(r.Digest))
		found = c.compare()
		if len(found) == 0 {
			return
		}

		texts = append(texts, fmt.Sprintf("%s: %s: %s", r.Digest, found[0].kind, found[0].text))
		for _, m := range found {
			if m.kind == cannotBeKnown {
				c.mistakes = append(c.mistakes, m)
			}
		}
	}

	c.add(noReading, "%q", texts)
}

// harmless says whether all kinds of damage are.
func harmless(kinds []string) bool {
	return !slices.ContainsFunc(raftlogtest.Kinds(), func(k raftlogtest.Kind) bool { return !k.Harmless && slices.Contains(kinds, k.Name) })
}

// compare compares the log with the truth.
func (c *check) compare() []mistake {
	c.t.Helper()
	saved := c.mistakes
	defer func() { c.mistakes = saved }()
	c.mistakes = nil
	if c.log.SoundIndex < c.truth.Last {
		c.add(lessThanProven, "the log ends at index %d, the files prove %d", c.log.SoundIndex, c.truth.Last)
	}

	if c.log.SoundIndex == 0 {
		return c.mistakes // nothing is said of entries without a beginning
	}

	if c.log.LastIndex > c.d.Last {
		c.add(moreThanTruth, "the log ends at index %d, in truth it ended at %d", c.log.LastIndex, c.d.Last)
	}

	c.entries()
	c.rows()
	return c.mistakes
}

// entries compares each entry with that of its index, and sees that none is missing after the snapshot.
func (c *check) entries() {
	c.t.Helper()
	start := uint64(0)
	if s := c.log.Snapshot(); s != nil {
		start = s.Index
	}

	c.shift = 0
	unproven := c.log.Unproven()
	next := start + 1
	for e, err := range c.log.Entries(c.t.Context(), 0) {
		must(c.t, err)
		if e.Index == unproven {
			c.shift = shiftOf(c.d.History, e)
		}

		e.Index += c.shift
		if !right(c.d.History, e) {
			excuse := c.excuse(e)
			if excuse != "" {
				c.add(cannotBeKnown, "%s", excuse)
				return
			}

			c.add(wrongEntry, "index %d, from byte %d of %s", e.Index, e.Offset, e.File)
			return
		}

		e.Index -= c.shift
		if e.Index > start && c.log.SoundIndex > 0 {
			if e.Index != next {
				c.add(wrongEntry, "index %d comes after %d", e.Index, next-1)
				return
			}

			next++
		}
	}

	if next != c.log.LastIndex+1 && c.log.SoundIndex > 0 {
		c.add(wrongEntry, "the entries end before index %d, the log at %d", next, c.log.LastIndex)
	}
}

// excuse says why nothing can tell that an entry is not the one with its index; empty if something can.
func (c *check) excuse(e raftlog.Entry) string {
	unproven := c.log.Unproven()
	switch {
	case e.Index == c.truth.Untold:
		return "the last closed segment before open-1 is gone"
	case unproven > 0 && e.Index >= unproven:
		return "indexes after the snapshot are not proven, and said to be so"
	case c.d.Misnamed(e.File):
		return "a closed segment has the name of another place"
	case c.d.Uncertain(e.File):
		return "segments before an open one are gone or have other names"
	}

	return ""
}

// shiftOf is by how much the index of an entry is too low: the entries between may be barriers and configurations, of which nothing
// tells after they are lost, and no transactions.
func shiftOf(h *raftlogtest.History, e raftlog.Entry) uint64 {
	first := e.Index
	for ; e.Index <= h.Last(); e.Index++ {
		if right(h, e) {
			return e.Index - first
		}

		if h.At(e.Index).Type == raftlog.CommandEntry {
			break
		}
	}

	return 0
}

// right says whether an entry is that of the history at its index.
func right(h *raftlogtest.History, e raftlog.Entry) bool {
	if e.Index == 0 || e.Index > h.Last() {
		return false
	}

	want := h.At(e.Index)
	return e.Term == want.Term && e.Type == want.Type && bytes.Equal(e.Data, want.Data)
}

// leftOut sees that entries which are on the disk and come after the log's end are named as left out: by a file that has them.
func (c *check) leftOut() {
	c.t.Helper()
	named := map[string]bool{}
	for _, o := range c.log.LeftOut {
		named[o.File] = true
	}

	said := map[uint64]bool{}
	for name, indexes := range c.truth.OnDisk {
		for _, i := range indexes {
			said[i] = said[i] || named[name] || i <= c.log.LastIndex+c.shift
		}
	}

	for _, name := range c.d.Names() {
		for _, i := range c.truth.OnDisk[name] {
			if !said[i] {
				c.add(unsaid, "%s holds entry %d, and the log ends at index %d", name, i, c.log.LastIndex)
				return
			}
		}
	}
}

// database is the replay of the log that was read, nil if there is none.
func (c *check) database() *globaldb.DB {
	c.t.Helper()
	db, err := globaldb.Open(c.t.Context(), c.log, 0)
	if errors.Is(err, globaldb.ErrNoDatabase) && c.d.History.Database(c.log.LastIndex+c.shift) == nil {
		return nil
	}

	if err != nil {
		c.add(wrongRows, "the log cannot be replayed: %v", err)
		return nil
	}

	return db
}

// rows compares the replay with that of the undamaged history at the same index: the same bytes.
func (c *check) rows() {
	c.t.Helper()
	if c.log.SoundIndex == 0 || c.log.SoundIndex+c.shift > c.d.History.Last() {
		return
	}

	db := c.database()
	if db == nil {
		return
	}

	defer db.Close()

	got, err := os.ReadFile(db.File)
	must(c.t, err)
	want := c.d.History.Database(c.log.SoundIndex + c.shift)
	want[18], want[19] = 1, 1 // the replay takes it out of WAL mode
	if !bytes.Equal(got, want) {
		c.add(wrongRows, "the replay up to index %d is not what it was in truth", c.log.SoundIndex)
	}
}

// served has the real libdqlite load a directory that is said to be healthy, and start on it.
func (c *check) served() {
	c.t.Helper()
	dir := c.t.TempDir()
	must(c.t, c.d.Write(dir))
	outcome, said := ask(c.t, load, dir)
	if outcome != raftlog.LoadsClean {
		c.add(notServed, "it %s: %s", outcome, said)
		return
	}

	after := open(c.t, dir)
	if after.Libdqlite.LastIndex != c.log.LastIndex+1 {
		c.add(notServed, "the log ends at index %d, and libdqlite appends at %d", c.log.LastIndex, after.Libdqlite.LastIndex)
	}

	for e, err := range after.LibdqliteEntries(c.t.Context(), 0) {
		must(c.t, err)
		if e.Index <= c.log.LastIndex && !right(c.d.History, e) {
			c.add(notServed, "wrong entry at index %d", e.Index)
			return
		}
	}

	c.servedRows(dir)
}

// servedRows compares the rows that libdqlite serves with those of the replay.
func (c *check) servedRows(dir string) {
	c.t.Helper()
	db := c.database()
	if db == nil {
		return
	}

	defer db.Close()

	want, err := db.Fingerprint(c.t.Context())
	must(c.t, err)
	outcome, said := ask(c.t, rows, dir)
	var got globaldb.Fingerprint
	if outcome != raftlog.LoadsClean || json.Unmarshal([]byte(said), &got) != nil {
		c.add(notServed, "a member that starts: it %s: %s", outcome, said)
		return
	}

	if differ := want.Differ(got); len(differ) > 0 {
		c.add(notServed, "it serves other rows in %v", differ)
	}
}

// report fails the test for every mistake, and counts. What follows from entries of which nothing can tell that they are missing is none.
func (c *check) report(tally *tally) {
	c.t.Helper()
	for i, m := range c.mistakes { // wrong names that go together prove what is not true
		if (m.kind == noReading || m.kind == lessThanProven) && slices.ContainsFunc(c.d.Names(), c.d.Misnamed) {
			c.mistakes[i].kind = cannotBeKnown
		}
	}

	if slices.ContainsFunc(c.mistakes, func(m mistake) bool { return m.kind == cannotBeKnown }) {
		tally.add(unknowable, c.d.Kinds, c.mistakes)
		return
	}

	tally.add(c.outcome(), c.d.Kinds, c.mistakes)
	if len(c.mistakes) == 0 {
		return
	}

	for _, m := range c.mistakes {
		c.t.Errorf("%s: %s", m.kind, m.text)
	}

	c.t.Logf("%s up to %d: %q", c.d.History.Name, c.d.Last, c.d.Done)
	c.t.Logf("files: %v", c.d.Names())
	for _, r := range c.log.Readings {
		c.t.Logf("reading %s: %s", r.Digest, r)
	}

	for _, o := range c.log.LeftOut {
		c.t.Logf("left out: %s", o)
	}
}

// outcome is what became of the directory.
func (c *check) outcome() outcome {
	switch {
	case len(c.mistakes) > 0:
		return wrong
	case c.undecided:
		return asked
	case c.healthy:
		return healthy
	}

	return takenRight
}
