// SPDX-License-Identifier: AGPL-3.0-only

package survivor

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// voting is a cluster of so many voters in which nothing happens by itself.
func voting(n int) *cluster {
	c := &cluster{leaders: map[uint64]uint64{}, made: map[Position]uint64{}, figures: map[string]int{}}
	c.Rand = rand.New(rand.NewPCG(0, 3))
	c.begin(n, 0)
	return c
}

// arrive brings all messages of a kind between two members.
func (c *cluster) arrive(kind messageKind, from, to uint64) {
	is := func(m message) bool { return m.kind == kind && m.from == from && m.to == to }
	for i := slices.IndexFunc(c.sent, is); i >= 0; i = slices.IndexFunc(c.sent, is) {
		m := c.sent[i]
		c.sent = slices.Delete(c.sent, i, i+1)
		c.receive(m)
	}
}

// elect has a member stand, and these vote for it.
func (c *cluster) elect(id uint64, by ...uint64) *peer {
	c.stand(c.peers[id-1])
	for _, voter := range by {
		c.arrive(voteRequest, id, voter)
		c.arrive(voteReply, voter, id)
	}

	return c.peers[id-1]
}

// bring brings a leader's whole log to these, and their answers to it.
func (c *cluster) bring(l *peer, to ...uint64) {
	for _, id := range to {
		c.receive(message{kind: appendRequest, from: l.id, to: id, term: l.term, last: Position{Index: 1, Term: 1}, entries: slices.Clone(l.log[1:]),
			commit: l.commit})
		c.arrive(appendReply, id, l.id)
	}
}

// transactions has a leader write, and these hold it, so many transactions one after the other. They are the nonces of a member that is damaged.
func (c *cluster) transactions(l *peer, n int, of *peer, by ...uint64) {
	for range n {
		c.transaction(l)
		of.resync.nonces[c.sums] = true
		for l.disk < l.end() {
			c.write(l)
		}

		c.bring(l, by...)
	}
}

// all is a member's disk, read to its end.
func (c *cluster) all(p *peer) disk {
	down := p.down
	p.down = true
	defer func() { p.down = down }()

	return c.read(p)
}

// decide is what Resync says of a source for a damaged member.
func (d disk) decide(p *peer) (Taken, ResyncCode) {
	taken, err := Resync(Source{Log: d.Log, Nonce: d.nonce(p.resync.nonces)}, Own{ID: p.id, Metadata: p.resync.metadata, Log: p.resync.own.Log})
	var refusal *ResyncRefusal
	if errors.As(err, &refusal) {
		return taken, refusal.Code
	}

	return taken, ""
}

func wantCode(t *testing.T, got ResyncCode, want ResyncCode) {
	t.Helper()
	if got != want {
		t.Errorf("Resync says %q, wanted %q", got, want)
	}
}

func wantBroken(t *testing.T, c *cluster, want promise) {
	t.Helper()
	if c.broken != want {
		t.Errorf("broken is %q (%s), wanted %q", c.broken, c.violation, want)
	}
}

// TestLeadersDisk has a leader that commits an entry with the help of a member that has acknowledged it and then taken the leader's own disk,
// which did not have it yet.
func TestLeadersDisk(t *testing.T) {
	for _, wrong := range []bool{true, false} {
		c := voting(3)
		l := c.elect(1, 2)
		c.bring(l, 2)
		f := c.peers[1]
		c.damage(f)
		f.resync.metadata = &raftlog.Metadata{Term: f.term, Vote: f.voted}
		d := c.all(l)
		_, code := d.decide(f)
		wantCode(t, code, NoNonce)
		if wrong {
			c.takeAnyway(f, d)
		}

		c.write(l)
		if l.commit != 2 {
			t.Fatalf("the leader has committed %d entries", l.commit)
		}

		if !wrong {
			c.transactions(l, 2, f, 3)
			d = c.all(c.peers[2])
			taken, code := d.decide(f)
			wantCode(t, code, "")
			c.take(f, d, taken.Last.Index, raftlog.Metadata{Term: taken.Term, Vote: taken.Vote})
		}

		l.crash()
		wantBroken(t, c, "")
		p := c.electable(c.committed)
		if (p != nil) != wrong {
			t.Errorf("wrong way %v: member that can be elected without what is committed: %v", wrong, p)
		}
	}
}

// TestNonceNotCommitted has a leader that is deposed, and does not know it, write the nonce.
func TestNonceNotCommitted(t *testing.T) {
	c := voting(3)
	old := c.elect(1, 2)
	c.bring(old, 2, 3)
	c.write(old)
	l := c.elect(3, 2)
	c.bring(l, 2)
	f := c.peers[1]
	c.damage(f)
	f.resync.metadata = &raftlog.Metadata{Term: f.term, Vote: f.voted}
	c.transactions(old, 1, f)
	d := c.all(old)
	_, code := d.decide(f)
	wantCode(t, code, NonceNotProven)

	c.takeAnyway(f, d)
	c.write(l)
	if len(c.committed) != 3 || c.committed[2].Term != 3 {
		t.Fatalf("committed is %v", c.committed)
	}

	old.crash()
	l.crash()
	wantBroken(t, c, "")
	if c.electable(c.committed) == nil {
		t.Error("nobody can be elected without what is committed")
	}
}

// TestForgottenVote has a member vote twice in a term, as its log and its metadata are older than the nonce, which alone keeps what is
// acknowledged safe.
func TestForgottenVote(t *testing.T) {
	for _, wrong := range []bool{true, false} {
		c := voting(5)
		c.stand(c.peers[1])
		c.arrive(voteRequest, 2, 3)
		l := c.elect(1, 4, 5)
		f := c.peers[4]
		c.damage(f)
		f.resync.metadata = nil
		c.write(l)
		c.transactions(l, 2, f, 3, 4)
		if l.commit < 3 {
			t.Fatalf("the leader has committed %d entries", l.commit)
		}

		_, code := f.resync.own.decide(f)
		wantCode(t, code, NoNonce)
		if wrong {
			c.take(f, f.resync.own, 1, raftlog.Metadata{Term: 1})
		} else {
			d := c.all(c.peers[3])
			taken, code := d.decide(f)
			wantCode(t, code, "")
			c.take(f, d, taken.Last.Index, raftlog.Metadata{Term: taken.Term, Vote: taken.Vote})
		}

		c.arrive(voteRequest, 2, 5)
		c.arrive(voteReply, 5, 2)
		c.arrive(voteReply, 3, 2)
		if wrong {
			wantBroken(t, c, oneLeader)
		} else {
			wantBroken(t, c, "")
		}
	}
}
