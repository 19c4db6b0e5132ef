// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/frontend"
)

// leaves are the commands that do something, as they are typed, without the program's name.
func leaves(cmd *cobra.Command) []string {
	if !cmd.HasSubCommands() {
		_, path, _ := strings.Cut(cmd.CommandPath(), " ")
		return []string{path}
	}

	var all []string
	for _, c := range cmd.Commands() {
		all = append(all, leaves(c)...)
	}

	return all
}

// TestFrontEndCommands holds what the front-end takes for itself against the commands that there are: one that it took and did
// not have would be lost, and an edit that it left to LXD would be one without our checks.
func TestFrontEndCommands(t *testing.T) {
	var owned []string
	for _, path := range leaves(newRootCmd()) {
		if frontend.Owns(strings.Fields(path)) {
			owned = append(owned, path)
		}
	}

	root := newRootCmd()
	speakAsLXD(root)
	if got := leaves(root); !slices.Equal(got, owned) {
		t.Errorf("`lxd` has %q, and takes %q for itself", got, owned)
	}

	for _, path := range []string{
		"cluster edit", "cluster export-db", "cluster recover-from-quorum-loss", "global-db-import", "global-db-rollback",
		"global-db-status", "global-db-inspect", "global-db-kept list", "global-db-kept remove",
		"global-db-backups list", "global-db-backups remove", // the old names of these two
	} {
		if !slices.Contains(owned, path) {
			t.Errorf("lxd %s is not ours", path)
		}
	}

	for _, path := range []string{"frontend install", "frontend status", "resume", "hook", "version", "verify-copy"} {
		if slices.Contains(owned, path) {
			t.Errorf("lxd %s is ours", path)
		}
	}
}

// TestFrontEndHelp asks each command for its help, with all global flags of LXD, which it must neither refuse nor mention.
func TestFrontEndHelp(t *testing.T) {
	names := newRootCmd()
	speakAsLXD(names)
	flags := strings.Fields("-d -v -dv --debug --verbose=true --syslog --version --logfile file --trace=a --trace b --group lxd")
	for _, path := range leaves(names) {
		words := strings.Fields(path)
		for _, args := range [][]string{
			slices.Concat(flags, words, []string{"--help"}),
			slices.Concat(words[:1], flags, words[1:], []string{"--help"}),
			slices.Concat(words, []string{"-h"}, flags),
		} {
			if !frontend.Owns(args) {
				t.Errorf("lxd %s is handed over", strings.Join(args, " "))
			}

			var out bytes.Buffer
			root := newRootCmd()
			speakAsLXD(root)
			root.SetOut(&out)
			root.SetErr(&out)
			root.SetArgs(args)
			err := root.Execute()
			help := out.String()
			if err != nil || !strings.Contains(help, "\n  lxd "+path+" ") {
				t.Errorf("lxd %s: %v: %s", strings.Join(args, " "), err, help)
			}

			for _, both := range []string{"edit", "recover-from-quorum-loss"} { // LXD has these, too
				help = strings.ReplaceAll(help, "lxd-recover cluster "+both, "")
			}

			for _, s := range []string{"lxd-recover cluster", "lxd-recover global-db-", "--logfile", "--debug", "Global Flags"} {
				if strings.Contains(help, s) {
					t.Errorf("the help of lxd %s says %q:\n%s", path, s, help)
				}
			}
		}
	}
}
