// SPDX-License-Identifier: AGPL-3.0-only

package survivor

import (
	"fmt"
	"slices"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

const recoveredHistories = 20000

// recovered is a cluster of which a member was recovered: those that got its log go on apart from the others, which may be started on
// their old data. Neither hears of the other.
type recovered struct {
	*simulation             // those that were left out; the others are as they were when it happened, and do nothing
	line        *simulation // those that were recovered
	at          uint64      // index of the recovery entry
	old         int         // how much the cluster had committed by then
}

// recover1 recovers a cluster from one of its members, onto some of the others.
func recover1(s *simulation) *recovered {
	source := s.nodes[s.IntN(len(s.nodes))]
	if len(source.log) == 0 {
		return nil
	}

	on := map[uint64]bool{source.id: true}
	for _, n := range s.nodes {
		on[n.id] = on[n.id] || s.IntN(3) == 0
	}

	var c raftlog.Configuration
	for _, n := range s.nodes {
		if on[n.id] || s.IntN(2) == 0 {
			c = append(c, raftlog.Server{ID: n.id, Role: raftlog.Voter})
		}
	}

	term := uint64(1)
	last := source.log[len(source.log)-1].Term
	aLeaders := source.configuration().LeadsTo(c) // in the term of the entry before it nothing would tell it from a leader's change
	switch what := s.IntN(6); {
	case what > 1 || last == 1 && aLeaders: // fenced
		for _, n := range s.nodes {
			term = max(term, n.term+1000)
		}
	case what == 1 && !aLeaders: // by an Incus
		term = last
	}

	r := &recovered{simulation: s, line: &simulation{Rand: s.Rand, sums: s.sums + 1e9}, at: uint64(len(source.log)) + 1, old: len(s.committed)}
	entry := s.entry(term, c)
	log := append(slices.Clone(source.log), entry)
	for i, n := range s.nodes {
		o := &node{id: n.id, term: max(term, n.term)} // of the others, only that it is there
		if on[n.id] {
			o.log, o.snapshot, o.commit = slices.Clone(log), source.snapshot, source.snapshot
			s.nodes[i] = &node{id: n.id, term: n.term}
		}

		r.line.nodes = append(r.line.nodes, o)
	}

	for i, e := range s.committed {
		if i < len(log) && log[i].same(e) {
			r.line.committed = append(r.line.committed, e)
		}
	}

	return r
}

// go on lets both sides work: of the left out only those that still have their log, of the others only those that got it.
func (r *recovered) goOn(steps int, leftOut bool) {
	for range steps {
		r.line.stepOf(r.line.with())
		if leftOut {
			r.stepOf(r.with())
		}
	}
}

// with are the members of a side.
func (s *simulation) with() []*node {
	return slices.DeleteFunc(slices.Clone(s.nodes), func(n *node) bool { return len(n.log) == 0 })
}

// stepOf is a step in which only some members are there.
func (s *simulation) stepOf(there []*node) {
	if len(there) == 0 {
		return
	}

	n := there[s.IntN(len(there))]
	to := there[s.IntN(len(there))]
	switch what := s.IntN(100); {
	case what < 15:
		s.elect(n, func(o *node) bool { return slices.Contains(there, o) })
	case what < 20:
		if n.commit > n.snapshot && s.IntN(4) == 0 {
			n.snapshot += 1 + s.Uint64N(n.commit-n.snapshot)
		}
	case !n.leader:
	case what < 60:
		s.propose(n, nil)
	case to != n:
		s.replicate(n, to, uint64(len(n.log)))
	}
}

// TestRecoveredHistories holds what is said of the logs of a cluster that was recovered against what the simulation knows. Where a log
// shows the recovery, the log that is recommended for certain holds every entry that either side has committed since, and what is
// committed for certain no member of its side can be elected without. What is given up by a recovery itself no log can tell.
func TestRecoveredHistories(t *testing.T) {
	verdicts := map[Verdict]int{}
	failed := 0
	for seed := range uint64(recoveredHistories) {
		s := newSimulation(seed)
		for range 10 + s.IntN(60) {
			s.step()
		}

		r := recover1(s)
		if r == nil {
			continue
		}

		r.goOn(10+s.IntN(80), s.IntN(2) == 0)
		logs := r.shownLogs()
		if len(logs) == 0 {
			continue
		}

		result := compareAll(logs)
		verdicts[result.Verdict]++
		err := r.check(logs, result)
		if err != nil {
			failed++
			t.Errorf("seed %d: %v\n%+v\nrecovered at %d\n%s\n%s", seed, err, result, r.at, r.describe(logs, result), r.line.describe(logs, result))
			if failed > 3 {
				t.FailNow()
			}
		}
	}

	t.Logf("%v", verdicts)
	for _, v := range []Verdict{Known, TooFew, Split, LeftOut} {
		if verdicts[v] < recoveredHistories/100 {
			t.Errorf("only %d histories ended with %q", verdicts[v], v)
		}
	}
}

// shownLogs are the logs of some members.
func (r *recovered) shownLogs() []evidence {
	var logs []evidence
	chance := r.Float64()
	for i := range r.nodes {
		for _, s := range []*simulation{r.line, r.simulation} {
			n := s.nodes[i]
			if len(n.log) > 0 && r.Float64() < 0.4+chance {
				l := s.shown(n)
				l.Edited = l.Edited || len(l.Entries) > 0 && l.end() == r.at && r.has(l.whole)
				logs = append(logs, l)
			}
		}
	}

	r.Shuffle(len(logs), func(i, j int) { logs[i], logs[j] = logs[j], logs[i] })
	return logs
}

func (r *recovered) check(logs []evidence, result Result) error {
	if result.Verdict == Different || result.Verdict == Nothing || len(result.Best) == 0 {
		return nil
	}

	visible := false
	for _, l := range logs {
		visible = visible || l.Snapshot.Index < r.at && l.First <= r.at && r.has(l.whole) && l.end() > r.at
	}

	if !visible {
		return nil
	}

	best := logs[result.Best[0]]
	if result.Verdict == Known {
		for _, i := range result.Best {
			err := r.line.holdsAll(logs[i].whole, result.Ends[i].Index)
			if err != nil {
				return fmt.Errorf("recommends member %d: %w", logs[i].Member, err)
			}

			if len(r.committed) == r.old { // nothing since
				continue
			}

			err = r.holdsAll(logs[i].whole, result.Ends[i].Index)
			if err != nil {
				return fmt.Errorf("recommends member %d: of those left out, %w", logs[i].Member, err)
			}
		}
	}

	if result.Committed == 0 || result.Committed > uint64(len(best.whole)) {
		return nil
	}

	side := r.simulation
	if r.has(best.whole) {
		side = r.line
	}

	e := best.whole[result.Committed-1]
	for _, n := range side.with() {
		lacks := uint64(len(n.log)) < result.Committed || !n.log[result.Committed-1].same(e)
		if lacks && slices.Contains(voters(n.configuration()), n.id) &&
			n.votes(func(id uint64) bool { return len(side.node(id).log) > 0 && side.node(id).last().Compare(n.last()) <= 0 }) {
			return fmt.Errorf("entry %d is certain, but member %d can be elected without it", result.Committed, n.id)
		}
	}

	return nil
}

// has tells whether a log has the recovery entry.
func (r *recovered) has(log []Entry) bool {
	for _, n := range r.line.with() {
		return uint64(len(log)) >= r.at && log[r.at-1].same(n.log[r.at-1])
	}

	return false
}
