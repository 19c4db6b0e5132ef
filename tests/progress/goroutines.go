// SPDX-License-Identifier: AGPL-3.0-only

package progress

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

var (
	header   = regexp.MustCompile(`^goroutine \d+ .*\[(.+)\]:$`)
	call     = regexp.MustCompile(`^[\w./*()-]+\.[^ ]+\(.*\)$`)
	argument = regexp.MustCompile(`\([^()]*\)$`)
)

// shownFrames is how many functions are shown of a goroutine.
const shownFrames = 6

// Goroutines makes a few lines of what Go prints when it gets SIGABRT: for each goroutine what it waited for, and in which functions,
// innermost first; several that waited alike are one line. Text before and after the goroutines is left out.
func Goroutines(dump string) string {
	count := map[string]int{}
	var order []string
	note := func(state string, lines []string) {
		line := state + ": " + strings.Join(functions(lines), " < ")
		if count[line] == 0 {
			order = append(order, line)
		}

		count[line]++
	}

	state, begin, lines := "", 0, strings.Split(dump, "\n")
	for i, line := range lines {
		found := header.FindStringSubmatch(line)
		if found == nil {
			continue
		}

		if state != "" {
			note(state, lines[begin:i])
		}

		state, begin = found[1], i+1
	}

	if state != "" {
		note(state, lines[begin:])
	}

	slices.SortStableFunc(order, func(a, b string) int { return count[a] - count[b] }) // what only one does says most
	var text strings.Builder
	for _, line := range order {
		fmt.Fprintf(&text, "%d × %s\n", count[line], line)
	}

	return text.String()
}

// functions are the innermost functions of a goroutine without Go's own run-time.
func functions(lines []string) []string {
	var found []string
	for _, line := range lines {
		if !call.MatchString(line) {
			continue
		}

		name := argument.ReplaceAllString(line, "")
		name = name[strings.LastIndexByte(name, '/')+1:]
		if strings.HasPrefix(name, "runtime.") || strings.HasPrefix(name, "internal.") || name == "" {
			continue
		}

		found = append(found, name)
		if len(found) == shownFrames {
			break
		}
	}

	return found
}
