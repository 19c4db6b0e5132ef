package raftlog_test

import (
	"context"
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

// differential compares verdicts with those of the real libdqlite.
type differential struct {
	oracle  raftlogtest.Oracle
	asked   atomic.Int32
	answers [raftlog.Crashes + 1]atomic.Int32
	worse   atomic.Int32 // we said worse than it was
}

func newDifferential(t *testing.T) *differential {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	d := &differential{oracle: raftlogtest.NewOracle(t)}
	t.Cleanup(func() {
		t.Logf("libdqlite was asked %d times: it loaded %d directories, refused %d, crashed on %d; we said worse of %d", d.asked.Load(),
			d.answers[raftlog.LoadsClean].Load(), d.answers[raftlog.Refuses].Load(), d.answers[raftlog.Crashes].Load(), d.worse.Load())
	})
	return d
}

// TestDifferential gives every damaged directory to the real libdqlite, in a
// child process and on a copy, and compares what it does with what we said that
// it would do: load, refuse or crash, the entries that remain, and the files.
func TestDifferential(t *testing.T) {
	d := newDifferential(t)
	for _, c := range raftlogtest.Cases() {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			dir, log := damaged(t, c)
			d.compare(t, dir, log, c.Older)
		})
	}
}

// TestDifferentialRandom does the same with damage at random places. There a
// verdict that is too bad is no failure, one that is too good is.
func TestDifferentialRandom(t *testing.T) {
	d := newDifferential(t)
	count := 100
	if n, err := fmt.Sscan(os.Getenv("RAFTLOG_RANDOM"), &count); n == 1 && err == nil {
		t.Logf("%d times", count)
	}
	bases := []raftlogtest.Base{raftlogtest.Killed, raftlogtest.Stopped, raftlogtest.Snapshot, raftlogtest.WAL}
	for seed := range count {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(uint64(seed), 42))
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

// compare asks libdqlite about a directory, which it ruins. With older, our
// verdict may be worse than what this libdqlite does.
func (d *differential) compare(t *testing.T, dir string, log *raftlog.Log, older bool) {
	t.Helper()
	want := entriesOf(t, log, log.LastIndex)
	wantFiles := filesAfter(log)
	starts := raftlogtest.Copy(t, dir)

	d.asked.Add(1)
	real, said := d.oracle.Ask("load", dir)
	d.answers[real].Add(1)
	predicted := log.Load
	if predicted == raftlog.LoadsButLoses {
		predicted = raftlog.LoadsClean // it reports success
	}
	if real < predicted {
		d.worse.Add(1)
	}
	if real > predicted || real < predicted && !older {
		t.Errorf("libdqlite %s (%s), we said: %s", real, said, log.Load)
	}
	if log.Healthy() && real != raftlog.LoadsClean {
		t.Errorf("we said healthy, libdqlite %s", real)
	}
	if real != raftlog.LoadsClean || predicted != raftlog.LoadsClean {
		return
	}

	after, err := raftlog.Open(context.Background(), os.DirFS(dir), raftlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if after.LastIndex != log.LastIndex+1 {
		t.Errorf("libdqlite's recovery entry has index %d, we said the log ends at %d", after.LastIndex, log.LastIndex)
	}
	if got := entriesOf(t, after, log.LastIndex); !slices.Equal(got, want) {
		t.Errorf("libdqlite holds %d entries and we said %d, or they differ", len(got), len(want))
	}
	gotFiles := filesOf(t, dir)
	delete(gotFiles, raftlog.SegmentName(after.LastIndex, after.LastIndex))
	if !maps.Equal(gotFiles, wantFiles) {
		t.Errorf("libdqlite left the files %v, we said %v", slices.Sorted(maps.Keys(gotFiles)), slices.Sorted(maps.Keys(wantFiles)))
	}

	if log.LastIndex == 0 {
		return // a new node: nothing that could be served
	}
	d.asked.Add(2)
	begins, said1 := d.oracle.Ask("begin", starts)
	serves, said2 := d.oracle.Ask("serve", dir)
	real = max(begins, serves)
	if log.Start <= raftlog.LoadsButLoses && real > log.Start {
		t.Errorf("a member that starts: %s (%s; %s), we said: %s", real, said1, said2, log.Start)
	}
	if log.Start > raftlog.LoadsButLoses && real == raftlog.LoadsClean && !older {
		t.Errorf("a member starts, we said: %s", log.Start)
	}
}

// entriesOf lists the entries of the effective log up to an index, with
// configurations decoded, as their padding is garbage.
func entriesOf(t *testing.T, log *raftlog.Log, last uint64) []string {
	t.Helper()
	var list []string
	for e, err := range log.Entries(context.Background(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Index > last {
			break
		}
		data := string(e.Data)
		if c, err := raftlog.ParseConfiguration(e.Data); e.Type == raftlog.ChangeEntry && err == nil {
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
	for _, a := range log.Actions {
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
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]int64{}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		name := e.Name()
		if parts := strings.SplitN(name, "-", 3); len(parts) == 3 && parts[0] == "corrupt" && len(parts[1]) > 10 {
			name = "corrupt--" + parts[2]
		}
		files[name] = info.Size()
	}
	return files
}
