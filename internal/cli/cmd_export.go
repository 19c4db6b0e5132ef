// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

func newClusterCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cluster",
		Short: "Commands for the member that the cluster is recovered from",
		Long: `Commands for the member that the cluster is recovered from: correct its member list, and export its database.
` + exitStatuses,
		Example: `  lxd-recover cluster edit
  lxd-recover cluster export-db`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              groupRun,
	}
	cmd.AddCommand(newEditCmd(), newExportCmd(), newRecoverCmd(), newClusterRecoverCmd())
	return cmd
}

type exportOptions struct {
	recovery.ExportOptions
	yes      bool
	stateDir string // of a microcluster application
	format   format
}

func newExportCmd() *cobra.Command {
	opts, at := exportOptions{}, point{}
	cmd := &cobra.Command{
		Use:   "export-db [FILE]",
		Short: "Write this member's global database to a recovery tarball",
		Long: `Write this member's global database to a recovery tarball.

Run it on the member that "lxd-recover cluster edit" was run on, while LXD is stopped on all members. The database is checked
first; nothing in LXD's directory is changed. The tarball is signed with the cluster's private key, cluster.key. A standalone server,
which is no member of a cluster, is refused. FILE is
./lxd_recovery_db.tar.gz unless given, - is standard output.

With --at the cluster goes back to an earlier state: what LXD did after that entry of the raft log, an accidental "lxc delete"
for one, is left out. "lxd-recover global-db-log --find TEXT" finds the index: the one before the entry to be undone. A time, in UTC,
stands for the last index that is not known to be later, told by the leader's heartbeats, some ten seconds apart. The log
reaches back to the older of the two snapshots that raft keeps, a thousand entries at least, or to its beginning; after an import
there is one snapshot until LXD has taken another. Only rows come back, neither the containers nor the volumes that were deleted
with them. The transactions given up are listed and have to be confirmed. Every member then imports with --discard-local-entries,
as each of them has entries that the tarball lacks.

A fence cannot bring a member along whose own snapshot lies beyond the end of the tarball, if nobody imports there. Where such a
snapshot is known, from this member or from a report given with --survivor, and where reports are given but not of every
voter, the tarball is fenced by a snapshot; --snapshot-fence asks for one.

With --state-dir it is the recovery tarball of a MicroCloud, MicroCeph or MicroOVN (microcluster 2 and 3) that is made safe, on the member on which its own
edit was run, such as "microcloud cluster recover". FILE is recovery_db.tar.gz in that directory unless given, and takes the place of the one that the
edit has left there, which any member that does not load it could outvote. The application's own documented steps stay as they are: copy the file to the
other members, start the daemons, which load it. "lxd-recover global-db-inspect FILE" says whether it is fenced and whole.
` + exitStatuses,
		Example: `  lxd-recover cluster export-db
  lxd-recover cluster export-db /root/recovery.tar.gz
  lxd-recover cluster export-db --at 4711
  lxd-recover cluster export-db --at 2026-11-27T08:30 --source /srv/lxd/archive
  lxd-recover cluster export-db --state-dir /var/snap/microcloud/common/state
  lxd-recover cluster export-db - | ssh server2 'cat > recovery.tar.gz'`,
		Args:              usage(cobra.MaximumNArgs(1)),
		ValidArgsFunction: completeFiles(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			state := microclusterDir(opts.stateDir)
			if state != "" {
				return runExportMicrocluster(cmd, opts, state, optionalArg(args, recovery.MicroclusterTarball(state)))
			}

			var err error
			opts.Source, opts.At, err = at.index(cmd.Context(), opts.Source, opts.Reading)
			if err != nil {
				return err
			}

			return runExport(cmd.Context(), opts, optionalArg(args, product.Current().Tarball))
		},
	}
	cmd.Flags().BoolVar(&opts.Force, "force", false, "replace FILE if it exists")
	cmd.Flags().StringVar(&opts.stateDir, "state-dir", "", "the state `DIR` of a MicroCloud, MicroCeph or MicroOVN, in place of LXD's directory")
	_ = cmd.MarkFlagDirname("state-dir")
	cmd.Flags().BoolVar(&opts.Unedited, "unedited", false, `export although "lxd-recover cluster edit" was not run since LXD last ran`)
	cmd.Flags().BoolVar(&opts.AcceptDamage, "accept-damage", false, "export what is sound of a damaged database; global-db-inspect says what that is")
	at.addFlag(cmd, "leave out all entries of the raft log after this `INDEX|TIME`")
	cmd.Flags().StringVar(&opts.Source, "source", "",
		"export this kept database, backup or archive, a `NAME` or a path, in place of the live one, to take all members back to it")
	cmd.Flags().BoolVar(&opts.UnsignedSource, "unsigned-source", false, "with --source: although the backup is not signed")
	addCertificateFlag(cmd, &opts.Certificate)
	cmd.Flags().BoolVar(&opts.OldMembers, "old-members", false, "with --source: with the member list of that database in place of the one in force")
	cmd.Flags().BoolVarP(&opts.yes, "yes", "y", false, "do not ask whether the transactions that --at leaves out may be given up")
	cmd.Flags().BoolVar(&opts.UnknownMembers, "unknown-members", false, "go on although the database has no row of a member, whose LXD will not start")
	cmd.Flags().BoolVar(&opts.NoVerify, "no-verify", false,
		"do not let libdqlite open a scratch copy of what is exported; it takes as much memory as the database")
	cmd.Flags().StringArrayVar(&opts.Survivors, "survivor", nil,
		"a saved JSON report of global-db-inspect from another member; the fence goes above its terms and its snapshot, too (repeatable)")
	cmd.Flags().BoolVar(&opts.SnapshotFence, "snapshot-fence", false,
		"fence by a snapshot, which a member takes from the others whatever snapshot it has itself; the log before it is not in the tarball")
	addTermAboveFlag(cmd, &opts.TermAbove)
	_ = cmd.MarkFlagFilename("survivor", "json")
	cmd.Flags().BoolVar(&opts.Unsigned, "unsigned", false, "go on without a signature although cluster.key is missing or does not fit cluster.crt")
	addReadingFlag(cmd, &opts.Reading)
	opts.format.addFlag(cmd, reportFormats)
	cmd.Flags().SetNormalizeFunc(renamedExportFlags)
	return cmd
}

