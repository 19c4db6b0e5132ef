// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"fmt"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// runOptions are what the options of every run that replaces a database have in common.
type runOptions struct {
	purpose  string // import, rollback, edit or repair
	version  string // of lxd-recover
	noStart  bool   // leave LXD stopped
	timeout  time.Duration
	progress Progress

	// dryRun changes nothing: what an interrupted run left to be finished is an error then.
	dryRun bool

	part *Part // of a run over the whole cluster that this one belongs to; nil if there is none
}

// run is a run under way that replaces this member's database: nobody else works on LXD's directory meanwhile, and nothing that
// an interrupted run left is in its way.
type run struct {
	dir      directory
	common   runOptions
	reporter *reporter
	later    bool // see daemonCycle

	finished *swapdir.Plan // of an interrupted run that was finished first; nil if there was none
}

// runReport is what the reports of all runs can do.
type runReport interface {
	// daemonIs takes over what became of LXD.
	daemonIs(result startResult)

	// warn adds warnings.
	warn(texts ...string)
}

// beginRun opens LXD's directory to change it, finishes what an interrupted run left, and makes sure that an exchange is possible.
// The returned function ends the run.
func beginRun(lxdDir string, opts runOptions) (*run, func(), error) {
	open := openToChange
	if opts.part != nil {
		open = opts.part.open
	}

	dir, unlock, err := open(lxdDir)
	if err != nil {
		return nil, nil, err
	}

	r := &run{dir: dir, common: opts, reporter: newReporter(dir, opts.purpose, opts.version)}
	err = r.begin()
	if err != nil {
		unlock()
		return nil, nil, err
	}

	return r, unlock, nil
}

func (r *run) begin() error {
	if r.common.dryRun {
		plan, err := swapdir.ReadPlan(r.dir.path)
		if err != nil {
			return err
		}

		if plan != nil {
			return fmt.Errorf("an interrupted %s is to be finished first: run it again, or any import without --dry-run, or `lxd-recover resume`", plan.Purpose)
		}
	}

	var err error
	r.finished, err = r.dir.finishInterrupted()
	if err != nil {
		return err
	}

	return r.dir.exchangeable(databaseName)
}

// tellFinished says in a report which interrupted run was finished first.
func (r *run) tellFinished(report runReport) {
	if r.finished != nil {
		report.warn(r.dir.finishedText(r.finished))
	}
}

// unstageUnless removes what was staged in vain, unless it has taken the place of the live database by then.
func (r *run) unstageUnless(done *bool) {
	if !*done {
		r.dir.unstage()
	}
}

// cycle stops and starts LXD for this run. status is how it stands now; nil if only what an earlier run has stopped is to be
// started.
func (r *run) cycle(status *daemon.Status) *daemonCycle {
	return &daemonCycle{
		purpose: r.common.purpose, dir: r.dir, status: status, noStart: r.common.noStart, later: r.later, timeout: r.common.timeout,
		progress: r.common.progress,
	}
}

// resume starts an LXD that an earlier run had stopped, and that was killed before it could start it again. members may be nil, they
// are for messages only.
func (r *run) resume(ctx context.Context, members member.List, report runReport) error {
	result, err := r.cycle(nil).resume(ctx, members)
	report.daemonIs(result)
	return err
}

// start starts LXD again after the exchange.
func (r *run) start(ctx context.Context, cycle *daemonCycle, members member.List, report runReport) error {
	result, err := cycle.start(ctx, members)
	report.daemonIs(result)
	return err
}

// keepReport writes the report of a run that has ended beside the database that it replaced.
func (r *run) keepReport(report runReport, err error) { report.warn(r.reporter.finish(report, err)...) }

// idle is the cycle of a run that need not stop LXD, as it stands now, but may start it.
func (r *run) idle(ctx context.Context) (*daemonCycle, error) {
	status, err := daemon.Inspect(ctx, r.dir.path)
	if err != nil {
		return nil, err
	}

	cycle := r.cycle(status)
	_, err = cycle.adopt(ctx)
	return cycle, err
}

// stop stops LXD, as it stands now, for the exchange.
func (r *run) stop(ctx context.Context) (*daemonCycle, error) {
	status, err := daemon.Inspect(ctx, r.dir.path)
	if err != nil {
		return nil, err
	}

	cycle := r.cycle(status)
	return cycle, cycle.stop(ctx)
}
