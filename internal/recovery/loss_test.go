// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
)

// Transactions of users, of LXD, and of nobody knows whom.
var (
	userRow   = globaldb.RowChange{Table: "profiles", Key: "id=3", Words: "profile precious", Before: map[string]string{"id": "3"}}
	ownRow    = globaldb.RowChange{Table: "operations", Key: "id=7", Words: "operation x", After: map[string]string{"id": "7"}}
	byUser    = Discarded{Index: 7, Term: 2, Rows: []globaldb.RowChange{ownRow, userRow}}
	byLXD     = Discarded{Index: 8, Term: 2, Rows: []globaldb.RowChange{ownRow}}
	noRow     = Discarded{Index: 9, Term: 2}
	unread    = Discarded{Term: 3, File: "open-1", Unknown: "not read", AfterMissing: true}
	cutOwn    = Discarded{Index: 11, Term: 3, Unknown: moreRows, Rows: []globaldb.RowChange{ownRow}}
	cutByUser = Discarded{Index: 12, Term: 3, Unknown: moreRows, Rows: []globaldb.RowChange{userRow}}
)

func TestCount(t *testing.T) {
	for want, all := range map[string][]Discarded{
		"no change by a user":                                        {},
		"1 change by a user":                                         {byUser},
		"no change by a user, 2 by LXD itself":                       {byLXD, noRow},
		"1 change by a user, 1 by LXD itself":                        {byLXD, byUser},
		"2 changes by users, 1 that cannot be told, 2 by LXD itself": {byUser, byLXD, unread, cutByUser, noRow},
		"1 change that cannot be told":                               {unread},
		"2 changes that cannot be told, 1 by LXD itself":             {cutOwn, unread, byLXD},
		"1 change by a user, 2 that cannot be told, 1 by LXD itself": {cutOwn, unread, byLXD, byUser},
	} {
		if got := Count(all).String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// What users changed is listed, in its order, and what cannot be told; nothing of LXD's own is.
func TestLines(t *testing.T) {
	got := Lines([]Discarded{byLXD, byUser, noRow, unread, cutOwn, cutByUser})
	want := []string{
		"index 7, term 2",
		"  delete profile precious",
		"index unknown, term 3, in open-1 (not read) (entries before it are missing: some of the rows may be theirs)",
		"index 11, term 3 (only the first 1000 of each table)",
		"index 12, term 3 (only the first 1000 of each table)",
		"  delete profile precious",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}

	again := userRow
	again.After, again.Before = map[string]string{"id": "4"}, nil
	got = Lines([]Discarded{{Index: 14, Term: 3, Rows: []globaldb.RowChange{userRow, again}}})
	if !slices.Equal(got, []string{"index 14, term 3", "  (rows were written again, as they were)"}) {
		t.Errorf("%q", got)
	}

	many := Discarded{Index: 13, Term: 3}
	for i := range maxRows + 5 {
		many.Rows = append(many.Rows, globaldb.RowChange{Table: "t", Key: fmt.Sprintf("id=%d", i), After: map[string]string{}})
	}

	got = Lines([]Discarded{many})
	if len(got) != maxRows+2 || got[maxRows] != "  insert t id=99" || !strings.HasPrefix(got[maxRows+1], "  (and 5 more rows") {
		t.Errorf("%d lines, the last ones %q", len(got), got[maxRows:])
	}
}
