// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/product"
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

NAME is that of a kept database as "lxd-recover global-db-kept list" has it; the newest unless given. --before takes the one
that a run replaced, --original the one of before all runs since LXD last ran. If the last change was a rollback already,
nothing is done without any of them.

It undoes what LXD has not run on yet. Roll back on all members on which the run was carried out, before LXD is started on any.
If LXD has run since, the cluster has gone on with the new database: a rollback is refused, and the message says how to take a
kept database to all members. A server without any other member has nobody to agree with, and goes back at any time.
` + exitStatuses,
		Example: `  lxd-recover global-db-rollback
  lxd-recover global-db-rollback --original --dry-run
  lxd-recover global-db-rollback --before 3f9a2c
  lxd-recover global-db-rollback database.before-import-20261122T213000Z`,
		Args:              usage(cobra.MaximumNArgs(1)),
		ValidArgsFunction: completeKept(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := oneChoice(cmd, args)
			if err != nil {
				return err
			}

			return runRollback(cmd.Context(), opts, optionalArg(args, ""))
		},
	}
	cmd.Flags().StringVar(&opts.Before, "before", "", "put back what the run with this `ID` replaced; its first digits are enough")
	cmd.Flags().BoolVar(&opts.Original, "original", false, "put back what was there before all runs since LXD last ran")
	cmd.Flags().BoolVar(&opts.DryRun, "dry-run", false, "check everything and say what would be done, change nothing")
	cmd.Flags().BoolVarP(&opts.yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&opts.DiscardLocal, "discard-local-entries", false, "go on although transactions are lost that were made since, or cannot be told")
	cmd.Flags().BoolVar(&opts.AcceptDamage, "accept-damage", false, "put a database back that is damaged or empty")
	cmd.Flags().BoolVar(&opts.BesideCluster, "beside-cluster", false, "go on although a working cluster answers")
	addDaemonFlags(cmd, &opts.NoStart, &opts.Timeout)
	opts.format.addFlag(cmd, reportFormats)
	return cmd
}

// oneChoice refuses more than one way to say which database is put back.
func oneChoice(cmd *cobra.Command, args []string) error {
	var given []string
	if len(args) > 0 {
		given = append(given, "a NAME")
	}

	for _, flag := range []string{"before", "original"} {
		if cmd.Flags().Changed(flag) {
			given = append(given, "--"+flag)
		}
	}

	if len(given) > 1 {
		return usageError{fmt.Errorf("%s cannot be given together", strings.Join(given, " and ")), cmd.CommandPath()}
	}

	return nil
}

func runRollback(ctx context.Context, opts rollbackOptions, kept string) error {
	opts.Kept, opts.Version, opts.Progress = kept, Version, newProgress(ctx, os.Stderr)
	confirm := confirmation{what: "rollback", question: "Put this database back?", yes: opts.yes}
	told := &toldOnce{}
	opts.Confirm = confirmPlan(ctx, confirm, func(w io.Writer, r *recovery.RollbackReport) { printRollbackPlan(w, r, told) })
	report, err := recovery.Rollback(ctx, opts.RollbackOptions)
	if err != nil && (report == nil || !opts.DryRun) {
		return err
	}

	return printReportAnd(opts.format, report, func(w io.Writer, r *recovery.RollbackReport) {
		if opts.DryRun && !r.NothingToDo {
			printRollbackPlan(w, r, told)
			fmt.Fprintln(w, "\nDry run: nothing was changed.")
			return
		}

		printRollbackDone(w, r, told)
	}, err)
}

func printRollbackPlan(w io.Writer, r *recovery.RollbackReport, told *toldOnce) {
	kept := r.Restored
	fmt.Fprintf(w, "Put back %s (%s, replaced by the %s of %s).\n\n", kept.Name, bytesText(kept.Size), kept.Purpose, kept.Time.Local().Format(time.DateTime))
	rows := [][]string{{"last raft entry", positionText(r.Local), positionText(r.Raft)}}
	if !r.Standalone {
		rows = append(rows, []string{"this member's address", "", r.Address})
	}

	writeTable(w, []string{"", "now", "after the rollback"}, rows)
	told.print(w, fmt.Sprintf("Transactions of the database that is replaced, which %s lacks", kept.Name), r.Discarded)
	if r.Untold != "" {
		fmt.Fprintf(w, "\nWhat the database that is replaced has more cannot be told: %s.\n", r.Untold)
	}

	printList(w, "Warning", r.Warnings)
	product.Fprintf(w, "\nThe database that is replaced will be kept. LXD is %s.\n", r.Daemon)
	printElsewhere(w, r)
}

// printElsewhere says where else the same is to be done.
func printElsewhere(w io.Writer, r *recovery.RollbackReport) {
	if len(r.Elsewhere) > 0 {
		product.Fprintf(w, "If %s went along, roll it back, too, before LXD is started on any member.\n", strings.Join(r.Elsewhere, " or "))
	}
}

func printRollbackDone(w io.Writer, r *recovery.RollbackReport, told *toldOnce) {
	if r.NothingToDo {
		fmt.Fprintf(w, "The last change was a rollback already: nothing was changed. `lxd-recover global-db-rollback %s` undoes it.\n", r.Restored.Name)
		printList(w, "Warning", r.Warnings)
		if r.Started {
			printDaemon(w, r.Started, r.Ready, r.StartCommand)
		}

		return
	}

	fmt.Fprintf(w, "The database of %s is back in place.\n", r.Restored.Name)
	fmt.Fprintf(w, "The database as it was before is kept in %s; `lxd-recover global-db-rollback %s` undoes this.\n", r.Kept, filepath.Base(r.Kept))
	told.print(w, fmt.Sprintf("Transactions of the database that was replaced, which %s lacks", r.Restored.Name), r.Discarded)
	printElsewhere(w, r)
	printList(w, "Warning", r.Warnings)
	printDaemon(w, r.Started, r.Ready, r.StartCommand)
}

func positionText(p *bundle.Position) string {
	if p == nil {
		return "cannot be read"
	}

	return p.String()
}
