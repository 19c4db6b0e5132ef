// SPDX-License-Identifier: AGPL-3.0-only

package daemon

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// fakeSnapd answers as much of snapd's API, on a real unix socket, as Service needs, for a snap lxd. It spoils the first requests in one way.
type fakeSnapd struct {
	way  string // "silent", "broken" before the answer, "cut" in the middle of it
	left int    // requests that are still to be spoiled

	systemd *fakeSystemd // which starts the service; nil for none

	mu      sync.Mutex
	active  bool     // the service lxd.daemon
	enabled bool     // the same
	actions []string // what was asked of it
	changes []string // the actions asked for
}

// startFakeSnapd puts a fake in snapd's place for the time of a test.
func startFakeSnapd(t *testing.T, way string, spoiled int) *fakeSnapd {
	t.Helper()
	real := snapdSocket
	snapdSocket = filepath.Join(t.TempDir(), "snapd.socket")
	listener, err := net.Listen("unix", snapdSocket)
	if err != nil {
		t.Fatal(err)
	}

	f := &fakeSnapd{way: way, left: spoiled, active: true, enabled: true}
	server := &http.Server{Handler: f}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		snapdSocket = real
		_ = server.Close()
		<-served
	})
	return f
}

// ServeHTTP implements http.Handler.
func (f *fakeSnapd) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := fmt.Sprintf(`{"type": "sync", "status-code": 200, "result": %s}`, f.result(r))
	if r.Method == http.MethodPost {
		w.WriteHeader(http.StatusAccepted)
		answer = fmt.Sprintf(`{"type": "async", "status-code": 202, "change": "%d"}`, len(f.changes))
	}

	if f.left == 0 {
		_, _ = w.Write([]byte(answer))
		return
	}

	f.left--
	switch f.way {
	case "silent":
		_, _ = io.Copy(io.Discard, r.Body) // else the server does not look whether the other side is still there
		<-r.Context().Done()               // until the other side hangs up
		return
	case "cut":
		_, _ = w.Write([]byte(answer[:len(answer)/2]))
		_ = http.NewResponseController(w).Flush()
	}

	conn, _, err := http.NewResponseController(w).Hijack()
	if err == nil {
		_ = conn.Close()
	}
}

// result carries out a request, unless it is one that is spoiled.
func (f *fakeSnapd) result(r *http.Request) string {
	switch {
	case r.URL.Path == "/v2/apps" && r.Method == http.MethodGet:
		return fmt.Sprintf(`[{"snap": "lxd", "name": "daemon", "daemon": "simple", "active": %v, "enabled": %v, "activators": [`+
			`{"Name": "unix", "Type": "socket"}]}, {"snap": "lxd", "name": "activate", "daemon": "oneshot"}]`, f.active, f.enabled)
	case r.Method == http.MethodPost && f.left == 0:
		f.changes = append(f.changes, r.URL.Path)
		f.act(r)
	case r.URL.Path == "/v2/changes/"+fmt.Sprint(len(f.changes)):
		return `{"id": "1", "ready": true}`
	case r.URL.Path == "/v2/snaps/lxd":
		return `{"hold": "2026-11-26T10:00:00Z"}`
	}

	return "[]"
}

// act starts or stops the service, by whatever conditions its unit has.
func (f *fakeSnapd) act(r *http.Request) {
	var action struct {
		Action          string
		Names           []string
		Enable, Disable bool
	}
	_ = json.NewDecoder(r.Body).Decode(&action)
	f.actions = append(f.actions, fmt.Sprintf("%s %s enable=%v disable=%v", action.Action, action.Names, action.Enable, action.Disable))
	f.enabled = f.enabled && !action.Disable || action.Enable
	f.active = f.active && action.Action != "stop" || action.Action == "start" && (f.systemd == nil || f.systemd.lets("snap.lxd.daemon.service"))
}

// asked are the changes so far.
func (f *fakeSnapd) asked() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.changes)
}
