// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/mattn/go-runewidth"
	"golang.org/x/term"
)

// widthOf is how many columns the terminal has that a writer leads to; 0 if that is none, or one that does not say.
func widthOf(w io.Writer) int {
	for {
		switch to := w.(type) {
		case *os.File:
			width, _, err := term.GetSize(int(to.Fd()))
			if err != nil {
				return 0
			}

			return width
		case interface{ Unwrap() io.Writer }:
			w = to.Unwrap()
		default:
			return 0
		}
	}
}

// fits tells whether no line of a text is wider than that many columns; 0 columns hold anything.
func fits(text []byte, width int) bool {
	for line := range bytes.Lines(text) {
		if width > 0 && runewidth.StringWidth(strings.TrimRight(string(line), "\n")) > width {
			return false
		}
	}

	return true
}

// writeFields writes a table with one field a line and an empty line after each row but the last, for a terminal that the table is too
// wide for. A table of two columns without a header is one of names and values. Fields without a value are left out.
func writeFields(w io.Writer, names []string, rows [][]string, width int) {
	if len(names) == 0 {
		for _, row := range rows {
			writeField(w, row[0], strings.Join(row[1:], "  "), width)
		}

		return
	}

	for i, row := range rows {
		if i > 0 {
			fmt.Fprintln(w)
		}

		for column, value := range row {
			switch {
			case value == "":
			case names[column] == "": // what the row is about
				fmt.Fprintln(w, value)
			default:
				writeField(w, names[column], value, width)
			}
		}
	}
}

// fieldIndent is what the further lines of a field begin with.
const fieldIndent = "    "

func writeField(w io.Writer, name string, value string, width int) {
	for i, line := range strings.Split(value, "\n") {
		if i == 0 {
			line = name + ": " + line
		} else {
			line = fieldIndent + line
		}

		fmt.Fprintln(w, wrapped(line, fieldIndent, width))
	}
}

// wrapped breaks a line at spaces so that no part is wider than that many columns, as far as its words allow. All parts but the first
// begin with indent. With a width of 0 the line stays as it is.
func wrapped(line string, indent string, width int) string {
	if width == 0 || runewidth.StringWidth(line) <= width {
		return line
	}

	var text strings.Builder
	begin := line[:len(line)-len(strings.TrimLeft(line, " "))]
	column := 0
	for _, word := range strings.SplitAfter(line[len(begin):], " ") {
		length := runewidth.StringWidth(strings.TrimRight(word, " "))
		switch {
		case text.Len() == 0:
			text.WriteString(begin)
			column = len(begin)
		case column+length > width:
			text.WriteString("\n" + indent)
			column = len(indent)
		}

		text.WriteString(word)
		column += runewidth.StringWidth(word)
	}

	lines := strings.Split(text.String(), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}

	return strings.Join(lines, "\n")
}

// atWords returns a writer for what is said to people: on a terminal, lines that are too long end after a word. What is indented by four
// columns or more, as commands and SQL are, and tables, which fit, stay as they are.
func atWords(to io.Writer) io.Writer {
	width := widthOf(to)
	if width == 0 {
		return to
	}

	return wordWriter{to, width}
}

type wordWriter struct {
	to    io.Writer
	width int
}

// Write implements io.Writer. It is given whole lines, or the last one as far as it goes.
func (w wordWriter) Write(text []byte) (int, error) {
	var out strings.Builder
	for line := range strings.Lines(string(text)) {
		body, found := strings.CutSuffix(line, "\n")
		if !strings.HasPrefix(body, fieldIndent) && !strings.HasPrefix(body, "+-") && !strings.HasPrefix(body, "| ") {
			body = wrapped(body, body[:len(body)-len(strings.TrimLeft(body, " "))], w.width)
		}

		out.WriteString(body)
		if found {
			out.WriteString("\n")
		}
	}

	_, err := io.WriteString(w.to, out.String())
	return len(text), err
}

// Unwrap returns the writer that this one writes to.
func (w wordWriter) Unwrap() io.Writer { return w.to }
