// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// carryOut carries out a plan, unless somebody starts a daemon in the very last moment: it has the replaced
// database open and would go on writing there, so the directories are then exchanged back. done tells which of the two is in
// place afterwards.
func carryOut(dir directory, plan swapdir.Plan) (done bool, err error) {
	done, err = swapdir.Run(dir.path, plan)
	if err != nil {
		return done, err
	}

	holders, err := daemon.Writers(dir.join(plan.Keep))
	if err != nil || len(holders) == 0 {
		return true, err
	}

	undone, err := swapdir.Run(dir.path, swapdir.Plan{Purpose: purposeUndo, Live: plan.Live, Staged: plan.Keep, Keep: plan.Staged})
	if err != nil && !undone {
		return true, fmt.Errorf("%s was started during the exchange, on the replaced database, and the exchange cannot be undone: stop it at once: %w",
			holders[0], err)
	}

	return false, errors.Join(fmt.Errorf("%w: %s was started during the exchange, which was undone: stop it and run the command again",
		daemon.ErrStillRunning, holders[0]), err)
}

// leftovers tells whether an interrupted run left a plan or a staging directory.
func leftovers(d directory) (bool, error) {
	for _, name := range []string{swapdir.PlanFile, stagingName} {
		_, err := os.Lstat(d.join(name))
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			return true, err
		}
	}

	return false, nil
}

// finishInterrupted finishes what an interrupted run left, and removes a staging directory that it left unused. It returns the plan
// of a run that was cut short after its exchange, nil if there was none.
func (d directory) finishInterrupted() (*swapdir.Plan, error) {
	plan, state, err := swapdir.Finish(d.path)
	if err != nil {
		return nil, err
	}

	d.placeReport()
	if state != swapdir.Exchanged {
		plan = nil
	}

	return plan, os.RemoveAll(d.join(stagingName))
}

// finishedText says which exchange was finished.
func (d directory) finishedText(plan *swapdir.Plan) string {
	when := plan.Created.Format(time.RFC3339)
	if plan.Purpose == purposeUndo {
		return product.Sprintf("finished taking back the exchange of %s, during which LXD had been started", when)
	}

	return fmt.Sprintf("finished the %s of %s, which had been interrupted; the database it replaced is kept in %s", plan.Purpose, when, d.join(plan.Keep))
}

// unstage removes the staging directory of a run that came to nothing: nothing of ours stays beside the database but what
// the exchange put there, after a power cut neither. As long as there is a plan, what the name stands for is for finishInterrupted
// to find out.
func (d directory) unstage() {
	plan, err := swapdir.ReadPlan(d.path)
	if plan == nil && err == nil {
		_ = os.RemoveAll(d.join(stagingName))
		_ = swapdir.SyncDir(d.path) // what was staged is on disk already
	}
}
