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
	yes     bool
	noStart bool
	timeout time.Duration
	output  outputOptions
}

func newRollbackCmd() *cobra.Command {
	opts := rollbackOptions{}
	cmd := &cobra.Command{
		Use:   "global-db-rollback [BACKUP]",
		Short: "Put back the database that an import replaced",
		Long: `Put back the database that an import replaced, all or nothing, and keep the one it replaces.

BACKUP is the name of a kept directory as "lxd-recover global-db-backups list" has it; the newest unless given. Where
the last change was a rollback already, nothing is done without a name. Roll back on all members or on none: members with different databases must not run together.
` + exitStatuses,
		Example: `  lxd-recover global-db-rollback
  lxd-recover global-db-rollback database.before-import-20261122T213000Z`,
		Args:              usage(cobra.MaximumNArgs(1)),
		ValidArgsFunction: completeKept(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			backup := ""
			if len(args) > 0 {
				backup = args[0]
			}

			return runRollback(cmd.Context(), opts, backup)
		},
	}
	cmd.Flags().BoolVarP(&opts.yes, "yes", "y", false, "do not ask")
	addDaemonFlags(cmd, &opts.noStart, &opts.timeout)
	opts.output.addFlags(cmd)
	return cmd
}

func runRollback(ctx context.Context, opts rollbackOptions, backup string) error {
	err := opts.output.check()
	if err != nil {
		return err
	}

	dir, err := recovery.FindLXD()
	if err != nil {
		return err
	}

	confirm := confirmation{what: "rollback"}
	report, err := recovery.Rollback(ctx, recovery.RollbackOptions{
		LXDDir: dir, Version: Version, Kept: backup, NoStart: opts.noStart, Timeout: opts.timeout, Progress: newProgress(ctx, os.Stderr),
		Confirm: func(r *recovery.RollbackReport) error {
			if opts.yes {
				return nil
			}

			printRollbackPlan(os.Stderr, r)
			return confirm.ask(ctx, "Put this database back?")
		},
	})
	if err != nil {
		return err
	}

	return opts.output.print(report, func() error {
		if report.NothingToDo {
			fmt.Printf("The last change was a rollback already: nothing was changed. `lxd-recover global-db-rollback %s` undoes it.\n", report.Restored.Name)
			return nil
		}

		fmt.Printf("The database of %s is back in place.\n", report.Restored.Name)
		fmt.Printf("The replaced one is kept in %s; `lxd-recover global-db-rollback %s` undoes this.\n", report.Kept, filepath.Base(report.Kept))
		printList(os.Stdout, "Warning", report.Warnings)
		printDaemon(os.Stdout, report.Started, report.Ready)
		return nil
	})
}

func printRollbackPlan(w io.Writer, r *recovery.RollbackReport) {
	fmt.Fprintf(w, "Put back %s (%s, replaced by the %s of %s).\n\n", r.Restored.Name, bytesText(r.Restored.Size), r.Restored.Purpose, r.Restored.Time.Local().Format(time.DateTime))
	writeTable(w, []string{"", "now", "after the rollback"}, [][]string{
		{"last raft entry", positionText(r.Local), positionText(r.Raft)},
		{"this member's address", "", r.Address},
	})
	printList(w, "Warning", r.Warnings)
	fmt.Fprintf(w, "\nLXD is %s.\n", r.Daemon)
}

func positionText(p *bundle.Position) string {
	if p == nil {
		return "cannot be read"
	}

	return p.String()
}
