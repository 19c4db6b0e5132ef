// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// Transactions: of a user, of LXD, and one that nobody can tell.
var (
	deleted   = globaldb.RowChange{Table: "profiles", Key: "id=1", Words: "profile precious", Before: map[string]string{"id": "1"}}
	operation = globaldb.RowChange{Table: "operations", Key: "id=2", After: map[string]string{"id": "2"}}
	lost      = []recovery.Discarded{
		{Index: 7, Term: 2, Rows: []globaldb.RowChange{operation, deleted}}, {Index: 8, Term: 2, Rows: []globaldb.RowChange{operation}},
		{Index: 9, Term: 2, Unknown: "not read"},
	}
)

// What is given up is listed in the plan, led by what a user did; the report of what was done lists what has come to it since.
func TestToldOnce(t *testing.T) {
	told := &toldOnce{}
	var plan, done, again strings.Builder
	told.printLost(&plan, "will be", lost, []string{"10 entries in open-1"})
	want := `
Transactions that will be given up: 1 change by a user, 1 that cannot be told, 1 by LXD itself:
  index 7, term 2
    delete profile precious
  index 9, term 2 (not read)

What will be given up, too, and cannot be told:
  10 entries in open-1
`
	if plan.String() != want {
		t.Errorf("the plan: %s", plan.String())
	}

	told.printLost(&done, "are", lost, []string{"10 entries in open-1"})
	if want := "\nTransactions that are given up: 1 change by a user, 1 that cannot be told, 1 by LXD itself.\n"; done.String() != want {
		t.Errorf("done: %s", done.String())
	}

	more := recovery.Discarded{Index: 10, Term: 2, Rows: []globaldb.RowChange{deleted}}
	told.printLost(&again, "are", append(lost, more), nil)
	want = `
Transactions that are given up: 2 changes by users, 1 that cannot be told, 1 by LXD itself; not listed above:
  index 10, term 2
    delete profile precious
`
	if again.String() != want {
		t.Errorf("one more: %s", again.String())
	}

	var others, othersAgain strings.Builder
	told.others().printLost(&others, "are", lost[:1], nil) // of the same places
	told.others().printLost(&othersAgain, "are", lost[:1], nil)
	if !strings.Contains(others.String(), "profile precious") || strings.Contains(othersAgain.String(), "profile precious") {
		t.Errorf("the other log: %s%s", others.String(), othersAgain.String())
	}

	var nothing strings.Builder
	(&toldOnce{}).printLost(&nothing, "are", nil, nil)
	if nothing.String() != "" {
		t.Errorf("nothing: %q", nothing.String())
	}
}

// A dry run lists what would be lost in its plan, and not in the refusal as well.
func TestWithoutEntries(t *testing.T) {
	refusal := &recovery.Refusal{Code: "x", Reason: "so much", Entries: lost, Flag: "--discard"}
	err := withoutEntries(refusal)
	if err.Error() != "so much; --discard overrides this" || len(refusal.Entries) != len(lost) || !strings.Contains(refusal.Error(), "profile precious") {
		t.Errorf("%v, from %v", err, refusal)
	}

	var kept *recovery.Refusal
	if !errors.As(err, &kept) || kept.Code != "x" {
		t.Errorf("%v is no refusal any more", err)
	}

	other := fmt.Errorf("another")
	if got := withoutEntries(other); !errors.Is(got, other) || withoutEntries(nil) != nil {
		t.Error("another error was changed")
	}
}

// --find finds what a row says, to the end of a long value, and nothing by a secret.
func TestSays(t *testing.T) {
	long := strings.Repeat("x", 100) + " The End"
	entry := recovery.HistoryEntry{Rows: []globaldb.RowChange{{
		Table: "config", Key: "id=1", Words: "config user.note=xxx… of the cluster",
		After: map[string]string{"id": "1", "key": "'user.note'", "value": "'" + long + "'"},
	}}}
	for text, want := range map[string]bool{"user.note": true, "the end": true, "insert config": true, "the beginning": false} {
		if says(entry, text) != want {
			t.Errorf("%q: %v", text, !want)
		}
	}
}
