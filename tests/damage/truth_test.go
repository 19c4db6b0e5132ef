// SPDX-License-Identifier: AGPL-3.0-only

package damage

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// How many directories of which the truth is known are damaged, in a sample and in a campaign; and the seed.
const (
	truthSample   = 300
	truthCampaign = 2400
	truthSeed     = 7
)

// realOneIn is one in how many of these directories that is used as the member left it; the others have lived once more.
const realOneIn = 8

// TestTruth damages directories whose undamaged log is kept, in one to three ways. What is read from them may not be less than what the
// files still prove, not more than what was true, and no entry may be wrong; nothing that is left out goes unsaid. What is healthy
// loads and starts in the real libdqlite, with the same entries and the same rows.
func TestTruth(t *testing.T) {
	count := truthSample
	if campaign() {
		count = truthCampaign
	}

	kinds := raftlogtest.Kinds()
	tally := newTally(t)
	t.Cleanup(func() { tally.wantKnown(t, count) })
	t.Logf("sample: damage to a log that is known: %d of %d, seed %d", count, truthCampaign, truthSeed)
	for number := range count {
		t.Run(fmt.Sprint(number), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(uint64(number), truthSeed))
			kind := kinds[number%len(kinds)]
			d := breakable(t, rnd, func(d *raftlogtest.Directory) bool { return d.Break(rnd, kind) })
			c := newCheck(t, d)
			c.taken()
			c.leftOut()
			if c.healthy {
				c.served()
			}

			c.report(tally)
		})
	}
}

// breakable is a directory that damage applies to.
func breakable(t *testing.T, rnd *rand.Rand, damage func(d *raftlogtest.Directory) bool) *raftlogtest.Directory {
	t.Helper()
	const attempts = 100
	names := raftlogtest.HistoryNames()
	for range attempts {
		h := raftlogtest.HistoryOf(t, names[rnd.IntN(len(names))])
		d := h.Real()
		if rnd.IntN(realOneIn) > 0 {
			d = h.Live(rnd)
		}

		if damage(d) {
			return d
		}
	}

	t.Fatalf("the damage applies to none of %d directories", attempts)
	return nil
}
