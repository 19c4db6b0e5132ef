// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"errors"
	"io/fs"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// nobodyReads tells whether an error is only that nobody reads standard output any more: the pipe is closed, or the terminal is gone. A disk
// that is full is another matter.
func nobodyReads(err error) bool {
	joined, several := err.(interface{ Unwrap() []error })
	if several {
		for _, e := range joined.Unwrap() {
			if !nobodyReads(e) {
				return false
			}
		}

		return true
	}

	var failed *fs.PathError
	if !errors.As(err, &failed) || failed.Path != os.Stdout.Name() {
		return false
	}

	if errors.Is(failed, unix.EPIPE) {
		return true
	}

	info, err := os.Stdout.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && errors.Is(failed, unix.EIO)
}

// endUnread ends a command whose output nobody reads to its end, as `head` does not: quietly, by SIGPIPE like any other program.
func endUnread() int {
	signal.Reset(unix.SIGPIPE)
	_, _ = os.Stdout.Write([]byte("\n")) // Go has this end the process where SIGPIPE is not ignored
	return exitFailed
}
