// SPDX-License-Identifier: AGPL-3.0-only

// Package nodedb reads LXD's node database, `database/local.db`, and writes changed copies of it.
//
// It never opens the file it is given: SQLite may replay a hot journal, checkpoint a WAL or create files beside it, and
// LXD's own code migrates the schema when it opens one. The database and its journals are copied to a scratch directory
// first, with plain SQLite doing the rest there. Only the tables raft_nodes and config are looked at, which every LXD
// since 4.0 has in the same shape; where a member has lost its node database, a new one is made from another member's (Template).
package nodedb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	sqlite "github.com/mattn/go-sqlite3"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/scratch"
)

// File is the name of the node database inside LXD's database directory.
const File = "local.db"

// ErrUnknownMember says that the node database is one of a member of a cluster, and does not tell which one.
var ErrUnknownMember error = product.Error("the node database does not tell which member of its cluster this LXD is")

// A standalone server, which is no member of a cluster, is the only server of its raft log. LXD gives it this id and this address there.
const (
	StandaloneID      = 1
	StandaloneAddress = "1"
)

// Keys of the table config.
const (
	keyClusterAddress = "cluster.https_address"
	keyCoreAddress    = "core.https_address"
)

// StandaloneSelf is what LXD takes a standalone server for: it is its own only voter, and has no name.
func StandaloneSelf() member.Member {
	return member.Member{ID: StandaloneID, Address: StandaloneAddress, Role: raftlog.Voter}
}

// Node is what the node database says about this member and its cluster.
type Node struct {
	// Self is this member: the row of raft_nodes whose address is ClusterAddress, or StandaloneSelf.
	Self member.Member

	// Members is the table raft_nodes by id. A standalone server has none there, as a rule.
	Members member.List

	// Standalone says that LXD starts on this node database as a standalone server: it has no cluster address, and no other
	// member. It is not proof that the server is one, as the node database of a member that was emptied looks the same.
	Standalone bool

	// ClusterAddress and CoreAddress are cluster.https_address and core.https_address; empty where they are not set.
	ClusterAddress string
	CoreAddress    string
}

// Read returns what the node database in an LXD database directory says. It changes nothing there. There is a Node beside the
// error ErrUnknownMember, too.
func Read(ctx context.Context, databaseDir string) (*Node, error) {
	db, done, err := openCopy(filepath.Join(databaseDir, File))
	if err != nil && gone(databaseDir) {
		return nil, fmt.Errorf("%w; `lxd-recover global-db-status` says what to do", missing(databaseDir))
	}

	if err != nil {
		return nil, err
	}

	defer done()

	node, err := read(ctx, db)
	if err != nil && !errors.Is(err, ErrUnknownMember) {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(databaseDir, File), err)
	}

	return node, err
}

// Update is what Stage changes.
type Update struct {
	// Members replaces the table raft_nodes.
	Members member.List

	// ClusterAddress becomes cluster.https_address.
	ClusterAddress string

	// CoreAddress becomes core.https_address; empty leaves it as it is.
	CoreAddress string

	// Mark says which recovery the database comes from.
	Mark Mark

	// Certificates are added to the table certificates.
	Certificates []Certificate
}

// Stage writes a copy of the node database of databaseDir to the new file target and applies an update to the copy. The
// copy is complete, checked and without a journal when Stage returns; syncing it to disk is the caller's.
func Stage(ctx context.Context, databaseDir string, target string, update Update) error {
	err := stage(ctx, databaseDir, target, update)
	if err != nil {
		return fmt.Errorf("write the node database %s: %w", target, err)
	}

	return nil
}

func stage(ctx context.Context, databaseDir string, target string, update Update) error {
	scratch, remove, err := copyToScratch(filepath.Join(databaseDir, File))
	if err != nil {
		return err
	}

	defer remove()

	err = createEmpty(target)
	if err != nil {
		return err
	}

	err = backup(ctx, scratch, target)
	if err != nil {
		return err
	}

	return finish(ctx, target, update)
}

