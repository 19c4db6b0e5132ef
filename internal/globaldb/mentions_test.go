// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"database/sql"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// made is a database with a few of LXD's tables.
func made(t *testing.T, statements ...string) *DB {
	t.Helper()
	file := filepath.Join(t.TempDir(), Name)
	db, err := sql.Open("sqlite3", file)
	if err == nil {
		_, err = db.Exec(strings.Join(statements, ";\n"))
	}

	if err == nil {
		err = db.Close()
	}

	if err != nil {
		t.Fatal(err)
	}

	opened, err := openFile(file, "ro")
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() { _ = opened.Close() })
	return &DB{sql: opened, File: file}
}

// Every setting that names an address is found, and none of its values is told.
func TestMentions(t *testing.T) {
	db := made(t,
		"CREATE TABLE config (id INTEGER PRIMARY KEY, key TEXT, value TEXT)",
		"INSERT INTO config (key, value) VALUES ('network.ovn.northbound_connection', 'ssl:10.0.0.1:6641,ssl:10.0.0.2:6641'), "+
			"('core.proxy_http', 'http://user:secret@10.0.0.1:3128'), ('user.other', '10.0.0.11')",
		"CREATE TABLE instances (id INTEGER PRIMARY KEY, name TEXT)",
		"INSERT INTO instances (name) VALUES ('web')",
		"CREATE TABLE instances_config (id INTEGER PRIMARY KEY, instance_id INTEGER REFERENCES instances (id), key TEXT, value TEXT)",
		"INSERT INTO instances_config (instance_id, key, value) VALUES (1, 'volatile.last_state.host', '10.0.0.1')",
		"CREATE TABLE instances_devices (id INTEGER PRIMARY KEY, instance_id INTEGER REFERENCES instances (id), name TEXT)",
		"INSERT INTO instances_devices (instance_id, name) VALUES (1, 'http')",
		"CREATE TABLE instances_devices_config (id INTEGER PRIMARY KEY, instance_device_id INTEGER REFERENCES instances_devices (id), key TEXT, value TEXT)",
		"INSERT INTO instances_devices_config (instance_device_id, key, value) VALUES (1, 'listen', 'tcp:10.0.0.1:80')",
		"CREATE TABLE networks (id INTEGER PRIMARY KEY, name TEXT)",
		"INSERT INTO networks (name) VALUES ('br0')",
		"CREATE TABLE networks_forwards (id INTEGER PRIMARY KEY, network_id INTEGER REFERENCES networks (id), listen_address TEXT)",
		"INSERT INTO networks_forwards (network_id, listen_address) VALUES (1, '10.0.0.1')",
		"CREATE TABLE nodes (id INTEGER PRIMARY KEY, name TEXT, address TEXT, heartbeat DATETIME)",
		"INSERT INTO nodes (name, address, heartbeat) VALUES ('n1', '10.0.0.1:8443', '2026-11-26 04:59:45.429892461+00:00'), "+
			"('n2', '10.0.0.2:8443', '2026-11-26 07:59:52.139776322+02:00'), ('n3', '10.0.0.3:8443', '0001-01-01 00:00:00+00:00')")
	found, err := db.Mentions(t.Context(), []string{"10.0.0.1"})
	expected := []Mention{
		{"config network.ovn.northbound_connection of the cluster", "10.0.0.1"},
		{"config core.proxy_http of the cluster", "10.0.0.1"},
		{"config listen of device http of instance web", "10.0.0.1"},
		{"network forward 10.0.0.1 of network br0", "10.0.0.1"},
	}
	if err != nil || !slices.Equal(found, expected) {
		t.Errorf("found is %q (%v), want %q", found, err, expected)
	}

	at, err := db.LastHeartbeat(t.Context())
	if err != nil || at != time.Date(2026, 11, 26, 5, 59, 52, 0, time.UTC) {
		t.Errorf("the last heartbeat is of %v (%v)", at, err)
	}
}
