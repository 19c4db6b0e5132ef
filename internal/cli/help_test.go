// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"bytes"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// visible are all commands that help is given for.
func visible(cmd *cobra.Command) []*cobra.Command {
	if cmd.Hidden {
		return nil
	}

	all := []*cobra.Command{cmd}
	for _, c := range cmd.Commands() {
		all = append(all, visible(c)...)
	}

	return all
}

// shell is where a command of an example ends and the shell's own words begin.
var shell = regexp.MustCompile(`[|>;]|\$\(| 2>`)

// TestHelp goes through all commands: each has examples, which are commands that there are, with flags that there are, and its exit
// statuses; and where a file can be kept of what it does, that is said.
func TestHelp(t *testing.T) {
	commands := visible(newRootCmd())
	if len(commands) < 20 {
		t.Errorf("%d commands", len(commands))
	}

	for _, cmd := range commands {
		path := cmd.CommandPath()
		var out bytes.Buffer
		root := newRootCmd()
		root.SetOut(&out)
		root.SetArgs(append(strings.Fields(path)[1:], "--help"))
		err := root.Execute()
		help := out.String()
		if err != nil || !strings.Contains(help, "\nExamples:\n") {
			t.Errorf("%s has no example: %v", path, err)
		}

		if strings.Count(help, "\nExit status:\n  0  ") != 1 || !strings.Contains(help, "\n  2  wrong usage") {
			t.Errorf("%s does not tell its exit statuses:\n%s", path, help)
		}

		if cmd.Runnable() && !cmd.HasSubCommands() && !strings.Contains(help, "--log-file FILE") {
			t.Errorf("%s cannot keep a log", path)
		}

		if strings.Contains(help, "` +") || strings.Contains(help, "+ `") {
			t.Errorf("%s shows a piece of its source:\n%s", path, help)
		}

		for line := range strings.Lines(cmd.Example) {
			checkExample(t, cmd, strings.TrimSpace(line))
		}
	}
}

// checkExample looks up the command and the flags of an example.
func checkExample(t *testing.T, cmd *cobra.Command, line string) {
	t.Helper()
	own := false
	for _, part := range shell.Split(line, -1) {
		words := strings.Fields(part)
		if len(words) == 0 || words[0] != "lxd-recover" && words[0] != "lxd" {
			continue
		}

		found, _, err := newRootCmd().Find(words[1:])
		if slices.Equal(words, []string{"lxd", "cluster", "show"}) { // LXD's own
			continue
		}

		if err != nil || !found.Runnable() {
			t.Errorf("%s: there is no command %q: %v", cmd.CommandPath(), part, err)
			continue
		}

		own = own || strings.HasPrefix(found.CommandPath()+" ", cmd.CommandPath()+" ")
		for _, word := range words {
			name, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "=")
			if strings.HasPrefix(word, "--") && found.Flags().Lookup(name) == nil && name != "help" {
				t.Errorf("%s: %s has no flag %s", cmd.CommandPath(), found.CommandPath(), word)
			}
		}
	}

	if !own {
		t.Errorf("%q is no example of %s", line, cmd.CommandPath())
	}
}

// TestFlagsAlike looks at the flags that many commands have.
func TestFlagsAlike(t *testing.T) {
	for _, cmd := range visible(newRootCmd()) {
		format := cmd.Flags().Lookup("format")
		if format != nil && (format.Shorthand != "f" || format.DefValue != formatTable) {
			t.Errorf("%s: --format is -%s, %s by default", cmd.CommandPath(), format.Shorthand, format.DefValue)
		}

		without := []string{"lxd-recover", "lxd-recover cluster", "lxd-recover frontend", "lxd-recover global-db-kept", "lxd-recover hook",
			"lxd-recover backup", "lxd-recover global-db-identity"}
		if (format == nil) != slices.Contains(without, cmd.CommandPath()) {
			t.Errorf("%s: --format: %v", cmd.CommandPath(), format != nil)
		}
	}
}
