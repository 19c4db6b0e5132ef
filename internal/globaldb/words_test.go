// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"database/sql"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const wordsTime = "'2026-01-02 03:04:05'"

// wordsContent inserts a row of each kind.
var wordsContent = []string{
	"INSERT INTO projects (id, name, description) VALUES (50, 'blue', '')",
	"INSERT INTO projects_config (project_id, key, value) VALUES (50, 'features.images', 'true')",
	"INSERT INTO profiles (id, name, project_id, description) VALUES (50, 'p1', 50, '')",
	"INSERT INTO profiles_devices (id, profile_id, name, type) VALUES (50, 50, 'eth0', 1)",
	"INSERT INTO profiles_devices_config (profile_device_id, key, value) VALUES (50, 'nictype', 'bridged')",
	"INSERT INTO instances (id, node_id, name, architecture, type, project_id, description) VALUES (50, 2, 'web1', 2, 0, 50, '')",
	"INSERT INTO instances_config (instance_id, key, value) VALUES (50, 'limits.cpu', '2')",
	"INSERT INTO instances_profiles (instance_id, profile_id) VALUES (50, 50)",
	"INSERT INTO instances_snapshots (id, instance_id, name, description) VALUES (50, 50, 'snap0', '')",
	"INSERT INTO instances_snapshots_config (instance_snapshot_id, key, value) VALUES (50, 'a', 'b')",
	"INSERT INTO networks (id, project_id, name, description) VALUES (50, 1, 'lxdbr7', '')",
	"INSERT INTO networks_config (network_id, node_id, key, value) VALUES (50, 3, 'bridge.mtu', '1400')",
	"INSERT INTO networks_nodes (network_id, node_id) VALUES (50, 3)",
	"INSERT INTO storage_pools (id, name, driver, description) VALUES (50, 'fast', 'dir', '')",
	"INSERT INTO storage_pools_nodes (storage_pool_id, node_id) VALUES (50, 1)",
	"INSERT INTO storage_pools_config (storage_pool_id, node_id, key, value) VALUES (50, 1, 'source', '/srv')",
	"INSERT INTO storage_volumes (id, name, storage_pool_id, node_id, type, project_id, description) VALUES (50, 'vol', 50, 1, 2, 1, '')",
	"INSERT INTO storage_volumes_snapshots (id, storage_volume_id, name, creation_date, description) VALUES (51, 50, 's0', " + wordsTime + ", '')",
	"INSERT INTO storage_volumes_config (storage_volume_id, key, value) VALUES (50, 'size', '1GiB')",
	"INSERT INTO images (id, fingerprint, filename, size, architecture, upload_date, project_id) VALUES (50, '0123456789abcdef0123456789abcdef', " +
		"'f', 1, 2, " + wordsTime + ", 1)",
	"INSERT INTO images_aliases (name, image_id, project_id, description) VALUES ('small', 50, 1, '')",
	"INSERT INTO images_nodes (image_id, node_id) VALUES (50, 3)",
	"INSERT INTO images_properties (image_id, type, key, value) VALUES (50, 0, 'os', 'none')",
	"INSERT INTO config (key, value) VALUES ('user.color', 'red')",
	"INSERT INTO nodes_config (node_id, key, value) VALUES (2, 'scheduler.instance', 'manual')",
	"INSERT INTO nodes_roles (node_id, role) VALUES (2, 1)",
	"INSERT INTO cluster_groups (id, name, description) VALUES (50, 'gpu', '')",
	"INSERT INTO nodes_cluster_groups (node_id, group_id) VALUES (2, 50)",
	"CREATE TABLE gadgets (id INTEGER PRIMARY KEY, name TEXT, instance_id INTEGER, FOREIGN KEY (instance_id) REFERENCES instances (id))",
	"INSERT INTO gadgets VALUES (1, 'laser' || char(27), 50)",
	"INSERT INTO gadgets VALUES (2, 'lost', 51)",
}

// wordsOfContent are these rows.
var wordsOfContent = []string{
	"project blue",
	"config features.images=true of project blue",
	"profile p1 in project blue",
	"device eth0 of profile p1 in project blue",
	"config nictype=bridged of device eth0 of profile p1 in project blue",
	"instance web1 in project blue on member node2",
	"config limits.cpu=2 of instance web1 in project blue on member node2",
	"use of profile p1 in project blue of instance web1 in project blue on member node2",
	"snapshot snap0 of instance web1 in project blue on member node2",
	"config a=b of snapshot snap0 of instance web1 in project blue on member node2",
	"network lxdbr7 in project default",
	"config bridge.mtu=1400 of network lxdbr7 in project default on member node3",
	"part of network lxdbr7 in project default on member node3",
	"storage pool fast",
	"part of storage pool fast on member node1",
	"config source=/srv of storage pool fast on member node1",
	"storage volume custom vol in storage pool fast in project default on member node1",
	"snapshot s0 of storage volume custom vol in storage pool fast in project default on member node1",
	"config size=1GiB of storage volume custom vol in storage pool fast in project default on member node1",
	"image 0123456789ab in project default",
	"image alias small of image 0123456789ab in project default",
	"copy of image 0123456789ab in project default on member node3",
	"property os=none of image 0123456789ab in project default",
	"config user.color=red of the cluster",
	"config scheduler.instance=manual of member node2",
	"role event-hub of member node2",
	"cluster group gpu",
	"place in cluster group gpu of member node2",
	`row of gadgets "laser\x1b" of instance web1 in project blue on member node2`,
	"row of gadgets lost of instance with id=51",
}

