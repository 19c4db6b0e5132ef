// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// logFlag is the flag of every command that names a file to which is written what the command does, a line an event.
const logFlag = "log-file"

// eventLog is the log of one call of a command. Until it is opened, and if nobody wants one, it goes nowhere.
type eventLog struct {
	*slog.Logger
	began time.Time
}

type eventLogKey struct{}

// withEventLog gives a context a log.
func withEventLog(ctx context.Context) (context.Context, *eventLog) {
	log := &eventLog{Logger: slog.New(slog.DiscardHandler), began: time.Now()}
	return context.WithValue(ctx, eventLogKey{}, log), log
}

// logOf returns the log of a context.
func logOf(ctx context.Context) *eventLog {
	log, ok := ctx.Value(eventLogKey{}).(*eventLog)
	if !ok {
		_, log = withEventLog(ctx)
	}

	return log
}

// addLogFlags gives the flag to a command and all below it. It is no persistent flag of the root, because the help shows those apart.
func addLogFlags(cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		addLogFlags(c)
	}

	if cmd.HasSubCommands() || cmd.Hidden {
		return
	}

	cmd.Flags().String(logFlag, "", "append to `FILE` what is done, a line an event")
	_ = cmd.MarkFlagFilename(logFlag)
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		warnCutOff(cmd, args)
		return logOf(cmd.Context()).open(cmd, args)
	}
}

// open begins to write, if that is wanted. A log that cannot be written ends the command before it does anything.
func (l *eventLog) open(cmd *cobra.Command, args []string) error {
	path, err := cmd.Flags().GetString(logFlag)
	if path == "" || err != nil {
		return err
	}

	err = recovery.CheckOutput(path)
	if err != nil {
		return err
	}

	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY|unix.O_NONBLOCK, 0o600) // a FIFO that nobody reads is an error
	if err != nil {
		return fmt.Errorf("the log file cannot be opened, nothing was done: %w", err)
	}

	var flags []string
	cmd.Flags().Visit(func(f *pflag.Flag) { flags = append(flags, "--"+f.Name+"="+f.Value.String()) })
	l.Logger = newLogger(&steady{to: file}).With("pid", os.Getpid())
	l.Info("begin", "command", cmd.CommandPath(), "flags", strings.Join(flags, " "), "arguments", strings.Join(args, " "),
		"version", Version, "lxd_dir", os.Getenv(product.Text("LXD_DIR")))
	return nil // the process's end closes it: the last line is written when all else is done
}

// newLogger writes lines of key=value, as LXD's own log has them.
func newLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// end writes how the command has ended.
func (l *eventLog) end(err error) {
	took := time.Since(l.began).Round(time.Millisecond)
	if err != nil {
		l.Error("end", "exit_status", exitStatus(err), "took", took, "error", message(err))
		return
	}

	l.Info("end", "exit_status", exitDone, "took", took)
}