// Copy writes a copy of the node database of databaseDir to the new file target, with all that it holds. It is checked and without a journal when
// Copy returns.
func Copy(ctx context.Context, databaseDir string, target string) error {
	scratch, remove, err := copyToScratch(filepath.Join(databaseDir, File))
	if err != nil {
		return err
	}

	defer remove()

	err = createEmpty(target)
	if err == nil {
		err = backup(ctx, scratch, target)
	}

	if err == nil {
		err = withoutJournal(ctx, target)
	}

	if err != nil {
		return fmt.Errorf("copy the node database %s: %w", filepath.Join(databaseDir, File), err)
	}

	return nil
}

// withoutJournal checks a node database, and sets the journal mode that LXD uses.
func withoutJournal(ctx context.Context, file string) error {
	db, err := open(file)
	if err != nil {
		return err
	}

	defer db.Close()

	_, err = db.ExecContext(ctx, "PRAGMA journal_mode=DELETE")
	if err == nil {
		err = checkIntegrity(ctx, db)
	}

	return errors.Join(err, db.Close())
}

// createEmpty makes an empty file, which SQLite takes for a new database.
func createEmpty(target string) error {
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}

	return f.Close()
}

// finish applies an update to a new node database and checks it.
func finish(ctx context.Context, target string, update Update) error {
	db, err := open(target)
	if err != nil {
		return err
	}

	defer db.Close()

	err = apply(ctx, db, update)
	if err != nil {
		return err
	}

	err = checkIntegrity(ctx, db)
	if err != nil {
		return err
	}

	return db.Close()
}

func checkIntegrity(ctx context.Context, db *sql.DB) error {
	var verdict string
	err := db.QueryRowContext(ctx, "PRAGMA integrity_check(1)").Scan(&verdict)
	if err != nil {
		return err
	}

	if verdict != "ok" {
		return fmt.Errorf("integrity check: %s", verdict)
	}

	return nil
}

// apply makes the changes of an update in one transaction. The journal mode is the one LXD uses, whatever the copy had,
// so that no -wal is left beside the staged file.
func apply(ctx context.Context, db *sql.DB, update Update) error {
	_, err := db.ExecContext(ctx, "PRAGMA journal_mode=DELETE")
	if err != nil {
		return err
	}

	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}

	defer func() { _ = tx.Rollback() }()

	_, err = tx.ExecContext(ctx, "DELETE FROM raft_nodes")
	if err != nil {
		return err
	}

	for _, m := range update.Members {
		_, err = tx.ExecContext(ctx, "INSERT INTO raft_nodes (id, address, role, name) VALUES (?, ?, ?, ?)", int64(m.ID), m.Address, m.Role.API(), m.Name)
		if err != nil {
			return err
		}
	}

	// In this order always, so that the same update makes the same file, to the byte.
	for _, setting := range []struct{ key, value string }{{keyClusterAddress, update.ClusterAddress}, {keyCoreAddress, update.CoreAddress}} {
		if setting.value == "" {
			continue
		}

		_, err = tx.ExecContext(ctx, "INSERT OR REPLACE INTO config (key, value) VALUES (?, ?)", setting.key, setting.value)
		if err != nil {
			return err
		}
	}

	err = writeMark(ctx, tx, update.Mark)
	if err != nil {
		return err
	}

	err = writeCertificates(ctx, tx, update.Certificates)
	if err != nil {
		return err
	}

	return tx.Commit()
}

func read(ctx context.Context, db *sql.DB) (*Node, error) {
	node := &Node{}
	rows, err := db.QueryContext(ctx, "SELECT id, address, role, name FROM raft_nodes ORDER BY id")
	if err != nil {
		return nil, err
	}

	defer rows.Close()

	for rows.Next() {
		var id int64
		var role int
		var m member.Member
		err = rows.Scan(&id, &m.Address, &role, &m.Name)
		if err != nil {
			return nil, err
		}

		m.ID = uint64(id)
		m.Role, err = raftlog.RoleFromAPI(role)
		if err != nil {
			return nil, fmt.Errorf("table raft_nodes, id %d: %w", id, err)
		}

		node.Members = append(node.Members, m)
	}

	err = rows.Err()
	if err != nil {
		return nil, err
	}

	for key, value := range map[string]*string{keyClusterAddress: &node.ClusterAddress, keyCoreAddress: &node.CoreAddress} {
		err = db.QueryRowContext(ctx, "SELECT coalesce(value, '') FROM config WHERE key = ?", key).Scan(value)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return nil, err
		}
	}

	return node, node.identify()
}

