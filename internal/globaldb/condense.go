// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"maps"
	"slices"
	"strings"
)

// Condense returns changes as people made them. LXD changes one setting by deleting all of an object and inserting them again, under other
// ids: rows that came back as they were are left out, and those that came back with another value are changed ones.
func Condense(changes []RowChange) []RowChange {
	gone := map[string][]int{}
	for i, c := range changes {
		if c.After == nil {
			gone[c.content()] = append(gone[c.content()], i)
		}
	}

	drop := map[int]bool{}
	condensed := slices.Clone(changes)
	for i, c := range changes {
		if c.Before != nil || len(gone[c.content()]) == 0 {
			continue
		}

		was := gone[c.content()][0]
		gone[c.content()] = gone[c.content()][1:]
		drop[was] = true
		before := maps.Clone(c.After)
		value, ok := changes[was].Before["value"]
		if ok {
			before["value"] = value
		}

		condensed[i].Before = before
		if maps.Equal(before, c.After) && changes[was].secrets != c.secrets { // that both look alike does not make them the same
			condensed[i].After = maps.Clone(c.After)
			condensed[i].After["value"] = anotherSecret(c.After["value"])
		}

		drop[i] = maps.Equal(before, condensed[i].After)
	}

	kept := condensed[:0]
	for i, c := range condensed {
		if !drop[i] {
			kept = append(kept, c)
		}
	}

	return kept
}

// content is what a row that has come or gone says, but for its ids, and the value of a setting.
func (c RowChange) content() string {
	row := c.row()
	_, config := row["key"]
	text := []string{c.Table}
	words := c.Words
	for _, column := range slices.Sorted(maps.Keys(row)) {
		switch {
		case config && column == "value":
			words = strings.Replace(words, "="+plain(row["value"]), "", 1)
		case column != "id" && !strings.HasSuffix(column, "_id"): // whose ids they are, the words say
			text = append(text, column, row[column])
		}
	}

	if c.Words == "" { // nobody says
		text = append(text, c.Key)
	}

	if !config {
		text = append(text, c.secrets)
	}

	return strings.Join(append(text, words), "\x00")
}
