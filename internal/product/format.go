// SPDX-License-Identifier: AGPL-3.0-only

package product

import (
	"fmt"
	"io"
)

// Sprintf is fmt.Sprintf with a format in LXD's words.
func Sprintf(format string, args ...any) string {
	if false { // tells `go vet` that this is like fmt.Sprintf
		_ = fmt.Sprintf(format, args...)
	}

	return fmt.Sprintf(Text(format), args...)
}

// Errorf is fmt.Errorf with a format in LXD's words.
func Errorf(format string, args ...any) error {
	if false { // tells `go vet` that this is like fmt.Errorf
		return fmt.Errorf(format, args...)
	}

	return fmt.Errorf(Text(format), args...)
}

// Fprintf is fmt.Fprintf with a format in LXD's words.
func Fprintf(w io.Writer, format string, args ...any) {
	if false { // tells `go vet` that this is like fmt.Fprintf
		_, _ = fmt.Fprintf(w, format, args...)
	}

	_, _ = fmt.Fprintf(w, Text(format), args...)
}
