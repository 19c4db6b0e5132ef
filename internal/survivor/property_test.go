// SPDX-License-Identifier: AGPL-3.0-only

package survivor

import (
	"fmt"
	"slices"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

const histories = 40000

// TestHistories simulates clusters and shows Compare the logs of some of their members. What it says is held against what the
// simulation knows:
//
//   - A log that is recommended holds every committed entry.
//   - What was committed for certain, no member can be elected without; what was never committed, was not.
//   - What two transactions of a log prove was committed, to begin with.
//   - Nothing is recommended exactly where the logs cannot tell: where the members that were not seen can have had the best log,
//     too, and gone on from there, so that an entry is committed which none of the logs seen has. That is carried out.
func TestHistories(t *testing.T) {
	verdicts := map[Verdict]int{}
	figures := map[string]int{}
	for seed := range uint64(histories) {
		s := newSimulation(seed)
		for range 20 + s.IntN(150) {
			s.step()
		}

		var logs []evidence
		chance := s.Float64()
		for _, i := range s.Perm(len(s.nodes)) {
			n := s.nodes[i]
			if s.Float64() < 0.4+chance {
				logs = append(logs, s.shown(n))
			}

			if n.copied != nil && s.IntN(4) == 0 {
				old := s.shown(n.copied)
				old.Copy = true
				logs = append(logs, old)
				figures["a copy"]++
			}
		}

		if len(logs) == 0 {
			continue
		}

		r := compareAll(logs)
		verdicts[r.Verdict]++
		err := s.check(logs, r, figures)
		if err != nil {
			t.Errorf("seed %d: %v\n%s", seed, err, s.describe(logs, r))
			verdicts["failed"]++
			if verdicts["failed"] > 3 {
				t.FailNow()
			}
		}
	}

	t.Logf("%d histories, seeds from 0: %v, %v", histories, verdicts, figures)
	for _, v := range []Verdict{Known, TooFew, Damaged} {
		if verdicts[v] < histories/50 {
			t.Errorf("only %d histories ended with %q: the simulation is too tame", verdicts[v], v)
		}
	}

	for _, f := range []string{"demoted", "uncommitted tail", "a copy", "never", "certain beyond snapshots",
		"certain by transactions alone", "a committed entry is missing elsewhere", "not certain on a majority", "recovery entries in term"} {
		if figures[f] < histories/100 {
			t.Errorf("only %d times: %s", figures[f], f)
		}
	}
}

func compareAll(logs []evidence) Result {
	var plain []*Log
	for _, l := range logs {
		plain = append(plain, l.Log)
	}

	return Compare(plain)
}

func (s *simulation) check(logs []evidence, r Result, figures map[string]int) error {
	switch r.Verdict {
	case Known:
		for _, i := range r.Best {
			err := s.holdsAll(logs[i].whole, r.Ends[i].Index)
			if err != nil {
				return fmt.Errorf("recommends member %d: %w", logs[i].Member, err)
			}
		}

		for _, end := range r.Ends {
			if end.Index < uint64(len(s.committed)) {
				figures["a committed entry is missing elsewhere"]++
				break
			}
		}
	case TooFew, Damaged:
	case LeftOut: // the voters that an edit was made for were not seen
		if !slices.ContainsFunc(logs, func(l evidence) bool { return l.Edited }) {
			return fmt.Errorf("says %q", r.Verdict)
		}

		return nil
	case Nothing:
		for i := range logs {
			if r.Ends[i].Index > 0 {
				return fmt.Errorf("says %q", r.Verdict)
			}
		}

		return nil
	default:
		return fmt.Errorf("says %q of logs that are of one history", r.Verdict)
	}

	for i, l := range logs {
		if !l.told || len(l.whole) == 0 {
			continue
		}

		last := l.whole[len(l.whole)-1]
		if last.Change == nil && r.Ends[i].Index != uint64(len(l.whole)) { // one of a leader's in the first term may be taken for a recovery's
			return fmt.Errorf("member %d: its log ends at index %d, and is said to end at %d", l.Member, len(l.whole), r.Ends[i].Index)
		}

		figures["recovery entries in term"]++
	}

	if len(r.Best) == 0 {
		return nil
	}

	err := s.couldHaveCommitted(logs, r, figures)
	if err != nil {
		return fmt.Errorf("says %q: %w", r.Verdict, err)
	}

	return s.checkEntries(logs, r, figures)
}

func (s *simulation) holdsAll(log []Entry, upTo uint64) error {
	if uint64(len(s.committed)) > upTo {
		return fmt.Errorf("entry %d is committed and not in its log", len(s.committed))
	}

	for i, e := range s.committed {
		if !log[i].same(e) {
			return fmt.Errorf("entry %d is committed and its log has another one", i+1)
		}
	}

	return nil
}

// checkEntries checks what is said of single entries.
func (s *simulation) checkEntries(logs []evidence, r Result, figures map[string]int) error {
	best := logs[r.Best[0]].whole
	err := s.checkConfirmed(logs, r, figures)
	if err != nil {
		return err
	}

	if r.Committed > 0 {
		if r.Committed > slices.MaxFunc(logs, func(a, b evidence) int { return int(a.Snapshot.Index) - int(b.Snapshot.Index) }).Snapshot.Index {
			figures["certain beyond snapshots"]++
		}

		e := best[r.Committed-1]
		for _, n := range s.nodes {
			if uint64(len(n.log)) >= r.Committed && n.log[r.Committed-1].same(e) {
				continue
			}

			if slices.Contains(voters(n.configuration()), n.id) && n.votes(func(id uint64) bool { return s.node(id).last().Compare(n.last()) <= 0 }) {
				return fmt.Errorf("entry %d is certain, but member %d can be elected without it", r.Committed, n.id)
			}
		}
	}

	for _, tail := range r.Tails {
		source := logs[tail.Logs[0]]
		for index := tail.First.Index; index <= tail.Last.Index; index++ {
			e := source.whole[index-1]
			was := index <= uint64(len(s.committed)) && s.committed[index-1].same(e)
			if tail.Never && was {
				return fmt.Errorf("entry %d of member %d was committed", index, source.Member)
			}

			if !was {
				figures["uncommitted tail"]++
			}

			if tail.Never {
				figures["never"]++
			}

			if !tail.Never && 2*len(tail.Voters) > len(voters(r.Configuration)) {
				figures["not certain on a majority"]++
			}
		}
	}

	return nil
}

// checkConfirmed checks what each log proves by itself.
func (s *simulation) checkConfirmed(logs []evidence, r Result, figures map[string]int) error {
	for _, l := range logs {
		if l.Whole && l.Snapshot.Index > r.Committed {
			return fmt.Errorf("entry %d is in a snapshot and not committed for certain", l.Snapshot.Index)
		}

		index := l.confirmed()
		if l.Whole && index > r.Committed {
			return fmt.Errorf("entry %d of member %d has a transaction of its term after it and is not committed for certain", index, l.Member)
		}

		if index > 0 && (index > uint64(len(s.committed)) || !s.committed[index-1].same(l.whole[index-1])) {
			return fmt.Errorf("entry %d of member %d has a transaction of its term after it and was not committed", index, l.Member)
		}

		if index == r.Committed && index > l.Snapshot.Index {
			figures["certain by transactions alone"]++
		}
	}

	return nil
}

// couldHaveCommitted tries to carry out how an entry is committed that none of the logs seen has. The members that were not seen start with
// the best log, as replicas that got all of it.
func (s *simulation) couldHaveCommitted(logs []evidence, r Result, figures map[string]int) error {
	best := &node{log: logs[r.Best[0]].whole}
	seen := map[uint64]bool{}
	for _, l := range logs {
		if l.Copy {
			continue
		}

		seen[l.Member] = l.Whole
		n := s.node(l.Member)
		if !l.Whole && compare(&Log{First: 1, Entries: best.log}, l.Log).upTo < min(uint64(len(n.log)), l.Last().Index) {
			return nil // it has something else: what it can have had after that is not worked out here
		}

		if l.Edited && l.InTerm && len(l.Entries) > 1 && l.Entries[len(l.Entries)-2].Type == raftlog.ChangeEntry {
			return nil // the same in any term
		}

		if l.Edited && len(l.Entries) > 1 && l.Entries[len(l.Entries)-2].Term == 1 && l.Entries[len(l.Entries)-2].Type == raftlog.ChangeEntry &&
			r.Ends[r.Best[0]].Term == 1 {
			return nil // two edits, or a leader's change and one edit: more than one configuration may be in force
		}
	}

	change := best.change()
	proven := slices.ContainsFunc(logs, func(l evidence) bool { return l.Snapshot.Index >= change }) // a snapshot has nothing but what is committed
	could := s.hidden(best.log, seen).commitUnseen(seen, figures) ||
		change > 1 && !proven && s.hidden(best.log[:change-1], seen).commitUnseen(seen, figures) // without the last change
	switch {
	case could && r.Verdict == Known:
		return fmt.Errorf("but the others can have committed something: best %v, voters %v, seen %v", best.last(), voters(best.configuration()), seen)
	case could || r.Verdict != TooFew: // a damaged log shows part of what it holds: that may not fit
		return nil
	case slices.ContainsFunc(logs, func(l evidence) bool { return l.Copy && !l.Whole }):
		return nil // a damaged copy of a member that was seen whole: nothing is counted for it, which is more careful than need be
	}

	return fmt.Errorf("but the others cannot have committed anything: best %v, voters %v, seen %v", best.last(), voters(best.configuration()), seen)
}

// hidden is a cluster with the same logs where they were seen, and this one everywhere else.
func (s *simulation) hidden(log []Entry, seen map[uint64]bool) *simulation {
	c := &simulation{Rand: s.Rand, sums: s.sums}
	for _, n := range s.nodes {
		o := *n
		o.leader, o.commit = false, 0
		if !seen[n.id] {
			o.log = slices.Clone(log)
		}

		c.nodes = append(c.nodes, &o)
	}

	return c
}

// commitUnseen tries to commit an entry on members that were not seen, with the votes of all, and no change to the logs of those seen.
func (s *simulation) commitUnseen(seen map[uint64]bool, figures map[string]int) bool {
	for _, leader := range s.nodes {
		if seen[leader.id] {
			continue
		}

		for _, n := range s.nodes {
			leader.term = max(leader.term, n.term)
		}

		if !s.elect(leader, func(*node) bool { return true }) {
			continue
		}

		spread := func() bool {
			for _, n := range s.nodes {
				if !seen[n.id] && n != leader {
					s.replicate(leader, n, uint64(len(leader.log)))
				}
			}

			return leader.commit == uint64(len(leader.log))
		}

		s.propose(leader, nil)
		if spread() {
			return true
		}

		leader.log = leader.log[:len(leader.log)-1] // instead, make one of those seen a stand-by
		for _, n := range s.nodes {
			if !seen[n.id] && n != leader {
				n.log = slices.Clone(leader.log)
			}
		}

		leader.match = map[uint64]uint64{}
		change := leader.change()
		held := func(id uint64) bool {
			n := s.node(id)
			return uint64(len(n.log)) >= change && n.log[change-1].same(leader.log[change-1])
		}

		if change > 1 && !leader.votes(held) {
			continue // the last change cannot have been committed
		}

		leader.commit = change
		for _, id := range voters(leader.configuration()) {
			if seen[id] && s.mayChange(leader, false) {
				s.assign(leader, id, raftlog.StandBy)
				if spread() {
					figures["demoted"]++
					return true
				}

				break
			}
		}
	}

	return false
}

func (s *simulation) describe(logs []evidence, r Result) string {
	text := fmt.Sprintf("%d committed; %+v\n", len(s.committed), r)
	for _, n := range s.nodes {
		text += fmt.Sprintf("member %d term %d snapshot %d voters %v:", n.id, n.term, n.snapshot, voters(n.configuration()))
		for _, e := range n.log {
			text += fmt.Sprintf(" %d", e.Term)
			if e.Change != nil {
				text += fmt.Sprint(voters(*e.Change))
			}
		}

		for _, l := range logs {
			if l.Member == n.id {
				text += fmt.Sprintf("; shown whole %v edited %v up to %v", l.Whole, l.Edited, l.Last())
			}
		}

		text += "\n"
	}

	return text
}
