// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

// Who ends a command, and how.
//
// SIGINT, SIGTERM and SIGHUP end a command the way an error does: what was begun is taken back, or finished where it cannot be. A run,
// that is a command that changes something, may have LXD stopped just then, and ends when it runs again. So nothing ends a run at once but a
// second SIGINT, which is somebody who insists: a lost connection sends SIGHUP twice, from the shell and from the kernel, and a session
// that systemd ends gets SIGTERM, SIGHUP, and after 90 s SIGKILL. Any other command ends at once where it does not heed the first
// signal, as it leaves nothing but scratch files.
//
// SIGPIPE ends nobody: it is an error of the write, see nobodyReads. All other signals that could be sent are dropped by Go itself.

// runs are the names of the commands that change something.
var runs = []string{
	"global-db-import", "global-db-rollback", "global-db-repair", "global-db-patch", "global-db-resync", "resume", "edit",
	"recover-from-quorum-loss", "hook", "install", "remove", "restore",
	"recover", "apply", "undo",
}

// isRun tells whether a command line is that of a run.
func isRun(root *cobra.Command, args []string) bool {
	cmd, _, err := root.Find(args)
	return err == nil && slices.Contains(runs, cmd.Name())
}

// endedAtOnce is what a run says at a second SIGINT.
const endedAtOnce = "\nEnded at once, whatever was under way. `lxd-recover resume` finishes it, and starts LXD if it was stopped."

// heedTime is how long a command that is no run may take to end after the first signal.
const heedTime = 5 * time.Second

var (
	// endings ask a command to end. A run heeds SIGQUIT, too, by which Go would end any other with a dump of all it is at.
	endings    = []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP}
	runEndings = append(slices.Clone(endings), unix.SIGQUIT)
)

// listen returns a context that the first signal ends; stop puts everything back. What was ignored when this process was started stays
// so: by nohup, or in a shell's background.
func listen(run bool) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	unheard := make(chan os.Signal, 1)
	signal.Notify(unheard, unix.SIGPIPE)
	heeded := endings
	if run {
		heeded = runEndings
	}

	heard := make(chan os.Signal, 16)
	for _, sig := range heeded {
		if !signal.Ignored(sig) {
			signal.Notify(heard, sig)
		}
	}

	stopped := make(chan struct{})
	go heed(run, heard, stopped, cancel)
	return ctx, func() {
		signal.Stop(unheard)
		signal.Stop(heard)
		close(stopped)
		cancel()
	}
}

// heed waits for signals until stopped is closed.
func heed(run bool, heard <-chan os.Signal, stopped <-chan struct{}, cancel func()) {
	var first os.Signal
	var late <-chan time.Time
	interrupted := false
	for {
		select {
		case <-stopped:
			return
		case <-late:
			die(first)
		case sig := <-heard:
			insists := first != nil && (sig == unix.SIGINT || sig == unix.SIGTERM)
			if run {
				insists = interrupted && sig == unix.SIGINT
			}

			if insists && run {
				fmt.Fprintln(&steady{to: os.Stderr}, product.Text(endedAtOnce))
			}

			if insists {
				die(sig)
			}

			interrupted = interrupted || sig == unix.SIGINT
			if first == nil {
				first = sig
				cancel()
				if !run {
					late = time.After(heedTime)
				}
			}
		}
	}
}

// die ends this process by a signal, so that whoever waits for it sees which.
func die(sig os.Signal) {
	number, _ := sig.(unix.Signal)
	signal.Reset(sig)
	_ = unix.Kill(unix.Getpid(), number)
	time.Sleep(time.Second) // until it has arrived
	os.Exit(128 + int(number))
}
