// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// Names in LXD's directory that belong to a run over the whole cluster.
const (
	runTarballName = "database.run.tar.gz" // the tarball that is imported
	runCopyName    = "database.run.copy"   // an LXD directory: a copy of the database, on which the chosen member makes the tarball
	runSavedName   = "database.run.saved"  // a copy of the database as it was when all was staged
	runAsideSuffix = ".undone"             // of those of a run whose place another one has taken that undoes it
)

// stopPatience is how long LXD may take to heed SIGTERM before its process is killed: one without a quorum often never does.
const stopPatience = 10 * time.Second

// Part is this member's part of a run over the whole cluster. Its methods are called one after another, by whoever gives the run; each
// notes on disk what it is about to do. A run that was cut off is joined again with its id, and goes on from there.
//
// Up to PhaseStaged nothing has been changed but that LXD is down, and Withdraw makes up for that. From PhaseArmed on LXD stays down
// until the run is finished or taken back on all members.
type Part struct {
	dir     directory
	unlock  func()
	open    func(string) (directory, func(), error) // for the runs that belong to this one
	opts    JoinOptions
	run     *OpenRun // nil: this member is not part of the run, or not any more
	pending *pendingImport
	later   bool // the machine is just starting: only begin to start LXD, which may wait for this to end
}

// JoinOptions say which run a member becomes part of.
type JoinOptions struct {
	LXDDir  string
	Version string // of lxd-recover
	Run     string // id of the run
	Giver   string // the machine that gives it
	Plan    string // see OpenRun.Plan

	// Again joins a run that this member is part of already. If it is not, any more or yet, it does not become part of it.
	Again bool

	// Instead is the id of a run that this one undoes. A member that is armed in it becomes part of this one as it is: if it was let go in between, LXD
	// would run there on the old database for a moment, and lose what it alone has to the cluster that has gone on.
	Instead string

	Timeout  time.Duration // of a stop of LXD
	Progress Progress
}

// JoinRun makes this member part of a run, unless it is part of another one. Close the part when its connection to the giver ends.
func JoinRun(ctx context.Context, opts JoinOptions) (*Part, error) {
	dir, unlock, err := openAlone(opts.LXDDir)
	if err != nil {
		return nil, err
	}

	p := &Part{dir: dir, unlock: unlock, opts: opts}
	p.open = func(string) (directory, func(), error) { return dir, func() {}, nil }
	err = p.join(ctx)
	if err != nil {
		unlock()
		return nil, err
	}

	return p, nil
}

func (p *Part) join(ctx context.Context) error {
	open, err := p.dir.readOpenRun()
	if err != nil {
		return err
	}

	switch {
	case open != nil && open.Run == p.opts.Run:
		p.run = open
		err = p.settle(ctx)
		if err != nil {
			return err
		}

		p.run.Written, err = p.writtenSince(ctx)
		return err
	case open != nil && open.Phase == PhaseArmed && open.Run == p.opts.Instead && !p.opts.Again:
		return p.takeOver(open)
	case open != nil && open.Phase != PhaseReached: // in that one nothing was changed, and it is not at work: we have the lock
		return &Refusal{Code: "open-run", Reason: OpenRunText(open)}
	case p.opts.Again:
		_ = os.Remove(p.dir.join(openRunTemp)) // of an agent that was killed while it noted that this member is part of the run
		return nil
	case open == nil && p.dir.cutOffHere():
		return errors.New("a run on this member alone was interrupted: finish it with `lxd-recover resume` first")
	}

	p.run = &OpenRun{
		Run: p.opts.Run, Version: p.opts.Version, Giver: p.opts.Giver, Since: time.Now().UTC().Truncate(time.Second), Phase: PhaseReached, Plan: p.opts.Plan,
	}
	if open != nil { // it may have been cut off while it closed the gate
		p.run.Before, p.run.TakenFrom = open.Before, open.TakenFrom
	}

	return p.note()
}

