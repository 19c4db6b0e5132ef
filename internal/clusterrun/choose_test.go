// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun

import (
	"fmt"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// listOf makes members n1, n2, … of letters: v for a voter, s for a stand-by, - for a spare.
func listOf(roles string) member.List {
	var list member.List
	for i, r := range roles {
		role := map[rune]raftlog.Role{'v': raftlog.Voter, 's': raftlog.StandBy, '-': raftlog.Spare}[r]
		list = append(list, member.Member{ID: uint64(i + 1), Name: fmt.Sprintf("n%d", i+1), Address: fmt.Sprintf("10.0.0.%d:8443", i+1), Role: role})
	}

	return list
}

func rolesOf(list member.List) string {
	text := ""
	for _, m := range list {
		text += map[raftlog.Role]string{raftlog.Voter: "v", raftlog.StandBy: "s", raftlog.Spare: "-"}[m.Role]
	}

	return text
}

func TestChooseRoles(t *testing.T) {
	domains := globaldb.Placement{Domains: map[uint64]string{1: "a", 2: "a", 4: "b", 5: "c", 6: "c"}}
	for name, test := range map[string]struct {
		roles  string
		lost   []string
		place  globaldb.Placement
		voters int
		want   string
	}{
		"three, all there":                  {"vvv", nil, globaldb.Placement{}, 0, "vvv"},
		"three, one lost":                   {"vvv", []string{"n1"}, globaldb.Placement{}, 0, "-vs"},
		"three, two lost":                   {"vvv", []string{"n1", "n3"}, globaldb.Placement{}, 0, "-v-"},
		"five, three lost":                  {"vvvss", []string{"n1", "n2", "n3"}, globaldb.Placement{}, 0, "---vs"},
		"five, two voters lost":             {"vvvss", []string{"n1", "n2"}, globaldb.Placement{}, 0, "--vvv"},
		"seven, voters keep their role":     {"--vsvsv", []string{"n7"}, globaldb.Placement{}, 0, "s-vvvs-"},
		"more voters":                       {"vvvss-", []string{"n1"}, globaldb.Placement{}, 5, "-vvvvv"},
		"LXD is to have five":               {"vvvss-", nil, globaldb.Placement{MaxVoters: 5, MaxStandBys: 1}, 0, "vvvvvs"},
		"failure domains":                   {"vvv---", []string{"n3"}, domains, 0, "vs-vvs"},
		"only control planes":               {"vvv--", []string{"n1"}, globaldb.Placement{Control: []uint64{1, 3, 5}}, 0, "--v-s"},
		"spares become voters if need be":   {"vv-", []string{"n1", "n2"}, globaldb.Placement{}, 0, "--v"},
		"stand-bys come before spares":      {"v-s-", []string{"n1"}, globaldb.Placement{}, 0, "-vvv"},
		"an even number that was asked for": {"vvvv", nil, globaldb.Placement{}, 2, "vvss"},
	} {
		t.Run(name, func(t *testing.T) {
			got := rolesOf(chooseRoles(listOf(test.roles), test.lost, test.place, test.voters))
			if got != test.want {
				t.Errorf("%s lost %v: %s, want %s", test.roles, test.lost, got, test.want)
			}
		})
	}
}
