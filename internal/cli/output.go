package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/olekukonko/tablewriter"
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"golang.org/x/term"
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

// outputOptions is the flag --format.
type outputOptions struct {
	format  string
	formats []string // that the command knows; reportFormats unless it says otherwise
	cmd     *cobra.Command
}

func (o *outputOptions) addFlags(cmd *cobra.Command) {
	if o.formats == nil {
		o.formats = reportFormats
	}

	o.cmd = cmd
	cmd.Flags().StringVarP(&o.format, "format", "f", formatTable, "output format: "+strings.Join(o.formats, ", "))
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(o.formats, cobra.ShellCompDirectiveNoFileComp))
}

func (o *outputOptions) check() error {
	if !slices.Contains(o.formats, o.format) {
		return usageError{fmt.Errorf("unknown format %q: %s are possible", o.format, strings.Join(o.formats, ", ")), helpPath(o.cmd)}
	}

	return nil
}

// print writes a report to standard output, once: as it is, or for people.
func (o *outputOptions) print(report any, people func() error) error {
	switch o.format {
	case formatJSON:
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(report)
	case formatYAML:
		data, err := yaml.Marshal(report)
		if err != nil {
			return err
		}

		_, err = os.Stdout.Write(data)
		return err
	}

	return people()
}

// writeTable writes a table the way lxc does.
func writeTable(w io.Writer, header []string, rows [][]string) {
	table := tablewriter.NewWriter(w)
	table.SetAutoWrapText(false)
	table.SetAlignment(tablewriter.ALIGN_LEFT)
	table.SetRowLine(true)
	table.SetHeader(header)
	table.AppendBulk(rows)
	table.Render()
}

// writeRows writes a table in one of the formats for people, with the names of its columns as they are.
func writeRows(w io.Writer, format string, names []string, rows [][]string) {
	table := tablewriter.NewWriter(w)
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
