// SPDX-License-Identifier: AGPL-3.0-only

package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

// The start gate is a drop-in beside each unit that would start LXD: a condition that does not hold as long as a file exists. What the file says
// is the business of those who wrote it. A drop-in without its file does nothing, and one that is left behind is found by its name.
const gateDropIn = "50-lxd-recover-gate.conf"

// unitDir is where an administrator's units and drop-ins are, which stay over a reboot; runtimeDir is where those are that do not. Tests put
// other directories there.
var (
	unitDir    = "/etc/systemd/system"
	runtimeDir = "/run/systemd/system"
)

// reloadTime is how long systemd may take to read all of its units anew.
const reloadTime = 90 * time.Second

// ErrGated says that a gate keeps LXD from being started.
var ErrGated error = product.Error("LXD is kept from being started")

// FoundGate is a unit that Gate keeps from being started.
type FoundGate struct {
	Unit string // such as lxd.service
	Path string // of the drop-in
	File string // as long as it exists, the unit is not started

	Enabled []string // services of the snap that were enabled before
	madeDir bool     // the drop-in's directory is ours, too
}

// FindGates returns what Gate has made on this machine and Ungate has not taken away, sorted by unit.
func FindGates() ([]FoundGate, error) {
	paths, err := filepath.Glob(filepath.Join(unitDir, "*.d", gateDropIn))
	if err != nil {
		return nil, err
	}

	var found []FoundGate
	for _, path := range paths {
		unit := strings.TrimSuffix(filepath.Base(filepath.Dir(path)), ".d")
		gate, err := readGate(unit)
		if err != nil {
			return nil, err
		}

		if gate != nil {
			found = append(found, *gate)
		}
	}

	return found, nil
}

// checkOpen returns ErrGated for the first of the units whose gate is closed: systemd would not start it, and call that no error.
func checkOpen(units []string) error {
	for _, unit := range units {
		gate, err := readGate(unit)
		if err != nil {
			return err
		}

		if gate == nil || gate.File == "" {
			continue
		}

		_, err = os.Stat(gate.File)
		if err == nil {
			return fmt.Errorf("%w: systemd does not start %s as long as %s exists: run `lxd-recover cluster recover resume` "+
				"or `lxd-recover cluster recover undo`", ErrGated, unit, gate.File)
		}
	}

	return nil
}

// Beginnings of lines in a drop-in.
const (
	gateCondition = "ConditionPathExists=!"
	gateEnabled   = "# Enabled before: "
	gateMadeDir   = "# This directory was made for it."
)

// text is the drop-in. What it notes of the time before is there in case that nothing else is left that tells it.
func (g *FoundGate) text() (string, error) {
	condition, err := systemdPath(g.File)
	if err != nil {
		return "", err
	}

	var b strings.Builder
	b.WriteString(product.Text("# Written by lxd-recover, which is at work on the database of this LXD cluster: LXD must not be started on it meanwhile.\n" +
		"# `lxd-recover cluster recover resume` or `lxd-recover cluster recover undo` take this away. Without the file below it does nothing.\n"))
	if g.madeDir {
		b.WriteString(gateMadeDir + "\n")
	}

	if len(g.Enabled) > 0 {
		b.WriteString(gateEnabled + strings.Join(g.Enabled, " ") + "\n")
	}

	b.WriteString("[Unit]\n" + gateCondition + condition + "\n")
	if strings.HasSuffix(g.Unit, ".service") { // a socket that waited for a network file system would wait for itself
		b.WriteString("# Whether it exists is not known before it is mounted.\nRequiresMountsFor=" + mountsFor(g.File) + "\n")
	}

	return b.String(), nil
}

