// SPDX-License-Identifier: AGPL-3.0-only

package cluster

import (
	"context"
	"os"

	"github.com/lxd-recover/lxd-recover/tests/netns"
)

// Place is a machine for a member's daemon: see package machines.
type Place struct {
	Enter []string // the command line that enters it, but for the PID namespace; the daemon's own is added to it
	PIDs  *os.File // the PID namespace of its processes
}

// PutInto says where the member's daemon is started from now on.
func (m *Member) PutInto(p *Place) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.place = p
}

// Namespace is the member's network.
func (m *Member) Namespace() *netns.Namespace { return m.ns }

// Plug makes one more place on the members' network, with an address such as 10.77.0.100/16. It is the caller's to close.
func (c *Cluster) Plug(ctx context.Context, cidr string) (*netns.Namespace, error) {
	return c.sw.Plug(ctx, cidr)
}
