// SPDX-License-Identifier: AGPL-3.0-only

package survivor

import (
	"slices"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// wrongWays are ways to bring a member back that look right. One more, a nonce that is there and not committed, breaks one cluster of a million:
// TestNonceNotCommitted has that one, and TestForgottenVote another.
var wrongWays = []struct {
	name   string
	breaks promise
	back   way
}{
	{"the leader's disk, read after the stop", completion, func(c *cluster, p *peer) {
		c.takeOf(p, (*peer).leads, (*cluster).whole)
	}},
	{"the leader's disk, as far as it knows to be committed", completion, func(c *cluster, p *peer) {
		c.takeOf(p, (*peer).leads, func(_ *cluster, o *peer, d disk) disk { return d.cutTo(o.commit) })
	}},
	{"the leader's disk, as far as it proves to be committed", completion, func(c *cluster, p *peer) {
		c.takeOf(p, (*peer).leads, func(_ *cluster, _ *peer, d disk) disk { return d.cutTo(d.Proven().Index) })
	}},
	{"another member's disk", completion, func(c *cluster, p *peer) {
		c.takeOf(p, func(o *peer) bool { return !o.leader }, (*cluster).whole)
	}},
	{"a backup from before the stop", completion, func(c *cluster, p *peer) {
		if len(c.backups) > 0 {
			c.takeAnyway(p, c.backups[c.IntN(len(c.backups))])
		}
	}},
	{"what is left of its own log", completion, func(c *cluster, p *peer) {
		own := p.resync.own
		c.takeAnyway(p, own.cutTo(c.Uint64N(uint64(len(own.whole))+1)))
	}},
	{"its own whole log, term and vote forgotten", oneLeader, func(c *cluster, p *peer) {
		own := p.resync.own
		if len(own.whole) > 0 {
			c.take(p, own, uint64(len(own.whole)), raftlog.Metadata{Term: own.Last().Term})
		}
	}},
	{"a nonce from before the stop", completion, func(c *cluster, p *peer) {
		d := c.source(p)
		taken, err := Resync(Source{Log: d.Log, Nonce: 1}, c.own(p))
		if err == nil {
			c.take(p, d, taken.Last.Index, raftlog.Metadata{Term: taken.Term, Vote: taken.Vote})
		}
	}},
	{"a right source, and a fence after it", completion, func(c *cluster, p *peer) {
		c.changed(p, func(log []Entry, term uint64) []Entry {
			return append(log, c.entry(term+1000, (&node{log: log}).configuration()))
		})
	}},
	{"a right source, numbered anew", logMatching, func(c *cluster, p *peer) {
		c.changed(p, func(log []Entry, _ uint64) []Entry {
			i := c.IntN(len(log))
			if log[i].Change != nil {
				return nil
			}

			return slices.Delete(log, i, i+1)
		})
	}},
}

func (p *peer) leads() bool { return p.leader }

// whole leaves a disk as it is.
func (c *cluster) whole(_ *peer, d disk) disk { return d }

// takeOf takes what a disk has, or a part of it, of a member of which something is true.
func (c *cluster) takeOf(p *peer, is func(*peer) bool, part func(*cluster, *peer, disk) disk) {
	o := c.running(p, is)
	if o != nil {
		c.takeAnyway(p, part(c, o, c.read(o)))
	}
}

// takeAnyway takes a log without asking whether it is right, and keeps the member's own term and vote, as is right.
func (c *cluster) takeAnyway(p *peer, d disk) {
	if len(d.whole) == 0 || !slices.ContainsFunc((&node{log: d.whole}).configuration(), func(s raftlog.Server) bool { return s.ID == p.id }) {
		return
	}

	m := raftlog.Metadata{Term: p.term, Vote: p.voted}
	if m.Term < d.Last().Term {
		m = raftlog.Metadata{Term: d.Last().Term}
	}

	c.take(p, d, uint64(len(d.whole)), m)
}

// changed takes a log that is right to take, and changes it.
func (c *cluster) changed(p *peer, change func(log []Entry, term uint64) []Entry) {
	d := c.source(p)
	taken, err := Resync(Source{Log: d.Log, Nonce: d.nonce(p.resync.nonces)}, c.own(p))
	if err != nil || d.Snapshot.Index > 0 {
		return
	}

	log := change(slices.Clone(d.whole), taken.Term)
	if log != nil {
		d.whole = log
		c.take(p, d, uint64(len(log)), raftlog.Metadata{Term: max(taken.Term, log[len(log)-1].Term), Vote: taken.Vote})
	}
}

// TestWrongResync brings members back in ways that are wrong, each in clusters with the same seeds: the simulation finds that each of them breaks
// raft's promises, so it would find it of ours. CAMPAIGN=1 counts how many of all clusters each of them breaks; else the first one is enough.
func TestWrongResync(t *testing.T) {
	all := 0
	for _, w := range wrongWays {
		t.Run(w.name, func(t *testing.T) {
			clusters, found := 0, 0
			figures := each(wrongCampaign, w.back, func(_ uint64, c *cluster) bool {
				clusters++
				if c.broken == w.breaks {
					found++
				}

				return found == 0 || campaign()
			})
			all += clusters
			if campaign() {
				t.Logf("sample: resync in simulated clusters, wrong on purpose, %s: %d of %d, seed 0: %d members brought back, %s in %d clusters",
					w.name, clusters, wrongCampaign, figures["resyncs"], w.breaks, found)
			}

			if found == 0 {
				t.Errorf("%s is not found to be wrong", w.name)
			}
		})
	}

	if !campaign() {
		t.Logf("sample: resync in simulated clusters, wrong on purpose, until each of %d ways was found out: %d of %d, seed 0", len(wrongWays), all,
			wrongCampaign*len(wrongWays))
	}
}
