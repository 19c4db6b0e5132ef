// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// kinds are the words that LXD's users know for what its tables hold. The rest of a row's description follows from its columns
// and foreign keys, so that most of it fits tables of later versions, too.
var kinds = map[string]string{
	"auth_groups":                  "auth group",
	"certificates":                 "trusted certificate",
	"cluster_groups":               "cluster group",
	"cluster_links":                "cluster link",
	"identities":                   "identity",
	"identity_provider_groups":     "identity provider group",
	"images":                       "image",
	"images_aliases":               "image alias",
	"images_nodes":                 "copy of image",
	"images_profiles":              "default profile",
	"images_properties":            "property",
	"images_source":                "source",
	"instances":                    "instance",
	"instances_backups":            "backup",
	"instances_devices":            "device",
	"instances_profiles":           "use of profile",
	"instances_snapshots":          "snapshot",
	"instances_snapshots_devices":  "device",
	"networks":                     "network",
	"networks_acls":                "network ACL",
	"networks_forwards":            "network forward",
	"networks_load_balancers":      "network load balancer",
	"networks_load_balancer_pools": "network load balancer pool",
	"networks_nodes":               "part of network",
	"networks_peers":               "network peer",
	"networks_zones":               "network zone",
	"networks_zones_records":       "record",
	"nodes":                        "member",
	"nodes_cluster_groups":         "place in cluster group",
	"nodes_failure_domains":        "failure domain",
	"nodes_roles":                  "role",
	"operations":                   "operation",
	"operations_resources":         "resource",
	"placement_groups":             "placement group",
	"profiles":                     "profile",
	"profiles_devices":             "device",
	"projects":                     "project",
	"replicators":                  "replicator",
	"storage_buckets":              "storage bucket",
	"storage_buckets_keys":         "key",
	"storage_pools":                "storage pool",
	"storage_pools_nodes":          "part of storage pool",
	"storage_volumes":              "storage volume",
	"storage_volumes_backups":      "backup",
	"storage_volumes_snapshots":    "snapshot",
	"warnings":                     "warning",
}

// numbered are columns that hold a number for a word.
var numbered = map[string]map[string]string{
	"nodes_roles.role":     {"1": "event-hub", "2": "ovn-chassis"},
	"storage_volumes.type": {"0": "container", "1": "image", "2": "custom", "3": "virtual-machine"},
}

// named are the columns by which people call a row, the best one first.
var named = []string{"name", "fingerprint", "listen_address", "role", "uuid", "identifier", "server", "version"}

// linked are the tables that say nothing but that two things belong together, with the column of the one that comes first.
var linked = map[string]string{
	"images_nodes": "image_id", "images_profiles": "profile_id", "instances_profiles": "profile_id", "networks_nodes": "network_id",
	"nodes_cluster_groups": "group_id", "storage_pools_nodes": "storage_pool_id",
}

// maxDepth bounds how far foreign keys are followed: a device's config is its device's, its instance's, in its project.
const maxDepth = 5

// housekeeping are the tables that LXD itself writes to all the time.
var housekeeping = []string{"operations", "operations_resources", "warnings"}

// Housekeeping tells whether a change is one that LXD makes all the time, by itself: heartbeats, operations, warnings.
func (c RowChange) Housekeeping() bool {
	if slices.Contains(housekeeping, c.Table) {
		return true
	}

	if c.Table != "nodes" || c.Before == nil || c.After == nil {
		return false
	}

	for column, value := range c.After {
		if c.Before[column] != value && column != "heartbeat" {
			return false
		}
	}

	return true
}