// systemdPath is a path as a line of a unit has it to its end: nothing is quoted there, and only specifiers are expanded.
func systemdPath(path string) (string, error) {
	switch {
	case !filepath.IsAbs(path):
		return "", fmt.Errorf("%q is no absolute path", path)
	case strings.ContainsAny(path, "\n\r\x00"), strings.TrimSpace(path) != path, strings.HasSuffix(path, `\`), strings.ToValidUTF8(path, "") != path:
		return "", fmt.Errorf("%q has characters that systemd cannot read", path)
	}

	return strings.ReplaceAll(path, "%", "%%"), nil
}

// mountsFor is the directory of a path, links followed, as one word in a list: quoted, as no character can be escaped there.
func mountsFor(path string) string {
	dir := filepath.Dir(path)
	real, err := filepath.EvalSymlinks(dir)
	if err == nil {
		dir = real
	}

	dir = strings.ReplaceAll(dir, "%", "%%")
	return `"` + strings.ReplaceAll(dir, `"`, `"'"'"`) + `"`
}

// readGate reads a unit's drop-in; nil for none.
func readGate(unit string) (*FoundGate, error) {
	gate := &FoundGate{Unit: unit, Path: filepath.Join(unitDir, unit+".d", gateDropIn)}
	text, err := os.ReadFile(gate.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}

	if err != nil {
		return nil, err
	}

	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if file, ok := strings.CutPrefix(line, gateCondition); ok {
			gate.File = strings.ReplaceAll(file, "%%", "%")
		}

		if names, ok := strings.CutPrefix(line, gateEnabled); ok {
			gate.Enabled = strings.Fields(names)
		}

		gate.madeDir = gate.madeDir || line == gateMadeDir
	}

	return gate, nil
}

// closeGate keeps units from being started as long as file exists, and makes sure that systemd sees it so. enabled is to be noted with it.
func closeGate(ctx context.Context, conn *dbus.Conn, units []string, file string, enabled []string) error {
	for _, unit := range units {
		err := writeGate(unit, file, enabled)
		if err != nil {
			return fmt.Errorf("keep %s from being started: %w", unit, err)
		}
	}

	err := reload(ctx, conn)
	if err != nil {
		return err
	}

	for _, unit := range units {
		err = inEffect(ctx, conn, unit, file)
		if err != nil {
			return err
		}
	}

	return nil
}

// writeGate writes a unit's drop-in, so that it is there after a power cut from then on. What one that is there already notes stays.
func writeGate(unit, file string, enabled []string) error {
	gate, err := readGate(unit)
	if err != nil {
		return err
	}

	if gate == nil {
		gate = &FoundGate{Unit: unit, Path: filepath.Join(unitDir, unit+".d", gateDropIn)}
	}

	gate.File, gate.Enabled = file, union(gate.Enabled, enabled)
	dir := filepath.Dir(gate.Path)
	err = os.Mkdir(dir, 0o755)
	gate.madeDir = gate.madeDir || err == nil
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}

	text, err := gate.text()
	if err == nil {
		err = replaceFile(gate.Path, text)
	}

	if err == nil {
		err = syncDir(unitDir)
	}

	return err
}

// inEffect asks systemd whether the condition counts: another drop-in may take all conditions away, and whoever wrote this may have quoted
// the file wrongly. A unit that is masked, or not there, is not started either way.
func inEffect(ctx context.Context, conn *dbus.Conn, unit, file string) error {
	state, err := stringProperty(ctx, conn, unit, "LoadState")
	if err != nil || state == "masked" || state == "not-found" {
		return err
	}

	p, err := inTime(ctx, func(ctx context.Context) (*dbus.Property, error) {
		return conn.GetUnitPropertyContext(ctx, unit, "Conditions")
	})
	if err != nil {
		return fmt.Errorf("ask systemd for the conditions of %s: %w", unit, err)
	}

	conditions, _ := p.Value.Value().([][]any) // name, whether one of several is enough, whether it is negated, parameter, state
	for _, c := range conditions {
		if len(c) == 5 && c[0] == "ConditionPathExists" && c[1] == false && c[2] == true && c[3] == file {
			return nil
		}
	}

	return fmt.Errorf("systemd does not heed %s: another file may take the conditions of %s away; look at `systemctl cat %[2]s`",
		filepath.Join(unitDir, unit+".d", gateDropIn), unit)
}