// Rows of LXD 6.9's own schema, in the words of its users: inserted into a member's database, changed, and deleted again.
func TestWords(t *testing.T) {
	dir := t.TempDir()
	base := filepath.Join(dir, "base")
	must(t, Replay(t.Context(), open(t, "forgotten/n1-preedit"), base, 0))
	full := filepath.Join(dir, "full")
	data, err := os.ReadFile(base)
	must(t, err)
	must(t, os.WriteFile(full, data, 0o600))
	execute(t, full, wordsContent...)

	sameLines(t, wordsOf(t, base, full, "insert "), wordsOfContent)
	sameLines(t, wordsOf(t, full, base, "delete "), wordsOfContent) // looked up where the rows are

	moved := filepath.Join(dir, "moved")
	data, err = os.ReadFile(full)
	must(t, err)
	must(t, os.WriteFile(moved, data, 0o600))
	execute(t, moved, "UPDATE instances SET node_id = 3 WHERE id = 50", "UPDATE instances_config SET value = '4' WHERE instance_id = 50",
		"UPDATE nodes SET heartbeat = 'x' WHERE id = 1",
		"UPDATE nodes SET address = '10.0.0.1:8443' WHERE id = 2")
	sameLines(t, wordsOf(t, full, moved, "update "), []string{
		"instance web1 in project blue on member node3 (node_id: member node2 -> member node3)",
		"config limits.cpu=4 of instance web1 in project blue on member node3 (value: '2' -> '4')",
		"member node2 (address: '10.96.6.102:8443' -> '10.0.0.1:8443')",
	})
}

// nextContent is of LXD 6.9, and of tables as a later one may have them, which nobody here knows.
var nextContent = []string{
	"INSERT INTO nodes_failure_domains (id, name) VALUES (50, 'rack1')",
	"UPDATE nodes SET failure_domain_id = 50 WHERE id = 2",
	"INSERT INTO nodes_roles (node_id, role) VALUES (2, 3)",
	"INSERT INTO projects (id, name, description) VALUES (50, 'blue', '')",
	"INSERT INTO auth_groups (id, name, description) VALUES (50, 'ops', '')",
	"INSERT INTO identity_provider_groups (id, name) VALUES (50, 'staff')",
	"INSERT INTO auth_groups_identity_provider_groups (auth_group_id, identity_provider_group_id) VALUES (50, 50)",
	"INSERT INTO identities (id, auth_method, type, identifier, name, metadata) VALUES (50, 3, 9, 'u', 'alice', '{}')",
	"INSERT INTO identities_auth_groups (identity_id, auth_group_id) VALUES (50, 50)",
	"INSERT INTO auth_groups_permissions (auth_group_id, entity_type, entity_id, entitlement) VALUES (50, 3, 50, 'can_view'), " +
		"(50, 21, 0, 'viewer'), (50, 24, 50, 'can_edit'), (50, 99, 7, 'can_fly'), (50, 3, 77, 'can_edit')",
	"INSERT INTO secrets (entity_type, entity_id, type, value) VALUES (24, 50, 2, 'k3y'), (21, 0, 1, 'k3y')",
	"INSERT INTO networks_acls (project_id, name, description, ingress, egress) VALUES (50, 'web', '', " +
		"CAST('[{\"action\":\"allow\",\"source\":\"' || printf('%.100c', 'x') || ' far\"}]' AS BLOB), CAST('[]' AS BLOB))",

	"CREATE TABLE gizmos (id INTEGER PRIMARY KEY, name TEXT)", // no foreign keys, but others' point to it
	"INSERT INTO gizmos VALUES (1, 'whirl')",
	"CREATE TABLE parts (serial TEXT, size INTEGER, gizmo INTEGER REFERENCES gizmos, " +
		"spare_of INTEGER REFERENCES parts (serial) ON DELETE SET NULL, UNIQUE (gizmo, serial))",
	"INSERT INTO parts VALUES ('p7', 1, 1, NULL)",
	"CREATE TABLE nuts (id INTEGER PRIMARY KEY, size INTEGER, host INTEGER REFERENCES nodes, owner INTEGER REFERENCES projects)", // other names for the columns
	"INSERT INTO nuts VALUES (3, 9, 2, 50)",
	"CREATE TABLE gizmos_nodes (id INTEGER PRIMARY KEY, gizmo_id INTEGER REFERENCES gizmos, node_id INTEGER REFERENCES nodes)", // a link
	"INSERT INTO gizmos_nodes VALUES (1, 1, 2)",
	"CREATE TABLE gizmos_config (gizmo_id INTEGER REFERENCES gizmos, key TEXT, value TEXT)",
	"INSERT INTO gizmos_config VALUES (1, 'speed', '3')",
	"CREATE TABLE opinions (id INTEGER PRIMARY KEY, text TEXT, entity_type INTEGER, entity_id INTEGER, node_id INTEGER REFERENCES nodes)",
	"INSERT INTO opinions VALUES (1, 'x', 3, 50, 2)",
	"INSERT INTO nodes (id, name, description, address, schema, api_extensions, arch) VALUES (20, 'node20', '', 'a', 1, 1, 2)",
	"INSERT INTO instances (id, node_id, name, architecture, type, project_id, description) VALUES (50, 20, 'web1', 2, 0, 50, '')",
	"CREATE TABLE pins (id INTEGER PRIMARY KEY, size INTEGER, instance_id INTEGER REFERENCES instances, node_id INTEGER REFERENCES nodes)",
	"INSERT INTO pins VALUES (1, 9, 50, 2), (2, 9, 50, 20)",
	"CREATE TABLE 'esc' (id INTEGER PRIMARY KEY, 'c' TEXT UNIQUE, node_id INTEGER REFERENCES nodes)",
	"INSERT INTO 'esc' VALUES (1, 'x', 2)",
}

