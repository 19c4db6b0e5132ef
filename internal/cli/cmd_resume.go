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
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

type resumeOptions struct {
	recovery.ResumeOptions
	format format
}

func newResumeCmd() *cobra.Command {
	opts := resumeOptions{}
	cmd := &cobra.Command{
		Use:   "resume",
		Short: "Finish what an interrupted import, rollback, edit or repair left",
		Long: `Finish what an interrupted import, rollback, edit or repair left: complete or withdraw its exchange, remove what it had
prepared in vain, start LXD again if that run had stopped it, and let its snap be refreshed again. Which database is in place
does not change by it. "lxd-recover global-db-status" shows under "Pending" whether there is something to resume.
` + exitStatuses,
		Example: `  lxd-recover resume
  lxd-recover resume --no-start`,
		Args:              usage(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runResume(cmd.Context(), opts) },
	}
	addDaemonFlags(cmd, &opts.NoStart, &opts.Timeout)
	opts.format.addFlag(cmd, reportFormats)
	return cmd
}

func runResume(ctx context.Context, opts resumeOptions) error {
	opts.Progress = newProgress(ctx, os.Stderr)
	report, err := recovery.Resume(ctx, opts.ResumeOptions)
	if err != nil {
		return err
	}

	return printReport(opts.format, report, printResumed)
}

func printResumed(w io.Writer, r *recovery.ResumeReport) {
	if !r.Found {
		product.Fprintf(w, "There is nothing to resume. LXD is %s.\n", r.Daemon)
		return
	}

	for _, line := range r.Done {
		fmt.Fprintln(w, strings.ToUpper(line[:1])+line[1:]+".")
	}

	printList(w, "Warning", r.Warnings)
	last := "Nothing is left to resume"
	if r.Started || r.Ready {
		last = daemonText(r.Started, r.Ready)
	}

	fmt.Fprintln(w, last+".")
}
