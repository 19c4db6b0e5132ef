package cli

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

func newStatusCmd() *cobra.Command {
	output := outputOptions{}
	cmd := &cobra.Command{
		Use:   "global-db-status",
		Short: "Show how this member stands",
		Long: `Show how this member stands: whether LXD runs, where its raft log ends, whether the three places that hold the members'
addresses agree, the last import, what is pending, and the databases that are kept. It changes nothing.
` + exitStatuses,
		Example: `  lxd-recover global-db-status
  lxd-recover global-db-status --format json`,
		Args:              usage(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runStatus(cmd.Context(), output) },
	}
	output.addFlags(cmd)
	return cmd
}

func runStatus(ctx context.Context, output outputOptions) error {
	err := output.check()
	if err != nil {
		return err
	}

	dir, err := recovery.FindLXD()
	if err != nil {
		return err
	}

	report, err := recovery.Status(ctx, dir, newProgress(ctx, os.Stderr))
	if err != nil {
		return err
	}

	return output.print(report, func() error {
		printStatus(report)
		return nil
	})
}

func printStatus(r *recovery.StatusReport) {
	name := "not a cluster member"
	if r.Member != nil {
		name = fmt.Sprintf("%s (id %d, %s, %s)", r.Member.Name, r.Member.ID, r.Member.Address, r.Member.Role)
	}

	raft := positionText(r.Raft)
	if r.Edited {
		raft += ", an edited member list"
	}

	if !r.Healthy {
		raft += ", DAMAGED"
	}

	rows := [][]string{{"directory", r.Directory}, {"member", name}, {"LXD", r.Daemon}, {"last raft entry", raft}}
	if r.Import != nil {
		from := r.Import.Source
		if from == "" {
			from = "a tarball of LXD's own"
		}

		rows = append(rows, []string{"last import", fmt.Sprintf("%s, from %s, %s", r.Import.Made.Local().Format(time.DateTime), from, r.Import.Raft)})
	}

	if r.Edit != nil {
		rows = append(rows, []string{"last edit", fmt.Sprintf("%s, %s", r.Edit.Made.Local().Format(time.DateTime), r.Edit.Raft)})
	}

	writeTable(os.Stdout, nil, rows)
	if len(r.Addresses) > 0 {
		rows = nil
		for _, a := range r.Addresses {
			rows = append(rows, []string{fmt.Sprint(a.ID), a.Name, missing(a.Local), missing(a.Raft), missing(a.Nodes)})
		}

		fmt.Println("\nAddresses, in the three places where LXD keeps them:")
		writeTable(os.Stdout, []string{"id", "name", "node database", "raft log", "global database"}, rows)
		if !r.Agree {
			fmt.Println("They differ." + patchNote(r))
		}
	}

	printList(os.Stdout, "Pending", r.Pending)
	printList(os.Stdout, "Problem", r.Problems)
	if r.Running {
		fmt.Println("\nLXD runs: what was read of its database may be torn.")
	}

	if len(r.Kept) == 0 {
		fmt.Println("\nNo replaced database is kept.")
		return
	}

	rows = nil
	for _, b := range r.Kept {
		rows = append(rows, []string{b.Name, b.Time.Local().Format(time.DateTime), b.Purpose, bytesText(b.Size)})
	}

	fmt.Println("\nReplaced databases that are kept:")
	writeTable(os.Stdout, []string{"name", "replaced", "by", "size"}, rows)
}

// patchNote explains addresses that differ because LXD has not run yet.
func patchNote(r *recovery.StatusReport) string {
	record := r.Import
	if record == nil {
		record = r.Edit
	}

	if record != nil && record.Patch != "" && !r.Running {
		return " The global database follows when LXD next starts: see Pending."
	}

	return ""
}

func missing(address string) string {
	if address == "" {
		return "-"
	}

	return address
}
