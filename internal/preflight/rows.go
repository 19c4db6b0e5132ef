// SPDX-License-Identifier: AGPL-3.0-only

package preflight

import (
	"fmt"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// Codes of the findings about members.
const (
	NoVoter       = "no-voter"        // in the raft configuration
	NoRow         = "no-row-in-nodes" // of a raft member
	VersionBehind = "version-behind"  // of a member, against this one
	VersionAhead  = "version-ahead"
)

// checkVoters looks for a raft configuration without voters.
func checkVoters(facts Facts) []Finding {
	if len(facts.Members) == 0 || facts.Members.Voters() > 0 {
		return nil
	}

	return []Finding{{
		Code: NoVoter, Fatal: true,
		Text:   fmt.Sprintf("none of the %d members in the raft log's configuration is a voter: no leader can ever be elected", len(facts.Members)),
		Advice: "`lxd-recover cluster edit` on the member with the newest data makes it a voter again.",
	}}
}

// Rowless returns the raft members that have no row in the table nodes. There are none where that table cannot be read.
func Rowless(facts Facts) member.List {
	if facts.Nodes == nil {
		return nil
	}

	var found member.List
	for _, m := range facts.Members {
		_, ok := nodeByID(facts.Nodes, m.ID)
		if !ok {
			found = append(found, m)
		}
	}

	return found
}

// checkRows looks for raft members that the global database does not know. A row without a raft member is as it should be: lost members
// have it until `lxc cluster remove`.
func checkRows(facts Facts) []Finding {
	var found []Finding
	for _, m := range Rowless(facts) {
		f := Finding{Code: NoRow, Member: m.Name, Fatal: m.ID == facts.Self}
		f.Text = fmt.Sprintf("%s is a member in the raft log, and has no row in the table nodes of the global database: ", Named(m))
		if f.Fatal {
			f.Text += product.Text("LXD does not start here (\"updated 0 rows instead of 1\")")
		} else {
			f.Text += product.Text("its LXD does not start, and `lxc cluster remove` cannot find it")
			f.Advice = "If it is no member any more, `lxd-recover cluster edit` can leave it out of the list."
		}

		found = append(found, f)
	}

	return found
}

// Unlike returns this member's row, and those of others, be they raft members or not, whose schema or number of API extensions are not those
// of this member's row. LXD waits for those that are behind, and ends, or waits, where it is behind itself.
func Unlike(facts Facts) (own Node, unlike []Node) {
	own, ok := nodeByID(facts.Nodes, facts.Self)
	if !ok {
		return own, nil
	}

	for _, n := range facts.Nodes {
		if n.Schema != own.Schema || n.APIExtensions != own.APIExtensions {
			unlike = append(unlike, n)
		}
	}

	return own, unlike
}

// behind tells whether LXD takes the row for that of an older version. Where one of the two numbers is lower and the other one higher, it
// gives up: that row is not behind.
func (n Node) behind(own Node) bool {
	return n.Schema <= own.Schema && n.APIExtensions <= own.APIExtensions
}

// checkVersions looks for members that LXD would wait for.
func checkVersions(facts Facts) []Finding {
	own, unlike := Unlike(facts)
	var found []Finding
	for _, n := range unlike {
		f := Finding{Code: VersionBehind, Member: n.Name}
		waits := product.Sprintf("behind this member's %d and %d: LXD here waits until %s is upgraded, for ever if that is lost",
			own.Schema, own.APIExtensions, n.Name)
		if !n.behind(own) {
			f.Code = VersionAhead
			waits = product.Sprintf("this member's are %d and %d: an LXD of that version does not start here before it is upgraded, too",
				own.Schema, own.APIExtensions)
		}

		f.Text = fmt.Sprintf("the row of %s in the table nodes has schema %d and %d API extensions, %s", n.Name, n.Schema, n.APIExtensions, waits)
		f.Advice = fmt.Sprintf("If %s is lost: `lxd-recover cluster edit --lost %s`, or `lxd-recover global-db-patch` with: %s",
			n.Name, n.Name, strings.TrimSpace(VersionSQL(n, own)))
		found = append(found, f)
	}

	return found
}

// VersionSQL is the statement that gives a lost member's row the version of another row, so that LXD does not wait for it. It does nothing
// where that row has changed meanwhile, as that of a member does that starts again.
func VersionSQL(lost Node, own Node) string {
	return fmt.Sprintf("UPDATE nodes SET schema = %d, api_extensions = %d WHERE id = %d AND schema = %d AND api_extensions = %d;\n",
		own.Schema, own.APIExtensions, lost.ID, lost.Schema, lost.APIExtensions)
}

// Named is a member for people: name and id, or what else is known.
func Named(m member.Member) string {
	if m.Name == "" {
		return fmt.Sprintf("member %d (%s)", m.ID, m.Address)
	}

	return fmt.Sprintf("%s (id %d)", m.Name, m.ID)
}

func nodeByID(nodes []Node, id uint64) (Node, bool) {
	for _, n := range nodes {
		if n.ID == id {
			return n, true
		}
	}

	return Node{}, false
}
