// SPDX-License-Identifier: AGPL-3.0-only

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// printTable prints the table, the names of tests that failed or were skipped, and the samples. Its error says what is no success.
func printTable(w io.Writer, groups []*group) error {
	var out bytes.Buffer
	rows(&out, groups)
	for _, g := range groups {
		for _, name := range g.failed {
			list(&out, g.name+": failed", []string{name})
			for _, line := range g.last[name] {
				fmt.Fprintln(&out, line)
			}
		}

		list(&out, g.name+": skipped", g.skipped)
	}

	for _, g := range groups {
		list(&out, "sample", g.samples)
	}

	_, err := w.Write(out.Bytes())
	if err != nil {
		return err
	}

	var troubles []error
	for _, g := range groups {
		troubles = append(troubles, g.trouble())
	}

	return errors.Join(troubles...)
}

// rows writes a line for each group, and the sum. The groups run side by side, so that their times have no sum.
func rows(out *bytes.Buffer, groups []*group) {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(table, "group\ttests run\tfailed\tskipped\ttime\t\n")
	tests, failed, skipped := 0, 0, 0
	for _, g := range groups {
		took := g.took.Round(100 * time.Millisecond).String()
		if !g.ran {
			took = "not run"
		}

		fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%s\t\n", g.name, g.tests, len(g.failed), len(g.skipped), took)
		tests += g.tests
		failed += len(g.failed)
		skipped += len(g.skipped)
	}

	fmt.Fprintf(table, "all\t%d\t%d\t%d\t\t\n", tests, failed, skipped)
	_ = table.Flush() // a buffer takes everything
}

// list writes a line for each of some names.
func list(out *bytes.Buffer, what string, names []string) {
	for _, name := range names {
		fmt.Fprintf(out, "%s: %s\n", what, name)
	}
}
