// SPDX-License-Identifier: AGPL-3.0-only

package damage

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// How many directories with damage at random places libdqlite is asked about, in a sample and in a campaign.
const (
	randomSample   = 100
	randomCampaign = 2000
	randomSeed     = 42
)

// campaign says that everything is to be run.
func campaign() bool { return os.Getenv("CAMPAIGN") == "1" }

// differential compares verdicts with those of the real libdqlite.
type differential struct {
	asked   atomic.Int32
	answers [raftlog.Crashes + 1]atomic.Int32
	worse   atomic.Int32 // we said worse than it was
}

func newDifferential(t *testing.T) *differential {
	d := &differential{}
	t.Cleanup(func() {
		t.Logf("libdqlite was asked %d times: it loaded %d directories, refused %d, crashed on %d; we said worse of %d", d.asked.Load(),
			d.answers[raftlog.LoadsClean].Load(), d.answers[raftlog.Refuses].Load(), d.answers[raftlog.Crashes].Load(), d.worse.Load())
	})

	return d
}

// TestCases gives every damaged directory to the real libdqlite, and compares what it does with what we said that it would do: load,
// refuse or crash, the entries that remain, and the files.
func TestCases(t *testing.T) {
	d := newDifferential(t)
	cases := raftlogtest.Cases()
	t.Logf("sample: damage: %d of %d, seed 0", len(cases), len(cases))
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			dir, log := damaged(t, c)
			d.compare(t, dir, log, c.Older)
		})
	}
}

// TestRandom does the same with damage at random places. There a verdict that is too bad is no failure, one that is too good is.
func TestRandom(t *testing.T) {
	d := newDifferential(t)
	count := randomSample
	if campaign() {
		count = randomCampaign
	}

	t.Logf("sample: random damage: %d of %d, seed %d", count, randomCampaign, randomSeed)
	bases := []raftlogtest.Base{raftlogtest.Killed, raftlogtest.Stopped, raftlogtest.Snapshot, raftlogtest.WAL}
	for number := range count {
		t.Run(fmt.Sprint(number), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(uint64(number), randomSeed))
			c := raftlogtest.Case{Base: bases[rnd.IntN(len(bases))]}
			var what string
			c.Damage, what = raftlogtest.Random(rnd)
			dir, log := damaged(t, c)
			d.compare(t, dir, log, true)
			if t.Failed() {
				t.Logf("%s: %s", c.Base, what)
			}
		})
	}
}

// damaged returns the directory of a case and what raftlog says of it.
func damaged(t *testing.T, c raftlogtest.Case) (string, *raftlog.Log) {
	t.Helper()
	dir := raftlogtest.Make(t, c.Base)
	must(t, c.Damage(dir))
	return dir, open(t, dir)
}

func open(t *testing.T, dir string) *raftlog.Log {
	t.Helper()
	log, err := raftlog.Open(t.Context(), os.DirFS(dir), raftlog.Options{})
	must(t, err)
	return log
}

// compare asks libdqlite about a directory, which it ruins. With older, our verdict may be worse than what this libdqlite does.
func (d *differential) compare(t *testing.T, dir string, log *raftlog.Log, older bool) {
	t.Helper()
	starts := raftlogtest.Copy(t, dir)
	if !d.compareLoad(t, dir, log, older) || log.Libdqlite.LastIndex == 0 {
		return // not loaded; or a new node, with nothing that could be served
	}

	d.asked.Add(2)
	begins, said1 := ask(t, begin, starts)
	serves, said2 := ask(t, serve, dir)
	real := max(begins, serves)
	if log.Libdqlite.Start <= raftlog.LoadsButLoses && real > log.Libdqlite.Start {
		t.Errorf("a member that starts: %s (%s; %s), we said: %s", real, said1, said2, log.Libdqlite.Start)
	}

	if log.Libdqlite.Start > raftlog.LoadsButLoses && real == raftlog.LoadsClean && !older {
		t.Errorf("a member starts, we said: %s", log.Libdqlite.Start)
	}
}

