package cli

import (
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// completeTarballs offers files that could be recovery tarballs, for the one argument that a command takes.
func completeTarballs(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}

	return []string{"gz"}, cobra.ShellCompDirectiveFilterFileExt
}

// completeFiles offers files and directories, for so many arguments.
func completeFiles(limit int) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= limit {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}

		return nil, cobra.ShellCompDirectiveDefault
	}
}

// completeBackups offers the kept databases that are not among the arguments yet, up to so many. Who may not see them gets none.
func completeKept(limit int) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		dir, err := recovery.FindLXD()
		if err != nil || len(args) >= limit {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}

		backups, err := recovery.KeptDatabases(dir)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}

		var names []string
		for _, b := range backups {
			if !slices.Contains(args, b.Name) {
				names = append(names, cobra.CompletionWithDesc(b.Name, fmt.Sprintf("%s, %s, %s", b.Purpose, ageText(time.Since(b.Time)), bytesText(b.Size))))
			}
		}

		return names, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	}
}
