// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"reflect"
	"testing"
)

// What comes after an index is told as the report of the whole log tells it, and nothing else is. A look does not tell it.
func TestTransactionsAfter(t *testing.T) {
	l := newRollbackLab(t)
	l.withKept(t, "n1-preedit", "n3-preedit")
	whole, err := Inspect(t.Context(), l.dir.path, Progress{})
	must(t, err)
	if len(whole.LastEntries) < 4 {
		t.Fatalf("%d transactions are told, which is too few for a test", len(whole.LastEntries))
	}

	middle := len(whole.LastEntries) / 2
	for after, want := range map[uint64][]InspectTransaction{
		0:                                      whole.LastEntries,
		whole.LastEntries[middle].Index - 1:    whole.LastEntries[middle:],
		whole.LastEntries[middle].Index:        whole.LastEntries[middle+1:],
		whole.LastEntries[middle].Index + 1000: {},
	} {
		told, err := TransactionsAfter(t.Context(), l.dir.path, after, Progress{})
		must(t, err)
		if !reflect.DeepEqual(told.List, want) || told.From != max(after, whole.Raft.SnapshotIndex)+1 {
			t.Errorf("after index %d: all from index %d, %+v, want %+v", after, told.From, told.List, want)
		}
	}

	look, err := Look(t.Context(), l.dir.path, Progress{})
	must(t, err)
	if len(look.Inspect.LastEntries) > 0 || look.Inspect.LastEntriesFrom != whole.Raft.LastIndex+1 {
		t.Errorf("a look tells all from index %d: %+v", look.Inspect.LastEntriesFrom, look.Inspect.LastEntries)
	}
}