// takeOver makes an armed member of another run part of this one. The file that closes the gate is there at any time.
func (p *Part) takeOver(open *OpenRun) error {
	_, err := p.dir.finishInterrupted()
	if err != nil {
		return err
	}

	record, err := readRecord(p.dir.database())
	if err == nil && record != nil && record.Purpose == purposeImport && record.Digest == open.Digest {
		err = errors.New("it has the new database of the run that is undone already: end that run here with `lxd-recover cluster recover resume` first")
	}

	if err != nil {
		return err
	}

	p.run = &OpenRun{
		Run: p.opts.Run, Version: p.opts.Version, Giver: p.opts.Giver, Since: time.Now().UTC().Truncate(time.Second), Phase: PhaseReached, Plan: p.opts.Plan,
		Before: open.Before, TakenFrom: open,
	}
	err = p.note()
	for _, name := range []string{runTarballName, runSavedName} {
		if err == nil && exists(p.dir.join(name)) {
			err = errors.Join(os.RemoveAll(p.dir.join(name+runAsideSuffix)), os.Rename(p.dir.join(name), p.dir.join(name+runAsideSuffix)))
		}
	}

	return err
}

// giveBack makes the member part of the run again that this one has taken it over from.
func (p *Part) giveBack() error {
	for _, name := range []string{runTarballName, runSavedName} {
		aside := p.dir.join(name + runAsideSuffix)
		if !exists(aside) {
			continue
		}

		err := errors.Join(os.RemoveAll(p.dir.join(name)), os.Rename(aside, p.dir.join(name)))
		if err != nil {
			return err
		}
	}

	err := os.RemoveAll(p.dir.join(runCopyName))
	if err == nil {
		err = p.dir.writeOpenRun(p.run.TakenFrom)
	}

	if err != nil {
		return err
	}

	p.run = nil
	p.unlock()
	return nil
}

// settle finds out how far a run that was cut off has come: it may have exchanged the databases, or exchanged them back, and not noted it.
func (p *Part) settle(context.Context) error {
	_, err := p.dir.finishInterrupted()
	if err != nil {
		return err
	}

	_ = os.RemoveAll(p.dir.join(runCopyName)) // only its tarball is of use
	if p.run.Phase != PhaseArmed && p.run.Phase != PhaseExchanged {
		return nil
	}

	record, err := readRecord(p.dir.database())
	if err != nil {
		return err
	}

	isNew := record != nil && record.Purpose == purposeImport && record.Digest == p.run.Digest
	switch {
	case !isNew && p.run.Phase == PhaseExchanged:
		p.run.Back, p.run.Kept = true, "" // nothing else exchanges them back
		return p.reach(PhaseArmed)
	case !isNew:
		return nil
	case p.run.Phase == PhaseArmed:
		err = p.exchanged(record.Kept)
		if err != nil {
			return err
		}
	}

	state, err := raftState(p.dir.global())
	if err == nil && record.State != "" && state != record.State {
		return p.reach(PhaseStarted) // somebody has started LXD by hand
	}

	return err
}

// State is what is noted of the run; nil if this member is not part of it.
func (p *Part) State() *OpenRun { return p.run }

func (p *Part) note() error {
	err := p.dir.writeOpenRun(p.run)
	if err != nil {
		return fmt.Errorf("note in %s how far this run is: %w", p.dir.join(openRunName), err)
	}

	return nil
}

// reach notes that the member has come to a phase. What could not be noted it has not come to: the disk may be full.
func (p *Part) reach(phase Phase) error {
	was := p.run.Phase
	p.run.Phase = phase
	err := p.note()
	if err != nil {
		p.run.Phase = was
	}

	return err
}

// in refuses a step that does not come next.
func (p *Part) in(allowed ...Phase) error {
	if p.run == nil {
		return errors.New("this member is not part of the run")
	}

	for _, phase := range allowed {
		if p.run.Phase == phase {
			return nil
		}
	}

	return fmt.Errorf("this member has come to %q in the run: that step does not come next", p.run.Phase)
}

