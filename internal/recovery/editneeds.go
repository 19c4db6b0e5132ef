// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"

	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// checkAddresses refuses addresses that no member can have, and a new one of this member that this machine does not have.
func (ed *editor) checkAddresses(ctx context.Context, edited member.List) error {
	inForce := map[uint64]string{}
	for _, m := range ed.node.Members {
		inForce[m.ID] = m.Address
	}

	for id, address := range ed.needs.facts.InForce { // of an edit of LXD's own the node database has what has not been in force yet
		inForce[id] = address
	}

	err := edited.ValidateNew(inForce)
	if err != nil {
		return err
	}

	return refuseNeeds(ed.findings(ctx, edited), map[string]bool{"--address-absent": ed.opts.AddressAbsent, "--newer-schema": true})
}

// findings are what LXD needs, and lacks here, with another member list.
func (ed *editor) findings(ctx context.Context, members member.List) []preflight.Finding {
	self, _ := members.ByID(ed.node.Self.ID)
	ed.needs.facts.Members, ed.needs.facts.Nodes = members, ed.rows
	ed.needs.withAddresses(ctx, nodeUpdate(ed.node, members, self, ed.report.Raft, formerAddresses(ed.node, ed.nodes, self.ID)))
	return preflight.Check(ed.needs.facts)
}

// describeNeeds looks whether machines are at the other members' new addresses, and says in the report what LXD needs, and lacks here.
func (ed *editor) describeNeeds(ctx context.Context) error {
	err := ed.askNewAddresses(ctx)
	if err != nil {
		return err
	}

	ed.report.LXD, ed.report.Findings = ed.needs.facts.Installed, ed.findings(ctx, ed.members)
	ed.report.warn(warningsOf(ed.report.Findings)...)
	return ctx.Err()
}

// askNewAddresses finds out whether a machine answers at the other members' new addresses. A daemon of this cluster that does is one that
// still runs.
func (ed *editor) askNewAddresses(ctx context.Context) error {
	var asked member.List
	var addresses []string
	for _, m := range ed.members {
		old, _ := ed.node.Members.ByID(m.ID)
		if m.ID != ed.node.Self.ID && old.Address != m.Address {
			asked = append(asked, m)
			addresses = append(addresses, m.Address)
		}
	}

	if len(asked) == 0 {
		return nil
	}

	ed.opts.Progress.step("Looking for machines at the new addresses")
	found, err := daemon.Reachable(ctx, ed.dir.path, addresses)
	if err != nil {
		return err
	}

	for i, m := range asked {
		switch {
		case found[i] == daemon.Silent:
			ed.needs.facts.Silent = append(ed.needs.facts.Silent, preflight.Silent{Member: m.Name, Address: m.Address})
		case found[i] == daemon.Answers && !ed.opts.BesideCluster:
			return &Refusal{Code: "working-cluster", Member: m.Name, Flag: "--beside-cluster",
				Reason: product.Sprintf("LXD of this cluster runs at %s, the new address of %s: what it writes from now on would be lost. "+
					"Stop LXD on all members first", m.Address, m.Name)}
		}
	}

	return nil
}

// warnOfOwn says what LXD needs, and lacks, after an edit of LXD's own, which takes any address.
func (ed *editor) warnOfOwn(ctx context.Context) {
	node, err := nodedb.Read(ctx, ed.dir.database())
	if err != nil {
		return
	}

	n := ed.needs
	n.facts.Members, n.facts.Nodes = node.Members, ed.rows
	n.withAddresses(ctx, nodedb.Update{})
	ed.report.LXD, ed.report.Findings = n.facts.Installed, preflight.Check(n.facts)
	ed.report.warn(texts(ed.report.Findings)...)
}
