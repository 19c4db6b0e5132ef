// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCutOffIsSaid has every command that looks at LXD's directory say that a run was cut off there, and no other.
func TestCutOffIsSaid(t *testing.T) {
	keptDatabases(t)
	here, other := os.Getenv("LXD_DIR"), t.TempDir()
	cutOff := func() {
		for _, lxd := range []string{here, other} {
			err := os.MkdirAll(filepath.Join(lxd, "database.import"), 0o700)
			if err != nil {
				t.Fatal(err)
			}
		}
	}

	const sentence = "Warning: a run that was interrupted has left "
	for line, want := range map[string]int{
		"version": 0, "frontend status": 0, "help": 0,
		"global-db-status": 1, "global-db-inspect": 1, "global-db-kept list": 1, "global-db-sql .tables": 1, "global-db-log -f csv": 1,
		"cluster export-db": 1, "cluster edit": 1, "global-db-import --dry-run x": 1, "global-db-repair --dry-run": 1,
		"global-db-inspect " + other: 2, "global-db-compare " + here + " " + other: 2,
	} {
		cutOff() // some of them remove it
		got := run(t, append([]string{"lxd-recover"}, strings.Fields(line)...)...)
		if n := strings.Count(got.stderr, sentence); n != want || strings.Contains(got.stdout, sentence) {
			t.Errorf("%s: said %d times, want %d: %q", line, n, want, got.stderr)
		}
	}

	cutOff()
	got := run(t, "lxd-recover", "resume")
	if got.status != exitDone || strings.Contains(got.stderr, sentence) {
		t.Errorf("resume: %+v", got)
	}

	got = run(t, "lxd-recover", "global-db-kept", "list")
	if got.stderr != "" {
		t.Errorf("after that: %+v", got)
	}
}
