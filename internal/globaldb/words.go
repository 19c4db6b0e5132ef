// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"cmp"
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
	"auth_groups_permissions":      "permission",
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
	"oidc_sessions":                "OIDC session",
	"operations":                   "operation",
	"operations_resources":         "resource",
	"placement_groups":             "placement group",
	"profiles":                     "profile",
	"profiles_devices":             "device",
	"projects":                     "project",
	"replicators":                  "replicator",
	"schema":                       "version of the schema",
	"secrets":                      "secret",
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
	"nodes.state":          {"0": "in use", "1": "pending", "2": "evacuated"},
	"nodes_roles.role":     {"1": "event-hub", "2": "ovn-chassis", "3": "control-plane"},
	"secrets.type":         {"1": "core_auth", "2": "bearer_signing_key"},
	"storage_volumes.type": {"0": "container", "1": "image", "2": "custom", "3": "virtual-machine"},
	"warnings.status":      {"1": "new", "2": "acknowledged", "3": "resolved"},
}

// named are the columns by which people call a row, the best one first.
var named = []string{"name", "fingerprint", "listen_address", "role", "uuid", "identifier", "server", "version",
	"entitlement"}

// linked are the tables that say nothing but that two things belong together, with the column of the one that comes first.
var linked = map[string]string{
	"images_nodes": "image_id", "images_profiles": "profile_id", "instances_profiles": "profile_id", "networks_nodes": "network_id",
	"nodes_cluster_groups": "group_id", "storage_pools_nodes": "storage_pool_id",
}

// link says how two things belong together: by a column each, and a word between.
type link struct{ first, word, second string }

// links are the tables of which there is nothing to say but the two things.
var links = map[string]link{
	"auth_groups_identity_provider_groups":   {"identity_provider_group_id", " in ", "auth_group_id"},
	"certificates_projects":                  {"certificate_id", " in ", "project_id"},
	"cluster_links_certificates":             {"certificate_id", " of ", "cluster_link_id"},
	"identities_auth_groups":                 {"identity_id", " in ", "auth_group_id"},
	"identities_certificates":                {"certificate_id", " of ", "identity_id"},
	"identities_projects":                    {"identity_id", " in ", "project_id"},
	"networks_load_balancer_pools_instances": {"instance_id", " in ", "network_load_balancer_pool_id"},
}

// places are what things are in or on, by table, in the order in which they are told.
var places = []struct{ table, word string }{{"storage_pools", " in "}, {"projects", " in "}, {"nodes", " on "}}

// maxDepth bounds how far foreign keys are followed: a device's config is its device's, its instance's, in its project.
const maxDepth = 5

