// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// RepairOptions say what to repair and how far to go.
type RepairOptions struct {
	LXDDir  string
	Version string // of lxd-recover, for the record
	DryRun  bool   // do everything up to the question, change nothing
	NoStart bool   // leave LXD stopped

	// At leaves out the entries after this index; 0: none.
	At uint64

	// Reading is the digest of the reading to take where more than one is possible; empty for the only one.
	Reading string

	// AcceptLoss repairs a member that the others may count on for what it has lost. LXD is left stopped then.
	AcceptLoss bool

	// Timeout bounds how long LXD may take to stop, and to answer once it is started.
	Timeout time.Duration

	// Confirm is shown what is about to happen, after all checks and before LXD is stopped. An error from it ends the repair with
	// nothing changed. It is not called in a dry run. It is called again, with LXD stopped, where LXD has written meanwhile and
	// something else would be given up than was confirmed.
	Confirm func(*RepairReport) error

	Progress Progress
}

// RepairReport is what a repair will do, or did.
type RepairReport struct {
	Member     member.Member     `json:"member" yaml:"member"`         // this one, as the raft log has it
	Standalone bool              `json:"standalone" yaml:"standalone"` // a server that is not in a cluster
	Others     []Other           `json:"others" yaml:"others"`         // what was found of the other members' machines; only asked where it matters
	Libdqlite  Libdqlite         `json:"libdqlite" yaml:"libdqlite"`   // what LXD would make of the database as it is
	Local      bundle.Position   `json:"local_raft" yaml:"local_raft"` // last entry that this member's disk proves
	Raft       bundle.Position   `json:"raft" yaml:"raft"`             // last entry of the repaired database
	Metadata   RepairedMetadata  `json:"metadata" yaml:"metadata"`     // of the repaired database
	Database   *globaldb.Summary `json:"database" yaml:"database"`     // the repaired one
	Problems   []string          `json:"problems" yaml:"problems"`     // what is wrong with the database as it is
	GivenUp    []Discarded       `json:"given_up" yaml:"given_up"`     // transactions that the repaired database does not have
	Untold     []string          `json:"untold" yaml:"untold"`         // what else it does not have, and nobody can tell
	Lost       Lost              `json:"lost" yaml:"lost"`             // how much of that the disk does not give back
	Checked    []string          `json:"checked" yaml:"checked"`       // what was looked at where nothing is to be repaired
	Warnings   []string          `json:"warnings" yaml:"warnings"`

	// LXD is the one that is installed here. Findings are what it needs to start on the repaired database, and lacks, or may lack.
	LXD      preflight.LXD       `json:"lxd" yaml:"lxd"`
	Findings []preflight.Finding `json:"findings" yaml:"findings"`

	Kept      string `json:"kept" yaml:"kept"`       // directory that holds the database that was replaced
	Size      int64  `json:"size" yaml:"size"`       // of the database that is replaced, in bytes
	KeptSpace Space  `json:"backups" yaml:"backups"` // all that is kept; once Done with the one that this repair replaced
	Daemon    string `json:"daemon" yaml:"daemon"`

	// Unsafe says why LXD is not to be started on the repaired database as things stand; empty unless RepairOptions.AcceptLoss was what
	// let the repair go on.
	Unsafe string `json:"unsafe,omitempty" yaml:"unsafe,omitempty"`

	// NothingToDo is true when the database is whole: nothing was done.
	NothingToDo bool `json:"already" yaml:"already"`

	// Uncertain is true where the log was one of several that the files can be read as, or its indexes are likely and not proven.
	Uncertain bool `json:"uncertain" yaml:"uncertain"`

	// WillStart tells whether LXD is to be started on the repaired database, Startable whether something is known that can start it.
	WillStart bool `json:"will_start" yaml:"will_start"`
	Startable bool `json:"startable" yaml:"startable"`

	// Done is true once the repaired database is in place.
	Done bool `json:"done" yaml:"done"`

	// Started is true when LXD was started, Ready when it answered within the timeout.
	Started bool `json:"started" yaml:"started"`
	Ready   bool `json:"ready" yaml:"ready"`
}

