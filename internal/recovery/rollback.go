// SPDX-License-Identifier: AGPL-3.0-only

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
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
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
	Standalone  bool             `json:"standalone" yaml:"standalone"` // what is put back is the database of a standalone server
	Address     string           `json:"address" yaml:"address"`       // of this member, after
	Local       *bundle.Position `json:"local_raft" yaml:"local_raft"` // last entry of the database that is replaced; null where it cannot be read
	Raft        *bundle.Position `json:"raft" yaml:"raft"`             // last entry of the one that is put back
	Kept        string           `json:"kept" yaml:"kept"`             // directory that holds the database that was replaced
	Warnings    []string         `json:"warnings" yaml:"warnings"`
	Daemon      string           `json:"daemon" yaml:"daemon"`
	NothingToDo bool             `json:"already" yaml:"already"` // the last change was a rollback: nothing was done
	Done        bool             `json:"done" yaml:"done"`
	Started     bool             `json:"started" yaml:"started"`
	Ready       bool             `json:"ready" yaml:"ready"`
}

// Rollback puts a kept database directory back, all or nothing, and keeps the one it replaces. A rollback that was
// interrupted after its exchange is completed, and that is all that the next one does. If the last change was a rollback
// already, another one without a name does nothing, so that running it again is harmless: undoing it takes the name.
func Rollback(ctx context.Context, opts RollbackOptions) (*RollbackReport, error) {
	run, end, err := beginRun(opts.LXDDir, runOptions{
		purpose: purposeRollback, version: opts.Version, noStart: opts.NoStart, timeout: opts.Timeout, progress: opts.Progress,
	})
	if err != nil {
		return nil, err
	}

	defer end()

	rb := &rollback{run: run, opts: opts, report: &RollbackReport{Warnings: []string{}}}
	rb.tellFinished(rb.report)
	if rb.finishedThis() {
		return rb.report, rb.resume(ctx, nil, rb.report)
	}

	err = rb.choose()
	if err != nil {
		return nil, err
	}

	if rb.report.NothingToDo {
		return rb.report, rb.resume(ctx, nil, rb.report)
	}

	err = rb.examine(ctx)
	if err != nil {
		return nil, err
	}

	if opts.Confirm != nil {
		err = opts.Confirm(rb.report)
		if err != nil {
			return nil, err
		}
	}

	return rb.replace(ctx)
}

// rollback is one rollback under way: choose finds the kept database, examine looks into it, replace puts it back.
type rollback struct {
	*run
	opts   RollbackOptions
	report *RollbackReport

	members member.List // of the database that is put back
}

func (r *RollbackReport) warn(texts ...string) { r.Warnings = append(r.Warnings, texts...) }

func (r *RollbackReport) daemonIs(result startResult) {
	r.Started, r.Ready = result.started, result.ready
	r.warn(result.warnings...)
}

// finishedThis tells whether the interrupted run that was finished just now was this very rollback.
func (rb *rollback) finishedThis() bool {
	plan := rb.finished
	if plan == nil || plan.Purpose != purposeRollback || rb.opts.Kept != "" && filepath.Base(rb.opts.Kept) != plan.Staged {
		return false
	}

	rb.report.Restored.Name, rb.report.Kept, rb.report.Done = plan.Staged, rb.dir.join(plan.Keep), true
	return true
}

// choose finds the kept database to put back: by its name, or the newest.
func (rb *rollback) choose() error {
	if rb.opts.Kept != "" {
		var err error
		rb.report.Restored, err = rb.dir.findKept(rb.opts.Kept)
		return err
	}

	all, err := rb.dir.kept()
	if err != nil {
		return err
	}

	if len(all) == 0 {
		return fmt.Errorf("no database is kept in %s: there is nothing to roll back to", rb.dir.path)
	}

	rb.report.Restored, rb.report.NothingToDo = all[0], all[0].Purpose == purposeRollback
	return nil
}

