// SPDX-License-Identifier: AGPL-3.0-only

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
		Use:   "global-db-kept",
		Short: "List and remove kept databases",
		Long: `List and remove kept databases. Every import, rollback, edit and repair keeps the database as it was before, beside the
live one in LXD's directory. They stay until they are removed here.
` + exitStatuses,
		Example: `  lxd-recover global-db-kept list
  lxd-recover global-db-kept remove database.before-import-20261122T213000Z`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              groupRun,
	}
	cmd.AddCommand(newKeptListCmd(), newKeptRemoveCmd())
	return cmd
}

func newKeptListCmd() *cobra.Command {
	output := format{}
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the kept databases",
		Long: `List the kept databases, the newest first: which run replaced them, how old and how large they are, and where their raft
log ends. It changes nothing.
` + exitStatuses,
		Example: `  lxd-recover global-db-kept list
  lxd-recover global-db-kept list --format csv`,
		Args:              usage(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runKeptList(cmd.Context(), output) },
	}
	output.addFlag(cmd, listFormats)
	return cmd
}

func runKeptList(ctx context.Context, output format) error {
	report, err := recovery.ListKept(ctx, "", newProgress(ctx, os.Stderr))
	if err != nil {
		return err
	}

	if output.name == formatCSV {
		return writeKeptCSV(stdoutFor(formatCSV), report.Kept)
	}

	return printReport(output, report, func(w io.Writer, r *recovery.KeptReport) { printKept(w, output.name, r) })
}

func printKept(w io.Writer, format string, r *recovery.KeptReport) {
	if len(r.Kept) == 0 && format == formatTable {
		fmt.Fprintf(w, "No database is kept in %s.\n", r.Directory)
		return
	}

	printKeptTable(w, format, r.Kept)
}

// writeKeptCSV writes the plain values.
func writeKeptCSV(w io.Writer, kept []recovery.KeptDetail) error {
	results := newResultWriter(w, formatCSV)
	to := results.receiver()
	err := to.Columns([]string{"name", "by", "run", "time", "size", "index", "term", "healthy"})
	if err != nil {
		return err
	}

	for _, k := range kept {
		row := []any{k.Name, k.Purpose, k.Run, k.Time.Format(time.RFC3339), k.Size, nil, nil, strconv.FormatBool(k.Healthy)}
		if k.Raft != nil {
			row[5], row[6] = strconv.FormatUint(k.Raft.Index, 10), strconv.FormatUint(k.Raft.Term, 10)
		}

		err = to.Row(row)
		if err != nil {
			return err
		}
	}

	return results.end()
}

func printKeptTable(w io.Writer, format string, kept []recovery.KeptDetail) {
	var rows [][]string
	for _, k := range kept {
		last := positionText(k.Raft)
		if k.Raft != nil && !k.Healthy {
			last += ", DAMAGED"
		}

		rows = append(rows, []string{k.Name, shortRun(k.Run), ageText(time.Since(k.Time)), bytesText(k.Size), last})
	}

	writeRows(w, format, []string{"NAME", "RUN", "AGE", "SIZE", "LAST ENTRY"}, rows)
}

// shortRun is how a run's id begins, as --before takes it.
func shortRun(id string) string { return id[:min(len(id), 8)] }

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
	recovery.RemoveKeptOptions
	yes    bool
	format format
}

func newKeptRemoveCmd() *cobra.Command {
	opts := removeOptions{}
	cmd := &cobra.Command{
		Use:     "remove NAME...",
		Aliases: []string{"rm"},
		Short:   "Delete kept databases",
		Long: `Delete kept databases, and the reports of the runs that replaced them, for good. It asks before.

NAME is that of a kept database as "lxd-recover global-db-kept list" has it. All names are checked before anything is
deleted: the live database, any other directory, and a kept database that an interrupted run still needs are refused.
` + exitStatuses,
		Example: `  lxd-recover global-db-kept remove database.before-import-20261122T213000Z
  lxd-recover global-db-kept remove --yes $(lxd-recover global-db-kept list --format csv | tail -n +4 | cut -d, -f1)`,
		Args:              usage(cobra.MinimumNArgs(1)),
		ValidArgsFunction: completeKept(math.MaxInt),
		RunE:              func(cmd *cobra.Command, args []string) error { return runKeptRemove(cmd.Context(), opts, args) },
	}
	cmd.Flags().BoolVarP(&opts.yes, "yes", "y", false, "do not ask")
	opts.format.addFlag(cmd, reportFormats)
	return cmd
}

func runKeptRemove(ctx context.Context, opts removeOptions, names []string) error {
	opts.Names, opts.Progress = names, newProgress(ctx, os.Stderr)
	opts.Confirm = func(r *recovery.RemoveKeptReport) error {
		question := fmt.Sprintf("Delete %s (%s)?", keptCountText(len(r.Removed)), bytesText(r.Size))
		return confirmPlan(ctx, confirmation{what: "removal", question: question, yes: opts.yes}, printRemovePlan)(r)
	}
	report, err := recovery.RemoveKept(ctx, opts.RemoveKeptOptions)
	if err != nil {
		return err
	}

	return printReport(opts.format, report, printRemoved)
}

func printRemovePlan(w io.Writer, r *recovery.RemoveKeptReport) {
	fmt.Fprint(w, "These databases will be deleted for good:\n\n")
	printKeptTable(w, formatTable, r.Removed)
}

func printRemoved(w io.Writer, r *recovery.RemoveKeptReport) {
	for _, k := range r.Removed {
		fmt.Fprintf(w, "%s is deleted.\n", k.Name)
	}

	if r.Left.Count > 0 {
		fmt.Fprintf(w, "%s left, which %s.\n", keptCountText(r.Left.Count), keptSizeText(r.Left))
	}
}

// keptBesideText tells of the databases that are kept already.
func keptBesideText(space recovery.Space) string {
	if space.Count == 0 {
		return ""
	}

	return fmt.Sprintf(", beside %s that %s already", keptCountText(space.Count), keptSizeText(space))
}

// keptSizeText tells how much space kept databases take.
func keptSizeText(space recovery.Space) string {
	if space.Count == 1 {
		return "takes " + bytesText(space.Size)
	}

	return "take " + bytesText(space.Size)
}

// keptCountText counts kept databases.
func keptCountText(count int) string {
	if count == 1 {
		return "1 kept database"
	}

	return fmt.Sprintf("%d kept databases", count)
}
