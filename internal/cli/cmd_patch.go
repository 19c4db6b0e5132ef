// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

type patchOptions struct {
	recovery.PatchOptions
	list   bool
	yes    bool
	format format
}

func newPatchCmd() *cobra.Command {
	opts := patchOptions{}
	cmd := &cobra.Command{
		Use:   "global-db-patch [FILE.sql]",
		Short: "Try SQL on a copy of the global database, and hand it to LXD's next start",
		Long: `Try SQL on a copy of the global database, show the rows that it changes, and hand it to LXD's next start.

FILE.sql, or standard input if that is "-", is run on a copy as LXD would run it: all statements in one transaction, with foreign
keys enforced. What it changes is shown, and whether LXD would start with it. Then it is added to database/patch.global.sql, after
what is there already. LXD runs that file when it next starts, in a cluster once there is a leader, and deletes it. A statement that
returns rows is refused, as LXD would not start, and so are transactions, PRAGMA and ATTACH, which cannot be tried.

Stop LXD first: it reads the file only when it starts. "lxd-recover cluster edit" and "lxd-recover global-db-import" keep what is
pending, try it on the database that it will meet then, and refuse if it fails; one member of a cluster may have some. Without
FILE.sql, or with --list, what is pending is shown and tried. It works on a standalone server, too.
` + exitStatuses,
		Example: `  lxd-recover global-db-patch --dry-run fix.sql
  echo "UPDATE profiles SET description = '' WHERE name = 'default';" | lxd-recover global-db-patch --yes -
  lxd-recover global-db-patch --remove`,
		Args:              usage(cobra.MaximumNArgs(1)),
		ValidArgsFunction: completeSQL,
		RunE: func(cmd *cobra.Command, args []string) error {
			err := opts.check(cmd, args)
			if err != nil {
				return err
			}

			return runPatch(cmd.Context(), opts, optionalArg(args, ""))
		},
	}
	cmd.Flags().BoolVar(&opts.DryRun, "dry-run", false, "show what would change, without changing it")
	cmd.Flags().BoolVarP(&opts.list, "list", "l", false, "show what is pending, and what it will change")
	cmd.Flags().BoolVar(&opts.Remove, "remove", false, "remove what somebody has written; what an edit or import has written for the members stays")
	cmd.Flags().BoolVarP(&opts.yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&opts.WhileRunning, "while-running", false, "go on although LXD runs, and will change the database before it starts again")
	cmd.Flags().BoolVar(&opts.Force, "force", false, "go on although LXD would not start")
	opts.format.addFlag(cmd, reportFormats)
	return cmd
}

// check finds out what is asked for, and that it is one thing.
func (o *patchOptions) check(cmd *cobra.Command, args []string) error {
	asked := len(args)
	for _, set := range []bool{o.list, o.Remove} {
		if set {
			asked++
		}
	}

	if asked > 1 {
		return usageError{errors.New("FILE.sql, --list and --remove exclude each other"), cmd.CommandPath()}
	}

	return nil
}

// completeSQL offers files of SQL.
func completeSQL(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}

	return []string{"sql"}, cobra.ShellCompDirectiveFilterFileExt
}

func runPatch(ctx context.Context, opts patchOptions, file string) error {
	var err error
	if file != "" {
		opts.SQL, err = readSQL(ctx, file)
		if err != nil {
			return err
		}
	}

	opts.Progress = newProgress(ctx, os.Stderr)
	confirm := confirmation{what: "patch", question: product.Text("Hand this to LXD's next start?"), yes: opts.yes}
	if opts.Remove {
		confirm = confirmation{what: "removal", question: "Remove this?", yes: opts.yes}
	}

	opts.Confirm = confirmPlan(ctx, confirm, printPatchPlan)
	report, err := recovery.AddPatch(ctx, opts.PatchOptions)
	if err != nil && (report == nil || !opts.DryRun) {
		return err
	}

	return printReportAnd(opts.format, report, printPatchReport, err)
}

// stdinTimeout bounds how long SQL is waited for on standard input.
const stdinTimeout = time.Minute

// readSQL reads SQL from a file, or from standard input, neither of which may be endless.
func readSQL(ctx context.Context, file string) (string, error) {
	text, err := "", error(nil)
	if file == "-" {
		text, err = patchFromStdin(ctx)
		file = "standard input"
	} else {
		text, err = recovery.ReadSQL(file)
	}

	if err == nil && strings.TrimSpace(text) == "" {
		err = fmt.Errorf("%s holds no SQL", file)
	}

	return text, err
}

