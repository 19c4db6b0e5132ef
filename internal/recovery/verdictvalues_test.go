// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// brokenValue is what members say that does not fit together, or is worth a note, and what the verdict is.
type brokenValue struct {
	code, who string
	line      string // what it begins with
	change    func(states []MemberState)
}

// wantBrokenValues checks that each is found, and is the worst that is found.
func (l *verdictLab) wantBrokenValues(t *testing.T, cases map[string]brokenValue) {
	t.Helper()
	for name, test := range cases {
		t.Run(name, func(t *testing.T) {
			v := JudgeCluster(l.values(t, test.change), l.expected)
			wantFinding(t, v, test.code, test.who)
			if !strings.HasPrefix(v.Line, test.line) {
				t.Errorf("line %q, want %q", v.Line, test.line)
			}
		})
	}
}

// third changes the state of the third member.
func third(change func(s *MemberState)) func([]MemberState) {
	return func(states []MemberState) { change(&states[2]) }
}

// Who is not of this cluster, and two sides of it, are found.
func TestVerdictMembers(t *testing.T) {
	l := newVerdictLab(t)
	l.wantBrokenValues(t, map[string]brokenValue{
		"a standalone server": {"standalone", "node3", notOne + "node3 is a standalone server, no member of a cluster.",
			third(func(s *MemberState) { s.Standalone = true })},
		"a member that nobody knows": {"unknown-member", "the LXD in " + l.dirs[2].path + " on host9", untold + "which member " +
			"the LXD in " + l.dirs[2].path + " on host9 is cannot be told; and ", third(func(s *MemberState) { s.Member, s.HostName = nil, "host9" })},
		"one member read twice": {"read-twice", "node1", untold + "node1 was read twice: two of the machines that were asked " +
			"are one, or two have the same database; and 1 more.", func(states []MemberState) { states[2] = states[0] }},
		"a hole at the recovery entry": {"recovery-untold", "node3", untold + "whether node3 has the recovery entry",
			third(func(s *MemberState) { s.Raft.Terms = s.Raft.Terms[:1] })},
		"two leaders apart": {"split-leaders", "", "Split: node1 has the leader node1, and node3 has the leader node3, and their logs are not the same; and ",
			third(func(s *MemberState) { leads(s, 2); s.Raft.Terms[len(s.Raft.Terms)-1].Term++; s.Raft.LastTerm++ })},
		"two leaders, one without the recovery": {"split-leaders", "", "Split: node1 has the leader node1, and node3 has the leader node3",
			third(func(s *MemberState) { leads(s, 2); s.Raft.Terms = []TermRun{{1, 129, 2}} })},
		"two leaders, one with a snapshot beyond": {"split-leaders", "", "Split: node1 has the leader node1, and node3 has the leader node3",
			third(func(s *MemberState) {
				leads(s, 2)
				s.Raft = StateRaft{LastIndex: 200, LastTerm: 2, SnapshotIndex: 200, SnapshotTerm: 2}
			})},
		"a leader without the recovery": {"without-recovery", "node1", notOne + "node1 does not have this recovery", func(states []MemberState) {
			states[0].Raft.Terms = []TermRun{{1, 129, 2}}
		}},
		"a member that raft does not have": {"not-in-cluster", "node9", notOne + "node9 is not in the raft configuration of node1; and ",
			third(func(s *MemberState) { s.Member.ID, s.Member.Name = 9, "node9" })},
		"no configuration": {"no-configuration", "", untold + "no raft configuration could be read of a member that has this recovery.",
			func(states []MemberState) {
				for i := range states {
					states[i].Members = nil
				}
			}},
	})
}

// A cluster that does not work is found.
func TestVerdictWorking(t *testing.T) {
	l := newVerdictLab(t)
	l.wantBrokenValues(t, map[string]brokenValue{
		"a new leader": {"leaders-differ", "", notWorking + "the members do not say the same of who leads: node1, node3.",
			third(func(s *MemberState) { leads(s, 2) })},
		"no leader": {"no-leader", "", notWorking + "no LXD says which member leads.", func(states []MemberState) {
			for i := range states {
				leads(&states[i], -1)
			}
		}},
		"LXD down": {"lxd-down", "node3", notWorking + "LXD does not run on node3 (not running).",
			third(func(s *MemberState) { s.Running, s.Daemon, s.Listed = false, "not running", nil })},
		"LXD without an answer": {"no-answer", "node3", notWorking + "LXD on node3 does not list the members: no answer.",
			third(func(s *MemberState) { s.Listed, s.ListedUntold = nil, "no answer" })},
		"raft that stands still": {"stands-still", "node3", notWorking + "raft on node3 stands still, although LXD says ONLINE: its log " +
			"ends at index 128, term 8589934592, and has not been written to for 31s; that of node1 has reached index 129, term 8589934592.",
			third(func(s *MemberState) { s.Raft.LastIndex, s.Raft.Written = 128, s.Time.Add(-31*time.Second) })},
		"a member that lags": {"not-caught-up", "node3", notWorking + "node3 has not caught up: its log ends at index 128, " +
			"term 8589934592, and others have reached index 129.", third(func(s *MemberState) { s.Raft.LastIndex, s.Raft.Written = 128, s.Time })},
		"other roles": {"configuration-differs", "node3", notWorking + "raft's configuration on node3 is 1 voter, 2 stand-by, 3 voter, " +
			"and on node1 it is 1 voter, 2 voter, 3 voter.", third(func(s *MemberState) { s.Members[1].Role = raftlog.StandBy })},
		"a member that is offline": {"offline", "node2", notWorking + "LXD on node3 says that node2 is OFFLINE: No heartbeat.",
			third(func(s *MemberState) { s.Listed[1].Status, s.Listed[1].Message = "Offline", "No heartbeat" })},
	})
}

