// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
)

// page is a page of the documentation, as far as it can be run. Its commands stand in fenced blocks of the language
// "console": lines with a root prompt, which names the machine, each followed by what is then to be seen. Further words after
// "console" are not rendered, and restrict the block to scenarios that have all of them.
//
// A block of the language "yaml" is what is to be in the editor that the next command of its section opens.
type page struct {
	name    string
	blocks  []*block
	indexes map[string]int // numbers on the page: entries of raft's log that a command goes back to (0), or that are after such a one (1)
}

// block is a fenced block of a page.
type block struct {
	page     *page
	line     int // of the fence
	section  string
	language string
	tags     []string
	lines    []string
	runs     atomic.Int32 // scenarios that ran it
}

func (b *block) String() string { return fmt.Sprintf("%s:%d", b.page.name, b.line) }

// command is a line with a prompt and what follows it.
type command struct {
	block   *block
	line    int
	machine string
	text    string
	output  []string // as the page shows it
}

func (c command) String() string { return fmt.Sprintf("%s:%d", c.block.page.name, c.line) }

var (
	fence   = regexp.MustCompile("^( *)```(.*)$")
	heading = regexp.MustCompile(`^#+ (.+)$`)
	prompt  = regexp.MustCompile(`^root@([a-z0-9]+):~# (.+)$`)
	atIndex = regexp.MustCompile(`--at ([0-9]+)`)
)

// readPage reads a page; path is relative to the repository. Of the README only the first screen can be run.
func readPage(t testing.TB, path string) *page {
	t.Helper()
	text, err := os.ReadFile("../" + path)
	must(t, err)
	p := &page{name: path, indexes: map[string]int{}}
	var open *block
	var indent, section string
	n := 0
	screen, _, _ := strings.Cut(string(text), "\n## What it promises\n")
	for line := range strings.Lines(screen) {
		n++
		line = strings.TrimRight(line, "\n")
		parts := fence.FindStringSubmatch(line)
		switch {
		case parts != nil && open == nil:
			words := strings.Fields(parts[2])
			if len(words) == 0 {
				t.Fatalf("%s:%d: a block must say what it is: console, yaml, text", path, n)
			}

			indent = parts[1]
			open = &block{page: p, line: n, section: section, language: words[0], tags: words[1:]}
			p.blocks = append(p.blocks, open)
		case parts != nil:
			open = nil
		case open != nil:
			open.lines = append(open.lines, strings.TrimPrefix(line, indent))
			if index := atIndex.FindStringSubmatch(line); index != nil {
				n, _ := strconv.Atoi(index[1])
				p.indexes[index[1]], p.indexes[strconv.Itoa(n+1)] = 0, 1
			}
		default:
			if parts := heading.FindStringSubmatch(line); parts != nil {
				section = parts[1]
			} else if strings.HasPrefix(line, "    ") && !strings.HasPrefix(strings.TrimSpace(line), "|") {
				t.Errorf("%s:%d: an indented block is one that no test reads: use a fence", path, n)
			}
		}
	}

	return p
}

// section returns the blocks of a section that belong into a scenario with these tags.
func (p *page) section(t testing.TB, name string, tags ...string) []*block {
	t.Helper()
	var all []*block
	for _, b := range p.blocks {
		if b.section == name && !slices.ContainsFunc(b.tags, func(tag string) bool { return !slices.Contains(tags, tag) }) {
			all = append(all, b)
		}
	}

	if len(all) == 0 {
		t.Fatalf("%s has no block in a section %q for %v", p.name, name, tags)
	}

	return all
}

// runnable returns the sections that have commands.
func (p *page) runnable() []string {
	var all []string
	for _, b := range p.blocks {
		if b.language == "console" && !slices.Contains(all, b.section) {
			all = append(all, b.section)
		}
	}

	return all
}

// wantAllRun fails where a command stands on the page that no test has run.
func (p *page) wantAllRun(t testing.TB) {
	t.Helper()
	for _, b := range p.blocks {
		switch b.language {
		case "console", "yaml":
			if b.runs.Load() == 0 {
				t.Errorf("%s: no test runs this block of %q for %v", b, b.section, b.tags)
			}
		case "text":
		default:
			t.Errorf("%s: a block of the language %s: nobody knows how to run it", b, b.language)
		}
	}
}

