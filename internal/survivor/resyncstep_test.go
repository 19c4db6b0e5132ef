// SPDX-License-Identifier: AGPL-3.0-only

package survivor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// resync is what became of a member that broke.
type resync struct {
	broken   bool              // it does not run, and nothing but a resync starts it
	metadata *raftlog.Metadata // when it stopped; nil where they were lost
	own      disk              // when it stopped
	lost     bool              // all of its log, and part of it otherwise
	nonces   map[uint64]bool   // what was written through a leader since, by number; several where it was tried again
	done     int               // how often it has resynced
}

// disk is what a disk held at some moment, as it is read, and the whole log that it stands for.
type disk struct {
	*Log
	whole []Entry
}

// read reads a member's disk at this moment. Of a running one the end may not be seen.
func (c *cluster) read(p *peer) disk {
	n := max(min(p.disk, p.end()), p.snapshot)
	if !p.down && c.IntN(3) == 0 {
		n = max(p.snapshot, n-min(n, c.Uint64N(3)))
	}

	d := disk{whole: p.log[:n:n], Log: &Log{Member: p.id, Term: p.term, Whole: p.down, First: p.first}}
	if p.snapshot > 0 {
		d.Snapshot = Position{Index: p.snapshot, Term: p.log[p.snapshot-1].Term}
		d.SnapshotConfiguration = (&node{log: p.log[:p.snapshot]}).configuration()
	}

	if n >= p.first {
		d.Entries = d.whole[p.first-1:]
	}

	c.checkProven(d)
	return d
}

// checkProven checks what a disk proves by itself: that it was committed, or, of an only voter that has not led again since it started, that nobody
// can be elected without it.
func (c *cluster) checkProven(d disk) {
	proven := d.whole[:d.Proven().Index]
	known := min(len(proven), len(c.committed))
	switch {
	case !slices.EqualFunc(proven[:known], c.committed[:known], Entry.same), known < len(proven) && c.electable(proven) != nil:
		c.fail(ours, "the disk of member %d is said to prove that entry %d was committed", d.Member, len(proven))
	case known < len(proven):
		c.figures["proven by the only voter"]++
	case uint64(known) > d.Snapshot.Index:
		c.figures["proven by two transactions"]++
	}
}

// cutTo is the disk as if it ended with an index.
func (d disk) cutTo(index uint64) disk {
	l := *d.Log
	index = max(min(index, uint64(len(d.whole))), l.Snapshot.Index)
	l.Entries = nil
	if index >= l.First {
		l.Entries = d.whole[l.First-1 : index : index]
	}

	return disk{Log: &l, whole: d.whole[:index:index]}
}

// damage stops a member for good. Its log may be damaged from somewhere on, or gone, its metadata lost.
func (c *cluster) damage(p *peer) {
	p.crash()
	p.resync = resync{broken: true, own: c.read(p), nonces: map[uint64]bool{}, lost: c.IntN(3) == 0, done: p.resync.done}
	if c.IntN(2) == 0 {
		p.resync.metadata = &raftlog.Metadata{Term: p.term, Vote: p.voted}
	}
}

// writeNonce has a leader write a member's nonce, a value that nobody could know before it had stopped. A leader may be one that is deposed, and does
// not know it.
func (c *cluster) writeNonce(p *peer) {
	for _, i := range c.Perm(len(c.peers)) {
		if c.peers[i].leader && c.transaction(c.peers[i]) {
			p.resync.nonces[c.sums] = true
			return
		}
	}
}

// nonce is the first index at which the database of a source has the nonce, 0 where it has none.
func (d disk) nonce(nonces map[uint64]bool) uint64 {
	for i, e := range d.whole {
		if nonces[binary.LittleEndian.Uint64(e.Sum[:])] {
			return max(uint64(i)+1, d.Snapshot.Index)
		}
	}

	return 0
}

// take starts a member on another log, up to an index, with this term and vote.
func (c *cluster) take(p *peer, d disk, upTo uint64, metadata raftlog.Metadata) {
	p.log, p.disk = d.whole[:upTo:upTo], upTo
	p.snapshot, p.first, p.commit = d.Snapshot.Index, d.First, d.Snapshot.Index
	p.term, p.voted = metadata.Term, metadata.Vote
	p.down = false
	p.resync.broken = false
	p.resync.done++
	c.figures["resyncs"]++
	c.checkMatching()
}

