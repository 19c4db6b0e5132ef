// SPDX-License-Identifier: AGPL-3.0-only

package raftlog

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// What goes while the files are taken hold of, one by one, is looked for again: under its new name, or as what has taken its place.
func TestHoldRaces(t *testing.T) {
	races := []struct {
		name   string
		before func(dir string) error // after the directory was listed
		after  func(dir string) error // after all files were opened
	}{
		{"none", func(string) error { return nil }, func(string) error { return nil }},
		{"closed before it was opened", closeSegment, func(string) error { return nil }},
		{"deleted afterwards", func(string) error { return nil }, func(dir string) error { return os.Remove(filepath.Join(dir, SegmentName(1, 5))) }},
		{"closed afterwards", func(string) error { return nil }, closeSegment},
		{"another directory", func(string) error { return nil }, func(dir string) error {
			return errors.Join(os.Rename(dir, dir+".old"), os.Mkdir(dir, 0o700))
		}},
	}
	changing := map[string]bool{"closed before it was opened": true, "deleted afterwards": true, "another directory": true}
	for _, race := range races {
		t.Run(race.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "global")
			err := os.Mkdir(dir, 0o700)
			for _, name := range []string{"metadata1", SegmentName(1, 5), "open-9", "open-10"} {
				err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600))
			}

			info, statErr := os.Stat(dir)
			names, listErr := heldNames(dir, isOfLog)
			err = errors.Join(err, statErr, listErr, race.before(dir))
			if err != nil {
				t.Fatal(err)
			}

			if names[0] != "open-10" && names[1] != "open-10" || names[len(names)-1] != SegmentName(1, 5) {
				t.Errorf("the order is %v", names)
			}

			h := &Held{dir: info, files: map[string]*heldFile{}}
			defer h.Close()

			err = h.take(dir, names)
			if err == nil {
				err = errors.Join(race.after(dir), h.settle(dir))
			}

			if errors.Is(err, ErrChanging) != changing[race.name] || err != nil && !changing[race.name] {
				t.Errorf("error %v", err)
			}
		})
	}
}

// closeSegment gives the newest open segment the name of a closed one.
func closeSegment(dir string) error {
	return os.Rename(filepath.Join(dir, "open-10"), filepath.Join(dir, SegmentName(6, 9)))
}
