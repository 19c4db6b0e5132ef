// SPDX-License-Identifier: AGPL-3.0-only

// Package printable makes text from outside fit for a terminal: from tarballs, databases, saved reports, names of files, other machines. A
// terminal obeys what it is sent: it can be told to hide what follows, to overwrite what was shown, or to show letters in another order
// than they are in. Here such characters are written as what they are: \x1b.
package printable

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Harmless tells whether a terminal shows a character and does nothing else: letters, marks, digits, punctuation, symbols and blanks are,
// and so are the ends of lines and tabs. Control characters are not, nor are the invisible ones that change the order of others or have no
// width (categories Cc, Cf, Zl, Zp, Co, Cs of Unicode), nor what Unicode has not defined.
func Harmless(r rune) bool { return r == '\n' || r == '\t' || unicode.IsGraphic(r) }

// Text is a text that may have several lines.
func Text(text string) string { return escape(text, Harmless) }

// Line is a text that belongs into one line: a name with the end of a line in it could feign another one.
func Line(text string) string { return escape(text, unicode.IsGraphic) }

func escape(text string, harmless func(rune) bool) string {
	if utf8.ValidString(text) && strings.IndexFunc(text, func(r rune) bool { return !harmless(r) }) < 0 {
		return text
	}

	var b strings.Builder
	for len(text) > 0 {
		r, size := utf8.DecodeRuneInString(text)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, text[0])
		case harmless(r):
			b.WriteRune(r)
		default:
			quoted := strconv.QuoteRuneToASCII(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}

		text = text[size:]
	}

	return b.String()
}

// JSON makes a JSON text fit for a terminal without changing what it says: encoding/json escapes only some of what is not harmless, all of
// which can only be in strings.
func JSON(data []byte) []byte {
	return escapeStrings(data, func(b []byte, r rune) []byte {
		if r <= 0xffff {
			return fmt.Appendf(b, `\u%04x`, r)
		}

		high, low := utf16.EncodeRune(r)
		return fmt.Appendf(b, `\u%04x\u%04x`, high, low)
	})
}

// YAML does the same for a YAML document, in which all that is not harmless must be between double quotes.
func YAML(data []byte) []byte {
	return escapeStrings(data, func(b []byte, r rune) []byte {
		if r <= 0xffff {
			return fmt.Appendf(b, `\u%04X`, r)
		}

		return fmt.Appendf(b, `\U%08X`, r)
	})
}

func escapeStrings(data []byte, encode func([]byte, rune) []byte) []byte {
	if AllHarmless(data) {
		return data
	}

	escaped := make([]byte, 0, len(data)+64)
	for len(data) > 0 {
		r, size := utf8.DecodeRune(data)
		if Harmless(r) {
			escaped = append(escaped, data[:size]...)
		} else {
			escaped = encode(escaped, r)
		}

		data = data[size:]
	}

	return escaped
}

// AllHarmless tells whether a text can be sent to a terminal as it is.
func AllHarmless(text []byte) bool {
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		if !Harmless(r) || r == utf8.RuneError && size == 1 {
			return false
		}

		text = text[size:]
	}

	return true
}

// Writer writes as Text to another writer. What it is given may be cut anywhere.
type Writer struct {
	to   io.Writer
	rest []byte // the beginning of a character that is not complete
}

// NewWriter returns a Writer that writes to another one.
func NewWriter(to io.Writer) *Writer { return &Writer{to: to} }

// Unwrap returns that writer.
func (w *Writer) Unwrap() io.Writer { return w.to }

func (w *Writer) Write(data []byte) (int, error) {
	text := append(w.rest, data...)
	end := len(text) - unfinished(text)
	w.rest = append([]byte(nil), text[end:]...)
	_, err := io.WriteString(w.to, Text(string(text[:end])))
	if err != nil {
		return 0, err
	}

	return len(data), nil
}

// unfinished is how many bytes at the end of a text may be the beginning of a character.
func unfinished(text []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(text); n++ {
		tail := text[len(text)-n:]
		if utf8.RuneStart(tail[0]) {
			if utf8.FullRune(tail) {
				return 0
			}

			return n
		}
	}

	return 0
}
