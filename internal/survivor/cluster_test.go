// SPDX-License-Identifier: AGPL-3.0-only

package survivor

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// peer is a member of a cluster whose messages are on their way for as long as it pleases. Its log is kept whole; what a snapshot has
// replaced is hidden where a member has to do without.
type peer struct {
	node

	disk  uint64 // entries on its disk; a leader has more in memory, as it sends what it is still writing
	first uint64 // of the entries that it still has: the snapshot hides those before
	down  bool
	given map[uint64]bool // votes of a candidate; nil otherwise

	resync resync // what became of a member that broke
}

// messageKind is one of raft's.
type messageKind uint8

const (
	voteRequest messageKind = iota
	voteReply
	appendRequest
	appendReply
	installRequest
)

// message is on its way. It may come late, twice or never.
type message struct {
	kind     messageKind
	from, to uint64
	term     uint64
	last     Position // of a candidate's log; the one before the entries; of the snapshot; what was reached
	entries  []Entry  // for a snapshot all that it stands for
	commit   uint64
	granted  bool
}

// maxOnTheWay bounds the messages that are on their way.
const maxOnTheWay = 40

// cluster is a cluster that follows raft's rules as libraft does, with whatever goes wrong around it: messages that come late, a leader whose disk
// lags, match indexes that never fall while somebody leads, snapshots, crashes, elections at any moment, changes of roles. There is no
// pre-vote, and nobody refuses a vote for having a leader: that makes more things happen, not fewer.
type cluster struct {
	simulation
	peers   []*peer // by id-1
	sent    []message
	leaders map[uint64]uint64   // by term
	in      []uint64            // the term in which each entry was committed
	made    map[Position]uint64 // what was written under an index and a term, by the first bytes of its sum

	backups   []disk
	broken    promise // the first one
	violation string  // how
	figures   map[string]int
}

// newCluster makes a cluster of 3 to 5 voters, and perhaps a stand-by and a spare.
func newCluster(seed uint64) *cluster {
	c := &cluster{leaders: map[uint64]uint64{}, made: map[Position]uint64{}, figures: map[string]int{}}
	c.Rand = rand.New(rand.NewPCG(seed, 2))
	n := 3 + c.IntN(3)
	others := 0
	if c.IntN(3) == 0 {
		others = c.IntN(3)
	}

	c.begin(n, others)
	return c
}

// begin gives all members but a spare the first entry.
func (c *cluster) begin(voting int, others int) {
	var configuration raftlog.Configuration
	for id := 1; id <= voting+others; id++ {
		role := raftlog.Voter
		if id > voting {
			role = raftlog.StandBy + raftlog.Role(id-voting-1)
		}

		configuration = append(configuration, raftlog.Server{ID: uint64(id), Role: role})
	}

	first := c.entry(1, configuration)
	c.committed, c.in = []Entry{first}, []uint64{1}
	for _, server := range configuration {
		p := &peer{node: node{id: server.ID, term: 1}, first: 1}
		if server.Role != raftlog.Spare {
			p.log, p.disk, p.commit = []Entry{first}, 1, 1
		}

		c.peers = append(c.peers, p)
	}
}

// promise is what was broken.
type promise string

const (
	oneLeader   promise = "two leaders in a term"
	completion  promise = "a committed entry lost" // a leader lacks it, or may be elected without it, or something else is applied in its place
	logMatching promise = "logs that raft takes for equal differ"
	ours        promise = "what this package says is wrong"
)

func (c *cluster) fail(broken promise, format string, a ...any) {
	if c.violation == "" {
		c.broken, c.violation = broken, fmt.Sprintf(format, a...)
	}
}

// end is the index of the last entry in memory.
func (p *peer) end() uint64 { return uint64(len(p.log)) }

func (p *peer) isVoter() bool { return slices.Contains(voters(p.configuration()), p.id) }

// cut takes entries off the end. What is appended then does not end up in the logs that this one shares memory with.
func (p *peer) cut(to uint64) {
	p.log = p.log[:to:to]
	p.disk = min(p.disk, to)
}

