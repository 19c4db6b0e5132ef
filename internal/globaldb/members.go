// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
)

// Version is how far LXD's global database and its API had come in the LXD that a member last ran. LXD itself tells by the two whether
// all members run the same version, and waits until they do.
type Version struct {
	Schema        int
	APIExtensions int
}

func (v Version) String() string {
	return fmt.Sprintf("schema %d, %d API extensions", v.Schema, v.APIExtensions)
}

// Versions returns what LXD each member last ran, by the members' ids.
func (db *DB) Versions(ctx context.Context) (map[uint64]Version, error) {
	rows, err := db.sql.QueryContext(ctx, "SELECT id, schema, api_extensions FROM nodes")
	if err != nil {
		return nil, fmt.Errorf("read the table nodes: %w", err)
	}

	defer rows.Close()

	all := map[uint64]Version{}
	for rows.Next() {
		var id uint64
		var v Version
		err = rows.Scan(&id, &v.Schema, &v.APIExtensions)
		if err != nil {
			return nil, fmt.Errorf("read the table nodes: %w", err)
		}

		all[id] = v
	}

	return all, rows.Err()
}

// Certificate is the certificate of a member.
type Certificate struct {
	Fingerprint string // SHA-256, lower-case hexadecimal
	Name        string // of the member
	PEM         string
}

// certificatePlaces are where LXD has kept the members' own certificates, the newest first, by a table that only that LXD has: LXD 6.9
// apart from the identities, LXD 5.21 in JSON. What a fingerprint is found by is told at memberCertificates.
var certificatePlaces = []struct{ table, query string }{
	{"identities_certificates", `SELECT identities.identifier, identities.name, certificates.certificate FROM identities
JOIN identities_certificates ON identities_certificates.identity_id = identities.id
JOIN certificates ON certificates.id = identities_certificates.certificate_id
WHERE identities.auth_method = 1 AND identities.type = 3 ORDER BY identities.identifier`},
	{"identities", "SELECT identifier, name, metadata FROM identities WHERE auth_method = 1 AND type = 3 ORDER BY identifier"},
	{"certificates", "SELECT fingerprint, name, certificate FROM certificates WHERE type = 2 ORDER BY fingerprint"},
}

// Certificates returns the certificates of all members that the cluster trusts. As LXD does, it leaves out what is no certificate.
func (db *DB) Certificates(ctx context.Context) ([]Certificate, error) {
	for _, place := range certificatePlaces {
		tables, err := stringsOf(ctx, db.sql, "SELECT name FROM sqlite_master WHERE type = 'table' AND name = ?", place.table)
		if err != nil {
			return nil, fmt.Errorf("look for the table %s: %w", place.table, err)
		}

		if len(tables) == 0 {
			continue
		}

		all, err := db.certificatesBy(ctx, place.query)
		if err != nil {
			return nil, fmt.Errorf("read the table %s: %w", place.table, err)
		}

		return all, nil
	}

	return nil, nil
}

func (db *DB) certificatesBy(ctx context.Context, query string) ([]Certificate, error) {
	rows, err := db.sql.QueryContext(ctx, query)
	if err != nil {
		return nil, err
	}

	defer rows.Close()

	var all []Certificate
	for rows.Next() {
		var c Certificate
		err = rows.Scan(&c.Fingerprint, &c.Name, &c.PEM)
		if err != nil {
			return nil, err
		}

		var inJSON struct {
			Certificate string `json:"cert"`
		}
		if json.Unmarshal([]byte(c.PEM), &inJSON) == nil {
			c.PEM = inJSON.Certificate
		}

		if c.whole() {
			all = append(all, c)
		}
	}

	return all, rows.Err()
}

// whole tells whether the certificate is the one with the fingerprint.
func (c Certificate) whole() bool {
	block, _ := pem.Decode([]byte(c.PEM))
	if block == nil {
		return false
	}

	sum := sha256.Sum256(block.Bytes)
	return hex.EncodeToString(sum[:]) == c.Fingerprint
}
