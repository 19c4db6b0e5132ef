// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"context"
	"fmt"
	"time"
)

// heartbeatFormats are the ways in which LXDs write a time, go-dqlite's and SQLite's own.
var heartbeatFormats = []string{"2006-01-02 15:04:05.999999999-07:00", time.RFC3339Nano, time.DateTime}

// heartbeatTables are where LXD and microcluster write them.
var heartbeatTables = append([]string{"nodes"}, microclusterTables...)

// NewestHeartbeat is the newest time at which the leader of LXD's cluster, or of a microcluster application's, has heard from a member, by the leader's
// clock; zero where the database does not tell.
func (db *DB) NewestHeartbeat(ctx context.Context) (time.Time, error) {
	var newest time.Time
	for _, table := range heartbeatTables {
		at, err := db.newestHeartbeatIn(ctx, table)
		if err != nil {
			return time.Time{}, err
		}

		if at.After(newest) {
			newest = at
		}
	}

	return newest, nil
}

func (db *DB) newestHeartbeatIn(ctx context.Context, table string) (time.Time, error) {
	tables, err := stringsOf(ctx, db.sql, "SELECT m.name FROM sqlite_master AS m JOIN pragma_table_info(m.name) AS c "+
		"WHERE m.type = 'table' AND m.name = ? AND c.name = 'heartbeat'", table)
	if err != nil {
		return time.Time{}, fmt.Errorf("look for the heartbeats: %w", err)
	}

	if len(tables) == 0 {
		return time.Time{}, nil
	}

	written, err := stringsOf(ctx, db.sql, "SELECT CAST(heartbeat AS TEXT) FROM "+table+" WHERE heartbeat IS NOT NULL")
	if err != nil {
		return time.Time{}, fmt.Errorf("read the heartbeats: %w", err)
	}

	var newest time.Time
	for _, text := range written {
		for _, format := range heartbeatFormats {
			at, err := time.Parse(format, text)
			if err == nil && at.After(newest) {
				newest = at
			}
		}
	}

	return newest.UTC(), nil
}
