// SPDX-License-Identifier: AGPL-3.0-only

package survivor

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// node is a member of a simulated cluster. Its log is kept whole; what a snapshot has replaced is only hidden when the log is
// shown to Compare.
type node struct {
	id       uint64
	term     uint64
	voted    uint64 // in that term
	log      []Entry
	snapshot uint64
	commit   uint64 // what it knows to be committed
	leader   bool
	match    map[uint64]uint64 // of a leader, in its term

	copied *node // as it was once; nil if nobody has copied it
}

func (n *node) last() Position {
	if len(n.log) == 0 {
		return Position{}
	}

	return Position{Index: uint64(len(n.log)), Term: n.log[len(n.log)-1].Term}
}

// change is the index of the configuration in force, 0 for none.
func (n *node) change() uint64 {
	for i := len(n.log); i > 0; i-- {
		if n.log[i-1].Change != nil {
			return uint64(i)
		}
	}

	return 0
}

func (n *node) configuration() raftlog.Configuration {
	i := n.change()
	if i > 0 {
		return *n.log[i-1].Change
	}

	return nil
}

func (n *node) votes(ids func(uint64) bool) bool {
	all := voters(n.configuration())
	count := 0
	for _, id := range all {
		if ids(id) {
			count++
		}
	}

	return 2*count > len(all)
}

// simulation is a cluster that follows raft's rules, and what it has ever committed.
type simulation struct {
	*rand.Rand
	nodes     []*node // by id-1
	committed []Entry
	sums      uint64
}

func (s *simulation) node(id uint64) *node { return s.nodes[id-1] }

func (s *simulation) entry(term uint64, change raftlog.Configuration) Entry {
	s.sums++
	e := Entry{Term: term, Type: raftlog.CommandEntry}
	if change != nil {
		e.Type, e.Change = raftlog.ChangeEntry, &change
	}

	binary.LittleEndian.PutUint64(e.Sum[:], s.sums)
	return e
}

// newSimulation makes a cluster of 3 to 7 members of which some are voters; all but the spares have the first entry.
func newSimulation(seed uint64) *simulation {
	s := &simulation{Rand: rand.New(rand.NewPCG(seed, 1))}
	var c raftlog.Configuration
	n := 3 + s.IntN(5)
	voting := 1 + s.IntN(n)
	for id := 1; id <= n; id++ {
		role := raftlog.Voter
		if id > voting {
			role = raftlog.Role(2 * s.IntN(2)) // stand-by or spare
		}

		c = append(c, raftlog.Server{ID: uint64(id), Role: role})
	}

	first := s.entry(1, c)
	s.committed = []Entry{first}
	for _, server := range c {
		m := &node{id: server.ID, term: 1}
		if server.Role != raftlog.Spare {
			m.log, m.commit = []Entry{first}, 1
		}

		s.nodes = append(s.nodes, m)
	}

	return s
}

// elect lets a voter stand for election, of which these others hear.
func (s *simulation) elect(candidate *node, hears func(*node) bool) bool {
	if !slices.Contains(voters(candidate.configuration()), candidate.id) {
		return false
	}

	candidate.term++
	candidate.voted, candidate.leader = candidate.id, false
	granted := map[uint64]bool{candidate.id: true}
	for _, n := range s.nodes {
		if n == candidate || !hears(n) || !slices.Contains(voters(candidate.configuration()), n.id) {
			continue
		}

		if n.term > candidate.term {
			candidate.term, candidate.voted = n.term, 0
			return false
		}

		if n.term < candidate.term {
			n.term, n.voted, n.leader = candidate.term, 0, false
		}

		if n.voted == 0 && n.last().Compare(candidate.last()) <= 0 {
			n.voted = candidate.id
			granted[n.id] = true
		}
	}

	if !candidate.votes(func(id uint64) bool { return granted[id] }) {
		return false
	}

	candidate.leader, candidate.match = true, map[uint64]uint64{}
	return true
}

// propose appends an entry to a leader's log.
func (s *simulation) propose(n *node, change raftlog.Configuration) {
	n.log = append(n.log, s.entry(n.term, change))
	s.advance(n)
}

// write has a leader write a transaction, unless its last one is not applied yet. Its commit index is what it has applied.
func (s *simulation) write(n *node) {
	for i := uint64(len(n.log)); i > n.commit && n.log[i-1].Term == n.term; i-- {
		if n.log[i-1].Transaction {
			return
		}
	}

	e := s.entry(n.term, nil)
	e.Transaction = true
	n.log = append(n.log, e)
	s.advance(n)
}

// mayChange tells whether a leader may change the configuration: the last change is committed, and, where strict, so is an
// entry of its own term. dqlite does not ask for the second, without which raft itself is not safe; LXD's leader has such an
// entry, as it reads the database first.
func (s *simulation) mayChange(n *node, strict bool) bool {
	own := n.commit > 0 && n.log[n.commit-1].Term == n.term
	return n.leader && n.change() <= n.commit && (own || !strict)
}

