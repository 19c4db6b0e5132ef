// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// warnCutOff says, whatever was asked for, that a run was cut off and LXD may be down for it: on this machine, or in an LXD directory that is
// an argument. Commands that have nothing to do with LXD's directory do not look, nor does the one that finishes it.
func warnCutOff(cmd *cobra.Command, args []string) {
	if !looksAtLXD(cmd) {
		return
	}

	var said []string
	for _, path := range append([]string{""}, args...) {
		text := recovery.CutOff(path)
		if text != "" && !slices.Contains(said, text) {
			fmt.Fprintln(os.Stderr, "Warning: "+text)
			said = append(said, text)
		}
	}
}

// looksAtLXD tells whether a command is about LXD's directory.
func looksAtLXD(cmd *cobra.Command) bool {
	for _, name := range []string{cmd.Name(), cmd.Parent().Name()} {
		if name == "cluster" || strings.HasPrefix(name, "global-db-") {
			return true
		}
	}

	return false
}
