// SPDX-License-Identifier: AGPL-3.0-only

package main

import (
	"regexp"
	"slices"
	"strings"
)

// What is shown of the log of a test that failed: its last entries, and of each so many lines of so many bytes.
const (
	shownEntries = 3
	shownLines   = 10
	shownBytes   = 300
)

// entry is where an entry of a log begins: the place in the source, and its text.
var entry = regexp.MustCompile(`^ +[^\s:]+\.go:[0-9]+: `)

// tail is the end of a test's log.
type tail struct {
	entries  [][]string // the last ones, with their lines
	skipping bool       // whether the entry that is being read is none of the test's own words
}

// add takes one more line. The journals of guests, which are logged after the test's own last word, are left out.
func (t *tail) add(line string) {
	begins := entry.MatchString(line)
	if begins {
		t.skipping = strings.Contains(line, ": end of the journal of ")
	}

	if t.skipping || !strings.HasPrefix(line, " ") {
		return
	}

	if len(line) > shownBytes {
		line = line[:shownBytes] + "…"
	}

	last := len(t.entries) - 1
	switch {
	case begins:
		t.entries = append(t.entries, []string{line})
		t.entries = t.entries[max(0, len(t.entries)-shownEntries):]
	case last >= 0 && len(t.entries[last]) < shownLines:
		t.entries[last] = append(t.entries[last], line)
	}
}

// lines are those of the last entries.
func (t *tail) lines() []string {
	if t == nil {
		return nil
	}

	return slices.Concat(t.entries...)
}
