// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// confirmation asks before something is changed.
type confirmation struct {
	what     string // import, rollback, edit, repair
	question string
	yes      bool   // answered in advance
	flag     string // that does so; empty: --yes
}

// confirmPlan returns what shows a plan and asks whether to carry it out, unless that is answered in advance.
func confirmPlan[R any](ctx context.Context, c confirmation, printPlan func(io.Writer, R)) func(R) error {
	return func(r R) error {
		if c.yes {
			return nil
		}

		printPlan(stderr(), r)
		return c.ask(ctx)
	}
}

// ask returns nil when the answer is yes. Without a terminal to ask on it refuses.
func (c confirmation) ask(ctx context.Context) error {
	if !isTerminal(os.Stdin) {
		return &recovery.Refusal{Code: "no-terminal", Reason: "there is no terminal to ask on", Flag: cmp.Or(c.flag, "--yes")}
	}

	fmt.Fprintf(stderr(), "\n%s (yes/no) [default=no]: ", c.question)
	answer, err := readLine(ctx)
	logOf(ctx).Info("asked", "question", c.question, "answer", strings.TrimSpace(answer))
	if errors.Is(err, io.EOF) {
		return &recovery.Refusal{Code: "no-terminal", Reason: "nobody is there to answer any more, nothing was changed", Flag: cmp.Or(c.flag, "--yes")}
	}

	if err != nil {
		return err
	}

	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "yes", "y":
		return nil
	}

	return errors.New(c.what + " not confirmed: nothing was changed")
}

// readLine reads a line from standard input. The error is io.EOF if that has ended: a terminal that is gone must not be
// taken for an answer.
func readLine(ctx context.Context) (string, error) {
	lines, failed := make(chan string, 1), make(chan error, 1)
	go func() {
		line, err := bufio.NewReader(os.Stdin).ReadString('\n')
		if err != nil && line == "" {
			failed <- io.EOF
			return
		}

		lines <- line
	}()

	select {
	case line := <-lines:
		return line, nil
	case err := <-failed:
		return "", err
	case <-ctx.Done():
		fmt.Fprintln(stderr())
		return "", ctx.Err()
	}
}
