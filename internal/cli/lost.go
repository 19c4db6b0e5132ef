// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"errors"
	"fmt"
	"io"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// toldOnce shows transactions that a run gives up. In a plan and in the report of what was done they are the same, and are listed once;
// what came to them in between is listed then.
type toldOnce struct {
	listed map[place]bool
	untold int // how many of what cannot be told were listed
	other  *toldOnce
}

// others is for transactions of another log: one may have what the other has in the same place, and be another.
func (o *toldOnce) others() *toldOnce {
	if o.other == nil {
		o.other = &toldOnce{}
	}

	return o.other
}

// place is where a transaction is.
type place struct {
	index, term uint64
	file        string
}

// print writes a heading, how many are users' changes, and those that were not listed yet. LXD's own are only counted.
func (o *toldOnce) print(w io.Writer, heading string, all []recovery.Discarded) {
	if len(all) == 0 {
		return
	}

	if o.listed == nil {
		o.listed = map[place]bool{}
	}

	var more []recovery.Discarded
	for _, d := range all {
		if !o.listed[place{d.Index, d.Term, d.File}] {
			more = append(more, d)
		}
	}

	for _, d := range more {
		o.listed[place{d.Index, d.Term, d.File}] = true
	}

	above := ""
	if len(more) < len(all) {
		above = "; not listed above"
	}

	lines := recovery.Lines(more)
	if len(lines) == 0 {
		fmt.Fprintf(w, "\n%s: %s.\n", heading, recovery.Count(all))
		return
	}

	fmt.Fprintf(w, "\n%s: %s%s:\n", heading, recovery.Count(all), above)
	for _, line := range lines {
		fmt.Fprintln(w, "  "+line)
	}
}

// printLost shows what is given up of a log: transactions, and what cannot be told of it.
func (o *toldOnce) printLost(w io.Writer, verb string, givenUp []recovery.Discarded, untold []string) {
	o.print(w, fmt.Sprintf("Transactions that %s given up", verb), givenUp)
	for i, text := range untold[min(o.untold, len(untold)):] {
		if i == 0 {
			fmt.Fprintf(w, "\nWhat %s given up, too, and cannot be told:\n", verb)
		}

		fmt.Fprintln(w, "  "+text)
	}

	o.untold = max(o.untold, len(untold))
}

// withoutEntries is an error without the list of transactions, which was printed already.
func withoutEntries(err error) error {
	var refusal *recovery.Refusal
	if !errors.As(err, &refusal) || len(refusal.Entries) == 0 {
		return err
	}

	short := *refusal
	short.Entries = nil
	return &short
}
