// SPDX-License-Identifier: AGPL-3.0-only

// Package cli is the command line of lxd-recover: cobra commands, one file a command, each an options struct with its
// flags and a run function. What a command does is in package recovery; here is how it is asked for, confirmed and shown.
//
// Data goes to standard output, everything else to standard error.
package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/clusterrun"
	"github.com/lxd-recover/lxd-recover/internal/frontend"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// Version is set by the linker.
var Version = "unknown"

// Exit statuses.
const (
	exitDone    = 0
	exitFailed  = 1
	exitUsage   = 2
	exitRefused = 3
	exitDamaged = 4
)

// exitStatuses is the part of every command's help that lists them.
const exitStatuses = `
Exit status:
  0  done
  1  failed; nothing was changed unless the message says otherwise
  2  wrong usage
  3  refused; the message names the flag that overrides
  4  the input is damaged`

// plainStatuses is that part for commands that refuse nothing and read no database.
const plainStatuses = `
Exit status:
  0  done
  1  failed
  2  wrong usage`

// Main runs the command line, its first element the name that the program was called as, and returns the exit status. Called as
// lxd it runs what is a command of ours, and becomes LXD's own program for everything else, before anything is set up.
func Main(argv []string) int {
	name, args := argv[0], argv[1:]
	called := frontend.Called(name)
	if called != nil {
		product.Only(called)
		if !frontend.Owns(args) {
			return handOver()
		}
	} else {
		product.Use(recovery.Here())
	}

	boundMemory()

	cmd := newRootCmd()
	inWordsOf(product.Current(), cmd)
	out := &errorKeeper{to: os.Stdout} // cobra does not look whether its help could be written
	cmd.SetOut(out)
	speaksAsLXD = called != nil
	if speaksAsLXD {
		speakAsLXD(cmd)
	}

	cmd.SetArgs(args)
	run := isRun(cmd, args)
	ctx, stop := listen(run)
	defer stop()

	logged, log := withEventLog(ctx)
	ran, err := cmd.ExecuteContextC(logged)
	err = cmp.Or(err, out.err)
	unprinted := printRefusals(os.Stdout, ran, err)
	if unprinted != nil {
		err = errors.Join(err, unprinted)
	}

	if run && nobodyReads(err) {
		err = nil // the run is done, and that was its report
	}

	log.end(err)
	switch {
	case err == nil:
		return exitDone
	case nobodyReads(err):
		return endUnread()
	}

	text := message(err)
	if called != nil {
		text = asLXD(text)
	}

	fmt.Fprintln(stderr(), "Error: "+text)
	return exitStatus(err)
}

// inWordsOf has the help of a command, and of those below it, speak of a product.
func inWordsOf(p *product.Product, cmd *cobra.Command) {
	cmd.Short, cmd.Long, cmd.Example = p.Text(cmd.Short), p.Text(cmd.Long), p.Text(cmd.Example)
	cmd.Flags().VisitAll(func(f *pflag.Flag) { f.Usage = p.Text(f.Usage) })
	for _, c := range cmd.Commands() {
		inWordsOf(p, c)
	}
}

func newRootCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lxd-recover",
		Short: "Recover the global database of an LXD cluster",
		Long: `Recover the global database of an LXD cluster that has lost its quorum or changed its addresses.

  1. Stop LXD on all members.
  2. On the member with the newest data:
       lxd-recover cluster edit
       lxd-recover cluster export-db
  3. Copy lxd_recovery_db.tar.gz to every other surviving member.
  4. On every surviving member, that one included:
       lxd-recover global-db-import lxd_recovery_db.tar.gz
  5. Start LXD on all of them.
` + exitStatuses,
		Example: `  lxd-recover global-db-status
  lxd-recover global-db-inspect --help`,
		Args:          cobra.ArbitraryArgs,
		RunE:          groupRun,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       Version,
	}
	cmd.SetFlagErrorFunc(flagError)
	cmd.AddCommand(
		newClusterCmd(), newImportCmd(), newRollbackCmd(), newRepairCmd(), newPatchCmd(), newResumeCmd(), newSupportCmd(),
		newBackupCmd(), newBackupsCmd(), newIdentityCmd(), newResyncCmd(),
		newStatusCmd(), newKeptCmd(), formerly("global-db-backups", newKeptCmd()), newInspectCmd(), newCompareCmd(), newSQLCmd(), newLogCmd(),
		newFrontendCmd(), newHookCmd(), newVersionCmd(), newVerifyCmd(), newReconfigureCmd(), newAgentCmd(),
	)
	addLogFlags(cmd)
	setHelp(cmd)
	cmd.SetOut(os.Stdout)
	cmd.SetErr(os.Stderr)
	return cmd
}

