// SPDX-License-Identifier: AGPL-3.0-only

package daemon

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// gateDirs puts empty directories in the place of systemd's, for the time of a test.
func gateDirs(t *testing.T) {
	t.Helper()
	etc, run := unitDir, runtimeDir
	unitDir, runtimeDir = filepath.Join(t.TempDir(), "etc"), filepath.Join(t.TempDir(), "run")
	t.Cleanup(func() { unitDir, runtimeDir = etc, run })
	err := errors.Join(os.Mkdir(unitDir, 0o755), os.Mkdir(runtimeDir, 0o755))
	if err != nil {
		t.Fatal(err)
	}
}

// leftIn are the names of all that is in the two directories.
func leftIn(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, dir := range []string{unitDir, runtimeDir} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if path != dir {
				names = append(names, filepath.Base(dir)+strings.TrimPrefix(path, dir))
			}

			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}

	return names
}

// debianUnits are the units of Debian's LXD, and one of somebody's that wants it.
func debianUnits(t *testing.T) *fakeSystemd {
	t.Helper()
	fake := startFakeSystemd(t, onConnect, 0, map[string]string{
		"lxd.service": "active", "lxd.socket": "active", "lxd-containers.service": "active", "theirs.service": "active",
	})
	program := func(path string) any {
		return []struct {
			Path      string
			Arguments []string
		}{{path, []string{path}}}
	}
	fake.properties = map[string]map[string]any{
		"lxd.service":            {"ExecStart": program("/usr/bin/lxd"), "WantedBy": []string{"theirs.service", "multi-user.target"}},
		"lxd.socket":             {"RequiredBy": []string{"lxd.service", "lxd-containers.service"}, "WantedBy": []string{"sockets.target"}},
		"lxd-containers.service": {"ExecStart": program("/usr/bin/lxd")},
		"theirs.service":         {"ExecStart": program("/usr/bin/theirs")},
	}
	return fake
}

