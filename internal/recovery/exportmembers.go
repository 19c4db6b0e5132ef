// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// notePatch has the manifest tell what is pending in this member's patch.global.sql.
func (ex *exporter) notePatch() error {
	pending, err := readPatch(ex.dir.database())
	if err != nil {
		return err
	}

	ex.manifest.Patch = bundle.Patch{Own: pending.digest(), Versions: pending.versions}
	if pending.own != "" {
		ex.report.Warnings = append(ex.report.Warnings, product.Sprintf("%s here has %s: it is not in the tarball. An import on this member carries it over, "+
			"and LXD runs it when it next starts here", patchName, pendingPatch{own: pending.own}))
	}

	return nil
}

// noteOwnEdit says that the member list was edited by LXD's own command, which keeps nothing: a shell that remembers LXD's own path runs
// that one silently. Its entry has term 1; ours has that of a fence. With --passthrough a copy is kept.
func (ex *exporter) noteOwnEdit() error {
	if ex.source != "" || !ex.log.Edited || ex.log.LastTerm != 1 {
		return nil
	}

	kept, err := ex.dir.kept()
	if err != nil || len(kept) > 0 && kept[0].Purpose == purposeEdit {
		return err
	}

	ex.report.Warnings = append(ex.report.Warnings, product.Sprintf("the last entry, index %d, is of LXD's own command, and not of "+
		"`lxd-recover cluster edit`: lxd-recover has kept no database from before it, so `lxd-recover global-db-rollback` cannot go back to that",
		ex.log.LastIndex))
	return nil
}

// checkMembers refuses a database on which the LXD of a member would not start.
func (ex *exporter) checkMembers(ctx context.Context, db *globaldb.DB) error {
	what := "the global database in " + ex.global()
	pending, err := readPatch(ex.dir.database())
	if err != nil {
		return err
	}

	rows, err := patchedRows(ctx, db, pending, what)
	var failed *Refusal
	if errors.As(err, &failed) { // the patch is not exported: an import says so here
		rows, err = nodeRows(ctx, db)
	}

	ex.rows = rows
	if err != nil || ex.opts.UnknownMembers {
		return err
	}

	facts := preflight.Facts{Self: ex.report.Source.ID, Members: ex.report.Members, Nodes: rows}
	return checkKnown(facts, func(id uint64) string {
		advice := beforeDeletion(ctx, ex.log, id)
		if advice == "" && id != ex.report.Source.ID {
			advice = "If it is no member any more, `lxd-recover cluster edit` can leave it out of the list"
		}

		return advice
	})
}
