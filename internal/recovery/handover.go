// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// handOver has LXD's own command change the database in place, with a copy of it kept that a rollback can put back.
//
// LXD 5.21.3 and 6.2 write a recovery tarball into the database directory, and then refuse to start on this very member as
// long as it is there: it is moved out of the way.
func (ed *editor) handOver(ctx context.Context) error {
	keep, err := ed.dir.keepName(purposeEdit, time.Now())
	if err != nil {
		return err
	}

	ed.opts.Progress.step("Copying the database to " + ed.dir.join(keep))
	err = ed.copyAside(ctx, keep)
	if err != nil {
		return fmt.Errorf("keep a copy of the database in %s: %w; nothing was changed", ed.dir.join(keep), err)
	}

	ed.report.Kept = ed.dir.join(keep)
	err = ed.dir.noteTerms(ctx, ed.seen)
	if err != nil {
		return err
	}

	ed.reporter.run.ID = bundle.NewRun()
	ed.reporter.prepare(keep, ed.report)
	err = ed.opts.Own(ctx)
	ed.reporter.run.State, _ = raftState(ed.dir.global()) // without it a rollback knows less, and refuses more
	ed.reporter.prepare(keep, ed.report)
	if err != nil {
		return product.Errorf("LXD's own command failed: %w; the database as it was before is kept in %s, `lxd-recover global-db-rollback %s` puts it back",
			err, ed.report.Kept, keep)
	}

	ed.report.Done = true
	ed.warnOfOwn(ctx)
	tarball := ed.dir.loads()
	if tarball == "" {
		return nil
	}

	aside := ed.dir.join("lxd_recovery_db." + stamp(time.Now()) + ".tar.gz")
	err = unix.Renameat2(unix.AT_FDCWD, tarball, unix.AT_FDCWD, aside, unix.RENAME_NOREPLACE)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return product.Errorf("LXD's own command is done, but move %s to %s: %w: do that by hand, LXD does not start as long as it is there", tarball, aside,
			err)
	}

	ed.report.Tarball = aside
	return swapdir.SyncDir(ed.dir.path)
}

// copyAside copies the database directory, all or nothing.
func (ed *editor) copyAside(ctx context.Context, keep string) error {
	staging := ed.dir.join(stagingName)
	defer os.RemoveAll(staging)

	err := copyTree(ctx, ed.dir.database(), staging)
	if err != nil {
		return err
	}

	err = swapdir.SyncTree(staging)
	if err != nil {
		return err
	}

	err = os.Rename(staging, ed.dir.join(keep))
	if err != nil {
		return err
	}

	return swapdir.SyncDir(ed.dir.path)
}
