// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// Placement is what a cluster's database says of where things are, as far as its schema knows it.
type Placement struct {
	Instances map[uint64]int    `json:"instances" yaml:"instances"` // how many are on a member, by its id
	Volumes   map[uint64]int    `json:"volumes" yaml:"volumes"`     // custom volumes that are on one member only
	Domains   map[uint64]string `json:"domains" yaml:"domains"`     // failure domains other than the default one
	Control   []uint64          `json:"control" yaml:"control"`     // members with the role control-plane; empty if LXD has none

	// Healing is the setting cluster.healing_threshold: after so many seconds LXD's leader starts the instances of a member that does not
	// answer elsewhere. Empty if it is not set.
	Healing string `json:"healing" yaml:"healing"`

	// MaxVoters and MaxStandBys are the settings cluster.max_voters and cluster.max_standby; 0 if they are not set.
	MaxVoters   int `json:"max_voters" yaml:"max_voters"`
	MaxStandBys int `json:"max_standbys" yaml:"max_standbys"`
}

// roleControlPlane is LXD's number of the role control-plane in the table nodes_roles (lxd/db/cluster: ClusterRole).
const roleControlPlane = 3

// Placement reads where things are. What this schema does not have stays empty.
func (db *DB) Placement(ctx context.Context) (*Placement, error) {
	p := &Placement{Instances: map[uint64]int{}, Volumes: map[uint64]int{}, Domains: map[uint64]string{}, Control: []uint64{}}
	err := errors.Join(
		db.rows(ctx, []string{"instances"}, "SELECT node_id, count(*) FROM instances GROUP BY node_id", func(r *sql.Rows) error {
			return scanCount(r, p.Instances)
		}),
		db.rows(ctx, []string{"storage_volumes"}, "SELECT node_id, count(*) FROM storage_volumes WHERE type = 2 AND node_id IS NOT NULL GROUP BY node_id",
			func(r *sql.Rows) error { return scanCount(r, p.Volumes) }),
		db.rows(ctx, []string{"nodes_failure_domains"}, "SELECT n.id, d.name FROM nodes n JOIN nodes_failure_domains d ON d.id = n.failure_domain_id",
			func(r *sql.Rows) error {
				var id uint64
				var name string
				err := r.Scan(&id, &name)
				p.Domains[id] = name
				return err
			}),
		db.rows(ctx, []string{"nodes_roles"}, fmt.Sprintf("SELECT node_id FROM nodes_roles WHERE role = %d", roleControlPlane), func(r *sql.Rows) error {
			var id uint64
			err := r.Scan(&id)
			p.Control = append(p.Control, id)
			return err
		}),
		db.rows(ctx, []string{"config"}, "SELECT value FROM config WHERE key = 'cluster.healing_threshold'", func(r *sql.Rows) error {
			return r.Scan(&p.Healing)
		}),
		db.rows(ctx, []string{"config"}, "SELECT CAST(value AS INTEGER) FROM config WHERE key = 'cluster.max_voters'", func(r *sql.Rows) error {
			return r.Scan(&p.MaxVoters)
		}),
		db.rows(ctx, []string{"config"}, "SELECT CAST(value AS INTEGER) FROM config WHERE key = 'cluster.max_standby'", func(r *sql.Rows) error {
			return r.Scan(&p.MaxStandBys)
		}),
	)
	return p, err
}

func scanCount(r *sql.Rows, counts map[uint64]int) error {
	var id uint64
	var n int
	err := r.Scan(&id, &n)
	counts[id] = n
	return err
}

// rows runs a query if all tables that it needs are there, and calls row for each row.
func (db *DB) rows(ctx context.Context, tables []string, query string, row func(*sql.Rows) error) error {
	for _, table := range tables {
		var n int
		err := db.sql.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?", table).Scan(&n)
		if n == 0 || err != nil {
			return err
		}
	}

	found, err := db.sql.QueryContext(ctx, query)
	if err != nil {
		return err
	}

	defer found.Close()

	for found.Next() {
		err = row(found)
		if err != nil {
			return err
		}
	}

	return found.Err()
}
