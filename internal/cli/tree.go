// SPDX-License-Identifier: AGPL-3.0-only

package cli

import "github.com/spf13/cobra"

// Commands returns all commands as they are when nothing is run: what man pages and completions are generated from.
func Commands() *cobra.Command { return newRootCmd() }
