// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/clusterrun"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// notWithResync are flags of `cluster recover` about all members.
var notWithResync = []string{"lost", "address", "members", "edit", "voters", "move", "keep-healing", "start-timeout"}

// runRecoverResync gives one broken member the database of the cluster, from this machine.
func runRecoverResync(cmd *cobra.Command, o *recoverOptions) error {
	for _, flag := range notWithResync {
		if cmd.Flags().Changed(flag) {
			return usageError{fmt.Errorf("--resync is about one member, and takes no --%s", flag), helpPath(cmd)}
		}
	}

	if o.resync == "" {
		return usageError{errors.New("--resync needs the name of a member"), helpPath(cmd)}
	}

	ctx := cmd.Context()
	opts, done, err := o.options(ctx)
	if err != nil {
		return err
	}

	defer done()

	plan, session, err := clusterrun.PlanResync(ctx, opts, o.resync)
	if err != nil {
		return err
	}

	plan.DiscardLocal = o.discard
	printClusterResyncPlan(stderr(), plan)
	question := product.Sprintf("Stop LXD on %s, and replace its database by the cluster's?", plan.Member)
	if !o.yes {
		err = confirmation{what: "resync", question: question}.ask(ctx)
	}

	if err != nil {
		return errors.Join(err, session.Close())
	}

	report, err := session.Resync(ctx, plan)
	err = errors.Join(err, session.Close())
	if report == nil {
		report = &recovery.ResyncReport{Member: member.Member{Name: plan.Member}, Discarded: []recovery.Discarded{}, Warnings: []string{}}
	}

	return printReportAnd(o.format, report, func(w io.Writer, r *recovery.ResyncReport) {
		if r.Done {
			printResync(w, r)
		}
	}, err)
}

func printClusterResyncPlan(w io.Writer, p *clusterrun.ResyncPlan) {
	fmt.Fprintf(w, "Give %s the database of the cluster, from %s.\n", p.Member, p.From)
	switch {
	case p.Unread != "":
		fmt.Fprintf(w, "Its own database cannot be read: %s\n", p.Unread)
	default:
		fmt.Fprintf(w, "Its own log: %s.\n", logText(p.Seen))
	}

	product.Fprintf(w, "LXD on %s is %s. %s No other member is stopped.\n", p.Member, p.Seen.Daemon, stopText(p.Seen.Daemon))
	if p.DiscardLocal {
		fmt.Fprintf(w, "What only %s has is given up, even if it is of another history.\n", p.Member)
	}
}
