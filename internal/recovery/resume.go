package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/swapdir"
)

// ResumeOptions say how to put right what an interrupted run left.
type ResumeOptions struct {
	LXDDir   string
	NoStart  bool // leave LXD stopped
	Timeout  time.Duration
	Progress Progress
}

// ResumeReport is what was put right.
type ResumeReport struct {
	Found    bool     `json:"found" yaml:"found"` // whether an interrupted run had left anything
	Done     []string `json:"done" yaml:"done"`   // what was put right, a sentence each
	Warnings []string `json:"warnings" yaml:"warnings"`
	Daemon   string   `json:"daemon" yaml:"daemon"` // before
	Started  bool     `json:"started" yaml:"started"`
	Ready    bool     `json:"ready" yaml:"ready"`
}

// Resume puts right what an interrupted import, rollback or edit left: the exchange is completed where it was carried out and
// withdrawn where it was not, what was unpacked in vain is removed, LXD is started again where that run had stopped it, and
// refreshes of its snap are free again. Which database is in place does not change by it.
func Resume(ctx context.Context, opts ResumeOptions) (*ResumeReport, error) {
	dir, unlock, err := openToChange(opts.LXDDir)
	if err != nil {
		return nil, err
	}

	defer unlock()

	report := &ResumeReport{Done: []string{}, Warnings: []string{}}
	left, err := leftovers(dir)
	if err != nil {
		return nil, err
	}

	finished, err := dir.finishInterrupted()
	if err != nil {
		return nil, err
	}

	if finished != "" {
		report.Done = append(report.Done, finished)
	} else if left {
		report.Done = append(report.Done, "removed what an interrupted run had prepared; the database that was in place before it still is")
	}

	if exists(dir.join(removingName)) {
		err = dir.finishRemoving()
		if err != nil {
			return nil, err
		}

		report.Done = append(report.Done, "finished deleting a kept database, as `global-db-backups remove` had been told to")
	}

	status, err := daemon.Inspect(ctx, dir.path)
	if err != nil {
		return nil, err
	}

	report.Daemon = status.String()
	stopped, err := dir.readStopped()
	if err != nil {
		return nil, err
	}

	if stopped != nil {
		report.Done = append(report.Done, stopped.String())
	}

	var members member.List
	node, err := nodedb.Read(ctx, dir.database())
	if err == nil {
		members = node.Members // for messages only
	}

	report.Found = len(report.Done) > 0
	cycle := &daemonCycle{dir: dir, noStart: opts.NoStart, timeout: opts.Timeout, progress: opts.Progress}
	result, err := cycle.resume(ctx, members)
	report.Started, report.Ready = result.started, result.ready
	report.Warnings = append(report.Warnings, result.warnings...)
	return report, err
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

// settle finishes what an interrupted run left, and removes a staging directory that it left unused. What it finished is told
// in a sentence, empty where nothing was.
func (d directory) finishInterrupted() (string, error) {
	plan, state, err := swapdir.Finish(d.path)
	if err != nil {
		return "", err
	}

	d.placeReport()
	finished := ""
	switch {
	case plan == nil || state != swapdir.Exchanged:
	case plan.Purpose == purposeUndo:
		finished = fmt.Sprintf("finished taking back the exchange of %s, during which LXD had been started", plan.Created.Format(time.RFC3339))
	default:
		finished = fmt.Sprintf("finished the %s of %s, which had been interrupted; the database it replaced is kept in %s",
			plan.Purpose, plan.Created.Format(time.RFC3339), d.join(plan.Keep))
	}

	return finished, os.RemoveAll(d.join(stagingName))
}

// unstage removes the staging directory of a run that came to nothing: nothing of ours stays beside the database but what
// the exchange put there, after a power cut neither. As long as there is a plan, what the name stands for is for settle to find
// out.
func (d directory) unstage() {
	plan, err := swapdir.ReadPlan(d.path)
	if plan == nil && err == nil {
		_ = os.RemoveAll(d.join(stagingName))
		_ = swapdir.SyncDir(d.path) // what was staged is on disk already
	}
}
