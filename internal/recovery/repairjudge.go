// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/nodedb"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// acceptLossFlag has a repair go on that is refused otherwise, and LXD left stopped.
const acceptLossFlag = "--accept-loss"

// judge refuses a repair that could take away what was confirmed. A server that decides alone may be repaired whatever it has lost:
// nobody else has it. One of several members may not: the others count on what it has confirmed to have on its disk, and what that was
// its disk does not tell any more.
func (rp *repairer) judge(ctx context.Context) error {
	if rp.alone {
		return rp.override(refuseShifted(rp.report, rp.servers))
	}

	c := repairCase{self: rp.report.Member, voter: rp.votes(), voters: rp.voters(), at: rp.opts.At, uncertain: rp.report.Uncertain, lost: rp.report.Lost}
	refusal := c.refuseAt()
	if refusal != nil {
		return refusal
	}

	var err error
	c.others, err = rp.askOthers(ctx)
	if err != nil {
		return err
	}

	return rp.override(c.refusal())
}

// override goes on beside a refusal where that was asked for, and leaves LXD stopped.
func (rp *repairer) override(refusal *Refusal) error {
	if refusal == nil {
		return nil
	}

	if !rp.opts.AcceptLoss {
		return refusal
	}

	rp.report.Unsafe, rp.common.noStart = refusal.Reason, true
	return nil
}

// refuseShifted refuses a log whose indexes are not proven where a member that does not vote has the log, too: entries with the same index
// and term, and another content, would never be noticed.
func refuseShifted(r *RepairReport, servers raftlog.Configuration) *Refusal {
	other := slices.IndexFunc(servers, func(s raftlog.Server) bool { return s.ID != r.Member.ID && s.Role != raftlog.Spare })
	if !r.Uncertain || other < 0 {
		return nil
	}

	return &Refusal{Code: "accept-loss", Flag: acceptLossFlag,
		Reason: fmt.Sprintf("the indexes of the entries of %s are likely, and not proven. %s has this cluster's log, too, "+
			"and nobody would notice entries that differ. Run `lxd-recover cluster export-db --unedited --accept-damage` here, which does without "+
			"these indexes, and import the tarball on all members", r.Member.Name, servers[other].Address)}
}

// votes tells whether this member is, or may be, a voter: by the raft log or by the node database, as a log that has lost its end may not
// say so any more.
func (rp *repairer) votes() bool {
	known, ok := rp.node.Members.ByID(rp.report.Member.ID)
	return rp.report.Member.Role == raftlog.Voter || ok && known.Role == raftlog.Voter
}

// voters counts those that the raft log knows.
func (rp *repairer) voters() int { return namedServers(rp.servers, nil).Voters() }

// repairCase is what decides whether one of several members may be repaired in place.
type repairCase struct {
	self      member.Member
	voter     bool
	voters    int // of the cluster
	at        uint64
	uncertain bool // indexes of its log are likely, and not proven
	lost      Lost
	others    []otherMember
}

// otherMember is what was found of another member.
type otherMember struct {
	Other
	works bool // its LXD belongs to a cluster that works
	there bool // its machine can be reached; something else at its address says nothing of it
}

// refuseAt refuses to take one of several members back: the others would not follow.
func (c repairCase) refuseAt() *Refusal {
	if c.at == 0 {
		return nil
	}

	return &Refusal{Code: "one-of-several",
		Reason: product.Sprintf("%s is one of several members: taken back alone, it would be brought to the others' database again, or take "+
			"confirmed changes away from them. Stop LXD on all members, run `lxd-recover cluster export-db --at %d` here, and import the tarball on all",
			c.self.Name, c.at)}
}

// refusal says why this member may not be repaired in place, nil where it may.
func (c repairCase) refusal() *Refusal {
	whole := !c.lost.Some && !c.uncertain
	if whole && !c.voter { // nobody counts on what it has
		return nil
	}

	works := slices.IndexFunc(c.others, func(o otherMember) bool { return o.works })
	if works >= 0 {
		return c.refused(product.Text("the cluster works without %[1]s: LXD on %[2]s answers. What %[1]s has confirmed to the others its own disk cannot "+
			"tell for certain, and they have all of it. To bring it back from them, stop LXD on all members, run `lxd-recover cluster export-db --unedited` "+
			"on %[2]s, and import that tarball on all"), c.self.Name, c.others[works].Name)
	}

	var there []string
	for _, o := range c.others {
		if o.there {
			there = append(there, fmt.Sprintf("%s (%s: %s)", o.Name, o.Address, o.Found))
		}
	}

	if len(there) > 0 {
		return c.refused(product.Text("other members can be reached: %s. What %s has confirmed to them its own disk cannot tell for certain. "+
			"Recover the cluster: stop LXD on all members, have `lxd-recover global-db-compare` choose one, "+
			"run `lxd-recover cluster export-db` there, and import the tarball on all"),
			strings.Join(there, ", "), c.self.Name)
	}

	if whole || c.lost.Unfinished && !c.uncertain {
		return nil
	}

	text := "has lost entries of its raft log"
	if !c.lost.Some {
		text = "has entries in its raft log whose indexes are likely, and not proven"
	}

	return c.refused("%s %s, and is one of several members (voters: %d). None of the others can be reached. If it goes on without them, changes that were "+
		"confirmed can vanish from all. If they come back, recover from one whose database is whole, with `lxd-recover cluster export-db` and "+
		"`global-db-import`. If they are lost for good, `lxd-recover cluster recover-from-quorum-loss --accept-damage` makes this one a cluster "+
		"of its own", c.self.Name, text, c.voters)
}

// refused is a refusal that --accept-loss overrides.
func (c repairCase) refused(format string, args ...any) *Refusal {
	return &Refusal{Code: "accept-loss", Reason: fmt.Sprintf(format, args...), Flag: acceptLossFlag}
}

// askOthers looks for the other members.
func (rp *repairer) askOthers(ctx context.Context) ([]otherMember, error) {
	var all member.List
	for _, list := range []member.List{namedServers(rp.servers, rp.node.Members), rp.node.Members} {
		for _, m := range list {
			known := slices.ContainsFunc(all, func(o member.Member) bool { return o.Address == m.Address })
			if m.ID != rp.report.Member.ID && !known {
				all = append(all, m)
			}
		}
	}

	rp.opts.Progress.step("Looking for the other members")
	reached, err := daemon.Reachable(ctx, rp.dir.path, addressesBut(rp.report.Member.ID, all))
	if err != nil {
		return nil, err
	}

	others := make([]otherMember, len(all))
	var answer []string
	for i, m := range all {
		others[i] = otherMember{
			Other: Other{Name: nameOf(m), Address: m.Address, Found: product.Text(reachText[reached[i]])},
			there: reached[i] == daemon.Answers || reached[i] == daemon.Refused || reached[i] == daemon.Mute,
		}
		rp.report.Others = append(rp.report.Others, others[i].Other)
		if reached[i] == daemon.Answers {
			answer = append(answer, m.Address)
		}
	}

	working, err := daemon.AskPeers(ctx, rp.dir.path, answer, nodedb.MarkQuery)
	for _, p := range working {
		i := slices.IndexFunc(all, func(m member.Member) bool { return m.Address == p.Address })
		others[i].works = true
	}

	return others, err
}

// nameOf is what a member is called in a message: members that were never heard of have no name yet.
func nameOf(m member.Member) string {
	if m.Name == "" {
		return fmt.Sprintf("member %d", m.ID)
	}

	return m.Name
}
