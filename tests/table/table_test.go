// SPDX-License-Identifier: AGPL-3.0-only

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// passing are the events of a group in which all is well: a test with one inside it, one that is skipped, a package without tests.
const passing = `{"Time":"2026-01-01T00:00:00Z","Action":"start","Package":"x/empty"}
{"Time":"2026-01-01T00:00:00Z","Action":"skip","Package":"x/empty"}
{"Time":"2026-01-01T00:00:01Z","Action":"run","Package":"x/one","Test":"TestA"}
{"Time":"2026-01-01T00:00:01Z","Action":"run","Package":"x/one","Test":"TestA/inside"}
{"Time":"2026-01-01T00:00:01Z","Action":"output","Package":"x/one","Test":"TestA","Output":"    a_test.go:49: sample: damage: 301 of 301, seed 1\n"}
{"Time":"2026-01-01T00:00:01Z","Action":"output","Package":"x/one","Test":"TestA","Output":"    a_test.go:49: sample: damage: 301 of 301, seed 1\n"}
{"Time":"2026-01-01T00:00:01Z","Action":"output","Package":"x/one","Test":"TestA","Output":"    a_test.go:50: no such sample: here\n"}
{"Time":"2026-01-01T00:00:02Z","Action":"pass","Package":"x/one","Test":"TestA/inside"}
{"Time":"2026-01-01T00:00:02Z","Action":"pass","Package":"x/one","Test":"TestA"}
{"Time":"2026-01-01T00:00:02Z","Action":"run","Package":"x/one","Test":"TestB"}
{"Time":"2026-01-01T00:01:02Z","Action":"skip","Package":"x/one","Test":"TestB"}
{"Time":"2026-01-01T00:01:04Z","Action":"pass","Package":"x/one"}
`

// started begins a test of a package.
const started = `{"Action":"run","Package":"x/two","Test":"TestC"}` + "\n"

func TestTable(t *testing.T) {
	tests := []struct {
		name   string
		events string   // of the group; none: it did not run
		want   []string // lines of what is printed, spaces as one
		err    string
	}{
		{"success", passing, []string{"unit 3 0 1 1m4s", "all 3 0 1", "unit: skipped: one.TestB", "sample: damage: 301 of 301, seed 1"}, ""},
		{"a test failed", passing + started + `{"Action":"fail","Package":"x/two","Test":"TestC"}` + "\n" + `{"Action":"fail","Package":"x/two"}`,
			[]string{"unit 4 1 1 1m4s", "all 4 1 1", "unit: failed: two.TestC"}, "group unit: 1 failed"},
		{"what a test said last", passing + started + said("    c_test.go:1: early", "    c_test.go:2: exit status 1", "        the screen",
			"    c_test.go:3: why", "    c_test.go:4: wrong", "    c_test.go:5: end of the journal of server1", "        Nov 26", "--- FAIL: TestC (1.00s)") +
			`{"Action":"fail","Package":"x/two","Test":"TestC"}`,
			[]string{"unit: failed: two.TestC\nc_test.go:2: exit status 1\nthe screen\nc_test.go:3: why\nc_test.go:4: wrong\nunit: skipped: one.TestB"},
			"group unit: 1 failed"},
		{"a package failed", passing + `{"Action":"fail","Package":"x/two"}`, []string{"unit 3 1 1 1m4s", "unit: failed: package two"}, "group unit: 1 failed"},
		{"a test did not end", passing + started, []string{"unit 4 1 1 1m4s", "unit: failed: two.TestC (did not end)"}, "group unit: 1 failed"},
		{"killed", passing + `{"Action":"ru`, []string{"unit: failed: the events end in the middle of one"}, "group unit: 1 failed"},
		{"not run", "", []string{"unit 0 0 0 not run"}, "group unit did not run"},
		{"no test", `{"Action":"skip","Package":"x/empty"}`, []string{"unit 0 0 0 0s"}, "group unit has no test"},
		{"all skipped", started + `{"Action":"skip","Package":"x/two","Test":"TestC"}`, []string{"unit 1 0 1 0s"}, "group unit: every test was skipped"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			err := printTable(&out, leave(t, test.events))
			if (err == nil) != (test.err == "") || err != nil && err.Error() != test.err {
				t.Errorf("error %v, want %q", err, test.err)
			}

			var lines []string
			for line := range strings.Lines(out.String()) {
				lines = append(lines, strings.Join(strings.Fields(line), " "))
			}

			got := "\n" + strings.Join(lines, "\n") + "\n"
			for _, want := range test.want {
				if strings.Count(got, "\n"+want+"\n") != 1 {
					t.Errorf("no line %q, or more than one, in%s", want, got)
				}
			}

			if test.err == "" && len(lines) != len(test.want)+1 {
				t.Errorf("%d lines besides the heading, want %d:%s", len(lines)-1, len(test.want), got)
			}
		})
	}
}

// said are events of the test's log.
func said(lines ...string) string {
	var events strings.Builder
	for _, line := range lines {
		fmt.Fprintf(&events, `{"Action":"output","Package":"x/two","Test":"TestC","Output":"%s\n"}`+"\n", line)
	}

	return events.String()
}

func TestSamples(t *testing.T) {
	var out bytes.Buffer
	err := printSamples(&out, leave(t, passing))
	if err != nil || out.String() != "* damage: 301 of 301, seed 1\n" {
		t.Errorf("%q, %v", out.String(), err)
	}

	err = printSamples(&out, leave(t, started))
	if err == nil {
		t.Error("a campaign without a sample is a success")
	}
}

func TestNonsense(t *testing.T) {
	dir := t.TempDir()
	err := os.WriteFile(filepath.Join(dir, "unit.json"), []byte("ok  x/one\n"), 0o600)
	if err != nil {
		t.Fatal(err)
	}

	_, err = readAll(dir, []string{"unit"})
	if err == nil {
		t.Error("what is no event was read as one")
	}
}

// leave writes the events of the group unit, if there are any, and reads them.
func leave(t *testing.T, events string) []*group {
	t.Helper()
	dir := t.TempDir()
	if events != "" {
		err := os.WriteFile(filepath.Join(dir, "unit.json"), []byte(events), 0o600)
		if err != nil {
			t.Fatal(err)
		}
	}

	groups, err := readAll(dir, []string{"unit"})
	if err != nil {
		t.Fatal(err)
	}

	return groups
}