// running picks a member other than this one that was not damaged, and for which that is so; nil where there is none.
func (c *cluster) running(p *peer, is func(*peer) bool) *peer {
	for _, i := range c.Perm(len(c.peers)) {
		o := c.peers[i]
		if o != p && !o.resync.broken && is(o) {
			return o
		}
	}

	return nil
}

// source is any disk: another member's, running or not, leader or not; a backup; what the member itself had.
func (c *cluster) source(p *peer) disk {
	what := c.IntN(10)
	other := c.running(p, func(*peer) bool { return true })
	switch {
	case what == 0 && len(c.backups) > 0:
		return c.backups[c.IntN(len(c.backups))]
	case what == 1 || other == nil:
		return p.resync.own
	default:
		return c.read(other)
	}
}

// own is the member as the product sees it.
func (c *cluster) own(p *peer) Own {
	own := Own{ID: p.id, Metadata: p.resync.metadata}
	if !p.resync.lost {
		cut := p.resync.own.cutTo(uint64(len(p.resync.own.whole)) - min(uint64(len(p.resync.own.whole)), c.Uint64N(4)))
		own.Log = cut.Log
	}

	return own
}

// way is a way to bring a member back.
type way func(c *cluster, p *peer)

// asDecided is the product's way: what Resync decides.
func asDecided(c *cluster, p *peer) {
	d := c.source(p)
	nonce := d.nonce(p.resync.nonces)
	taken, err := Resync(Source{Log: d.Log, Nonce: nonce, Damaged: c.IntN(8) == 0}, c.own(p))
	var refusal *ResyncRefusal
	if errors.As(err, &refusal) {
		c.figures["refused: "+string(refusal.Code)]++
		if !slices.Contains([]ResyncCode{SourceDamaged, NoNonce, NonceNotProven, NotAMember}, refusal.Code) {
			c.fail(ours, "member %d cannot resync from logs of one history: %v", p.id, err)
		}

		return
	}

	for what, is := range map[string]bool{
		"with the nonce in the snapshot": nonce == d.Snapshot.Index, "with metadata lost": p.resync.metadata == nil, "metadata kept": taken.Kept,
		"with another one damaged": c.damaged() > 1, "of a backup": c.isBackup(d),
		"as a voter": taken.Role == raftlog.Voter,
	} {
		if is {
			c.figures[what]++
		}
	}

	upTo := taken.Last.Index
	if c.IntN(4) == 0 { // any part that has the proof is as good
		least := max(taken.Committed.Index, d.Snapshot.Index)
		upTo = least + c.Uint64N(upTo-least+1)
	}

	m := raftlog.Metadata{Term: taken.Term, Vote: taken.Vote}
	if p.resync.metadata == nil && c.IntN(3) == 0 { // and any vote, in any term that is not below the log's
		m = raftlog.Metadata{Term: d.whole[upTo-1].Term + c.Uint64N(3), Vote: c.Uint64N(uint64(len(c.peers)) + 1)}
	}

	c.take(p, d, upTo, m)
}

// damaged is how many members are damaged.
func (c *cluster) damaged() int {
	n := 0
	for _, p := range c.peers {
		if p.resync.broken {
			n++
		}
	}

	return n
}

// isBackup tells whether a disk was read earlier.
func (c *cluster) isBackup(d disk) bool {
	return slices.ContainsFunc(c.backups, func(b disk) bool { return b.Log == d.Log })
}

// step lets something happen; a damaged member comes back in this way.
func (c *cluster) step(back way) {
	p := c.peers[c.IntN(len(c.peers))]
	l := c.running(nil, func(o *peer) bool { return o.leader })
	switch what := c.IntN(200); {
	case what < 80:
		for range 1 + c.IntN(4) {
			c.deliver()
		}

	case what < 92:
		if l == nil || what < 83 {
			c.stand(p)
		}

	case what < 98 && !p.resync.broken: // a crash, or a start
		if p.down {
			p.down = false
		} else if what < 94 {
			p.crash()
		}

	case what < 107:
		if p.resync.broken {
			back(c, p)
		} else if what < 101 && c.IntN(1+12*c.damaged()) == 0 {
			c.damage(p)
		}

	case what < 108 && !p.resync.broken:
		c.backups = append(c.backups, c.read(p))
	case what < 111:
		c.snap(p)
	case what < 125:
		for _, o := range c.peers {
			if o.resync.broken {
				c.writeNonce(o)
			}
		}

	case l == nil:
	default:
		c.lead(l, what)
	}
}

