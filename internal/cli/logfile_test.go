// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLogFile runs commands that fail and one that does not, with one log for all.
func TestLogFile(t *testing.T) {
	lxd := t.TempDir()
	t.Setenv("LXD_DIR", lxd)
	file := filepath.Join(t.TempDir(), "log")
	for _, args := range [][]string{{"version"}, {"global-db-rollback", "--yes", "two\nlines"}, {"global-db-kept", "list"}} {
		Main(append([]string{"lxd-recover"}, append(args, "--log-file", file)...))
	}

	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}

	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	want := [][]string{
		{"level=INFO", "msg=begin", `command="lxd-recover version"`, "version=" + Version, "pid="},
		{"level=INFO", "msg=end", "exit_status=0", "took="},
		{"level=INFO", "msg=begin", `command="lxd-recover global-db-rollback"`, "--yes=true", `arguments="two\nlines"`, "lxd_dir=" + lxd},
		{"level=ERROR", "msg=end", "exit_status=1", `error="` + lxd + " is not the directory of an LXD"},
		{"level=INFO", "msg=begin"},
		{"level=ERROR", "msg=end"},
	}
	if len(lines) != len(want) {
		t.Fatalf("%d lines, want %d:\n%s", len(lines), len(want), data)
	}

	for i, line := range lines {
		for _, part := range append(want[i], "time=") {
			if !strings.Contains(line, part) {
				t.Errorf("line %d is %q, want %q", i+1, line, part)
			}
		}
	}

	info, err := os.Stat(file)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v: %v", err, info)
	}
}

// Where nothing can be logged nothing is done.
func TestLogFileImpossible(t *testing.T) {
	status := Main([]string{"lxd-recover", "version", "--log-file", filepath.Join(t.TempDir(), "no", "log")})
	if status != exitFailed {
		t.Errorf("exit status %d", status)
	}
}

// TestLogIntoDatabase refuses a log where it would go away with the database.
func TestLogIntoDatabase(t *testing.T) {
	lxd := t.TempDir()
	t.Setenv("LXD_DIR", lxd)
	database := filepath.Join(lxd, "database")
	must(t, os.Mkdir(database, 0o700))
	path := filepath.Join(database, "log")
	if status := Main([]string{"lxd-recover", "version", "--log-file", path}); status != exitRefused {
		t.Errorf("exit status %d, want %d", status, exitRefused)
	}

	entries, err := os.ReadDir(database)
	if err != nil || len(entries) > 0 {
		t.Errorf("%v, %v", entries, err)
	}
}