// compareLoad has libdqlite load a directory, and says whether it did, as foretold.
func (d *differential) compareLoad(t *testing.T, dir string, log *raftlog.Log, older bool) bool {
	t.Helper()
	want := entriesOf(t, log, log.Libdqlite.LastIndex)
	d.asked.Add(1)
	real, said := ask(t, load, dir)
	d.answers[real].Add(1)
	predicted := log.Libdqlite.Load
	if predicted == raftlog.LoadsButLoses {
		predicted = raftlog.LoadsClean // it reports success
	}

	if real < predicted {
		d.worse.Add(1)
	}

	if real > predicted || real < predicted && !older {
		t.Errorf("libdqlite %s (%s), we said: %s", real, said, log.Libdqlite.Load)
	}

	if log.Healthy() && real != raftlog.LoadsClean {
		t.Errorf("we said healthy, libdqlite %s", real)
	}

	if real != raftlog.LoadsClean || predicted != raftlog.LoadsClean {
		return false
	}

	after := open(t, dir)
	if after.Libdqlite.LastIndex != log.Libdqlite.LastIndex+1 {
		t.Errorf("libdqlite's recovery entry has index %d, we said the log ends at %d", after.Libdqlite.LastIndex, log.Libdqlite.LastIndex)
	}

	got := entriesOf(t, after, log.Libdqlite.LastIndex)
	if !slices.Equal(got, want) {
		t.Errorf("libdqlite holds %d entries and we said %d, or they differ", len(got), len(want))
	}

	gotFiles, wantFiles := filesOf(t, dir), filesAfter(log)
	delete(gotFiles, raftlog.SegmentName(after.Libdqlite.LastIndex, after.Libdqlite.LastIndex))
	if !maps.Equal(gotFiles, wantFiles) {
		t.Errorf("libdqlite left the files %v, we said %v", slices.Sorted(maps.Keys(gotFiles)), slices.Sorted(maps.Keys(wantFiles)))
	}

	return true
}

// entriesOf lists the entries that libdqlite holds up to an index, with configurations decoded, as their padding is garbage.
func entriesOf(t *testing.T, log *raftlog.Log, last uint64) []string {
	t.Helper()
	var list []string
	for e, err := range log.LibdqliteEntries(t.Context(), 0) {
		must(t, err)
		if e.Index > last {
			break
		}

		data := string(e.Data)
		c, err := raftlog.ParseConfiguration(e.Data)
		if e.Type == raftlog.ChangeEntry && err == nil {
			data = fmt.Sprint(c)
		}

		list = append(list, fmt.Sprintf("%d %d %s %s", e.Index, e.Term, e.Type, data))
	}

	return list
}

// filesAfter applies the announced actions to the names and sizes.
func filesAfter(log *raftlog.Log) map[string]int64 {
	files := map[string]int64{}
	for _, f := range log.Files {
		if f.Kind != raftlog.SubDirectory {
			files[f.Name] = f.Size
		}
	}

	for _, a := range log.Libdqlite.Actions {
		switch a.Kind {
		case raftlog.Delete:
			delete(files, a.File)
		case raftlog.Truncate:
			files[a.File] = a.Size
		case raftlog.Rename:
			files[strings.Replace(a.To, "<ns>", "", 1)] = files[a.File]
			delete(files, a.File)
		}
	}

	files["dqlite-lock"] = 0
	return files
}

// filesOf lists names and sizes, with the time taken out of corrupt-….
func filesOf(t *testing.T, dir string) map[string]int64 {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	files := map[string]int64{}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}

		info, err := e.Info()
		must(t, err)
		name := e.Name()
		parts := strings.SplitN(name, "-", 3)
		if len(parts) == 3 && parts[0] == "corrupt" && len(parts[1]) > 10 {
			name = "corrupt--" + parts[2]
		}

		files[name] = info.Size()
	}

	return files
}
