// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	_ "github.com/mattn/go-sqlite3" // registers the driver sqlite3

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/scratch"
)

// DB is a replayed global database, read-only.
type DB struct {
	sql    *sql.DB
	File   string // the SQLite file
	remove func()
}

// Open replays a log up to an index, 0 for its last entry, into a scratch file and opens that. Close removes it.
func Open(ctx context.Context, log *raftlog.Log, upTo uint64) (*DB, error) {
	dir, remove, err := scratch.Dir("globaldb")
	if err != nil {
		return nil, err
	}

	file := filepath.Join(dir, Name)
	err = Replay(ctx, log, file, upTo)
	if err != nil {
		remove()
		return nil, err
	}

	db, err := openFile(file, "ro")
	if err != nil {
		remove()
		return nil, err
	}

	return &DB{sql: db, File: file, remove: remove}, nil
}

// Close closes the database and removes its scratch file.
func (db *DB) Close() error {
	defer db.remove()
	return db.sql.Close()
}

// Node is a row of LXD's table nodes: a cluster member as the global database knows it.
type Node struct {
	ID      uint64
	Name    string
	Address string
}

// Nodes returns the table nodes by id; nil where a database that is not LXD's has no such table.
func (db *DB) Nodes(ctx context.Context) ([]Node, error) {
	tables, err := stringsOf(ctx, db.sql, "SELECT name FROM sqlite_master WHERE type = 'table' AND name = 'nodes'")
	if err != nil {
		return nil, fmt.Errorf("look for the table nodes: %w", err)
	}

	if len(tables) == 0 {
		return nil, nil
	}

	rows, err := db.sql.QueryContext(ctx, "SELECT id, name, address FROM nodes ORDER BY id")
	if err != nil {
		return nil, fmt.Errorf("read the table nodes: %w", err)
	}

	defer rows.Close()

	nodes := []Node{}
	for rows.Next() {
		var n Node
		err = rows.Scan(&n.ID, &n.Name, &n.Address)
		if err != nil {
			return nil, fmt.Errorf("read the table nodes: %w", err)
		}

		nodes = append(nodes, n)
	}

	return nodes, rows.Err()
}

// memberCertificates are the places where LXD has kept the members' own certificates, the newest first. 1 is the
// authentication method TLS, 3 and 2 are the types of a server's certificate.
var memberCertificates = []struct{ table, query string }{
	{"identities", "SELECT identifier FROM identities WHERE auth_method = 1 AND type = 3 AND name = ?"}, // LXD 5.21 and later
	{"certificates", "SELECT fingerprint FROM certificates WHERE type = 2 AND name = ?"},
}

// MemberCertificate returns the SHA-256 fingerprint, in lower-case hexadecimal, of the server certificate that the cluster
// trusts for the member of that name; empty where the database has none.
func (db *DB) MemberCertificate(ctx context.Context, name string) (string, error) {
	for _, place := range memberCertificates {
		tables, err := stringsOf(ctx, db.sql, "SELECT name FROM sqlite_master WHERE type = 'table' AND name = ?", place.table)
		if err != nil {
			return "", fmt.Errorf("look for the table %s: %w", place.table, err)
		}

		if len(tables) == 0 {
			continue
		}

		var fingerprint string
		err = db.sql.QueryRowContext(ctx, place.query, name).Scan(&fingerprint)
		if errors.Is(err, sql.ErrNoRows) {
			return "", nil
		}

		if err != nil {
			return "", fmt.Errorf("read the table %s: %w", place.table, err)
		}

		return fingerprint, nil
	}

	return "", nil
}

// Summary is what a database holds, in numbers.
type Summary struct {
	SchemaVersion int            `json:"schema_version" yaml:"schema_version"`
	Tables        map[string]int `json:"tables" yaml:"tables"`       // rows of each table
	Rows          int            `json:"rows" yaml:"rows"`           // rows of all tables
	Integrity     string         `json:"integrity" yaml:"integrity"` // "ok", or what SQLite found

	// ForeignKeys names rows that point to no row. LXD runs on such a database: a warning, not damage.
	ForeignKeys []string `json:"foreign_keys,omitempty" yaml:"foreign_keys,omitempty"`

	// Heartbeat is the newest time at which LXD's leader has heard from a member, by the leader's clock, UTC; zero where the database does
	// not tell.
	Heartbeat time.Time `json:"-" yaml:"-"`
}

