// SPDX-License-Identifier: AGPL-3.0-only

package damage

import (
	"maps"
	"slices"
	"sync"
	"testing"
)

// outcome is what became of a damaged directory.
type outcome int

const (
	takenRight outcome = iota // the log is right, and as long as can be proven
	healthy                   // and libdqlite would have the same
	asked                     // there are several readings
	unknowable                // nothing can tell that entries are missing
	wrong
	outcomes
)

// tally counts outcomes by kind of damage. A directory with several kinds counts for each of them.
type tally struct {
	mu       sync.Mutex
	all      [outcomes]int
	kinds    map[string]*[outcomes]int
	mistakes map[string]int // directories with a kind of mistake
}

// newTally is one that is printed at the end of a test.
func newTally(t *testing.T) *tally {
	c := &tally{kinds: map[string]*[outcomes]int{}, mistakes: map[string]int{}}
	t.Cleanup(func() { c.print(t) })
	return c
}

func (c *tally) add(o outcome, kinds []string, mistakes []mistake) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all[o]++
	for _, kind := range slices.Compact(slices.Sorted(slices.Values(kinds))) {
		if c.kinds[kind] == nil {
			c.kinds[kind] = &[outcomes]int{}
		}

		c.kinds[kind][o]++
	}

	found := map[string]bool{}
	for _, m := range mistakes {
		switch {
		case m.kind == cannotBeKnown:
			found[m.kind+": "+m.text] = true
		case o == wrong:
			found[m.kind] = true
		}
	}

	for kind := range found {
		c.mistakes[kind]++
	}
}

// maxUnknowable is of how many directories in a hundred nothing can tell that they are not what they seem to be.
const maxUnknowable = 5

// wantKnown fails the test where more is said to be beyond knowing than that.
func (c *tally) wantKnown(t *testing.T, count int) {
	if c.all[unknowable]*100 > maxUnknowable*count {
		t.Errorf("%d of %d directories cannot be known, more than %d of a hundred", c.all[unknowable], count, maxUnknowable)
	}
}

// sum is how many directories there are.
func sum(counts [outcomes]int) int {
	n := 0
	for _, count := range counts {
		n += count
	}

	return n
}

func (c *tally) print(t *testing.T) {
	line := func(name string, o [outcomes]int) {
		t.Logf("%5d %-57s %5d taken right, %4d of them healthy, %4d asked, %4d cannot be known, %4d wrong", sum(o), name,
			o[takenRight]+o[healthy], o[healthy], o[asked], o[unknowable], o[wrong])
	}

	for _, kind := range slices.Sorted(maps.Keys(c.kinds)) {
		line(kind, *c.kinds[kind])
	}

	line("directories", c.all)
	for _, kind := range slices.Sorted(maps.Keys(c.mistakes)) {
		t.Logf("%5d %s", c.mistakes[kind], kind)
	}
}
