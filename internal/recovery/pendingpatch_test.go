// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A patch is taken apart into what somebody has written, and what we or LXD's own edit have.
func TestSplitPatch(t *testing.T) {
	const (
		ours     = "UPDATE nodes SET address = '10.0.0.2:8443' WHERE id = 2 AND address = 'it''s:1';\n"
		theirs   = "UPDATE nodes SET address = \"10.0.0.2:8443\" WHERE id = 2;\n"
		versions = "UPDATE nodes SET schema = 60, api_extensions = 318 WHERE id = 2 AND schema = 59 AND api_extensions = 300;\n"
		own      = "UPDATE profiles SET description='by hand' WHERE name='keepme';\n"
	)
	for name, test := range map[string]struct {
		text string
		want pendingPatch
		says string
	}{
		"nothing":             {"", pendingPatch{}, ""},
		"comments":            {"-- nothing\n\n/* to do */", pendingPatch{}, ""},
		"ours":                {versions + ours, pendingPatch{versions: versions, addresses: ours}, "the versions of lost members, addresses of members"},
		"LXD's":               {theirs + theirs, pendingPatch{addresses: theirs + theirs}, "addresses of members"},
		"own":                 {own, pendingPatch{own: own}, "SQL that was written to it (UPDATE profiles SET description='by hand' WHERE name='keepme')"},
		"own, LXD's after":    {own + theirs, pendingPatch{own: own, addresses: theirs}, ""},
		"own around":          {own + ours + "-- x\nDELETE FROM warnings", pendingPatch{own: own + "-- x\nDELETE FROM warnings;\n", addresses: ours}, ""},
		"not ended":           {"DELETE FROM warnings -- all", pendingPatch{own: "DELETE FROM warnings -- all\n;\n"}, ""},
		"a comment after":     {"DELETE FROM warnings; -- all", pendingPatch{own: "DELETE FROM warnings; -- all\n"}, ""},
		"by hand, an address": {"UPDATE nodes SET address='a:1' WHERE id=2;\n", pendingPatch{own: "UPDATE nodes SET address='a:1' WHERE id=2;\n"}, ""},
		"inside a text":       {"UPDATE t SET x = '\n" + theirs + "';\n", pendingPatch{own: "UPDATE t SET x = '\n" + theirs + "';\n"}, ""},
		"inside a trigger": {"CREATE TRIGGER a AFTER DELETE ON t BEGIN\n" + theirs + "END;\n",
			pendingPatch{own: "CREATE TRIGGER a AFTER DELETE ON t BEGIN\n" + theirs + "END;\n"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := splitPatch(test.text)
			if got != test.want || test.says != "" && got.String() != test.says {
				t.Errorf("%+v, %s", got, got)
			}

			if again := splitPatch(got.carried() + got.addresses); again != got {
				t.Errorf("written and read again: %+v, was %+v", again, got)
			}
		})
	}
}

// A pipe in the place of a patch is not waited for, and neither is something endless read.
func TestReadPatch(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, patchName)
	p, err := readPatch(dir)
	if err != nil || p != (pendingPatch{}) {
		t.Errorf("none: %+v, %v", p, err)
	}

	must(t, os.Symlink("/dev/zero", file))
	_, err = readPatch(dir)
	wantError(t, err, "patch.global.sql is not a file")
	must(t, os.Remove(file))
	must(t, unix.Mkfifo(file, 0o600))
	_, err = readPatch(dir)
	wantError(t, err, "patch.global.sql is not a file")
	must(t, os.Remove(file))
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.Truncate(file, MaxPatch+1))
	_, err = readPatch(dir)
	wantError(t, err, "patch.global.sql is larger than 8 MiB: that is no patch")
}
