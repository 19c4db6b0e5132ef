// SPDX-License-Identifier: AGPL-3.0-only

package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	lxd "github.com/canonical/lxd/client"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

// A leader that has lost its quorum does not know it at once: for some seconds it goes on answering whatever it can read from its own disk.
const (
	QuorumTime = 15 * time.Second // how long Quorum asks
	quorumTry  = 5 * time.Second  // how long one question may take
)

// beat says in the global database that LXD on a member has been heard of now, which is true: it answers. LXD's leader writes the same every ten seconds
// or so, in this form.
const beat = "UPDATE nodes SET heartbeat = strftime('%%Y-%%m-%%d %%H:%%M:%%f+00:00', 'now') WHERE id = %d"

// errNoBeat says that LXD has written nothing.
var errNoBeat error = product.Error("its LXD does not find itself among the members")

// Quorum tells whether the LXD in a directory belongs to a cluster that has a quorum, for QuorumTime at most. What it can read is no proof, so it is had to
// write its own member's heartbeat, which a majority of the voters has to confirm. id is the member's. Call it for an LXD that answers.
func Quorum(ctx context.Context, lxdDir string, id uint64) error {
	ctx, cancel := context.WithTimeout(ctx, QuorumTime)
	defer cancel()

	for {
		err := writeBeat(ctx, filepath.Join(lxdDir, socketName), id)
		if err == nil || errors.Is(err, errNoBeat) {
			return err
		}

		if pause(ctx) != nil {
			return product.Errorf("no majority of the voters confirms what LXD writes: %w", err)
		}
	}
}

func writeBeat(ctx context.Context, socket string, id uint64) error {
	ctx, cancel := context.WithTimeout(ctx, quorumTry)
	defer cancel()

	server, err := lxd.ConnectLXDUnixWithContext(ctx, socket, &lxd.ConnectionArgs{SkipGetServer: true})
	if err != nil {
		return err
	}

	defer server.Disconnect()

	answer, _, err := server.RawQuery(http.MethodPost, "/internal/sql", map[string]string{"database": "global", "query": fmt.Sprintf(beat, id)}, "")
	if err != nil {
		return err
	}

	var result struct {
		Results []struct {
			RowsAffected int64 `json:"rows_affected"`
		}
	}

	err = json.Unmarshal(answer.Metadata, &result)
	if err == nil && (len(result.Results) != 1 || result.Results[0].RowsAffected != 1) {
		err = errNoBeat
	}

	return err
}
