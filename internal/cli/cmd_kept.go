package cli

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

func newKeptCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "global-db-backups",
		Short: "List and remove the replaced databases that are kept",
		Long: `List and remove the replaced databases that are kept. Every import, rollback and edit keeps the database that it replaces,
beside the live one in LXD's directory. They stay until they are removed here.
` + exitStatuses,
		Example: `  lxd-recover global-db-backups list
  lxd-recover global-db-backups remove database.before-import-20261122T213000Z`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              groupRun,
	}
	cmd.AddCommand(newKeptListCmd(), newKeptRemoveCmd())
	return cmd
}

func newKeptListCmd() *cobra.Command {
	output := outputOptions{formats: listFormats}
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the replaced databases that are kept",
		Long: `List the replaced databases that are kept, the newest first: which run replaced them, how old and how large they are, and
where their raft log ends. It changes nothing.
` + exitStatuses,
		Example: `  lxd-recover global-db-backups list
  lxd-recover global-db-backups list --format csv`,
		Args:              usage(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runKeptList(cmd.Context(), output) },
	}
	output.addFlags(cmd)
	return cmd
}

func runKeptList(ctx context.Context, output outputOptions) error {
	err := output.check()
	if err != nil {
		return err
	}

	dir, err := recovery.FindLXD()
	if err != nil {
		return err
	}

	report, err := recovery.ListKept(ctx, dir, newProgress(ctx, os.Stderr))
	if err != nil {
		return err
	}

	return output.print(report, func() error { return printKept(os.Stdout, output.format, report) })
}

// printKept writes a table for people, and the plain values as CSV.
func printKept(w io.Writer, format string, r *recovery.KeptReport) error {
	if len(r.Kept) == 0 && format == formatTable {
		_, err := fmt.Fprintf(w, "No replaced database is kept in %s.\n", r.Directory)
		return err
	}

	if format != formatCSV {
		printKeptTable(w, format, r.Kept)
		return nil
	}

	results := newResultWriter(w, format)
	to := results.receiver()
	err := to.Columns([]string{"name", "by", "time", "size", "index", "term", "healthy"})
	if err != nil {
		return err
	}

	for _, b := range r.Kept {
		row := []any{b.Name, b.Purpose, b.Time.Format(time.RFC3339), b.Size, nil, nil, strconv.FormatBool(b.Healthy)}
		if b.Raft != nil {
			row[4], row[5] = strconv.FormatUint(b.Raft.Index, 10), strconv.FormatUint(b.Raft.Term, 10)
		}

		err = to.Row(row)
		if err != nil {
			return err
		}
	}

	return results.end()
}

func printKeptTable(w io.Writer, format string, backups []recovery.KeptDetail) {
	var rows [][]string
	for _, b := range backups {
		last := positionText(b.Raft)
		if b.Raft != nil && !b.Healthy {
			last += ", DAMAGED"
		}

		rows = append(rows, []string{b.Name, b.Purpose, ageText(time.Since(b.Time)), bytesText(b.Size), last})
	}

	writeRows(w, format, []string{"NAME", "BY", "AGE", "SIZE", "LAST ENTRY"}, rows)
}

// ageText is a length of time for people, in its largest unit.
func ageText(age time.Duration) string {
	const day = 24 * time.Hour
	for _, unit := range []struct {
		length time.Duration
		name   string
	}{{365 * day, "year"}, {day, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}} {
		switch n := age / unit.length; {
		case n == 1:
			return "1 " + unit.name
		case n > 1:
			return fmt.Sprintf("%d %ss", n, unit.name)
		}
	}

	return "just now"
}

type removeOptions struct {
	yes    bool
	output outputOptions
}

func newKeptRemoveCmd() *cobra.Command {
	opts := removeOptions{}
	cmd := &cobra.Command{
		Use:     "remove NAME...",
		Aliases: []string{"rm"},
		Short:   "Delete replaced databases that are kept",
		Long: `Delete replaced databases that are kept, and the reports of the runs that replaced them, for good. It asks before.

NAME is that of a kept directory as "lxd-recover global-db-backups list" has it. All names are checked before anything is
deleted: the live database, any other directory, and a kept one that an interrupted run still needs are refused.
` + exitStatuses,
		Example: `  lxd-recover global-db-backups remove database.before-import-20261122T213000Z
  lxd-recover global-db-backups remove --yes $(lxd-recover global-db-backups list --format csv | tail -n +4 | cut -d, -f1)`,
		Args:              usage(cobra.MinimumNArgs(1)),
		ValidArgsFunction: completeKept(math.MaxInt),
		RunE:              func(cmd *cobra.Command, args []string) error { return runKeptRemove(cmd.Context(), opts, args) },
	}
	cmd.Flags().BoolVarP(&opts.yes, "yes", "y", false, "do not ask")
	opts.output.addFlags(cmd)
	return cmd
}

func runKeptRemove(ctx context.Context, opts removeOptions, names []string) error {
	err := opts.output.check()
	if err != nil {
		return err
	}

	dir, err := recovery.FindLXD()
	if err != nil {
		return err
	}

	confirm := confirmation{what: "removal"}
	report, err := recovery.RemoveKept(ctx, recovery.RemoveKeptOptions{
		LXDDir: dir, Names: names, Progress: newProgress(ctx, os.Stderr),
		Confirm: func(r *recovery.RemoveKeptReport) error {
			if opts.yes {
				return nil
			}

			fmt.Fprint(os.Stderr, "These databases will be deleted for good:\n\n")
			printKeptTable(os.Stderr, formatTable, r.Removed)
			return confirm.ask(ctx, fmt.Sprintf("Delete %s (%s)?", databases(len(r.Removed)), bytesText(r.Size)))
		},
	})
	if err != nil {
		return err
	}

	return opts.output.print(report, func() error {
		for _, b := range report.Removed {
			fmt.Printf("%s is deleted.\n", b.Name)
		}

		if report.Left.Count > 0 {
			fmt.Printf("%s left, which %s.\n", databases(report.Left.Count), takes(report.Left))
		}

		return nil
	})
}
