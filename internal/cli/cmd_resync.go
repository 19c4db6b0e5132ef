// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/agent"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/printable"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/internal/remote"
	"github.com/lxd-recover/lxd-recover/internal/scratch"
)

type resyncOptions struct {
	recovery.ResyncOptions
	from     string // ssh destination of another member
	ssh      string
	binaries map[string]string
	yes      bool
	format   format
}

func newResyncCmd() *cobra.Command {
	opts := resyncOptions{}
	cmd := &cobra.Command{
		Use:   "global-db-resync [BACKUP]",
		Short: "Give this broken member the database of the cluster that works",
		Long: `Give this member the database of its cluster, which works without it. It is for a member on which LXD does not start, whose
database is damaged, gone, or was put back to an earlier state. LXD's own way is to remove the member and to join it anew, which
its instances forbid.

LXD is stopped here. Then the cluster's leader writes a mark, and the log of another member is taken that has that mark: so it
lacks nothing that this member can ever have confirmed to the others. It is taken as it is, without a fence, and this member keeps
its own raft term and vote if they can be read. It is checked, exchanged with the old database in one step, and LXD is started.
The database as it was before is kept. Instances go on running.

With --from the other member is asked over ssh. Without it, the command stops LXD and prints which backup is to be made on another
member; with that BACKUP it goes on. If the cluster has lost its quorum this is not the way: "lxd-recover cluster recover" is.
` + exitStatuses,
		Example: `  lxd-recover global-db-resync --from server2
  lxd-recover global-db-resync
  lxd-recover global-db-resync lxd_database_backup.tar.gz`,
		Args:              usage(cobra.MaximumNArgs(1)),
		ValidArgsFunction: completeTarballs,
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.Backup = optionalArg(args, "")
			if opts.from != "" && opts.Backup != "" {
				return usageError{errors.New("give --from, or a BACKUP, and not both"), helpPath(cmd)}
			}

			return runResync(cmd.Context(), opts)
		},
	}
	cmd.Flags().StringVar(&opts.from, "from", "", "take the log of the member with this ssh `DESTINATION`")
	cmd.Flags().StringVar(&opts.ssh, "ssh", "ssh", "the ssh `COMMAND`, with options if it needs any")
	cmd.Flags().StringToStringVar(&opts.binaries, "binary", nil, "lxd-recover for another architecture, as `ARCH=FILE`")
	cmd.Flags().BoolVarP(&opts.yes, "yes", "y", false, "do not ask")
	cmd.Flags().StringVar(&opts.NodeDB, "node-db", "", "the `FILE` database/local.db of another member, if this member has lost its own")
	cmd.Flags().BoolVar(&opts.DiscardLocal, "discard-local-entries", false, "give up what only this member has, even if it is of another history")
	cmd.Flags().DurationVar(&opts.Follow, "follow", 2*time.Minute, "how long to wait until this member's database follows the leader's")
	addDaemonFlags(cmd, &opts.NoStart, &opts.Timeout)
	opts.format.addFlag(cmd, reportFormats)
	return cmd
}

func runResync(ctx context.Context, opts resyncOptions) error {
	opts.Version, opts.Progress = Version, newProgress(ctx, os.Stderr)
	if opts.Backup != "" {
		file, err := filepath.Abs(opts.Backup)
		if err != nil {
			return err
		}

		opts.Backup = file
	}

	confirm := confirmation{what: "resync", question: product.Text("Stop LXD here, and replace its database by the cluster's?"), yes: opts.yes}
	opts.Confirm = confirmPlan(ctx, confirm, printResyncPlan)
	if opts.from == "" && opts.Backup == "" {
		report, err := recovery.PrepareResync(ctx, opts.ResyncOptions)
		if err != nil {
			return err
		}

		return printReport(opts.format, report, printPrepared)
	}

	if opts.from != "" {
		source, err := dialSource(ctx, opts) // before anything is stopped
		if err != nil {
			return err
		}

		defer source.Close()

		dir, remove, err := scratch.Dir("resync")
		if err != nil {
			return err
		}

		defer remove()

		opts.Fetch = func(ctx context.Context, nonce string) (string, error) { return fetchBackup(ctx, source, dir, nonce) }
	}

	report, err := recovery.Resync(ctx, opts.ResyncOptions)
	if report == nil || err != nil && !report.Done {
		return err
	}

	return errors.Join(printReport(opts.format, report, printResync), err)
}

