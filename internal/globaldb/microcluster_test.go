// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// The members of a microcluster application are in one of two tables, with their heartbeats.
func TestMicroclusterMembers(t *testing.T) {
	for _, table := range microclusterTables {
		db := made(t,
			"CREATE TABLE "+table+" (id INTEGER PRIMARY KEY, name TEXT, address TEXT, heartbeat DATETIME)",
			"INSERT INTO "+table+" VALUES (1, 'm1', '10.0.0.1:9001', '2026-11-26 05:07:17.256219563+00:00'), "+
				"(2, 'm2', '10.0.0.2:9001', '2026-11-26 05:07:27+00:00'), (3, 'm3', '10.0.0.3:9001', '0001-01-01 00:00:00+00:00')")
		members, err := db.MicroclusterMembers(t.Context())
		want := []MicroclusterMember{{"m1", "10.0.0.1:9001"}, {"m2", "10.0.0.2:9001"}, {"m3", "10.0.0.3:9001"}}
		if err != nil || !slices.Equal(members, want) {
			t.Errorf("%s: %+v, %v", table, members, err)
		}

		heard, err := db.NewestHeartbeat(t.Context())
		if err != nil || !heard.Equal(time.Date(2026, 11, 26, 5, 7, 27, 0, time.UTC)) {
			t.Errorf("%s: heartbeat %s, %v", table, heard, err)
		}
	}

	db := made(t, "CREATE TABLE kine (id INTEGER PRIMARY KEY, name TEXT)")
	members, err := db.MicroclusterMembers(t.Context())
	if members != nil || err != nil {
		t.Errorf("of another application: %+v, %v", members, err)
	}

	db = made(t, "CREATE TABLE core_cluster_members (id INTEGER PRIMARY KEY, label TEXT)")
	_, err = db.MicroclusterMembers(t.Context())
	if err == nil || !strings.Contains(err.Error(), "read the table core_cluster_members") {
		t.Errorf("a table with other columns: %v", err)
	}
}

// What its leader writes by itself is told from what somebody did.
func TestMicroclusterOwnChanges(t *testing.T) {
	before := map[string]string{"id": "1", "name": "'m1'", "address": "'a'", "heartbeat": "'1'"}
	for column, want := range map[string]bool{"heartbeat": true, "address": false} {
		after := map[string]string{"id": "1", "name": "'m1'", "address": "'a'", "heartbeat": "'1'"}
		after[column] = "'2'"
		c := RowChange{Table: "core_cluster_members", Before: before, After: after}
		if c.ByLXD() != want {
			t.Errorf("a change of %s is the leader's own: %v", column, !want)
		}
	}
}
