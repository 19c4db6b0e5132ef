// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import "fmt"

// Role says what part a server takes, in raft's own numbering as it is stored in log entries and snapshots. LXD and go-dqlite number
// the roles differently: see [Role.API].
type Role uint8

// The roles, as raft stores them.
const (
	StandBy Role = 0 // gets the log, does not vote
	Voter   Role = 1
	Spare   Role = 2 // gets nothing
)

// String returns the word that LXD uses.
func (r Role) String() string {
	switch r {
	case StandBy:
		return "stand-by"
	case Voter:
		return "voter"
	case Spare:
		return "spare"
	}

	return fmt.Sprintf("role %d", uint8(r))
}

// API returns the number that go-dqlite, LXD's raft_nodes table and its recovery tarball use: 0 voter, 1 stand-by, 2 spare.
func (r Role) API() int {
	switch r {
	case Voter:
		return 0
	case StandBy:
		return 1
	}

	return int(r)
}

// RoleFromAPI is the inverse of [Role.API].
func RoleFromAPI(n int) (Role, error) {
	switch n {
	case 0:
		return Voter, nil
	case 1:
		return StandBy, nil
	case 2:
		return Spare, nil
	}

	return 0, fmt.Errorf("unknown role number %d", n)
}

// ParseRole is the inverse of [Role.String].
func ParseRole(word string) (Role, error) {
	for _, r := range []Role{Voter, StandBy, Spare} {
		if r.String() == word {
			return r, nil
		}
	}

	return 0, fmt.Errorf("unknown role %q: voter, stand-by and spare are possible", word)
}

// MarshalText writes a role in YAML and JSON as LXD's word for it.
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads LXD's word for a role.
func (r *Role) UnmarshalText(text []byte) error {
	role, err := ParseRole(string(text))
	if err != nil {
		return err
	}

	*r = role
	return nil
}