// Gate keeps LXD from being started by anything but this run, also after a reboot. Where nothing is known that starts LXD, and none runs,
// there is nothing to gate.
func (p *Part) Gate(ctx context.Context) error {
	err := p.in(PhaseReached)
	if err != nil {
		return err
	}

	status, err := daemon.Inspect(ctx, p.dir.path)
	if err != nil {
		return err
	}

	err = stoppable(status)
	if err != nil || status.Service == nil {
		return errors.Join(err, p.reachUnless(err, PhaseGated))
	}

	ctx, cancel := context.WithTimeout(ctx, p.opts.Timeout)
	defer cancel()

	before, err := status.Service.PriorState(ctx)
	if err != nil {
		return err
	}

	before.Join(p.run.Before)
	p.run.Before = before

	err = p.note() // what is gated can be found again whatever happens from here on
	if err != nil {
		return err
	}

	p.opts.Progress.step(product.Text("Keeping LXD from being started (") + status.Service.Name() + ")")
	err = status.Service.Hold(ctx, p.run.Before)
	if err == nil {
		err = status.Service.Gate(ctx, p.run.Before, p.dir.join(openRunName))
	}

	return errors.Join(err, p.reachUnless(err, PhaseGated))
}

func (p *Part) reachUnless(failed error, phase Phase) error {
	if failed != nil {
		return nil
	}

	return p.reach(phase)
}

// Stop stops LXD. Its process alone is killed if it does not heed SIGTERM in time, as one without a quorum may not; instances go on running.
func (p *Part) Stop(ctx context.Context) (killed bool, err error) {
	err = p.in(PhaseGated)
	if err != nil {
		return false, err
	}

	ctx, cancel := context.WithTimeout(ctx, p.opts.Timeout)
	defer cancel()

	service, err := p.service(ctx)
	if err == nil && service != nil {
		p.opts.Progress.step(product.Text("Stopping LXD (") + service.Name() + ")")
		killed, err = daemon.StopFirmly(ctx, p.dir.path, service, stopPatience)
	}

	if err == nil {
		err = daemon.WaitGone(ctx, p.dir.path)
	}

	return killed, errors.Join(err, p.reachUnless(err, PhaseStopped))
}

// service is what starts LXD here; nil if nothing is known.
func (p *Part) service(ctx context.Context) (daemon.Service, error) {
	if p.run.Before == nil {
		return nil, nil
	}

	return p.run.Before.Service(ctx)
}

// Arm notes that all members have staged.
func (p *Part) Arm() error {
	err := errors.Join(p.in(PhaseStaged), p.forward())
	if err != nil {
		return err
	}

	p.run.Armed, err = p.armedState()
	if err != nil {
		return err
	}

	return p.reach(PhaseArmed)
}

// forward refuses to go on with a run that is being taken back.
func (p *Part) forward() error {
	if p.run != nil && p.run.Back {
		return errors.New("the run is being taken back: it cannot go on here")
	}

	return nil
}

func (p *Part) exchanged(kept string) error {
	p.run.Kept = kept
	return p.reach(PhaseExchanged)
}

// Start opens the gate and starts LXD on the database that is in place. It does not wait for an answer.
func (p *Part) Start(ctx context.Context) error {
	err := p.in(PhaseExchanged, PhaseStarted)
	if err != nil {
		return err
	}

	ctx, cancel := context.WithTimeout(ctx, p.opts.Timeout)
	defer cancel()

	err = p.reach(PhaseStarted) // before the gate is open: from then on a reboot starts LXD
	if err != nil {
		return err
	}

	return p.bringUp(ctx, true)
}

// bringUp opens the gate and starts what was up before, or LXD in any case.
func (p *Part) bringUp(ctx context.Context, always bool) error {
	service, err := p.service(ctx)
	if service == nil || err != nil {
		return err
	}

	if always {
		p.run.Before.WantDaemon()
	}

	err = service.Ungate(ctx, p.run.Before)
	if err != nil {
		return err
	}

	p.opts.Progress.step(product.Text("Starting LXD (") + service.Name() + ")")
	start := service.Start
	if p.later {
		start = service.StartLater
	}

	return errors.Join(start(ctx, p.run.Before), service.Release(ctx, p.run.Before))
}

// WaitReady waits until LXD answers here, and returns the members' addresses by name as it lists them. The error is daemon.ErrNotReady if ctx
// ended first.
func (p *Part) WaitReady(ctx context.Context) (map[string]string, error) {
	service, err := p.service(ctx)
	if err != nil {
		return nil, err
	}

	return daemon.WaitReady(ctx, p.dir.path, service)
}

