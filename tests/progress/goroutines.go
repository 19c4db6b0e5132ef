package progress

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

var (
	header   = regexp.MustCompile(`^goroutine \d+ .*\[(.+)\]:$`)
	argument = regexp.MustCompile(`\([^()]*\)$`)
)

// shownFrames is how many functions are shown of a goroutine.
const shownFrames = 6

// Goroutines makes a few lines of what Go prints when it gets SIGABRT: for each goroutine what it waited for, and in which functions,
// innermost first; several that waited alike are one line. Text before and after the goroutines is left out.
func Goroutines(dump string) string {
	count := map[string]int{}
	var order []string
	for block := range strings.SplitSeq(dump, "\n\n") {
		lines := strings.Split(strings.TrimSpace(block), "\n")
		for len(lines) > 0 && header.FindStringSubmatch(lines[0]) == nil {
			lines = lines[1:]
		}

		if len(lines) == 0 {
			continue
		}

		line := header.FindStringSubmatch(lines[0])[1] + ": " + strings.Join(functions(lines[1:]), " < ")
		if count[line] == 0 {
			order = append(order, line)
		}

		count[line]++
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
		if strings.HasPrefix(line, "\t") || strings.HasPrefix(line, " ") || strings.HasPrefix(line, "created by ") {
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
