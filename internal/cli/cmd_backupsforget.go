// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

type backupForgetOptions struct {
	recovery.ForgetOptions
	format format
}

func newBackupForgetCmd() *cobra.Command {
	opts := backupForgetOptions{}
	cmd := &cobra.Command{
		Use:   "forget DIR",
		Short: "Remove the backups that are not to be kept",
		Long: `Remove the backups in DIR that none of the --keep flags keeps, and list all, with the reasons for which they are kept. "lxd-recover
backup run" does so by itself. Try it with --dry-run. It does not ask.

--keep-hourly 24 keeps the newest backup in each of the last 24 hours that have one. Hours without a backup do not count: nothing
is removed because it is old. Backups of the future are kept, and count for nothing. The newest one always stays. The backups of
each member, and of each cluster, are looked at by themselves.

Only files are removed whose name is lxd-NAME-TIME.tar.gz, and which say themselves that they are backups. Only the beginning of
each is read: whether it is whole is not known. All else in DIR is left alone.
` + exitStatuses,
		Example: `  lxd-recover backup forget /srv/backup --keep-daily 7 --keep-weekly 4 --dry-run
  lxd-recover backup forget /srv/backup --keep-last 10`,
		Args: usage(cobra.ExactArgs(1)),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			return completeDir(args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			err := checkKeep(cmd, opts.Keep)
			if err != nil {
				return err
			}

			opts.Directory = args[0]
			return runBackupForget(cmd.Context(), opts)
		},
	}
	addKeepFlags(cmd.Flags(), &opts.Keep)
	cmd.Flags().BoolVar(&opts.DryRun, "dry-run", false, "remove nothing, only say what would be")
	opts.format.addFlag(cmd, listFormats)
	return cmd
}

func runBackupForget(ctx context.Context, opts backupForgetOptions) error {
	report, err := recovery.Forget(ctx, opts.ForgetOptions)
	if err != nil {
		return plainInterrupt(err)
	}

	if opts.format.name == formatCSV {
		return writeForgottenCSV(stdoutFor(formatCSV), report)
	}

	return printReport(opts.format, report, func(w io.Writer, r *recovery.ForgetReport) { printForgotten(w, opts.format.name, r) })
}

// writeForgottenCSV writes the plain values.
func writeForgottenCSV(w io.Writer, r *recovery.ForgetReport) error {
	results := newResultWriter(w, formatCSV)
	to := results.receiver()
	err := to.Columns([]string{"name", "member", "time", "size", "kept", "reasons"})
	for _, f := range r.Backups {
		if err != nil {
			return err
		}

		err = to.Row([]any{f.Name, f.Member, f.Time.Format(time.RFC3339), f.Size, strconv.FormatBool(f.Kept), strings.Join(f.Reasons, " ")})
	}

	if err != nil {
		return err
	}

	return results.end()
}

func printForgotten(w io.Writer, format string, r *recovery.ForgetReport) {
	var rows [][]string
	for _, f := range r.Backups {
		fate := "kept: " + strings.Join(f.Reasons, ", ")
		switch {
		case f.Kept:
		case r.DryRun:
			fate = "would be removed"
		default:
			fate = "removed"
		}

		rows = append(rows, []string{f.Name, ageText(time.Since(f.Time)), bytesText(f.Size), fate})
	}

	if len(rows) > 0 {
		writeRows(w, format, []string{"NAME", "AGE", "SIZE", "FATE"}, rows)
	}

	if format == formatTable {
		printForgottenCount(w, r)
	}
}

// printForgottenCount says in numbers what became of the backups, and names the files that were taken for none.
func printForgottenCount(w io.Writer, r *recovery.ForgetReport) {
	kept := len(r.Backups) - r.Removed
	switch {
	case len(r.Backups) == 0:
		fmt.Fprintf(w, "There are no backups in %s.\n", r.Directory)
	case r.DryRun:
		fmt.Fprintf(w, "Of %s in %s, %d would be kept, and %d removed (%s).\n", backupsText(len(r.Backups)), r.Directory, kept, r.Removed, bytesText(r.Freed))
	default:
		fmt.Fprintf(w, "Of %s in %s, %d %s kept, and %d removed (%s).\n",
			backupsText(len(r.Backups)), r.Directory, kept, isAre(kept), r.Removed, bytesText(r.Freed))
	}

	for _, name := range slices.Sorted(maps.Keys(r.Others)) {
		fmt.Fprintf(w, "Left alone: %s: %s.\n", name, r.Others[name])
	}
}

func backupsText(n int) string {
	if n == 1 {
		return "1 backup"
	}

	return fmt.Sprintf("%d backups", n)
}

func isAre(n int) string {
	if n == 1 {
		return "is"
	}

	return "are"
}
