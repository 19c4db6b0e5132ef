// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
)

// lookAtNeeds warns of what LXD needs to start on the repaired database, and lacks. A repair changes none of it, so that is no reason to
// refuse.
func (rp *repairer) lookAtNeeds(ctx context.Context, db *globaldb.DB) error {
	n, err := rp.dir.needsOf(ctx, db, rp.members(), rp.report.Member.ID)
	if err != nil {
		return err
	}

	if rp.report.Standalone {
		n.standalone()
	}

	n.withAddresses(ctx, nodedb.Update{})
	if rp.opts.At > 0 {
		n.lastRan(ctx, rp.log)
		n.withPatches(ctx)
	}

	rp.report.LXD, rp.report.Findings = n.facts.Installed, preflight.Check(n.facts)
	rp.report.warn(texts(rp.report.Findings)...)
	return nil
}
