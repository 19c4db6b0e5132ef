// SPDX-License-Identifier: AGPL-3.0-only

package nodedb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// The node database's schemas that are known: 42 is LXD 5.0's, 43 the one of 5.21, 6.6 and 6.9. Both have the same tables.
const (
	oldestSchema = 42
	newestSchema = 43
)

// ErrNoTemplate says that a file cannot be the template of a new node database.
var ErrNoTemplate = errors.New("no new node database can be made from it")

// Template is what a new node database is made from where a member has lost its own: another member's. All that is taken of it is its
// schema, and, where that is wanted, which patches of LXD are applied: LXD applies those that are not named when it starts. What else
// is in it belongs to that other member.
type Template struct {
	File string

	// Self is the member that it belongs to, Members its list of all.
	Self    member.Member
	Members member.List

	// Schema is the version of its schema.
	Schema int

	// Patches are the names of the patches that are applied.
	Patches []string

	// Certificates are the fingerprints of the members' certificates in it, by their names.
	Certificates map[string]string

	definitions []string // the statements that make its tables and their indexes
	versions    [][]any  // rows of the table schema
	patches     [][]any  // rows of the table patches
}

// ReadTemplate reads another member's node database. The file is not changed.
func ReadTemplate(ctx context.Context, file string) (*Template, error) {
	db, done, err := openCopy(file)
	if err != nil {
		return nil, err
	}

	defer done()

	found, err := damage(ctx, db)
	if err == nil && found != "" {
		return nil, product.Errorf("%s is not a node database of LXD (%s); %w", file, found, ErrNoTemplate)
	}

	t := &Template{File: file}
	if err == nil {
		err = t.read(ctx, db)
	}

	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}

	return t, nil
}

func (t *Template) read(ctx context.Context, db *sql.DB) error {
	err := db.QueryRowContext(ctx, "SELECT coalesce(max(version), 0) FROM schema").Scan(&t.Schema)
	if err != nil {
		return err
	}

	if t.Schema < oldestSchema || t.Schema > newestSchema {
		return fmt.Errorf("its schema has version %d, and this lxd-recover knows only %d to %d; %w", t.Schema, oldestSchema, newestSchema, ErrNoTemplate)
	}

	node, err := read(ctx, db)
	if errors.Is(err, ErrUnknownMember) || err == nil && node.Standalone {
		return fmt.Errorf("it does not say which member of a cluster it belongs to; %w", ErrNoTemplate)
	}

	if err != nil {
		return err
	}

	t.Self, t.Members = node.Self, node.Members
	t.definitions, err = stringsOf(ctx, db, "SELECT sql FROM sqlite_master WHERE type IN ('table', 'index') AND sql IS NOT NULL "+
		"AND tbl_name IN ('"+strings.Join(tables, "', '")+"') ORDER BY type DESC, name")
	if err != nil {
		return err
	}

	t.Patches, err = stringsOf(ctx, db, "SELECT name FROM patches ORDER BY id")
	if err != nil {
		return err
	}

	// The plus keeps the driver from taking numbers in columns of the type DATETIME for times.
	t.versions, err = rowsOf(ctx, db, "SELECT id, version, +updated_at FROM schema ORDER BY id", 3)
	if err != nil {
		return err
	}

	t.patches, err = rowsOf(ctx, db, "SELECT id, name, +applied_at FROM patches ORDER BY id", 3)
	if err != nil {
		return err
	}

	return t.readCertificates(ctx, db)
}

func (t *Template) readCertificates(ctx context.Context, db *sql.DB) error {
	rows, err := rowsOf(ctx, db, fmt.Sprintf("SELECT name, fingerprint FROM certificates WHERE type = %d", serverCertificate), 2)
	t.Certificates = map[string]string{}
	for _, r := range rows {
		t.Certificates[fmt.Sprint(r[0])] = fmt.Sprint(r[1])
	}

	return err
}

// rowsOf returns rows of so many columns as SQLite has them.
func rowsOf(ctx context.Context, db *sql.DB, query string, columns int) ([][]any, error) {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return nil, err
	}

	defer rows.Close()

	var all [][]any
	for rows.Next() {
		values, places := make([]any, columns), make([]any, columns)
		for i := range values {
			places[i] = &values[i]
		}

		err = rows.Scan(places...)
		if err != nil {
			return nil, err
		}

		all = append(all, values)
	}

	return all, rows.Err()
}

// WithoutPatches returns a template from which no patch is taken.
func (t *Template) WithoutPatches() *Template {
	bare := *t
	bare.Patches, bare.patches = nil, nil
	return &bare
}

// Make writes a new node database, made from a template and an update, to the new file target. As with Stage it is complete, checked
// and without a journal when Make returns; syncing it to disk is the caller's.
func Make(ctx context.Context, t *Template, target string, update Update) error {
	err := makeNew(ctx, t, target, update)
	if err != nil {
		return fmt.Errorf("write the node database %s: %w", target, err)
	}

	return nil
}

func makeNew(ctx context.Context, t *Template, target string, update Update) error {
	err := createEmpty(target)
	if err != nil {
		return err
	}

	db, err := open(target)
	if err != nil {
		return err
	}

	defer db.Close()

	err = t.fill(ctx, db)
	if err != nil {
		return err
	}

	err = db.Close()
	if err != nil {
		return err
	}

	return finish(ctx, target, update)
}

// fill makes the tables, and puts in what the template has for them.
func (t *Template) fill(ctx context.Context, db *sql.DB) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}

	defer func() { _ = tx.Rollback() }()

	for _, statement := range t.definitions {
		_, err = tx.ExecContext(ctx, statement)
		if err != nil {
			return err
		}
	}

	for _, table := range []struct {
		insert string
		rows   [][]any
	}{
		{"INSERT INTO schema (id, version, updated_at) VALUES (?, ?, ?)", t.versions},
		{"INSERT INTO patches (id, name, applied_at) VALUES (?, ?, ?)", t.patches},
	} {
		for _, row := range table.rows {
			_, err = tx.ExecContext(ctx, table.insert, row...)
			if err != nil {
				return err
			}
		}
	}

	return tx.Commit()
}