// identify finds out whose node database it is, the way LXD does: by the address that it listens on for the cluster.
func (n *Node) identify() error {
	if n.ClusterAddress == "" {
		if len(n.Members) == 0 || len(n.Members) == 1 && n.Members[0].ID == StandaloneID && n.Members[0].Address == StandaloneAddress {
			n.Standalone, n.Self = true, StandaloneSelf()
			return nil
		}

		return fmt.Errorf("%w: it lists members, but its cluster.https_address is not set", ErrUnknownMember)
	}

	for _, m := range n.Members {
		if m.Address == n.ClusterAddress {
			n.Self = m
			return nil
		}
	}

	if len(n.Members) == 0 {
		return fmt.Errorf("%w: it lists no members, but its cluster.https_address is %s", ErrUnknownMember, n.ClusterAddress)
	}

	// What LXD's own loader leaves when it is killed half way.
	return product.Errorf("%w: no member that it lists has the address %s, which is its cluster.https_address; "+
		"an interrupted loader of LXD leaves it so, and `lxd-recover global-db-import` of another member's tarball repairs it",
		ErrUnknownMember, n.ClusterAddress)
}

// openCopy opens a copy of a node database; done closes the copy and removes it. The file is not changed.
func openCopy(file string) (db *sql.DB, done func(), err error) {
	scratch, remove, err := copyToScratch(file)
	if err != nil {
		return nil, nil, err
	}

	db, err = open(scratch)
	if err != nil {
		remove()
		return nil, nil, err
	}

	return db, func() {
		_ = db.Close()
		remove()
	}, nil
}

// copyToScratch copies a node database and its journals to a scratch directory, so that SQLite can recover them there.
func copyToScratch(file string) (string, func(), error) {
	dir, remove, err := scratch.Dir("nodedb")
	if err != nil {
		return "", nil, err
	}

	for _, suffix := range []string{"", "-journal", "-wal"} {
		err = newfile.Copy(file+suffix, filepath.Join(dir, File+suffix))
		if suffix != "" && errors.Is(err, os.ErrNotExist) {
			continue
		}

		if err != nil {
			remove()
			return "", nil, err
		}
	}

	return filepath.Join(dir, File), remove, nil
}

// open opens an SQLite file on a single connection.
func open(file string) (*sql.DB, error) {
	db, err := sql.Open("sqlite3", "file:"+uriPath(file)+"?mode=rw&_busy_timeout=5000")
	if err != nil {
		return nil, err
	}

	db.SetMaxOpenConns(1)
	return db, nil
}

// backup copies one SQLite database over another with SQLite's own backup API, all pages in one step.
func backup(ctx context.Context, from string, to string) error {
	src, err := open(from)
	if err != nil {
		return err
	}

	defer src.Close()

	dst, err := open(to)
	if err != nil {
		return err
	}

	defer dst.Close()

	srcConn, err := src.Conn(ctx)
	if err != nil {
		return err
	}

	defer srcConn.Close()

	dstConn, err := dst.Conn(ctx)
	if err != nil {
		return err
	}

	defer dstConn.Close()

	return srcConn.Raw(func(s any) error {
		return dstConn.Raw(func(d any) error {
			b, err := d.(*sqlite.SQLiteConn).Backup("main", s.(*sqlite.SQLiteConn), "main")
			if err != nil {
				return err
			}

			_, err = b.Step(-1)
			if err != nil {
				_ = b.Finish()
				return err
			}

			return b.Finish()
		})
	})
}