// Summary counts the rows and checks the database: SQLite's integrity_check and foreign_key_check.
func (db *DB) Summary(ctx context.Context) (*Summary, error) {
	return db.checked(ctx, func(tables []string) (map[string]int, error) {
		counts := map[string]int{}
		for _, name := range tables {
			var n int
			err := db.sql.QueryRowContext(ctx, "SELECT count(*) FROM "+quote(name)).Scan(&n)
			if err != nil {
				return nil, fmt.Errorf("count the rows of table %s: %w", name, err)
			}

			counts[name] = n
		}

		return counts, nil
	})
}

// SummaryAndFingerprint is both, in little more time than one of them.
func (db *DB) SummaryAndFingerprint(ctx context.Context) (*Summary, Fingerprint, error) {
	var print Fingerprint
	s, err := db.checked(ctx, func([]string) (map[string]int, error) {
		var err error
		print, err = db.Fingerprint(ctx)
		counts := map[string]int{}
		for name, p := range print {
			counts[name] = p.Rows
		}

		return counts, err
	})
	return s, print, err
}

// checked checks the database, and at the same time goes through its tables once more, to count their rows.
func (db *DB) checked(ctx context.Context, count func(tables []string) (map[string]int, error)) (*Summary, error) {
	err := db.sql.PingContext(ctx) // first of the two: SQLite looks at a file that is open already in another way
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}

	var s *Summary
	var integrityErr error
	var integrity string
	var group sync.WaitGroup
	group.Go(func() { integrity, integrityErr = integrityOf(ctx, db.File) })
	s, err = db.counted(ctx, count)
	group.Wait()
	if integrityErr != nil {
		return nil, integrityErr
	}

	if err != nil {
		return nil, err
	}

	s.Integrity = integrity
	return s, nil
}

// integrityOf has SQLite check a database, over a connection of its own. Nobody writes to the file any more, so it needs no locks:
// two connections of one process share theirs, and what is done about them would be another thing in every run.
func integrityOf(ctx context.Context, file string) (string, error) {
	db, err := openFile(file, "ro&immutable=1")
	if err != nil {
		return "", err
	}

	defer db.Close()

	found, err := stringsOf(ctx, db, fmt.Sprintf("PRAGMA integrity_check(%d)", maxFindings))
	if err != nil {
		return "", fmt.Errorf("check the database: %w", err)
	}

	return strings.Join(found, "; "), nil
}

// counted is a summary without the integrity check.
func (db *DB) counted(ctx context.Context, count func(tables []string) (map[string]int, error)) (*Summary, error) {
	s := &Summary{}
	var err error
	s.Heartbeat, err = db.NewestHeartbeat(ctx)
	if err != nil {
		return nil, err
	}

	s.ForeignKeys, err = stringsOf(ctx, db.sql, fmt.Sprintf(`SELECT "table" || ' row ' || coalesce(rowid, '?') || ' points to no row of ' || parent `+
		`FROM pragma_foreign_key_check LIMIT %d`, maxFindings))
	if err != nil {
		return nil, fmt.Errorf("check the foreign keys: %w", err)
	}

	names, err := stringsOf(ctx, db.sql, "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name")
	if err != nil {
		return nil, err
	}

	s.Tables, err = count(names)
	if err != nil {
		return nil, err
	}

	for _, n := range s.Tables {
		s.Rows += n
	}

	_, ok := s.Tables["schema"]
	if ok {
		err = db.sql.QueryRowContext(ctx, "SELECT coalesce(max(version), 0) FROM schema").Scan(&s.SchemaVersion)
		if err != nil {
			return nil, fmt.Errorf("read the schema version: %w", err)
		}
	}

	return s, nil
}

// maxFindings bounds how many lines of a check are kept.
const maxFindings = 20

func stringsOf(ctx context.Context, db *sql.DB, query string, args ...any) ([]string, error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}

	defer rows.Close()

	var all []string
	for rows.Next() {
		var s string
		err = rows.Scan(&s)
		if err != nil {
			return nil, err
		}

		all = append(all, s)
	}

	return all, rows.Err()
}

// quote writes a name as an SQL identifier.
func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

func openFile(file string, mode string) (*sql.DB, error) {
	err := RegisterSums()
	if err != nil {
		return nil, err
	}

	uri := "file:" + (&url.URL{Path: file}).EscapedPath() + "?mode=" + mode
	db, err := sql.Open("sqlite3", uri)
	if err != nil {
		return nil, err
	}

	db.SetMaxOpenConns(1)
	return db, nil
}

// checkpoint lets SQLite merge FILE-wal into FILE.
func checkpoint(ctx context.Context, file string) error {
	db, err := openFile(file, "rw")
	if err != nil {
		return err
	}

	defer db.Close()

	var busy, frames, done int
	err = db.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &frames, &done)
	if err != nil {
		return err
	}

	if busy != 0 {
		return errors.New("SQLite could not merge all frames")
	}

	return db.Close()
}
