// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// What is expected is what the members are judged by; and who is known to be lost is not looked for.
func TestVerdictExpected(t *testing.T) {
	l := newVerdictLab(t)
	fourth := member.Member{ID: 4, Name: "node4", Address: "10.96.6.104:9393", Role: raftlog.Spare}
	withFourth := l.values(t, func(states []MemberState) {
		for i := range states {
			states[i].Members = append(states[i].Members, fourth)
			states[i].Addresses = append(states[i].Addresses, AddressRow{ID: 4, Name: "node4",
				Local: fourth.Address, Raft: fourth.Address, Nodes: fourth.Address})
		}
	})
	withSpare := l.values(t, func(states []MemberState) { // raft sends it nothing: it is where the import has left it
		for i := range states {
			states[i].Members[2].Role = raftlog.Spare
		}

		s := &states[2]
		s.Raft.LastIndex, s.Raft.ConfigurationIndex, s.Raft.Written, s.RowsAt, s.Addresses[0].Nodes = 128, 128, time.Time{}, nil, "10.96.6.101:8443"
	})
	lateSpare := l.values(t, func(states []MemberState) { // it has joined since
		for i := range states {
			states[i].Members[2].Role = raftlog.Spare
			states[i].Raft.ConfigurationIndex = 129
		}

		s := &states[2]
		s.Record, s.Raft, s.RowsAt, s.RowsAtFence = nil, StateRaft{Terms: []TermRun{}}, nil, nil
	})
	inRun := l.values(t, func(states []MemberState) { states[1].OpenRun = "/x/" + openRunName })
	for name, test := range map[string]struct {
		code, who string // empty: it is good, without a finding
		line      string // a part of it
		states    []MemberState
		change    func(e *Expected)
	}{
		"a missing member": {"not-reached", "node3", untold + "node3 was not reached: nothing is known of it.", l.states[:2], nil},
		"one that is lost, unsaid": {"not-reached", "node4", untold + "node4 was not reached: nothing is known of it; and ", withFourth,
			func(e *Expected) { e.Members = nil }},
		"one that is lost": {"", "", "One cluster of 3 members, complete but for the lost node4, from recovery ", withFourth,
			func(e *Expected) { e.Members, e.Lost = append(slices.Clone(e.Members), fourth), []string{"node4"} }},
		"a member since then": {"member-added", "node4", "", withFourth, func(e *Expected) { e.Lost = []string{"node4"} }},
		"a member that is gone": {"member-gone", "node4", notOne + "node4 is not in the raft configuration of node1.", l.states,
			func(e *Expected) { e.Members = append(slices.Clone(e.Members), fourth) }},
		"a spare":            {"", "", ": all voters and stand-bys have the same rows up to index 129.", withSpare, nil},
		"a spare since then": {"no-record", "node3", ": all voters and stand-bys have the same rows up to index 129.", lateSpare, nil},
		"a run that is open": {"open-run", "node2", notInOrder, inRun, nil},
		"a step of it":       {"", "", "One cluster of 3 members, complete, ", inRun, func(e *Expected) { e.InRun = true }},
		"another run": {"other-recovery", "node2", "node1 comes from recovery ", l.states,
			func(e *Expected) { *e = Expected{Run: "feedfeedfeedfeed"} }},
		"another entry": {"other-recovery", "node2", ", and not from the recovery with the entry at index 100, term 7; and ", l.states,
			func(e *Expected) { *e = Expected{Fence: bundle.Position{Index: 100, Term: 7}} }},
		"nothing read": {"no-configuration", "", untold, nil, nil},
		"an address elsewhere": {"address-raft", "node1", "and it is to be 10.0.0.9:1", l.states,
			func(e *Expected) {
				e.Members = slices.Clone(e.Members)
				e.Members[1].Address = "10.0.0.9:1"
			}},
	} {
		e := l.expected
		if test.change != nil {
			test.change(&e)
		}

		v := JudgeCluster(test.states, e)
		if test.code != "" {
			wantFinding(t, v, test.code, test.who)
		} else if !v.Good || len(v.Findings) > 0 {
			t.Errorf("%s: %+v", name, v)
		}

		if !strings.Contains(v.Line, test.line) {
			t.Errorf("%s: line %q, want %q", name, v.Line, test.line)
		}
	}
}
