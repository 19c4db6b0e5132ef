// SPDX-License-Identifier: AGPL-3.0-only

package nodedb

import (
	"database/sql"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func madeDatabase(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	db, err := sql.Open("sqlite3", filepath.Join(dir, File))
	if err == nil {
		_, err = db.Exec(`CREATE TABLE config (id INTEGER PRIMARY KEY, key TEXT, value TEXT, UNIQUE (key));
			INSERT INTO config (key, value) VALUES ('cluster.https_address', '10.0.0.1:8443'), ('core.metrics_address', '10.0.0.1:9100');
			CREATE TABLE patches (id INTEGER PRIMARY KEY, name TEXT, applied_at DATETIME NOT NULL);
			INSERT INTO patches (name, applied_at) VALUES ('first', 1000), ('second', 2000), ('third', 3000)`)
	}

	if err == nil {
		err = db.Close()
	}

	if err != nil {
		t.Fatal(err)
	}

	return dir
}

// What is set is what LXD will find, and the patch cannot do anything else.
func TestConfigAtStart(t *testing.T) {
	dir := madeDatabase(t)
	elsewhere := filepath.Join(dir, "elsewhere.db")
	before := map[string]string{"cluster.https_address": "10.0.0.1:8443", "core.metrics_address": "10.0.0.1:9100"}
	changed := maps.Clone(before)
	changed["core.metrics_address"] = "10.1.0.1:9100"
	for _, c := range []struct {
		patch    string
		expected map[string]string
	}{
		{"", before},
		{"UPDATE config SET value = replace(value, '10.0.', '10.1.') WHERE key = 'core.metrics_address';", changed},
		{"DELETE FROM config WHERE key = 'core.metrics_address'", map[string]string{"cluster.https_address": "10.0.0.1:8443"}},
		{"UPDATE nonsense", before},
		{"ATTACH '" + elsewhere + "' AS e; CREATE TABLE e.t (i INTEGER);", before},
		{"VACUUM INTO '" + elsewhere + "'", before},
	} {
		err := os.WriteFile(filepath.Join(dir, patchFile), []byte(c.patch), 0o600)
		if err != nil {
			t.Fatal(err)
		}

		found, err := ConfigAtStart(t.Context(), dir)
		if err != nil || !maps.Equal(found, c.expected) {
			t.Errorf("%s: %v (%v), want %v", c.patch, found, err, c.expected)
		}

		_, err = os.Stat(elsewhere)
		if err == nil {
			t.Errorf("%s has made %s", c.patch, elsewhere)
		}
	}
}

func TestPatchesSince(t *testing.T) {
	dir := madeDatabase(t)
	names, err := PatchesSince(t.Context(), dir, time.Unix(1000, 0))
	if err != nil || !slices.Equal(names, []string{"second", "third"}) {
		t.Errorf("since 1000: %q (%v)", names, err)
	}
}
