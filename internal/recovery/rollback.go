// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// RollbackOptions say which kept database to put back.
type RollbackOptions struct {
	LXDDir  string
	Version string // of lxd-recover, for the report
	DryRun  bool   // check everything, change nothing
	NoStart bool
	Timeout time.Duration

	// One of these says which database is put back; the newest one if none does.
	Kept     string // name of the kept directory
	Before   string // id of a run, or how it begins: the database that this run replaced
	Original bool   // the oldest one since which LXD has not run: as it was before the first of the runs since then

	// DiscardLocal goes on although this server has transactions that the kept database lacks, or cannot tell.
	DiscardLocal bool

	// AcceptDamage puts a damaged database back.
	AcceptDamage bool

	// BesideCluster goes on although a working cluster answers.
	BesideCluster bool

	// Confirm is shown what is about to happen before LXD is stopped; an error ends the rollback with nothing changed.
	Confirm func(*RollbackReport) error

	Progress Progress

	part *Part // of a run over the whole cluster that this rollback belongs to
}

// RollbackReport is what a rollback will do, or did.
type RollbackReport struct {
	Restored   KeptDatabase     `json:"backup" yaml:"backup"`         // what is put back
	Standalone bool             `json:"standalone" yaml:"standalone"` // what is put back is the database of a standalone server
	Address    string           `json:"address" yaml:"address"`       // of this member, after
	Local      *bundle.Position `json:"local_raft" yaml:"local_raft"` // last entry of the database that is replaced; null where it cannot be read
	Raft       *bundle.Position `json:"raft" yaml:"raft"`             // last entry of the one that is put back
	Discarded  []Discarded      `json:"discarded" yaml:"discarded"`   // transactions of the database that is replaced which the other lacks
	Untold     string           `json:"untold" yaml:"untold"`         // why those cannot be told, or not all; empty if they can
	Elsewhere  []string         `json:"elsewhere" yaml:"elsewhere"`   // names of the members that may have to be rolled back, too
	Kept       string           `json:"kept" yaml:"kept"`             // directory that holds the database that was replaced
	Warnings   []string         `json:"warnings" yaml:"warnings"`
	Daemon     string           `json:"daemon" yaml:"daemon"`

	// StartCommand starts LXD here; empty where none is known.
	StartCommand string `json:"start_command" yaml:"start_command"`
	NothingToDo  bool   `json:"already" yaml:"already"` // the last change was a rollback: nothing was done
	Done         bool   `json:"done" yaml:"done"`
	Started      bool   `json:"started" yaml:"started"`
	Ready        bool   `json:"ready" yaml:"ready"`
}

// Rollback puts a kept database directory back, all or nothing, and keeps the one it replaces. A rollback that was
// interrupted after its exchange is completed, and that is all that the next one does. If the last change was a rollback
// already, another one without a name does nothing, so that running it again is harmless: undoing it takes the name.
func Rollback(ctx context.Context, opts RollbackOptions) (*RollbackReport, error) {
	run, end, err := beginRun(opts.LXDDir, runOptions{
		purpose: purposeRollback, version: opts.Version, dryRun: opts.DryRun, noStart: opts.NoStart, timeout: opts.Timeout, progress: opts.Progress,
		part: opts.part,
	})
	if err != nil {
		return nil, err
	}

	defer end()

	rb := &rollback{run: run, opts: opts, report: newRollbackReport()}
	rb.tellFinished(rb.report)
	if rb.finishedThis() {
		return rb.report, rb.resume(ctx, nil, rb.report)
	}

	err = rb.choose()
	if err != nil {
		return nil, err
	}

	if rb.report.NothingToDo && opts.DryRun {
		return rb.report, nil
	}

	if rb.report.NothingToDo {
		return rb.report, rb.resume(ctx, nil, rb.report)
	}

	err = rb.examine(ctx)
	if err != nil {
		return nil, err
	}

	err = rb.checkLoss()
	if opts.DryRun || err != nil {
		return rb.report, err
	}

	if opts.Confirm != nil {
		err = opts.Confirm(rb.report)
		if err != nil {
			return nil, err
		}
	}

	return rb.replace(ctx)
}

// newRollbackReport returns a report whose lists are empty, not missing, in JSON.
func newRollbackReport() *RollbackReport {
	return &RollbackReport{Discarded: []Discarded{}, Elsewhere: []string{}, Warnings: []string{}}
}

// rollback is one rollback under way: choose finds the kept database, examine looks into both, replace puts it back.
type rollback struct {
	*run
	opts   RollbackOptions
	report *RollbackReport

	kept    []KeptDatabase // all of them, the newest first
	members member.List    // of the database that is put back
	live    member.List    // of the one that is replaced, as far as it tells
	self    uint64         // this member's raft id

	log       *raftlog.Log // of the database that is put back
	alone     bool         // no other server has, or had, this database
	ran       bool         // LXD has run since that was replaced
	running   bool         // LXD runs while the two are compared
	compared  string       // signature of the live raft directory when they were
	branching *branching
}

func (r *RollbackReport) warn(texts ...string) { r.Warnings = append(r.Warnings, texts...) }

func (r *RollbackReport) daemonIs(result startResult) {
	r.Started, r.Ready = result.started, result.ready
	r.warn(result.warnings...)
}

// finishedThis tells whether the interrupted run that was finished just now was this very rollback.
func (rb *rollback) finishedThis() bool {
	plan := rb.finished
	other := rb.opts.Before != "" || rb.opts.Original || rb.opts.Kept != "" && filepath.Base(rb.opts.Kept) != rb.stagedName()
	if plan == nil || plan.Purpose != purposeRollback || other {
		return false
	}

	rb.report.Restored.Name, rb.report.Kept, rb.report.Done = plan.Staged, rb.dir.join(plan.Keep), true
	return true
}

// stagedName is the name that an interrupted run's database had before it was put in place; empty if there was none.
func (rb *rollback) stagedName() string {
	if rb.finished == nil {
		return ""
	}

	return rb.finished.Staged
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

	err = rb.exchange(ctx)
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

// exchange swaps the live database and the kept one. LXD is down, and may have written until it was.
func (rb *rollback) exchange(ctx context.Context) error {
	err := rb.lookAgain(ctx)
	if err != nil {
		return err
	}

	unlock, err := lockDqlite(rb.dir.global())
	if err != nil {
		return err
	}

	defer unlock()

	keep, err := rb.dir.keepName(purposeRollback, time.Now())
	if err != nil {
		return err
	}

	rb.report.Kept = rb.dir.join(keep)
	err = swapdir.SyncTree(rb.dir.join(rb.report.Restored.Name))
	if err != nil {
		return err
	}

	rb.reporter.run.ID, rb.reporter.run.PutBack = bundle.NewRun(), rb.report.Restored.Name
	rb.reporter.run.State, err = raftState(rb.dir.join(rb.report.Restored.Name, globalName))
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
