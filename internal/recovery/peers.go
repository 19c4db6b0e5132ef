// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"fmt"
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
)

// checkPeers refuses an import beside a working cluster that does not come from the same recovery. What is imported is
// authoritative: it would stall a cluster that has gone on without it, or, unfenced, take its rows away.
//
// Every other member is asked, at its old and its new address. The cluster that this recovery has already brought back is
// recognised by the mark that each import leaves.
func (im *importer) checkPeers(ctx context.Context) error {
	peers, err := im.askPeers(ctx)
	if err != nil {
		return err
	}

	for _, p := range peers {
		if !slices.ContainsFunc(p.Rows, im.isMark) {
			return &Refusal{Code: "working-cluster", Reason: fmt.Sprintf("%s serves a working cluster that does not come from this recovery: "+
				"starting this member on the tarball would stall it. "+
				"If that cluster is the one to keep, do not import, start LXD here as it is; else stop LXD on all its members first",
				p), Flag: "--beside-cluster"}
		}
	}

	return nil
}

// askPeers asks the other members for the mark of their recovery. Those are listed that serve a working cluster.
func (im *importer) askPeers(ctx context.Context) ([]daemon.Peer, error) {
	var addresses []string
	for _, list := range [][]string{addressesBut(im.report.Member.ID, im.node.Members), addressesBut(im.report.Member.ID, im.tarball.Members)} {
		for _, a := range list {
			if !slices.Contains(addresses, a) && a != im.node.ClusterAddress && a != im.report.Member.Address {
				addresses = append(addresses, a)
			}
		}
	}

	im.opts.Progress.step("Asking the other members whether a cluster works without this recovery")
	peers, err := daemon.AskPeers(ctx, im.dir.path, addresses, nodedb.MarkQuery)
	if err == nil {
		im.peers = append([]daemon.Peer{}, peers...)
	}

	return peers, err
}

// isMark tells whether a row of a peer's node database is the mark of this recovery. JSON has turned its numbers to floats.
func (im *importer) isMark(row []any) bool {
	return len(row) == 2 && row[0] == float64(im.report.Raft.Index) && row[1] == float64(im.report.Raft.Term)
}
