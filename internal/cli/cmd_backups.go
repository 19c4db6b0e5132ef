// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/internal/retention"
	"github.com/lxd-recover/lxd-recover/internal/sealed"
)

// backupTimerUnit is the timer that the package installs.
const backupTimerUnit = "lxd-recover-backup.timer"

// newBackupsCmd is the group of commands around backups that are taken at set times.
func newBackupsCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Back up at set times, and keep as many backups as you want",
		Long: `Back up the global database at set times, and keep as many backups as you want. Nothing is switched on unless you do so.

A single backup is taken by "lxd-recover global-db-backup". The databases that an import, a rollback, an edit or a repair has
replaced are no backups in this sense: "lxd-recover global-db-kept" lists these.
` + exitStatuses,
		Example: `  lxd-recover backup enable /srv/backup
  lxd-recover backup forget /srv/backup --keep-daily 7 --dry-run`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              groupRun,
	}
	cmd.AddCommand(newBackupEnableCmd(), newBackupDisableCmd(), newBackupRunCmd(), newBackupForgetCmd())
	return cmd
}

// addKeepFlags adds the flags of a policy, whose values are the defaults.
func addKeepFlags(flags *pflag.FlagSet, p *retention.Policy) {
	flags.IntVar(&p.Last, "keep-last", p.Last, "keep the last `N` backups")
	flags.IntVar(&p.Hourly, "keep-hourly", p.Hourly, "keep the newest backup in each of the last `N` hours that have one (UTC)")
	flags.IntVar(&p.Daily, "keep-daily", p.Daily, "the same for days")
	flags.IntVar(&p.Weekly, "keep-weekly", p.Weekly, "the same for weeks, which begin on Monday")
}

// checkKeep makes a usage error of a policy that is none.
func checkKeep(cmd *cobra.Command, p retention.Policy) error {
	switch {
	case p == retention.Policy{}:
		return usageError{errors.New("nothing says which backups to keep: give --keep-last, --keep-hourly, --keep-daily or --keep-weekly"), helpPath(cmd)}
	case p.Validate() != nil:
		return usageError{fmt.Errorf("--%w", p.Validate()), helpPath(cmd)}
	}

	return nil
}

// absoluteDir makes a usage error of a directory that is not named from the root on: what runs at set times runs elsewhere.
func absoluteDir(cmd *cobra.Command, dir string) (string, error) {
	if !filepath.IsAbs(dir) {
		return "", usageError{fmt.Errorf("DIR must be an absolute path, and %q is none", dir), helpPath(cmd)}
	}

	return filepath.Clean(dir), nil
}

// oneOf is a flag that takes one of a few words.
type oneOf struct {
	value string
	known []string
}

// Set is called when the flag is parsed.
func (o *oneOf) Set(value string) error {
	if !slices.Contains(o.known, value) {
		return fmt.Errorf("%s are possible", strings.Join(o.known, ", "))
	}

	o.value = value
	return nil
}

func (o *oneOf) String() string { return o.value }

// Type is what the help says that the flag takes.
func (o *oneOf) Type() string { return "string" }

// backupTimer is what takes backups at set times on this machine.
func backupTimer() recovery.Timer {
	if recovery.InOwnSnap() {
		return snapTimer{}
	}

	return daemon.Timer{Unit: backupTimerUnit}
}

type backupEnableOptions struct {
	recovery.EnableBackupsOptions
	every   oneOf
	reach   archiveReach
	noTimer bool
	format  format
}

