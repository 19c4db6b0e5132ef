// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// checkMembers looks at what the tarball's database knows of the members, once what is pending here has run on it. what names that
// database in an error.
func (im *importer) checkMembers(ctx context.Context, db *globaldb.DB, what string) error {
	var err error
	im.nodes, err = db.Nodes(ctx)
	if err != nil {
		return replayError(what, err)
	}

	var dropped string
	im.pending, dropped, err = im.dir.takePatch(im.opts.DropPatch)
	im.pending.added = ended(im.opts.SQL)
	if err != nil {
		return err
	}

	if dropped != "" {
		im.report.warn(dropped)
	}

	err = im.onePatch()
	if err != nil {
		return err
	}

	im.rows, err = patchedRows(ctx, db, im.pending, what)
	if err != nil {
		return err
	}

	im.needs, err = im.dir.needsOf(ctx, db, im.tarball.Members, im.report.Member.ID)
	if err != nil {
		return replayError(what, err)
	}

	facts := preflight.Facts{Self: im.report.Member.ID, Members: im.tarball.Members, Nodes: im.rows}
	if !im.opts.UnknownMembers {
		err = checkKnown(facts, func(uint64) string {
			return "Where it was exported, `lxd-recover cluster export-db` says more now, " +
				"and `lxd-recover cluster edit` can leave out what is no member any more"
		})
	}

	im.report.warn(versionWarnings(facts)...)
	return err
}

// onePatch takes over what the tarball says of the exporting member's patch, and refuses a second one: each would be written for a database
// without the other one, and LXD runs both, in the order in which the members happen to start.
func (im *importer) onePatch() error {
	manifest := im.tarball.Manifest
	if manifest == nil {
		return nil
	}

	for line := range strings.Lines(manifest.Patch.Versions) {
		statement := strings.TrimRight(line, "\n")
		if versionLine.MatchString(statement) && !strings.Contains(im.pending.versions, statement) {
			im.pending.versions += statement + "\n"
		}
	}

	if im.pending.own == "" || manifest.Patch.Own == "" || manifest.Source.ID == im.report.Member.ID {
		return nil
	}

	return &Refusal{Code: "two-patches", Member: im.report.Member.Name, Flag: dropPatchFlag,
		Reason: product.Sprintf("SQL is pending in %s here, and on %s, which the tarball was exported from: LXD would run both, "+
			"in the order in which the members start. Leave it to one of them: `lxd-recover global-db-patch --list` shows what is pending, "+
			"--remove removes it", patchName, manifest.Source.Name)}
}
