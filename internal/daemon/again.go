// SPDX-License-Identifier: AGPL-3.0-only

package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"
)

// How often a daemon is asked whose connections break: the pauses between ten tries take about ten seconds, for systemd and snapd,
// which break connections when they are replaced by a newer version of themselves. Another member is asked within peerTimeout.
const (
	daemonTries = 10
	peerTries   = 3
)

// The pauses between two tries double from the first one to the longest. Tests make them short.
var (
	firstPause   = 100 * time.Millisecond
	longestPause = 2 * time.Second
)

// answerTime is how long one question to systemd may take before it is asked again through another connection.
const answerTime = 15 * time.Second

// again asks a question, and asks it again while the connection breaks, so many times at most and no longer than ctx allows. So the
// question must be one that may be asked twice. An answer that is an error is an answer. The question may bound itself by a
// context of its own: that it had no answer in that time counts as a broken connection, too.
func again(ctx context.Context, tries int, question func(ctx context.Context) error) error {
	wait := firstPause
	for try := 1; ; try++ {
		err := question(ctx)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil: // the end of ctx closes connections: what that looks like says nothing
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case !broken(err):
			return err
		case try == tries:
			return fmt.Errorf("%w (asked %d times)", err, tries)
		}

		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(wait):
		}

		wait = min(2*wait, longestPause)
	}
}

// broken tells whether an error is about the connection, and no answer.
func broken(err error) bool {
	for _, sign := range []error{
		dbus.ErrClosed, net.ErrClosed, io.EOF, io.ErrUnexpectedEOF, context.DeadlineExceeded,
		syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNREFUSED,
	} {
		if errors.Is(err, sign) {
			return true
		}
	}

	return false
}