func newBackupEnableCmd() *cobra.Command {
	opts := backupEnableOptions{every: oneOf{"hourly", recovery.Intervals()}}
	opts.Keep = retention.Default
	cmd := &cobra.Command{
		Use:   "enable DIR",
		Short: "Have backups taken at set times from now on",
		Long: `Have backups taken at set times from now on, to DIR, each of them as "lxd-recover global-db-backup DIR/lxd-NAME-TIME.tar.gz"
takes one, and have those removed that are not to be kept. Do so on one member that is always up, or on all of them.

DIR is an absolute path outside of LXD's directory. It is made, readable for root only, if it does not exist. Whoever can read a
backup has all that the database holds. Another disk, or another machine's, keeps them when this one fails.

It writes the configuration, /etc/lxd-recover/backup.yaml (in the snap: $SNAP_COMMON/backup.yaml), and switches the timer on,
` + backupTimerUnit + ` (in the snap: the service lxd-recover.backup). Run it again to change something: what is not given
then is as if it was never given. Whether backups succeed is told by "lxd-recover global-db-status".
` + exitStatuses,
		Example: `  lxd-recover backup enable /srv/backup
  lxd-recover backup enable /srv/backup --every daily --keep-hourly 0 --keep-daily 14
  lxd-recover backup enable /srv/backup --archive --archive-days 30
  lxd-recover backup enable /srv/backup --identity /etc/lxd-recover/recipients`,
		Args: usage(cobra.ExactArgs(1)),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			return completeDir(args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			opts.Directory, err = absoluteDir(cmd, args[0])
			if err == nil {
				err = checkKeep(cmd, opts.Keep)
			}

			if err != nil {
				return err
			}

			keep, err := opts.reach.keep(opts.Archive)
			if err != nil {
				return usageError{err, helpPath(cmd)}
			}

			_, err = identityLock(backupOptions{identity: opts.Identity})
			if err == nil {
				err = sealed.Absolute(opts.Identity) // the timer runs it elsewhere
			}

			if err != nil {
				return err
			}

			opts.ArchiveDays, opts.ArchiveSize = opts.reach.days, keep.Size
			return runBackupEnable(cmd.Context(), opts)
		},
	}
	addKeepFlags(cmd.Flags(), &opts.Keep)
	cmd.Flags().Var(&opts.every, "every", "how often: "+strings.Join(opts.every.known, ", "))
	_ = cmd.RegisterFlagCompletionFunc("every", cobra.FixedCompletions(opts.every.known, cobra.ShellCompDirectiveNoFileComp))
	cmd.Flags().BoolVar(&opts.Archive, "archive", false, "keep raft's log in DIR/archive-NAME, too, as global-db-backup --archive does")
	opts.reach.addFlags(cmd)
	cmd.Flags().StringArrayVar(&opts.Identity, "identity", nil, "add this member's certificates, private keys and local.db to each backup, "+
		"encrypted for a `RECIPIENT`, as global-db-backup --identity does; may be repeated")
	cmd.Flags().BoolVar(&opts.noTimer, "no-timer", false, "only write the configuration: something else calls \"lxd-recover backup run\"")
	opts.format.addFlag(cmd, reportFormats)
	return cmd
}

// completeDir completes the one argument that is a directory.
func completeDir(args []string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}

	return nil, cobra.ShellCompDirectiveFilterDirs
}

func runBackupEnable(ctx context.Context, opts backupEnableOptions) error {
	opts.Every = opts.every.value
	if !opts.noTimer {
		opts.Timer = backupTimer()
	}

	report, err := recovery.EnableBackups(ctx, opts.EnableBackupsOptions)
	if errors.Is(err, daemon.ErrNoTimer) {
		return fmt.Errorf("%w. lxd-recover's package has it; without it use --no-timer, and have something else call `lxd-recover backup run`", err)
	}

	if err != nil {
		return err
	}

	return printReport(opts.format, report, printBackupEnabled)
}

func printBackupEnabled(w io.Writer, r *recovery.EnableBackupsReport) {
	fmt.Fprintf(w, "A backup of the global database is taken %s, to %s.\n", r.Every, r.Directory)
	fmt.Fprintf(w, "Kept are %s. All others are removed.\n", policyText(r.Keep))
	if r.Archive {
		fmt.Fprintf(w, "Raft's log is kept in %s.\n", filepath.Join(r.Directory, "archive-NAME"))
		if r.Every != "hourly" {
			fmt.Fprintln(w, "Raft deletes its log sooner than that: an archive without gaps needs --every hourly.")
		}
	}

	if !r.Timer {
		fmt.Fprintln(w, "Nothing is switched on: have something call `lxd-recover backup run`.")
	}

	fmt.Fprintf(w, "The configuration is %s. `lxd-recover backup run` takes the first one now.\n", r.File)
	printList(w, "Warning", r.Warnings)
}

