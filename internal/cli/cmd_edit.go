// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// editOptions are those of both commands that change the member list.
type editOptions struct {
	recovery.EditOptions
	yes         bool
	passthrough bool
	format      format
}

func (o *editOptions) addFlags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.AcceptDamage, "accept-damage", false, "go on with what is sound of a damaged database")
	cmd.Flags().BoolVar(&o.BesideCluster, "beside-cluster", false, "go on although the LXD of another member answers")
	if !o.Alone {
		cmd.Flags().BoolVar(&o.AddressAbsent, "address-absent", false, "go on although this machine does not have the new address of this member")
	}

	cmd.Flags().BoolVar(&o.passthrough, "passthrough", false, "after all checks, and with a copy of the database kept, leave the change to LXD's own command")
	addTermAboveFlag(cmd, &o.TermAbove)
	addMemberFlags(cmd, &o.DropPatch, &o.UnknownMembers)
	addReadingFlag(cmd, &o.Reading)
	o.format.addFlag(cmd, reportFormats)
}

func newEditCmd() *cobra.Command {
	opts := editOptions{}
	cmd := &cobra.Command{
		Use:   "edit",
		Short: "Edit the member list of a cluster that is down",
		Long: `Edit the member list of a cluster that is down: other addresses, other roles.

Do this on one member only, the one whose database is the newest, with LXD stopped on all of them. The list is opened in an
editor ($VISUAL, $EDITOR), or read from standard input if that is no terminal: the YAML of "lxd cluster show". The change
is made on a copy of the database, which then takes the place of the live one in one step; that one is kept, and
"lxd-recover global-db-rollback" puts it back.

A member that has a database can become a voter again, whatever it was made by mistake. A raft member that the database does not know
may be left out of the list, any other one not. LXD waits for members whose row in the database is of an older LXD: for those that are
named with --lost it does not, as the patch that it runs at its start gives their rows this member's version.
` + exitStatuses,
		Example: `  lxd-recover cluster edit
  lxd cluster show | sed s/10.0.0.1:8443/10.1.0.1:8443/ | lxd-recover cluster edit
  lxd-recover cluster edit --lost server2,server3`,
		Args:              usage(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := opts.checkPassthrough(cmd)
			if err != nil {
				return err
			}

			return runEdit(cmd.Context(), opts, cmd.Root().Name())
		},
	}
	cmd.Flags().BoolVarP(&opts.yes, "yes", "y", false, "do not ask")
	cmd.Flags().StringSliceVar(&opts.Lost, "lost", nil, "`NAME`s of members that are lost: LXD is not to wait for them, and the list offers them as spares")
	cmd.Flags().BoolVar(&opts.AnyRole, "any-role", false, "take a spare for this member, and a voter for one that may have no database")
	opts.addFlags(cmd)
	return cmd
}

func newRecoverCmd() *cobra.Command {
	opts := editOptions{EditOptions: recovery.EditOptions{Alone: true}}
	cmd := &cobra.Command{
		Use:   "recover-from-quorum-loss",
		Short: "Make this member, the only one that has survived, a cluster of its own",
		Long: `Make this member, the only one that has survived, a cluster of its own: the only voter of its raft log. The lost members
stay in "lxc cluster list" until "lxc cluster remove --force NAME" removes them.

If more than one member has survived, use "lxd-recover cluster edit". As there, the change is made on a copy of the database,
which then takes the place of the live one in one step; that one is kept.
` + exitStatuses,
		Example: `  lxd-recover cluster recover-from-quorum-loss
  lxd-recover cluster recover-from-quorum-loss --quiet`,
		Args:              usage(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runEdit(cmd.Context(), opts, cmd.Root().Name()) },
	}
	cmd.Flags().BoolVarP(&opts.yes, "quiet", "q", false, "do not ask")
	opts.addFlags(cmd)
	return cmd
}

// checkPassthrough refuses what LXD's own command would not do.
func (o *editOptions) checkPassthrough(cmd *cobra.Command) error {
	for _, flag := range []string{"lost", "any-role", "drop-patch"} {
		if o.passthrough && cmd.Flags().Changed(flag) {
			return usageError{product.Errorf("--%s does nothing with --passthrough: LXD's own command makes the change", flag), cmd.CommandPath()}
		}
	}

	return nil
}