// patchFromStdin reads standard input to its end, but no longer than a minute, and no more than a patch may have.
func patchFromStdin(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, stdinTimeout, fmt.Errorf("standard input has not ended within %v: nothing was changed", stdinTimeout))
	defer cancel()

	data, err := readStdin(ctx, recovery.MaxPatch+1)
	switch {
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case err == nil && len(data) > recovery.MaxPatch:
		err = fmt.Errorf("standard input has more than %d MiB: that is no patch", recovery.MaxPatch>>20)
	}

	return string(data), err
}

// printPatchPlan shows what is about to be written or removed.
func printPatchPlan(w io.Writer, r *recovery.PatchReport) {
	if r.Removed != "" {
		fmt.Fprintf(w, "Remove from %s:\n%s", r.File, indented(r.Removed.Shown()))
		return
	}

	printPatchRows(w, r, "It changes")
}

// maxPatchRows bounds how many rows are listed for people.
const maxPatchRows = 100

// printPatchRows lists the rows that SQL changes.
func printPatchRows(w io.Writer, r *recovery.PatchReport, verb string) {
	on := "this member's database"
	if r.Standalone {
		on = "this server's database"
	}

	if len(r.Rows) == 0 {
		fmt.Fprintf(w, "%s no row of %s, which ends at %s.\n", verb, on, r.Raft)
	} else {
		fmt.Fprintf(w, "%s in %s, which ends at %s:\n", verb, on, r.Raft)
	}

	for i, row := range r.Rows {
		if i == maxPatchRows {
			fmt.Fprintf(w, "  and %d more; --format json has them all\n", len(r.Rows)-maxPatchRows)
			break
		}

		fmt.Fprintln(w, "  "+row.String())
	}

	if len(r.MoreIn) > 0 {
		fmt.Fprintf(w, "  and more rows than these in %s\n", strings.Join(r.MoreIn, ", "))
	}

	printList(w, product.Text("LXD needs more than this to start"), r.Findings)
	printList(w, "Warning", r.Warnings)
}

func printPatchReport(w io.Writer, r *recovery.PatchReport) {
	switch {
	case r.Removed != "" && r.Done:
		fmt.Fprintf(w, "This was removed from %s:\n%s", r.File, indented(r.Removed.Shown()))
	case r.Removed != "":
		printPatchPlan(w, r)
	case r.Added != "":
		printPatchRows(w, r, "The patch changes")
		fmt.Fprintf(w, "%s has it now. %s\n", r.File, whenRead(r))
		return
	case r.Pending == "" && r.Raft == nil:
		fmt.Fprintf(w, "Nothing is pending: there is no %s.\n", r.File)
		return
	default:
		printPending(w, r)
		return
	}

	if r.Pending != "" {
		fmt.Fprintf(w, "This stays:\n%s", indented(r.Pending.Shown()))
	}
}

// printPending shows what was tried and not written: what is pending, or would be added.
func printPending(w io.Writer, r *recovery.PatchReport) {
	if r.Pending == "" {
		fmt.Fprintf(w, "Nothing is pending: there is no %s.\n", r.File)
	} else {
		fmt.Fprintf(w, "Pending in %s:\n%s%s\n", r.File, indented(r.Pending.Shown()), whenRead(r))
	}

	switch {
	case r.Fails != "":
		product.Fprintf(w, "\nProblem: it does not run on this database, and LXD may not start with it: %s\n", r.Fails)
	case r.Pending != "" || len(r.Rows) > 0:
		printPatchRows(w, r, "\nIt changes")
	}
}

// whenRead says when LXD runs a patch.
func whenRead(r *recovery.PatchReport) string {
	if r.Standalone {
		return product.Text("LXD runs it in one transaction when it next starts, and deletes the file.")
	}

	return product.Text("LXD runs it in one transaction when it next starts here and finds a leader, and deletes the file.")
}

// indented is SQL as it stands in messages.
func indented(sql string) string {
	return "    " + strings.ReplaceAll(strings.TrimSpace(sql), "\n", "\n    ") + "\n"
}

// printPatch shows what LXD is given to run when it next starts: carried is the part of it that was there before.
func printPatch(w io.Writer, carried string, patch string) {
	added := strings.TrimPrefix(patch, carried)
	if carried != "" {
		product.Fprintf(w, "\nWhat is pending in patch.global.sql stays, and was tried on this database. LXD runs it when it next starts:\n%s",
			indented(carried))
	}

	if added != "" {
		product.Fprintf(w, "\nWhen LXD next starts it brings what the global database says of the members up to date:\n%s", indented(added))
	}
}
