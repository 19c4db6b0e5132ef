// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
)

// needs says what LXD needs to start here, and lacks. node and nodes are what the two databases tell, as far as they can be read.
func (r *StatusReport) needs(ctx context.Context, dir directory, node *nodedb.Node, nodes tableNodes) error {
	if nodes.patchErr != nil {
		r.problem("%v", nodes.patchErr)
	}

	found := nodes.needs
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

	if r.Member != nil {
		found.facts.Self = r.Member.ID // it may be known by its certificate only
	}

	r.LXD, found.facts.Nodes = found.facts.Installed, nodes.after
	if r.Standalone || len(found.facts.Members) == 1 && found.facts.Members[0].Address == nodedb.StandaloneAddress {
		found.standalone()
	}

	found.withAddresses(ctx, nodedb.Update{})
	r.Findings = preflight.Check(found.facts)
	for i, f := range r.Findings {
		if f.Code == preflight.NoRow && f.Fatal && nodes.log != nil {
			f.Advice = beforeDeletion(ctx, nodes.log, found.facts.Self)
			r.Findings[i] = f
		}

		if f.Fatal || aboutMembers[f.Code] {
			r.problem("%s", f)
		} else {
			r.Warnings = append(r.Warnings, f.String())
		}
	}

	return ctx.Err()
}

// standalone leaves out what only members of a cluster have: other members, and addresses at which those reach them.
func (n *needs) standalone() {
	n.facts.Members, n.facts.Nodes, n.facts.InForce = nil, nil, nil
}
