// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// daemonCycle stops LXD around a change of its database and starts it again, if it was up. What it stops is written down
// before (Stopped), so that the next run, or Resume, can start what a killed one has left stopped.
type daemonCycle struct {
	dir      directory
	purpose  string         // import, rollback, edit, repair
	status   *daemon.Status // before
	noStart  bool
	later    bool // the machine is just starting: only begin to start LXD
	timeout  time.Duration
	progress Progress

	service  daemon.Service     // what before is about
	before   *daemon.PriorState // set once something is stopped, by this run or by one that was cut short
	warnings []string
}

// here adds a command to an advice that is about all members; empty where none is known.
func here(command string) string {
	if command == "" {
		return ""
	}

	return ", here with `" + command + "`"
}

// stop makes sure that no daemon runs and none can be started unnoticed. Where nothing is known that could start LXD
// again, a running one is refused, not killed.
func (c *daemonCycle) stop(ctx context.Context) error {
	earlier, err := c.adopt(ctx)
	if err != nil || !c.status.Wakeable() {
		return err
	}

	err = stoppable(c.status)
	if err != nil {
		return err
	}

	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()

	service := c.status.Service
	before, err := service.PriorState(ctx)
	if err != nil {
		return err
	}

	if earlier != nil {
		before.Join(&earlier.Before)
	}

	c.progress.step(product.Text("Stopping LXD (") + service.Name() + ")")
	err = c.note(before)
	if err != nil {
		return err
	}

	c.service, c.before = service, before
	err = c.hold(ctx)
	if err == nil {
		err = service.Stop(ctx)
	}

	if err == nil {
		err = daemon.WaitGone(ctx, c.dir.path)
	}

	if err != nil {
		return errors.Join(err, c.startAfterFailure(ctx))
	}

	return nil
}

// wantUp has start bring LXD up although it was down before, if something is known that can. Call it when nothing stopped is left to be put
// back as it was: an interrupted run's successor starts LXD, too, from then on.
func (c *daemonCycle) wantUp(ctx context.Context) error {
	if c.noStart {
		return nil
	}

	if c.before == nil {
		if c.status == nil || c.status.Service == nil {
			return nil
		}

		before, err := c.status.Service.PriorState(ctx)
		if err != nil {
			return err
		}

		before.Held, before.HeldUntil = false, "" // nothing was held
		c.service, c.before = c.status.Service, before
	}

	if c.before.Daemon {
		return nil
	}

	c.before.WantDaemon()
	return c.note(c.before)
}

// adopt takes over what a run that was cut short has left stopped: this one starts it again.
func (c *daemonCycle) adopt(ctx context.Context) (*Stopped, error) {
	stopped, err := c.dir.readStopped()
	if stopped == nil || err != nil {
		return nil, err
	}

	c.service, err = stopped.Before.Service(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.dir.join(stoppedName), err)
	}

	c.before = &stopped.Before
	return stopped, nil
}

// resume ends the cycle of a run that was cut short; nothing happens where there was none.
func (c *daemonCycle) resume(ctx context.Context, members member.List) (startResult, error) {
	stopped, err := c.adopt(ctx)
	if err != nil {
		return startResult{}, err
	}

	if stopped != nil {
		c.purpose = stopped.Purpose // should the start fail, it is that run that stays on record
	}

	return c.start(ctx, members)
}

func (c *daemonCycle) note(before *daemon.PriorState) error {
	err := c.dir.writeStopped(Stopped{Purpose: c.purpose, Since: time.Now().UTC().Truncate(time.Second), Before: *before})
	if err != nil {
		return fmt.Errorf("note in %s what is about to be stopped: %w; nothing was changed", c.dir.join(stoppedName), err)
	}

	return nil
}

// hold keeps the snap from being refreshed. Where that fails the work goes on: a recovery is worth more, and a daemon that is
// started in between is noticed anyway.
func (c *daemonCycle) hold(ctx context.Context) error {
	err := c.service.Hold(ctx, c.before)
	if err != nil {
		c.warnings = append(c.warnings, err.Error())
	}

	return ctx.Err()
}

// stoppable refuses a daemon that we could not start again.
func stoppable(status *daemon.Status) error {
	if status.Service != nil {
		return status.Service.Stoppable()
	}

	if status.Running() {
		return product.Errorf("LXD is %s, and neither systemd nor snapd runs it: stop it first (with SIGTERM; "+
			"`lxd shutdown` would stop all instances as well), then run this command again", status)
	}

	return nil
}

type startResult struct {
	started, ready bool
	warnings       []string
}

