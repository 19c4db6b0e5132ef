// SPDX-License-Identifier: AGPL-3.0-only

package cluster

import (
	"context"
	"fmt"
	"os"
	"regexp"
)

// startedAs is what LXD says when it starts: its raft id, and the role that its node database had for it then.
var startedAs = regexp.MustCompile(`msg="Starting database node" id=(\d+) .*role=(\S+)`)

// StaleRole tells whether the daemon takes itself for a voter, as its node database said when it started, and is none. Then it asks
// its own libdqlite who leads, which only tells voters, and fails whatever needs to know, `lxc cluster list` above all, until it is
// started again: see docs/architecture.md, "LXD's own failing starts".
func (m *Member) StaleRole(ctx context.Context) bool {
	d := m.lastDaemon()
	log, err := os.ReadFile(m.LogFile())
	if d == nil || err != nil || d.said > int64(len(log)) {
		return false
	}

	started := startedAs.FindSubmatch(log[d.said:])
	if started == nil || string(started[2]) != "voter" {
		return false
	}

	rows, err := m.localSQL(ctx, fmt.Sprintf("SELECT 1 FROM raft_nodes WHERE id = %s AND role <> 0", started[1]))
	return err == nil && len(rows) == 1
}

// startStaleAgain starts a daemon again that has a stale role, and no other.
func (m *Member) startStaleAgain(ctx context.Context) error {
	if !m.StaleRole(ctx) {
		return nil
	}

	m.cluster.logf("%s started again: it takes itself for a voter, and is none any more", m.Name)
	m.Kill()
	return m.Start(ctx)
}
