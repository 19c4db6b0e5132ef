// SPDX-License-Identifier: AGPL-3.0-only

package product

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// translated are the functions that have a constant text in the words of the product.
var translated = []string{"Text", "Sprintf", "Errorf", "Fprintf", "Error"}

// translatedLater are constants and variables of texts that go through Text where they are used.
var translatedLater = []string{"kindLXD", "kindBackup", "barText", "awaitsAdvice", "muteText", "endedAtOnce", "memberListComment", "phaseText", "byHandText",
	"reachText", "WayBackOrAnother"}

// asTheyAre are texts that are no words for people, or are about both products.
var asTheyAre = []string{
	"lxd_recovery_db.", // a tarball that only LXD makes
	"no LXD found in ", ": set LXD_DIR to its directory, or INCUS_DIR to that of an Incus",
}

// Whatever is said in LXD's words must go through this package: who has Incus is not to be told of LXD.
func TestEveryTextIsTranslated(t *testing.T) {
	err := filepath.WalkDir("..", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}

		slash := filepath.ToSlash(path)
		if strings.Contains(slash, "raftlogtest/") || strings.Contains(slash, "frontend/") || strings.Contains(slash, "/product/") {
			return nil
		}

		checkTexts(t, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func checkTexts(t *testing.T, path string) {
	t.Helper()
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}

	var above []ast.Node
	ast.Inspect(file, func(n ast.Node) bool {
		if n == nil {
			above = above[:len(above)-1]
			return true
		}

		text, constant := constantText(n)
		if !constant {
			above = append(above, n)
			return true
		}

		if Incus.Text(text) != text && !slices.Contains(asTheyAre, text) && !slices.ContainsFunc(above, excused) {
			t.Errorf("%s: %.60q is said in LXD's words on a machine with Incus, too: use product.Text, or Sprintf, Errorf, Fprintf",
				files.Position(n.Pos()), text)
		}

		return false
	})
}

// constantText is the value of literals that are added up.
func constantText(n ast.Node) (text string, ok bool) {
	switch n := n.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(n.Value)
		return text, n.Kind == token.STRING && err == nil
	case *ast.BinaryExpr:
		x, okX := constantText(n.X)
		y, okY := constantText(n.Y)
		return x + y, n.Op == token.ADD && okX && okY
	}

	return "", false
}

// excused tells whether a text below a node is translated, or is none.
func excused(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.ImportSpec, *ast.Field: // tags of fields
		return true

	case *ast.ValueSpec:
		return slices.ContainsFunc(n.Names, func(name *ast.Ident) bool { return slices.Contains(translatedLater, name.Name) })

	case *ast.KeyValueExpr: // help
		name, ok := n.Key.(*ast.Ident)
		return ok && slices.Contains([]string{"Short", "Long", "Example"}, name.Name)

	case *ast.CallExpr:
		f, ok := n.Fun.(*ast.SelectorExpr)
		if !ok {
			return false
		}

		of, ok := f.X.(*ast.Ident)
		isFlag := strings.HasSuffix(f.Sel.Name, "Var") || strings.HasSuffix(f.Sel.Name, "VarP") || strings.HasSuffix(f.Sel.Name, "VarPF")
		return isFlag || f.Sel.Name == "MustCompile" || ok && of.Name == "product" && slices.Contains(translated, f.Sel.Name)
	}

	return false
}

func TestText(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"LXD is not running", "Incus is not running"},
		{"stop LXD's daemon: `lxd-recover cluster edit`", "stop Incus's daemon: `lxd-recover cluster edit`"},
		{"`lxc cluster list` and `lxd cluster show`", "`incus cluster list` and `incus admin cluster show`"},
		{"set LXD_DIR, else /var/lib/lxd", "set INCUS_DIR, else /var/lib/incus"},
		{"/var/lib/lxd-recover and lxd_recovery_db.tar.gz", "/var/lib/lxd-recover and incus_recovery_db.tar.gz"},
		{"lxd global-db-import FILE", "incusd global-db-import FILE"},
	} {
		if got := Incus.Text(test.text); got != test.want {
			t.Errorf("%q: %q, want %q", test.text, got, test.want)
		}

		if got := LXD.Text(test.text); got != test.text {
			t.Errorf("LXD: %q became %q", test.text, got)
		}
	}
}
