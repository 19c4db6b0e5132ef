// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"github.com/spf13/cobra"
)

// addReadingFlag adds the flag that chooses one of several logs that the files of a directory can be read as.
func addReadingFlag(cmd *cobra.Command, reading *string) {
	cmd.Flags().StringVar(reading, "reading", "", "read the files as the log with this `DIGEST`, where they can be read in several ways")
}

// addDatabaseFlag adds the flag that chooses one of several databases in a log.
func addDatabaseFlag(cmd *cobra.Command, database *string) {
	cmd.Flags().StringVar(database, "database", "",
		"take the database with this `NAME` of an application that has several in one log; not for LXD, which has one")
}
