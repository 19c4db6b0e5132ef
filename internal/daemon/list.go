// SPDX-License-Identifier: AGPL-3.0-only

package daemon

import (
	"context"
	"path/filepath"
	"slices"
	"strings"

	lxd "github.com/canonical/lxd/client"
)

// ListedMember is a member of the cluster as one member's LXD lists it, which is what `lxc cluster list` shows there. It is what LXD
// knows from its heartbeats, and says nothing of that member's own database.
type ListedMember struct {
	Name    string `json:"name" yaml:"name"`
	Address string `json:"address" yaml:"address"`
	Status  string `json:"status" yaml:"status"` // LXD's word: Online, Offline, Evacuated, Blocked
	Message string `json:"message,omitempty" yaml:"message,omitempty"`
	Leader  bool   `json:"leader" yaml:"leader"` // it leads raft, as far as this LXD knows
}

// leaderRole is what LXD calls the member that leads raft among a member's roles.
const leaderRole = "database-leader"

// ListMembers asks the LXD in a directory for the members of its cluster: none on a standalone server. The call would start an LXD that
// systemd or snapd start on demand, so it is only for one that runs, see Inspect. An LXD without a leader does not answer: ctx bounds
// the wait.
func ListMembers(ctx context.Context, lxdDir string) ([]ListedMember, error) {
	return listMembers(ctx, filepath.Join(lxdDir, socketName))
}

func listMembers(ctx context.Context, socket string) ([]ListedMember, error) {
	server, err := lxd.ConnectLXDUnixWithContext(ctx, socket, nil)
	if err != nil {
		return nil, err
	}

	// A standalone server has no list of members to be asked for. It, too, answers only when it has its global database open.
	if !server.IsClustered() {
		return nil, nil
	}

	members, err := server.GetClusterMembers()
	if err != nil {
		return nil, err
	}

	list := []ListedMember{}
	for _, m := range members {
		list = append(list, ListedMember{Name: m.ServerName, Address: strings.TrimPrefix(m.URL, "https://"), Status: m.Status, Message: m.Message,
			Leader: slices.Contains(m.Roles, leaderRole)})
	}

	return list, nil
}
