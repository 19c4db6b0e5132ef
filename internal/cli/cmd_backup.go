// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/canonical/lxd/shared/units"
	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/archive"
	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/internal/sealed"
)

// defaultBackupWait is how long a backup waits for a transaction of the leader.
const defaultBackupWait = time.Minute

// randomNonce is the value of --nonce without one.
const randomNonce = "random"

type backupOptions struct {
	recovery.BackupOptions
	nonce   string
	archive recovery.ArchiveOptions
	reach   archiveReach
	format  format

	identity   []string // recipients, or files of recipients
	passphrase string   // file
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
Whoever has it has all that the database holds. FILE is ./lxd_database_backup.tar.gz unless given, - is standard output.

With --archive the closed segments and the snapshots of raft's log are kept in DIR as they appear, so that the log reaches further
back than raft keeps it, two or three hours. Run it more often than that. global-db-log, -sql --at and "lxd-recover cluster export-db
--source DIR --at" read an archive.

With --identity it has, encrypted, what no other member can give back: this member's certificates and private keys, and local.db.
With that "lxd-recover global-db-identity restore" makes a new machine this member, if its disk is lost.

global-db-inspect, -compare, -log and -sql read a backup. It is no recovery tarball. When all databases are lost,
"lxd-recover cluster export-db --source FILE" makes one of it.
` + exitStatuses,
		Example: `  lxd-recover global-db-backup
  lxd-recover global-db-backup --nonce /srv/backup/lxd-$(date +%F).tar.gz
  lxd-recover global-db-backup --archive /srv/backup/archive --archive-days 30
  lxd-recover global-db-backup --identity /etc/lxd-recover/recipients /srv/backup/lxd.tar.gz
  lxd-recover global-db-backup - | ssh backup 'cat > lxd.tar.gz'`,
		Args:              usage(cobra.MaximumNArgs(1)),
		ValidArgsFunction: completeTarballs,
		RunE: func(cmd *cobra.Command, args []string) error {
			err := opts.checkArchive()
			if err != nil {
				return usageError{err, helpPath(cmd)}
			}

			if opts.archive.Dir != "" {
				err := runArchive(cmd.Context(), opts)
				if err != nil || len(args) == 0 {
					return err
				}
			}

			return runBackup(cmd.Context(), opts, optionalArg(args, product.Current().Backup))
		},
	}
	cmd.Flags().BoolVar(&opts.Force, "force", false, "replace FILE if it exists")
	cmd.Flags().StringVar(&opts.nonce, "nonce", "", "have the leader write a key, and remove it, in place of waiting for a heartbeat; "+
		"with the `VALUE` that global-db-resync asks for, if it does")
	cmd.Flags().Lookup("nonce").NoOptDefVal = randomNonce
	cmd.Flags().DurationVar(&opts.Wait, "wait", defaultBackupWait, "how long to wait for a transaction of the leader")
	cmd.Flags().StringVar(&opts.archive.Dir, "archive", "",
		"add what raft's log has got since to the archive `DIR`; without FILE, only that")
	cmd.Flags().BoolVar(&opts.archive.Link, "link", false, "with --archive: link the files in place of copying them, on the same file system")
	opts.reach.addFlags(cmd)
	cmd.Flags().StringArrayVar(&opts.identity, "identity", nil, "add this member's certificates, private keys and local.db, encrypted for a `RECIPIENT`: "+
		"a public key of age or ssh, or a file with such keys; may be repeated")
	cmd.Flags().StringVar(&opts.passphrase, "identity-passphrase", "", "as --identity, encrypted with the passphrase in the first line of `FILE`")
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

	opts.Identity, err = identityLock(opts)
	if err != nil {
		return err
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

// checkArchive reads the flags that belong to --archive.
func (o *backupOptions) checkArchive() error {
	if o.archive.Dir == "" && o.archive.Link {
		return errors.New("--link belongs to --archive")
	}

	var err error
	o.archive.Keep, err = o.reach.keep(o.archive.Dir != "")
	return err
}

// archiveReach are the flags that say how much of an archive is kept.
type archiveReach struct {
	days uint
	size string
}

func (r *archiveReach) addFlags(cmd *cobra.Command) {
	cmd.Flags().UintVar(&r.days, "archive-days", 0, "with --archive: keep what is needed to go back this number of `DAYS`, and remove what is older")
	cmd.Flags().StringVar(&r.size, "archive-size", "", "with --archive: remove the oldest until the archive has no more than this `SIZE`, such as 10GiB")
}

// keep is what they say.
func (r *archiveReach) keep(archived bool) (keep archive.Keep, err error) {
	switch {
	case !archived && (r.days > 0 || r.size != ""):
		return keep, errors.New("--archive-days and --archive-size belong to --archive")
	case r.days > recovery.MaxArchiveDays:
		return keep, fmt.Errorf("--archive-days takes %d at most", recovery.MaxArchiveDays)
	}

	keep.Age = time.Duration(r.days) * 24 * time.Hour
	if r.size == "" {
		return keep, nil
	}

	keep.Size, err = units.ParseByteSizeString(r.size)
	if err != nil || keep.Size <= 0 {
		return keep, fmt.Errorf("--archive-size needs a size such as 500MiB or 10GiB, not %q", r.size)
	}

	return keep, nil
}

// identityLock is whom an identity is encrypted for; nil without.
func identityLock(opts backupOptions) (*sealed.Lock, error) {
	switch {
	case len(opts.identity) > 0 && opts.passphrase != "":
		return nil, usageError{errors.New("give --identity, or --identity-passphrase, and not both: a passphrase would open what is for keys"),
			"lxd-recover global-db-backup"}
	case opts.passphrase != "":
		return sealed.LockWith(opts.passphrase)
	case len(opts.identity) == 0:
		return nil, nil
	}

	lock, err := sealed.LockFor(opts.identity)
	if errors.Is(err, sealed.ErrRecipient) {
		return nil, usageError{fmt.Errorf("--identity: %w", err), "lxd-recover global-db-backup"}
	}

	return lock, err
}

// runArchive adds to an archive.
func runArchive(ctx context.Context, opts backupOptions) error {
	opts.archive.Progress = newProgress(ctx, os.Stderr)
	dir, err := filepath.Abs(opts.archive.Dir)
	if err != nil {
		return err
	}

	opts.archive.Dir = dir
	report, err := recovery.Archive(ctx, opts.archive)
	if err != nil {
		return err
	}

	return printReport(opts.format, report, printArchived)
}

func printArchived(w io.Writer, a *recovery.ArchiveReport) {
	fmt.Fprintf(w, "Added %d files (%s) to %s.\n", a.Files, bytesText(a.Bytes), a.Lineage)
	if a.Last > 0 {
		fmt.Fprintf(w, "It has the entries %d to %d of this member's raft log.\n", a.First, a.Last)
	}

	for _, gap := range a.Gaps {
		fmt.Fprintf(w, "Missing: the entries %d to %d, which raft had deleted before they were added.\n", gap.First, gap.Last)
	}

	if a.Expired != nil && a.Expired.Files > 0 {
		fmt.Fprintf(w, "Removed what is not to be kept: %d files (%s). The archive has %s now.\n",
			a.Expired.Files, bytesText(a.Expired.Bytes), bytesText(a.Expired.Left))
	}
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

	if r.Identity {
		fmt.Fprintf(w, "What makes another machine %s is in it, encrypted: certificates, private keys and local.db.\n", r.Source.Name)
	}

	product.Fprintf(w, "All that LXD has confirmed before %s is in it: %s.\n", r.Began.UTC().Format(time.DateTime)+" UTC", proofText(r))
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
