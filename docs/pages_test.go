// SPDX-License-Identifier: AGPL-3.0-only

// Package docs has no code: its tests keep what the pages say of the code true.
package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/cli"
	"github.com/lxd-recover/lxd-recover/internal/clusterrun"
)

const root = ".."

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func page(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, name))
	must(t, err)
	return string(data)
}

// goFiles calls fn with every Go file of this repository.
func goFiles(t testing.TB, fn func(path string)) {
	t.Helper()
	must(t, filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}

		if e.IsDir() && path != root && strings.HasPrefix(e.Name(), ".") { // .deps, .git
			return fs.SkipDir
		}

		if filepath.Ext(path) == ".go" {
			fn(path)
		}

		return nil
	}))
}

// declared are the names of all functions, methods and types, by the directory that they are in.
func declared(t testing.TB) map[string]map[string]bool {
	t.Helper()
	all := map[string]map[string]bool{}
	goFiles(t, func(path string) {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		must(t, err)
		dir, err := filepath.Rel(root, filepath.Dir(path))
		must(t, err)
		if all[dir] == nil {
			all[dir] = map[string]bool{}
		}

		for _, d := range file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				all[dir][d.Name.Name] = true
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					s, ok := spec.(*ast.TypeSpec)
					if ok {
						all[dir][s.Name.Name] = true
					}
				}
			}
		}
	})
	return all
}

// row is a line of the table in CONTRIBUTING.md.
type row struct {
	command    string
	cli, cases []string // files
	tests      []string // names of tests, or files
}

var quoted = regexp.MustCompile("`([^`]+)`")

// rows reads the table.
func rows(t testing.TB) []row {
	t.Helper()
	var all []row
	for line := range strings.Lines(page(t, "CONTRIBUTING.md")) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if !strings.HasPrefix(line, "| `") || len(cells) != 4 {
			continue
		}

		list := func(cell string) []string {
			return strings.FieldsFunc(cell, func(r rune) bool { return r == ',' || r == ' ' || r == '`' })
		}
		all = append(all, row{command: quoted.FindStringSubmatch(cells[0])[1], cli: list(cells[1]), cases: list(cells[2]), tests: list(cells[3])})
	}

	return all
}

// commands are those that the program has, by the words that call them. Those that are hidden for being old names are left out: they
// are there under their new ones.
func commands(cmd *cobra.Command) []string {
	var all []string
	for _, c := range cmd.Commands() {
		if c.Hidden && c.HasSubCommands() {
			continue
		}

		_, path, _ := strings.Cut(c.CommandPath(), " ")
		all = append(append(all, path), commands(c)...)
	}

	return all
}

// TestMap holds the table from commands to code and tests against the program and the files.
func TestMap(t *testing.T) {
	names := map[string]bool{}
	for _, dir := range declared(t) {
		for name := range dir {
			names[name] = true
		}
	}

	var listed []string
	for _, r := range rows(t) {
		listed = append(listed, r.command)
		if len(r.cli) == 0 || len(r.tests) == 0 {
			t.Errorf("%s has no file or no test", r.command)
		}

		for _, file := range r.cli {
			wantFile(t, r.command, "internal/cli/"+file)
		}

		for _, file := range r.cases {
			wantFile(t, r.command, "internal/recovery/"+file)
		}

		for _, test := range r.tests {
			if strings.HasSuffix(test, ".go") {
				wantFile(t, r.command, test)
			} else if !strings.HasPrefix(test, "Test") || !names[test] {
				t.Errorf("%s: there is no test %s", r.command, test)
			}
		}
	}

	want := commands(cli.Commands())
	slices.Sort(want)
	slices.Sort(listed)
	if len(want) < 20 {
		t.Errorf("only the commands %q", want)
	}

	if !slices.Equal(want, listed) {
		t.Errorf("the table has the commands\n%q, the program\n%q", listed, want)
	}
}

func wantFile(t testing.TB, where string, name string) {
	t.Helper()
	_, err := os.Stat(filepath.Join(root, name))
	if err != nil {
		t.Errorf("%s: %v", where, err)
	}
}

var (
	testName = regexp.MustCompile(`^(Test|Fuzz)[A-Z]\w*$`)
	codeName = regexp.MustCompile(`^(internal/\w+)\.(\w+)$`)
	pathName = regexp.MustCompile(`^(internal|tests|cmd|docs|snap|deb)/[\w./-]*\w$`)
)

