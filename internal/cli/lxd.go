// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/frontend"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// Exit statuses of the front-end if it cannot hand over: a shell's.
const (
	exitNotFound      = 127
	exitNotExecutable = 126
)

// handOver replaces this process by LXD's own program. It returns only if that fails.
func handOver() int {
	status := exitNotFound
	program, err := frontend.Next()
	if err == nil {
		status, err = exitNotExecutable, frontend.Exec(program)
	}

	fmt.Fprintln(stderr(), "Error: "+err.Error())
	return status
}

// speakAsLXD makes a root command that of the front-end: it has those of our commands that `lxd` has, which speak of themselves
// as such, and LXD's global flags, which are accepted and do nothing.
func speakAsLXD(root *cobra.Command) {
	root.Use, root.Version = frontend.Name(), ""
	for _, cmd := range root.Commands() {
		if cmd.Name() != "cluster" && !frontend.Owns([]string{cmd.Name()}) {
			root.RemoveCommand(cmd)
		}
	}

	prefix := product.Current().Prefix
	if prefix != "" {
		admin := &cobra.Command{Use: prefix, Hidden: true, RunE: groupRun}
		admin.AddCommand(newClusterCmd())
		root.AddCommand(admin)
	}

	for _, f := range frontend.Flags {
		if f.Value {
			root.PersistentFlags().StringArrayP(f.Name, f.Short, nil, "")
		} else {
			root.PersistentFlags().BoolP(f.Name, f.Short, false, "")
		}

		_ = root.PersistentFlags().MarkHidden(f.Name)
	}

	renameCommands(root)
}

// renameCommands goes through what the command and those below it say of themselves.
func renameCommands(cmd *cobra.Command) {
	cmd.Long, cmd.Example = asLXD(cmd.Long), asLXD(cmd.Example)
	for _, c := range cmd.Commands() {
		renameCommands(c)
	}
}

// asLXD names the commands in a text as the front-end has them. Those that LXD has, too, keep our name: a shell that remembers where LXD's
// own program is would run that one.
func asLXD(text string) string {
	program := frontend.Name()
	return strings.NewReplacer(
		"lxd-recover cluster edit", "lxd-recover cluster edit", "lxd-recover cluster recover-from", "lxd-recover cluster recover-from",
		"lxd-recover cluster ", program+" cluster ", "lxd-recover global-db-", program+" global-db-",
	).Replace(text)
}

// speaksAsLXD is true if this process was called as lxd: then what it says to people names its commands so.
var speaksAsLXD bool

// asCalled returns a writer for what is said to people, which names our commands as this program was called.
func asCalled(to io.Writer) io.Writer {
	if !speaksAsLXD {
		return to
	}

	return lxdSpeaker{to}
}

// lxdSpeaker writes with asLXD. A name that is cut between two writes stays as it is.
type lxdSpeaker struct{ to io.Writer }

func (s lxdSpeaker) Write(text []byte) (int, error) {
	_, err := io.WriteString(s.to, asLXD(string(text)))
	return len(text), err
}

// Unwrap returns the writer that this one writes to.
func (s lxdSpeaker) Unwrap() io.Writer { return s.to }

// lxdCommand prepares LXD's own command, past the front-end, with its input from stdin.
func lxdCommand(stdin io.Reader, args []string) (func(context.Context) error, error) {
	program, err := frontend.Next()
	if err != nil {
		return nil, err
	}

	return func(ctx context.Context) error {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Args[0] = frontend.Name()
		cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, os.Stderr, os.Stderr
		cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
		return cmd.Run()
	}, nil
}
