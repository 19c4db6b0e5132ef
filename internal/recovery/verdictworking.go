// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// LXD's words for the state of a member that works.
const (
	statusOnline    = "Online"
	statusEvacuated = "Evacuated" // its instances are elsewhere; it takes part in raft all the same
)

// stillAfter is how long raft on a member may write nothing while the others' logs grow. LXD's leader writes every ten seconds or so.
const stillAfter = 30 * time.Second

// complete looks for members that were not read, and for such that are not in the cluster.
func (j *judge) complete() {
	if j.best == nil {
		j.find("no-configuration", "", "no raft configuration could be read of a member that has this recovery")
		return
	}

	read := map[uint64]bool{}
	for _, s := range j.states {
		if s.Member != nil {
			read[s.Member.ID] = true
		}
	}

	members := j.members()
	for _, m := range members {
		if !read[m.ID] && !j.isLost(m) {
			j.find("not-reached", m.Name, "%s was not reached: nothing is known of it", m.Name)
		}

		_, ok := j.expected.Members.ByID(m.ID)
		if !ok && len(j.expected.Members) > 0 {
			j.find("member-added", m.Name, "%s is in the raft configuration, and was no member at the recovery", m.Name)
		}
	}

	for _, m := range j.expected.Members {
		_, ok := members.ByID(m.ID)
		if !ok && !j.isLost(m) {
			j.find("member-gone", m.Name, "%s is not in the raft configuration of %s", m.Name, j.best.name())
		}
	}

	for _, s := range j.aboard {
		if s.Member == nil {
			continue
		}

		_, ok := members.ByID(s.Member.ID)
		if !ok {
			j.find("not-in-cluster", s.name(), "%s is not in the raft configuration of %s", s.name(), j.best.name())
		}
	}
}

// leaders looks at whether LXD runs, and whom it says that leads.
func (j *judge) leaders(ours []*MemberState) {
	text := sides(ours, j.verdict.Fence)
	if text != "" {
		j.find("split-leaders", "", "%s", text)
	}

	for _, s := range ours {
		switch {
		case !s.Running:
			j.find("lxd-down", s.name(), product.Text("LXD does not run on %s (%s)"), s.name(), s.Daemon)
		case s.Listed == nil:
			j.find("no-answer", s.name(), product.Text("LXD on %s does not list the members: %s"), s.name(), s.ListedUntold)
		}
	}

	var leaders []string
	for _, s := range j.aboard {
		leader := leaderOf(s)
		if leader != "" && !slices.Contains(leaders, leader) {
			leaders = append(leaders, leader)
		}
	}

	switch len(leaders) {
	case 0:
		j.find("no-leader", "", "%s", product.Text("no LXD says which member leads"))
	case 1:
		j.leader(leaders[0])
	default:
		j.find("leaders-differ", "", "the members do not say the same of who leads: %s", strings.Join(leaders, ", "))
	}
}

// leader looks at the one that all say leads.
func (j *judge) leader(name string) {
	j.verdict.Leader = name
	i := slices.IndexFunc(j.aboard, func(s *MemberState) bool { return s.Member != nil && s.Member.Name == name })
	if i < 0 {
		j.find("no-leader", name, product.Text("LXD says that %s leads, of which it is not known that it has this recovery"), name)
		return
	}

	j.verdict.Term = j.aboard[i].Raft.MetadataTerm
}

// progress looks for members whose logs do not follow.
func (j *judge) progress() {
	reached := j.expected.Reached
	if j.best == nil {
		return
	}

	for _, s := range j.aboard {
		still := s.Time.Sub(s.Raft.Written)
		lags := s.Raft.LastIndex < reached
		switch {
		case j.isSpare(s):
		case still >= stillAfter && s.Raft.LastIndex < max(reached, j.best.Raft.LastIndex):
			j.find("stands-still", s.name(), "raft on %s stands still%s: its log ends at %s, and has not been written to for %s; that of %s has reached %s",
				s.name(), j.saidOnline(s), end(s), still.Round(time.Second), j.best.name(), end(j.best))
		case lags:
			j.find("not-caught-up", s.name(), "%s has not caught up: its log ends at %s, and others have reached index %d", s.name(), end(s), reached)
		}
	}
}

// end is where a member's log ends.
func end(s *MemberState) bundle.Position {
	return bundle.Position{Index: s.Raft.LastIndex, Term: s.Raft.LastTerm}
}

// configurations compares the members and roles in the raft configurations in force. Addresses are compared for themselves.
func (j *judge) configurations() {
	if j.best == nil {
		return
	}

	for _, s := range j.aboard {
		if j.isSpare(s) || s.Raft.LastIndex < j.best.Raft.ConfigurationIndex || sameRoles(s.Members, j.best.Members) {
			continue
		}

		j.find("configuration-differs", s.name(), "raft's configuration on %s is %s, and on %s it is %s", s.name(), rolesIn(s.Members), j.best.name(),
			rolesIn(j.best.Members))
	}
}

func sameRoles(a, b member.List) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(m member.Member) bool {
		other, ok := b.ByID(m.ID)
		return !ok || other.Role != m.Role
	})
}

// rolesIn are the members of a raft configuration in words.
func rolesIn(list member.List) string {
	var texts []string
	for _, m := range list {
		texts = append(texts, fmt.Sprintf("%d %s", m.ID, m.Role))
	}

	return strings.Join(texts, ", ")
}

// lists looks at what LXD says of the members.
func (j *judge) lists() {
	for _, m := range j.members() {
		if j.isLost(m) {
			continue
		}

		told := false
		for _, by := range j.aboard {
			if by.Listed == nil {
				continue
			}

			i := slices.IndexFunc(by.Listed, func(l daemon.ListedMember) bool { return l.Name == m.Name })
			if i < 0 {
				j.find("address-listed", m.Name, product.Text("LXD on %s does not list %s"), by.name(), m.Name)
				continue
			}

			l := by.Listed[i]
			if l.Address != m.Address {
				j.find("address-listed", m.Name, product.Text("LXD on %s lists %s at %s, and it is to be at %s"), by.name(), m.Name, l.Address, m.Address)
			}

			if l.Status != statusOnline && l.Status != statusEvacuated && !told {
				told = true
				j.find("offline", m.Name, product.Text("LXD on %s says that %s is %s: %s"), by.name(), m.Name, strings.ToUpper(l.Status), l.Message)
			}
		}
	}
}
