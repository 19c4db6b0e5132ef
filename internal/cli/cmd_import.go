// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// defaultTimeout is how long LXD may take to stop, and to answer after it was started. Without a quorum a stop takes 7 s.
const defaultTimeout = 60 * time.Second

type importOptions struct {
	recovery.ImportOptions
	yes    bool
	format format
}

func newImportCmd() *cobra.Command {
	opts := importOptions{}
	cmd := &cobra.Command{
		Use:   "global-db-import FILE",
		Short: "Replace this member's global database by the one in a recovery tarball",
		Long: `Replace this member's global database by the one in a recovery tarball.

The tarball is unpacked beside the database and checked; then LXD is stopped, the two are exchanged in one step, and LXD is
started again if it ran. The database as it was before is kept: "lxd-recover global-db-rollback" puts it back. Whatever goes
wrong, LXD finds the whole old or the whole new database, and the command can simply be run again.

FILE is a tarball of "lxd-recover cluster export-db". It is signed with the cluster's private key, and one that was changed by anyone
without that key is refused. Anything else that is not signed, such as the tarball that "lxd cluster edit" of LXD 5.21.3, 6.2 and later
writes, needs --unsigned: whoever can change it decides what the cluster becomes. Stop LXD on all members first, and import on a
majority of the voters at the least before any of them is started.
A standalone server, which is no member of a cluster, is refused.

It works as well on a member that has lost its raft directory, database/global: it is then refused until
--discard-local-entries, as nobody can tell what was in there. A member that has lost its node database, database/local.db, or has
a damaged one, is recognised by its certificate. A new one is made from a copy of another member's, which --node-db names: it has
the schema and the applied patches of that one, the members and addresses of the tarball, and none of the other settings.
` + exitStatuses,
		Example: `  lxd-recover global-db-import lxd_recovery_db.tar.gz
  lxd-recover global-db-import --dry-run lxd_recovery_db.tar.gz
  lxd-recover global-db-import --unsigned /root/tarball-of-lxd-itself.tar.gz
  lxd-recover global-db-import --node-db /root/server1-local.db lxd_recovery_db.tar.gz`,
		Args:              usage(cobra.ExactArgs(1)),
		ValidArgsFunction: completeTarballs,
		RunE:              func(cmd *cobra.Command, args []string) error { return runImport(cmd.Context(), opts, args[0]) },
	}
	cmd.Flags().BoolVar(&opts.DryRun, "dry-run", false, "check everything and show what would change, without changing it")
	cmd.Flags().BoolVarP(&opts.yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&opts.DiscardLocal, "discard-local-entries", false, "go on although this member has transactions that the tarball lacks")
	cmd.Flags().StringVar(&opts.NodeDB, "node-db", "", "where this member's local.db is lost or damaged: `FILE` is that of another member, for a new one")
	cmd.Flags().BoolVar(&opts.BesideCluster, "beside-cluster", false, "go on although a working cluster answers that does not come from this recovery")
	cmd.Flags().BoolVar(&opts.Unsigned, "unsigned", false, "take a tarball that is not signed, such as LXD's own, as you know who made it")
	addCertificateFlag(cmd, &opts.Certificate)
	cmd.Flags().BoolVar(&opts.AddressAbsent, "address-absent", false, "go on although this machine does not have a new address of this member")
	cmd.Flags().BoolVar(&opts.NewerSchema, "newer-schema", false, "go on although the tarball is of a newer LXD than the one here")
	addMemberFlags(cmd, &opts.DropPatch, &opts.UnknownMembers)
	addDaemonFlags(cmd, &opts.NoStart, &opts.Timeout)
	opts.format.addFlag(cmd, reportFormats)
	return cmd
}

// addMemberFlags are the flags about what the database says of the members, and about what is pending for it.
func addMemberFlags(cmd *cobra.Command, dropPatch *bool, unknownMembers *bool) {
	cmd.Flags().BoolVar(dropPatch, "drop-patch", false, "leave out the SQL that is pending in patch.global.sql; it stays in the database that is kept")
	cmd.Flags().BoolVar(unknownMembers, "unknown-members", false, "go on although the database has no row of a member, whose LXD will not start")
}

func addDaemonFlags(cmd *cobra.Command, noStart *bool, timeout *time.Duration) {
	cmd.Flags().BoolVar(noStart, "no-start", false, "leave LXD stopped")
	cmd.Flags().DurationVar(timeout, "timeout", defaultTimeout, "how long LXD may take to stop, and to answer once it is started")
}

func runImport(ctx context.Context, opts importOptions, file string) error {
	opts.Tarball, opts.Version, opts.Progress = file, Version, newProgress(ctx, os.Stderr)
	confirm := confirmation{what: "import", question: "Replace this member's database?", yes: opts.yes}
	told := &toldOnce{}
	opts.Confirm = confirmPlan(ctx, confirm, func(w io.Writer, r *recovery.ImportReport) { printImportPlan(w, r, told) })
	report, err := recovery.Import(ctx, opts.ImportOptions)
	if err != nil && (report == nil || !opts.DryRun) {
		return err
	}

	return printReportAnd(opts.format, report, func(w io.Writer, r *recovery.ImportReport) {
		if opts.DryRun {
			printImportPlan(w, r, told)
			fmt.Fprintln(w, "\nDry run: nothing was changed.")
			return
		}

		printImportDone(w, r, told)
	}, err)
}

