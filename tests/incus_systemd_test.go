// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/guest"
)

// incusUnits are what runs Incus, and what starts and shuts down its instances.
var incusUnits = []string{"incus.service", "incus.socket", "incus-startup.service"}

// TestIncusSystemd imports and rolls back where systemd runs Incus, and starts it whenever somebody calls; then it exports by Incus's own commands, which
// find the front-end.
func TestIncusSystemd(t *testing.T) {
	t.Parallel()
	g := guest.ForTest(t, guest.Options{Name: "node1", Address: "10.78.0.1/16", Image: incus(t).Image})
	must(t, g.Put(t.Context(), tool, "/usr/local/bin/lxd-recover", 0o755))
	initIncus(t, g)
	inGuest(t, g, "incus", "profile", "create", "exported")
	inGuest(t, g, "systemctl", "stop", "--job-mode=ignore-dependencies", "incus.socket", "incus.service")
	inGuest(t, g, "sh", "-c", "incus admin cluster show | sed s/:8443/:9393/ | lxd-recover cluster edit")
	const tarball = "/root/incus_recovery_db.tar.gz"
	inGuest(t, g, "lxd-recover", "cluster", "export-db", tarball)
	inGuest(t, g, "systemctl", "start", "incus.socket", "incus.service")
	inGuest(t, g, "incus", "profile", "create", "since")

	pid, startup := property(t, g, "incus.service", "MainPID"), property(t, g, "incus-startup.service", "InactiveExitTimestampMonotonic")
	toolInGuest(t, g, "cluster", "export-db", "--unedited", "/root/refused.tar.gz").want(t, 1, "Incus is running", "pid "+pid, "incus.service")
	toolInGuest(t, g, "global-db-import", "--yes", tarball).want(t, 3, "insert profile since", "--discard-local-entries")
	if now := property(t, g, "incus.service", "MainPID"); now != pid {
		t.Errorf("a refusal, and Incus's pid is %s, was %s", now, pid)
	}

	r := toolInGuest(t, g, "global-db-import", "--yes", "--discard-local-entries", "--format", "json", tarball)
	report := decode[recovery.ImportReport](t, r)
	if r.status != 0 || !report.Done || !report.Started || !report.Ready || len(report.Warnings) > 0 {
		t.Errorf("import: exit status %d, %+v", r.status, report)
	}

	wantOrder(t, r.stderr, "Stopping Incus (systemd unit incus.service)", "The new database is in place", "Starting Incus (systemd unit incus.service)")
	wantState(t, g, "active", incusUnits...)
	wantIncusProfiles(t, g, "default", "exported")
	status := statusInGuest(t, g)
	if !status.Running || !status.Agree || status.Member == nil || status.Member.Address != "10.78.0.1:9393" || len(status.Pending)+len(status.Problems) > 0 ||
		!strings.Contains(status.Daemon, "systemd unit incus.service") {
		t.Errorf("status %+v", status)
	}

	inGuest(t, g, "lxd-recover", "global-db-rollback", "--yes", "--discard-local-entries")
	wantState(t, g, "active", incusUnits...)
	wantIncusProfiles(t, g, "default", "exported", "since")
	if now := property(t, g, "incus-startup.service", "InactiveExitTimestampMonotonic"); now != startup {
		t.Error("incus-startup.service, whose end shuts down all instances, was stopped and started")
	}

	inGuest(t, g, "systemctl", "stop", "incus.service") // its socket stays open: who looks must not wake it
	if now := statusInGuest(t, g); now.Running || !strings.Contains(now.Daemon, "on demand") {
		t.Errorf("status %+v", now)
	}

	wantState(t, g, "inactive", "incus.service")
	inGuest(t, g, "systemctl", "stop", "--job-mode=ignore-dependencies", "incus.socket")
	inGuest(t, g, "lxd-recover", "frontend", "install")
	inGuest(t, g, "incusd", "cluster", "export-db", "--unedited", "/root/by-incusd.tar.gz")
	inGuest(t, g, "incus", "admin", "cluster", "--", "export-db", "--unedited", "/root/by-incus.tar.gz") // which has no flags of its own to pass on
	if said := inGuest(t, g, "incus", "admin", "cluster", "list-database"); !strings.Contains(said, "10.78.0.1:9393") {
		t.Errorf("Incus's own command through the front-end: %s", said)
	}
}

// initIncus makes a cluster of this one guest.
func initIncus(t *testing.T, g *guest.Guest) {
	t.Helper()
	yaml, err := json.Marshal(map[string]any{
		"config":  map[string]string{"core.https_address": g.IP() + ":8443", "images.auto_update_interval": "0"},
		"cluster": map[string]any{"enabled": true, "server_name": g.Name},
	})
	must(t, err)
	cmd := g.Command(within(t, time.Minute), "incus", "admin", "init", "--preseed")
	cmd.Stdin = strings.NewReader(string(yaml))
	if r := run(t, cmd); r.status != 0 {
		t.Fatalf("init: exit status %d", r.status)
	}
}

// wantIncusProfiles checks which profiles there are.
func wantIncusProfiles(t *testing.T, g *guest.Guest, want ...string) {
	t.Helper()
	var names []string
	for line := range strings.Lines(inGuest(t, g, "incus", "profile", "list", "--format", "csv")) {
		name, _, _ := strings.Cut(line, ",")
		names = append(names, name)
	}

	slices.Sort(names)
	if !slices.Equal(names, want) {
		t.Errorf("profiles %v, want %v", names, want)
	}
}
