// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
)

// ResumeOptions say how to finish what an interrupted run left.
type ResumeOptions struct {
	LXDDir   string
	NoStart  bool // leave LXD stopped
	Later    bool // the machine is just starting: only begin to start LXD, which may wait for this to end
	Timeout  time.Duration
	Progress Progress
}

// ResumeReport is what was finished.
type ResumeReport struct {
	Found    bool     `json:"found" yaml:"found"` // whether an interrupted run had left anything
	Done     []string `json:"done" yaml:"done"`   // what was finished, a sentence each
	Warnings []string `json:"warnings" yaml:"warnings"`
	Daemon   string   `json:"daemon" yaml:"daemon"` // before
	Started  bool     `json:"started" yaml:"started"`
	Ready    bool     `json:"ready" yaml:"ready"`
}

// Resume finishes what an interrupted import, rollback, edit or repair left: the exchange is completed if it was carried out and withdrawn
// if it was not, what was unpacked in vain is removed, LXD is started again if that run had stopped it, and refreshes of its snap
// are free again. Which database is in place does not change by it.
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

	switch {
	case finished != nil:
		report.Done = append(report.Done, dir.finishedText(finished))
	case left:
		report.Done = append(report.Done, "removed what an interrupted run had prepared; the database that was in place before it still is")
	}

	if exists(dir.join(removingName)) {
		err = dir.finishRemoving()
		if err != nil {
			return nil, err
		}

		report.Done = append(report.Done, "finished deleting a kept database, as `lxd-recover global-db-kept remove` had been told to")
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
	r := &run{dir: dir, common: runOptions{noStart: opts.NoStart, timeout: opts.Timeout, progress: opts.Progress}}
	r.later = opts.Later
	return report, r.resume(ctx, members, report)
}

func (r *ResumeReport) warn(texts ...string) { r.Warnings = append(r.Warnings, texts...) }

func (r *ResumeReport) daemonIs(result startResult) {
	r.Started, r.Ready = result.started, result.ready
	r.warn(result.warnings...)
}
