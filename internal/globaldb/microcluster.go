// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"context"
	"database/sql"
	"fmt"
)

// Tables in which microcluster has kept its members, the newest first.
var microclusterTables = []string{"core_cluster_members", "internal_cluster_members"}

// MicroclusterMember is a member of a microcluster application, as its database knows it: raft's id of it is another number than that of its row.
type MicroclusterMember struct{ Name, Address string }

// MicroclusterMembers returns the members in the order of their rows; nil where a database is not one of microcluster's.
func (db *DB) MicroclusterMembers(ctx context.Context) ([]MicroclusterMember, error) {
	var found []MicroclusterMember
	for _, table := range microclusterTables {
		err := db.rows(ctx, []string{table}, "SELECT name, address FROM "+table+" ORDER BY id", func(r *sql.Rows) error {
			var m MicroclusterMember
			err := r.Scan(&m.Name, &m.Address)
			found = append(found, m)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("read the table %s: %w", table, err)
		}
	}

	return found, nil
}
