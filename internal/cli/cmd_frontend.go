// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/frontend"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

func newFrontendCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "frontend",
		Short: `Have root's "lxd" carry out these commands, too`,
		Long: `Have root's "lxd" carry out these commands, too: "lxd cluster export-db", "lxd cluster edit", "lxd global-db-import".

The front-end is a link, ` + frontend.DefaultDir + `/lxd, which comes before LXD's own program in the PATH of root and of sudo.
Every other command goes to LXD's own program, unchanged.
` + frontendStatuses,
		Example: `  lxd-recover frontend install
  lxd-recover frontend status`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              groupRun,
	}
	cmd.AddCommand(newFrontendInstallCmd(), newFrontendRemoveCmd(), newFrontendStatusCmd())
	return cmd
}

// frontendStatuses is the exit statuses of the commands that change the link.
const frontendStatuses = `
Exit status:
  0  done, or nothing to do
  1  failed; nothing was changed
  2  wrong usage`

func newFrontendInstallCmd() *cobra.Command {
	output := format{}
	cmd := &cobra.Command{
		Use:   "install",
		Short: `Put "lxd" before LXD's own program`,
		Long: `Put the link ` + frontend.DefaultDir + `/lxd before LXD's own program. It stays valid when LXD or lxd-recover is updated. A file that
is in its place and is no link to lxd-recover is left alone.
` + frontendStatuses,
		Example:           "  lxd-recover frontend install",
		Args:              usage(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			return runFrontend(output, frontend.Install, printFrontendInstalled)
		},
	}
	output.addFlag(cmd, reportFormats)
	return cmd
}

func printFrontendInstalled(w io.Writer, r *frontend.Report) {
	defer printList(stderr(), "Warning", r.Warnings)
	if !r.Changed {
		fmt.Fprintf(w, "%s is there already and points to %s: nothing was changed.\n", r.Link, r.Target)
		return
	}

	fmt.Fprintf(w, "%s points to %s now.\n", r.Link, r.Target)
	if r.LXD != "" {
		fmt.Fprintf(w, "What is not a command of lxd-recover goes to %s.\n", r.LXD)
	}

	fmt.Fprintln(w, "Shells that are open may still remember the old place: run `hash -r` in them.")
}

func newFrontendRemoveCmd() *cobra.Command {
	output := format{}
	cmd := &cobra.Command{
		Use:   "remove",
		Short: `Take the "lxd" of lxd-recover away`,
		Long: `Take the link ` + frontend.DefaultDir + `/lxd away. A file of that name that is no link to lxd-recover is left alone.
` + frontendStatuses,
		Example:           "  lxd-recover frontend remove",
		Args:              usage(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			return runFrontend(output, frontend.Remove, printFrontendRemoved)
		},
	}
	output.addFlag(cmd, reportFormats)
	return cmd
}

func printFrontendRemoved(w io.Writer, r *frontend.Report) {
	if !r.Changed {
		fmt.Fprintf(w, "There is no %s: nothing was changed.\n", r.Link)
		return
	}

	fmt.Fprintf(w, "%s is removed.\nShells that are open may still remember it: run `hash -r` in them.\n", r.Link)
}

func newFrontendStatusCmd() *cobra.Command {
	output := format{}
	cmd := &cobra.Command{
		Use:   "status",
		Short: `Show what "lxd" stands for`,
		Long: `Show whether the front-end is installed, what "lxd" stands for in this PATH, and which program is LXD's own.

Exit status:
  0  done
  1  failed
  2  wrong usage`,
		Example: `  lxd-recover frontend status
  lxd-recover frontend status --format json`,
		Args:              usage(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(*cobra.Command, []string) error { return runFrontend(output, frontend.Status, printFrontendStatus) },
	}
	output.addFlag(cmd, reportFormats)
	return cmd
}

func printFrontendStatus(w io.Writer, r *frontend.Report) {
	installed := "not installed"
	if r.Installed {
		installed = r.Link + " -> " + r.Target
	}

	found := orDash(r.Found)
	if r.Effective {
		found += " (lxd-recover)"
	}

	writeTable(w, nil, [][]string{
		{"front-end", installed},
		{product.Text("lxd in this PATH"), found},
		{product.Text("LXD's own"), orDash(r.LXD)},
	})
	printList(w, "Warning", r.Warnings)
}

// runFrontend does something about the link, or looks at it.
func runFrontend(output format, do func(dir string) (*frontend.Report, error), people func(io.Writer, *frontend.Report)) error {
	report, err := do(frontend.DefaultDir)
	if err != nil {
		return needsRoot(err)
	}

	return printReport(output, report, people)
}

// needsRoot replaces the kernel's words if somebody else than root was not permitted something.
func needsRoot(err error) error {
	if os.Geteuid() != 0 && errors.Is(err, fs.ErrPermission) {
		return recovery.ErrNotRoot
	}

	return err
}
