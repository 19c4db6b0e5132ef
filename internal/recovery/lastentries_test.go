// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"reflect"
	"slices"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// What was told of a log is told again, and what has come since is added. It is not told of a log that is another one from there on.
func TestTold(t *testing.T) {
	dir := raftlogtest.Global(t, "small/n2-preimport")
	look := func(told *Told) *InspectReport {
		var r *InspectReport
		err := readSource(t.Context(), dir, Progress{}, func(src *Source, log *raftlog.Log) error {
			read := replay(t.Context(), log)
			defer read.close()

			var err error
			r, err = inspect(t.Context(), src, read, told)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}

		return r
	}

	whole := look(nil)
	if len(whole.LastEntries) < 4 {
		t.Fatalf("%d transactions are told, which is too few for a test", len(whole.LastEntries))
	}

	middle := whole.LastEntries[len(whole.LastEntries)/2].Index
	at := slices.IndexFunc(whole.Entries, func(e InspectEntry) bool { return e.Index == middle })
	told := whole.told()
	told.last = whole.Entries[at]
	told.entries = slices.DeleteFunc(told.entries, func(e InspectTransaction) bool { return e.Index > middle })
	marked := told.entries[0].Index
	told.entries[0] = InspectTransaction{Index: marked, Changes: []string{"as it was told"}}

	again := look(told)
	if again.LastEntries[0].Changes[0] != "as it was told" || !reflect.DeepEqual(again.LastEntries[1:], whole.LastEntries[1:]) ||
		again.LastEntriesFrom != whole.LastEntriesFrom {
		t.Errorf("told again:\n%+v\nwant\n%+v", again.LastEntries, whole.LastEntries)
	}

	for name, change := range map[string]func(*Told){
		"another content":  func(c *Told) { c.last.Checksum = "00" },
		"another term":     func(c *Told) { c.last.Term++ },
		"another snapshot": func(c *Told) { c.snapshot++ },
		"a longer log":     func(c *Told) { c.last.Index = whole.Raft.LastIndex + 1 },
	} {
		other := *told
		change(&other)
		if r := look(&other); !reflect.DeepEqual(r.LastEntries, whole.LastEntries) {
			t.Errorf("%s: %+v", name, r.LastEntries[0])
		}
	}
}
