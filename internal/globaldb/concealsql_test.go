// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"regexp"
	"strings"
	"testing"
)

var regexpSecret = regexp.MustCompile(`\(secret, sha256 [0-9a-f]+…\)`)

func TestConcealSQL(t *testing.T) {
	for sql, want := range map[string]string{
		"INSERT INTO config (key, value) VALUES ('loki.auth.password', 'hunter2');": "INSERT INTO config (key, value) VALUES ('loki.auth.password', SECRET);",
		"UPDATE config SET value = 'hun;ter''2' WHERE key = 'loki.auth.password'":   "UPDATE config SET value = SECRET WHERE key = 'loki.auth.password'",
		"UPDATE t SET secret = 'x' WHERE id = 1; UPDATE config SET value = 'y' WHERE key = 'user.note';": "UPDATE t SET secret = SECRET WHERE id = 1; " +
			"UPDATE config SET value = 'y' WHERE key = 'user.note';",
		"UPDATE config SET value = 'http://me:hunter2@proxy:1' WHERE key = 'core.proxy_http'": "UPDATE config SET value = 'http://me:SECRET@proxy:1' " +
			"WHERE key = 'core.proxy_http'",
		"-- the password is 'next to me'\nUPDATE profiles SET description = 'password' WHERE id = 1": "-- the password is 'next to me'\n" +
			"UPDATE profiles SET description = 'password' WHERE id = 1",
		"UPDATE nodes SET address = '10.0.0.1:8443' WHERE id = 1 AND address = '10.0.0.2:8443';": "UPDATE nodes SET address = '10.0.0.1:8443' " +
			"WHERE id = 1 AND address = '10.0.0.2:8443';",
		"": "",
	} {
		got := ConcealSQL(sql)
		shown := regexpSecret.ReplaceAllString(got, "SECRET")
		if shown != want || strings.Contains(got, "hunter2") {
			t.Errorf("%s:\n%s\nwant\n%s", sql, got, want)
		}
	}
}
