// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"github.com/lxd-recover/lxd-recover/internal/preflight"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// needs says what LXD lacks in order to start on this database with the members that it has. The database itself is no worse for it.
func (r *InspectReport) needs(src *Source, found inDatabase) {
	facts := preflight.Facts{Members: r.Members, Nodes: found.rows}
	if src.Kind == kindLXD && r.Member != nil {
		facts.Self = r.Member.ID
	}

	for _, f := range preflight.Check(facts) {
		r.Problems = append(r.Problems, raftlog.Problem{Severity: raftlog.Warning, Offset: -1, Text: f.Text,
			Libdqlite: "loads the database: it is LXD that goes by this", Advice: f.Advice})
	}
}