// dialSource connects to the member whose log is taken.
func dialSource(ctx context.Context, opts resyncOptions) (agent.Agent, error) {
	return agent.Dial(ctx, remote.Options{
		Destination: opts.from, SSH: splitWords(opts.ssh), Batch: opts.yes || !isTerminal(os.Stdin), Binaries: opts.binaries, Command: []string{agentCommand},
		Version: Version, Stderr: func(line string) { fmt.Fprintln(stderr(), printable.Line(opts.from+": "+line)) },
	})
}

// fetchBackup has a backup made there, and returns its file here.
func fetchBackup(ctx context.Context, source agent.Agent, dir string, nonce string) (string, error) {
	file := filepath.Join(dir, product.Current().Backup)
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}

	_, err = source.Backup(ctx, nonce, f)
	return file, errors.Join(err, f.Close())
}

func printResyncPlan(w io.Writer, r *recovery.ResyncReport) {
	fmt.Fprintf(w, "Give %s the database of the cluster.\n", memberText(r))
	if r.Local != nil {
		fmt.Fprintf(w, "Its own log ends at %s.\n", *r.Local)
	}

	if r.Broken != "" {
		fmt.Fprintf(w, "What is wrong with it: %s\n", r.Broken)
	}

	product.Fprintf(w, "LXD is %s. %s\n", r.Daemon, stopText(r.Daemon))
	printList(w, "Warning", r.Warnings)
}

// stopText says what a resync does with an LXD that is in this state, in words.
func stopText(state string) string {
	if strings.HasPrefix(state, (&daemon.Status{}).String()) { // down, whether something would start it or not
		return "It stays down until the new database is in place."
	}

	return "It is stopped first; instances go on running."
}

// memberText names the member, as far as it is known.
func memberText(r *recovery.ResyncReport) string {
	if r.Member.Name == "" {
		return "this member"
	}

	return r.Member.Name
}

func printPrepared(w io.Writer, r *recovery.ResyncReport) {
	product.Fprintf(w, `LXD is stopped on %s, and nothing else was changed.

Next, on any other member of this cluster, while LXD runs there:

    lxd-recover global-db-backup --nonce=%s

Then copy the file to this machine, and run here:

    lxd-recover global-db-resync %s

Do not start LXD here before: then it has to be begun anew. `+"`lxd-recover resume`"+` starts it, if you change your mind.
`, memberText(r), r.Nonce, product.Current().Backup)
	printList(w, "Warning", r.Warnings)
}

func printResync(w io.Writer, r *recovery.ResyncReport) {
	fmt.Fprintf(w, "%s has the database of the cluster, from %s: %s.\n", memberText(r), r.Source, r.Raft)
	product.Fprintf(w, "The transaction with index %d was committed after LXD had stopped here, and is in it.\n", r.Committed.Index)
	fmt.Fprintf(w, "The database as it was before is kept in %s.\n", r.Kept)
	if len(r.Discarded) > 0 {
		fmt.Fprintf(w, "What only %s had, and the cluster has never confirmed: %s.\n", memberText(r), recovery.Count(r.Discarded))
		for _, line := range recovery.Lines(r.Discarded) {
			fmt.Fprintln(w, "  "+line)
		}
	}

	printList(w, "Warning", r.Warnings)
	fmt.Fprintf(w, "\n%s.\n", daemonText(r.Started, r.Ready))
	if r.Follows {
		fmt.Fprintln(w, "Its log follows the leader's.")
	}
}