// start starts LXD again where we stopped it, waits until it answers, and compares the addresses it lists with the member
// list. That it does not answer in time is no error: it cannot, until a majority of the voters is up.
func (c *daemonCycle) start(ctx context.Context, members member.List) (startResult, error) {
	result := startResult{warnings: c.warnings}
	if c.before == nil {
		return result, nil
	}

	if c.noStart {
		return result, c.end(ctx)
	}

	c.progress.step(product.Text("Starting LXD (") + c.service.Name() + ")")
	err := c.bringUp(ctx)
	if err != nil {
		return result, errors.Join(inPlace(err), c.leave(ctx))
	}

	result.started = c.before.Daemon
	if c.before.Daemon && !c.later { // else only what starts it on demand was up: a look would wake it
		err = c.waitReady(ctx, members, &result)
	}

	return result, errors.Join(err, c.end(ctx))
}

// bringUp starts what was up before, also when the context was what ended the work: a run that was told to end, or has lost its
// connection, ends when LXD runs.
func (c *daemonCycle) bringUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.timeout)
	defer cancel()

	if c.later {
		return c.service.StartLater(ctx, c.before)
	}

	return c.service.Start(ctx, c.before)
}

// waitReady waits for an LXD that was started, unless the run is told to end: it has done what matters.
func (c *daemonCycle) waitReady(ctx context.Context, members member.List, result *startResult) error {
	limited, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()

	addresses, err := daemon.WaitReady(limited, c.dir.path, c.service)
	if ctx.Err() != nil && err != nil {
		result.warnings = append(result.warnings, product.Text("LXD was started, and was not waited for to the end, as this run was interrupted"))
		return nil
	}

	if errors.Is(err, daemon.ErrNotReady) {
		result.warnings = append(result.warnings, notReady(c.alone(context.WithoutCancel(ctx)), members))
		return nil
	}

	if err != nil {
		return inPlace(err)
	}

	result.ready = true
	for _, m := range members {
		address, ok := addresses[m.Name]
		if ok && address != m.Address {
			result.warnings = append(result.warnings, product.Sprintf("LXD lists %s at %s, not at %s: its address patch was lost; "+
				"see `lxd-recover global-db-status`", m.Name, address, m.Address))
		}
	}

	return nil
}

// alone tells whether LXD was started as a standalone server, which waits for nobody.
func (c *daemonCycle) alone(ctx context.Context) bool {
	node, _ := nodedb.Read(ctx, c.dir.database())
	return node != nil && (node.Standalone || len(node.Members) == 0)
}

// notReady explains an LXD that was started and does not answer yet.
func notReady(alone bool, members member.List) string {
	text := product.Text("LXD was started and does not answer yet: ")
	switch {
	case alone:
		return text + "its journal tells what it is at"
	case len(members) == 0:
		return text + "it does once a majority of the voters is up"
	}

	return fmt.Sprintf("%sit does once %d of the %d voters are up", text, members.Majority(), members.Voters())
}

// end ends the cycle: refreshes are free again, and there is nothing left to resume.
func (c *daemonCycle) end(ctx context.Context) error {
	err := c.release(ctx)
	if err == nil {
		err = c.dir.removeStopped()
	}

	return err
}

// leave ends the cycle of an LXD that could not be started: that stays on record.
func (c *daemonCycle) leave(ctx context.Context) error {
	err := c.release(ctx)
	if err == nil && c.before.Held {
		c.before.Held = false
		err = c.note(c.before)
	}

	return err
}

// release ends the hold, also when the context was what ended the work.
func (c *daemonCycle) release(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.timeout)
	defer cancel()

	return c.service.Release(ctx, c.before)
}

// inPlace says of an error that it came when the work itself was done. What it was is not wrapped: a cancelled context means
// "nothing was changed" to the command line.
func inPlace(err error) error { return errors.New("the database is in place, but " + err.Error()) }

// startAfterFailure brings LXD back on the database that is in place, also when the context was what ended the work.
func (c *daemonCycle) startAfterFailure(ctx context.Context) error {
	if c.before == nil {
		return nil
	}

	what := product.Text("Starting LXD again")
	if errors.Is(ctx.Err(), context.Canceled) {
		what = product.Text("Interrupted: starting LXD again, on the database that is in place; a second Ctrl-C would leave it stopped")
	}

	c.progress.step(what)
	err := c.bringUp(ctx)
	if err != nil {
		return errors.Join(fmt.Errorf("and %w", err), c.leave(ctx))
	}

	return c.end(ctx)
}
