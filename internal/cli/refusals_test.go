// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

var (
	oneRefusal = &recovery.Refusal{
		Code: "local-entries", Member: "two", Flag: "--discard-local-entries", Reason: "would be lost", Entries: []recovery.Discarded{{Index: 7, Term: 2}},
	}
	otherRefusal = &recovery.Refusal{Code: "unsigned", Reason: "not signed", Flag: "--unsigned"}
)

// asked is a command that was asked for a format.
func asked(t *testing.T, name string) *cobra.Command {
	t.Helper()
	cmd, f := &cobra.Command{Use: "run"}, &format{}
	f.addFlag(cmd, reportFormats)
	must(t, cmd.Flags().Set("format", name))
	return cmd
}

// A program that asked for JSON or YAML gets an object also when it is refused.
func TestRefusalsPrinted(t *testing.T) {
	failed := errors.Join(fmt.Errorf("import: %w", oneRefusal), otherRefusal)
	for name, decode := range map[string]func([]byte, any) error{formatJSON: json.Unmarshal, formatYAML: yaml.Unmarshal} {
		var out bytes.Buffer
		must(t, printRefusals(&out, asked(t, name), failed))
		var got refusals
		must(t, decode(out.Bytes(), &got))
		first := got.Refusals[0]
		if len(got.Refusals) != 2 || first.Code != "local-entries" || first.Flag != "--discard-local-entries" || first.Member != "two" ||
			first.Reason != "would be lost" || len(first.Entries) != 1 || first.Entries[0].Index != 7 || got.Refusals[1].Entries == nil {
			t.Errorf("%s: %+v from\n%s", name, got, out.String())
		}
	}

	for why, err := range map[string]error{"no refusal": errors.New("broken"), "printed with a report": printed{oneRefusal}, "nothing": nil} {
		var out bytes.Buffer
		must(t, printRefusals(&out, asked(t, formatJSON), err))
		if out.Len() > 0 {
			t.Errorf("%s: %s", why, out.String())
		}
	}

	var out bytes.Buffer
	must(t, printRefusals(&out, asked(t, formatTable), failed))
	must(t, printRefusals(&out, &cobra.Command{}, failed))
	if out.Len() > 0 {
		t.Errorf("a table: %s", out.String())
	}
}

// The report of a dry run that is refused is one object, with the refusals in it.
func TestRefusalsInReport(t *testing.T) {
	report := struct {
		Name string   `json:"name" yaml:"name"`
		List []string `json:"list" yaml:"list"`
	}{"two", []string{"}"}}
	for name, decode := range map[string]func([]byte, any) error{formatJSON: json.Unmarshal, formatYAML: yaml.Unmarshal} {
		for _, failed := range []error{nil, oneRefusal} {
			var out bytes.Buffer
			must(t, writeReport(&out, format{name: name}, withRefusals[any]{report, refusals{refusalsIn(failed)}}, nil))
			got := map[string]any{}
			must(t, decode(out.Bytes(), &got))
			list, ok := got["refusals"].([]any)
			if got["name"] != "two" || !ok || len(list) != len(refusalsIn(failed)) || !slices.Equal(got["list"].([]any), []any{"}"}) {
				t.Errorf("%s: %+v from\n%s", name, got, out.String())
			}
		}
	}
}

// A refusal stays one if nobody reads the report of the dry run.
func TestRefusalUnread(t *testing.T) {
	r, w, err := os.Pipe()
	must(t, err)
	must(t, r.Close())
	old := os.Stdout
	os.Stdout = w
	defer func() { os.Stdout = old }()

	for _, name := range []string{formatTable, formatJSON} {
		got := printReportAnd(format{name: name}, &recovery.ImportReport{}, func(w io.Writer, _ *recovery.ImportReport) { fmt.Fprintln(w, "plan") }, oneRefusal)
		if nobodyReads(got) || exitStatus(got) != exitRefused {
			t.Errorf("%s: %v", name, got)
		}
	}
}
