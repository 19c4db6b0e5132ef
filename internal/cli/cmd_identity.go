// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/internal/sealed"
)

type identityOptions struct {
	recovery.IdentityOptions
	key        string // file
	passphrase string // file
	format     format
}

func newIdentityCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "global-db-identity",
		Short: "Make a new machine the member that a backup is of",
		Long: `Make a new machine the member that a backup is of, if that one's disk is lost. A backup has what it takes if it was made with
"lxd-recover global-db-backup --identity".
` + exitStatuses,
		Example:           "  lxd-recover global-db-identity restore --key key.txt lxd_database_backup.tar.gz",
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              groupRun,
	}
	cmd.AddCommand(newIdentityRestoreCmd())
	return cmd
}

func newIdentityRestoreCmd() *cobra.Command {
	opts := identityOptions{}
	cmd := &cobra.Command{
		Use:   "restore BACKUP",
		Short: "Put a member's certificates, keys and local.db in place on a new machine",
		Long: `Put the certificates, private keys and local.db of a member in place, which a backup of that member has, encrypted. It is for a
new machine on which LXD is installed, and was never started, or was started once and is stopped.

All is put in place, or nothing, and nothing is overwritten. LXD is kept from being started: it needs the global database first,
and would make one of its own. "lxd-recover global-db-status" says how to go on.

When all members of the cluster have their identity, each from a backup of its own, one of them makes a recovery tarball of the
newest backup ("lxd-recover cluster export-db --source BACKUP"), which all import.
` + exitStatuses,
		Example: `  lxd-recover global-db-identity restore --key key.txt lxd_database_backup.tar.gz
  lxd-recover global-db-identity restore --passphrase passphrase.txt --replace lxd_database_backup.tar.gz`,
		Args:              usage(cobra.ExactArgs(1)),
		ValidArgsFunction: completeTarballs,
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.Backup = args[0]
			if (opts.key == "") == (opts.passphrase == "") {
				return usageError{errors.New("give --key or --passphrase, one of them"), helpPath(cmd)}
			}

			return runIdentityRestore(cmd.Context(), opts)
		},
	}
	cmd.Flags().StringVar(&opts.key, "key", "", "the `FILE` with the private key, of age or ssh")
	cmd.Flags().StringVar(&opts.passphrase, "passphrase", "", "the `FILE` with the passphrase in its first line")
	cmd.Flags().StringVar(&opts.LXDDir, "into", "", "LXD's `DIRECTORY`; this machine's unless given")
	cmd.Flags().BoolVar(&opts.Replace, "replace", false, "move away what an LXD that was started there has left, unless it is a member of a cluster")
	opts.format.addFlag(cmd, reportFormats)
	return cmd
}

func runIdentityRestore(ctx context.Context, opts identityOptions) error {
	var err error
	if opts.key != "" {
		opts.Key, err = sealed.ReadKey(opts.key)
	} else {
		opts.Key, err = sealed.ReadPassphrase(opts.passphrase)
	}

	if err != nil {
		return err
	}

	opts.Progress = newProgress(ctx, os.Stderr)
	report, err := recovery.RestoreIdentity(ctx, opts.IdentityOptions)
	if report == nil {
		return err
	}

	return errors.Join(printReport(opts.format, report, printIdentityRestored), err)
}

func printIdentityRestored(w io.Writer, r *recovery.IdentityReport) {
	if r.Finished {
		fmt.Fprintln(w, "An interrupted run had begun this, and is finished now.")
	}

	fmt.Fprintf(w, "This machine is %s (id %d, %s) of the cluster with the certificate %.12s…, as of %s UTC.\n",
		r.Member.Name, r.Member.ID, r.Member.Address, r.Cluster, r.Created.UTC().Format(time.DateTime))
	for _, name := range r.Files {
		fmt.Fprintf(w, "  %s\n", name)
	}

	if r.Replaced != "" {
		fmt.Fprintf(w, "What was there is kept in %s.\n", r.Replaced)
	}

	fmt.Fprint(w, product.Text(`
LXD does not start here until it has a global database: it says "Unsupported upgrade path", and database/global/logs.db is why.

Next, when all members have their identity, on one of them:

    lxd-recover cluster export-db --source BACKUP

with the newest backup of any member. Then import the recovery tarball on all of them. If the others work, and this
member alone was lost: `+"`lxd-recover global-db-resync`"+`.
`))
}
