// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"fmt"
	"regexp"
	"strings"
)

// An object is what a row is about where it has the number of a kind of object, entity_type, and an id, entity_id, in place of a
// foreign key: any row of any of LXD's tables.

// objectTables are the tables of the kinds of objects that LXD 5.0 had already. Later ones are told by the database, see objectTable.
var objectTables = map[string]string{
	"0": "instances", "1": "images", "2": "profiles", "3": "projects", "4": "certificates", "5": "instances", "6": "instances_backups",
	"7": "instances_snapshots", "8": "networks", "9": "networks_acls", "10": "nodes", "11": "operations", "12": "storage_pools",
	"13": "storage_volumes", "14": "storage_volumes_backups", "15": "storage_volumes_snapshots", "16": "warnings", "17": "cluster_groups",
	"18": "storage_buckets", "19": "networks_zones", "20": "images_aliases",
}

// serverObject is the kind of the object that is the cluster as a whole. It has no table.
const serverObject = "21"

// objectWords are said before the object, by table; elsewhere it is " on ".
var objectWords = map[string]string{"operations_resources": " ", "secrets": " of ", "warnings": " about "}

// deletion is the trigger of a table that removes the permissions on an object with the object; it has the number of the kind.
var deletion = regexp.MustCompile(`(?is)AFTER\s+DELETE\s+ON\s+"?(\w+)"?.*\bentity_type(?:_code)?\s+(?:=\s*(\d+)|IN\s*\(([\d,\s]+)\))`)

// object describes what a row is about; it is empty for a row that is about none.
func (w *words) object(row map[string]string, depth int) (string, error) {
	kind, id := row["entity_type"], row["entity_id"]
	if kind == "" {
		kind = row["entity_type_code"]
	}

	if kind == "" || kind == "NULL" || kind == "-1" || id == "" || id == "NULL" {
		return "", nil
	}

	if kind == serverObject {
		return "the server", nil
	}

	table, err := w.objectTable(kind)
	if err != nil {
		return "", err
	}

	if table == "" {
		return fmt.Sprintf("object with id=%s of kind %s", shorten(id), shorten(kind)), nil
	}

	return w.target(foreignKey{table: table, to: "id"}, id, depth+1)
}

// objectTable is the table of a kind of object, empty where it is not known.
func (w *words) objectTable(kind string) (string, error) {
	if w.objects == nil {
		triggers, err := stringsOf(w.ctx, w.db, "SELECT sql FROM "+w.schema+".sqlite_master WHERE type = 'trigger'")
		if err != nil {
			return "", err
		}

		w.objects = map[string]string{}
		for _, trigger := range triggers {
			found := deletion.FindStringSubmatch(trigger)
			if found == nil {
				continue
			}

			for _, number := range strings.Split(found[2]+found[3], ",") {
				w.objects[strings.TrimSpace(number)] = found[1]
			}
		}
	}

	table, ok := w.objects[kind]
	if !ok {
		table = objectTables[kind]
	}

	return table, nil
}
