// SPDX-License-Identifier: AGPL-3.0-only

// Command lxd-recover recovers the global database of an LXD cluster.
package main

import (
	"os"

	"github.com/lxd-recover/lxd-recover/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args)) }
