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

// silentTries is how often a daemon is asked that takes the question and gives no answer in time.
const silentTries = 2

// The pauses between two tries double from the first one to the longest. Tests make them short.
var (
	firstPause   = 100 * time.Millisecond
	longestPause = 2 * time.Second
)

// answerTime is how long one question to systemd or snapd may take before it is asked again through another connection. Tests make it
// short.
var answerTime = 15 * time.Second

// errNoAnswer says that a question was taken, as it seems, and had no answer within answerTime.
var errNoAnswer = errors.New("no answer")

// inTime asks one question, for so long as that may take.
func inTime[T any](ctx context.Context, question func(ctx context.Context) (T, error)) (T, error) {
	limited, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()

	answer, err := question(limited)
	if err != nil && limited.Err() != nil && ctx.Err() == nil { // whatever that looks like, such as a closed connection
		err = fmt.Errorf("%w within %s: %w", errNoAnswer, answerTime, err)
	}

	return answer, err
}

// again asks a question, and asks it again while the connection breaks, so many times at most and no longer than ctx allows. So the
// question must be one that may be asked twice. An answer that is an error is an answer. That a question had no answer within
// answerTime counts as a broken connection, too, but is not waited for more than silentTries times.
func again(ctx context.Context, tries int, question func(ctx context.Context) error) error {
	wait, silent := firstPause, 0
	for try := 1; ; try++ {
		err := question(ctx)
		if errors.Is(err, errNoAnswer) {
			silent++
		}

		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil: // the end of ctx closes connections: what that looks like says nothing
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case !broken(err):
			return err
		case try == tries || silent == silentTries:
			return fmt.Errorf("%w (asked %d times)", err, try)
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
		errNoAnswer, dbus.ErrClosed, net.ErrClosed, io.EOF, io.ErrUnexpectedEOF, context.DeadlineExceeded,
		syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNREFUSED,
	} {
		if errors.Is(err, sign) {
			return true
		}
	}

	return false
}
