// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"fmt"
	"io"
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// printGained lists what an import brings that this member does not have. What LXD writes by itself is only counted.
func printGained(w io.Writer, r *recovery.ImportReport) {
	var users []recovery.Discarded
	for _, d := range r.Gained {
		if d.Unknown != "" || slices.ContainsFunc(d.Rows, func(row globaldb.RowChange) bool { return !row.Housekeeping() }) {
			users = append(users, d)
		}
	}

	if len(r.Gained) > 0 {
		fmt.Fprintf(w, "\nTransactions that the tarball has and %s lacks: %d, of which LXD made %d by itself (operations, warnings, heartbeats)\n",
			r.Member.Name, len(r.Gained), len(r.Gained)-len(users))
	}

	for _, d := range users {
		fmt.Fprintln(w, "  "+d.String())
	}

	if r.GainedUntold != "" {
		fmt.Fprintf(w, "\nWhat the tarball has and %s lacks cannot all be told: %s.\n", r.Member.Name, r.GainedUntold)
	}
}