// termAt is the term at an index, as far as the member can tell: 0 where it cannot.
func (p *peer) termAt(index uint64) uint64 {
	if index == 0 || index > p.end() || index < p.first && index != p.snapshot {
		return 0
	}

	return p.log[index-1].Term
}

// follow has a member follow a term. What it was writing as a leader gets to its disk.
func (p *peer) follow(term uint64) {
	if term > p.term {
		p.term, p.voted = term, 0
	}

	p.leader, p.given, p.disk = false, nil, p.end()
}

// crash ends a member; it keeps what is on its disk.
func (p *peer) crash() {
	p.cut(max(min(p.disk, p.end()), p.snapshot))
	p.disk, p.commit = p.end(), p.snapshot
	p.leader, p.given, p.down = false, nil, true
}

func (c *cluster) post(m message) {
	if len(c.sent) == maxOnTheWay {
		i := c.IntN(maxOnTheWay)
		c.sent[i] = m
		return
	}

	c.sent = append(c.sent, m)
}

// stand has a member stand for election.
func (c *cluster) stand(p *peer) {
	if p.down || p.leader || !p.isVoter() {
		return
	}

	p.follow(p.term + 1)
	p.voted, p.given = p.id, map[uint64]bool{p.id: true}
	c.win(p)
	for _, id := range voters(p.configuration()) {
		if id != p.id {
			c.post(message{kind: voteRequest, from: p.id, to: id, term: p.term, last: p.last()})
		}
	}
}

// win makes a candidate leader that has the votes. It begins its term with a barrier.
func (c *cluster) win(p *peer) {
	if p.given == nil || !p.votes(func(id uint64) bool { return p.given[id] }) {
		return
	}

	other, ok := c.leaders[p.term]
	if ok && other != p.id {
		c.fail(oneLeader, "term %d has two leaders, %d and %d", p.term, other, p.id)
	}

	c.leaders[p.term] = p.id
	if p.resync.done > 0 {
		c.figures["led after a resync"]++
	}

	for id := range p.given {
		if id != p.id && c.peers[id-1].resync.done > 0 {
			c.figures["elected by one that resynced"]++
			break
		}
	}

	for i, e := range c.committed {
		if c.in[i] < p.term && (uint64(i) >= p.end() || !p.log[i].same(e)) { // a leader that is deposed already may lack what a later one commits
			c.fail(completion, "member %d leads term %d and lacks entry %d, which is committed", p.id, p.term, i+1)
			break
		}
	}

	p.leader, p.given, p.match = true, nil, map[uint64]uint64{}
	p.match[p.id] = p.disk
	if slices.Equal(voters(p.configuration()), []uint64{p.id}) {
		c.apply(p, p.disk) // libraft does the same: what the only voter holds is committed
	}

	barrier := c.entry(p.term, nil)
	barrier.Type = raftlog.BarrierEntry
	c.append(p, barrier)
}

// append has a leader write an entry: its disk gets it later.
func (c *cluster) append(p *peer, e Entry) {
	p.log = append(p.log, e)
	at := Position{Index: p.end(), Term: e.Term}
	_, ok := c.made[at]
	if ok {
		c.fail(logMatching, "two entries have index %d and term %d", at.Index, at.Term)
	}

	c.made[at] = c.sums
}

// transaction has a leader write a transaction, unless its last one is not applied yet.
func (c *cluster) transaction(p *peer) bool {
	for i := p.end(); i > p.commit && p.log[i-1].Term == p.term; i-- {
		if p.log[i-1].Transaction {
			return false
		}
	}

	e := c.entry(p.term, nil)
	e.Transaction = true
	c.append(p, e)
	return true
}

