// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/olekukonko/tablewriter"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/lxd-recover/lxd-recover/internal/printable"
)

// Output formats.
const (
	formatTable   = "table"
	formatCompact = "compact"
	formatCSV     = "csv"
	formatJSON    = "json"
	formatYAML    = "yaml"
)

// Formats of commands that report on one thing, and of those that list many of a kind.
var (
	reportFormats = []string{formatTable, formatJSON, formatYAML}
	listFormats   = []string{formatTable, formatCompact, formatCSV, formatJSON, formatYAML}
)

// format is the flag --format: an output format, one of those that the command knows.
type format struct {
	name  string
	known []string
}

func (f *format) addFlag(cmd *cobra.Command, known []string) {
	f.name, f.known = formatTable, known
	cmd.Flags().VarP(f, "format", "f", "output format: "+strings.Join(known, ", "))
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(known, cobra.ShellCompDirectiveNoFileComp))
}

// unknownFormatError says that a command does not know a format.
type unknownFormatError struct{ error }

// Set is called when the flag is parsed.
func (f *format) Set(name string) error {
	if !slices.Contains(f.known, name) {
		return unknownFormatError{fmt.Errorf("unknown format %q: %s are possible", name, strings.Join(f.known, ", "))}
	}

	f.name = name
	return nil
}

func (f *format) String() string { return f.name }

// Type is what the help says that the flag takes.
func (f *format) Type() string { return "string" }

// printReport writes a report to standard output, once: as it is, or for people.
func printReport[R any](f format, report R, people func(io.Writer, R)) error {
	err := writeReport(os.Stdout, f, report, people)
	if err != nil {
		return fmt.Errorf("the command is done, but its report cannot be printed: %w", err)
	}

	return nil
}

func writeReport[R any](to io.Writer, f format, report R, people func(io.Writer, R)) error {
	switch f.name {
	case formatJSON:
		data, err := encodeJSON(report)
		if err != nil {
			return err
		}

		_, err = to.Write(data)
		return err
	case formatYAML:
		data, err := encodeYAML(report)
		if err != nil {
			return err
		}

		_, err = to.Write(data)
		return err
	}

	out := &errorKeeper{to: printable.NewWriter(asCalled(atWords(to)))}
	people(out, report)
	return out.err
}

// errorKeeper keeps the first error of a writer, so that what prints line by line need not look at each.
type errorKeeper struct {
	to  io.Writer
	err error
}

// Unwrap returns that writer.
func (k *errorKeeper) Unwrap() io.Writer { return k.to }

func (k *errorKeeper) Write(data []byte) (int, error) {
	n, err := k.to.Write(data)
	if k.err == nil {
		k.err = err
	}

	return n, err
}

// writeTable writes a table the way lxc does. Each of its cells is one line, whatever is in it.
func writeTable(w io.Writer, header []string, rows [][]string) {
	for _, row := range rows {
		for i := range row {
			row[i] = printable.Line(row[i])
		}
	}

	names := make([]string, len(header))
	for i, name := range header {
		names[i] = strings.ToUpper(name)
	}

	writeRows(w, formatTable, names, rows)
}

// writeRows writes a table in one of the formats for people, with the names of its columns as they are. What is in it must be printable: how
// wide a column becomes depends on it. On a terminal that is too narrow for it each field has a line.
func writeRows(w io.Writer, format string, names []string, rows [][]string) {
	writeRowsWithin(w, format, names, rows, widthOf(w))
}

// writeRowsWithin does so for a terminal with that many columns; 0 columns hold anything.
func writeRowsWithin(w io.Writer, format string, names []string, rows [][]string, width int) {
	var text bytes.Buffer
	table := tablewriter.NewWriter(&text)
	table.SetAutoFormatHeaders(false)
	table.SetAutoWrapText(false)
	table.SetAlignment(tablewriter.ALIGN_LEFT)
	if format == formatCompact {
		table.SetHeaderAlignment(tablewriter.ALIGN_LEFT)
		table.SetColumnSeparator("")
		table.SetHeaderLine(false)
		table.SetBorder(false)
	} else {
		table.SetRowLine(true)
	}

	table.SetHeader(names)
	table.AppendBulk(rows)
	table.Render()
	if !fits(text.Bytes(), width) {
		writeFields(w, names, rows, width)
		return
	}

	_, _ = w.Write(text.Bytes())
}

// bytesText is a size for people.
func bytesText(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	value, unit := float64(n), 0
	for value >= 1024 && unit < len(units)-1 {
		value /= 1024
		unit++
	}

	if unit == 0 {
		return fmt.Sprintf("%d B", n)
	}

	return fmt.Sprintf("%.1f %s", value, units[unit])
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// outputOf is where a command writes what it makes, a tarball for one: to a file, whose absolute path it returns, or to standard output if that is "-".
func outputOf(file string, what string, f format, command string) (path string, stdout io.Writer, err error) {
	switch {
	case file != "-":
		path, err = filepath.Abs(file)
		return path, nil, err
	case isTerminal(os.Stdout):
		err = fmt.Errorf("a %s is not written to a terminal: redirect standard output, or name a FILE", what)
	case f.name != formatTable:
		err = fmt.Errorf("--format needs standard output, which the %s goes to", what)
	}

	if err != nil {
		return "", nil, usageError{err, command}
	}

	return "", os.Stdout, nil
}
