// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"maps"
	"slices"
	"strings"
)

// Who made a change is told by its table and columns alone, as nothing else is in the log. What is told here must be certain: a change
// that LXD's users may have made as well is theirs.

// ownTables are those that nobody but LXD writes to.
var ownTables = []string{"operations", "operations_resources", "schema", "schemas"} // the last one is microcluster's

// ownColumns are the columns, by table, that LXD changes by itself while it runs.
var ownColumns = map[string][]string{
	"nodes":       {"heartbeat", "schema", "api_extensions"},
	"instances":   {"last_use_date"},
	"images":      {"last_use_date"},
	"identities":  {"first_seen_date", "last_seen_date"},
	"replicators": {"last_run_date", "last_run_status"},

	// microcluster's leader writes these with its heartbeats.
	"core_cluster_members":     {"heartbeat", "role", "schema_internal", "schema_external", "api_extensions"},
	"internal_cluster_members": {"heartbeat", "role", "schema"},
}

// ownSettings are ends of the config keys volatile.… that LXD writes alone when an instance starts and stops. A user who changes the
// config of an instance rewrites all of it, and with it what is not among these.
var ownSettings = []string{"volatile.idmap.current", "volatile.vsock_id", "volatile.cloud-init.instance-id", "volatile.apply_template", ".host_name",
	".apply_quota"}

// Statuses of a warning.
const (
	warningNew      = "1"
	warningResolved = "3"
)

// ByLXD tells whether a change is one that only LXD makes, by itself: heartbeats, operations, warnings, what it notes of an instance that
// starts or stops, of who was seen and what was used when. False stands for a user's change, and for one that may be a user's.
func (c RowChange) ByLXD() bool {
	switch {
	case slices.Contains(ownTables, c.Table):
		return true
	case c.Table == "warnings":
		return c.ownWarning()
	case c.Table == "instances_config":
		return ownSetting(c.Before) && ownSetting(c.After)
	case c.Table == "secrets": // LXD renews the keys of its sessions
		return coreSecret(c.Before) && coreSecret(c.After)
	case c.Before == nil || c.After == nil:
		return false
	}

	for _, column := range c.changed() {
		if !slices.Contains(ownColumns[c.Table], column) {
			return false
		}
	}

	return true
}

// EitherWayByLXD is ByLXD for a difference between two databases: what one has and the other lacks may have come in the one or gone in the
// other.
func (c RowChange) EitherWayByLXD() bool {
	if c.Before != nil && c.After != nil {
		return c.ByLXD()
	}

	back := c
	back.Before, back.After = c.After, c.Before
	return c.ByLXD() || back.ByLXD()
}

// ownWarning tells the warnings that LXD gives, counts, takes back and removes from those that a user acknowledges or deletes.
func (c RowChange) ownWarning() bool {
	if c.After == nil {
		return c.Before["status"] == warningResolved
	}

	return c.After["status"] == warningNew || c.After["status"] == warningResolved || c.Before["status"] == c.After["status"]
}

// ownSetting tells whether a row is one of ownSettings; nil may be.
func ownSetting(row map[string]string) bool {
	if row == nil {
		return true
	}

	key, _, _ := decode(row["key"])
	return strings.HasPrefix(key, "volatile.") && (strings.Contains(key, ".last_state.") ||
		slices.ContainsFunc(ownSettings, func(end string) bool { return strings.HasSuffix(key, end) }))
}

// coreSecret tells whether a row is a secret of the server itself; nil may be.
func coreSecret(row map[string]string) bool {
	const server, coreAuth = "21", "1"
	return row == nil || row["entity_type"] == server && row["type"] == coreAuth
}

// changed are the columns of a changed row whose values differ, in the order of their names.
func (c RowChange) changed() []string {
	var columns []string
	for _, column := range slices.Sorted(maps.Keys(c.After)) {
		if c.Before[column] != c.After[column] {
			columns = append(columns, column)
		}
	}

	return columns
}
