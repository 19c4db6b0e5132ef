// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/clusterrun"
	"github.com/lxd-recover/lxd-recover/internal/printable"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// Exit statuses of runs over the whole cluster that have done a part.
const (
	exitPartWorks = 5
	exitPartDown  = 6
)

const recoverStatuses = `
Exit status:
  0  done
  1  failed, and nothing was changed: every member has the database it had
  2  wrong usage
  3  refused, and nothing was changed; a flag in the message may override
  4  a database is damaged
  5  done in part, and the cluster works; the message says what is left
  6  done in part, and it does not work; the message says how to go on`

// recoverOptions are the flags of `cluster recover`.
type recoverOptions struct {
	lost      []string
	addresses map[string]string
	hosts     map[string]string
	hostsFile string
	ssh       string
	members   string
	edit      bool
	voters    int
	from      string
	resync    string
	move      bool
	yes       bool
	discard   bool
	noStart   bool
	keepHeal  bool
	binaries  map[string]string
	planID    string
	startTime time.Duration
	format    format
}

// addReachFlags adds how members are reached.
func (o *recoverOptions) addReachFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringToStringVar(&o.hosts, "host", nil, "`NAME=DESTINATION` of ssh for a member; several with commas")
	flags.StringVar(&o.hostsFile, "hosts", "", "`FILE` with a line NAME DESTINATION for each member")
	flags.StringVar(&o.ssh, "ssh", "", "`COMMAND` for ssh, with options, such as \"ssh -J jump\"")
	flags.StringToStringVar(&o.binaries, "binary", nil, "lxd-recover for another architecture, as `ARCH=FILE`")
	for _, name := range []string{"host", "binary"} {
		flags.Lookup(name).DefValue = "" // else help says that it is []
	}

	flags.BoolVar(&o.yes, "yes", false, "do not ask")
	flags.DurationVar(&o.startTime, "start-timeout", 3*time.Minute, "how long LXD may take to answer after its start")
	o.format.addFlag(cmd, []string{formatTable, formatJSON})
}

func (o *recoverOptions) addLostFlag(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&o.lost, "lost", nil, "`NAMES` of members that are lost for good, with commas")
}

// addPlanFlags adds what is to be done.
func (o *recoverOptions) addPlanFlags(cmd *cobra.Command) {
	o.addLostFlag(cmd)
	flags := cmd.Flags()
	flags.StringToStringVar(&o.addresses, "address", nil, "new address of a member, as `NAME=ADDRESS`; several with commas")
	flags.Lookup("address").DefValue = "" // else help says that it is []
	flags.StringVar(&o.members, "members", "", "new member list in `FILE`, as from \"lxd cluster show\"; - is stdin")
	flags.BoolVar(&o.edit, "edit", false, "open the new member list in the editor")
	flags.IntVar(&o.voters, "voters", 0, "`NUMBER` of voters there are to be (default: as LXD has)")
	flags.StringVar(&o.from, "from", "", "`NAME` of the member whose database all get")
	flags.BoolVar(&o.move, "move", false, "give a cluster that works new addresses")
	flags.BoolVar(&o.keepHeal, "keep-healing", false, "leave cluster.healing_threshold as it is")
}

func (o *recoverOptions) addApplyFlags(cmd *cobra.Command) {
	o.addDiscardFlag(cmd)
	cmd.Flags().BoolVar(&o.noStart, "no-start", false, "leave LXD stopped on all members")
}

func (o *recoverOptions) addDiscardFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.discard, "discard-local-entries", false, "with --yes: give up changes that the new database lacks")
}

