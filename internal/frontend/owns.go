// SPDX-License-Identifier: AGPL-3.0-only

package frontend

import (
	"slices"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

// Flag is a global flag of LXD's command line. It may stand before, between and after the words of a command.
type Flag struct {
	Name  string
	Short string
	Value bool // it takes one: --logfile FILE
}

// Flags are LXD's global flags, those of 5.0 (which has --group as well, for the daemon) to 6.6. They are about how LXD logs:
// our own commands accept them and do nothing about them. --help is left out, which our commands have themselves.
var Flags = []Flag{
	{Name: "debug", Short: "d"},
	{Name: "verbose", Short: "v"},
	{Name: "syslog"},
	{Name: "version"},
	{Name: "logfile", Value: true},
	{Name: "trace", Value: true},
	{Name: "group", Value: true},
}

// Commands of LXD's group "cluster" that are ours, and how our commands outside of it begin.
var (
	clusterCommands = []string{"edit", "export-db", "recover", "recover-from-quorum-loss"}
	commandPrefix   = "global-db-"
)

const clusterGroup = "cluster"

// Owns tells whether `lxd` with these arguments is a command of ours. It must find the command wherever LXD would find it: an
// edit that slips through to LXD is one without our checks.
func Owns(args []string) bool { return owns(args, "") }

// owns looks at what follows group, which is empty, "cluster", or the word that may stand before that: only commands of the group cluster follow it.
func owns(args []string, group string) bool {
	for i, arg := range args {
		switch {
		case arg == "--": // LXD looks for no command after it
			return false

		case arg == "" || arg == "-": // LXD overlooks them on its way to the command
			continue

		case !strings.HasPrefix(arg, "-"):
			if group == clusterGroup {
				return slices.Contains(clusterCommands, arg)
			}

			if arg == clusterGroup {
				return owns(args[i+1:], clusterGroup)
			}

			prefix := product.Current().Prefix
			if group == "" && arg == prefix {
				return owns(args[i+1:], prefix)
			}

			return group == "" && strings.HasPrefix(arg, commandPrefix)
		}

		value, known := flagValue(arg)
		if known && !value {
			continue
		}

		// What follows is the flag's value. Of a flag that we do not know it may be the command: then it is ours in any case,
		// and the flag ends as a usage error.
		rest := args[i+1:]
		if !known && owns(rest, group) {
			return true
		}

		return len(rest) > 0 && owns(rest[1:], group)
	}

	return false
}

// flagValue tells whether the argument that follows this flag is its value.
func flagValue(arg string) (value bool, known bool) {
	if strings.Contains(arg, "=") {
		return false, true
	}

	name, long := strings.CutPrefix(arg, "--")
	if !long && len(arg) > 2 {
		return false, true // several short ones in one, none of which takes a value
	}

	for _, f := range append(Flags, Flag{Name: "help", Short: "h"}) {
		if long && f.Name == name || !long && "-"+f.Short == arg {
			return f.Value, true
		}
	}

	return false, false
}
