package recovery

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// RollbackOptions say which kept database to put back.
type RollbackOptions struct {
	LXDDir  string
	Kept    string // name of the kept directory; empty: the newest
	Version string // of lxd-recover, for the report
	NoStart bool
	Timeout time.Duration

	// Confirm is shown what is about to happen before LXD is stopped; an error ends the rollback with nothing changed.
	Confirm func(*RollbackReport) error

	Progress Progress
}

// RollbackReport is what a rollback will do, or did.
type RollbackReport struct {
	Restored    KeptDatabase     `json:"backup" yaml:"backup"`         // what is put back
	Address     string           `json:"address" yaml:"address"`       // of this member, after
	Local       *bundle.Position `json:"local_raft" yaml:"local_raft"` // last entry of the database that is replaced; null where it cannot be read
	Raft        *bundle.Position `json:"raft" yaml:"raft"`             // last entry of the one that is put back
	Kept        string           `json:"kept" yaml:"kept"`             // directory that holds the replaced database
	Warnings    []string         `json:"warnings" yaml:"warnings"`
	Daemon      string           `json:"daemon" yaml:"daemon"`
	NothingToDo bool             `json:"already" yaml:"already"` // the last change was a rollback: nothing was done
	Done        bool             `json:"done" yaml:"done"`
	Started     bool             `json:"started" yaml:"started"`
	Ready       bool             `json:"ready" yaml:"ready"`
}

// Rollback puts a kept database directory back, all or nothing, and keeps the one it replaces. A rollback that was
// interrupted behind its exchange is completed, and that is all that the next one does. Where the last change was a rollback
// already, another one without a name does nothing, so that running it again is harmless: undoing it takes the name.
func Rollback(ctx context.Context, opts RollbackOptions) (*RollbackReport, error) {
	dir, unlock, err := openToChange(opts.LXDDir)
	if err != nil {
		return nil, err
	}

	defer unlock()

	report := &RollbackReport{Warnings: []string{}}
	plan, state, err := swapdir.Finish(dir.path)
	if err != nil {
		return nil, err
	}

	dir.placeReport()

	if plan != nil && state == swapdir.Exchanged {
		done := fmt.Sprintf("finished the %s of %s, which had been interrupted", plan.Purpose, plan.Created.Format(time.RFC3339))
		report.Warnings = append(report.Warnings, done)
		if plan.Purpose == purposeRollback && (opts.Kept == "" || filepath.Base(opts.Kept) == plan.Staged) {
			report.Restored.Name, report.Kept, report.Done = plan.Staged, dir.join(plan.Keep), true
			return report, report.resume(ctx, dir, opts)
		}
	}

	err = swapdir.Check(dir.path, databaseName)
	if err != nil {
		return nil, err
	}

	report.Restored, err = dir.chooseKept(opts.Kept)
	if err != nil {
		return nil, err
	}

	if opts.Kept == "" && report.Restored.Purpose == purposeRollback {
		report.NothingToDo = true
		return report, report.resume(ctx, dir, opts)
	}

	members, err := describeRollback(ctx, dir, opts.Progress, report)
	if err != nil {
		return nil, err
	}

	status, err := daemon.Inspect(ctx, dir.path)
	if err != nil {
		return nil, err
	}

	report.Daemon = status.String()
	err = stoppable(status)
	if err != nil {
		return nil, err
	}

	if opts.Confirm != nil {
		err = opts.Confirm(report)
		if err != nil {
			return nil, err
		}
	}

	err = swapdir.SyncTree(dir.join(report.Restored.Name)) // again when LXD is down, but then there is little left to write
	if err != nil {
		return nil, err
	}

	// Somebody may have started LXD while the question was open.
	status, err = daemon.Inspect(ctx, dir.path)
	if err != nil {
		return nil, err
	}

	cycle := &daemonCycle{purpose: purposeRollback, dir: dir, status: status, noStart: opts.NoStart, timeout: opts.Timeout, progress: opts.Progress}
	err = cycle.stop(ctx)
	if err != nil {
		return nil, err
	}

	reporter := newReporter(dir, purposeRollback, opts.Version)
	err = exchangeBack(dir, report, reporter)
	if err != nil && report.Done {
		err = fmt.Errorf("the old database is back in place, but %w; run the rollback again to finish it", err)
	}

	if err != nil {
		return report, errors.Join(err, cycle.startAfterFailure(ctx))
	}

	opts.Progress.step("The old database is back; the replaced one is kept in " + report.Kept)
	result, err := cycle.start(ctx, members)
	report.Started, report.Ready = result.started, result.ready
	report.Warnings = append(report.Warnings, result.warnings...)
	report.Warnings = append(report.Warnings, reporter.finish(report, err)...)
	return report, err
}

// resume starts an LXD that a rollback had stopped which was interrupted behind its exchange.
func (r *RollbackReport) resume(ctx context.Context, dir directory, opts RollbackOptions) error {
	cycle := &daemonCycle{dir: dir, noStart: opts.NoStart, timeout: opts.Timeout, progress: opts.Progress}
	result, err := cycle.resume(ctx, nil)
	r.Started, r.Ready = result.started, result.ready
	r.Warnings = append(r.Warnings, result.warnings...)
	return err
}

// exchangeBack swaps the live database and the backup.
func exchangeBack(dir directory, report *RollbackReport, reporter *reporter) error {
	unlock, err := lockDqlite(dir.global())
	if err != nil {
		return err
	}

	defer unlock()

	keep, err := dir.freeName("database.before-rollback-" + stamp(time.Now()))
	if err != nil {
		return err
	}

	report.Kept = dir.join(keep)
	err = swapdir.SyncTree(dir.join(report.Restored.Name))
	if err != nil {
		return err
	}

	exchanged := *report
	exchanged.Done = true
	reporter.prepare(keep, exchanged)
	report.Done, err = exchange(dir, swapdir.Plan{Purpose: purposeRollback, Live: databaseName, Staged: report.Restored.Name, Keep: keep})
	reporter.exchanged(report.Done, err)
	return err
}

// backup finds a kept directory by name, or the newest.
func (d directory) chooseKept(name string) (KeptDatabase, error) {
	if name != "" {
		return d.findKept(name)
	}

	all, err := d.kept()
	if err != nil {
		return KeptDatabase{}, err
	}

	if len(all) == 0 {
		return KeptDatabase{}, fmt.Errorf("no database is kept in %s: there is nothing to roll back to", d.path)
	}

	return all[0], nil
}

// describeRollback looks into both databases. The one that is put back must at least be readable; that it is damaged, as
// it may well have been before it was replaced, is a warning.
func describeRollback(ctx context.Context, dir directory, progress Progress, report *RollbackReport) (member.List, error) {
	old := dir.join(report.Restored.Name)
	node, err := nodedb.Read(ctx, old)
	if err != nil {
		return nil, err
	}

	report.Address = node.Self.Address
	log, err := readLog(ctx, filepath.Join(old, globalName), progress)
	if err != nil {
		return nil, err
	}

	report.Raft = &bundle.Position{Index: log.LastIndex, Term: log.LastTerm}
	if !log.Healthy() {
		report.Warnings = append(report.Warnings, "the database in "+old+" is damaged")
	}

	log, err = readLog(ctx, dir.global(), progress)
	if err == nil {
		report.Local = &bundle.Position{Index: log.LastIndex, Term: log.LastTerm}
	}

	return node.Members, nil
}
