// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"io"
	"slices"
	"time"
)

// patience is how long a reader who does not read is waited for.
const patience = time.Second

// steady writes what nobody has to read: an error, or a reader that has stopped (a terminal after Ctrl-S, a pager), keeps nobody from going on.
// What such a reader does not take in time is left to it, and what comes meanwhile is dropped.
type steady struct {
	to      io.Writer
	writing chan struct{} // closed when the last write has ended; nil before the first one
}

// Unwrap returns the writer that this one writes to.
func (s *steady) Unwrap() io.Writer { return s.to }

// Write implements io.Writer, and never fails. It is for one goroutine.
func (s *steady) Write(data []byte) (int, error) {
	if s.writing != nil {
		select {
		case <-s.writing:
		default:
			return len(data), nil
		}
	}

	ended := make(chan struct{})
	s.writing = ended
	kept := slices.Clone(data)
	go func() {
		_, _ = s.to.Write(kept)
		close(ended)
	}()

	select {
	case <-ended:
	case <-time.After(patience):
	}

	return len(data), nil
}