// openGate takes the drop-ins of units away. What failed because of them is forgotten.
func openGate(ctx context.Context, conn *dbus.Conn, units []string) error {
	stale := false
	for _, unit := range units {
		removed, err := removeGate(unit)
		if err != nil {
			return fmt.Errorf("let %s be started again: %w", unit, err)
		}

		if !removed && !stale { // somebody may have been killed after that
			stale, err = needsReload(ctx, conn, unit)
			if err != nil {
				return err
			}
		}

		stale = stale || removed
	}

	if !stale {
		return nil
	}

	err := reload(ctx, conn)
	if err != nil {
		return err
	}

	return resetFailed(ctx, conn, units)
}

// removeGate removes what writeGate and writeBlock wrote, and what killed ones have left of it.
func removeGate(unit string) (removed bool, err error) {
	gate, err := readGate(unit)
	if err != nil {
		return false, err
	}

	path := filepath.Join(unitDir, unit+".d", gateDropIn)
	block := filepath.Join(runtimeDir, unit+".d", blockDropIn)
	for _, name := range []string{path + tempSuffix, path, block + tempSuffix, block} {
		err = os.Remove(name)
		removed = removed || err == nil
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return removed, err
		}
	}

	_ = os.Remove(filepath.Dir(block)) // where it is empty
	if gate == nil {
		return removed, nil
	}

	if gate.madeDir {
		_ = os.Remove(filepath.Dir(path)) // somebody may have put something else there
	}

	return removed, errors.Join(syncIfThere(filepath.Dir(path)), syncDir(unitDir))
}

// blockDropIn is a drop-in with which a unit is never started, until it is taken away or the machine is started anew.
const blockDropIn = "51-lxd-recover-gate.conf"

// block keeps units from being started whatever files exist, for a short time.
func block(ctx context.Context, conn *dbus.Conn, units []string) error {
	for _, unit := range units {
		path := filepath.Join(runtimeDir, unit+".d", blockDropIn)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = replaceFile(path, "# Written by lxd-recover for a moment.\n[Unit]\n"+gateCondition+"/\n")
		}

		if err != nil {
			return fmt.Errorf("keep %s from being started: %w", unit, err)
		}
	}

	return reload(ctx, conn)
}

func reload(ctx context.Context, conn *dbus.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, reloadTime)
	defer cancel()

	err := conn.ReloadContext(ctx)
	if err != nil {
		return fmt.Errorf("have systemd read its units anew: %w", err)
	}

	return nil
}

// needsReload tells whether a unit's files have changed since systemd read them.
func needsReload(ctx context.Context, conn *dbus.Conn, unit string) (bool, error) {
	p, err := inTime(ctx, func(ctx context.Context) (*dbus.Property, error) {
		return conn.GetUnitPropertyContext(ctx, unit, "NeedDaemonReload")
	})
	if err != nil {
		return false, fmt.Errorf("ask systemd for unit %s: %w", unit, err)
	}

	return p.Value.Value() == true, nil
}

// tempSuffix makes a name that systemd does not read.
const tempSuffix = ".tmp"

// replaceFile writes a small file all or nothing: it is synced before it gets its name, and the directory after that.
func replaceFile(path, text string) error {
	f, err := os.OpenFile(path+tempSuffix, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}

	_, err = f.WriteString(text)
	if err == nil {
		err = f.Sync()
	}

	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(path+tempSuffix, path)
	}

	if err != nil {
		_ = os.Remove(path + tempSuffix)
		return err
	}

	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}

	return errors.Join(f.Sync(), f.Close())
}

func syncIfThere(dir string) error {
	err := syncDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}

	return err
}

// union is what is in one of two lists, each once, in their order. It shares no memory with them.
func union(a, b []string) []string {
	all := slices.Clone(a)
	for _, name := range b {
		if !slices.Contains(all, name) {
			all = append(all, name)
		}
	}

	return all
}