// lead lets a leader do something.
func (c *cluster) lead(l *peer, what int) {
	switch {
	case what < 140:
		c.transaction(l)
	case what < 143:
		c.append(l, c.entry(l.term, nil))
	case what < 148:
		c.change(l)
	case what < 166:
		c.write(l)
	case what < 180:
		for _, o := range c.peers {
			c.send(l, o)
		}
	default:
		c.send(l, c.peers[c.IntN(len(c.peers))])
	}
}

// electable is a member that can be elected, with the vote of everybody who may give it, and lacks entries; nil where there is none.
func (c *cluster) electable(without []Entry) *peer {
	for _, p := range c.peers {
		lacks := p.end() < uint64(len(without)) || !slices.EqualFunc(p.log[:len(without)], without, Entry.same)
		if p.resync.broken || !lacks || !p.isVoter() {
			continue
		}

		if p.votes(func(id uint64) bool {
			o := c.peers[id-1]
			return o == p || !o.resync.broken && o.isVoter() && o.last().Compare(p.last()) <= 0
		}) {
			return p
		}
	}

	return nil
}

// checkCompared checks what [Compare] says of the logs that are left: after a resync its rules hold as before.
func (c *cluster) checkCompared() {
	var logs []*Log
	var whole [][]Entry
	for _, p := range c.peers {
		if p.resync.broken {
			continue
		}

		p.crash()
		d := c.read(p)
		logs, whole = append(logs, d.Log), append(whole, d.whole)
	}

	r := Compare(logs)
	c.figures["compared: "+string(r.Verdict)]++
	if r.Verdict != Known && r.Verdict != TooFew && r.Verdict != Nothing {
		c.fail(ours, "the logs are said to be %q", r.Verdict)
		return
	}

	for _, i := range r.Best {
		if r.Verdict == Known && (len(whole[i]) < len(c.committed) || !slices.EqualFunc(whole[i][:len(c.committed)], c.committed, Entry.same)) {
			c.fail(ours, "the log of member %d is said to hold all that is committed, and does not", logs[i].Member)
		}
	}

	if r.Committed > 0 {
		p := c.electable(whole[r.Best[0]][:r.Committed])
		if p != nil {
			c.fail(ours, "entry %d is said to be committed for certain, and member %d can be elected without it", r.Committed, p.id)
		}
	}
}

// run lets things happen in a cluster until raft's promises are broken, or for a while.
func (c *cluster) run(back way) {
	for range 150 + c.IntN(450) {
		c.step(back)
		if c.violation != "" {
			return
		}
	}

	c.checkMatching()
	for _, p := range c.peers { // what a leader is writing may yet get to its disk, or not
		if !p.resync.broken && c.IntN(2) == 0 {
			p.crash()
		}
	}

	p := c.electable(c.committed)
	if p != nil {
		c.fail(completion, "member %d can be elected and lacks some of the %d entries that are committed", p.id, len(c.committed))
	}

	if c.violation == "" {
		c.checkCompared()
	}
}

func (c *cluster) describe() string {
	text := fmt.Sprintf("%s: %s; %d entries are committed\n", c.broken, c.violation, len(c.committed))
	for _, p := range c.peers {
		text += fmt.Sprintf("member %d term %d vote %d snapshot %d first %d commit %d resynced %d times, broken %v, voters %v:",
			p.id, p.term, p.voted, p.snapshot, p.first, p.commit, p.resync.done, p.resync.broken, voters(p.configuration()))
		for _, e := range p.log {
			text += fmt.Sprintf(" %d/%d", e.Term, binary.LittleEndian.Uint64(e.Sum[:]))
		}

		text += "\n"
	}

	return text
}
