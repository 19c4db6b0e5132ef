// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestWrap(t *testing.T) {
	lines := []string{"insert profile default", "delete a-name-without-any-space of it", ""}
	for width, want := range map[int][]string{
		80: lines,
		22: {"insert profile default", "delete", "  a-name-without-any-space", "  of it", ""},
		16: {"insert profile", "  default", "delete", "  a-name-without-any-space", "  of it", ""},
	} {
		if got := wrap(lines, width); !slices.Equal(got, want) {
			t.Errorf("to %d columns: %q", width, got)
		}
	}
}

// A table whose last column has words fits into any terminal that leaves it a little.
func TestFitLast(t *testing.T) {
	for _, width := range []int{90, 120, 400} {
		names := []string{"index", "kind", "what"}
		rows := [][]string{{"4711", "transaction", "one\n" + strings.Repeat("word ", 50)}, {"1234567", "configuration", "two"}}
		fitLast(names, rows, width)
		var b strings.Builder
		writeRows(&b, formatTable, names, rows)
		widest := 0
		for line := range strings.Lines(b.String()) {
			widest = max(widest, utf8.RuneCountInString(strings.TrimSuffix(line, "\n")))
		}

		if widest > width || widest < min(width-5, 200) {
			t.Errorf("%d columns on a terminal of %d:\n%s", widest, width, b.String())
		}
	}
}
