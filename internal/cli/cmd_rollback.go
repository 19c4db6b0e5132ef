// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

type rollbackOptions struct {
	recovery.RollbackOptions
	yes    bool
	format format
}

func newRollbackCmd() *cobra.Command {
	opts := rollbackOptions{}
	cmd := &cobra.Command{
		Use:   "global-db-rollback [NAME]",
		Short: "Put back a kept database",
		Long: `Put back a kept database, all or nothing, and keep the one that it replaces. Every import, rollback, edit and
repair keeps the database as it was before.

NAME is that of a kept database as "lxd-recover global-db-kept list" has it; the newest unless given. If the last change
was a rollback already, nothing is done without a name. Roll back on all members of a cluster or on none: members with
different databases must not run together. A standalone server has nobody to agree with.
` + exitStatuses,
		Example: `  lxd-recover global-db-rollback
  lxd-recover global-db-rollback database.before-import-20261122T213000Z`,
		Args:              usage(cobra.MaximumNArgs(1)),
		ValidArgsFunction: completeKept(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runRollback(cmd.Context(), opts, optionalArg(args, ""))
		},
	}
	cmd.Flags().BoolVarP(&opts.yes, "yes", "y", false, "do not ask")
	addDaemonFlags(cmd, &opts.NoStart, &opts.Timeout)
	opts.format.addFlag(cmd, reportFormats)
	return cmd
}

func runRollback(ctx context.Context, opts rollbackOptions, kept string) error {
	opts.Kept, opts.Version, opts.Progress = kept, Version, newProgress(ctx, os.Stderr)
	confirm := confirmation{what: "rollback", question: "Put this database back?", yes: opts.yes}
	opts.Confirm = confirmPlan(ctx, confirm, printRollbackPlan)
	report, err := recovery.Rollback(ctx, opts.RollbackOptions)
	if err != nil {
		return err
	}

	return printReport(opts.format, report, printRollbackDone)
}

func printRollbackPlan(w io.Writer, r *recovery.RollbackReport) {
	kept := r.Restored
	fmt.Fprintf(w, "Put back %s (%s, replaced by the %s of %s).\n\n", kept.Name, bytesText(kept.Size), kept.Purpose, kept.Time.Local().Format(time.DateTime))
	rows := [][]string{{"last raft entry", positionText(r.Local), positionText(r.Raft)}}
	if !r.Standalone {
		rows = append(rows, []string{"this member's address", "", r.Address})
	}

	writeTable(w, []string{"", "now", "after the rollback"}, rows)
	printList(w, "Warning", r.Warnings)
	fmt.Fprintf(w, "\nLXD is %s.\n", r.Daemon)
}

func printRollbackDone(w io.Writer, r *recovery.RollbackReport) {
	if r.NothingToDo {
		fmt.Fprintf(w, "The last change was a rollback already: nothing was changed. `lxd-recover global-db-rollback %s` undoes it.\n", r.Restored.Name)
		printList(w, "Warning", r.Warnings)
		if r.Started {
			printDaemon(w, r.Started, r.Ready)
		}

		return
	}

	fmt.Fprintf(w, "The database of %s is back in place.\n", r.Restored.Name)
	fmt.Fprintf(w, "The database as it was before is kept in %s; `lxd-recover global-db-rollback %s` undoes this.\n", r.Kept, filepath.Base(r.Kept))
	printList(w, "Warning", r.Warnings)
	printDaemon(w, r.Started, r.Ready)
}

func positionText(p *bundle.Position) string {
	if p == nil {
		return "cannot be read"
	}

	return p.String()
}
