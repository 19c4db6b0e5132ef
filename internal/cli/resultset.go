// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/printable"
)

// resultWriter writes the results of statements, one after the other, in one of the formats. Rows are written as they come,
// but in tables, whose columns must be measured first.
//
//   - table, compact: NULL, x'00ff' for a blob; control characters are shown, not sent to the terminal.
//   - csv: a line of names, then the rows; nothing at all for NULL, "" for an empty text. An empty line between results.
//   - json, yaml: a list of objects for each result, with null for NULL and hexadecimal digits for a blob. A name that comes
//     twice gets a number, as SQLite itself does it: id, id:1.
type resultWriter struct {
	out    *bufio.Writer
	format string
	count  int // of results so far

	names []string
	rows  int
	table [][]string
}

func newResultWriter(w io.Writer, format string) *resultWriter {
	return &resultWriter{out: bufio.NewWriter(w), format: format}
}

// receiver takes one result. end is to be called after it.
func (w *resultWriter) receiver() globaldb.Receiver {
	w.names, w.rows, w.table = nil, 0, nil
	return globaldb.Receiver{Columns: w.begin, Row: w.row}
}

func (w *resultWriter) begin(names []string) error {
	w.names = names
	if w.format == formatJSON || w.format == formatYAML {
		w.names = unique(names)
	}

	w.count++
	if w.count > 1 {
		switch w.format {
		case formatYAML:
			w.out.WriteString("---\n")
		case formatTable, formatCompact, formatCSV:
			w.out.WriteString("\n")
		}
	}

	switch w.format {
	case formatCSV:
		w.csvLine(names)
	case formatJSON:
		w.out.WriteString("[")
	}

	return nil
}

func (w *resultWriter) row(values []any) error {
	w.rows++
	switch w.format {
	case formatCSV:
		fields := make([]string, len(values))
		for i, v := range values {
			fields[i] = csvField(v)
		}

		_, err := w.out.WriteString(strings.Join(fields, ",") + "\n")
		return err
	case formatJSON:
		return w.jsonRow(values)
	case formatYAML:
		return w.yamlRow(values)
	}

	cells := make([]string, len(values))
	for i, v := range values {
		cells[i] = cell(v)
	}

	w.table = append(w.table, cells)
	return nil
}

// end finishes a result.
func (w *resultWriter) end() error {
	switch {
	case w.names == nil: // a statement that returns nothing, such as BEGIN
	case w.format == formatJSON && w.rows > 0:
		w.out.WriteString("\n]\n")
	case w.format == formatJSON:
		w.out.WriteString("]\n")
	case w.format == formatYAML && w.rows == 0:
		w.out.WriteString("[]\n")
	case w.format == formatTable || w.format == formatCompact:
		names := make([]string, len(w.names))
		for i, name := range w.names {
			names[i] = printable.Line(name)
		}

		writeRows(w.out, w.format, names, w.table)
	}

	return w.out.Flush()
}

func (w *resultWriter) jsonRow(values []any) error {
	separator := ",\n  {"
	if w.rows == 1 {
		separator = "\n  {"
	}

	w.out.WriteString(separator)
	for i, v := range values {
		if i > 0 {
			w.out.WriteString(", ")
		}

		w.out.WriteString(jsonText(w.names[i]) + ": " + jsonValue(v))
	}

	_, err := w.out.WriteString("}")
	return err
}

func jsonText(s string) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // text can always be encoded
	return string(printable.JSON([]byte(strings.TrimSuffix(b.String(), "\n"))))
}

func jsonValue(value any) string {
	switch v := value.(type) {
	case nil:
		return "null"
	case string:
		return jsonText(v)
	case []byte:
		return jsonText(hex.EncodeToString(v))
	}

	return cell(value) // a number
}

// realText writes a real so that it is told from an integer, with SQLite's own words for what JSON has none for.
func realText(v float64) string {
	switch {
	case math.IsInf(v, 1):
		return "9.0e+999"
	case math.IsInf(v, -1):
		return "-9.0e+999"
	}

	text := strconv.FormatFloat(v, 'g', -1, 64)
	if !strings.ContainsAny(text, ".e") {
		text += ".0"
	}

	return text
}

func (w *resultWriter) yamlRow(values []any) error {
	row := &yaml.Node{Kind: yaml.MappingNode}
	for i, v := range values {
		node := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}
		switch v := v.(type) {
		case int64:
			node.Tag, node.Value = "!!int", strconv.FormatInt(v, 10)
		case float64:
			node.Tag, node.Value = "!!float", realText(v)
			if math.IsInf(v, 0) {
				node.Value = strings.Replace(node.Value, "9.0e+999", ".inf", 1)
			}
		case string:
			// Always quoted: a reader of YAML 1.1 takes a plain LXD time for a time.
			node.Tag, node.Style, node.Value = "!!str", yaml.DoubleQuotedStyle, strings.ToValidUTF8(v, "\uFFFD")
		case []byte:
			node.Tag, node.Style, node.Value = "!!str", yaml.DoubleQuotedStyle, hex.EncodeToString(v)
		}

		name := &yaml.Node{}
		name.SetString(strings.ToValidUTF8(w.names[i], "\uFFFD"))
		row.Content = append(row.Content, name, node)
	}

	data, err := encodeYAML([]*yaml.Node{row})
	if err != nil {
		return err
	}

	_, err = w.out.Write(data)
	return err
}

func (w *resultWriter) csvLine(names []string) {
	fields := make([]string, len(names))
	for i, name := range names {
		fields[i] = csvField(name)
	}

	w.out.WriteString(strings.Join(fields, ",") + "\n")
}

// csvField quotes if it must (RFC 4180), and an empty text, so that it is told from NULL.
func csvField(value any) string {
	switch v := value.(type) {
	case nil:
		return ""
	case string:
		if v == "" || strings.ContainsAny(v, "\",\r\n") || v != strings.TrimSpace(v) {
			return `"` + strings.ReplaceAll(v, `"`, `""`) + `"`
		}

		return v
	}

	return cell(value)
}

// cell is a value in a table.
func cell(value any) string {
	switch v := value.(type) {
	case int64:
		return strconv.FormatInt(v, 10)
	case float64:
		return realText(v)
	case string:
		return printable.Text(v)
	case []byte:
		return "x'" + hex.EncodeToString(v) + "'"
	}

	return "NULL"
}

// unique gives names that come again a number.
func unique(names []string) []string {
	seen := map[string]bool{}
	all := make([]string, len(names))
	for i, name := range names {
		all[i] = name
		for n := 1; seen[all[i]]; n++ {
			all[i] = fmt.Sprintf("%s:%d", name, n)
		}

		seen[all[i]] = true
	}

	return all
}
