// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestDocsMessages looks up every message that the troubleshooting page quotes in the sources: a message that was reworded
// there, and not on the page, would be searched for in vain. Those of blocks with the tag "lxd" are looked up in LXD's.
//
// What a message says is put together from several texts, with ": " and "; " between, so it is looked up piece by piece.
func TestDocsMessages(t *testing.T) {
	p := readPage(t, "docs/howto-troubleshoot.md")
	ours := texts(t, "../internal")
	module, err := goList(t, "github.com/canonical/lxd")
	must(t, err)
	lxds := texts(t, filepath.Join(module, "lxd", "cluster"))
	found := 0
	for _, b := range p.blocks {
		if b.language != "text" {
			continue
		}

		all := ours
		if b.has("lxd") {
			all = lxds
		}

		for i, line := range b.lines {
			for _, piece := range pieces(line) {
				if !says(all, piece) {
					t.Errorf("%s:%d: no source says %q", p.name, b.line+i+1, piece)
				}

				found++
			}
		}
	}

	if found < 60 {
		t.Errorf("only %d pieces of messages are on the page", found)
	}

	if says(ours, "this tarball is not for this machine") || says(ours, "the database lies in place") {
		t.Error("messages are found that no source has")
	}
}

// says tells whether texts have a piece: in one of them, or the end of one and the beginning of the next, as where an error
// says "%w on %s" of another.
func says(texts, piece string) bool {
	if strings.Contains(texts, piece) {
		return true
	}

	for i := range piece {
		ends := strings.Contains(texts, piece[:i]+"\x00")
		if ends && (strings.Contains(texts, "\x00"+piece[i:]) || strings.Contains(texts, "\x00%w"+piece[i:])) {
			return true
		}
	}

	return false
}

// separators are what stands between the texts that a message is put together from.
var separators = regexp.MustCompile(`…|: |; | overrides this|^Error: |^Warning: |^Not checked: `)

// pieces takes a message apart. What is left after a verb may be but a comma.
func pieces(message string) []string {
	var all []string
	for _, piece := range separators.Split(message, -1) {
		piece = strings.Trim(piece, " ,.()`")
		if len(piece) > 2 && piece != "Error" && piece != "Warning" && piece != "Not checked" {
			all = append(all, piece)
		}
	}

	return all
}

// texts are all string literals of the Go files below a directory, those that are added up as one.
func texts(t testing.TB, dir string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return err
		}

		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}

		ast.Inspect(file, func(n ast.Node) bool {
			text, ok := literal(n)
			if ok {
				all.WriteString("\x00" + text + "\x00")
			}

			return !ok
		})
		return nil
	})
	must(t, err)
	return all.String()
}

// literal returns the value of a string literal, or of some with a + between. What is added that is none is left out.
func literal(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.BasicLit:
		if n.Kind == token.STRING {
			text, err := strconv.Unquote(n.Value)
			return text, err == nil
		}
	case *ast.CallExpr:
		of, ok := n.Fun.(*ast.SelectorExpr)
		if ok && of.Sel.Name == "Text" && len(n.Args) == 1 { // product.Text, which has it in the words of LXD or Incus
			return literal(n.Args[0])
		}
	case *ast.BinaryExpr:
		left, ok := literal(n.X)
		right, also := literal(n.Y)
		if n.Op == token.ADD && (ok || also) {
			return left + right, true
		}
	}

	return "", false
}

// goList returns the directory of a module that this one is built with.
func goList(t testing.TB, module string) (string, error) {
	cmd := exec.CommandContext(within(t, time.Minute), "go", "list", "-m", "-f", "{{.Dir}}", module)
	cmd.Dir = ".."
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}
