// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"
)

// The names of LXD's own settings, of its relatives' and of programs' environments.
func TestSecretName(t *testing.T) {
	for name, want := range map[string]bool{
		"core.trust_password": true, "loki.auth.password": true, "oidc.client.secret": true, "maas.api.key": true, "network.ovn.client_key": true,
		"bgp.peers.up.password": true, "powerflex.user.password": true, "alletra.user.password": true, "pure.api.token": true, "peers.ns1.key": true,
		"candid.api.key": true, "rbac.agent.private_key": true, "openfga.api.token": true, "acme.provider.environment": true,
		"cloud-init.user-data": true, "cloud-init.vendor-data": true, "cloud-init.network-config": true, "user.user-data": true,
		"environment.DB_PASSWORD": true, "environment.VAULT_SECRET_ID": true, "environment.APIKEY": true, "secretKey": true, "user.my-token": true,

		"core.trust_ca_certificates": false, "core.remote_token_expiry": false, "core.auth_secret_expiry": false, "cluster.join_token_expiry": false,
		"core.https_allowed_credentials": false, "loki.auth.username": false, "network.ovn.client_cert": false, "ceph.user.name": false,
		"cloud-init.ssh-keys.mine": false, "volatile.uuid": false, "volatile.eth0.hwaddr": false, "limits.cpu": false, "user.color": false,
		"security.secureboot": false, "environment.PATH": false, "key_name": false, "": false,
	} {
		if secretName(name) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
}

const (
	pemKey   = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----\n"
	webToken = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"
)

func TestConceal(t *testing.T) {
	for name, c := range map[string]struct {
		table     string
		row, want map[string]string
	}{
		"a setting": {"config", map[string]string{"id": "1", "key": "'core.trust_password'", "value": "'it''s me'"},
			map[string]string{"id": "1", "key": "'core.trust_password'", "value": digest("it's me")}},
		"none set": {"config", map[string]string{"key": "'core.trust_password'", "value": "''"}, nil},
		"a number": {"instances_config", map[string]string{"key": "'user.password'", "value": "1234"},
			map[string]string{"key": "'user.password'", "value": digest("1234")}},
		"no secret": {"instances_config", map[string]string{"id": "1", "key": "'limits.cpu'", "value": "'2'"}, nil},
		"a column": {"storage_buckets_keys", map[string]string{"name": "'k'", "secret_key": "'s3'", "role": "NULL"},
			map[string]string{"name": "'k'", "secret_key": digest("s3"), "role": "NULL"}},
		"a later table of secrets": {"join_tokens", map[string]string{"id": "3", "node_id": "2", "name": "'n'", "hash": "X'00FF'", "expiry_date": "'2026'"},
			map[string]string{"id": "3", "node_id": "2", "name": "'n'", "hash": digest("\x00\xff"), "expiry_date": "'2026'"}},
		"a later table of keys": {"ssh_hosts", map[string]string{"id": "3", "key": "'AAAA'"}, map[string]string{"id": "3", "key": digest("AAAA")}},
		"a private key anywhere": {"x", map[string]string{"note": textLiteral("see:\n" + pemKey), "b": "X'" + strings.ToUpper(hexOf("\x00"+pemKey)) + "'"},
			map[string]string{"note": digest("see:\n" + pemKey), "b": digest("\x00" + pemKey)}},
		"a token anywhere": {"warnings", map[string]string{"last_message": "'failed: " + webToken + " is old'"},
			map[string]string{"last_message": "'failed: " + digest(webToken) + " is old'"}},
		"a password in an address": {"config", map[string]string{"key": "'core.proxy_http'", "value": "'http://me:pw@proxy:3128/'"},
			map[string]string{"key": "'core.proxy_http'", "value": "'http://me:" + digest("pw") + "@proxy:3128/'"}},
		"in JSON": {"identities", map[string]string{"metadata": `'{"secret":"abc","expiry":"2026","n":12345678901234567890}'`},
			map[string]string{"metadata": `'{"expiry":"2026","n":12345678901234567890,"secret":"` + digest("abc") + `"}'`}},
		"deep in JSON": {"operations", map[string]string{
			"inputs": `'{"config":{"cloud-init.user-data":"#","limits.cpu":"2"},"all":[{"key":"user.password","value":"pw"}],"tokens":["a",7]}'`},
			map[string]string{"inputs": `'{"all":[{"key":"user.password","value":"` + digest("pw") + `"}],"config":{"cloud-init.user-data":"` + digest("#") +
				`","limits.cpu":"2"},"tokens":["` + digest("a") + `","` + digest("7") + `"]}'`}},
		"JSON as it is": {"x", map[string]string{"y": `'{"b":1, "a":"it''s"}'`}, nil},
		"JSON as a blob": {"networks_acls", map[string]string{"ingress": "X'" + hexOf(`[{"a":"it's"}]`) + "'"},
			map[string]string{"ingress": `CAST('[{"a":"it''s"}]' AS BLOB)`}},
		"no text":          {"x", map[string]string{"y": "X'00FF'", "z": "X''"}, nil},
		"a row that isn't": {"x", nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			want := c.want
			if want == nil {
				want = c.row
			}

			got := conceal(c.table, c.row)
			if !maps.Equal(got, want) {
				t.Errorf("%v, want %v", got, want)
			}
		})
	}
}