// describe fills in the words of changes between the schemas main and new. What a row points to is looked up in the database that
// has the row.
func describe(ctx context.Context, db *sql.DB, changes []RowChange) error {
	before := words{ctx: ctx, db: db, schema: "main", keys: map[string][]foreignKey{}, found: map[string]string{}}
	after := words{ctx: ctx, db: db, schema: "new", keys: map[string][]foreignKey{}, found: map[string]string{}}
	for i := range changes {
		c := &changes[i]
		w, row := &after, c.After
		if row == nil {
			w, row = &before, c.Before
		}

		var err error
		c.Words, err = w.row(c.Table, row, 0)
		if err != nil {
			return fmt.Errorf("describe a row of table %s: %w", c.Table, err)
		}

		if c.Before == nil || c.After == nil {
			continue
		}

		c.pointers, err = pointers(&before, &after, c)
		if err != nil {
			return fmt.Errorf("describe a row of table %s: %w", c.Table, err)
		}
	}

	return nil
}

// pointers describes what the changed columns of a row pointed to, and point to now.
func pointers(before *words, after *words, c *RowChange) (map[string][2]string, error) {
	keys, err := after.foreignKeys(c.Table)
	if err != nil {
		return nil, err
	}

	found := map[string][2]string{}
	for _, key := range keys {
		from, to := c.Before[key.column], c.After[key.column]
		if from == to {
			continue
		}

		if from != "NULL" && from != "" {
			from, err = before.target(key, from, 0)
			if err != nil {
				return nil, err
			}
		}

		if to != "NULL" {
			to, err = after.target(key, to, 0)
			if err != nil {
				return nil, err
			}
		}

		found[key.column] = [2]string{from, to}
	}

	return found, nil
}

// foreignKey says what a column points to.
type foreignKey struct{ column, table, to string }

// words describes the rows of one database.
type words struct {
	ctx    context.Context
	db     *sql.DB
	schema string
	keys   map[string][]foreignKey
	found  map[string]string // words by table and literal of the key
}

// row describes a row; it is empty for one of which there is nothing to say but its key.
func (w *words) row(table string, row map[string]string, depth int) (string, error) {
	keys, err := w.foreignKeys(table)
	if err != nil {
		return "", err
	}

	kind, known := kinds[table]
	config := row["key"] != "" && row["value"] != "" || strings.HasSuffix(table, "_config")
	switch {
	case known:
	case config:
		kind = "config"
	case len(keys) == 0:
		return "", nil
	default:
		kind = "row of " + table
	}

	text := kind
	name := w.name(table, row)
	switch {
	case row["key"] != "" && row["key"] != "NULL":
		text += " " + plain(row["key"]) + "=" + plain(row["value"])
	case name != "":
		text += " " + name
	}

	if table == "config" {
		text += " of the cluster"
	}

	rest, err := w.owners(table, row, keys, depth)
	return text + rest, err
}

// name is what people call a row.
func (w *words) name(table string, row map[string]string) string {
	text := ""
	for _, column := range named {
		value := row[column]
		if value == "" || value == "NULL" {
			continue
		}

		text = plain(value)
		word, ok := numbered[table+"."+column][value]
		if ok {
			text = word
		}

		if column == "fingerprint" {
			text = text[:min(len(text), 12)]
		}

		break
	}

	word, ok := numbered[table+".type"][row["type"]]
	if ok {
		text = word + " " + text
	}

	return text
}

// owners says what a row belongs to: first what it is of, then its pool, project and member.
func (w *words) owners(table string, row map[string]string, keys []foreignKey, depth int) (string, error) {
	if depth == maxDepth {
		return "", nil
	}

	parts := map[string]string{}
	var order []string
	for _, key := range keys {
		value := row[key.column]
		if value == "" || value == "NULL" {
			continue
		}

		text, err := w.target(key, value, depth+1)
		if err != nil {
			return "", err
		}

		parts[key.column] = text
		order = append(order, key.column)
	}

	first := linked[table]
	text := ""
	if parts[first] != "" {
		text = " " + withoutKind(parts[first], kinds[w.tableOf(keys, first)])
	}

	for _, column := range order {
		switch column {
		case first, "project_id", "node_id", "storage_pool_id":
		default:
			text += " of " + parts[column]
		}
	}

	for _, place := range []struct{ column, word string }{{"storage_pool_id", " in "}, {"project_id", " in "}, {"node_id", " on "}} {
		part := parts[place.column]
		if part == "" || place.column == first || strings.Contains(text, place.word+part) { // said already
			continue
		}

		word := place.word
		if strings.HasPrefix(table, w.tableOf(keys, place.column)+"_") { // a part of it, not a thing in it
			word = " of "
		}

		text += word + part
	}

	return text, nil
}

