// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v3"

	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// States of a member's identity that was put in place by RestoreIdentity.
const (
	IdentityUnfinished = "unfinished"  // the restore was cut off
	IdentityNoDatabase = "no-database" // it is in place, and nothing was imported since: LXD is kept from being started
)

// RestoredIdentity is how a restore of a member's identity stands that is not the end of it.
type RestoredIdentity struct {
	State  string         `json:"state" yaml:"state"`
	Member *InspectMember `json:"member" yaml:"member"` // null if it cannot be told
	Backup string         `json:"backup" yaml:"backup"` // file that it was restored from; empty if nothing was put in place yet
	Next   string         `json:"next" yaml:"next"`     // the command to go on with
}

// identityBegun is a restore that was cut off, nil if there is none.
func (d directory) identityBegun() *RestoredIdentity {
	again := "lxd-recover global-db-identity restore"
	data, err := newfile.Read(d.join(identityNote))
	var note placingNote
	if err == nil {
		err = yaml.Unmarshal(data, &note)
	}

	switch {
	case err == nil:
		return &RestoredIdentity{State: IdentityUnfinished, Member: &note.Report.Member, Backup: note.File, Next: again + " " + note.File}
	case !errors.Is(err, os.ErrNotExist) || !gone(d.join(identityStaging)):
		return &RestoredIdentity{State: IdentityUnfinished, Next: again}
	}

	return nil
}

// text says what was cut off, and what finishes it.
func (r *RestoredIdentity) text(d directory) string {
	if r.Member == nil {
		return fmt.Sprintf("%s: what an interrupted `lxd-recover global-db-identity restore` had prepared. Nothing of it is in place: "+
			"run it again, which removes this", d.join(identityStaging))
	}

	return product.Sprintf("the restore of the identity of %s was interrupted, and is not finished: `lxd-recover global-db-identity restore` "+
		"with the same backup, %s, finishes it. Do not start LXD before", r.Member.Name, r.Backup)
}

// identity adds how a restore of this member's identity stands, if that is not all.
func (r *StatusReport) identity(d directory) {
	begun := d.identityBegun()
	if begun != nil {
		r.Identity, r.Pending = begun, append(r.Pending, begun.text(d))
		return
	}

	if awaitsDatabase(checkGlobal(d.global())) {
		r.Identity = &RestoredIdentity{State: IdentityNoDatabase, Next: "lxd-recover cluster export-db --source BACKUP"}
		return
	}

	if barred(d.global()) {
		r.problem(product.Text("%s keeps LXD from being started, as it was placed there with this member's identity, when there was no database. "+
			"Somebody has put one there by hand since: `lxd-recover global-db-import` of a recovery tarball takes its place"),
			filepath.Join(d.global(), barName))
	}
}

// statusBegun is the status of a machine that has no database, as a restore of its identity was cut off; nil if it is not such a one.
func statusBegun(ctx context.Context, lxdDir string) (*StatusReport, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}

	dirs := []string{lxdDir}
	if lxdDir == "" {
		dirs = product.Places()
	}

	for _, path := range dirs {
		d := directory{path}
		if d.identityBegun() == nil || !gone(d.database()) {
			continue
		}

		report := newStatus(d)
		err := report.inspectDaemon(ctx, d)
		if err != nil {
			return nil, err
		}

		report.Cluster, _ = d.clusterCertificate()
		report.LXD = preflight.Installed(ctx, d.path)
		return report, report.pending(d)
	}

	return nil, nil
}
