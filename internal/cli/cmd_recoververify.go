// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/clusterrun"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// errNotOne says that the members are not one cluster.
var errNotOne = errors.New("the members are not one cluster that works: see above")

func newRecoverVerifyCmd() *cobra.Command {
	o := &recoverOptions{}
	wait := time.Duration(0)
	cmd := &cobra.Command{
		Use:   "verify [PLAN]",
		Short: "Tell whether all members are one cluster, by what their disks say",
		Long: `Tell in one line whether all members are one cluster: complete, from one
recovery, with a leader, and with the same rows. What each member's disk says
counts, and not LXD's list, where a member can be online that has got nothing
for hours. Nothing is changed. It can be used at any time, also after a
recovery by hand.

With PLAN, the file of a plan, the members are compared with that.

Exit status:
  0  one cluster that works
  1  failed: this cannot be told
  2  wrong usage
  3  refused
  6  not one cluster, or one that does not work`,
		Example: `  lxd-recover cluster recover verify
  lxd-recover cluster recover verify --wait 1m --lost server2`,
		Args: usage(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runRecoverVerify(cmd.Context(), o, optionalArg(args, ""), wait)
		},
	}
	o.addReachFlags(cmd)
	cmd.Flags().StringSliceVar(&o.lost, "lost", nil, "`NAMES` of members that are lost for good, with commas")
	cmd.Flags().DurationVar(&wait, "wait", 30*time.Second, "how long to wait for members that are catching up")
	return cmd
}

func runRecoverVerify(ctx context.Context, o *recoverOptions, file string, wait time.Duration) error {
	opts, done, err := o.options(ctx)
	if err != nil {
		return err
	}

	defer done()

	expected := recovery.Expected{Lost: o.lost}
	if file != "" {
		plan, err := clusterrun.ReadPlan(file)
		if err != nil {
			return err
		}

		expected, err = plan.Expected(nil)
		if err != nil {
			return err
		}

		opts.Lost = expected.Lost
	}

	session, err := clusterrun.ReachAll(ctx, opts)
	if err != nil {
		return err
	}

	verdict, err := session.Verify(ctx, expected, wait)
	err = errors.Join(err, session.Close())
	if err != nil {
		return err
	}

	err = printReport(o.format, verdict, printVerdict)
	if err == nil && !verdict.Good {
		err = errNotOne
	}

	return err
}

func printVerdict(w io.Writer, v *recovery.ClusterVerdict) {
	for _, f := range v.Findings {
		text := f.Text
		if f.Member != "" {
			text = f.Member + ": " + text
		}

		fmt.Fprintln(w, "  "+text)
	}

	fmt.Fprintln(w, v.Line)
}

// verifyRun judges the members after a run. They catch up with the leader in a moment, as a rule.
func (o *recoverOptions) verifyRun(ctx context.Context, session *clusterrun.Session, plan *clusterrun.Plan, result *clusterrun.Result) error {
	expected, err := plan.Expected(result)
	if err == nil {
		result.Verdict, err = session.Verify(ctx, expected, o.startTime)
	}

	switch {
	case err != nil:
		return &clusterrun.Partly{Err: fmt.Errorf("the new database is in place, and whether the members are one cluster cannot be told: %w", err), Works: true}
	case !result.Verdict.Good:
		return &clusterrun.Partly{Err: errNotOne, Works: result.Verdict.Leader != ""}
	}

	return nil
}
