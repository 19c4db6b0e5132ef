// SPDX-License-Identifier: AGPL-3.0-only

package agent

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/internal/scratch"
)

// followTime is how long a member may take to follow the leader after a resync.
const followTime = 2 * time.Minute

// ResyncOptions say how a member takes the cluster's database: see recovery.ResyncOptions.
type ResyncOptions struct {
	DiscardLocal bool `json:"discard_local"`
	NoStart      bool `json:"no_start"`
}

// ResyncOutcome is what a resync has come to once the new database is in place.
type ResyncOutcome struct {
	Report *recovery.ResyncReport `json:"report"`
	Failed string                 `json:"failed,omitempty"` // why not all was done after that; empty if all was
}

// alone calls do on a member that is part of no run.
func (l *Local) alone(do func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()

	err := l.ended()
	if err == nil && l.part != nil {
		err = errors.New("this agent is part of a run over the cluster")
	}

	if err != nil {
		return err
	}

	return do()
}

// PrepareResync implements Agent.
func (l *Local) PrepareResync(ctx context.Context) (r *recovery.ResyncReport, err error) {
	err = l.alone(func() (err error) {
		r, err = recovery.PrepareResync(ctx, recovery.ResyncOptions{
			LXDDir: l.opts.LXDDir, Version: l.opts.Version, Timeout: l.opts.Timeout, Progress: l.opts.Progress,
		})
		l.resyncing = l.resyncing || err == nil
		return err
	})
	return r, err
}

// Resync implements Agent.
func (l *Local) Resync(ctx context.Context, opts ResyncOptions, r io.Reader) (outcome *ResyncOutcome, err error) {
	err = l.alone(func() (err error) {
		outcome, err = l.resync(ctx, opts, r)
		return err
	})
	return outcome, err
}

func (l *Local) resync(ctx context.Context, opts ResyncOptions, r io.Reader) (*ResyncOutcome, error) {
	dir, remove, err := scratch.Dir("resync")
	if err != nil {
		return nil, err
	}

	defer remove()

	file := filepath.Join(dir, "backup.tar.gz")
	err = receive(file, r)
	if err != nil {
		return nil, err
	}

	report, err := recovery.Resync(ctx, recovery.ResyncOptions{
		LXDDir: l.opts.LXDDir, Version: l.opts.Version, Timeout: l.opts.Timeout, Backup: file, DiscardLocal: opts.DiscardLocal, NoStart: opts.NoStart,
		Follow: followTime, Progress: l.opts.Progress,
	})
	if report == nil || !report.Done {
		return nil, err
	}

	l.resyncing = false
	outcome := &ResyncOutcome{Report: report}
	if err != nil {
		outcome.Failed = err.Error()
	}

	return outcome, nil
}

// receive writes what is read to a new file.
func receive(file string, r io.Reader) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}

	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// AbandonResync implements Agent.
func (l *Local) AbandonResync(ctx context.Context) error {
	return l.alone(func() error { return l.abandonResync(ctx, false) })
}

// abandonResync starts LXD again; later only begins to.
func (l *Local) abandonResync(ctx context.Context, later bool) error {
	_, err := recovery.AbandonResync(ctx, recovery.ResumeOptions{LXDDir: l.opts.LXDDir, Later: later, Timeout: l.opts.Timeout, Progress: l.opts.Progress})
	l.resyncing = l.resyncing && err != nil
	return err
}