// describe fills in the words of changes between the schemas main and new, and conceals the secrets in them. What a row points to is
// looked up in the database that has the row.
func describe(ctx context.Context, db *sql.DB, changes []RowChange) error {
	before, after := newWords(ctx, db, "main"), newWords(ctx, db, "new")
	for i := range changes {
		changes[i].conceal()
	}

	for i := range changes {
		c := &changes[i]
		w, row := after, c.After
		if row == nil {
			w, row = before, c.Before
		}

		var err error
		c.Words, err = w.row(c.Table, row, 0)
		if err != nil {
			return fmt.Errorf("describe a row of table %s: %w", c.Table, err)
		}

		if c.Before == nil || c.After == nil {
			continue
		}

		c.pointers, err = pointers(before, after, c)
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
type foreignKey struct {
	column, table, to string
	whole             bool // the row is nothing without what it points to
}

// words describes the rows of one database.
type words struct {
	ctx     context.Context
	db      *sql.DB
	schema  string
	keys    map[string][]foreignKey
	own     map[string][]string // columns that tell rows from each other, by table
	found   map[string]string   // words by table and literal of the key
	objects map[string]string   // tables by the kind of object; nil: not read yet
}

func newWords(ctx context.Context, db *sql.DB, schema string) *words {
	return &words{ctx: ctx, db: db, schema: schema, keys: map[string][]foreignKey{}, own: map[string][]string{}, found: map[string]string{}}
}

// row describes a row; it is empty for one of which there is nothing to say but its key.
func (w *words) row(table string, row map[string]string, depth int) (string, error) {
	keys, err := w.foreignKeys(table)
	if err != nil {
		return "", err
	}

	between, ok, err := w.link(table, keys)
	if err != nil {
		return "", err
	}

	if ok && depth < maxDepth {
		return w.linkText(between, row, keys, depth)
	}

	name, err := w.name(table, row)
	if err != nil {
		return "", err
	}

	text := kinds[table]
	setting := row["key"] != "" && row["key"] != "NULL"
	config := row["key"] != "" && row["value"] != "" || strings.HasSuffix(table, "_config")
	switch {
	case text != "":
	case config:
		text = "config"
	case len(keys) == 0 && (name == "" || depth == 0):
		return "", nil
	default:
		text = "row of " + visible(table)
	}

	switch {
	case setting && config:
		text += " " + plain(row["key"]) + "=" + plain(row["value"])
	case setting:
		text += " " + plain(row["key"])
	case name != "":
		text += " " + name
	}

	if table == "config" {
		text += " of the cluster"
	}

	object, err := w.object(row, depth)
	if err != nil {
		return "", err
	}

	if object != "" && depth < maxDepth {
		text += cmp.Or(objectWords[table], " on ") + object
	}

	return w.owners(owned{table, row, keys, depth, text})
}

// link tells whether a table is one of links, or one that says no more than those: of later versions, whose word is not known.
func (w *words) link(table string, keys []foreignKey) (link, bool, error) {
	known, ok := links[table]
	if ok || kinds[table] != "" || len(keys) != 2 {
		return known, ok, nil
	}

	columns, _, err := columnsOf(w.ctx, w.db, w.schema, table)
	if err != nil {
		return link{}, false, err
	}

	for _, column := range columns {
		if column != "id" && column != keys[0].column && column != keys[1].column {
			return link{}, false, nil
		}
	}

	return link{keys[0].column, " and ", keys[1].column}, true, nil
}

// linkText says which two things belong together.
func (w *words) linkText(between link, row map[string]string, keys []foreignKey, depth int) (string, error) {
	ends := map[string]string{}
	for _, key := range keys {
		text, err := w.target(key, row[key.column], depth+1)
		if err != nil {
			return "", err
		}

		ends[key.column] = text
	}

	text := ends[between.first] + between.word + ends[between.second]
	if between.word == " and " {
		text = "link between " + text
	}

	return text, nil
}

// name is what people call a row.
func (w *words) name(table string, row map[string]string) (string, error) {
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
		text = strings.TrimSuffix(word+" "+text, " ")
	}

	if text != "" || kinds[table] != "" || row["key"] != "" {
		return text, nil
	}

	return w.ownColumns(table, row)
}

// ownColumns tells a row from the others of its table, where it has no name that is known: by what is unique, or the key, and no foreign key.
func (w *words) ownColumns(table string, row map[string]string) (string, error) {
	columns, known := w.own[table]
	if !known {
		var err error
		columns, err = w.readOwn(table)
		if err != nil {
			return "", err
		}

		w.own[table] = columns
	}

	var parts []string
	for _, column := range columns {
		_, ok := row[column]
		if ok && column != "entity_type" && column != "entity_id" {
			parts = append(parts, visible(column)+"="+plain(row[column]))
		}
	}

	return strings.Join(parts, " "), nil
}

// readOwn reads which columns tell the rows of a table from each other.
func (w *words) readOwn(table string) ([]string, error) {
	columns, err := stringsOf(w.ctx, w.db, `SELECT DISTINCT x.name FROM pragma_index_list(?, ?) AS i JOIN pragma_index_info(i.name, ?) AS x
		WHERE i."unique" AND NOT i.partial AND x.name NOT IN (SELECT "from" FROM pragma_foreign_key_list(?, ?)) ORDER BY i.seq DESC, x.seqno`,
		table, w.schema, w.schema, table, w.schema)
	if err != nil || len(columns) > 0 {
		return columns, err
	}

	return stringsOf(w.ctx, w.db, `SELECT name FROM pragma_table_info(?, ?) WHERE pk > 0
		AND name NOT IN (SELECT "from" FROM pragma_foreign_key_list(?, ?)) ORDER BY pk`, table, w.schema, table, w.schema)
}

// owned is a row that is told up to what it belongs to.
type owned struct {
	table string
	row   map[string]string
	keys  []foreignKey
	depth int
	text  string
}

// owners goes on with what the row belongs to: first what it is of, then its pool, project and member.
func (w *words) owners(o owned) (string, error) {
	if o.depth == maxDepth {
		return o.text, nil
	}

	parts := map[string]string{} // by column
	first := linked[o.table]
	for _, key := range o.keys {
		value := o.row[key.column]
		if !key.whole || value == "" || value == "NULL" {
			continue
		}

		part, err := w.target(key, value, o.depth+1)
		if err != nil {
			return "", err
		}

		parts[key.column] = part
		if key.column == first {
			o.text += " " + withoutKind(part, kinds[key.table])
		}
	}

	text := o.text
	for _, key := range o.keys {
		if parts[key.column] != "" && key.column != first && !isPlace(key.table) {
			text += " of " + parts[key.column]
		}
	}

	for _, place := range places {
		for _, key := range o.keys {
			part := parts[key.column]
			if key.table != place.table || part == "" || key.column == first || strings.Contains(text+" ", place.word+part+" ") { // said already
				continue
			}

			word := place.word
			if strings.HasPrefix(o.table, place.table+"_") { // a part of it, not a thing in it
				word = " of "
			}

			text += word + part
		}
	}

	return text, nil
}

func isPlace(table string) bool {
	for _, place := range places {
		if place.table == table {
			return true
		}
	}

	return false
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
		return "row of " + visible(table)
	}

	return kind
}