// Finish ends the run on this member: nothing of it is left but the new database, and the one that it replaced. With noStart LXD stays down, and
// nothing keeps it from being started.
func (p *Part) Finish(ctx context.Context, noStart bool) error {
	if noStart {
		return p.leaveDown(ctx)
	}

	err := p.in(PhaseStarted)
	if err != nil {
		return err
	}

	return p.forget()
}

func (p *Part) leaveDown(ctx context.Context) error {
	err := p.in(PhaseExchanged, PhaseStarted)
	if err != nil {
		return err
	}

	err = p.reach(PhaseStarted) // before the gate is open: from then on LXD may have run
	if err != nil {
		return err
	}

	service, err := p.service(ctx)
	if err == nil && service != nil {
		err = errors.Join(service.Ungate(ctx, p.run.Before), service.Release(ctx, p.run.Before))
	}

	if err != nil {
		return err
	}

	return p.forget()
}

// forget removes all traces of the run. The note goes last.
func (p *Part) forget() error {
	for _, name := range []string{runTarballName, runCopyName, runSavedName, runTarballName + runAsideSuffix, runSavedName + runAsideSuffix, openRunTemp} {
		err := os.RemoveAll(p.dir.join(name))
		if err != nil {
			return err
		}
	}

	err := os.Remove(p.dir.join(openRunName))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}

	p.run = nil
	err = swapdir.SyncDir(p.dir.path)
	p.unlock() // nothing of this run is to be guarded any more
	return err
}

// TurnBack notes that the run is being taken back. It is refused if LXD may have run on the new database.
func (p *Part) TurnBack() error {
	switch {
	case p.run == nil:
		return nil
	case p.run.Phase == PhaseStarted:
		return &Refusal{Code: "lxd-has-run", Reason: product.Text("LXD was started here on the new database: an exchange back would lose what it has written")}
	case p.run.Back:
		return nil
	}

	p.run.Back = true
	err := p.note()
	if err == nil {
		return nil
	}

	// The disk may be full of what the run has staged, which is of no use any more.
	p.giveUp()
	p.dir.unstage()
	err = p.note()
	if p.run.Phase.Before(PhaseArmed) {
		return nil // without the note, too, the run cannot go on: that takes all members armed
	}

	p.run.Back = err == nil
	return err
}

// Withdraw takes this member's part back: the database from before the run is in place again, and LXD runs again if it did before. It is refused
// if LXD may have run on the new database: then the run is undone by another one.
func (p *Part) Withdraw(ctx context.Context) error {
	if p.run == nil {
		return nil
	}

	p.giveUp()
	err := p.settle(ctx)
	if err == nil {
		err = p.TurnBack()
	}

	if err == nil && p.run.Phase == PhaseExchanged {
		err = p.takeBack(ctx)
	}

	if err != nil {
		return err
	}

	p.dir.unstage()
	if p.run.TakenFrom != nil {
		return p.giveBack()
	}

	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.opts.Timeout)
	defer cancel()

	err = p.bringUp(ctx, false)
	if err != nil {
		return fmt.Errorf("the database from before the run is in place, but %w", err)
	}

	return p.forget()
}

// takeBack exchanges the databases back.
func (p *Part) takeBack(ctx context.Context) error {
	r, err := Rollback(ctx, RollbackOptions{
		LXDDir: p.dir.path, Version: p.opts.Version, Kept: p.run.Kept, NoStart: true, Timeout: p.opts.Timeout, DiscardLocal: true, AcceptDamage: true,
		BesideCluster: true, Progress: p.opts.Progress, part: p,
	})
	if err != nil {
		return err
	}

	if !r.Done && !r.NothingToDo {
		return fmt.Errorf("%s was not put back", p.run.Kept)
	}

	p.run.Kept = ""
	return p.reach(PhaseArmed) // and no further: LXD is down, and the old database in place
}

// Close lets go of LXD's directory. What was staged is given up before PhaseArmed: without a giver nothing would come of it.
func (p *Part) Close(ctx context.Context) error {
	defer p.unlock()

	if p.run != nil && p.run.Phase.Before(PhaseArmed) {
		return p.Withdraw(ctx)
	}

	p.giveUp()
	return nil
}
