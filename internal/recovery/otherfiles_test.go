// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What was carried over before LXD was stopped, and has changed until it was down, is carried over again; nothing else is.
func TestCarryOver(t *testing.T) {
	d := directory{path: t.TempDir()}
	live, staging := d.database(), d.join(stagingName)
	must(t, os.Mkdir(staging, 0o700))
	write := func(name string, text string) {
		t.Helper()
		path := filepath.Join(live, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		must(t, os.WriteFile(path, []byte(text), 0o640))
	}
	for _, name := range []string{"same", "sly", "gone", "dir/same", "other/changed", "global/left alone"} {
		write(name, "before")
	}

	must(t, os.Symlink("same", filepath.Join(live, "link")))
	must(t, syscall.Mkfifo(filepath.Join(live, "pipe"), 0o600))
	first, err := d.copyOtherFiles(t.Context(), nil)
	must(t, err)
	inode := func(name string) uint64 {
		t.Helper()
		info, err := os.Lstat(filepath.Join(staging, name))
		must(t, err)
		return info.Sys().(*syscall.Stat_t).Ino
	}
	same := []uint64{inode("same"), inode("dir/same"), inode("link")}

	sly := filepath.Join(live, "sly") // neither its size nor its time tells
	info, err := os.Stat(sly)
	must(t, err)
	write("sly", "AFTER!")
	must(t, os.Chtimes(sly, time.Time{}, info.ModTime()))
	write("other/changed", "after")
	write("new", "after")
	must(t, os.Remove(filepath.Join(live, "gone")))
	_, err = d.copyOtherFiles(t.Context(), first)
	must(t, err)

	for name, want := range map[string]string{
		"same": "before", "sly": "AFTER!", "dir/same": "before", "other/changed": "after", "new": "after", "link": "before",
		"gone": "", "pipe": "", "global/left alone": "",
	} {
		data, err := os.ReadFile(filepath.Join(staging, name))
		if string(data) != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}

	for i, name := range []string{"same", "dir/same", "link"} {
		if inode(name) != same[i] {
			t.Errorf("%s was copied again", strings.ToUpper(name))
		}
	}
}
