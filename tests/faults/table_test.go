// SPDX-License-Identifier: AGPL-3.0-only

//go:build linux && amd64

package faults

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// figures are what became of the faults of one sort.
type figures struct {
	injected int // runs in which the fault happened
	old, new int // what was in place afterwards
	again    int // times the second run, without a fault, succeeded
	wedged   int // times it did not, or left something behind
	lost     int // times neither database was whole in place, or the old one was gone
}

// counts is a table of figures by sort of fault.
type counts struct {
	mu   sync.Mutex
	rows map[string]*figures
}

// table has the figures of this run of the tests.
var table = counts{rows: map[string]*figures{}}

// add changes a row of the table.
func (c *counts) add(sort string, change func(*figures)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	row := c.rows[sort]
	if row == nil {
		row = &figures{}
		c.rows[sort] = row
	}

	change(row)
}

// String is the table in Markdown.
func (c *counts) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	b.WriteString("| fault | injected | whole old | whole new | second run succeeded | wedged | lost |\n")
	b.WriteString("|---|--:|--:|--:|--:|--:|--:|\n")
	line := func(name string, f figures) {
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %d | %d |\n", name, f.injected, f.old, f.new, f.again, f.wedged, f.lost)
	}
	var sum figures
	for _, name := range slices.Sorted(maps.Keys(c.rows)) {
		f := *c.rows[name]
		line(name, f)
		sum = figures{sum.injected + f.injected, sum.old + f.old, sum.new + f.new, sum.again + f.again, sum.wedged + f.wedged, sum.lost + f.lost}
	}

	line("**all**", sum)
	return b.String()
}
