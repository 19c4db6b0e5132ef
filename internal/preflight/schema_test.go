// SPDX-License-Identifier: AGPL-3.0-only

package preflight

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestSchemas(t *testing.T) {
	old, recent := LXD{Program: "/usr/bin/lxd", Version: "5.0.2", Schema: 60}, LXD{Program: "/snap/lxd/current/bin/lxd", Version: "6.9", Schema: 88}
	for _, c := range []struct {
		name  string
		facts Facts
		codes []string
	}{
		{"nothing known", Facts{}, nil},
		{"the same", Facts{Schema: 60, Installed: old, LastRan: 60}, nil},
		{"newer than installed", Facts{Schema: 88, Installed: old, LastRan: 60}, []string{"schema-newer!"}},
		{"newer than installed, which was downgraded", Facts{Schema: 88, Installed: old, LastRan: 88}, []string{"schema-newer!"}},
		{"upgraded, and not started since", Facts{Schema: 88, Installed: recent, LastRan: 60}, nil},
		{"newer than what ran last", Facts{Schema: 88, LastRan: 60}, []string{"schema-newer!"}},
		{"back over an upgrade", Facts{Schema: 60, Installed: recent, LastRan: 88, Patches: []string{"auth_groups", "storage_zfs"}},
			[]string{"schema-older", "patches-done"}},
	} {
		wantCodes(t, c.name, Check(c.facts), c.codes...)
	}

	text := Check(Facts{Schema: 88, Installed: old})[0].Text
	const behind = "the global database has schema 88, and the LXD 5.0.2 that is installed here (/usr/bin/lxd) knows schemas up to 60: it does not start"
	if !strings.HasPrefix(text, behind) {
		t.Errorf("said is %q, not %q", text, behind)
	}
}

func program(t *testing.T, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "lxd")
	err := os.WriteFile(file, []byte(content), 0o755)
	if err != nil {
		t.Fatal(err)
	}

	return file
}

func TestSchemaOf(t *testing.T) {
	name := func(n string) string { return "github.com/lxc/lxd/lxd/db/cluster.updateFromV" + n + "\x00" }
	padding := strings.Repeat("x", 1<<20-20) // the next name lies across the end of a buffer
	for content, expected := range map[string]int{
		name("9") + name("59") + name("10"):                          60,
		padding + name("77") + padding + name("7"):                   78,
		name("59") + "lxd/db/cluster.updateFromV90.func1\x00":        60,
		name("59") + "lxd/db/node.updateFromV95\x00" + padding:       60,
		"lxd/db/cluster.updateFromVersion\x00" + name("3") + padding: 4,
	} {
		found, err := SchemaOf(program(t, content))
		if err != nil || found != expected {
			t.Errorf("%d (%v), want %d", found, err, expected)
		}
	}

	_, err := SchemaOf(program(t, padding+padding))
	if !errors.Is(err, ErrNoSchema) {
		t.Errorf("a program that is none of LXD's: %v", err)
	}
}

// Whatever the program does, nothing waits for it, and nothing of what it prints is believed that is no version.
func TestInstalled(t *testing.T) {
	const update = "\n# lxd/db/cluster.updateFromV59\x00"
	for script, expected := range map[string]LXD{
		"#!/bin/sh\necho $1 >&2; echo 5.0.2" + update:    {Version: "5.0.2", Schema: 60},
		"#!/bin/sh\necho '6.6 LTS'" + update:             {Version: "6.6", Schema: 60},
		"#!/bin/sh\nprintf '\\033[8m'" + update:          {Schema: 60},
		"#!/bin/sh\necho 5.0.2; exit 1" + update:         {Schema: 60},
		"#!/bin/sh\nsleep 1000 & sleep 1000" + update:    {Schema: 60},
		"#!/bin/sh\necho 5.21.4-abc123; sleep 0" + "\n#": {Version: "5.21.4-abc123"},
	} {
		file := program(t, script)
		t.Setenv("PATH", filepath.Dir(file)+":/usr/bin:/bin")
		began := time.Now()
		found := Installed(t.Context(), t.TempDir())
		expected.Program = file
		if found != expected || time.Since(began) > versionTimeout+5*time.Second {
			t.Errorf("%q: %+v after %v, want %+v", script, found, time.Since(began), expected)
		}
	}
}

func TestInstalledSnap(t *testing.T) {
	root := t.TempDir()
	roots := snapRoots
	snapRoots = []string{filepath.Join(root, "missing"), root}
	defer func() { snapRoots = roots }()
	current := filepath.Join(root, "lxd", "current")
	for _, dir := range []string{"meta", "bin"} {
		err := os.MkdirAll(filepath.Join(current, dir), 0o755)
		if err != nil {
			t.Fatal(err)
		}
	}

	err := errors.Join(os.WriteFile(filepath.Join(current, "meta/snap.yaml"), []byte("name: lxd\nversion: 5.21.4-8a3cf61\n"), 0o644),
		os.WriteFile(filepath.Join(current, "bin/lxd"), []byte("lxd/db/cluster.updateFromV74\x00"), 0o755))
	if err != nil {
		t.Fatal(err)
	}

	expected := LXD{Program: filepath.Join(current, "bin/lxd"), Version: "5.21.4-8a3cf61", Schema: 75}
	found := Installed(t.Context(), "/var/snap/lxd/common/lxd")
	if found != expected {
		t.Errorf("%+v, want %+v", found, expected)
	}
}
