// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
)

// lookAtNeeds says in the report what LXD needs to start on the database that is exported, and lacks. Members that the database does
// not know, and addresses that no member can have, are reasons not to write the tarball.
func (ex *exporter) lookAtNeeds(ctx context.Context, db *globaldb.DB) error {
	err := ex.checkMembers(ctx, db)
	if err != nil {
		return err
	}

	n, err := ex.dir.needsOf(ctx, db, ex.report.Members, ex.report.Source.ID)
	if err != nil {
		return err
	}

	n.facts.Nodes = ex.rows
	n.withAddresses(ctx, nodedb.Update{})
	if ex.opts.At > 0 {
		n.lastRan(ctx, ex.log)
		n.withPatches(ctx)
	}

	ex.report.LXD, ex.report.Findings = n.facts.Installed, preflight.Check(n.facts)
	return refuseNeeds(ex.report.Findings, map[string]bool{"--address-absent": true, "--newer-schema": true})
}
