// SPDX-License-Identifier: AGPL-3.0-only

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

// completeKept offers the kept databases that are not among the arguments yet, up to so many. Who may not see them gets none.
func completeKept(limit int) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		kept, err := recovery.KeptDatabases("")
		if err != nil || len(args) >= limit {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}

		var names []string
		for _, k := range kept {
			if !slices.Contains(args, k.Name) {
				about := fmt.Sprintf("%s, %s, %s", k.Purpose, ageText(time.Since(k.Time)), bytesText(k.Size))
				names = append(names, cobra.CompletionWithDesc(k.Name, about))
			}
		}

		return names, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	}
}
