// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// lxdFlags are those of export-db that an export for microcluster's own loader does not know.
var lxdFlags = []string{"at", "source", "unsigned-source", "certificate", "old-members", "yes", "accept-damage", "reading", "unknown-members", "unsigned"}

// microclusterDir is the state directory of a microcluster application that is to be exported: the one that was given, or that of LXD_DIR; empty where LXD is
// meant.
func microclusterDir(given string) string {
	if given != "" {
		return given
	}

	dir, err := recovery.FindLXD()
	if err == nil && recovery.IsMicrocluster(dir) {
		return dir
	}

	return ""
}

func runExportMicrocluster(cmd *cobra.Command, opts exportOptions, state string, file string) error {
	var others []string
	for _, name := range lxdFlags {
		if cmd.Flags().Changed(name) {
			others = append(others, "--"+name)
		}
	}

	if len(others) > 0 {
		return usageError{product.Errorf("%s: only for LXD, and %s is the state directory of a microcluster application", strings.Join(others, ", "), state),
			cmd.CommandPath()}
	}

	var err error
	opts.Output, opts.Stdout, err = outputOf(file, "tarball", opts.format, "lxd-recover cluster export-db")
	if err != nil {
		return err
	}

	opts.LXDDir, opts.Version, opts.Progress = state, Version, newProgress(cmd.Context(), os.Stderr)
	report, err := recovery.ExportMicrocluster(cmd.Context(), opts.ExportOptions)
	if err != nil {
		return err
	}

	if opts.Stdout != nil {
		printMicrocluster(stderr(), report)
		return nil
	}

	return printReport(opts.format, report, printMicrocluster)
}

func printMicrocluster(w io.Writer, r *recovery.ExportReport) {
	fmt.Fprintf(w, "Exported the database of %s: %s, %s.\n", cmp.Or(r.Source.Name, r.Source.Address), r.Before, contentText(r.Database))
	if r.File != "" {
		fmt.Fprintf(w, "Wrote %s (%s), which is not signed: microcluster knows no signature.\n", r.File, bytesText(r.Size))
	}

	fmt.Fprintf(w, "Fenced: the tarball ends at %s, which no other member's log can outvote.\n", r.Raft)
	if r.SnapshotFence != "" {
		fmt.Fprintf(w, "The fence is a snapshot: %s.\n", r.SnapshotFence)
	}

	if !r.Edited {
		fmt.Fprintln(w, "The member list was not edited: it is the one of the last run.")
	}

	printList(w, "Warning", r.Warnings)
	name := filepath.Base(recovery.MicroclusterTarball(r.StateDir))
	fmt.Fprintf(w, `
Next: keep the daemons stopped everywhere, and copy the file as %[1]s into the state directory of every other surviving member. There

    lxd-recover global-db-inspect %[1]s

says whether it has arrived whole. Each daemon loads it when it starts, the one on this member too. Start them only when it is in place on at least
%[2]d of the %[3]d voters.
`, name, r.Members.Majority(), r.Members.Voters())
}
