// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// cutOffNames are what is in LXD's directory when a run was cut off, each whatever it is cut off by.
var cutOffNames = []string{stoppedName, swapdir.PlanFile, stagingName}

// cutOff tells whether a run was cut off in this directory, and nobody is at work there now.
func (d directory) cutOff() bool {
	if !d.cutOffHere() || exists(d.join(openRunName)) {
		return false
	}

	unlock, err := d.lock(unix.LOCK_SH)
	if err != nil {
		return false
	}

	unlock()
	return d.cutOffHere() // it may have ended in between
}

// cutOffHere tells whether there is anything that a run leaves which was cut off, or which is at work.
func (d directory) cutOffHere() bool {
	return slices.ContainsFunc(cutOffNames, func(name string) bool { return exists(d.join(name)) })
}

// CutOff says in one sentence that a run was cut off in an LXD directory and what to do; empty where none was. It changes nothing, and who
// may not look there is told nothing. An empty path is this machine's LXD, see FindLXD.
func CutOff(path string) string {
	if path == "" {
		found, err := FindLXD()
		if err != nil {
			return ""
		}

		path = found
	}

	d := directory{path: path}
	if exists(d.join(openRunName)) {
		return d.openRunLeft()
	}

	if !d.cutOff() {
		return ""
	}

	what := "a run that was interrupted has left " + d.join(stagingName)
	stopped, err := d.readStopped()
	plan, planErr := swapdir.ReadPlan(d.path)
	switch {
	case stopped != nil:
		what = stopped.String() + ", in " + path
	case err != nil:
		return err.Error()
	case plan != nil:
		what = fmt.Sprintf("the %s of %s was interrupted at the exchange, in %s", plan.Purpose, plan.Created.Format(time.RFC3339), path)
	case planErr != nil:
		return planErr.Error()
	}

	return what + product.Text(": `lxd-recover resume` finishes what is left, and starts LXD again if that run had stopped it")
}

// openRunLeft says which run over the whole cluster was cut off here; empty if it is at work.
func (d directory) openRunLeft() string {
	unlock, err := d.lock(unix.LOCK_SH)
	if err != nil {
		return ""
	}

	unlock()
	open, err := d.readOpenRun()
	switch {
	case err != nil:
		return err.Error()
	case open == nil: // it has ended in between
		return ""
	}

	return OpenRunText(open)
}

// ResumeAtBoot is Resume when the machine starts, for each LXD directory in which a run was cut off: by the power, in most cases. A member's part in a run
// over the whole cluster is taken back, unless that is past PhaseArmed: then it is an error that names the run. A run that is at work finishes what
// there is by itself. told gets the reports.
func ResumeAtBoot(ctx context.Context, opts ResumeOptions, told func(dir string, report *ResumeReport)) error {
	var errs []error
	opts.Later = true
	for _, path := range product.Places() {
		d := directory{path: path}
		resume := Resume
		switch {
		case exists(d.join(openRunName)):
			resume = withdrawAtBoot
		case !d.cutOff():
			continue
		}

		opts.LXDDir = path
		report, err := resume(ctx, opts)
		if report != nil {
			told(path, report)
		}

		if err != nil && !errors.Is(err, ErrBusy) {
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
		}
	}

	return errors.Join(errs...)
}