// examine looks into both databases, and whether LXD can be stopped. The database that is put back must at least be readable; that
// it is damaged, as it may well have been before it was replaced, is a warning.
func (rb *rollback) examine(ctx context.Context) error {
	old := rb.dir.join(rb.report.Restored.Name)
	err := rb.checkRestorable(ctx, old)
	if err != nil {
		return err
	}

	log, err := readLog(ctx, filepath.Join(old, globalName), rb.opts.Progress)
	if err != nil {
		return err
	}

	err = rb.identify(ctx, old, log.Configuration)
	if err != nil {
		return err
	}

	rb.report.Raft = &bundle.Position{Index: log.LastIndex, Term: log.LastTerm}
	if !log.Healthy() {
		rb.report.warn("the database in " + old + " is damaged")
	}

	log, err = readLog(ctx, rb.dir.global(), rb.opts.Progress)
	if err == nil {
		rb.report.Local = &bundle.Position{Index: log.LastIndex, Term: log.LastTerm}
	}

	status, err := daemon.Inspect(ctx, rb.dir.path)
	if err != nil {
		return err
	}

	rb.report.Daemon = status.String()
	return stoppable(status)
}

// identify finds out whose database is put back. One of which that cannot be told is one that LXD does not start on.
func (rb *rollback) identify(ctx context.Context, old string, servers raftlog.Configuration) error {
	node, err := nodedb.Read(ctx, old)
	if node == nil {
		return err
	}

	alone, why := standalone(rb.dir.path, node, servers)
	switch {
	case alone:
		rb.report.Standalone, rb.report.Address = true, nodedb.StandaloneAddress
		return nil
	case why != nil:
		return fmt.Errorf("%s: %w", old, why)
	}

	rb.members, rb.report.Address = node.Members, node.Self.Address
	return err
}

// replace stops LXD, exchanges the kept database with the live one, and starts LXD again. There is no report as long as LXD could not
// be stopped.
func (rb *rollback) replace(ctx context.Context) (*RollbackReport, error) {
	err := swapdir.SyncTree(rb.dir.join(rb.report.Restored.Name)) // again when LXD is down, but then there is little left to write
	if err != nil {
		return nil, err
	}

	err = rb.dir.noteTerms(ctx) // of what is put back, too, which lies beside the live one
	if err != nil {
		return nil, err
	}

	cycle, err := rb.stop(ctx) // as it stands now: somebody may have started it while the question was open
	if err != nil {
		return nil, err
	}

	err = rb.exchange()
	if err != nil {
		if rb.report.Done {
			err = fmt.Errorf("the old database is back in place, but %w; run the rollback again to finish it", err)
		}

		return rb.report, errors.Join(err, cycle.startAfterFailure(ctx))
	}

	rb.opts.Progress.step("The old database is back; the replaced one is kept in " + rb.report.Kept)
	err = rb.start(ctx, cycle, rb.members, rb.report)
	rb.keepReport(rb.report, err)
	return rb.report, err
}

// exchange swaps the live database and the kept one.
func (rb *rollback) exchange() error {
	unlock, err := lockDqlite(rb.dir.global())
	if err != nil {
		return err
	}

	defer unlock()

	keep, err := rb.dir.freeName("database.before-rollback-" + stamp(time.Now()))
	if err != nil {
		return err
	}

	rb.report.Kept = rb.dir.join(keep)
	err = swapdir.SyncTree(rb.dir.join(rb.report.Restored.Name))
	if err != nil {
		return err
	}

	exchanged := *rb.report
	exchanged.Done = true
	rb.reporter.prepare(keep, exchanged)
	rb.report.Done, err = carryOut(rb.dir, swapdir.Plan{Purpose: purposeRollback, Live: databaseName, Staged: rb.report.Restored.Name, Keep: keep})
	rb.reporter.exchanged(rb.report.Done, err)
	return err
}