func TestGateText(t *testing.T) {
	for _, test := range []struct{ file, condition, mounts string }{
		{"/var/lib/lxd/database.run.yaml", "ConditionPathExists=!/var/lib/lxd/database.run.yaml", `RequiresMountsFor="/var/lib/lxd"`},
		{"/srv/100%u/a b/x", "ConditionPathExists=!/srv/100%%u/a b/x", `RequiresMountsFor="/srv/100%%u/a b"`},
		{`/srv/"q" 'r' \s/x`, `ConditionPathExists=!/srv/"q" 'r' \s/x`, `RequiresMountsFor="/srv/"'"'"q"'"'" 'r' \s"`},
	} {
		gateDirs(t)
		for unit, mounts := range map[string]string{"lxd.service": test.mounts, "lxd.socket": ""} {
			err := writeGate(unit, test.file, []string{"lxd.daemon"})
			if err != nil {
				t.Fatal(err)
			}

			path := filepath.Join(unitDir, unit+".d", gateDropIn)
			text, err := os.ReadFile(path)
			lines := strings.Split(string(text), "\n")
			if err != nil || !slices.Contains(lines, test.condition) || slices.Contains(lines, test.mounts) != (mounts != "") {
				t.Errorf("%s: %s, %v", unit, text, err)
			}

			if !strings.HasPrefix(lines[0], "# Written by lxd-recover") || !strings.Contains(lines[1], "`lxd-recover cluster recover resume`") {
				t.Errorf("comment: %q", lines[:2])
			}

			gate, err := readGate(unit)
			want := &FoundGate{Unit: unit, Path: path, File: test.file, Enabled: []string{"lxd.daemon"}, madeDir: true}
			if err != nil || !reflect.DeepEqual(gate, want) {
				t.Errorf("read again: %+v, %v", gate, err)
			}
		}
	}

	for _, file := range []string{"relative", "/a\nb", "/a\r", "/a ", `/a\`, "/a\xff"} {
		gateDirs(t)
		err := writeGate("lxd.service", file, nil)
		if err == nil || len(leftIn(t)) > 1 {
			t.Errorf("%q: %v, and %q", file, err, leftIn(t))
		}
	}
}

// The gate of a unit is one of all that would start LXD, keeps Start from calling success what systemd skips, and leaves nothing.
func TestGateSystemd(t *testing.T) {
	gateDirs(t)
	fake := debianUnits(t)
	file := filepath.Join(t.TempDir(), "run.yaml")
	theirs := filepath.Join(unitDir, "lxd.socket.d", "theirs.conf")
	err := errors.Join(os.WriteFile(file, nil, 0o600), os.Mkdir(filepath.Dir(theirs), 0o755), os.WriteFile(theirs, nil, 0o600),
		os.Mkdir(filepath.Join(unitDir, "lxd-containers.service.d"), 0o755))
	if err != nil {
		t.Fatal(err)
	}

	unit := &systemd{unit: "lxd.service", triggers: []string{"lxd.socket"}}
	prior := &PriorState{Kind: kindSystemd, Name: "lxd.service", Up: []string{"lxd.socket", "lxd.service"}, Daemon: true}
	for range 2 {
		err = errors.Join(unit.Gate(t.Context(), prior, file), unit.Stop(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
	}

	gated := []string{"lxd.socket", "lxd.service", "lxd-containers.service"}
	if !slices.Equal(prior.Gated, gated) || !slices.Equal(prior.Companions, gated[2:]) || fake.loads != 2 {
		t.Errorf("prior state %+v, units read %d times", prior, fake.loads)
	}

	found, err := FindGates()
	if err != nil || len(found) != 3 || found[1].Unit != "lxd.service" || found[1].File != file {
		t.Errorf("found %+v, %v", found, err)
	}

	jobs := len(fake.begun())
	err = unit.Start(t.Context(), prior)
	if !errors.Is(err, ErrGated) || !strings.Contains(err.Error(), file) || len(fake.begun()) != jobs {
		t.Errorf("start: %v; jobs %q", err, fake.begun()[jobs:])
	}

	for range 2 {
		err = unit.Ungate(t.Context(), &PriorState{}) // what prior has is found without it
		if err != nil {
			t.Fatal(err)
		}
	}

	if left := leftIn(t); fake.loads != 3 || !slices.Equal(left, []string{"etc/lxd-containers.service.d", "etc/lxd.socket.d", "etc/lxd.socket.d/theirs.conf"}) {
		t.Errorf("units read %d times, left %q", fake.loads, left)
	}

	err = unit.Start(t.Context(), prior)
	want := []string{"StartUnit lxd.socket", "StartUnit lxd.service", "StartUnit lxd-containers.service"}
	if err != nil || !slices.Equal(fake.begun()[jobs:], want) {
		t.Errorf("start: %v; jobs %q", err, fake.begun()[jobs:])
	}
}

// A gate whose file is gone keeps nothing from being started.
func TestGateWithoutFile(t *testing.T) {
	gateDirs(t)
	fake := debianUnits(t)
	unit := &systemd{unit: "lxd.service", triggers: []string{"lxd.socket"}}
	prior := &PriorState{Up: []string{"lxd.socket", "lxd.service"}}
	err := unit.Gate(t.Context(), prior, filepath.Join(t.TempDir(), "gone"))
	if err == nil {
		err = errors.Join(unit.Stop(t.Context()), unit.Start(t.Context(), prior))
	}

	fake.change(func() {
		if err != nil || fake.units["lxd.service"] != "active" {
			t.Errorf("%v; units %v", err, fake.units)
		}
	})
}

// A condition that systemd does not have, whatever the reason, is no gate.
func TestGateNotHeeded(t *testing.T) {
	gateDirs(t)
	fake := debianUnits(t)
	fake.properties["lxd.socket"]["Conditions"] = []fakeCondition{{Name: "ConditionPathExists", Negate: true, Parameter: "/other"}}
	unit := &systemd{unit: "lxd.service", triggers: []string{"lxd.socket"}}
	err := unit.Gate(t.Context(), &PriorState{}, "/var/lib/lxd/database.run.yaml")
	if err == nil || !strings.Contains(err.Error(), "systemd does not heed "+filepath.Join(unitDir, "lxd.socket.d", gateDropIn)) {
		t.Errorf("error %v", err)
	}

	fake.change(func() { fake.properties["lxd.socket"]["LoadState"] = "masked" })
	err = unit.Gate(t.Context(), &PriorState{}, "/var/lib/lxd/database.run.yaml")
	if err != nil {
		t.Errorf("a socket that is masked: %v", err)
	}
}

// The services of a snap are disabled by the stop, and enabled again without being started, also by somebody who has lost the prior state.
func TestGateSnapd(t *testing.T) {
	gateDirs(t)
	fake := startFakeSnapd(t, "", 0)
	fake.systemd = startFakeSystemd(t, onConnect, 0, map[string]string{
		"snap.lxd.daemon.service": "active", "snap.lxd.daemon.unix.socket": "active", "snap.lxd.activate.service": "inactive",
	})
	file := filepath.Join(t.TempDir(), "run.yaml")
	snap := newSnapd("lxd")
	prior := &PriorState{Kind: kindSnapd, Name: "lxd", Up: []string{"lxd.daemon"}}
	err := os.WriteFile(file, nil, 0o600)
	for range 2 {
		err = errors.Join(err, snap.Gate(t.Context(), prior, file), snap.Stop(t.Context()))
	}

	gated := []string{"snap.lxd.daemon.service", "snap.lxd.daemon.unix.socket", "snap.lxd.activate.service"}
	if err != nil || fake.enabled || !slices.Equal(prior.Gated, gated) || !slices.Equal(prior.Enabled, []string{"lxd.daemon"}) {
		t.Fatalf("%v; enabled %v, prior state %+v", err, fake.enabled, prior)
	}

	err = snap.Start(t.Context(), prior)
	if !errors.Is(err, ErrGated) {
		t.Errorf("start: %v", err)
	}

	err = os.Remove(file) // from here on LXD would be started
	for range 2 {
		err = errors.Join(err, snap.Ungate(t.Context(), &PriorState{}))
	}

	want := []string{
		"stop [lxd] enable=false disable=true", "stop [lxd] enable=false disable=true", "start [lxd.daemon] enable=true disable=false",
	}
	if err != nil || !fake.enabled || fake.active || !slices.Equal(fake.actions, want) || len(leftIn(t)) > 0 {
		t.Errorf("%v; enabled %v, active %v, actions %q, left %q", err, fake.enabled, fake.active, fake.actions, leftIn(t))
	}

	err = errors.Join(snap.Start(t.Context(), prior), snap.Stop(t.Context()))
	if err != nil || !fake.enabled {
		t.Errorf("a stop without a gate: %v, enabled %v", err, fake.enabled)
	}
}
