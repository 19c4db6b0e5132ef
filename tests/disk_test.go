// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"testing"

	_ "github.com/mattn/go-sqlite3"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// sqlOnDisk queries the database in a raft directory: what this member has on its own disk, whatever a leader serves.
func sqlOnDisk(t testing.TB, global string, query string) []string {
	t.Helper()
	db := replay(t, global, 0)
	defer db.Close()
	rows, err := db.Query(query)
	must(t, err)
	defer rows.Close()
	var all []string
	for rows.Next() {
		var s string
		must(t, rows.Scan(&s))
		all = append(all, s)
	}

	must(t, rows.Err())
	return all
}

// replay replays a raft directory to a scratch file and opens that.
func replay(t testing.TB, global string, upTo uint64) *sql.DB {
	t.Helper()
	log, err := raftlog.Open(context.Background(), os.DirFS(global), raftlog.Options{})
	must(t, err)
	file := filepath.Join(t.TempDir(), "db.bin")
	must(t, globaldb.Replay(context.Background(), log, file, upTo))
	db, err := sql.Open("sqlite3", "file:"+file+"?mode=ro")
	must(t, err)
	return db
}

// checkpoint merges a database's WAL into it.
func checkpoint(t testing.TB, file string) {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+file+"?mode=rw")
	must(t, err)
	defer db.Close()
	var busy, log, done int
	must(t, db.QueryRow("PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &log, &done))
	if busy != 0 {
		t.Fatalf("%s: the WAL cannot be merged", file)
	}
}

// execSQL changes a node database.
func execSQL(t testing.TB, file string, statement string) {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+file+"?mode=rw")
	must(t, err)
	defer db.Close()
	_, err = db.Exec(statement)
	must(t, err)
}