// printImportPlan shows what an import will change, and nothing that it will not.
func printImportPlan(w io.Writer, r *recovery.ImportReport, told *toldOnce) {
	source := cmp.Or(r.Source, "an unnamed member")
	fmt.Fprintf(w, "Import %s, exported from %s, on %s.\n", r.Tarball, source, r.Member.Name)
	fmt.Fprintf(w, "Signature: %s.\n\n", signatureText(recovery.Signature{State: r.Signature, By: r.SignedBy}))
	local := "cannot be read"
	if r.Local != nil {
		local = r.Local.String()
	}

	rows := [][]string{
		{"last raft entry", local, r.Raft.String()},
		{"rows", "", fmt.Sprintf("%d in %d tables", r.Database.Rows, len(r.Database.Tables))},
	}
	for _, c := range r.Settings {
		rows = append(rows, []string{c.Key, c.Old, c.New})
	}

	writeTable(w, []string{"", "now", "after the import"}, rows)
	if r.NodeDB != nil {
		fmt.Fprintf(w, "\n%s.\n", newNodeText(r.NodeDB))
	}

	rows = nil
	for _, m := range r.Members {
		rows = append(rows, memberRow(m))
	}

	fmt.Fprintln(w)
	writeTable(w, []string{"id", "name", "address", "role"}, rows)
	printPatch(w, r.Carried.Shown(), r.Patch.Shown())
	told.print(w, fmt.Sprintf("Transactions that only %s has, and that will be lost", r.Member.Name), r.Discarded)
	printGained(w, r, told)
	printList(w, "Not checked", r.Unchecked)
	printList(w, "Warning", r.Warnings)
	fmt.Fprintf(w, "\nThe database that is replaced will be kept (%s)%s.\n", bytesText(r.Size), keptBesideText(r.KeptSpace))
	product.Fprintf(w, "LXD is %s.\n", r.Daemon)
	if r.NothingToDo {
		fmt.Fprintln(w, "This member has exactly this database already.")
	}
}

// newNodeText says what takes the place of a lost node database.
func newNodeText(n *recovery.NewNodeDatabase) string {
	taken := fmt.Sprintf("schema %d and the %d applied patches", n.Schema, n.Patches)
	if n.Patches == 0 {
		taken = fmt.Sprintf("schema %d and no applied patches", n.Schema)
	}

	return fmt.Sprintf("%s. The new one has the %s of %s, which is %s's", strings.ToUpper(n.Lost[:1])+n.Lost[1:], taken, n.From, n.Member.Name)
}

// changeText shows a change; a value that stays stands alone.
func changeText(from string, to string) string {
	switch {
	case from == to:
		return to
	case from == "":
		return "(new) " + to
	case to == "":
		return from + " -> (removed)"
	}

	return from + " -> " + to
}

// memberRow is a member in a table of changes.
func memberRow(m recovery.MemberChange) []string {
	return []string{fmt.Sprint(m.ID), m.Name, changeText(m.OldAddress, m.NewAddress), changeText(m.OldRole, m.NewRole)}
}

// contentText says how much is in a database.
func contentText(s *globaldb.Summary) string {
	return fmt.Sprintf("%d rows in %d tables", s.Rows, len(s.Tables))
}

func printList(w io.Writer, title string, lines []string) {
	for _, line := range lines {
		fmt.Fprintf(w, "\n%s: %s", title, line)
	}

	if len(lines) > 0 {
		fmt.Fprintln(w)
	}
}

func printImportDone(w io.Writer, r *recovery.ImportReport, told *toldOnce) {
	if r.NothingToDo {
		product.Fprintf(w, "%s has exactly this database already: nothing was changed. LXD is %s.\n", r.Member.Name, r.Daemon)
		printList(w, "Warning", r.Warnings)
		if r.Started {
			printDaemon(w, r.Started, r.Ready, r.StartCommand)
		}

		return
	}

	fmt.Fprintf(w, "Imported on %s: %s, %s.\n", r.Member.Name, r.Raft, contentText(r.Database))
	fmt.Fprintf(w, "The database as it was before is kept in %s; %s.\n", r.Kept, rollbackText(r.Lacking))
	if r.KeptSpace.Count > 0 {
		fmt.Fprintf(w, "%s here %s; see `lxd-recover global-db-kept list`.\n", keptCountText(r.KeptSpace.Count), keptSizeText(r.KeptSpace))
	}

	printCarried(w, r.Carried.Shown())
	told.print(w, fmt.Sprintf("Transactions that only %s had, and that are lost", r.Member.Name), r.Discarded)
	printList(w, "Warning", r.Warnings)
	printDaemon(w, r.Started, r.Ready, r.StartCommand)
}

// printCarried says, once all is done, what is still pending.
func printCarried(w io.Writer, carried string) {
	if carried != "" {
		product.Fprintf(w, "What was pending in patch.global.sql is pending still. LXD runs it when it next starts:\n%s", indented(carried))
	}
}

// rollbackText says whether a rollback can put back what an import has replaced.
func rollbackText(lacking string) string {
	if lacking != "" {
		return "it cannot be put back: " + lacking
	}

	return "`lxd-recover global-db-rollback` puts it back"
}

func printDaemon(w io.Writer, started bool, ready bool, command string) {
	fmt.Fprintf(w, "%s.", daemonText(started, ready))
	if !started && !ready {
		fmt.Fprint(w, " Do that when all surviving members are done.")
	}

	if !started && !ready && command != "" {
		product.Fprintf(w, "\n\n    %s\n    lxc cluster list", command)
	}

	fmt.Fprintln(w)
}

// daemonText says what a run did about LXD in the end.
func daemonText(started bool, ready bool) string {
	switch {
	case ready:
		return product.Text("LXD is up")
	case started:
		return product.Text("LXD was started")
	}

	return product.Text("LXD was not started")
}
