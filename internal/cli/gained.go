// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"fmt"
	"io"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// printGained lists what an import brings that this member does not have. What LXD writes by itself is only counted.
func printGained(w io.Writer, r *recovery.ImportReport, told *toldOnce) {
	told.others().print(w, fmt.Sprintf("Transactions that the tarball has and %s lacks", r.Member.Name), r.Gained)
	if r.GainedUntold != "" {
		fmt.Fprintf(w, "\nWhat the tarball has and %s lacks cannot all be told: %s.\n", r.Member.Name, r.GainedUntold)
	}
}
