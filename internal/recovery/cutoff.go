// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// openRunName is the file in LXD's directory that says that this member is part of a run over the whole cluster, which is under way or
// was cut off. What such a run has left is finished or taken back on all members together: nothing here starts LXD, or removes anything,
// as long as it is there. No run over the whole cluster exists yet.
const openRunName = "database.run.yaml"

// cutOffNames are what is in LXD's directory when a run was cut off, each whatever it is cut off by.
var cutOffNames = []string{stoppedName, swapdir.PlanFile, stagingName}

// cutOff tells whether a run was cut off in this directory, and nobody is at work there now.
func (d directory) cutOff() bool {
	found := false
	for _, name := range cutOffNames {
		found = found || exists(d.join(name))
	}

	if !found || exists(d.join(openRunName)) {
		return false
	}

	unlock, err := d.lock(unix.LOCK_SH)
	if err != nil {
		return false
	}

	unlock()
	for _, name := range cutOffNames { // it may have ended in between
		if exists(d.join(name)) {
			return true
		}
	}

	return false
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

	return what + ": `lxd-recover resume` finishes what is left, and starts LXD again if that run had stopped it"
}

// ResumeAtBoot is Resume when the machine starts, for each LXD directory in which a run was cut off: by the power, in most cases. A run that
// is at work finishes what there is by itself. told gets the reports.
func ResumeAtBoot(ctx context.Context, opts ResumeOptions, told func(dir string, report *ResumeReport)) error {
	var errs []error
	opts.Later = true
	for _, path := range lxdDirs() {
		if !(directory{path: path}).cutOff() {
			continue
		}

		opts.LXDDir = path
		report, err := Resume(ctx, opts)
		if report != nil {
			told(path, report)
		}

		if err != nil && !errors.Is(err, errBusy) {
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
		}
	}

	return errors.Join(errs...)
}