// commands returns the commands of a console block.
func (b *block) commands(t testing.TB) []command {
	t.Helper()
	var all []command
	for i, line := range b.lines {
		parts := prompt.FindStringSubmatch(line)
		switch {
		case parts != nil:
			all = append(all, command{block: b, line: b.line + i + 1, machine: parts[1], text: parts[2]})
		case len(all) == 0:
			t.Fatalf("%s: it does not begin with a prompt", b)
		default:
			last := &all[len(all)-1]
			last.output = append(last.output, line)
		}
	}

	return all
}

// answers returns what the page shows to be typed at the command's questions. A page that shows nothing means yes.
func (c command) answers() []string {
	if len(c.output) == 0 {
		return []string{"yes"}
	}

	var all []string
	for _, line := range c.output {
		if _, answer, ok := strings.Cut(line, question); ok {
			all = append(all, answer)
		}
	}

	return all
}

// stamps are times as they stand in the names of kept directories.
var stamps = regexp.MustCompile(`[0-9]{8}T[0-9]{6}Z`)

// varying are those parts of what the tool prints that are never twice the same. The page shows real ones.
var varying = regexp.MustCompile(`(index |term |terms |current |highest |schema |pid )[0-9]+|` +
	`[0-9]+( rows| tables| in )|[0-9]+\.[0-9]( [KM]iB)|[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8}|` +
	stamps.String())

var (
	spaces = regexp.MustCompile(` {2,}`)
	rules  = regexp.MustCompile(`-{3,}`)
)

// plain takes away how wide the columns of tables are.
func plain(line string) string {
	return strings.TrimSpace(rules.ReplaceAllString(spaces.ReplaceAllString(line, " "), "---"))
}

// pattern makes a regular expression of the output on the page. "…" is anything within a line, a line of nothing else is any
// number of lines; and the numbers of varying may be others. Times in names are groups, and so are the indexes that commands of the
// page take; both are returned in their order.
func (c command) pattern() (*regexp.Regexp, []string) {
	var out strings.Builder
	var groups []string
	out.WriteString(`^`)
	for _, line := range c.output {
		line = plain(line)
		if line == "…" {
			out.WriteString(`(?:[^\n]*\n)*?`)
			continue
		}

		for len(line) > 0 {
			at := varying.FindStringIndex(line)
			if at == nil {
				at = []int{len(line), len(line)}
			}

			for _, word := range words.FindAllStringIndex(line, -1) {
				_, ok := c.block.page.indexes[line[word[0]:word[1]]]
				if ok && word[0] < at[0] {
					at = word
					break
				}
			}

			out.WriteString(strings.ReplaceAll(regexp.QuoteMeta(line[:at[0]]), "…", `[^\n]*`))
			number := line[at[0]:at[1]]
			_, index := c.block.page.indexes[number]
			switch {
			case stamps.MatchString(number):
				out.WriteString("(" + stamps.String() + ")")
				groups = append(groups, number)
			case index:
				out.WriteString("([0-9]+)")
				groups = append(groups, number)
			default:
				out.WriteString(digits.ReplaceAllString(regexp.QuoteMeta(number), `[0-9]+`))
			}

			line = line[at[1]:]
		}

		out.WriteString(`\n`)
	}

	out.WriteString(`$`)
	return regexp.MustCompile(out.String()), groups
}

var words = regexp.MustCompile(`[^ ]+`)

var digits = regexp.MustCompile(`[0-9]+`)

// bind tells whether what was to be seen is what the page shows, and notes what times in names, and indexes, stand for. A page that shows
// nothing says nothing of it, but no command prints an error then.
func (c command) bind(screen string, real map[string]string) bool {
	if len(c.output) == 0 {
		return true
	}

	var got strings.Builder
	for line := range strings.SplitSeq(screen, "\n") {
		got.WriteString(plain(line) + "\n")
	}

	re, groups := c.pattern()
	found := re.FindStringSubmatch(got.String())
	if found == nil {
		return false
	}

	for i, group := range groups {
		real[group] = found[i+1]
		if c.block.page.indexes[group] == 1 {
			shown, _ := strconv.Atoi(group)
			n, _ := strconv.Atoi(found[i+1])
			real[strconv.Itoa(shown-1)] = strconv.Itoa(n - 1)
		}
	}

	return true
}

