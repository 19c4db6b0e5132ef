// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// removingName is what a kept database is renamed to before its files are deleted, so that one that is half deleted is never
// taken for one that could be put back.
const removingName = "database.removing"

// RemoveKeptOptions say which kept databases are not needed any more.
type RemoveKeptOptions struct {
	LXDDir string
	Names  []string // as ListKept has them

	// Confirm is shown what is about to be deleted; an error from it ends the removal with nothing changed.
	Confirm func(*RemoveKeptReport) error

	Progress Progress
}

// RemoveKeptReport is what a removal will delete, or has deleted.
type RemoveKeptReport struct {
	Removed []KeptDetail `json:"removed" yaml:"removed"`
	Size    int64        `json:"size" yaml:"size"` // of those, in bytes
	Left    Space        `json:"left" yaml:"left"` // of those that stay
}

// RemoveKept deletes kept databases for good. All names are checked before the first one is touched: a name that is no kept
// database of this member, or one that an interrupted run has still to do with, ends it with nothing changed.
func RemoveKept(ctx context.Context, opts RemoveKeptOptions) (*RemoveKeptReport, error) {
	dir, unlock, err := openToChange(opts.LXDDir)
	if err != nil {
		return nil, err
	}

	defer unlock()

	report, err := dir.chooseRemovals(ctx, opts)
	if err != nil {
		return nil, err
	}

	if opts.Confirm != nil {
		err = opts.Confirm(report)
		if err != nil {
			return nil, err
		}
	}

	err = dir.finishRemoving()
	if err != nil {
		return nil, err
	}

	for i, b := range report.Removed {
		err = ctx.Err()
		if err == nil {
			err = dir.remove(b.Name)
		}

		if err != nil {
			return nil, notAllRemoved(i, len(report.Removed), b.Name, err)
		}
	}

	report.Left = dir.space()
	return report, nil
}

// notAllRemoved says what was removed before an error. That is not wrapped: an interruption would be taken for one with nothing changed.
func notAllRemoved(done int, all int, next string, err error) error {
	return errors.New(fmt.Sprintf("%d of %d kept databases are removed, not %s: ", done, all, next) + err.Error())
}

// chooseRemovals finds what is to be deleted, and refuses what must stay.
func (d directory) chooseRemovals(ctx context.Context, opts RemoveKeptOptions) (*RemoveKeptReport, error) {
	plan, err := swapdir.ReadPlan(d.path)
	if err != nil {
		return nil, err
	}

	report := &RemoveKeptReport{Removed: []KeptDetail{}}
	for _, name := range opts.Names {
		b, err := d.findKept(name)
		if err != nil {
			return nil, err
		}

		// Between its two renames an interrupted rollback has the database it replaced under the name of the one it put back.
		if plan != nil && slices.Contains([]string{plan.Live, plan.Staged, plan.Keep}, b.Name) {
			return nil, fmt.Errorf("the %s of %s, which was interrupted, has %s in its plan: `lxd-recover resume` finishes it, then see what is kept",
				plan.Purpose, plan.Created.Format(time.RFC3339), b.Name)
		}

		holders, err := daemon.Holders(d.join(b.Name))
		if err != nil {
			return nil, fmt.Errorf("look for processes that use %s: %w", d.join(b.Name), err)
		}

		if len(holders) > 0 {
			return nil, fmt.Errorf("%s has %s open: stop it first", holders[0], d.join(b.Name))
		}

		if slices.ContainsFunc(report.Removed, func(r KeptDetail) bool { return r.Name == b.Name }) {
			continue
		}

		detail, err := d.detail(ctx, b, opts.Progress)
		if err != nil {
			return nil, err
		}

		report.Removed = append(report.Removed, detail)
		report.Size += b.Size
	}

	return report, nil
}

// remove deletes one kept database with the report of the run that replaced it.
func (d directory) remove(name string) error {
	err := os.Remove(d.join(name + reportSuffix))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}

	err = os.Rename(d.join(name), d.join(removingName))
	if err != nil {
		return err
	}

	err = swapdir.SyncDir(d.path)
	if err != nil {
		return err
	}

	return d.finishRemoving()
}

// finishRemoving deletes what remove has renamed: in this run, or in one that was interrupted.
func (d directory) finishRemoving() error { return os.RemoveAll(d.join(removingName)) }
