// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"fmt"
	"strings"
)

// Statements splits a text into SQL statements, without the semicolons that end them, and dot commands: lines that begin with
// a dot where a statement could begin. Semicolons in quotes and comments end nothing; comments between
// statements are left out.
func Statements(text string) ([]string, error) {
	if strings.ContainsRune(text, 0) {
		return nil, fmt.Errorf("a statement holds a NUL character, where SQLite would stop reading")
	}

	var all []string
	for {
		text = strings.TrimSpace(text)
		switch {
		case text == "":
			return all, nil
		case strings.HasPrefix(text, "--"):
			text = text[spanTo(text, "\n", 2):]
		case strings.HasPrefix(text, "/*"):
			text = text[spanTo(text, "*/", 2):]
		case text[0] == ';':
			text = text[1:]
		case text[0] == '.':
			line, rest, _ := strings.Cut(text, "\n")
			all, text = append(all, strings.TrimSpace(line)), rest
		default:
			end := statementEnd(text)
			all, text = append(all, strings.TrimSpace(text[:end])), text[end:]
		}
	}
}

// statementEnd returns where the first statement of a text ends. What is not closed reaches to the end: SQLite will complain
// about it.
func statementEnd(text string) int {
	for i := 0; i < len(text); {
		rest := text[i:]
		switch {
		case rest[0] == ';':
			return i
		case strings.HasPrefix(rest, "--"):
			i += spanTo(rest, "\n", 2)
		case strings.HasPrefix(rest, "/*"):
			i += spanTo(rest, "*/", 2)
		case strings.IndexByte("'\"`", rest[0]) >= 0: // a doubled one inside is the end of one and the beginning of the next
			i += spanTo(rest, rest[:1], 1)
		case rest[0] == '[':
			i += spanTo(rest, "]", 1)
		default:
			i++
		}
	}

	return len(text)
}

// spanTo is the length of text up to and with the first end in it after so many bytes.
func spanTo(text string, end string, from int) int {
	at := strings.Index(text[from:], end)
	if at < 0 {
		return len(text)
	}

	return from + at + len(end)
}