// RepairedMetadata are the raft term and vote that a repaired database gets.
type RepairedMetadata struct {
	Term uint64 `json:"term" yaml:"term"`
	Vote uint64 `json:"vote" yaml:"vote"` // id of a member; 0 for none

	// Kept is true where both are those that this member had.
	Kept bool `json:"kept" yaml:"kept"`
}

// newRepairReport returns a report whose lists are empty, not missing, in JSON.
func newRepairReport() *RepairReport {
	return &RepairReport{Others: []Other{}, Libdqlite: Libdqlite{Actions: []string{}}, Problems: []string{}, GivenUp: []Discarded{},
		Untold: []string{}, Checked: []string{}, Warnings: []string{}, Findings: []preflight.Finding{}}
}

// Repair makes this member's own database one that LXD starts on, with all that its disk proves: a directory is written beside the
// live one, without anything that libdqlite stumbles over, checked, and exchanged with it, all or nothing. The replaced one is kept.
// When an error is returned the old database is in place, unless the report says Done.
func Repair(ctx context.Context, opts RepairOptions) (*RepairReport, error) {
	run, end, err := beginRun(opts.LXDDir, runOptions{
		purpose: purposeRepair, version: opts.Version, dryRun: opts.DryRun, noStart: opts.NoStart, timeout: opts.Timeout, progress: opts.Progress,
	})
	if err != nil {
		return nil, err
	}

	defer end()

	rp := &repairer{run: run, opts: opts, report: newRepairReport(), letGo: func() {}}
	defer func() { rp.letGo() }()

	rp.tellFinished(rp.report)
	defer rp.unstageUnless(&rp.report.Done)

	err = rp.prepare(ctx)
	if err != nil {
		return rp.report, err
	}

	if rp.report.NothingToDo {
		return rp.report, rp.leaveAsItIs(ctx)
	}

	if opts.DryRun {
		return rp.report, nil
	}

	if opts.Confirm != nil {
		err = opts.Confirm(rp.report)
		if err != nil {
			return nil, err
		}
	}

	return rp.report, rp.replace(ctx)
}

// repairer is one repair under way: examine finds out what the disk proves and what of it is given up, judge whether this member may
// be repaired in place, stage makes the repaired database beside the live one, verify has SQLite and libdqlite look at it, and
// replace takes LXD down for the exchange.
type repairer struct {
	*run
	opts   RepairOptions
	report *RepairReport
	letGo  func() // of the files of the log

	node    *nodedb.Node // what the node database says; its Self may be missing
	log     *raftlog.Log
	read    string                // signature of the raft directory when the log was read
	servers raftlog.Configuration // in force at the last entry that is kept
	alone   bool                  // this member decides alone what is committed
	staged  *raftlog.Log          // of the repaired database
	others  otherFiles
}

func (r *RepairReport) warn(texts ...string) { r.Warnings = append(r.Warnings, texts...) }

func (r *RepairReport) daemonIs(result startResult) {
	r.Started, r.Ready = result.started, result.ready
	r.warn(result.warnings...)
}

// prepare does everything up to the question. It may be done again.
func (rp *repairer) prepare(ctx context.Context) error {
	err := rp.examine(ctx)
	if err != nil || rp.report.NothingToDo {
		return err
	}

	err = rp.judge(ctx)
	if err != nil {
		return err
	}

	rp.report.WillStart = !rp.common.noStart
	err = rp.stage(ctx)
	if err != nil {
		return err
	}

	return rp.verify(ctx)
}

// members are this cluster's, for messages: those of the raft log, by their names.
func (rp *repairer) members() member.List { return namedServers(rp.servers, rp.node.Members) }

// leaveAsItIs ends a repair that has nothing to do. LXD is started where an earlier run had stopped it, or had got no further than the
// exchange.
func (rp *repairer) leaveAsItIs(ctx context.Context) error {
	if rp.opts.DryRun {
		return nil
	}

	if rp.finished == nil || rp.finished.Purpose != purposeRepair {
		return rp.resume(ctx, rp.members(), rp.report)
	}

	rp.report.Kept = rp.dir.join(rp.finished.Keep)
	cycle, err := rp.idle(ctx)
	if err != nil {
		return err
	}

	return rp.startRepaired(ctx, cycle)
}