// usageError is a mistake on the command line.
type usageError struct {
	err  error
	path string
}

func (e usageError) Error() string { return e.err.Error() + "; see `" + e.path + " --help`" }

// helpPath is the command whose help helps; the front-end's `lxd --help` is LXD's.
func helpPath(cmd *cobra.Command) string {
	if !cmd.HasParent() {
		return "lxd-recover"
	}

	return cmd.CommandPath()
}

// flagError makes a usage error of a flag that cannot be parsed.
func flagError(cmd *cobra.Command, err error) error {
	var unknown unknownFormatError
	if errors.As(err, &unknown) {
		err = unknown // says it all, without pflag's words
	}

	return usageError{err, helpPath(cmd)}
}

// usage makes usage errors of cobra's checks of the arguments, which name the one that is missing or too much.
func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		err := check(cmd, args)
		if err == nil {
			return nil
		}

		names := strings.Fields(cmd.Use)[1:]
		switch {
		case len(args) > len(names):
			err = fmt.Errorf("unexpected argument %q", args[len(names)])
		case len(args) < len(names):
			err = fmt.Errorf("%s is missing", strings.Trim(names[len(args)], ".…"))
		}

		return usageError{err, cmd.CommandPath()}
	}
}

// optionalArg is the one argument of a command that may have one.
func optionalArg(args []string, otherwise string) string {
	if len(args) > 0 {
		return args[0]
	}

	return otherwise
}

// formerly gives a command the name that it had: it works under it as well, and nothing shows it.
func formerly(name string, cmd *cobra.Command) *cobra.Command {
	cmd.Use, cmd.Hidden = name, true
	return cmd
}

// groupRun is what a command does that only holds others.
func groupRun(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{unknownCommand(cmd, args[0]), helpPath(cmd)}
	}

	return cmd.Help()
}

// unknownCommand says that there is no such command, and which one may be meant.
func unknownCommand(cmd *cobra.Command, name string) error {
	cmd.SuggestionsMinimumDistance = 2
	text := fmt.Sprintf("unknown command %q for %q", name, cmd.CommandPath())
	similar := cmd.SuggestionsFor(name)
	if len(similar) > 0 {
		text += "; did you mean " + strings.Join(similar, " or ") + "?"
	}

	return errors.New(text)
}

// message is what is said of an error.
func message(err error) string {
	var partly *clusterrun.Partly
	var back *clusterrun.TakenBack
	if errors.Is(err, context.Canceled) && !errors.As(err, &partly) && !errors.As(err, &back) { // these say themselves what is in place
		return "interrupted, the old database is in place: " + err.Error()
	}

	return err.Error()
}

func exitStatus(err error) int {
	var wrong usageError
	var refusal *recovery.Refusal
	var damage *recovery.DamageError
	var partly *clusterrun.Partly
	switch {
	case errors.As(err, &wrong):
		return exitUsage
	case errors.As(err, &partly) && partly.Works:
		return exitPartWorks
	case partly != nil, errors.Is(err, clusterrun.ErrNotOne):
		return exitPartDown
	case errors.As(err, &refusal), errors.Is(err, errNoRecommendation):
		return exitRefused
	case errors.As(err, &damage), errors.Is(err, bundle.ErrDamaged), errors.Is(err, bundle.ErrSignature),
		errors.Is(err, errUnhealthy), errors.Is(err, errDamageInTheWay):
		return exitDamaged
	}

	return exitFailed
}

// heapBound is about how much memory Go's heap may take before garbage is collected, bytes. What is alive is a few MiB of buffers
// in most cases; if it is more, because there are transactions of tens of MiB in the log, the bound gives way.
const heapBound = 20 << 20

// boundMemory keeps memory small, as members may have little, and garbage collections rare: Go's own settings begin with a heap of
// 4 MiB, which costs up to a tenth of the time of a dump.
func boundMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(200)
	}

	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(heapBound)
	}
}
