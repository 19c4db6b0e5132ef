package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/frontend"
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
	output := outputOptions{}
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
			err := output.check()
			if err != nil {
				return err
			}

			report, err := frontend.Install(frontend.DefaultDir)
			if err != nil {
				return needsRoot(err)
			}

			return output.print(report, func() error {
				printFrontendInstalled(report)
				return nil
			})
		},
	}
	output.addFlags(cmd)
	return cmd
}

func printFrontendInstalled(r *frontend.Report) {
	defer printList(os.Stderr, "Warning", r.Warnings)
	if !r.Changed {
		fmt.Printf("%s is there already and points to %s: nothing was changed.\n", r.Link, r.Target)
		return
	}

	fmt.Printf("%s points to %s now.\n", r.Link, r.Target)
	if r.LXD != "" {
		fmt.Printf("What is not a command of lxd-recover goes to %s.\n", r.LXD)
	}

	fmt.Println("Shells that are open may still remember the old place: run `hash -r` in them.")
}

func newFrontendRemoveCmd() *cobra.Command {
	output := outputOptions{}
	cmd := &cobra.Command{
		Use:   "remove",
		Short: `Take the "lxd" of lxd-recover away`,
		Long: `Take the link ` + frontend.DefaultDir + `/lxd away. A file of that name that is no link to lxd-recover is left alone.
` + frontendStatuses,
		Example:           "  lxd-recover frontend remove",
		Args:              usage(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			err := output.check()
			if err != nil {
				return err
			}

			report, err := frontend.Remove(frontend.DefaultDir)
			if err != nil {
				return needsRoot(err)
			}

			return output.print(report, func() error {
				printFrontendRemoved(report)
				return nil
			})
		},
	}
	output.addFlags(cmd)
	return cmd
}

func printFrontendRemoved(r *frontend.Report) {
	if !r.Changed {
		fmt.Printf("There is no %s: nothing was changed.\n", r.Link)
		return
	}

	fmt.Printf("%s is removed.\nShells that are open may still remember it: run `hash -r` in them.\n", r.Link)
}

func newFrontendStatusCmd() *cobra.Command {
	output := outputOptions{}
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
		RunE: func(*cobra.Command, []string) error {
			err := output.check()
			if err != nil {
				return err
			}

			report, err := frontend.Status(frontend.DefaultDir)
			if err != nil {
				return err
			}

			return output.print(report, func() error {
				printFrontendStatus(report)
				return nil
			})
		},
	}
	output.addFlags(cmd)
	return cmd
}

func printFrontendStatus(r *frontend.Report) {
	installed := "not installed"
	if r.Installed {
		installed = r.Link + " -> " + r.Target
	}

	found := missing(r.Found)
	if r.Effective {
		found += " (lxd-recover)"
	}

	writeTable(os.Stdout, nil, [][]string{
		{"front-end", installed},
		{"lxd in this PATH", found},
		{"LXD's own", missing(r.LXD)},
	})
	printList(os.Stdout, "Warning", r.Warnings)
}

// needsRoot replaces the kernel's words where somebody else than root was not permitted something.
func needsRoot(err error) error {
	if os.Geteuid() != 0 && errors.Is(err, fs.ErrPermission) {
		return recovery.ErrNotRoot
	}

	return err
}
