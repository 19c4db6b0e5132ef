// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import "testing"

func setting(key string) map[string]string {
	return map[string]string{"id": "1", "key": "'" + key + "'", "value": "'x'"}
}

// Whose a change is. Each pair differs in nothing but what tells LXD's own from one that may be a user's.
func TestByLXD(t *testing.T) {
	type row = map[string]string
	for name, c := range map[string]struct {
		table         string
		before, after row
		own           bool
	}{
		"an operation":               {"operations", nil, row{"id": "1"}, true},
		"a profile":                  {"profiles", nil, row{"id": "1"}, false},
		"a heartbeat":                {"nodes", row{"name": "'a'", "heartbeat": "1"}, row{"name": "'a'", "heartbeat": "2"}, true},
		"an upgrade":                 {"nodes", row{"schema": "60", "api_extensions": "4"}, row{"schema": "78", "api_extensions": "5"}, true},
		"a heartbeat and an address": {"nodes", row{"address": "'a'", "heartbeat": "1"}, row{"address": "'b'", "heartbeat": "2"}, false},
		"a new member":               {"nodes", nil, row{"heartbeat": "1"}, false},
		"an evacuated member":        {"nodes", row{"state": "0"}, row{"state": "2"}, false},
		"used":                       {"instances", row{"last_use_date": "1"}, row{"last_use_date": "2"}, true},
		"renamed":                    {"instances", row{"name": "1"}, row{"name": "2"}, false},
		"seen":                       {"identities", row{"last_seen_date": "1"}, row{"last_seen_date": "2"}, true},
		"an identity":                {"identities", nil, row{"last_seen_date": "1"}, false},
		"a date of another table":    {"profiles", row{"last_seen_date": "1"}, row{"last_seen_date": "2"}, false},

		"a warning":              {"warnings", nil, row{"status": "1"}, true},
		"a warning again":        {"warnings", row{"status": "2", "count": "1"}, row{"status": "2", "count": "2"}, true},
		"a warning resolved":     {"warnings", row{"status": "1"}, row{"status": "3"}, true},
		"a warning acknowledged": {"warnings", row{"status": "1"}, row{"status": "2"}, false},
		"a warning removed":      {"warnings", row{"status": "3"}, nil, true},
		"a warning deleted":      {"warnings", row{"status": "1"}, nil, false},

		"power":             {"instances_config", setting("volatile.last_state.power"), setting("volatile.last_state.power"), true},
		"a device's state":  {"instances_config", setting("volatile.eth0.last_state.created"), nil, true},
		"a device's name":   {"instances_config", nil, setting("volatile.eth0.host_name"), true},
		"an address":        {"instances_config", nil, setting("volatile.eth0.hwaddr"), false},
		"rewritten":         {"instances_config", nil, setting("volatile.uuid"), false},
		"a limit":           {"instances_config", nil, setting("limits.cpu"), false},
		"a user's own":      {"instances_config", nil, setting("user.last_state.host_name"), false},
		"of a profile":      {"profiles_config", nil, setting("volatile.last_state.power"), false},
		"a key of sessions": {"secrets", nil, row{"entity_type": "21", "type": "1"}, true},
		"a key of tokens":   {"secrets", nil, row{"entity_type": "24", "type": "2"}, false},
		"another server's":  {"secrets", row{"entity_type": "21", "type": "1"}, row{"entity_type": "24", "type": "1"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			change := RowChange{Table: c.table, Before: c.before, After: c.after}
			if change.ByLXD() != c.own {
				t.Errorf("by LXD: %v", !c.own)
			}
		})
	}
}

// A warning that only one of two databases has was given by LXD there, or was taken back in the other; what a user has made is the user's.
func TestEitherWayByLXD(t *testing.T) {
	type row = map[string]string
	for name, c := range map[string]struct {
		table         string
		before, after row
		own           bool
	}{
		"a warning lacking":         {"warnings", row{"status": "1"}, nil, true},
		"a warning more":            {"warnings", nil, row{"status": "1"}, true},
		"an acknowledged one":       {"warnings", row{"status": "2"}, nil, false},
		"acknowledged in one":       {"warnings", row{"status": "2"}, row{"status": "1"}, true},
		"acknowledged in the other": {"warnings", row{"status": "1"}, row{"status": "2"}, false},
		"a profile lacking":         {"profiles", row{"id": "1"}, nil, false},
	} {
		if got := (RowChange{Table: c.table, Before: c.before, After: c.after}).EitherWayByLXD(); got != c.own {
			t.Errorf("%s: %v", name, got)
		}
	}
}
