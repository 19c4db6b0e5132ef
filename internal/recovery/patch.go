// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"fmt"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
)

// patchSQL returns the SQL that brings the table nodes to the addresses of the member list, empty where it has them.
//
// LXD runs it through the leader when it next starts, on every member that has the file. Each statement therefore names
// the address it expects: on a member that comes back weeks later, when the addresses have changed again, it does nothing.
// The column is unique, so two members cannot trade addresses in one step each: all rows are first moved to a name of their
// own, where any of them does.
func patchSQL(nodes []globaldb.Node, members member.List) string {
	taken := map[string]bool{}
	for _, n := range nodes {
		taken[n.Address] = true
	}

	var moves []move
	trade := false
	for _, n := range nodes {
		m, ok := members.ByID(n.ID)
		if ok && m.Address != n.Address {
			moves = append(moves, move{n.ID, n.Address, m.Address})
			trade = trade || taken[m.Address]
		}
	}

	var sql strings.Builder
	for i := range moves {
		if trade {
			parked := fmt.Sprintf("lxd-recover:%d", moves[i].id)
			sql.WriteString(move{moves[i].id, moves[i].from, parked}.sql())
			moves[i].from = parked
		}
	}

	for _, m := range moves {
		sql.WriteString(m.sql())
	}

	return sql.String()
}

// move is one row's change of address.
type move struct {
	id       uint64
	from, to string
}

func (m move) sql() string {
	return fmt.Sprintf("UPDATE nodes SET address = %s WHERE id = %d AND address = %s;\n", globaldb.Literal(m.to), m.id, globaldb.Literal(m.from))
}
