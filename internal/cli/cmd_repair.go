// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

type repairOptions struct {
	recovery.RepairOptions
	yes    bool
	format format
}

func newRepairCmd() *cobra.Command {
	opts, at := repairOptions{}, point{}
	cmd := &cobra.Command{
		Use:   "global-db-repair",
		Short: "Repair the database of a server that does not start, with all that its disk holds",
		Long: `Repair this server's own database, in place, with all that its disk holds: for an LXD that does not start on its raft
directory, or would start on less than that holds. It is for a server that is in no cluster, for the only survivor of one, and
within limits for one of several members.

What the disk holds is told by checksums, names, terms and snapshots, and not by what LXD would load. A clean directory with all of
it is written beside the live one, checked by SQLite, and opened by libdqlite, on a copy; then LXD is stopped, the two are exchanged
in one step, and LXD is started. The database as it was before is kept: "lxd-recover global-db-rollback" puts it back. What cannot
be had back is told before, and asked about.

With --at the server goes back to an earlier state: what LXD did after that entry of the raft log, an accidental "lxc delete" for
one, is left out. "lxd-recover global-db-log --find TEXT" finds the index: the one before the entry to be undone. Only rows come
back, neither the containers nor the volumes that were deleted with them. One of several members is taken back with
"lxd-recover cluster export-db --at", together with the others.

One of several members is repaired in place only if nothing is lost that it can have confirmed to the others, and none of them can
be reached; else the cluster is to be recovered. --accept-loss repairs it all the same, and leaves LXD stopped.
` + repairStatuses,
		Example: `  lxd-recover global-db-repair --dry-run
  lxd-recover global-db-repair
  lxd-recover global-db-repair --at 4711
  lxd-recover global-db-repair --at 2026-11-27T08:30`,
		Args:              usage(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			_, opts.At, err = at.index(cmd.Context(), "", opts.Reading)
			if err != nil {
				return err
			}

			return runRepair(cmd.Context(), opts)
		},
	}
	cmd.Flags().BoolVar(&opts.DryRun, "dry-run", false, "do everything up to the question, and show what would change, without changing it")
	cmd.Flags().BoolVarP(&opts.yes, "yes", "y", false, "do not ask")
	at.addFlag(cmd, "leave out all entries of the raft log after this `INDEX|TIME`")
	addReadingFlag(cmd, &opts.Reading)
	cmd.Flags().BoolVar(&opts.AcceptLoss, "accept-loss", false,
		"repair one of several members although others may count on what it has lost, and leave LXD stopped")
	addDaemonFlags(cmd, &opts.NoStart, &opts.Timeout)
	opts.format.addFlag(cmd, listFormats)
	return cmd
}

// repairStatuses are the exit statuses of a repair.
const repairStatuses = `
Exit status:
  0  done, or nothing is to be repaired
  1  failed; nothing was changed unless the message says otherwise
  2  wrong usage
  3  refused; the message names the flag that overrides, or the other way
  4  the database is damaged beyond repair`

func runRepair(ctx context.Context, opts repairOptions) error {
	opts.Version, opts.Progress = Version, newProgress(ctx, os.Stderr)
	confirm := confirmation{what: "repair", question: "Replace the database by the repaired one?", yes: opts.yes}
	told := &toldOnce{}
	opts.Confirm = confirmPlan(ctx, confirm, func(w io.Writer, r *recovery.RepairReport) { printRepairPlan(w, formatTable, r, told) })
	report, err := recovery.Repair(ctx, opts.RepairOptions)
	if err != nil && (report == nil || !report.Done) {
		return err
	}

	if opts.format.name == formatCSV {
		return errors.Join(writeRepairCSV(stdoutFor(formatCSV), report), err)
	}

	return errors.Join(printReport(opts.format, report, func(w io.Writer, r *recovery.RepairReport) {
		printRepair(w, opts.format.name, opts.DryRun, r, told)
	}), err)
}

func printRepair(w io.Writer, format string, dry bool, r *recovery.RepairReport, told *toldOnce) {
	switch {
	case r.NothingToDo:
		printWhole(w, r)
	case dry:
		printRepairPlan(w, format, r, told)
		fmt.Fprintln(w, "\nDry run: nothing was changed.")
	default:
		printRepaired(w, r, told)
	}
}

// repairSubject says whose database it is.
func repairSubject(r *recovery.RepairReport) string {
	if r.Standalone {
		return "this server"
	}

	return r.Member.Name
}

func printWhole(w io.Writer, r *recovery.RepairReport) {
	product.Fprintf(w, "There is nothing to repair: the database of %s is whole, and LXD would start on all of it.\n", repairSubject(r))
	printList(w, "Checked", r.Checked)
	printList(w, "Warning", r.Warnings)
	if r.Started {
		fmt.Fprintln(w, daemonText(r.Started, r.Ready)+".")
		return
	}

	product.Fprintf(w, "\nLXD is %s.\n", r.Daemon)
}

