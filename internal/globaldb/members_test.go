// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"
)

// madeCertificate is a block that has the form of a certificate in PEM, and its fingerprint.
func madeCertificate(content string) (fingerprint string, text string) {
	sum := sha256.Sum256([]byte(content))
	return hex.EncodeToString(sum[:]), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(content)}))
}

// Members' certificates, and no others, from each of the places where LXD has kept them.
func TestCertificates(t *testing.T) {
	one, onePEM := madeCertificate("one")
	two, twoPEM := madeCertificate("two")
	client, clientPEM := madeCertificate("client")
	inJSON := func(text string) string {
		data, err := json.Marshal(map[string]string{"cert": text})
		must(t, err)
		return string(data)
	}
	identities := "CREATE TABLE identities (id INTEGER PRIMARY KEY, auth_method INTEGER, type INTEGER, identifier TEXT, name TEXT, metadata TEXT)"
	insert := "INSERT INTO identities VALUES (%d, 1, %d, '%s', '%s', '%s')"
	for name, statements := range map[string][]string{
		"LXD 5.0": {
			"CREATE TABLE certificates (id INTEGER PRIMARY KEY, fingerprint TEXT, type INTEGER, name TEXT, certificate TEXT)",
			fmt.Sprintf("INSERT INTO certificates VALUES (1, '%s', 2, 'node1', '%s'), (2, '%s', 1, 'client', '%s'), (3, '%s', 2, 'node2', '%s')",
				one, onePEM, client, clientPEM, two, twoPEM),
			fmt.Sprintf("INSERT INTO certificates VALUES (4, 'feed', 2, 'node3', '%s'), (5, 'beef', 2, 'node4', '')", onePEM),
		},
		"LXD 5.21": {
			identities,
			fmt.Sprintf(insert, 1, 3, one, "node1", inJSON(onePEM)), fmt.Sprintf(insert, 2, 1, client, "client", inJSON(clientPEM)),
			fmt.Sprintf(insert, 3, 3, two, "node2", inJSON(twoPEM)), fmt.Sprintf(insert, 4, 3, "beef", "node4", ""),
		},
		"LXD 6.9": {
			identities, "CREATE TABLE certificates (id INTEGER PRIMARY KEY, fingerprint TEXT, certificate TEXT)",
			"CREATE TABLE identities_certificates (identity_id INTEGER, certificate_id INTEGER)",
			fmt.Sprintf(insert, 1, 3, one, "node1", ""), fmt.Sprintf(insert, 2, 1, client, "client", ""), fmt.Sprintf(insert, 3, 3, two, "node2", ""),
			fmt.Sprintf("INSERT INTO certificates VALUES (11, '%s', '%s'), (12, '%s', '%s'), (13, '%s', '%s')", one, onePEM, two, twoPEM, client, clientPEM),
			"INSERT INTO identities_certificates VALUES (1, 11), (3, 12), (2, 13)",
		},
		"not LXD's": {"CREATE TABLE other (id INTEGER)"},
	} {
		got, err := openMade(t, statements...).Certificates(t.Context())
		must(t, err)
		want := map[string]string{one: "node1" + onePEM, two: "node2" + twoPEM}
		if name == "not LXD's" {
			want = nil
		}

		if len(got) != len(want) {
			t.Errorf("%s: %+v", name, got)
		}

		for _, c := range got {
			if want[c.Fingerprint] != c.Name+c.PEM {
				t.Errorf("%s: %+v", name, c)
			}
		}
	}
}

// What a real LXD 6.9 has.
func TestMembersOfFixture(t *testing.T) {
	db, err := Open(t.Context(), open(t, "small/n2-preimport"), 0)
	must(t, err)
	defer db.Close()
	certificates, err := db.Certificates(t.Context())
	must(t, err)
	var names []string
	for _, c := range certificates {
		names = append(names, c.Name)
		fingerprint, err := db.MemberCertificate(t.Context(), c.Name)
		must(t, err)
		if fingerprint != c.Fingerprint {
			t.Errorf("%s has the certificate %s, and %s", c.Name, c.Fingerprint, fingerprint)
		}
	}

	if got := strings.Join(names, " "); got != "node2 node1 node3" {
		t.Errorf("certificates of %s", got)
	}

	versions, err := db.Versions(t.Context())
	must(t, err)
	for id := range uint64(3) {
		if versions[id+1] != (Version{Schema: 88, APIExtensions: 481}) {
			t.Errorf("member %d has run %s", id+1, versions[id+1])
		}
	}
}

func TestVersions(t *testing.T) {
	db := openMade(t, "CREATE TABLE nodes (id INTEGER PRIMARY KEY, schema INTEGER, api_extensions INTEGER)",
		"INSERT INTO nodes VALUES (4, 60, 316), (7, 61, 320)")
	got, err := db.Versions(t.Context())
	must(t, err)
	if len(got) != 2 || got[4] != (Version{60, 316}) || got[7].String() != "schema 61, 320 API extensions" {
		t.Errorf("got %v", got)
	}

	_, err = openMade(t, "CREATE TABLE other (id INTEGER)").Versions(t.Context())
	if err == nil {
		t.Error("no error without the table nodes")
	}
}
