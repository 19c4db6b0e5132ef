// SPDX-License-Identifier: AGPL-3.0-only

package mounts

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Announcement is a mount that is not there, or not only there: it is to come, at the next start of the machine for one.
type Announcement struct {
	Point string
	By    string // the file that says so: /etc/fstab, or a unit of systemd
}

// String names it as a message shows it.
func (a Announcement) String() string { return a.Point + " (" + a.By + ")" }

// fstab is the table of what is mounted when the machine starts.
const fstab = "etc/fstab"

// unitDirs is where systemd has its units, below the root of the file system.
var unitDirs = []string{
	"etc/systemd/system", "run/systemd/system", "run/systemd/generator.early", "run/systemd/generator", "run/systemd/generator.late",
	"usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system",
}

// Announced returns what is to be mounted at a directory or below it, according to fstab and systemd's units of mounts. root is the root
// of the file system in which these are looked for: "/". Whatever else mounts something (a dataset of zfs, a script) is not known.
func Announced(root string, dir string) ([]Announcement, error) {
	names, err := namesOf(dir)
	if err != nil {
		return nil, err
	}

	var found []Announcement
	seen := map[string]bool{}
	note := func(point string, by string) {
		point = filepath.Clean(point)
		if !seen[point] && filepath.IsAbs(point) && leadsInto(point, names) {
			seen[point] = true
			found = append(found, Announcement{Point: point, By: by})
		}
	}

	data, err := os.ReadFile(filepath.Join(root, fstab))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}

	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) > 1 && !strings.HasPrefix(fields[0], "#") {
			note(unescape(fields[1]), filepath.Join(root, fstab))
		}
	}

	for _, dir := range unitDirs {
		units, _ := os.ReadDir(filepath.Join(root, dir)) // most of them do not exist
		for _, unit := range units {
			file := filepath.Join(root, dir, unit.Name())
			point, ok := mountPoint(unit.Name())
			if ok && !masked(file) {
				note(point, file)
			}
		}
	}

	return found, nil
}

// namesOf are the names of a directory: the one that is used, and the one without links in it.
func namesOf(dir string) ([]string, error) {
	given, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}

	real, err := filepath.EvalSymlinks(given)
	return []string{given, real}, err
}

// leadsInto tells whether a mount point is a directory of one of these names, or below it.
func leadsInto(point string, names []string) bool {
	points := []string{point}
	real, err := filepath.EvalSymlinks(point)
	if err == nil {
		points = append(points, real)
	}

	for _, p := range points {
		for _, name := range names {
			if within(p, name) {
				return true
			}
		}
	}

	return false
}

// mountPoint tells from the name of a unit, which systemd insists on, what it mounts: var-lib-lxd.mount is for /var/lib/lxd
// (systemd.mount(5), systemd-escape(1)).
func mountPoint(unit string) (string, bool) {
	name, ok := strings.CutSuffix(unit, ".mount")
	if !ok {
		name, ok = strings.CutSuffix(unit, ".automount")
	}

	if !ok || name == "" {
		return "", false
	}

	var b strings.Builder
	b.WriteByte('/')
	for i := 0; i < len(name); i++ {
		switch {
		case name[i] == '-':
			b.WriteByte('/')
			continue
		case strings.HasPrefix(name[i:], `\x`) && i+3 < len(name):
			n, err := strconv.ParseUint(name[i+2:i+4], 16, 8)
			if err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}

		b.WriteByte(name[i])
	}

	return b.String(), true
}

// masked tells whether a unit is one that systemd never starts: a link to nothing.
func masked(file string) bool {
	target, err := os.Readlink(file)
	return err == nil && target == os.DevNull
}
