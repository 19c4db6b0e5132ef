// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
)

// needs says what LXD needs to start here. node and found are what the two databases tell, nil where they cannot be read.
func (r *StatusReport) needs(ctx context.Context, dir directory, node *nodedb.Node, found *needs) error {
	if found == nil {
		var members member.List
		self := uint64(0)
		if node != nil {
			members, self = node.Members, node.Self.ID
		}

		var err error
		found, err = dir.needsOf(ctx, nil, members, self)
		if err != nil {
			return err
		}
	}

	r.LXD = found.facts.Installed
	alone := len(found.facts.Members) == 1 && found.facts.Members[0].Address == nodedb.StandaloneAddress
	if r.Standalone || alone {
		found.standalone()
	}

	found.withAddresses(ctx, nodedb.Update{})
	r.Findings = preflight.Check(found.facts)
	for _, f := range r.Findings {
		if f.Fatal {
			r.problem("%s", f)
		}
	}

	return ctx.Err()
}

// standalone leaves out what only members of a cluster have: other members, and addresses at which those reach them.
func (n *needs) standalone() {
	n.facts.Members, n.facts.Nodes, n.facts.InForce = nil, nil, nil
}
