// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/agent"
	"github.com/lxd-recover/lxd-recover/internal/remote"
)

// agentCommand is the hidden command that `cluster recover` starts on each member.
const agentCommand = "agent"

// newAgentCmd is a member's side of a run over the whole cluster, on standard input and output.
func newAgentCmd() *cobra.Command {
	return &cobra.Command{
		Use:    agentCommand,
		Short:  "Take part in a run over the whole cluster, on standard input and output",
		Hidden: true,
		Args:   usage(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			ctx := context.Background() // signals are remote.Serve's
			err := remote.LeaveSession(ctx)
			if err != nil {
				fmt.Fprintf(os.Stderr, "the agent stays in its session: %v\n", err)
			}

			return agent.Serve(ctx, agent.Options{Version: Version, Timeout: defaultTimeout}, os.Stdin, os.Stdout)
		},
	}
}
