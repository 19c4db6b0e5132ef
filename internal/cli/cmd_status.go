// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

func newStatusCmd() *cobra.Command {
	output := format{}
	cmd := &cobra.Command{
		Use:   "global-db-status",
		Short: "Show how this member stands",
		Long: `Show how this member stands: whether LXD runs, where its raft log ends, whether the three places that hold the members'
addresses agree, the last import, the last backup that "lxd-recover backup run" has taken, what is pending, the kept databases,
and what keeps LXD from starting here: addresses that this machine does not have, certificates that are out of date, a database
that the installed LXD is too old for. It changes nothing.
A standalone server, which is no member of a cluster, has no addresses to agree.
` + exitStatuses,
		Example: `  lxd-recover global-db-status
  lxd-recover global-db-status --format json`,
		Args:              usage(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runStatus(cmd.Context(), output) },
	}
	output.addFlag(cmd, reportFormats)
	return cmd
}

func runStatus(ctx context.Context, output format) error {
	report, err := recovery.Status(ctx, "", newProgress(ctx, os.Stderr))
	if err != nil {
		return err
	}

	return printReport(output, report, printStatus)
}

func printStatus(w io.Writer, r *recovery.StatusReport) {
	name := "cannot be told"
	switch {
	case r.Standalone:
		name = standaloneText
	case r.Member != nil:
		name = fmt.Sprintf("%s (id %d, %s, %s)", r.Member.Name, r.Member.ID, r.Member.Address, r.Member.Role)
	}

	raft := positionText(r.Raft)
	if r.Raft != nil {
		raft += recoveryText(r.Recovery, r.Raft.Term)
	}

	if r.Raft != nil && !r.Healthy {
		raft += ", DAMAGED"
	}

	rows := [][]string{{"directory", r.Directory}, {"member", name}, {product.Text("LXD"), r.Daemon}}
	if r.LXD.Program != "" {
		rows = append(rows, []string{"installed", r.LXD.String()})
	}

	rows = append(rows, []string{"last raft entry", raft})
	if r.Import != nil {
		from := cmp.Or(r.Import.Source, product.Text("a tarball of LXD's own"))
		rows = append(rows, []string{"last import", fmt.Sprintf("%s, from %s, %s", r.Import.Made.Local().Format(time.DateTime), from, r.Import.Raft)})
	}

	if r.Edit != nil {
		rows = append(rows, []string{"last edit", fmt.Sprintf("%s, %s", r.Edit.Made.Local().Format(time.DateTime), r.Edit.Raft)})
	}

	if r.Repair != nil {
		rows = append(rows, []string{"last repair", fmt.Sprintf("%s, %s", r.Repair.Made.Local().Format(time.DateTime), r.Repair.Raft)})
	}

	if r.Resync != nil {
		made := r.Resync.Made.Local().Format(time.DateTime)
		rows = append(rows, []string{"last resync", fmt.Sprintf("%s, from %s, %s", made, r.Resync.Source, r.Resync.Raft)})
	}

	if r.Backup != nil {
		rows = append(rows, []string{"last backup", scheduledText(r.Backup)})
	}

	writeTable(w, nil, rows)
	printAddresses(w, r)
	printList(w, "Pending", r.Pending)
	printList(w, "Problem", r.Problems)
	printList(w, "Warning", r.Warnings)
	if r.Running {
		fmt.Fprintln(w, product.Text("\nLXD runs: what was read of its database may not belong together."))
	}

	if len(r.Kept) == 0 {
		fmt.Fprintln(w, "\nNo database is kept.")
		return
	}

	rows = nil
	for _, k := range r.Kept {
		rows = append(rows, []string{k.Name, k.Time.Local().Format(time.DateTime), k.Purpose, bytesText(k.Size)})
	}

	fmt.Fprintln(w, "\nKept databases:")
	writeTable(w, []string{"name", "replaced", "by", "size"}, rows)
}

// scheduledText says how the backups stand that are taken at set times.
func scheduledText(b *recovery.ScheduledBackup) string {
	text := "none yet"
	if b.LastSuccess != nil {
		text = fmt.Sprintf("%s, %s", b.LastSuccess.Local().Format(time.DateTime), b.LastFile)
	}

	switch {
	case b.Running:
		return text + "; one is being taken"
	case b.Error != "":
		return text + "; THE LAST ONE FAILED"
	case b.Overdue:
		return text + "; OVERDUE"
	}

	return text
}

// printAddresses shows the addresses of the members side by side. Those of a standalone server, which are none, are shown only
// where something is wrong with them.
func printAddresses(w io.Writer, r *recovery.StatusReport) {
	if len(r.Addresses) == 0 || r.Standalone && r.Agree {
		return
	}

	var rows [][]string
	for _, a := range r.Addresses {
		rows = append(rows, []string{fmt.Sprint(a.ID), a.Name, orDash(a.Local), orDash(a.Raft), orDash(a.Nodes)})
	}

	fmt.Fprintln(w, product.Text("\nAddresses, in the three places where LXD keeps them:"))
	writeTable(w, []string{"id", "name", "node database", "raft log", "global database"}, rows)
	switch {
	case r.Standalone:
		fmt.Fprintln(w, "A standalone server has one row, with the address 1 in the raft log and 0.0.0.0 in the global database.")
	case !r.Agree && r.Identity == nil: // else two of the places are not there yet
		fmt.Fprintln(w, "They differ."+patchNote(r))
	}
}

// patchNote explains addresses that differ because LXD has not run yet.
func patchNote(r *recovery.StatusReport) string {
	record := r.Import
	if record == nil {
		record = r.Edit
	}

	if record != nil && record.Patch != "" && !r.Running {
		return product.Text(" The global database follows when LXD next starts: see Pending.")
	}

	return ""
}

func orDash(text string) string { return cmp.Or(text, "-") }