// errWhole says that there is nothing to repair any more.
var errWhole = errors.New("the database is whole")

// replace stops LXD, exchanges the repaired database with the live one, and starts LXD.
func (rp *repairer) replace(ctx context.Context) error {
	var err error
	rp.others, err = rp.dir.copyOtherFiles(ctx, nil)
	if err != nil {
		return err
	}

	err = rp.dir.noteTerms(ctx, rp.report.Metadata.Term)
	if err != nil {
		return err
	}

	cycle, err := rp.stop(ctx)
	if err != nil {
		return err
	}

	err = rp.exchange(ctx)
	switch {
	case errors.Is(err, errWhole): // LXD, as it stopped, has finished what looked like damage
		return rp.start(ctx, cycle, rp.members(), rp.report)
	case err != nil && rp.report.Done:
		err = fmt.Errorf("the repaired database is in place, but not all is done: %w; run `lxd-recover resume`", err)
		return errors.Join(err, cycle.startAfterFailure(ctx))
	case err != nil:
		return errors.Join(err, cycle.startAfterFailure(ctx))
	}

	rp.opts.Progress.step("The repaired database is in place; the old one is kept in " + rp.report.Kept)
	err = rp.startRepaired(ctx, cycle)
	rp.report.KeptSpace = rp.dir.space()
	rp.keepReport(rp.report, err)
	return err
}

// startRepaired starts LXD on the repaired database: also one that was down, as it may have been down for the very damage.
func (rp *repairer) startRepaired(ctx context.Context, cycle *daemonCycle) error {
	err := cycle.wantUp(ctx)
	if err != nil {
		return inPlace(err)
	}

	return rp.start(ctx, cycle, rp.members(), rp.report)
}

// exchange puts the repaired database in place. LXD is down.
func (rp *repairer) exchange(ctx context.Context) error {
	if signature(rp.dir.global()) != rp.read {
		err := rp.lookAgain(ctx)
		if err == nil {
			err = rp.dir.noteTerms(ctx, rp.report.Metadata.Term)
		}

		if err != nil {
			return err
		}
	}

	unlock, err := lockDqlite(rp.dir.global())
	if err != nil {
		return err
	}

	defer unlock()

	patch, err := rp.pendingPatch()
	if err != nil {
		return err
	}

	staged := &replacement{
		dir: rp.dir, sameNode: true, patch: patch, others: rp.others,
		record:   Record{Purpose: purposeRepair, Run: bundle.NewRun(), Version: rp.opts.Version, Source: rp.report.Member.Name, Raft: rp.report.Raft},
		reporter: rp.reporter,
		report: func(kept string) any {
			report := *rp.report
			report.Kept, report.Done = kept, true
			return report
		},
	}
	rp.report.Kept, rp.report.Done, err = staged.takePlace(ctx)
	return err
}

// lookAgain begins anew with a database that was written to since it was read, now that LXD is down. What would be given up, and was
// not confirmed, is asked about.
func (rp *repairer) lookAgain(ctx context.Context) error {
	rp.opts.Progress.step("The database was written to meanwhile: beginning anew")
	confirmed := *rp.report
	rp.dir.unstage()
	rp.others = nil
	*rp.report = *newRepairReport()
	rp.tellFinished(rp.report)
	err := rp.prepare(ctx)
	rp.report.Daemon = confirmed.Daemon
	switch {
	case err != nil:
		return err
	case rp.report.NothingToDo:
		return errWhole
	case rp.opts.Confirm == nil || sameLoss(&confirmed, rp.report):
		return nil
	}

	return rp.opts.Confirm(rp.report)
}

// sameLoss tells whether two plans give up the same.
func sameLoss(a, b *RepairReport) bool {
	same := func(a, b Discarded) bool {
		return a.Index == b.Index && a.Term == b.Term && a.File == b.File && a.checksum == b.checksum
	}
	return a.Lost == b.Lost && a.Unsafe == b.Unsafe && slices.Equal(a.Untold, b.Untold) && slices.EqualFunc(a.GivenUp, b.GivenUp, same)
}