// realText is a command with what its times and indexes stand for. missing are those that were in no output before.
func realText(text string, real map[string]string) (now string, missing []string) {
	meant := func(shown string) string {
		if real[shown] == "" {
			missing = append(missing, shown)
		}

		return real[shown]
	}
	text = stamps.ReplaceAllStringFunc(text, meant)
	text = atIndex.ReplaceAllStringFunc(text, func(option string) string {
		return "--at " + meant(strings.TrimPrefix(option, "--at "))
	})
	return text, missing
}

// fails tells whether the page shows that the command ends with an error.
func (c command) fails() bool {
	return slices.ContainsFunc(c.output, func(line string) bool { return strings.HasPrefix(line, "Error: ") })
}

func (b *block) has(tag string) bool { return slices.Contains(b.tags, tag) }

func TestPageMatches(t *testing.T) {
	c := command{block: &block{page: &page{}}, output: strings.Split("Imported on server1: index 5, term 7, 12 rows in 3 tables.\n…\n"+
		"| server1 |   https://10.78.0.1:8443 | … |\nkept in database.before-import-20261124T101500Z", "\n")}
	for _, test := range []struct {
		screen string
		want   bool
	}{
		{"Imported on server1: index 523, term 99, 1 rows in 30 tables.\n| server1 | https://10.78.0.1:8443 | ONLINE |\n" +
			"kept in database.before-import-20271124T000000Z", true},
		{"Imported on server1: index 523, term 99, 1 rows in 30 tables.\nWarning: two\nlines\n| server1 | https://10.78.0.1:8443 | ONLINE |\n" +
			"kept in database.before-import-20271124T000000Z", true},
		{"Imported on server4: index 523, term 99, 1 rows in 30 tables.\n| server1 | https://10.78.0.1:8443 | ONLINE |\n" +
			"kept in database.before-import-20271124T000000Z", false},
		{"Imported on server1: index 523, term 99, 1 rows in 30 tables.\n| server1 | https://10.78.0.2:8443 | ONLINE |\n" +
			"kept in database.before-import-20271124T000000Z", false},
		{"Imported on server1: index 523, term 99, 1 rows in 30 tables.\n| server1 | https://10.78.0.1:8443 | ONLINE |\n" +
			"kept in database.before-import-20271124T000000Z\nError: no", false},
		{"", false},
	} {
		if got := c.bind(test.screen, map[string]string{}); got != test.want {
			re, _ := c.pattern()
			t.Errorf("%v for\n%s\npattern %s", got, test.screen, re)
		}
	}
}

// A time or an index on the page stands for what was in its place.
func TestPageBinds(t *testing.T) {
	p := &page{indexes: map[string]int{"61": 0, "62": 1}}
	c := command{block: &block{page: p}, output: strings.Split("| 60 | …\n| 62 | … | delete precious |\n…\n"+
		"kept in database.before-import-20261124T101500Z, index 61", "\n")}
	real := map[string]string{}
	screen := "| 60 | 3 | insert |\n| 7062 | 3 | delete precious |\nmore\nkept in database.before-import-20271124T000000Z, index 5"
	if !c.bind(screen, real) || real["61"] != "7061" || real["20261124T101500Z"] != "20271124T000000Z" {
		t.Errorf("bound %v", real)
	}

	got, missing := realText("export --at 61 database.before-import-20261124T101500Z 60", real)
	if got != "export --at 7061 database.before-import-20271124T000000Z 60" || missing != nil {
		t.Errorf("the command is %q, without %v", got, missing)
	}

	if _, missing := realText("export --at 99 database.before-import-20200101T000000Z", real); len(missing) != 2 {
		t.Errorf("only %v are missing", missing)
	}
}