// assign gives a member another role. Raft refuses to give it the one that it has.
func (s *simulation) assign(n *node, id uint64, role raftlog.Role) {
	c := slices.Clone(n.configuration())
	for i := range c {
		if c[i].ID != id {
			continue
		}

		if c[i].Role == role {
			return
		}

		c[i].Role = role
	}

	if len(voters(c)) > 0 {
		s.propose(n, c)
	}
}

// replicate brings a leader's log up to an index to another member.
func (s *simulation) replicate(from *node, to *node, upTo uint64) {
	role := slices.IndexFunc(from.configuration(), func(server raftlog.Server) bool { return server.ID == to.id })
	if role < 0 || from.configuration()[role].Role == raftlog.Spare {
		return
	}

	if to.term > from.term {
		from.term, from.voted, from.leader = to.term, 0, false
		return
	}

	if to.term < from.term {
		to.term, to.voted = from.term, 0
	}

	to.leader = false
	for i := range upTo {
		if i == uint64(len(to.log)) {
			to.log = append(to.log, from.log[i])
		}

		if !to.log[i].same(from.log[i]) {
			if i < to.commit {
				panic(fmt.Sprintf("the simulation is wrong: member %d replaces committed entry %d", to.id, i+1))
			}

			to.log = append(slices.Clone(to.log[:i]), from.log[i])
		}
	}

	to.commit = max(to.commit, min(from.commit, upTo))
	from.match[to.id] = max(from.match[to.id], upTo)
	s.advance(from)
}

// advance commits what a majority has of the leader's own term.
func (s *simulation) advance(n *node) {
	for index := uint64(len(n.log)); index > n.commit; index-- {
		if n.log[index-1].Term != n.term {
			return
		}

		if n.votes(func(id uint64) bool { return id == n.id || n.match[id] >= index }) {
			n.commit = index
			for i, e := range n.log[:index] {
				if i == len(s.committed) {
					s.committed = append(s.committed, e)
				}

				if !s.committed[i].same(e) {
					panic(fmt.Sprintf("the simulation is wrong: entry %d is committed twice", i+1))
				}
			}

			return
		}
	}
}

// step lets something happen.
func (s *simulation) step() {
	n := s.nodes[s.IntN(len(s.nodes))]
	for range 3 { // leaders do most
		if !n.leader {
			n = s.nodes[s.IntN(len(s.nodes))]
		}
	}

	switch what := s.IntN(100); {
	case what < 12:
		reach := 0.3 + 0.7*s.Float64()
		s.elect(n, func(*node) bool { return s.Float64() < reach })
	case what < 16: // a crash
		n.leader, n.commit = false, n.snapshot
	case what < 18:
		o := *n
		o.log, o.copied = slices.Clone(n.log), nil
		n.copied = &o
	case what < 24:
		if n.commit > n.snapshot {
			n.snapshot += 1 + s.Uint64N(n.commit-n.snapshot)
		}
	case !n.leader:
	case what < 44:
		s.write(n)
	case what < 50:
		s.propose(n, nil)
	case what < 60:
		if s.mayChange(n, true) {
			s.assign(n, 1+s.Uint64N(uint64(len(s.nodes))), raftlog.Role(s.IntN(3)))
		}
	default:
		to := s.nodes[s.IntN(len(s.nodes))]
		if to != n {
			s.replicate(n, to, 1+s.Uint64N(uint64(len(n.log))))
		}
	}
}

// evidence is a log as it is shown, and the member's whole log, of which it is a part.
type evidence struct {
	*Log
	whole []Entry

	// told says that the log has recovery entries, all in the term of the entry before, and that each does what no leader does.
	told bool
}

// shown is a member's log as a source may show it.
func (s *simulation) shown(n *node) evidence {
	l, told := &Log{Member: n.id, Term: n.term, Whole: true, First: 1, Entries: slices.Clone(n.log)}, false
	if n.snapshot > 0 {
		l.Snapshot = Position{Index: n.snapshot, Term: n.log[n.snapshot-1].Term}
		l.SnapshotConfiguration = (&node{log: n.log[:n.snapshot]}).configuration()
		l.First = n.snapshot + 1
		if s.IntN(2) == 0 { // entries of before
			l.First = 1 + s.Uint64N(n.snapshot)
		}

		l.Entries = l.Entries[l.First-1:]
	}

	if s.IntN(8) == 0 {
		l.Term = 0
	}

	if s.IntN(8) == 0 && len(l.Entries) > 0 { // damage
		l.Whole = false
		l.truncate(s.IntN(1 + int(l.end()-max(l.Snapshot.Index, l.First-1))))
	} else if s.IntN(3) == 0 && len(n.log) > 0 { // edited since, perhaps twice
		inTerm := s.IntN(2) == 0 // by an Incus
		l.InTerm = inTerm
		told = inTerm && !n.configuration().LeadsTo(n.configuration()[:1])
		for i := range uint64(1 + s.IntN(2)) {
			e := s.entry(1, n.configuration()[:1])
			switch before := l.Last().Term; {
			case s.IntN(3) == 0: // fenced
				e.Term = 1e9 + 1000*i
				l.Term, told = e.Term, false
			case inTerm:
				e.Term = max(before, 1)
			}

			l.Entries = append(l.Entries, e)
		}

		l.Edited = true
	}

	return evidence{Log: l, whole: n.log, told: told}
}
