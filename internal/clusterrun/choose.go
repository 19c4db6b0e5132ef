// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun

import (
	"cmp"
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// What LXD has if nothing is set (cluster.max_voters, cluster.max_standby).
const (
	defaultVoters   = 3
	defaultStandBys = 2
)

// chooseRoles gives the members roles as LXD would: lost ones are spares; of the others an odd number of voters, and then stand-bys. Members keep
// what they have if that fits, and voters are spread over failure domains. Where LXD has the role control-plane, and gave it to somebody, only
// those become voters or stand-bys.
func chooseRoles(list member.List, lost []string, place globaldb.Placement, voters int) member.List {
	standBys := cmp.Or(place.MaxStandBys, defaultStandBys)
	chosen := slices.Clone(list)
	var able []int // indexes of members that can be voters
	for i, m := range chosen {
		chosen[i].Role = raftlog.Spare
		if !slices.Contains(lost, m.Name) && (len(place.Control) == 0 || slices.Contains(place.Control, m.ID)) {
			able = append(able, i)
		}
	}

	if voters == 0 {
		voters = odd(min(cmp.Or(place.MaxVoters, defaultVoters), len(able)))
	}

	give := func(role raftlog.Role, count int) {
		used := map[string]int{} // how many of this role a failure domain has
		for range count {
			best := -1
			for _, i := range able {
				if chosen[i].Role == raftlog.Spare && (best < 0 || before(list, place, used, i, best)) {
					best = i
				}
			}

			if best < 0 {
				return
			}

			chosen[best].Role = role
			used[place.Domains[chosen[best].ID]]++
		}
	}
	give(raftlog.Voter, voters)
	give(raftlog.StandBy, standBys)
	return chosen
}

// before tells whether a member comes before another one for a role: its failure domain has fewer of it, it is a voter now, then a stand-by, its id
// is lower.
func before(list member.List, place globaldb.Placement, used map[string]int, a int, b int) bool {
	rank := map[raftlog.Role]int{raftlog.Voter: 0, raftlog.StandBy: 1, raftlog.Spare: 2}
	return cmp.Or(
		cmp.Compare(used[place.Domains[list[a].ID]], used[place.Domains[list[b].ID]]),
		cmp.Compare(rank[list[a].Role], rank[list[b].Role]),
		cmp.Compare(list[a].ID, list[b].ID),
	) < 0
}

// odd is the largest odd number that is not above n, at least 1: an even number of voters survives no more than one less.
func odd(n int) int { return max(1, n-(n+1)%2) }
