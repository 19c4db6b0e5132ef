// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"math"
	"slices"
	"strings"
	"testing"
)

// TestValues writes each kind of value in each format.
func TestValues(t *testing.T) {
	for _, c := range []struct {
		value              any
		cell, csv, jsonish string
	}{
		{nil, "NULL", "", "null"},
		{int64(-7), "-7", "-7", "-7"},
		{1.5, "1.5", "1.5", "1.5"},
		{2.0, "2.0", "2.0", "2.0"},
		{1e300, "1e+300", "1e+300", "1e+300"},
		{math.Inf(1), "9.0e+999", "9.0e+999", "9.0e+999"},
		{math.Inf(-1), "-9.0e+999", "-9.0e+999", "-9.0e+999"},
		{"", "", `""`, `""`},
		{"a b", "a b", "a b", `"a b"`},
		{" a", " a", `" a"`, `" a"`},
		{`say "x", <y>`, `say "x", <y>`, `"say ""x"", <y>"`, `"say \"x\", <y>"`},
		{"bell\a", `bell\a`, "bell\a", `"bell\u0007"`},
		{[]byte{0, 0xff}, "x'00ff'", "x'00ff'", `"00ff"`},
	} {
		if got := cell(c.value); got != c.cell {
			t.Errorf("%#v in a table: %q, want %q", c.value, got, c.cell)
		}

		if got := csvField(c.value); got != c.csv {
			t.Errorf("%#v in CSV: %q, want %q", c.value, got, c.csv)
		}

		if got := jsonValue(c.value); got != c.jsonish {
			t.Errorf("%#v in JSON: %q, want %q", c.value, got, c.jsonish)
		}
	}
}

func TestUnique(t *testing.T) {
	got := unique([]string{"id", "name", "id", "id:1", "id"})
	if !slices.Equal(got, []string{"id", "name", "id:1", "id:1:1", "id:2"}) {
		t.Errorf("%q", got)
	}
}

// TestResultWriter writes two results, the second one empty, in the formats that are written as rows come.
func TestResultWriter(t *testing.T) {
	for format, want := range map[string]string{
		formatCSV:  "a,a\n1,\n\nb\n",
		formatJSON: "[\n  {\"a\": 1, \"a:1\": null}\n]\n[]\n",
		formatYAML: "- a: 1\n  a:1: null\n---\n[]\n",
	} {
		var out strings.Builder
		w := newResultWriter(&out, format)
		to := w.receiver()
		err := to.Columns([]string{"a", "a"})
		if err == nil {
			err = to.Row([]any{int64(1), nil})
		}

		if err == nil {
			err = w.end()
		}

		if err == nil {
			err = w.receiver().Columns([]string{"b"})
		}

		if err == nil {
			err = w.end()
		}

		if out.String() != want || err != nil {
			t.Errorf("%s: %q, want %q: %v", format, out.String(), want, err)
		}
	}
}