func hexOf(text string) string {
	return strings.TrimSuffix(strings.TrimPrefix(Literal([]byte(text)), "x'"), "'")
}

// Nothing that Diff and Steps hand over has a secret in it: in no value, no words, no key, and not in those of rows that point to it.
func TestNoSecretIsHandedOver(t *testing.T) {
	dir := t.TempDir()
	before, after := filepath.Join(dir, "before"), filepath.Join(dir, "after")
	schema := []string{
		"CREATE TABLE config (id INTEGER PRIMARY KEY, key TEXT, value TEXT)",
		"CREATE TABLE loose (key TEXT, value TEXT)", // known by all its columns
		"CREATE TABLE doors (token TEXT UNIQUE, name TEXT)",
		"INSERT INTO config VALUES (1, 'core.trust_password', 'hunter2'), (2, 'x.password', 'hunter3')",
	}
	execute(t, before, schema...)
	execute(t, after, append(schema, "UPDATE config SET value = 'hunter4' WHERE id = 1", "DELETE FROM config WHERE id = 2",
		"INSERT INTO loose VALUES ('my.password', 'hunter5')", "INSERT INTO doors VALUES ('hunter6', 'front')")...)
	changes, _, err := Diff(t.Context(), before, after)
	must(t, err)
	data, err := json.Marshal(changes)
	must(t, err)
	text := string(data)
	var lines []string
	for _, c := range changes {
		lines = append(lines, c.String())
		if c.Says("hunter") {
			t.Errorf("%s is found by the secret", c)
		}
	}

	text += strings.Join(lines, "\n")
	if strings.Contains(text, "hunter") {
		t.Errorf("a secret is told: %s", text)
	}

	sameLines(t, lines, []string{
		"update config core.trust_password=" + digest("hunter4") + " of the cluster (value: " + digest("hunter2") + " -> " + digest("hunter4") + ")",
		"delete config x.password=" + digest("hunter3") + " of the cluster",
		"insert config my.password=" + digest("hunter5"),
		"insert doors token=" + digest("hunter6") + ",name='front' name='front'",
	})
}

// That a secret was changed is seen even if both look the same: the sums of two begin with the same 16 bits.
func TestAnotherSecret(t *testing.T) {
	first, second := collision()
	row := func(secret string) map[string]string {
		return map[string]string{"key": "'x.password'", "value": "'" + secret + "'"}
	}
	c := RowChange{Table: "config", Before: row(first), After: row(second)}
	c.conceal()
	if c.Before["value"] != digest(first) || c.After["value"] != strings.Replace(digest(first), "(", "(another ", 1) || len(c.changed()) != 1 {
		t.Errorf("%v, %v", c.Before, c.After)
	}

	rewritten := []RowChange{{Table: "config", Before: row(first)}, {Table: "config", After: row(second)}}
	same := []RowChange{{Table: "config", Before: row(first)}, {Table: "config", After: row(first)}}
	for i := range rewritten {
		rewritten[i].conceal()
		same[i].conceal()
	}

	got := Condense(rewritten)
	if len(got) != 1 || got[0].Before["value"] != c.Before["value"] || got[0].After["value"] != c.After["value"] || len(Condense(same)) != 0 {
		t.Errorf("written again: %v, the same one: %v", got, Condense(same))
	}
}

// collision finds two texts with the same digest.
func collision() (string, string) {
	seen := map[string]string{}
	for i := 0; ; i++ {
		text := fmt.Sprint(i)
		other, ok := seen[digest(text)]
		if ok {
			return other, text
		}

		seen[digest(text)] = text
	}
}
