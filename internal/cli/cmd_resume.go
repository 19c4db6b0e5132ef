package cli

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

type resumeOptions struct {
	noStart bool
	timeout time.Duration
	output  outputOptions
}

func newResumeCmd() *cobra.Command {
	opts := resumeOptions{}
	cmd := &cobra.Command{
		Use:   "resume",
		Short: "Put right what an interrupted import, rollback or edit left",
		Long: `Put right what an interrupted import, rollback or edit left: complete or withdraw its exchange, remove what it had
prepared in vain, start LXD again if that run had stopped it, and let its snap be refreshed again. Which database is in place
does not change by it. "lxd-recover global-db-status" shows under "Pending" whether there is something to resume.
` + exitStatuses,
		Example: `  lxd-recover resume
  lxd-recover resume --no-start`,
		Args:              usage(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runResume(cmd.Context(), opts) },
	}
	addDaemonFlags(cmd, &opts.noStart, &opts.timeout)
	opts.output.addFlags(cmd)
	return cmd
}

func runResume(ctx context.Context, opts resumeOptions) error {
	err := opts.output.check()
	if err != nil {
		return err
	}

	dir, err := recovery.FindLXD()
	if err != nil {
		return err
	}

	report, err := recovery.Resume(ctx, recovery.ResumeOptions{LXDDir: dir, NoStart: opts.noStart, Timeout: opts.timeout, Progress: newProgress(ctx, os.Stderr)})
	if err != nil {
		return err
	}

	return opts.output.print(report, func() error {
		if !report.Found {
			fmt.Printf("There is nothing to resume. LXD is %s.\n", report.Daemon)
			return nil
		}

		for _, line := range report.Done {
			fmt.Println(strings.ToUpper(line[:1]) + line[1:] + ".")
		}

		printList(os.Stdout, "Warning", report.Warnings)
		switch {
		case report.Ready:
			fmt.Println("LXD is up.")
		case report.Started:
			fmt.Println("LXD was started.")
		default:
			fmt.Println("Put right.")
		}

		return nil
	})
}
