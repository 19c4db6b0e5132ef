// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"path/filepath"
	"slices"
	"testing"
)

// A profile whose settings and devices were all written again, as LXD does it, to change one, add one and take one away.
func TestCondense(t *testing.T) {
	dir := t.TempDir()
	before, after := filepath.Join(dir, "before"), filepath.Join(dir, "after")
	log := open(t, "forgotten/n1-preedit")
	must(t, Replay(t.Context(), log, before, 0))
	must(t, Replay(t.Context(), log, after, 0))
	profile := []string{
		"INSERT INTO profiles (id, name, project_id, description) VALUES (50, 'q1', 1, ''), (51, 'q2', 1, '')",
		"INSERT INTO profiles_config (id, profile_id, key, value) VALUES (1, 50, 'limits.cpu', '2'), (2, 50, 'user.color', 'red'), " +
			"(3, 50, 'user.gone', 'x'), (4, 50, 'x.password', 'one'), (5, 51, 'user.color', 'red')",
		"INSERT INTO profiles_devices (id, profile_id, name, type) VALUES (1, 50, 'eth0', 1), (2, 50, 'root', 2)",
		"INSERT INTO profiles_devices_config (id, profile_device_id, key, value) VALUES (1, 1, 'nictype', 'bridged'), (2, 2, 'path', '/')",
	}
	execute(t, before, profile...)
	execute(t, after, append(profile,
		"DELETE FROM profiles_config",
		"INSERT INTO profiles_config (id, profile_id, key, value) VALUES (11, 50, 'limits.cpu', '4'), (12, 50, 'user.color', 'red'), "+
			"(13, 50, 'user.new', 'x'), (14, 50, 'x.password', 'two')",
		"DELETE FROM profiles_devices_config",
		"DELETE FROM profiles_devices",
		"INSERT INTO profiles_devices (id, profile_id, name, type) VALUES (11, 50, 'eth0', 1), (12, 50, 'root', 3)",
		"INSERT INTO profiles_devices_config (id, profile_device_id, key, value) VALUES (11, 11, 'nictype', 'bridged'), (12, 12, 'path', '/')",
	)...)
	changes, _, err := Diff(t.Context(), before, after)
	must(t, err)
	var all, got []string
	for _, c := range changes {
		all = append(all, c.String())
	}

	for _, c := range Condense(changes) {
		got = append(got, c.String())
	}

	sameLines(t, got, []string{
		"update config limits.cpu=4 of profile q1 in project default (value: '2' -> '4')",
		"delete config user.gone=x of profile q1 in project default",
		"insert config user.new=x of profile q1 in project default",
		"update config x.password=" + digest("two") + " of profile q1 in project default (value: " + digest("one") + " -> " + digest("two") + ")",
		"delete config user.color=red of profile q2 in project default", // the other profile's came back
		"delete device root of profile q1 in project default",           // another type
		"insert device root of profile q1 in project default",
	})
	var still []string
	for _, c := range changes {
		still = append(still, c.String())
	}

	if len(all) != 17 || !slices.Equal(all, still) {
		t.Errorf("%d changes, then: %q", len(all), still)
	}
}
