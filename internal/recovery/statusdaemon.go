// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"

	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// inspectDaemon tells how LXD stands. Where systemd or snapd do not say, because they hang, the rest of the report is worth as much.
func (r *StatusReport) inspectDaemon(ctx context.Context, dir directory) error {
	status, err := daemon.Inspect(ctx, dir.path)
	if err == nil {
		r.Daemon, r.Running = status.String(), status.Running()
		return nil
	}

	if ctx.Err() != nil {
		return err
	}

	holders, holdersErr := daemon.Writers(dir.database())
	if holdersErr != nil {
		return holdersErr
	}

	r.problem(product.Text("how LXD is run here cannot be told: %v"), err)
	r.Daemon, r.Running = "cannot be told", len(holders) > 0
	if r.Running {
		r.Daemon = (&daemon.Status{Holders: holders}).String()
	}

	return nil
}
