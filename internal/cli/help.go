// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// helpTemplate is cobra's, with the flags wrapped at the terminal.
const helpTemplate = `Usage:{{if .Runnable}}
  {{.UseLine}}{{end}}{{if .HasAvailableSubCommands}}
  {{.CommandPath}} [command]{{end}}{{if .HasExample}}

Examples:
{{.Example}}{{end}}{{if .HasAvailableSubCommands}}

Available Commands:{{range .Commands}}{{if (or .IsAvailableCommand (eq .Name "help"))}}
  {{rpad .Name .NamePadding }} {{.Short}}{{end}}{{end}}{{end}}{{if .HasAvailableLocalFlags}}

Flags:
{{flags . | trimTrailingWhitespaces}}{{end}}{{if .HasAvailableInheritedFlags}}

Global Flags:
{{inheritedFlags . | trimTrailingWhitespaces}}{{end}}{{if .HasAvailableSubCommands}}

Use "{{.CommandPath}} [command] --help" for more information about a command.{{end}}
`

// setHelp has the help of all commands wrapped at the terminal, and `help` fail for what there is not.
func setHelp(root *cobra.Command) {
	cobra.AddTemplateFunc("flags", func(c *cobra.Command) string { return c.LocalFlags().FlagUsagesWrapped(widthOf(c.OutOrStdout())) })
	cobra.AddTemplateFunc("inheritedFlags", func(c *cobra.Command) string { return c.InheritedFlags().FlagUsagesWrapped(widthOf(c.OutOrStdout())) })
	root.SetUsageTemplate(helpTemplate)
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { writeHelp(cmd.OutOrStdout(), cmd) })
	root.SetHelpCommand(&cobra.Command{
		Use:               "help [COMMAND]",
		Short:             "Help about any command",
		Long:              "Help about any command: what it does, its flags, examples and exit statuses.\n" + plainStatuses,
		Example:           "  lxd-recover help global-db-import",
		ValidArgsFunction: completeCommands,
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err == nil && len(rest) > 0 && found.HasSubCommands() {
				err = unknownCommand(found, rest[0])
			}

			if err != nil {
				return usageError{fmt.Errorf("there is no command %q", strings.Join(args, " ")), helpPath(cmd.Root())}
			}

			return found.Help()
		},
	})
}

func completeCommands(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	found, _, err := cmd.Root().Find(args)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}

	var names []string
	for _, c := range found.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name()+"\t"+c.Short)
		}
	}

	return names, cobra.ShellCompDirectiveNoFileComp
}

// writeHelp writes what a command does, and how it is used.
func writeHelp(w io.Writer, cmd *cobra.Command) {
	text := cmd.Long
	if text == "" {
		text = cmd.Short
	}

	fmt.Fprintf(w, "%s\n\n", strings.TrimRight(reflow(text, widthOf(w)), " \n"))
	_ = cmd.Usage()
}

// reflow breaks a text anew, to lines of at most that many columns. Lines that follow each other at the margin are a paragraph. An indented
// line begins an entry of a list, of a word, two spaces or more, and what is said of it; lines that are indented as far as that go on
// with it. With a width of 0 the text stays as it is.
func reflow(text string, width int) string {
	if width == 0 {
		return text
	}

	var done []string
	open, indent := "", "" // the line that is being put together, and what its further lines begin with
	end := func() {
		if open != "" {
			done = append(done, wrapped(open, indent, width))
		}

		open = ""
	}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		begin := line[:len(line)-len(strings.TrimLeft(line, " "))]
		switch {
		case line == "":
			end()
			done = append(done, "")
		case open != "" && begin == indent:
			open += " " + line[len(begin):]
		default:
			end()
			open, indent = line, strings.Repeat(" ", hanging(line))
		}
	}

	end()
	return strings.Join(done, "\n")
}

// hanging is the column at which an entry of a list says something: after its first word and two spaces or more. It is 0 for a line of a
// paragraph.
func hanging(line string) int {
	text := strings.TrimLeft(line, " ")
	if text == line {
		return 0
	}

	begin := len(line) - len(text)
	gap := strings.Index(text, "  ")
	if gap < 0 {
		return begin + 2
	}

	return begin + gap + len(text[gap:]) - len(strings.TrimLeft(text[gap:], " "))
}

// applicationSources is what commands that only look at a source say of those that are not LXD's.
const applicationSources = `SOURCE may also be the state directory of a MicroCloud, MicroCeph or MicroOVN (microcluster 2 and 3), its
recovery_db.tar.gz or db_backup tarball, or the directory in which another application of go-dqlite, such as k8s-dqlite, MicroK8s
or Juju, has its database.`
