// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"fmt"
	"slices"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// identities looks at whose states were read, and returns those of members of this cluster.
func (j *judge) identities() []*MemberState {
	certificate, whose := j.certificate()
	seen := map[uint64]bool{}
	var ours []*MemberState
	for i := range j.states {
		s := &j.states[i]
		switch {
		case s.Standalone:
			j.find("standalone", s.name(), "%s is a standalone server, no member of a cluster", s.name())
			continue
		case s.Cluster != "" && s.Cluster != certificate:
			j.find("other-cluster", s.name(), "%s has the cluster certificate %.12s…, and %s has %.12s…", s.name(), s.Cluster, whose, certificate)
			continue
		case s.Member == nil:
			j.find("unknown-member", s.name(), "which member %s is cannot be told", s.name())
		case seen[s.Member.ID]:
			j.find("read-twice", s.name(), "%s was read twice: two of the machines that were asked are one, or two have the same database", s.name())
			continue
		default:
			seen[s.Member.ID] = true
		}

		ours = append(ours, s)
	}

	return ours
}

// certificate is the cluster certificate that most members have, and the name of one that has it.
func (j *judge) certificate() (certificate string, whose string) {
	counts := map[string]int{}
	for _, s := range j.states {
		if s.Cluster != "" {
			counts[s.Cluster]++
		}
	}

	for i := range j.states {
		s := &j.states[i]
		if counts[s.Cluster] > counts[certificate] {
			certificate, whose = s.Cluster, s.name()
		}
	}

	return certificate, whose
}

// recoveries looks at which recovery each member comes from. Those that have the recovery entry are aboard, whether somebody has imported on
// them or the cluster has brought them up to date: raft has then taken away what they alone had. A spare is, too, unless it comes from
// elsewhere: raft sends it nothing, so that its directory does not tell.
func (j *judge) recoveries(ours []*MemberState) {
	fence := j.verdict.Fence
	if fence == (bundle.Position{}) {
		j.unknownRecovery(ours)
		return
	}

	var having []*MemberState
	for _, s := range ours {
		if s.Has(fence) == Has {
			having = append(having, s)
		}
	}

	j.splitRecoveries(ours)
	j.spares = sparesIn(bestOf(having))
	for _, s := range ours {
		switch s.Has(fence) {
		case Has:
			j.having(s)
		case HasNot:
			j.lacking(s)
		default:
			j.find("recovery-untold", s.name(), "whether %s has the recovery entry at %s cannot be told from its log", s.name(), fence)
		}
	}
}

// unknownRecovery is recoveries where no recovery entry is known.
func (j *judge) unknownRecovery(ours []*MemberState) {
	j.aboard = ours
	if j.expected.Run == "" {
		j.find("no-recovery", "", "no member has a record of a recovery")
		return
	}

	for _, s := range ours {
		if s.Record == nil {
			j.find("other-recovery", s.name(), "%s has no record of a recovery, and not of %.8s…", s.name(), j.expected.Run)
		} else {
			j.find("other-recovery", s.name(), "%s comes %s, and not from %.8s…", s.name(), recoveryName(s.Record.Run, s.Record.Raft), j.expected.Run)
		}
	}
}

// having judges a member whose log has the recovery entry.
func (j *judge) having(s *MemberState) {
	fence, run := j.verdict.Fence, j.verdict.Run
	switch r := s.Record; {
	case r == nil:
		j.find("no-record", s.name(), "%s has no record of this recovery, but its log has the recovery entry, as that of a member that the cluster "+
			"has brought up to date", s.name())
	case r.Raft == fence && (r.Run == run || r.Run == "" || run == ""):
	case r.Raft.Term < fence.Term || !s.recovered():
		j.find("older-record", s.name(), "the record of %s is of another run (%s, %s), but its log has the recovery entry, as that of a member that the "+
			"cluster has brought up to date", s.name(), r.Purpose, r.Raft)
	default:
		j.find("other-recovery", s.name(), "%s comes %s, and not %s", s.name(), recoveryName(r.Run, r.Raft), recoveryName(run, fence))
		return
	}

	j.aboard = append(j.aboard, s)
}

