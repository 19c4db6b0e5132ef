// SPDX-License-Identifier: AGPL-3.0-only

package printable

import "strings"

// plain are the characters, besides letters and digits of ASCII, that a shell takes as they are wherever they stand in a word.
const plain = "-_./:@%+,="

// Word is a text as one word of a shell's command line, in quotes where that is needed: somebody copies such lines.
func Word(text string) string {
	special := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(plain, r)
	}
	if text != "" && !strings.ContainsFunc(text, special) {
		return text
	}

	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