// TestNames looks up the tests, functions and files that the pages name in code style.
func TestNames(t *testing.T) {
	code := declared(t)
	tests := map[string]bool{}
	for _, dir := range code {
		for name := range dir {
			tests[name] = tests[name] || testName.MatchString(name)
		}
	}

	found := map[string]int{}
	for _, name := range []string{
		"CONTRIBUTING.md", "SECURITY.md", "docs/guarantees.md", "docs/raft-directory.md", "docs/architecture.md", "docs/security.md",
		"docs/cluster-recover.md", "docs/why-resync-is-safe.md",
	} {
		for _, m := range quoted.FindAllStringSubmatch(page(t, name), -1) {
			word := m[1]
			switch parts := codeName.FindStringSubmatch(word); {
			case parts != nil:
				found["function"]++
				if !code[parts[1]][parts[2]] {
					t.Errorf("%s: there is no %s", name, word)
				}

			case testName.MatchString(word):
				found["test"]++
				if !tests[word] {
					t.Errorf("%s: there is no test %s", name, word)
				}

			case pathName.MatchString(word):
				found["path"]++
				wantFile(t, name, word)
			}
		}
	}

	if found["function"] < 8 || found["test"] < 60 || found["path"] < 15 {
		t.Errorf("only %v were found", found)
	}
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.+)$`)
	console = regexp.MustCompile("(?ms)^```.*?^```$")
)

// headings are those of a page.
func headings(text string) []string {
	var all []string
	for _, m := range heading.FindAllStringSubmatch(console.ReplaceAllString(text, ""), -1) {
		all = append(all, m[1])
	}

	return all
}

// plain is a heading without the functions that follow it in brackets.
func plain(heading string) string {
	name, _, _ := strings.Cut(heading, " (`")
	return name
}

// anchor is what GitHub calls a heading in a link.
func anchor(text string) string {
	text = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(text), "")
	return strings.ReplaceAll(text, " ", "-")
}

// TestLinks follows the links between the pages, to their headings, too.
func TestLinks(t *testing.T) {
	pages, err := filepath.Glob(root + "/docs/*.md")
	must(t, err)
	more, err := filepath.Glob(root + "/*.md")
	must(t, err)
	links := 0
	for _, path := range append(pages, more...) {
		data, err := os.ReadFile(path)
		must(t, err)
		for _, m := range link.FindAllStringSubmatch(console.ReplaceAllString(string(data), ""), -1) {
			target, fragment, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}

			links++
			to := path
			if target != "" {
				to = filepath.Join(filepath.Dir(path), target)
			}

			text, err := os.ReadFile(to)
			if err != nil {
				t.Errorf("%s: %v", path, err)
				continue
			}

			if fragment != "" && !slices.ContainsFunc(headings(string(text)), func(h string) bool { return anchor(h) == fragment }) {
				t.Errorf("%s: %s has no heading #%s", path, to, fragment)
			}
		}
	}

	if links < 30 {
		t.Errorf("only %d links", links)
	}
}

// reference is how a comment points at a page: docs/PAGE.md, then words that begin with the heading.
var reference = regexp.MustCompile(`docs/([a-z-]+\.md)(?:, ([A-Z][A-Za-z -]*[a-z]))?`)

// TestReferences looks up the pages and headings that comments in the code point at.
func TestReferences(t *testing.T) {
	found := 0
	goFiles(t, func(path string) {
		if filepath.Base(path) == "pages_test.go" {
			return
		}

		data, err := os.ReadFile(path)
		must(t, err)
		for _, m := range reference.FindAllStringSubmatch(string(data), -1) {
			text, err := os.ReadFile(filepath.Join(root, "docs", m[1]))
			if err != nil {
				t.Errorf("%s: %v", path, err)
				continue
			}

			if m[2] == "" {
				continue
			}

			found++
			if !slices.ContainsFunc(headings(string(text)), func(h string) bool { return strings.HasPrefix(m[2], plain(h)) }) {
				t.Errorf("%s: docs/%s has no heading %q", path, m[1], m[2])
			}
		}
	})

	if found < 2 {
		t.Errorf("only %d references", found)
	}
}

// TestBreaks holds the table of what becomes of a run that is cut off against the one in the code.
func TestBreaks(t *testing.T) {
	_, section, _ := strings.Cut(page(t, "docs/cluster-recover.md"), "\n## When it breaks\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var rows []string
	for line := range strings.Lines(section) {
		if strings.HasPrefix(line, "| `") {
			rows = append(rows, strings.TrimSpace(line))
		}
	}

	var want []string
	for _, b := range clusterrun.Breaks() {
		var phases []string
		for _, p := range b.Phases {
			phases = append(phases, "`"+string(p)+"`")
		}

		cells := []string{strings.Join(phases, ", "), string(b.Cut), b.Alone, string(b.Resume), string(b.Undo)}
		want = append(want, "| "+strings.Join(cells, " | ")+" |")
	}

	if len(want) < 8 || !slices.Equal(rows, want) {
		t.Errorf("the page has\n%s\nand the code\n%s", strings.Join(rows, "\n"), strings.Join(want, "\n"))
	}
}

// runCommand is a call of `cluster recover` in a page, with what follows its words.
var runCommand = regexp.MustCompile(`lxd-recover (cluster recover\b[^|>\n]*)`)

// TestRunCommands looks up the commands and flags in the blocks of the page about runs over the cluster.
func TestRunCommands(t *testing.T) {
	found := 0
	for _, block := range console.FindAllString(page(t, "docs/cluster-recover.md"), -1) {
		for _, m := range runCommand.FindAllStringSubmatch(block, -1) {
			found++
			cmd, args, err := cli.Commands().Find(strings.Fields(m[1]))
			must(t, err)
			for _, arg := range args {
				name, isFlag := strings.CutPrefix(arg, "--")
				if isFlag && cmd.Flags().Lookup(name) == nil {
					t.Errorf("%s has no flag %s", cmd.CommandPath(), arg)
				}
			}
		}
	}

	if found < 6 {
		t.Errorf("only %d commands", found)
	}
}
