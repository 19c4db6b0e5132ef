// SPDX-License-Identifier: AGPL-3.0-only

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// State is one line of `lxc cluster list`.
type State struct {
	Name    string   `json:"server_name"`
	URL     string   `json:"url"`
	Roles   []string `json:"roles"`
	Status  string   `json:"status"` // Online, Offline, …
	Message string   `json:"message"`
}

// Roles counts the members by their part in the database.
type Roles struct{ Voters, StandBys, Spares int }

// List returns `lxc cluster list` as the first running member sees it.
func (c *Cluster) List(ctx context.Context) ([]State, error) {
	m, err := c.anyRunning()
	if err != nil {
		return nil, err
	}

	return m.List(ctx)
}

// List returns `lxc cluster list` as this member sees it.
func (m *Member) List(ctx context.Context) ([]State, error) {
	out, err := m.LXC(ctx, "cluster", "list", "--format", "json")
	if err != nil {
		return nil, err
	}

	var list []State
	err = json.Unmarshal([]byte(out), &list)
	if err != nil {
		return nil, fmt.Errorf("%s: %s cluster list: %w", m.Name, m.names().Client, err)
	}

	return list, nil
}

// WaitOnline waits until the first running member lists n members as online. LXD calls a member online whose last heartbeat
// is less than 20 seconds old, so that after a quick restart it may be from before: see WaitHeartbeat.
func (c *Cluster) WaitOnline(ctx context.Context, n int) error {
	return c.waitList(ctx, fmt.Sprintf("%d members online", n), func(list []State) bool {
		return online(list) == n
	})
}

// WaitHeartbeat waits until the leader has reached every running member since it was started, at the address that the
// cluster has for it. Heartbeats come every ten seconds.
func (c *Cluster) WaitHeartbeat(ctx context.Context) error {
	return c.wait(ctx, 100*time.Millisecond, "heartbeats", func(ctx context.Context) (bool, error) {
		m, err := c.anyRunning()
		if err != nil {
			return false, err
		}

		rows, err := m.SQL(ctx, "SELECT name, heartbeat FROM nodes")
		if err != nil {
			return false, err
		}

		last := map[string]time.Time{}
		for _, row := range rows {
			last[row[0]], err = time.Parse(time.RFC3339Nano, row[1])
			if err != nil {
				return false, fmt.Errorf("heartbeat of %s: %w", row[0], err)
			}
		}

		for _, m := range c.Members() {
			if m.Running() && !last[m.Name].After(m.lastDaemon().begun) {
				return false, fmt.Errorf("%s: last one at %s", m.Name, last[m.Name])
			}
		}

		return true, nil
	})
}

// WaitRoles waits until the first running member lists exactly so many members of each role.
func (c *Cluster) WaitRoles(ctx context.Context, want Roles) error {
	return c.waitList(ctx, fmt.Sprintf("%d voters, %d stand-bys, %d spares", want.Voters, want.StandBys, want.Spares),
		func(list []State) bool { return CountRoles(list) == want })
}

// WaitFormed waits until all members are online with the roles that LXD aims at: three voters (one, if there are fewer
// members), then stand-bys up to cluster.max_standby, then spares.
func (c *Cluster) WaitFormed(ctx context.Context) error {
	n := len(c.Members())
	want := Roles{Voters: min(n, 3)}
	if n < 3 {
		want.Voters = 1
	}

	standBys := 2
	if value, ok := c.opts.Config["cluster.max_standby"]; ok {
		_, err := fmt.Sscan(value, &standBys)
		if err != nil {
			return fmt.Errorf("cluster.max_standby %q: %w", value, err)
		}
	}

	want.StandBys = min(n-want.Voters, standBys)
	want.Spares = n - want.Voters - want.StandBys
	return c.waitList(ctx, fmt.Sprintf("%d members online and %+v", n, want), func(list []State) bool {
		return online(list) == n && CountRoles(list) == want
	})
}

// waitList polls the list; what it was at the end is part of the error. A member that cannot give it as it does not know its role is
// started again, see StaleRole.
func (c *Cluster) waitList(ctx context.Context, what string, done func([]State) bool) error {
	return c.wait(ctx, 200*time.Millisecond, what, func(ctx context.Context) (bool, error) {
		m, err := c.anyRunning()
		if err != nil {
			return false, err
		}

		list, err := m.List(ctx)
		if err != nil {
			return false, errors.Join(err, m.startStaleAgain(ctx))
		}

		if done(list) {
			return true, nil
		}

		var lines []string
		for _, state := range list {
			lines = append(lines, fmt.Sprintf("%s %s %s: %s", state.Name, strings.Join(state.Roles, "+"), state.Status, state.Message))
		}

		return false, fmt.Errorf("last seen:\n%s", strings.Join(lines, "\n"))
	})
}

func online(list []State) int {
	n := 0
	for _, state := range list {
		if state.Status == "Online" {
			n++
		}
	}

	return n
}

// CountRoles counts what List returned.
func CountRoles(list []State) Roles {
	var count Roles
	for _, state := range list {
		switch {
		case slices.Contains(state.Roles, "database"):
			count.Voters++
		case slices.Contains(state.Roles, "database-standby"):
			count.StandBys++
		default:
			count.Spares++
		}
	}

	return count
}