var wordsOfNext = []string{
	"insert failure domain rack1",
	"update member node2 (failure_domain_id: NULL -> failure domain rack1)",
	"insert role control-plane of member node2",
	"insert project blue",
	"insert auth group ops",
	"insert identity provider group staff",
	"insert identity provider group staff in auth group ops",
	"insert identity alice",
	"insert identity alice in auth group ops",
	"insert permission can_view on project blue of auth group ops",
	"insert permission viewer on the server of auth group ops",
	"insert permission can_edit on identity alice of auth group ops",
	"insert permission can_fly on object with id=7 of kind 99 of auth group ops",
	"insert permission can_edit on project with id=77 of auth group ops",
	"insert secret bearer_signing_key of identity alice",
	"insert secret core_auth of the server",
	`insert network ACL web in project blue (ingress: [{"action":"allow","source":"` + strings.Repeat("x", 57) + `…"}])`,
	"insert gizmos id=1 name='whirl'",
	"insert row of parts serial=p7 of row of gizmos whirl",
	"insert row of nuts id=3 in project blue on member node2",
	"insert link between row of gizmos whirl and member node2",
	"insert config speed=3 of row of gizmos whirl",
	"insert row of opinions id=1 on project blue on member node2",
	"insert member node20",
	"insert instance web1 in project blue on member node20",
	"insert row of pins id=1 of instance web1 in project blue on member node20 on member node2",
	"insert row of pins id=2 of instance web1 in project blue on member node20",
	`insert row of "es\x1bc" "\x1bc"=x on member node2`,
}

// Tables that nobody here has words for are told by their foreign keys, so that those of LXD's next version are; and what is longer
// than is shown is found all the same.
func TestWordsOfNext(t *testing.T) {
	dir := t.TempDir()
	base, next := filepath.Join(dir, "base"), filepath.Join(dir, "next")
	log := open(t, "forgotten/n1-preedit")
	must(t, Replay(t.Context(), log, base, 0))
	must(t, Replay(t.Context(), log, next, 0))
	for _, statement := range nextContent {
		execute(t, next, strings.NewReplacer("'esc'", "'es\x1bc'", "'c'", "'\x1bc'").Replace(statement))
	}

	changes, _, err := Diff(t.Context(), base, next)
	must(t, err)
	var got, found []string
	for _, c := range changes {
		got = append(got, c.String())
		if c.Says(" far") {
			found = append(found, c.Table)
		}

		if c.Says("k3y") {
			t.Errorf("found by a secret: %s", c)
		}
	}

	sameLines(t, got, wordsOfNext)
	if !slices.Equal(found, []string{"networks_acls"}) {
		t.Errorf("the end of a long rule is found in %q", found)
	}
}

func execute(t *testing.T, file string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+file)
	must(t, err)
	defer db.Close()
	for _, s := range statements {
		_, err := db.Exec(s)
		if err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

// wordsOf are the changes between two databases but LXD's housekeeping, without what kind of change it is.
func wordsOf(t *testing.T, before string, after string, kind string) []string {
	t.Helper()
	changes, _, err := Diff(t.Context(), before, after)
	must(t, err)
	var all []string
	for _, c := range changes {
		if c.ByLXD() || c.Table == "sqlite_sequence" {
			continue
		}

		text, ok := strings.CutPrefix(c.String(), kind)
		if !ok {
			t.Errorf("%s is not %s", c, kind)
		}

		all = append(all, text)
	}

	return all
}

func sameLines(t *testing.T, got []string, want []string) {
	t.Helper()
	for _, line := range got {
		if !slices.Contains(want, line) {
			t.Errorf("got   %s", line)
		}
	}

	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("lacks %s", line)
		}
	}
}