// change has a leader give a member another role, take it out of the list, or put it back as a spare.
func (c *cluster) change(p *peer) {
	own := p.commit > 0 && p.log[p.commit-1].Term == p.term
	if !own || p.change() > p.commit {
		return
	}

	configuration := slices.Clone(p.configuration())
	id := 1 + c.Uint64N(uint64(len(c.peers)))
	i := slices.IndexFunc(configuration, func(s raftlog.Server) bool { return s.ID == id })
	switch {
	case i < 0:
		configuration = append(configuration, raftlog.Server{ID: id, Role: raftlog.Spare})
	case c.IntN(8) == 0:
		configuration = slices.Delete(configuration, i, i+1)
	default:
		role := raftlog.Role(c.IntN(3))
		if role == configuration[i].Role { // raft refuses that
			return
		}

		configuration[i].Role = role
	}

	if len(voters(configuration)) > 0 {
		c.append(p, c.entry(p.term, configuration))
	}
}

// write gets some of what a leader has in memory to its disk.
func (c *cluster) write(p *peer) {
	if p.disk < p.end() {
		p.disk += 1 + c.Uint64N(p.end()-p.disk)
		p.match[p.id] = max(p.match[p.id], p.disk)
		c.advance(p)
	}
}

// advance commits what a majority has of the leader's own term. Its own disk counts as another's does.
func (c *cluster) advance(p *peer) {
	for index := p.end(); index > p.commit && p.log[index-1].Term == p.term; index-- {
		if p.votes(func(id uint64) bool { return p.match[id] >= index }) {
			c.apply(p, index)
			return
		}
	}
}

// apply tells a member that its entries are committed up to an index.
func (c *cluster) apply(p *peer, upTo uint64) {
	for i := p.commit; i < upTo; i++ {
		if i == uint64(len(c.committed)) {
			if !p.leader {
				c.fail(completion, "member %d applies entry %d, which nobody has committed", p.id, i+1)
				return
			}

			c.committed, c.in = append(c.committed, p.log[i]), append(c.in, p.term)
		}

		if !c.committed[i].same(p.log[i]) {
			c.fail(completion, "member %d applies another entry %d than was committed", p.id, i+1)
			return
		}
	}

	p.commit = max(p.commit, upTo)
}

// send has a leader send entries to a member, from a place where it may be or where it was, or the snapshot.
func (c *cluster) send(p *peer, to *peer) {
	i := slices.IndexFunc(p.configuration(), func(s raftlog.Server) bool { return s.ID == to.id })
	if p == to || i < 0 || p.configuration()[i].Role == raftlog.Spare {
		return
	}

	before := min(p.match[to.id], p.end())
	switch c.IntN(4) {
	case 0, 1:
		before = min(to.end(), p.end()) // where it said it was
	case 2:
		before = c.Uint64N(p.end() + 1)
	}

	if before > 0 && p.termAt(before) == 0 || before == 0 && p.first > 1 || p.snapshot > 0 && c.IntN(20) == 0 {
		c.post(message{kind: installRequest, from: p.id, to: to.id, term: p.term, entries: p.log[:p.snapshot:p.snapshot],
			last: Position{Index: p.snapshot, Term: p.log[p.snapshot-1].Term}})
		return
	}

	upTo := before + c.Uint64N(p.end()-before+1)
	if c.IntN(2) == 0 {
		upTo = p.end()
	}

	c.post(message{kind: appendRequest, from: p.id, to: to.id, term: p.term, last: Position{Index: before, Term: p.termAt(before)},
		entries: p.log[before:upTo:upTo], commit: p.commit})
}

// snap has a member take a snapshot of what it has applied, and drop entries before it.
func (c *cluster) snap(p *peer) {
	if p.commit <= p.snapshot {
		return
	}

	p.snapshot += 1 + c.Uint64N(p.commit-p.snapshot)
	if c.IntN(2) == 0 {
		p.first += c.Uint64N(p.snapshot + 2 - p.first)
	}
}

// deliver brings a message that is on its way; a few get lost, or come once more.
func (c *cluster) deliver() {
	if len(c.sent) == 0 {
		return
	}

	i := c.IntN(len(c.sent))
	if c.IntN(2) == 0 {
		i = len(c.sent) - 1
	}

	m := c.sent[i]
	fate := c.IntN(16)
	if fate != 0 {
		c.sent[i] = c.sent[len(c.sent)-1]
		c.sent = c.sent[:len(c.sent)-1]
	}

	if fate != 1 {
		c.receive(m)
	}
}

