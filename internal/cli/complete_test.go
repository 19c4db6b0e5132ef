// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// keptDatabases makes a directory of LXD's with two kept databases, and LXD_DIR name it.
func keptDatabases(t *testing.T) (older string, newer string) {
	t.Helper()
	lxd := t.TempDir()
	t.Setenv("LXD_DIR", lxd)
	older, newer = "database.before-edit-20261122T213000Z", "database.before-import-20261122T213100Z"
	for _, name := range []string{"database", older, newer} {
		err := os.MkdirAll(filepath.Join(lxd, name, "global"), 0o700)
		if err != nil {
			t.Fatal(err)
		}

		err = os.WriteFile(filepath.Join(lxd, name, "local.db"), nil, 0o600)
		if err != nil {
			t.Fatal(err)
		}
	}

	return older, newer
}

// TestComplete asks for what a shell asks for.
func TestComplete(t *testing.T) {
	older, newer := keptDatabases(t)
	for line, want := range map[string]string{
		"global-db-rollback EMPTY":                                newer + " " + older + " :36",
		"global-db-rollback database.before-i":                    newer + " " + older + " :36", // the shell leaves out what does not fit
		"global-db-rollback " + older + " EMPTY":                  ":4",
		"global-db-kept remove EMPTY":                             newer + " " + older + " :36",
		"global-db-kept remove " + newer + " EMPTY":               older + " :36",
		"global-db-kept EMPTY":                                    "list remove :4",
		"global-db-kept list EMPTY":                               ":4",
		"global-db-kept list --format EMPTY":                      "table compact csv json yaml :4",
		"global-db-status --format EMPTY":                         "table json yaml :4",
		"version -f EMPTY":                                        "table json yaml :4",
		"global-db-import EMPTY":                                  "gz :8",
		"global-db-import a.tar.gz EMPTY":                         ":4",
		"cluster export-db EMPTY":                                 ":0",
		"global-db-k":                                             "global-db-kept :4",
		"global-db-b":                                             "global-db-backup :4", // the old name works, and is not offered
		"backup EMPTY":                                            "disable enable forget run :4",
		"backup enable EMPTY":                                     ":16",
		"backup enable --every EMPTY":                             "hourly daily weekly :4",
		"backup forget /x EMPTY":                                  ":4",
		"cluster export-db --no-":                                 "--no-verify :4",
		"cluster edit EMPTY":                                      ":4",
		"hook EMPTY":                                              "boot configure install post-refresh pre-refresh remove :4",
		"frontend EMPTY":                                          "install remove status :4",
		"global-db-compare server1.json --export-survivors EMPTY": ":16",
	} {
		args := append([]string{"__complete"}, strings.Fields(line)...)
		for i, arg := range args {
			if arg == "EMPTY" {
				args[i] = ""
			}
		}

		var out bytes.Buffer
		root := newRootCmd()
		root.SetOut(&out)
		root.SetErr(&bytes.Buffer{})
		root.SetArgs(args)
		err := root.Execute()
		var got []string
		for line := range strings.Lines(out.String()) {
			word, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
			got = append(got, word)
		}

		if strings.Join(got, " ") != want || err != nil {
			t.Errorf("%s: %q, want %q: %v", line, strings.Join(got, " "), want, err)
		}
	}
}
