// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"fmt"
	"slices"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// maxRows bounds the rows of one transaction that people are shown; reports have all.
const maxRows = 100

// Tally counts transactions by who made them. A transaction is LXD's own if it changed nothing but what only LXD changes, see
// [globaldb.RowChange.ByLXD]; every other one is a user's, or may be.
type Tally struct {
	Users  int // changes by users
	LXD    int // by LXD itself
	Untold int // by nobody knows whom: their rows cannot be told, or not all
}

// Count counts transactions.
func Count(all []Discarded) Tally {
	t := Tally{}
	for _, d := range all {
		own := !d.byUser()
		switch {
		case !own:
			t.Users++
		case d.Unknown != "":
			t.Untold++
		default:
			t.LXD++
		}
	}

	return t
}

// String says it with what matters first: 1 change by a user, 22 by LXD itself.
func (t Tally) String() string {
	var parts []string
	switch {
	case t.Users == 1:
		parts = append(parts, "1 change by a user")
	case t.Users > 1:
		parts = append(parts, fmt.Sprintf("%d changes by users", t.Users))
	case t.Untold == 0:
		parts = append(parts, "no change by a user")
	}

	if t.Untold > 0 {
		text := fmt.Sprintf("%d that cannot be told", t.Untold)
		if t.Users == 0 {
			text = fmt.Sprintf("%d changes that cannot be told", t.Untold)
		}

		if t.Untold == 1 && t.Users == 0 {
			text = "1 change that cannot be told"
		}

		parts = append(parts, text)
	}

	if t.LXD > 0 {
		parts = append(parts, product.Sprintf("%d by LXD itself", t.LXD))
	}

	return strings.Join(parts, ", ")
}

// Lines lists transactions for people, in their order: what users changed, and what cannot be told. LXD's own, which would hide the
// rest, are left out; a Tally counts them.
func Lines(all []Discarded) []string {
	var lines []string
	for _, d := range all {
		if d.Unknown != "" || d.byUser() {
			lines = append(lines, d.lines()...)
		}
	}

	return lines
}

// byUser tells whether it changed a row that not only LXD changes.
func (d Discarded) byUser() bool {
	return slices.ContainsFunc(d.Rows, func(row globaldb.RowChange) bool { return !row.ByLXD() })
}

// lines are the entry and its rows, without LXD's own.
func (d Discarded) lines() []string {
	text := fmt.Sprintf("index %d, term %d", d.Index, d.Term)
	if d.Index == 0 {
		text = fmt.Sprintf("index unknown, term %d", d.Term)
	}

	if d.File != "" {
		text += ", in " + d.File
	}

	if d.Unknown != "" {
		text += " (" + d.Unknown + ")"
	}

	if d.AfterMissing {
		text += " (entries before it are missing: some of the rows may be theirs)"
	}

	lines := []string{text}
	rows := slices.DeleteFunc(globaldb.Condense(d.Rows), globaldb.RowChange.ByLXD)
	for _, row := range rows[:min(len(rows), maxRows)] {
		lines = append(lines, "  "+row.String())
	}

	if len(rows) == 0 && d.byUser() {
		lines = append(lines, "  (rows were written again, as they were)")
	}

	if len(rows) > maxRows {
		lines = append(lines, fmt.Sprintf("  (and %d more rows: --format json lists them)", len(rows)-maxRows))
	}

	return lines
}

// listed adds transactions to a message, one a line.
func listed(message string, all []Discarded) string {
	lines := Lines(all)
	if len(lines) == 0 {
		return message
	}

	return message + "\n  " + strings.Join(lines, "\n  ") + "\n"
}
