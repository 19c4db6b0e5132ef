// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun

import (
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// What a run has changed itself is no loss when it is undone; what a user has changed is, in the same transaction, too.
func TestNotByRun(t *testing.T) {
	row := func(table string, key string, before map[string]string, after map[string]string) globaldb.RowChange {
		return globaldb.RowChange{Table: table, Key: key, Before: before, After: after}
	}
	address := func(id string, from string, to string) globaldb.RowChange {
		return row("nodes", "id="+id, map[string]string{"address": "'" + from + "'", "description": "''", "heartbeat": "1"},
			map[string]string{"address": "'" + to + "'", "description": "''", "heartbeat": "2"})
	}
	setting := func(key string, value string) globaldb.RowChange {
		key = "'" + key + "'"
		return row("config", "id=7", map[string]string{"key": key, "value": "'10'"}, map[string]string{"key": key, "value": "'" + value + "'"})
	}
	described := address("1", "10.0.0.1:8443", "10.1.0.1:8443")
	described.After["description"] = "'a user has written this'"
	profile := row("profiles", "id=3", nil, map[string]string{"name": "'web'"})
	tests := []struct {
		name string
		row  globaldb.RowChange
		left bool
	}{
		{"an address in force", address("1", "10.0.0.1:8443", "10.1.0.1:8443"), false},
		{"another member's address", address("2", "10.0.0.2:8443", "10.1.0.1:8443"), true},
		{"an address that is not in force", address("1", "10.0.0.1:8443", "10.2.0.1:8443"), true},
		{"an address, and a description", described, true},
		{"what the run's SQL has set", setting("cluster.healing_threshold", "0"), false},
		{"the same setting, by a user", setting("cluster.healing_threshold", "30"), true},
		{"another setting", setting("core.metrics_authentication", "0"), true},
		{"a new row", profile, true},
	}
	undo := &Plan{Undoes: "run", UndoesSQL: healingSQL, Members: []Member{{ID: 1, NewAddress: "10.1.0.1:8443"}, {ID: 2, NewAddress: "10.1.0.2:8443"}}}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			alone := undo.notByRun([]recovery.Discarded{{Index: 5, Rows: []globaldb.RowChange{test.row}}})
			if (len(alone) == 1) != test.left {
				t.Errorf("left: %+v", alone)
			}

			found := []recovery.Discarded{{Index: 5, Rows: []globaldb.RowChange{test.row, profile}}}
			with := undo.notByRun(found)
			rows := map[bool]int{true: 2, false: 1}[test.left]
			if len(with) != 1 || len(with[0].Rows) != rows || with[0].Rows[rows-1].Table != "profiles" || len(found[0].Rows) != 2 {
				t.Errorf("with a user's row: %+v", with)
			}
		})
	}

	unread := []recovery.Discarded{{Index: 6, Unknown: "it cannot be read", Rows: []globaldb.RowChange{tests[0].row}}, {Index: 7}}
	if left := undo.notByRun(unread); len(left) != 2 || !strings.Contains(strings.Join(recovery.Lines(left), " "), "it cannot be read") {
		t.Errorf("what cannot be told is left out: %+v", left)
	}

	healing, plain := []recovery.Discarded{{Rows: []globaldb.RowChange{tests[4].row}}}, *undo
	plain.UndoesSQL = ""
	if len(plain.notByRun(healing)) != 1 {
		t.Error("a user's setting is taken for that of a run that has set nothing")
	}

	plain.Undoes = ""
	if len(plain.notByRun([]recovery.Discarded{{Rows: []globaldb.RowChange{tests[0].row}}})) != 1 {
		t.Error("a run that undoes nothing leaves something out")
	}
}
