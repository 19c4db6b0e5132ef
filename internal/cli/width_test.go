// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"bytes"
	"strings"
	"testing"
)

// A table that is as wide as the terminal stays one; one column less and each field has a line.
func TestTableFits(t *testing.T) {
	names := []string{"ID", "NAME", "", "NOW"}
	rows := [][]string{{"1", "größe", "", "this member"}, {"2", "two", "x", "10.78.0.2:8443 -> 10.79.0.2:8443, does not answer, and neither does its machine"}}
	table := func(width int) string {
		var out bytes.Buffer
		writeRowsWithin(&out, formatTable, names, rows, width)
		return out.String()
	}
	whole := table(0)
	width := len([]rune(strings.SplitN(whole, "\n", 2)[0]))
	if table(width) != whole || !strings.HasPrefix(whole, "+--") {
		t.Errorf("at %d columns:\n%s", width, table(width))
	}

	want := `ID: 1
NAME: größe
NOW: this member

ID: 2
NAME: two
x
NOW: 10.78.0.2:8443 -> 10.79.0.2:8443,
    does not answer, and neither does
    its machine
`
	if got := table(40); got != want {
		t.Errorf("at 40 columns:\n%s", got)
	}

	if got := table(width - 1); !strings.HasPrefix(got, "ID: 1\n") {
		t.Errorf("one column less:\n%s", got)
	}
}

// Names and values without a header, as a report has them.
func TestFieldsWithoutHeader(t *testing.T) {
	var out bytes.Buffer
	writeRowsWithin(&out, formatTable, nil, [][]string{{"last entry", "index 54, term 3"}, {"files", "one\ntwo"}}, 20)
	if got := out.String(); got != "last entry: index\n    54, term 3\nfiles: one\n    two\n" {
		t.Errorf("%q", got)
	}
}

// What is said to people breaks at words, but for commands and tables.
func TestAtWords(t *testing.T) {
	var out bytes.Buffer
	text := "Error: a message that is too long\n  index 7 of a long list\n    a command that is too long\n| a table is too long |\nyes or no: "
	_, err := wordWriter{&out, 20}.Write([]byte(text))
	must(t, err)
	want := "Error: a message\nthat is too long\n  index 7 of a long\n  list\n    a command that is too long\n| a table is too long |\nyes or no: "
	if got := out.String(); got != want {
		t.Errorf("%q", got)
	}
}

func TestReflow(t *testing.T) {
	text := `One paragraph of
two lines that are joined.

  import     carry out what
             was asked for
  rollback   the same

Exit status:
  0  done
  1  failed; nothing was changed`
	want := `One paragraph of two lines
that are joined.

  import     carry out what
             was asked for
  rollback   the same

Exit status:
  0  done
  1  failed; nothing was
     changed`
	if got := reflow(text, 27); got != want {
		t.Errorf("%s", got)
	}

	if reflow(text, 0) != text {
		t.Error("without a terminal the text is changed")
	}
}

// All help fits 80 columns, but for words and examples that are longer.
func TestHelpWrapped(t *testing.T) {
	for _, cmd := range visible(newRootCmd()) {
		for line := range strings.Lines(reflow(cmd.Long, 80) + "\n" + cmd.LocalFlags().FlagUsagesWrapped(80)) {
			if len([]rune(strings.TrimRight(line, "\n"))) > 80 {
				t.Errorf("%s: %s", cmd.CommandPath(), line)
			}
		}
	}
}

// What is wrong with the arguments is said of the argument, with the command that may be meant.
func TestArgumentErrors(t *testing.T) {
	for args, want := range map[string]string{
		"global-db-import":            "FILE is missing; see `lxd-recover global-db-import --help`",
		"global-db-import a b":        `unexpected argument "b"; see`,
		"global-db-compare a":         "SOURCE is missing; see",
		"global-db-status x":          `unexpected argument "x"; see`,
		"global-db-kept remove":       "NAME is missing; see",
		"global-db-imprt":             `unknown command "global-db-imprt" for "lxd-recover"; did you mean global-db-import?; see`,
		"cluster exprt-db":            `unknown command "exprt-db" for "lxd-recover cluster"; did you mean export-db?; see`,
		"help nosuch":                 "there is no command \"nosuch\"; see `lxd-recover --help`",
		"help cluster nosuch":         `there is no command "cluster nosuch"; see`,
		"global-db-rollback --before": "flag needs an argument: --before; see",
	} {
		root := newRootCmd()
		root.SetArgs(strings.Fields(args))
		err := root.ExecuteContext(t.Context())
		if err == nil || !strings.Contains(err.Error(), want) || exitStatus(err) != exitUsage {
			t.Errorf("%s: %v (status %d), want %q", args, err, exitStatus(err), want)
		}
	}
}
