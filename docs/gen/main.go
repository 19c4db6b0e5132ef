// SPDX-License-Identifier: AGPL-3.0-only

// Command gen writes lxd-recover's man pages and shell completions: gen DIR makes DIR/man and DIR/completions. Both come
// from the commands' own help, so that they cannot tell anything else. `make man` runs it.
//
// The pages' date is $SOURCE_DATE_EPOCH, as everywhere in reproducible builds, and not the time of the build.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/lxd-recover/lxd-recover/internal/cli"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: gen DIR")
		os.Exit(2)
	}

	err := generate(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func generate(dir string) error {
	man, completions := filepath.Join(dir, "man"), filepath.Join(dir, "completions")
	for _, d := range []string{man, completions} {
		// A command that is gone must not leave its page.
		err := errors.Join(os.RemoveAll(d), os.MkdirAll(d, 0o755))
		if err != nil {
			return err
		}
	}

	root := cli.Commands()
	err := errors.Join(
		root.GenBashCompletionFileV2(filepath.Join(completions, "lxd-recover.bash"), true),
		root.GenZshCompletionFile(filepath.Join(completions, "_lxd-recover")),
		root.GenFishCompletionFile(filepath.Join(completions, "lxd-recover.fish"), true),
	)
	if err != nil {
		return err
	}

	if os.Getenv("SOURCE_DATE_EPOCH") == "" {
		return errors.New("SOURCE_DATE_EPOCH is not set: the man pages would carry the time of the build")
	}

	markUp(root)
	return doc.GenManTree(root, &doc.GenManHeader{Section: "8", Source: "lxd-recover", Manual: "System administration"}, man)
}

// markUp makes Markdown, which cobra takes help texts for, of the help texts of a command and of those below it: what is
// indented keeps its lines, and the exit statuses become a section.
func markUp(cmd *cobra.Command) {
	cmd.DisableAutoGenTag = true
	var out []string
	indented := false
	for line := range strings.Lines(cmd.Long) {
		line = strings.TrimRight(line, "\n")
		was := indented
		indented = strings.HasPrefix(line, " ")
		switch {
		case line == "Exit status:":
			out = append(out, "", "# EXIT STATUS")
		case indented:
			if !was {
				out = append(out, "")
			}

			out = append(out, "    "+line)
		default:
			out = append(out, line)
		}
	}

	cmd.Long = strings.Join(out, "\n")
	for _, c := range cmd.Commands() {
		markUp(c)
	}
}