// lacking judges a member whose log does not have the recovery entry.
func (j *judge) lacking(s *MemberState) {
	fence, r := j.verdict.Fence, s.Record
	other := s.recovered() && r.Raft != fence && s.Has(r.Raft) == Has
	switch {
	case other && r.Raft.Term > fence.Term || other && !j.isSpare(s):
		if !j.found("split-recoveries") {
			j.find("other-recovery", s.name(), "%s comes %s, and not %s", s.name(), recoveryName(r.Run, r.Raft), recoveryName(j.verdict.Run, fence))
		}

	case s.Raft.SnapshotIndex >= fence.Index:
		j.find("snapshot-beyond", s.name(), "%s does not have this recovery: it has a snapshot at %s, beyond the recovery entry at %s, so that its raft takes "+
			"nothing of what the others have%s", s.name(), bundle.Position{Index: s.Raft.SnapshotIndex, Term: s.Raft.SnapshotTerm}, fence, j.saidOnline(s))
	case j.isSpare(s):
		j.find("no-record", s.name(), "%s is a spare, to which raft sends nothing, and its directory does not have this recovery", s.name())
		j.aboard = append(j.aboard, s)
	case s.Raft.LastIndex == 0:
		j.find("without-recovery", s.name(), "%s does not have this recovery: no entry could be read of its log%s", s.name(), j.saidOnline(s))
	case s.Raft.LastIndex < fence.Index:
		j.find("without-recovery", s.name(), "%s does not have this recovery: its log ends at %s, before the recovery entry at %s%s", s.name(),
			bundle.Position{Index: s.Raft.LastIndex, Term: s.Raft.LastTerm}, fence, j.saidOnline(s))
	default:
		term, _ := s.termAt(fence.Index)
		j.find("without-recovery", s.name(), "%s does not have this recovery: its log has an entry of term %d in the place of the recovery entry at %s%s",
			s.name(), term, fence, j.saidOnline(s))
	}
}

// saidOnline is the end of a sentence about a member of which LXD says that it is online.
func (j *judge) saidOnline(s *MemberState) string {
	for _, by := range j.states {
		for _, m := range by.Listed {
			if s.Member != nil && m.Name == s.Member.Name && m.Status == statusOnline {
				return product.Text(", although LXD says ONLINE")
			}
		}
	}

	return ""
}

// splitRecoveries looks for two recoveries of which each has members that lack the other one.
func (j *judge) splitRecoveries(ours []*MemberState) {
	fences, runs := []bundle.Position{j.verdict.Fence}, []string{j.verdict.Run}
	for _, s := range ours {
		if s.recovered() && !slices.Contains(fences, s.Record.Raft) {
			fences, runs = append(fences, s.Record.Raft), append(runs, s.Record.Run)
		}
	}

	only := func(a, b bundle.Position) (names []string) {
		for _, s := range ours {
			if s.Has(a) == Has && s.Has(b) == HasNot {
				names = append(names, s.name())
			}
		}

		return names
	}
	for i, a := range fences {
		for k, b := range fences[:i] {
			one, two := only(b, a), only(a, b)
			if len(one) > 0 && len(two) > 0 {
				j.find("split-recoveries", "", "%s %s %s, and %s %s %s; neither side has the other's recovery entry", strings.Join(one, ", "), come(one),
					recoveryName(runs[k], b), strings.Join(two, ", "), come(two), recoveryName(runs[i], a))
				return
			}
		}
	}
}

func come(names []string) string {
	if len(names) == 1 {
		return "comes"
	}

	return "come"
}

// logs looks for logs that are not the same as that of the best one, as far as both reach.
func (j *judge) logs() {
	for _, s := range j.aboard {
		index, differ := differ(s, j.best)
		if differ && !j.isSpare(s) {
			here, _ := s.termAt(index)
			there, _ := j.best.termAt(index)
			j.find("log-apart", s.name(), "the log of %s has an entry of term %d at index %d, and that of %s one of term %d", s.name(), here, index,
				j.best.name(), there)
		}
	}
}

// differ compares two logs at the last index that both reach. As far as one of them does not tell, they count as the same.
func differ(a, b *MemberState) (index uint64, differ bool) {
	if a == nil || b == nil {
		return 0, false
	}

	index = min(a.Raft.LastIndex, b.Raft.LastIndex)
	one, oneKnown := a.termAt(index)
	two, twoKnown := b.termAt(index)
	return index, oneKnown && twoKnown && one != two
}

// sides are the members that have different leaders and went on apart; empty where there are none.
func sides(ours []*MemberState, fence bundle.Position) string {
	apart := func(a, b *MemberState) bool {
		_, differ := differ(a, b)
		return differ || fence != (bundle.Position{}) && a.Has(fence) == Has && b.Has(fence) == HasNot && b.Raft.LastIndex >= fence.Index
	}
	for _, a := range ours {
		for _, b := range ours {
			if leaderOf(a) != "" && leaderOf(b) != "" && leaderOf(a) != leaderOf(b) && (apart(a, b) || apart(b, a)) {
				return fmt.Sprintf("%s has the leader %s, and %s has the leader %s, and their logs are not the same",
					a.name(), leaderOf(a), b.name(), leaderOf(b))
			}
		}
	}

	return ""
}

// leaderOf is the member that leads, as a member's LXD says; empty where it does not.
func leaderOf(s *MemberState) string {
	for _, m := range s.Listed {
		if m.Leader {
			return m.Name
		}
	}

	return ""
}
