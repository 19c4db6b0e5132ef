// SPDX-License-Identifier: AGPL-3.0-only

package damage

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// How many directories are read, in a sample and in a campaign; and the seed.
const (
	readingsSample   = 200
	readingsCampaign = 4200
	readingsSeed     = 8
)

// maxAsked is in how many directories of a hundred it may ask.
const maxAsked = 5

// fileKinds are the kinds of damage that leave the content of what is left as it was: files are removed, copied, renamed and cut.
func fileKinds() []raftlogtest.Kind {
	var list []raftlogtest.Kind
	for _, k := range raftlogtest.Kinds() {
		word, _, _ := strings.Cut(k.Name, " ")
		switch word {
		case "remove", "copy", "overlap", "rename", "cut":
			list = append(list, k)
		}
	}

	return list
}

// TestReadings removes, copies, renames and cuts any number of the files of a directory, one kind at a time, or several kinds. The
// reading that is taken is the truth, or it asks: seldom, and never if files were only copied, or others came.
func TestReadings(t *testing.T) {
	count := readingsSample
	if campaign() {
		count = readingsCampaign
	}

	kinds := fileKinds()
	tally := newTally(t)
	t.Cleanup(func() {
		if tally.all[asked]*100 > maxAsked*count {
			t.Errorf("it asks in %d of %d directories, more than %d of a hundred", tally.all[asked], count, maxAsked)
		}

		tally.wantKnown(t, count)
	})
	t.Logf("sample: readings: %d of %d, seed %d", count, readingsCampaign, readingsSeed)
	for number := range count {
		t.Run(fmt.Sprint(number), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(uint64(number), readingsSeed))
			d := breakable(t, rnd, func(d *raftlogtest.Directory) bool {
				return someOf(rnd, d, kinds[number%len(kinds)], kinds)
			})
			c := newCheck(t, d)
			c.taken()
			c.report(tally)
		})
	}
}

// someOf does a kind of damage to any number of files; now and then other kinds as well.
func someOf(rnd *rand.Rand, d *raftlogtest.Directory, kind raftlogtest.Kind, kinds []raftlogtest.Kind) bool {
	if !d.Apply(rnd, kind) {
		return false
	}

	mixed := rnd.IntN(5) == 0
	for rnd.IntN(2) == 0 {
		if mixed {
			kind = kinds[rnd.IntN(len(kinds))]
		}

		d.Apply(rnd, kind)
	}

	return true
}