// printRepairPlan shows what a repair will change, and what it cannot give back.
func printRepairPlan(w io.Writer, format string, r *recovery.RepairReport, told *toldOnce) {
	fmt.Fprintf(w, "Repair the database of %s.\n\n", repairSubject(r))
	writeRows(w, format, []string{"", "NOW", "AFTER THE REPAIR"}, repairRows(r))
	printDamage(w, r)
	printNotRepaired(w, r, "will be", told)
	printList(w, "Warning", r.Warnings)
	fmt.Fprintf(w, "\nThe database that is replaced will be kept (%s)%s.\n", bytesText(r.Size), keptBesideText(r.KeptSpace))
	then := "It will be left stopped"
	switch {
	case r.Unsafe != "":
		then += ": " + r.Unsafe
	case r.WillStart && r.Startable:
		then = "It will be started on the repaired database"
	case r.WillStart:
		then = "Neither systemd nor snapd is known to run it here: start it by hand afterwards"
	}

	product.Fprintf(w, "LXD is %s. %s.\n", r.Daemon, then)
}

// repairRows are the figures of a plan.
func repairRows(r *recovery.RepairReport) [][]string {
	term, proof := strconv.FormatUint(r.Metadata.Term, 10), "proven"
	if r.Metadata.Kept {
		term += ", as now"
	}

	if r.Uncertain {
		proof = "not proven"
	}

	return [][]string{
		{product.Text("LXD"), startText(r.Libdqlite), "starts with all of it"},
		{"last raft entry", fmt.Sprintf("%s (%s)", r.Local, proof), r.Raft.String()},
		{"raft term", "", term},
		{"rows", "", contentText(r.Database)},
	}
}

// startText says what LXD would do on a database.
func startText(l recovery.Libdqlite) string {
	switch {
	case l.Start >= raftlog.Refuses:
		return "does not start"
	case l.Dropped > 0:
		return fmt.Sprintf("starts without %d of the entries", l.Dropped)
	case l.Start > raftlog.LoadsClean:
		return "may start without some of the entries"
	}

	return "starts"
}

func printDamage(w io.Writer, r *recovery.RepairReport) {
	for i, p := range r.Problems {
		if i == 0 {
			fmt.Fprintln(w, "\nWhat is wrong:")
		}

		fmt.Fprintln(w, "  "+p)
	}
}

// printNotRepaired tells what is not in the repaired database.
func printNotRepaired(w io.Writer, r *recovery.RepairReport, verb string, told *toldOnce) {
	told.printLost(w, verb, r.GivenUp, r.Untold)
	if len(r.GivenUp)+len(r.Untold) == 0 && !r.Uncertain {
		fmt.Fprintln(w, "\nNothing is missing, as far as the files tell.")
	}
}

func printRepaired(w io.Writer, r *recovery.RepairReport, told *toldOnce) {
	fmt.Fprintf(w, "Repaired the database of %s: %s, %s.\n", repairSubject(r), r.Raft, contentText(r.Database))
	fmt.Fprintf(w, "The database as it was before is kept in %s; `lxd-recover global-db-rollback` puts it back.\n", r.Kept)
	printNotRepaired(w, r, "are", told)
	printList(w, "Warning", r.Warnings)
	fmt.Fprintf(w, "\n%s.\n", daemonText(r.Started, r.Ready))
	switch {
	case r.Unsafe != "":
		fmt.Fprintf(w, "Do not start it yet: %s. The next boot of this machine starts it by itself.\n", r.Unsafe)
	case r.WillStart && !r.Startable:
		fmt.Fprintln(w, "Neither systemd nor snapd is known to run it here: start it by hand.")
	}
}

// writeRepairCSV writes what is not in the repaired database, one row or one fact a line.
func writeRepairCSV(w io.Writer, r *recovery.RepairReport) error {
	results := newResultWriter(w, formatCSV)
	to := results.receiver()
	err := to.Columns([]string{"index", "term", "what"})
	if err != nil {
		return err
	}

	for _, d := range r.GivenUp {
		what := []string{}
		for _, row := range d.Rows {
			what = append(what, row.String())
		}

		if d.Unknown != "" || len(what) == 0 {
			what = append(what, "("+d.Unknown+")")
		}

		for _, text := range what {
			err = to.Row([]any{strconv.FormatUint(d.Index, 10), strconv.FormatUint(d.Term, 10), text})
			if err != nil {
				return err
			}
		}
	}

	for _, text := range r.Untold {
		err = to.Row([]any{nil, nil, text})
		if err != nil {
			return err
		}
	}

	return results.end()
}
