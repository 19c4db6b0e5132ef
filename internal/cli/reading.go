// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"github.com/spf13/cobra"
)

// addReadingFlag adds the flag that chooses one of several logs that the files of a directory can be read as.
func addReadingFlag(cmd *cobra.Command, reading *string) {
	cmd.Flags().StringVar(reading, "reading", "", "read the files as the log with this `DIGEST`, where they can be read in several ways")
}
