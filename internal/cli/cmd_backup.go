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

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// defaultBackup is the name of a backup unless another one is given.
const defaultBackup = "lxd_database_backup.tar.gz"

// randomNonce is the value of --nonce without one.
const randomNonce = "random"

type backupOptions struct {
	recovery.BackupOptions
	nonce  string
	format format
}

func newBackupCmd() *cobra.Command {
	opts := backupOptions{}
	cmd := &cobra.Command{
		Use:   "global-db-backup [FILE]",
		Short: "Back up this cluster's global database while LXD works",
		Long: `Write the global database to a backup, while the cluster works. Nothing is stopped, and nothing in LXD's directory is changed.

Run it on any member whose LXD runs. The backup has this member's raft log up to a transaction that was made after the command
began, and that the cluster has committed: so all that LXD has confirmed to anybody before is in it. It waits for such a
transaction, the leader's next heartbeat, which takes up to 20 seconds. With --nonce it has the leader write one at once: a key of
the server configuration, user.lxd-recover.nonce, which is removed again. That needs no clock to be right, either.

The database is checked first, as by "lxd-recover cluster export-db", and the backup is signed with the cluster's private key.
Whoever has it has all that the database holds. FILE is ./` + "` + defaultBackup + `" + ` unless given, - is standard output.

global-db-inspect, -compare, -log and -sql read a backup. It is no recovery tarball. When all databases are lost,
"lxd-recover cluster export-db --source FILE" makes one of it.
` + exitStatuses,
		Example: `  lxd-recover global-db-backup
  lxd-recover global-db-backup --nonce /srv/backup/lxd-$(date +%F).tar.gz
  lxd-recover global-db-backup - | ssh backup 'cat > lxd.tar.gz'`,
		Args:              usage(cobra.MaximumNArgs(1)),
		ValidArgsFunction: completeTarballs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runBackup(cmd.Context(), opts, optionalArg(args, defaultBackup))
		},
	}
	cmd.Flags().BoolVar(&opts.Force, "force", false, "replace FILE if it exists")
	cmd.Flags().StringVar(&opts.nonce, "nonce", "", "have the leader write a key, and remove it, in place of waiting for a heartbeat; "+
		"with the `VALUE` that global-db-resync asks for, if it does")
	cmd.Flags().Lookup("nonce").NoOptDefVal = randomNonce
	cmd.Flags().DurationVar(&opts.Wait, "wait", time.Minute, "how long to wait for a transaction of the leader")
	cmd.Flags().BoolVar(&opts.NoVerify, "no-verify", false,
		"do not let libdqlite open a scratch copy of what is backed up; it takes as much memory as the database")
	cmd.Flags().BoolVar(&opts.Unsigned, "unsigned", false, "go on without a signature although cluster.key is missing or does not fit cluster.crt")
	opts.format.addFlag(cmd, reportFormats)
	return cmd
}

func runBackup(ctx context.Context, opts backupOptions, file string) error {
	var err error
	opts.Output, opts.Stdout, err = outputOf(file, "backup", opts.format, "lxd-recover global-db-backup")
	if err != nil {
		return err
	}

	switch {
	case opts.nonce == randomNonce:
		opts.Nonce = bundle.NewRun()
	case opts.nonce != "" && !bundle.IsRun(opts.nonce):
		return usageError{errors.New("--nonce takes the value that global-db-resync has printed, of 32 characters, as --nonce=VALUE; or none"),
			"lxd-recover global-db-backup"}
	default:
		opts.Nonce, opts.Trailing = opts.nonce, opts.nonce != ""
	}

	if opts.Wait <= 0 {
		return usageError{errors.New("--wait needs a time above 0, such as 1m"), "lxd-recover global-db-backup"}
	}

	opts.Version, opts.Progress = Version, newProgress(ctx, os.Stderr)
	report, err := recovery.Backup(ctx, opts.BackupOptions)
	if err != nil {
		return err
	}

	if opts.Stdout != nil {
		printBackup(stderr(), report)
		return nil
	}

	return printReport(opts.format, report, printBackup)
}

func printBackup(w io.Writer, r *recovery.BackupReport) {
	fmt.Fprintf(w, "Backed up the global database of the cluster, on %s: %s, %s.\n", r.Source.Name, r.Raft, contentText(r.Database))
	if r.File != "" {
		signed := "not signed"
		if r.Signed {
			signed = fmt.Sprintf("signed with the cluster's key (certificate %.12s…)", r.Cluster)
		}

		fmt.Fprintf(w, "Wrote %s (%s), %s.\n", r.File, bytesText(r.Size), signed)
	}

	fmt.Fprintf(w, "All that LXD has confirmed before %s is in it: %s.\n", r.Began.UTC().Format(time.DateTime)+" UTC", proofText(r))
	printList(w, "Warning", r.Warnings)
}

// proofText says what shows that a backup has all that was confirmed before.
func proofText(r *recovery.BackupReport) string {
	switch r.Proof {
	case bundle.ProofSoleVoter:
		return r.Source.Name + " is the only voter"
	case bundle.ProofNonce:
		return fmt.Sprintf("it ends with a key that was written later, which the transaction with index %d proves to be committed", r.Next.Index)
	default:
		return fmt.Sprintf("it has a heartbeat that is later, which the transaction with index %d proves to be committed", r.Next.Index)
	}
}
