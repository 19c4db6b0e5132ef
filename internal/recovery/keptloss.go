// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
)

// KeptLossReport is what would be given up if a kept database took the place of the live one.
type KeptLossReport struct {
	Found  []Discarded `json:"found"`
	Untold []string    `json:"untold"` // what cannot be told
}

// Lines tells it, a line each: what users have changed before all else.
func (r *KeptLossReport) Lines() []string { return linesWith(r.Found, r.Untold) }

// KeptLoss tells what the live database has and a kept one lacks. It changes nothing, and LXD may run: what it writes from then on is not told.
func KeptLoss(ctx context.Context, lxdDir string, kept string, progress Progress) (*KeptLossReport, error) {
	dir, err := openDirectory(lxdDir)
	if err != nil {
		return nil, err
	}

	found, err := dir.findKept(kept)
	if err != nil {
		return nil, err
	}

	ex := &exporter{dir: dir, opts: ExportOptions{Progress: progress}, source: found.Name, report: &ExportReport{}}
	ex.log, err = readLog(ctx, ex.global(), progress)
	if err != nil {
		return nil, err
	}

	ex.report.Before = bundle.Position{Index: ex.log.LastIndex, Term: ex.log.LastTerm}
	status, err := daemon.Inspect(ctx, dir.path)
	if err != nil {
		return nil, err
	}

	var all []Discarded
	err = whileLive(ctx, status.Running(), func(last bool) (bool, error) {
		ex.report.Untold = []string{}
		letGo, err := ex.readLive(ctx, status.Running())
		defer letGo()

		if err != nil {
			return false, err
		}

		if ex.live != nil && !ex.live.Healthy() && !last {
			return false, nil
		}

		all, err = ex.giveUpLive(ctx)
		if err != nil {
			return false, errors.Join(err, ctx.Err())
		}

		return ex.live != nil && ex.live.Healthy(), nil
	})
	if err != nil {
		return nil, err
	}

	return &KeptLossReport{Found: append([]Discarded{}, all...), Untold: ex.report.Untold}, nil
}

// InspectKept is Inspect of a kept database, by its name.
func InspectKept(ctx context.Context, lxdDir string, kept string, progress Progress) (*InspectReport, error) {
	dir, err := openDirectory(lxdDir)
	if err != nil {
		return nil, err
	}

	found, err := dir.findKept(kept)
	if err != nil {
		return nil, err
	}

	return Inspect(ctx, dir.join(found.Name), progress)
}
