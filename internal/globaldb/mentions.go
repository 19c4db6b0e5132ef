// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/member"
)

// Mention is a setting in the database that names one of the hosts that were asked for. Its value is not in it: it may be secret.
type Mention struct {
	Words string // which setting it is, for people
	Host  string
}

// MaxMentions bounds how many settings Mentions returns.
const MaxMentions = 50

// silentTables name addresses that are no settings: LXD itself brings them up to date.
var silentTables = append([]string{"nodes", "warnings"}, ownTables...)

// Mentions returns the settings that name one of these hosts: values of a key, and columns with an address in their name. What LXD notes
// for itself about instances and networks does not count.
func (db *DB) Mentions(ctx context.Context, hosts []string) ([]Mention, error) {
	if len(hosts) == 0 {
		return nil, nil
	}

	tables, err := stringsOf(ctx, db.sql, "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name")
	if err != nil {
		return nil, err
	}

	var found []Mention
	w := newWords(ctx, db.sql, "main")
	for _, table := range tables {
		if slices.Contains(silentTables, table) {
			continue
		}

		more, err := w.mentions(table, hosts, MaxMentions-len(found))
		if err != nil {
			return nil, fmt.Errorf("look for addresses in the table %s: %w", table, err)
		}

		found = append(found, more...)
	}

	return found, nil
}

// mentions are those in one table.
func (w *words) mentions(table string, hosts []string, limit int) ([]Mention, error) {
	columns, _, err := columnsOf(w.ctx, w.db, w.schema, table)
	if err != nil {
		return nil, err
	}

	looked := slices.DeleteFunc(slices.Clone(columns), func(c string) bool {
		return !strings.Contains(c, "address") && (c != "value" || !slices.Contains(columns, "key"))
	})
	if len(looked) == 0 {
		return nil, nil
	}

	var where []string
	var args []any
	for _, c := range looked {
		for _, host := range hosts {
			where = append(where, "instr(lower("+quote(c)+"), ?) > 0")
			args = append(args, strings.ToLower(host))
		}
	}

	rows, err := w.matching(table, columns, strings.Join(where, " OR "), args)
	if err != nil {
		return nil, err
	}

	var found []Mention
	for _, row := range rows {
		for _, host := range hosts {
			named := slices.ContainsFunc(looked, func(c string) bool { return member.Mentions(unquoted(row[c]), host) })
			if !named || len(found) == limit || strings.HasPrefix(unquoted(row["key"]), "volatile.") {
				continue
			}

			text, err := w.setting(table, row)
			if err != nil {
				return nil, err
			}

			found = append(found, Mention{Words: text, Host: host})
		}
	}

	return found, nil
}

// matching returns rows, each column as SQLite's quote writes it.
func (w *words) matching(table string, columns []string, where string, args []any) ([]map[string]string, error) {
	list := make([]string, len(columns))
	for i, c := range columns {
		list[i] = "quote(" + quote(c) + ")"
	}

	rows, err := w.db.QueryContext(w.ctx, "SELECT "+strings.Join(list, ", ")+" FROM "+quote(table)+" WHERE "+where+" ORDER BY 1", args...)
	if err != nil {
		return nil, err
	}

	defer rows.Close()

	var all []map[string]string
	for rows.Next() {
		values, places := make([]string, len(columns)), make([]any, len(columns))
		for i := range values {
			places[i] = &values[i]
		}

		err = rows.Scan(places...)
		if err != nil {
			return nil, err
		}

		row := map[string]string{}
		for i, c := range columns {
			row[c] = values[i]
		}

		all = append(all, row)
	}

	return all, rows.Err()
}

// setting says which setting a row is, without its value.
func (w *words) setting(table string, row map[string]string) (string, error) {
	text, ok := kinds[table]
	if !ok {
		text = "config"
	}

	name, err := w.name(table, row)
	if row["key"] != "" {
		name = plain(row["key"])
	}

	if err != nil {
		return "", err
	}

	text = strings.TrimSuffix(text+" "+name, " ")

	if table == "config" {
		text += " of the cluster"
	}

	keys, err := w.foreignKeys(table)
	if err != nil {
		return "", err
	}

	return w.owners(owned{table: table, row: row, keys: keys, text: text})
}

// unquoted is the text of an SQL literal.
func unquoted(literal string) string {
	if len(literal) < 2 || literal[0] != '\'' {
		return literal
	}

	return strings.ReplaceAll(literal[1:len(literal)-1], "''", "'")
}

// SchemaVersion is the version of the schema of LXD's tables; 0 where the database does not tell.
func (db *DB) SchemaVersion(ctx context.Context) (int, error) {
	tables, err := stringsOf(ctx, db.sql, "SELECT name FROM sqlite_master WHERE type = 'table' AND name = 'schema'")
	if err != nil || len(tables) == 0 {
		return 0, err
	}

	version := 0
	err = db.sql.QueryRowContext(ctx, "SELECT coalesce(max(version), 0) FROM schema").Scan(&version)
	if err != nil {
		return 0, fmt.Errorf("read the schema version: %w", err)
	}

	return version, nil
}

// LastHeartbeat is the newest time at which a member is noted to have been seen, to the second; zero where there is none. The database
// is not older, and, as long as LXD ran, not much newer.
func (db *DB) LastHeartbeat(ctx context.Context) (time.Time, error) {
	var seconds sql.NullInt64
	err := db.sql.QueryRowContext(ctx, "SELECT max(CAST(strftime('%s', heartbeat) AS INTEGER)) FROM nodes").Scan(&seconds)
	if err != nil {
		return time.Time{}, fmt.Errorf("read the table nodes: %w", err)
	}

	if seconds.Int64 <= 0 {
		return time.Time{}, nil
	}

	return time.Unix(seconds.Int64, 0).UTC(), nil
}
