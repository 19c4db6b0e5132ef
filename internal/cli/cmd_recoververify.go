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
	o.addLostFlag(cmd)
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
		err = clusterrun.ErrNotOne
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
