// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"path/filepath"
	"slices"
	"testing"
)

// TestSQLArguments tells a source from queries.
func TestSQLArguments(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		flag    string
		args    []string
		source  string
		queries []string
	}{
		{"", nil, "", nil},
		{"", []string{"SELECT 1", dir}, "", []string{"SELECT 1", dir}},
		{"", []string{dir, "SELECT 1", ".tables"}, dir, []string{"SELECT 1", ".tables"}},
		{"", []string{"-", "x"}, "", []string{"-", "x"}},
		{"", []string{".tables"}, "", []string{".tables"}},
		{dir, []string{dir}, dir, []string{dir}},
	} {
		source, queries, err := (&sqlOptions{source: c.flag}).arguments(c.args)
		if source != c.source || !slices.Equal(queries, c.queries) || err != nil {
			t.Errorf("--source %q %q: %q, %q, %v", c.flag, c.args, source, queries, err)
		}
	}

	// What can only be a path is no query.
	for _, name := range []string{filepath.Join(dir, "no"), "./no", "no.tar.gz"} {
		_, _, err := (&sqlOptions{}).arguments([]string{name, ".tables"})
		if err == nil {
			t.Errorf("%s is taken for a query", name)
		}
	}
}

func TestStatements(t *testing.T) {
	for _, c := range []struct{ queries, want []string }{
		{[]string{"SELECT 1; SELECT 2", ".tables"}, []string{"SELECT 1", "SELECT 2", ".tables"}},
		{[]string{".schema", "nodes", "SELECT 1"}, []string{".schema nodes", "SELECT 1"}},
		{[]string{".schema", "SELECT 1"}, []string{".schema", "SELECT 1"}},
	} {
		got, err := readStatements(t.Context(), c.queries)
		if !slices.Equal(got, c.want) || err != nil {
			t.Errorf("%q: %q, want %q: %v", c.queries, got, c.want, err)
		}
	}
}