// lookUp returns a row by its key, a literal that SQLite's quote made; nil where there is none.
func (w *words) lookUp(key foreignKey, value string) (map[string]string, error) {
	columns, _, err := columnsOf(w.ctx, w.db, w.schema, key.table)
	if err != nil || !slices.Contains(columns, key.to) || concealed(value) {
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

	return conceal(key.table, row), nil
}

// foreignKeys are those of a table, in the order of its columns.
func (w *words) foreignKeys(table string) ([]foreignKey, error) {
	keys, ok := w.keys[table]
	if ok {
		return keys, nil
	}

	// A key to a table's primary key may leave out the column. What is set to NULL when the row it points to goes is a property of the row,
	// not what the row belongs to.
	rows, err := w.db.QueryContext(w.ctx, `SELECT k."from", k."table",
		coalesce(k."to", (SELECT p.name FROM pragma_table_info(k."table", ?) AS p WHERE p.pk = 1), 'id'), k.on_delete NOT IN ('SET NULL', 'SET DEFAULT')
		FROM pragma_foreign_key_list(?, ?) AS k JOIN pragma_table_info(?, ?) AS c ON c.name = k."from" ORDER BY c.cid`,
		w.schema, table, w.schema, table, w.schema)
	if err != nil {
		return nil, err
	}

	defer rows.Close()

	for rows.Next() {
		var key foreignKey
		err = rows.Scan(&key.column, &key.table, &key.to, &key.whole)
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
	text, blob, ok := decode(literal)
	if !ok || blob && !readable(text) {
		text = literal
	}

	return printable(text)
}

// printable shortens a text, and writes it with escapes where it could play tricks on a terminal.
func printable(text string) string { return shorten(visible(text)) }

// visible writes a text with escapes where it could play tricks on a terminal.
func visible(text string) string {
	if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(text)
	}

	return text
}
