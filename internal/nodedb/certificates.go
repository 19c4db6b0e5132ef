// SPDX-License-Identifier: AGPL-3.0-only

package nodedb

import (
	"context"
	"database/sql"
)

// serverCertificate is the type of a member's own certificate in the table certificates.
const serverCertificate = 2

// Certificate is the certificate of a member.
type Certificate struct {
	Fingerprint string // SHA-256, lower-case hexadecimal
	Name        string // of the member
	PEM         string
}

// writeCertificates adds members' certificates to those that a node database has.
//
// The table is LXD's copy of what the global database has: as long as that cannot be read, it is all by which a member knows the
// others. Without it a member refuses the connections of all others, and where it is needed for a majority there is none.
func writeCertificates(ctx context.Context, tx *sql.Tx, certificates []Certificate) error {
	for _, c := range certificates {
		_, err := tx.ExecContext(ctx, "INSERT OR IGNORE INTO certificates (fingerprint, type, name, certificate) VALUES (?, ?, ?, ?)",
			c.Fingerprint, serverCertificate, c.Name, c.PEM)
		if err != nil {
			return err
		}
	}

	return nil
}
