// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
)

// describeNeeds says in the report what LXD here needs and lacks. This member's own log was compared with the tarball's.
func (im *importer) describeNeeds(ctx context.Context) error {
	n := im.needs
	n.facts.Nodes = im.rows
	n.withAddresses(ctx, im.update(im.node))
	if n.facts.Installed.Schema == 0 && im.branching != nil {
		n.lastRan(ctx, im.branching.local)
	}

	manifest := im.tarball.Manifest
	if len(im.report.Discarded) > 0 || manifest != nil && manifest.Raft.Last != (bundle.Position{}) || n.olderSchema() {
		n.withPatches(ctx)
	}

	im.report.LXD, im.report.Findings = n.facts.Installed, preflight.Check(n.facts)
	im.report.warn(warningsOf(im.report.Findings)...)
	return ctx.Err()
}

// checkNeeds refuses an import after which LXD would not start here.
func (im *importer) checkNeeds() error {
	return refuseNeeds(im.report.Findings, map[string]bool{"--address-absent": im.opts.AddressAbsent, "--newer-schema": im.opts.NewerSchema})
}
