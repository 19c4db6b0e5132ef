// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import "fmt"

// UnmarshalText reads a severity from a saved report.
func (s *Severity) UnmarshalText(text []byte) error { return parseWord(s, text, Info, Error) }

// UnmarshalText reads an outcome from a saved report.
func (o *Outcome) UnmarshalText(text []byte) error { return parseWord(o, text, LoadsClean, Crashes) }

// parseWord sets v to the value between first and last whose word is text.
func parseWord[T interface {
	~uint8
	fmt.Stringer
}](v *T, text []byte, first T, last T) error {
	for w := first; w <= last; w++ {
		if w.String() == string(text) {
			*v = w
			return nil
		}
	}

	return fmt.Errorf("unknown word %q", text)
}