func newClusterRecoverCmd() *cobra.Command {
	o := &recoverOptions{}
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Recover the whole cluster: all members get one database, or none does",
		Long: `Recover the whole cluster in one run, over ssh. All members get one
database, or none does.

Run it on a member, or anywhere with --host. It looks at all members, and
shows a plan: whose database all get, what will be lost, who becomes voter.
Nothing is stopped before you agree. Then LXD is stopped on all members. The
new database is made on one of them and checked on all. Only then it is put
in place, on all, and LXD is started. What fails before is taken back.

--lost names members that are lost. Their LXD must never start again on its
old database. A member that is neither reached nor named is a refusal.

The other members need not have this program: it brings itself along. It uses
your ssh, with your configuration, keys and known hosts, and "sudo -n" there
if you do not come in as root.

With --resync one member of a cluster that works gets the cluster's database,
as by global-db-resync there: LXD is stopped on that member alone.

If the run is cut off, "lxd-recover cluster recover resume" finishes it or
takes it back, on any machine that reaches the members.
"lxd-recover cluster recover undo" takes every member back to before it.
` + recoverStatuses,
		Example: `  lxd-recover cluster recover
  lxd-recover cluster recover --lost server2,server3
  lxd-recover cluster recover --host server1=root@10.0.0.1,server4=10.0.0.4 --lost server2,server3
  lxd-recover cluster recover --address server1=10.1.0.1:8443,server2=10.1.0.2:8443
  lxd-recover cluster recover --resync server3`,
		Args:              usage(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("resync") {
				return runRecoverResync(cmd, o)
			}

			return runRecover(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVar(&o.resync, "resync", "", "`NAME` of the one broken member that gets the database of the cluster, which works")
	o.addReachFlags(cmd)
	o.addPlanFlags(cmd)
	o.addApplyFlags(cmd)
	cmd.AddCommand(newRecoverPlanCmd(), newRecoverApplyCmd(), newRecoverVerifyCmd(), newRecoverUndoCmd(), newRecoverResumeCmd())
	return cmd
}

func newRecoverPlanCmd() *cobra.Command {
	o := &recoverOptions{}
	cmd := &cobra.Command{
		Use:   "plan [FILE]",
		Short: "Look at all members and write a plan, and stop nothing",
		Long: `Look at all members, decide how the cluster would be recovered, and write
that to FILE (` + clusterrun.PlanFile + `). Nothing is stopped or changed. Somebody else
can read the plan. "lxd-recover cluster recover apply" carries it out, and
notices what has changed since.
` + recoverStatuses,
		Example: `  lxd-recover cluster recover plan --lost server2,server3
  lxd-recover cluster recover plan plan.yaml`,
		Args: usage(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runRecoverPlan(cmd.Context(), o, optionalArg(args, clusterrun.PlanFile))
		},
	}
	o.addReachFlags(cmd)
	o.addPlanFlags(cmd)
	cmd.Flags().BoolVar(&o.noStart, "no-start", false, "leave LXD stopped on all members in the end")
	return cmd
}

func newRecoverApplyCmd() *cobra.Command {
	o := &recoverOptions{}
	cmd := &cobra.Command{
		Use:   "apply [PLAN]",
		Short: "Carry out a plan",
		Long: `Carry out a plan that "lxd-recover cluster recover plan" has written
(` + clusterrun.PlanFile + `). It is shown, and you are asked. --yes asks nothing: then
--plan-id makes sure that it is the plan that you have read.
` + recoverStatuses,
		Example: `  lxd-recover cluster recover apply
  lxd-recover cluster recover apply plan.yaml --yes --plan-id 4f2a`,
		Args: usage(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runRecoverApply(cmd.Context(), o, optionalArg(args, clusterrun.PlanFile))
		},
	}
	o.addReachFlags(cmd)
	o.addApplyFlags(cmd)
	cmd.Flags().StringVar(&o.planID, "plan-id", "", "the id of the plan, or how it begins: another plan is refused")
	return cmd
}

func newRecoverUndoCmd() *cobra.Command {
	o := &recoverOptions{}
	cmd := &cobra.Command{
		Use:   "undo [PLAN]",
		Short: "Take every member back to before a run",
		Long: `Take every member back to before a run over the cluster: all of them or none.

If LXD has not run on the new database anywhere, the databases are exchanged
back. Else it is another run: all members get the database that the first run
began with, fenced above it. Changes made since are named first. If the member
that the run began with is lost (--lost), another one that had the same
database gives it; if there is none, the best that is kept, and what it lacks
is named. --from takes that of a member all the same.

PLAN is the plan of that run. Without it, the run is the one that is open on
the members, or the last one that was given on this machine.
` + recoverStatuses,
		Example: `  lxd-recover cluster recover undo
  lxd-recover cluster recover undo plan.yaml --yes`,
		Args: usage(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runRecoverUndo(cmd.Context(), o, optionalArg(args, ""))
		},
	}
	o.addReachFlags(cmd)
	o.addApplyFlags(cmd)
	o.addLostFlag(cmd)
	cmd.Flags().StringVar(&o.from, "from", "", "`NAME` of the member whose old database all get")
	return cmd
}

func newRecoverResumeCmd() *cobra.Command {
	o := &recoverOptions{}
	cmd := &cobra.Command{
		Use:   "resume [PLAN]",
		Short: "Finish a run that was cut off, or take it back",
		Long: `Finish a run over the cluster that was cut off, or take it back.

It goes on if all members were ready for the exchange, and a majority of the
new voters can be had. Else it takes everything back. It can be given on any
machine that reaches the members: they know the run. --lost names members that
were lost since it began: it goes on without them.

PLAN is the plan of that run. Without it, the run is the one that is open on
the members that are reached.
` + recoverStatuses,
		Example: `  lxd-recover cluster recover resume
  lxd-recover cluster recover resume --host server1=10.0.0.1`,
		Args: usage(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runRecoverResume(cmd.Context(), o, optionalArg(args, ""))
		},
	}
	o.addReachFlags(cmd)
	o.addLostFlag(cmd)
	o.addDiscardFlag(cmd)
	return cmd
}

// runRecover plans, asks once, and applies.
func runRecover(ctx context.Context, o *recoverOptions) error {
	opts, done, err := o.options(ctx)
	if err != nil {
		return err
	}

	defer done()

	plan, session, err := clusterrun.MakePlan(ctx, opts)
	if err != nil {
		return err
	}

	return o.apply(ctx, session, plan)
}

// apply shows a plan and asks, carries it out, and says what has become of it. It closes the session.
func (o *recoverOptions) apply(ctx context.Context, session *clusterrun.Session, plan *clusterrun.Plan) error {
	err := o.confirmPlan(ctx, plan)
	if err != nil {
		return errors.Join(err, session.Close())
	}

	forget := keepPlan(plan)
	result, err := session.Apply(ctx, plan)
	var back *clusterrun.TakenBack
	if errors.As(err, &back) {
		forget() // there is nothing to undo
	} else {
		keepPlan(plan) // another member may have been chosen, and logs may have gone on until all were stopped
	}

	if err == nil {
		err = session.VerifyRun(ctx, plan, result)
	}

	err = errors.Join(err, session.Close())
	return printReportAnd(o.format, result, func(w io.Writer, r *clusterrun.Result) { printRecovered(w, r, plan) }, err)
}

func runRecoverPlan(ctx context.Context, o *recoverOptions, file string) error {
	opts, done, err := o.options(ctx)
	if err != nil {
		return err
	}

	defer done()

	plan, session, err := clusterrun.MakePlan(ctx, opts)
	if err != nil {
		return err
	}

	err = session.Close()
	if err == nil {
		err = plan.Write(file)
	}

	if err != nil {
		return err
	}

	return printReport(o.format, plan, func(w io.Writer, p *clusterrun.Plan) {
		printRecoverPlan(w, p)
		fmt.Fprintf(w, "\nThe plan is in %s. `lxd-recover cluster recover apply %s` carries it out.\n", file, printable.Word(file))
	})
}

func runRecoverApply(ctx context.Context, o *recoverOptions, file string) error {
	plan, err := clusterrun.ReadPlan(file)
	if err != nil {
		return err
	}

	if o.planID != "" && !strings.HasPrefix(plan.ID, o.planID) {
		return &recovery.Refusal{Code: "another-plan", Reason: fmt.Sprintf("%s is the plan %s, not %s", file, plan.ID, o.planID)}
	}

	plan.NoStart = plan.NoStart || o.noStart
	opts, done, err := o.options(ctx)
	if err != nil {
		return err
	}

	defer done()

	session, err := clusterrun.Reach(ctx, opts, plan)
	if err != nil {
		return err
	}

	return o.apply(ctx, session, plan)
}

func runRecoverUndo(ctx context.Context, o *recoverOptions, file string) error {
	opts, done, err := o.options(ctx)
	if err != nil {
		return err
	}

	defer done()

	plan, err := findPlan(ctx, opts, file)
	if err != nil {
		return err
	}

	result, undo, session, err := clusterrun.Undo(ctx, opts, plan)
	if err != nil || session == nil {
		return printReportAnd(o.format, orEmpty(result, plan), func(w io.Writer, r *clusterrun.Result) { printTakenBack(w, r, plan) }, err)
	}

	undo.NoStart = o.noStart
	return o.apply(ctx, session, undo)
}

func runRecoverResume(ctx context.Context, o *recoverOptions, file string) error {
	opts, done, err := o.options(ctx)
	if err != nil {
		return err
	}

	defer done()

	plan, err := findPlan(ctx, opts, file)
	if err != nil {
		return err
	}

	result, err := clusterrun.Resume(ctx, opts, plan)
	var back *clusterrun.TakenBack
	if errors.As(err, &back) && result != nil {
		return printReport(o.format, result, func(w io.Writer, r *clusterrun.Result) { printTakenBack(w, r, plan) })
	}

	return printReportAnd(o.format, orEmpty(result, plan), func(w io.Writer, r *clusterrun.Result) { printRecovered(w, r, plan) }, err)
}

func orEmpty(r *clusterrun.Result, plan *clusterrun.Plan) *clusterrun.Result {
	if r == nil {
		return &clusterrun.Result{Run: plan.ID}
	}

	return r
}

// confirmPlan shows a plan and asks. What is lost is asked for on its own.
func (o *recoverOptions) confirmPlan(ctx context.Context, p *clusterrun.Plan) error {
	printRecoverPlan(stderr(), p)
	lost := p.Lost()
	switch {
	case o.yes && len(p.Losses) > 0 && !o.discard:
		return &recovery.Refusal{Code: "local-entries", Flag: "--discard-local-entries",
			Reason: "members have changes that the new database lacks: see the plan"}
	case o.yes:
		return nil
	}

	if len(lost) > 0 && (p.Undoes == "" || len(o.lost) > 0) {
		err := confirmation{what: "recovery", question: product.Sprintf("Will LXD on %s never start again on its old database?", strings.Join(lost,
			", "))}.ask(ctx)
		if err != nil {
			return err
		}
	}

	if len(p.Losses) > 0 {
		err := confirmation{what: "recovery", question: "Give up the changes that the new database lacks?"}.ask(ctx)
		if err != nil {
			return err
		}
	}

	return confirmation{what: "recovery", question: product.Text("Stop LXD on all members and carry this out?")}.ask(ctx)
}

// ask puts a question that comes up while a run is under way.
func (o *recoverOptions) ask(ctx context.Context, q clusterrun.Question) error {
	fmt.Fprintln(stderr())
	for _, line := range q.Lines {
		fmt.Fprintln(stderr(), line)
	}

	switch {
	case o.yes && q.Code == "losses" && o.discard:
		return nil
	case o.yes && q.Code == "losses":
		return &recovery.Refusal{Code: "local-entries", Flag: "--discard-local-entries", Reason: "members have changes that the new database lacks"}
	case o.yes:
		return &recovery.Refusal{Code: "changed", Reason: "not all is as the plan has seen it: make another plan"}
	}

	err := confirmation{what: "recovery", question: q.Text}.ask(ctx)
	var refusal *recovery.Refusal
	if err != nil && ctx.Err() == nil && !errors.As(err, &refusal) {
		return errNotConfirmed // what has become of the run then is said with it
	}

	return err
}

// errNotConfirmed is a "no" while a run is under way.
var errNotConfirmed = errors.New("that was not confirmed")
