// SPDX-License-Identifier: AGPL-3.0-only

// Package member holds the one type that all packages share when they talk about LXD: a cluster member as
// `lxd cluster show` prints it. It knows neither where the list came from nor where it goes.
package member

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// Member is one row of the member list. Its ID is the raft node's id and the id of its row in the table `nodes` of the
// global database: LXD gives out both as one number.
type Member struct {
	ID      uint64       `json:"id" yaml:"id"`
	Name    string       `json:"name" yaml:"name"`
	Address string       `json:"address" yaml:"address"`
	Role    raftlog.Role `json:"role" yaml:"role"`
}

// List is a member list in the order of its source.
type List []Member

// ByID returns the member with that id.
func (l List) ByID(id uint64) (Member, bool) {
	for _, m := range l {
		if m.ID == id {
			return m, true
		}
	}

	return Member{}, false
}

// Same tells whether two lists hold the same members, in any order.
func (l List) Same(other List) bool {
	if len(l) != len(other) {
		return false
	}

	for _, m := range l {
		o, ok := other.ByID(m.ID)
		if !ok || o != m {
			return false
		}
	}

	return true
}

// Voters counts the members with the role voter.
func (l List) Voters() int {
	n := 0
	for _, m := range l {
		if m.Role == raftlog.Voter {
			n++
		}
	}

	return n
}

// Majority is the number of voters that must agree before raft elects a leader.
func (l List) Majority() int { return l.Voters()/2 + 1 }

// SameServers tells whether the list and a raft configuration name the same ids, addresses and roles, in any order.
func (l List) SameServers(c raftlog.Configuration) bool {
	if len(l) != len(c) {
		return false
	}

	for _, s := range c {
		m, ok := l.ByID(s.ID)
		if !ok || m.Address != s.Address || m.Role != s.Role {
			return false
		}
	}

	return true
}

// Validate checks what LXD itself does not: that every member has an id, a name and a host:port address, that nothing
// occurs twice, and that there is a voter. A list that fails here would abort LXD or leave it without a leader.
func (l List) Validate() error {
	ids := map[uint64]bool{}
	names := map[string]bool{}
	addresses := map[string]string{}
	for _, m := range l {
		if m.ID == 0 {
			return fmt.Errorf("member %q has no id", m.Name)
		}

		if ids[m.ID] {
			return fmt.Errorf("two members have id %d", m.ID)
		}

		if m.Name == "" {
			return fmt.Errorf("member %d has no name", m.ID)
		}

		err := ValidName(m.Name)
		if err != nil {
			return fmt.Errorf("member %d: %w", m.ID, err)
		}

		if names[m.Name] {
			return fmt.Errorf("two members are named %q", m.Name)
		}

		err = validAddress(m.Address)
		if err != nil {
			return fmt.Errorf("member %q: %w", m.Name, err)
		}

		other, ok := addresses[m.Address]
		if ok {
			return fmt.Errorf("members %q and %q have the same address %s", other, m.Name, m.Address)
		}

		ids[m.ID], names[m.Name], addresses[m.Address] = true, true, m.Name
	}

	if l.Voters() == 0 {
		return fmt.Errorf("no member has the role %q: raft could never elect a leader", raftlog.Voter)
	}

	return nil
}

// validAddress checks that an address is HOST:PORT with a host that can be dialled.
func validAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("address %q is not HOST:PORT", address)
	}

	if host == "" || !shown(host) || strings.ContainsAny(host, " \t\r\n'\"\\;/") || len(host) > 255 {
		return fmt.Errorf("address %q has no usable host", address)
	}

	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return fmt.Errorf("address %q has no port from 1 to 65535", address)
	}

	return nil
}
