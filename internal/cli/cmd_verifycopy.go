// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"context"
	"database/sql"
	"encoding/json"
	"os"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/engine"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// newVerifyCmd is what export-db calls in a child process; it ruins the directory it is given.
func newVerifyCmd() *cobra.Command {
	return &cobra.Command{
		Use:    recovery.VerifyCommand + " DIR ADDRESS",
		Short:  "Open a scratch copy of a raft directory with libdqlite and print a fingerprint of its rows",
		Hidden: true,
		Args:   usage(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := globaldb.RegisterSums()
			if err != nil {
				return err
			}

			return engine.Serve(cmd.Context(), args[0], args[1], globaldb.Name, func(ctx context.Context, db *sql.DB) error {
				print, err := globaldb.FingerprintOf(ctx, db)
				if err != nil {
					return err
				}

				return json.NewEncoder(os.Stdout).Encode(print)
			})
		},
	}
}

// newReconfigureCmd is what `cluster edit` calls in a child process; it changes the directory it is given.
func newReconfigureCmd() *cobra.Command {
	return &cobra.Command{
		Use:    recovery.ReconfigureCommand + " DIR NODES",
		Short:  "Let libdqlite append a configuration entry to a scratch copy of a raft directory",
		Hidden: true,
		Args:   usage(cobra.ExactArgs(2)),
		RunE: func(_ *cobra.Command, args []string) error {
			var nodes []engine.Node
			err := json.Unmarshal([]byte(args[1]), &nodes)
			if err != nil {
				return err
			}

			return engine.Reconfigure(args[0], nodes)
		},
	}
}