// runEdit changes the member list. program is what we were called as, for what to type next.
func runEdit(ctx context.Context, opts editOptions, program string) error {
	var err error
	opts.LXDDir, err = recovery.FindLXD() // before a list is waited for on standard input
	if err != nil {
		return err
	}

	asker := &memberAsker{}
	if !opts.Alone {
		asker, err = newMemberAsker(ctx)
		if err != nil {
			return err
		}
	}

	opts.Version, opts.Timeout, opts.Progress = Version, defaultTimeout, newProgress(ctx, os.Stderr)
	opts.Ask, opts.Confirm = asker.ask, func(r *recovery.EditReport) error { return opts.confirm(ctx, r) }
	if opts.passthrough {
		opts.Own, err = opts.lxdCommand(asker.stdin())
		if err != nil {
			return err
		}
	}

	report, err := recovery.Edit(ctx, opts.EditOptions)
	if err != nil {
		return err
	}

	return printReport(opts.format, report, func(w io.Writer, r *recovery.EditReport) { printEditDone(w, r, opts, program) })
}

// confirm shows what is about to happen, and asks. A list on standard input is an answer in itself.
func (o *editOptions) confirm(ctx context.Context, r *recovery.EditReport) error {
	if o.yes {
		printList(stderr(), "Warning", r.Warnings)
		return nil
	}

	printEditPlan(stderr(), r)
	if o.Alone {
		return confirmation{what: "recovery", question: "Make this member a cluster of its own?", flag: "--quiet"}.ask(ctx)
	}

	if !isTerminal(os.Stdin) {
		return nil
	}

	return confirmation{what: "edit", question: "Change the member list?"}.ask(ctx)
}

// lxdCommand is LXD's own command for this change.
func (o *editOptions) lxdCommand(stdin io.Reader) (func(context.Context) error, error) {
	args := []string{"cluster", "edit"}
	if o.Alone {
		args = []string{"cluster", "recover-from-quorum-loss"}
		if o.yes {
			args = append(args, "--quiet")
		}
	}

	return lxdCommand(stdin, args)
}

func printEditPlan(w io.Writer, r *recovery.EditReport) {
	fmt.Fprintf(w, "Change the member list of %s, whose database ends at %s (%s).\n\n", r.Member.Name, r.Before, contentText(r.Database))
	var rows [][]string
	for _, m := range r.Members {
		found := "this member"
		for _, o := range r.Others {
			if o.Name == m.Name && o.Address == m.OldAddress {
				found = o.Found
			}
		}

		rows = append(rows, append(memberRow(m), found))
	}

	writeTable(w, []string{"id", "name", "address", "role", "now"}, rows)
	for _, c := range r.Settings {
		fmt.Fprintf(w, "\n%s: %s", c.Key, changeText(c.Old, c.New))
	}

	if len(r.Settings) > 0 {
		fmt.Fprintln(w)
	}

	printPatch(w, r.Carried.Shown(), r.Patch.Shown())
	printList(w, "Damage", r.Damage)
	(&toldOnce{}).printLost(w, "will be", r.GivenUp, r.Untold)
	printList(w, "Warning", r.Warnings)
}

func printEditDone(w io.Writer, r *recovery.EditReport, opts editOptions, program string) {
	switch {
	case opts.passthrough:
		fmt.Fprintln(w, product.Text("LXD's own command is done."))
	case r.NothingToDo:
		fmt.Fprintf(w, "%s has exactly this member list already, from an edit; its database ends at %s. Nothing was changed.\n", r.Member.Name, r.Raft)
	default:
		fmt.Fprintf(w, "The member list of %s is changed; its database ends at %s now.\n", r.Member.Name, r.Raft)
	}

	if r.Kept != "" { // else it was deleted since
		fmt.Fprintf(w, "The database as it was before is kept in %s; `lxd-recover global-db-rollback` puts it back.\n", r.Kept)
	}

	if r.Tarball != "" {
		product.Fprintf(w, "LXD's recovery tarball was moved to %s: LXD would not have started here as long as it was in its place.\n", r.Tarball)
	}

	printCarried(w, r.Carried.Shown())
	printList(w, "Warning", r.Warnings)
	if opts.Alone {
		fmt.Fprintln(w, product.Text("\nNext: start LXD here. The lost members are then removed with `lxc cluster remove --force NAME`."))
		return
	}

	product.Fprintf(w, "\nNext, before LXD is started anywhere, here:\n\n    %s cluster export-db\n\n", program)
	product.Fprintf(w, "Then here, and on every other member that is to have the database%s:\n\n    %s global-db-import lxd_recovery_db.tar.gz\n",
		survivorsText(r), program)
}

// survivorsText names the other members that have a database in the new list.
func survivorsText(r *recovery.EditReport) string {
	var names []string
	for _, m := range r.Members {
		if m.NewRole != raftlog.Spare.String() && m.ID != r.Member.ID {
			names = append(names, m.Name)
		}
	}

	if len(names) == 0 {
		return ""
	}

	return " (" + strings.Join(names, ", ") + ")"
}