func (w *words) tableOf(keys []foreignKey, column string) string {
	for _, key := range keys {
		if key.column == column {
			return key.table
		}
	}

	return ""
}

// withoutKind takes the kind off a description, where it has been said already.
func withoutKind(text string, kind string) string { return strings.TrimPrefix(text, kind+" ") }

// target describes the row that a foreign key points to.
func (w *words) target(key foreignKey, value string, depth int) (string, error) {
	id := key.table + " " + value
	text, ok := w.found[id]
	if ok {
		return text, nil
	}

	text = fmt.Sprintf("%s with %s=%s", kindOf(key.table), key.to, shorten(value))
	row, err := w.lookUp(key, value)
	if err != nil {
		return "", err
	}

	if row != nil {
		found, err := w.row(key.table, row, depth)
		if err != nil {
			return "", err
		}

		if found != "" && found != kinds[key.table] {
			text = found
		}
	}

	w.found[id] = text
	return text, nil
}

func kindOf(table string) string {
	kind, ok := kinds[table]
	if !ok {
		return "row of " + table
	}

	return kind
}

// lookUp returns a row by its key, a literal that SQLite's quote made; nil where there is none.
func (w *words) lookUp(key foreignKey, value string) (map[string]string, error) {
	columns, _, err := columnsOf(w.ctx, w.db, w.schema, key.table)
	if err != nil || !slices.Contains(columns, key.to) {
		return nil, err
	}

	list := make([]string, len(columns))
	values := make([]string, len(columns))
	targets := make([]any, len(columns))
	for i, c := range columns {
		list[i] = "quote(" + quote(c) + ")"
		targets[i] = &values[i]
	}

	query := "SELECT " + strings.Join(list, ", ") + " FROM " + w.schema + "." + quote(key.table) + " WHERE " + quote(key.to) + " = " + value + " LIMIT 1"
	err = w.db.QueryRowContext(w.ctx, query).Scan(targets...)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}

	if err != nil {
		return nil, err
	}

	row := map[string]string{}
	for i, c := range columns {
		row[c] = values[i]
	}

	return row, nil
}

// foreignKeys are those of a table, in the order of its columns.
func (w *words) foreignKeys(table string) ([]foreignKey, error) {
	keys, ok := w.keys[table]
	if ok {
		return keys, nil
	}

	// A key to a table's primary key may leave out the column: LXD's are all called id.
	rows, err := w.db.QueryContext(w.ctx, `SELECT k."from", k."table", coalesce(k."to", 'id') FROM pragma_foreign_key_list(?, ?) AS k
		JOIN pragma_table_info(?, ?) AS c ON c.name = k."from" ORDER BY c.cid`, table, w.schema, table, w.schema)
	if err != nil {
		return nil, err
	}

	defer rows.Close()

	for rows.Next() {
		var key foreignKey
		err = rows.Scan(&key.column, &key.table, &key.to)
		if err != nil {
			return nil, err
		}

		keys = append(keys, key)
	}

	w.keys[table] = keys
	return keys, rows.Err()
}

// plain is an SQL literal without its quotes, as far as it can be shown on a terminal.
func plain(literal string) string {
	text := literal
	if len(text) >= 2 && text[0] == '\'' && text[len(text)-1] == '\'' {
		text = strings.ReplaceAll(text[1:len(text)-1], "''", "'")
	}

	return printable(text)
}

// printable shortens a text, and writes it with escapes where it could play tricks on a terminal.
func printable(text string) string {
	if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		text = strconv.Quote(text)
	}

	return shorten(text)
}
