// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"fmt"
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/product"
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
			return &Refusal{Code: "working-cluster", Reason: product.Sprintf("%s serves a working cluster that does not come from this recovery: "+
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
	answers, err := im.dir.askPeers(ctx, addresses)
	if err == nil {
		im.peers = append([]daemon.Peer{}, answers.working...)
	}

	im.report.warn(answers.mute...)
	return answers.working, err
}

// others is what the members at some addresses answered.
type others struct {
	working []daemon.Peer // those that serve a working cluster
	up      []string      // addresses at which an LXD of this cluster runs, whether the cluster works or not
	mute    []string      // a sentence for each that takes connections and says nothing
}

// askPeers asks the daemons at these addresses.
func (d directory) askPeers(ctx context.Context, addresses []string) (others, error) {
	reached := make(chan []daemon.Reach, 1)
	go func() {
		found, _ := daemon.Reachable(ctx, d.path, addresses) // its errors are AskPeers' as well
		reached <- found
	}()

	working, err := daemon.AskPeers(ctx, d.path, addresses, nodedb.MarkQuery)
	o := others{working: working}
	for i, reach := range <-reached {
		switch reach {
		case daemon.Answers:
			o.up = append(o.up, addresses[i])
		case daemon.Mute:
			o.mute = append(o.mute, fmt.Sprintf("%s: %s: whether a cluster works there cannot be told", addresses[i], product.Text(muteText)))
		}
	}

	return o, err
}

// isMark tells whether a row of a peer's node database is the mark of this recovery. JSON has turned its numbers to floats.
func (im *importer) isMark(row []any) bool {
	return len(row) == 2 && row[0] == float64(im.report.Raft.Index) && row[1] == float64(im.report.Raft.Term)
}

// muteText is what is said of a daemon.Mute.
const muteText = "something takes connections and does not answer, as an LXD that hangs"

// mutePeer refuses beside a member whose LXD may be up although it says nothing.
func mutePeer(m member.Member) *Refusal {
	reason := product.Sprintf("%s (%s) is up: %s. If LXD still runs there, what it writes from now on would be lost. "+
		"Stop LXD on all members first, and kill its process where it does not heed that", m.Name, m.Address, product.Text(muteText))
	return &Refusal{Code: "silent-member", Member: m.Name, Reason: reason, Flag: "--beside-cluster"}
}
