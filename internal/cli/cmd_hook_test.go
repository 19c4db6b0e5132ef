// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"strings"
	"testing"
)

// TestRequest reads what `snap set` may have set.
func TestRequest(t *testing.T) {
	for _, c := range []struct {
		values map[string]any
		want   *request
	}{
		{nil, nil},
		{map[string]any{"rollback": false, "import": "", "no-start": true}, nil},
		{map[string]any{"import": "/x.tar.gz", "beside-cluster": true}, &request{tarball: "/x.tar.gz", besideCluster: true}},
		{map[string]any{"import": "/x", "unsigned": true}, &request{tarball: "/x", unsigned: true}},
		{map[string]any{"import": "/x", "certificate": "/old.crt"}, &request{tarball: "/x", certificate: "/old.crt"}},
		{map[string]any{"import": "/x", "discard-local-entries": true, "no-start": false}, &request{tarball: "/x", discardLocal: true}},
		{map[string]any{"rollback": true, "no-start": true}, &request{rollback: true, noStart: true}},
		{map[string]any{"rollback": "latest"}, &request{rollback: true}},
		{map[string]any{"rollback": "database.before-x"}, &request{rollback: true, kept: "database.before-x"}},
	} {
		got, err := parseRequest(c.values)
		if err != nil || (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
			t.Errorf("%v: %+v, want %+v: %v", c.values, got, c.want, err)
		}
	}

	for want, values := range map[string]map[string]any{
		"no-start=yes: true or false is possible":         {"no-start": "yes"},
		"rollback=7: true, latest or the name":            {"rollback": 7},
		"import=x: the whole path of the tarball":         {"import": "x"},
		"import and rollback cannot be asked for at once": {"import": "/x", "rollback": true},
		"import=true is not the name of a file":           {"import": true},
		`there is no key "imprt": import, rollback,`:      {"imprt": "/x", "status": "an answer"},
		"certificate=true is not the name of a file":      {"import": "/x", "certificate": true},
		"certificate=old.crt: the whole path":             {"import": "/x", "certificate": "old.crt"},
		"unsigned=1: true or false is possible":           {"import": "/x", "unsigned": 1},
	} {
		_, err := parseRequest(values)
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v: %v, want %q", values, err, want)
		}
	}
}