// receive brings a message.
func (c *cluster) receive(m message) {
	p := c.peers[m.to-1]
	if p.down {
		return
	}

	if m.term > p.term {
		p.follow(m.term)
	}

	switch m.kind {
	case voteRequest:
		c.vote(p, m)
	case voteReply:
		if p.given != nil && m.term == p.term && m.granted {
			p.given[m.from] = true
			c.win(p)
		}
	case appendRequest, installRequest:
		if m.term < p.term {
			c.post(message{kind: appendReply, from: p.id, to: m.from, term: p.term})
			return
		}

		if p.leader {
			c.fail(oneLeader, "term %d has two leaders, %d and %d", p.term, m.from, p.id)
			return
		}

		p.follow(m.term)
		if m.kind == installRequest {
			c.install(p, m)
		} else {
			c.accept(p, m)
		}
	case appendReply:
		if p.leader && m.term == p.term && m.granted {
			p.match[m.from] = max(p.match[m.from], min(m.last.Index, p.end()))
			c.advance(p)
		}
	}
}

// vote answers a candidate. A member asks whether it is a voter itself, in its own last configuration, and never whether the candidate is.
func (c *cluster) vote(p *peer, m message) {
	granted := m.term == p.term && p.isVoter() && !p.leader && (p.voted == 0 || p.voted == m.from) && p.last().Compare(m.last) <= 0
	if granted {
		p.voted = m.from
	}

	c.post(message{kind: voteReply, from: p.id, to: m.from, term: p.term, granted: granted})
}

// accept takes a leader's entries.
func (c *cluster) accept(p *peer, m message) {
	reply := message{kind: appendReply, from: p.id, to: m.from, term: p.term}
	if m.last.Index > 0 && p.termAt(m.last.Index) != m.last.Term {
		if p.termAt(m.last.Index) != 0 && m.last.Index <= p.commit {
			c.fail(completion, "member %d shuts down: the leader's entry %d is not what it knows to be committed", p.id, m.last.Index)
		}

		c.post(reply)
		return
	}

	for i, e := range m.entries {
		index := m.last.Index + 1 + uint64(i)
		known := p.termAt(index)
		switch {
		case index <= p.end() && (known == e.Term || index <= p.snapshot):
			continue
		case index <= p.commit:
			c.fail(completion, "member %d shuts down: the leader replaces entry %d, which it knows to be committed", p.id, index)
			return
		case index <= p.end():
			p.cut(index - 1)
		}

		p.log = append(p.log, m.entries[i:]...)
		break
	}

	p.disk = p.end()
	reply.granted, reply.last = true, Position{Index: m.last.Index + uint64(len(m.entries))}
	c.apply(p, min(m.commit, reply.last.Index))
	c.post(reply)
}

// install takes a leader's snapshot, in place of the whole log, unless it has as much.
func (c *cluster) install(p *peer, m message) {
	if p.snapshot < m.last.Index && p.termAt(m.last.Index) < m.last.Term {
		c.figures["snapshots installed"]++
		p.log, p.disk = m.entries, m.last.Index
		p.snapshot, p.first, p.commit = m.last.Index, m.last.Index+1, 0
		c.apply(p, m.last.Index)
	}

	c.post(message{kind: appendReply, from: p.id, to: m.from, term: p.term, granted: true, last: Position{Index: m.last.Index}})
}

// checkMatching checks that logs with an entry of one index and term are the same up to it.
func (c *cluster) checkMatching() {
	for i, a := range c.peers {
		for _, b := range c.peers[:i] {
			same := true
			for index := range min(a.end(), b.end()) {
				x, y := a.log[index], b.log[index]
				if x.Term == y.Term && (!same || !x.same(y)) {
					c.fail(logMatching, "members %d and %d have entry %d of term %d, and not the same up to it", b.id, a.id, index+1, x.Term)
					return
				}

				same = same && x.same(y)
			}
		}
	}
}