// addTermAboveFlag adds the flag that says what a fence must lie above.
func addTermAboveFlag(cmd *cobra.Command, term *uint64) {
	cmd.Flags().Uint64Var(term, "term-above", 0, "fence above this raft `TERM`, too, and do not ask whether the clock of this machine is right")
}

// renamedExportFlags knows a flag of export-db by the name that it had, too.
func renamedExportFlags(_ *pflag.FlagSet, name string) pflag.NormalizedName {
	if name == "no-proof" {
		name = "no-verify"
	}

	return pflag.NormalizedName(name)
}

func runExport(ctx context.Context, opts exportOptions, file string) error {
	var err error
	opts.Output, opts.Stdout, err = outputOf(file, "tarball", opts.format, "lxd-recover cluster export-db")
	if err != nil {
		return err
	}

	opts.Version, opts.Progress = Version, newProgress(ctx, os.Stderr)
	confirm := confirmation{what: "export", question: "Give these transactions up?", yes: opts.yes}
	told := &toldOnce{}
	opts.Confirm = confirmPlan(ctx, confirm, func(w io.Writer, r *recovery.ExportReport) { printExportPlan(w, r, told) })
	opts.Announce = func(r *recovery.ExportReport) { told.printLost(stderr(), "will be", r.GivenUp, r.Untold) }
	report, err := recovery.Export(ctx, opts.ExportOptions)
	if err != nil {
		return err
	}

	if opts.Stdout != nil {
		printExport(stderr(), report, told)
		return nil
	}

	return printReport(opts.format, report, func(w io.Writer, r *recovery.ExportReport) { printExport(w, r, told) })
}

func printExportPlan(w io.Writer, r *recovery.ExportReport, told *toldOnce) {
	if r.Kept != "" {
		fmt.Fprintf(w, "Take all members back to %s, which ends at %s.\n", r.Kept, r.Before)
	} else {
		fmt.Fprintf(w, "Leave out what %s has after index %d.\n", r.Source.Name, r.Before.Index)
	}

	told.printLost(w, "will be", r.GivenUp, r.Untold)
	printList(w, "Warning", r.Warnings)
}

func printExport(w io.Writer, r *recovery.ExportReport, told *toldOnce) {
	fmt.Fprintf(w, "Exported the global database of %s: %s, %s.\n", r.Source.Name, r.Before, contentText(r.Database))
	if r.File != "" {
		fmt.Fprintf(w, "Wrote %s (%s), %s.\n", r.File, bytesText(r.Size), signedText(r))
	}

	fmt.Fprintf(w, "Fenced: the tarball ends at %s, which no other member's log can outvote.\n", r.Raft)
	if r.SnapshotFence != "" {
		fmt.Fprintf(w, "The fence is a snapshot: %s.\n", r.SnapshotFence)
	}

	if !r.Edited {
		fmt.Fprintln(w, "The member list was not edited: it is the one of the last run.")
	}

	told.printLost(w, "are", r.GivenUp, r.Untold)
	printList(w, "Warning", r.Warnings)
	flags := ""
	if len(r.GivenUp) > 0 || r.Kept != "" {
		flags = " --discard-local-entries"
	}

	if !r.Signed {
		flags += " --unsigned"
	}

	product.Fprintf(w, `
Next: keep LXD stopped everywhere, copy the file to every other surviving member, and run on each, this one included:

    lxd-recover global-db-import%s %s

Start LXD only when that is done on at least %d of the %d voters.
`, flags, filepath.Base(cmp.Or(r.File, product.Current().Tarball)), r.Members.Majority(), r.Members.Voters())
	if len(r.GivenUp) > 0 && r.SnapshotFence == "" {
		product.Fprintf(w, "Leave no member out: one with a snapshot beyond index %d would never catch up, although LXD lists it as online.\n", r.Before.Index)
	}
}