// An address that is another one in any place is found.
func TestVerdictAddresses(t *testing.T) {
	l := newVerdictLab(t)
	l.wantBrokenValues(t, map[string]brokenValue{
		"an address that LXD lists": {"address-listed", "node2", notInOrder + "LXD on node3 lists node2 at 10.0.0.9:1, and it is to be at " +
			"10.96.6.102:9393.", third(func(s *MemberState) { s.Listed[1].Address = "10.0.0.9:1" })},
		"a member that LXD does not list": {"address-listed", "node2", notInOrder + "LXD on node3 does not list node2.",
			third(func(s *MemberState) { s.Listed = slices.Delete(s.Listed, 1, 2) })},
		"an address in raft": {"address-raft", "node3", notInOrder + "on node3 raft's configuration has 10.0.0.9:1 for node2, " +
			"and it is to be 10.96.6.102:9393.", third(func(s *MemberState) { s.Addresses[1].Raft = "10.0.0.9:1" })},
		"an address in nodes": {"address-nodes", "node3", notInOrder + "on node3 the table nodes has 10.0.0.9:1 for node2, " +
			"and it is to be 10.96.6.102:9393.", third(func(s *MemberState) { s.Addresses[1].Nodes = "10.0.0.9:1" })},
		"a stranger in nodes": {"address-nodes", "node3", notInOrder + "on node3 the table nodes has member 9 (node9) at 10.0.0.9:1, " +
			"which is not in raft's configuration.",
			third(func(s *MemberState) {
				s.Addresses = append(s.Addresses, AddressRow{ID: 9, Name: "node9", Nodes: "10.0.0.9:1"})
			})},
	})
}

// Rows that differ are found, and what is worth a note.
func TestVerdictRows(t *testing.T) {
	l := newVerdictLab(t)
	l.wantBrokenValues(t, map[string]brokenValue{
		"rows that nobody has exported": {"rows-not-exported", "node3", notOne + "node3 has other rows at the recovery entry than in the tarball, in config.",
			third(func(s *MemberState) { s.RowsAtFence.Rows["config"] = globaldb.TablePrint{Rows: 1} })},
		"rows that were not compared": {"rows-untold", "node3", untold + "the rows of node3 were not compared with the others'.",
			third(func(s *MemberState) { s.RowsAt = nil })},
		"rows of another index": {"rows-untold", "node3", untold + "the rows of node3 were read at index 128, and others' at index 129.",
			third(func(s *MemberState) { s.RowsAt.Position.Index = 128 })},
		"entries that differ": {"log-apart", "node3", notOne + "node3 has the same rows as node1 at index 129, but other entries in its log " +
			"since the recovery.",
			third(func(s *MemberState) { s.RowsAt.Entries = strings.Repeat("0", 64) })},
		"something wrong": {"problem", "node3", notInOrder + "node3: it hurts.", third(func(s *MemberState) { s.Problems = []string{"it hurts"} })},
		"nobody's rows at the recovery": {"fence-untold", "", "One cluster of 3 members, complete, from recovery ", func(states []MemberState) {
			for i := range states {
				states[i].RowsAtFence = &StateRows{Position: l.states[i].RowsAtFence.Position, Untold: "the log reaches no further back"}
			}
		}},
		"two versions": {"versions-differ", "", "One cluster of 3 members, complete, from recovery ", func(states []MemberState) {
			states[1].LXD.Version, states[2].LXD.Version = "5.0.2", "5.0.3"
		}},
	})
}

// leads has a member's LXD say that the member with a number leads; nobody, for -1.
func leads(s *MemberState, number int) {
	for i := range s.Listed {
		s.Listed[i].Leader = i == number
	}
}