// policyText says what a policy keeps.
func policyText(p retention.Policy) string {
	var parts []string
	for _, part := range []struct {
		n    int
		what string
	}{{p.Last, ""}, {p.Hourly, " hour"}, {p.Daily, " day"}, {p.Weekly, " week"}} {
		switch {
		case part.n == 0:
		case part.what == "" && part.n == 1:
			parts = append(parts, "the last one")
		case part.what == "":
			parts = append(parts, fmt.Sprintf("the last %d", part.n))
		case part.n == 1:
			parts = append(parts, "the newest one of the last"+part.what)
		default:
			parts = append(parts, fmt.Sprintf("the newest of each of %d%ss", part.n, part.what))
		}
	}

	return strings.Join(parts, ", ")
}

func newBackupDisableCmd() *cobra.Command {
	output := format{}
	cmd := &cobra.Command{
		Use:   "disable",
		Short: "Take no more backups at set times",
		Long: `Take no more backups at set times: the timer is switched off, and the configuration removed. The backups stay, and so does a run
that is under way.
` + exitStatuses,
		Example:           "  lxd-recover backup disable",
		Args:              usage(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, err := recovery.DisableBackups(cmd.Context(), backupTimer())
			if err != nil {
				return err
			}

			return printReport(output, report, printBackupDisabled)
		},
	}
	output.addFlag(cmd, reportFormats)
	return cmd
}

func printBackupDisabled(w io.Writer, r *recovery.DisableBackupsReport) {
	switch {
	case !r.Enabled:
		fmt.Fprintln(w, "No backups were taken at set times.")
	case r.Directory == "":
		fmt.Fprintln(w, "No more backups are taken at set times. Those that there are stay.")
	default:
		fmt.Fprintf(w, "No more backups are taken at set times. Those in %s stay.\n", r.Directory)
	}
}

type backupRunOptions struct {
	recovery.RunBackupOptions
	format format
}

func newBackupRunCmd() *cobra.Command {
	opts := backupRunOptions{}
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Take the backup that is scheduled, now",
		Long: `Take the backup that "lxd-recover backup enable" has scheduled, now, and remove those that are not to be kept. This is what the
timer calls.

It waits for the leader's next heartbeat, as "lxd-recover global-db-backup" does. If anything fails no backup is removed. How it
went is told by the exit status, and by "lxd-recover global-db-status". Two at once are refused.
` + exitStatuses,
		Example:           "  lxd-recover backup run",
		Args:              usage(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runBackupRun(cmd.Context(), opts) },
	}
	cmd.Flags().BoolVar(&opts.IfDue, "if-due", false, "do nothing if the last backup is younger than the interval")
	opts.format.addFlag(cmd, reportFormats)
	return cmd
}

func runBackupRun(ctx context.Context, opts backupRunOptions) error {
	opts.Version, opts.Progress, opts.Wait = Version, newProgress(ctx, os.Stderr), defaultBackupWait
	report, err := recovery.RunBackup(ctx, opts.RunBackupOptions)
	if report == nil {
		return err
	}

	return printReportAnd(opts.format, report, printBackupRun, plainInterrupt(err))
}

func printBackupRun(w io.Writer, r *recovery.RunBackupReport) {
	if !r.Due {
		fmt.Fprintln(w, "No backup is due yet.")
	}

	if r.Backup != nil {
		printBackup(w, r.Backup)
	}

	if r.Archived != nil {
		printArchived(w, r.Archived)
	}

	if r.Forgotten != nil {
		printForgottenCount(w, r.Forgotten)
	}
}
