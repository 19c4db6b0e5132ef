// SPDX-License-Identifier: AGPL-3.0-only

package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

func TestMain(m *testing.M) {
	firstPause, longestPause = time.Millisecond, time.Millisecond
	dir, err := os.MkdirTemp("", "daemon-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}

	// Nothing of this machine's own is ever asked, or changed.
	systemdSocket, snapdSocket, snapData = filepath.Join(dir, "systemd"), filepath.Join(dir, "snapd"), filepath.Join(dir, "snap")
	unitDir, runtimeDir = filepath.Join(dir, "etc"), filepath.Join(dir, "run")
	status := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(status)
}

func lxdUnits() map[string]string {
	return map[string]string{"lxd.service": "active", "lxd.socket": "active"}
}

// Connections that break are made again, wherever they break.
func TestSystemdBrokenConnections(t *testing.T) {
	for _, at := range []moment{onConnect, afterAuth, onProperty, onJob} {
		for _, breaks := range []int{0, 1, 3} {
			t.Run(fmt.Sprintf("%s %d times", at, breaks), func(t *testing.T) {
				fake := startFakeSystemd(t, at, breaks, lxdUnits())
				unit, err := systemdUnit(t.Context(), "lxd.service")
				if err != nil {
					t.Fatal(err)
				}

				prior, err := unit.PriorState(t.Context())
				if err != nil || !prior.Daemon || !slices.Equal(prior.Up, []string{"lxd.socket", "lxd.service"}) {
					t.Fatalf("prior state %+v, %v", prior, err)
				}

				err = unit.Stop(t.Context())
				if err != nil {
					t.Fatal(err)
				}

				activity, err := unit.Activity(t.Context())
				if err != nil || activity != Down {
					t.Errorf("activity after the stop: %v, %v", activity, err)
				}

				err = unit.Start(t.Context(), prior)
				if err != nil {
					t.Fatal(err)
				}

				activity, err = unit.Activity(t.Context())
				if err != nil || activity != Up {
					t.Errorf("activity after the start: %v, %v", activity, err)
				}

				if fake.left != 0 {
					t.Errorf("%d connections were not broken", fake.left)
				}
			})
		}
	}
}

// One that breaks again and again is given up.
func TestSystemdAlwaysBreaks(t *testing.T) {
	startFakeSystemd(t, onConnect, 1000, nil)
	_, err := systemdUnit(t.Context(), "lxd.service")
	if !broken(err) || !strings.Contains(err.Error(), "asked 10 times") {
		t.Errorf("error %v", err)
	}
}

// shortAnswers has questions given up soon, for the time of a test.
func shortAnswers(t *testing.T) {
	t.Helper()
	usual := answerTime
	answerTime = 200 * time.Millisecond
	t.Cleanup(func() { answerTime = usual })
}

// One that takes questions and says nothing is asked again once, and then told about.
func TestSystemdSilent(t *testing.T) {
	shortAnswers(t)
	for _, at := range []moment{onConnect, afterAuth, onProperty} {
		t.Run(string(at), func(t *testing.T) {
			fake := startFakeSystemd(t, at, 1, lxdUnits())
			fake.change(func() { fake.silent = true })
			unit, err := systemdUnit(t.Context(), "lxd.service")
			if err != nil || !slices.Equal(unit.triggers, []string{"lxd.socket"}) {
				t.Errorf("silent once: %+v, %v", unit, err)
			}

			fake.mu.Lock()
			fake.left = 1000
			fake.mu.Unlock()
			_, err = systemdUnit(t.Context(), "lxd.service")
			if !errors.Is(err, errNoAnswer) || !strings.Contains(err.Error(), "no answer within 200ms") || !strings.Contains(err.Error(), "asked 2 times") {
				t.Errorf("always silent: %v", err)
			}
		})
	}
}

// Somebody who does not want to wait for a silent one any longer need not.
func TestSystemdSilentInterrupted(t *testing.T) {
	fake := startFakeSystemd(t, onConnect, 1000, lxdUnits())
	fake.change(func() { fake.silent = true })
	ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, errors.New("enough"))
	defer cancel()

	began := time.Now()
	_, err := systemdUnit(ctx, "lxd.service")
	if err == nil || !strings.HasPrefix(err.Error(), "enough: ") || time.Since(began) > answerTime/2 {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
}

// While the machine starts, jobs are begun, and nobody waits for them: they may have to wait for us.
func TestSystemdStartLater(t *testing.T) {
	fake := startFakeSystemd(t, onConnect, 0, map[string]string{"lxd.service": "inactive", "lxd.socket": "inactive"})
	fake.unfinished = true
	unit := &systemd{unit: "lxd.service", triggers: []string{"lxd.socket"}}
	err := unit.StartLater(t.Context(), &PriorState{Up: []string{"lxd.socket", "lxd.service"}, Daemon: true})
	if jobs := fake.begun(); err != nil || !slices.Equal(jobs, []string{"StartUnit lxd.socket", "StartUnit lxd.service"}) {
		t.Errorf("jobs %q, %v", jobs, err)
	}
}

// An answer that is an error is not asked for again.
func TestSystemdAnswersWithError(t *testing.T) {
	fake := startFakeSystemd(t, onConnect, 0, lxdUnits())
	_, err := systemdUnit(t.Context(), "other.service")
	var answer dbus.Error
	if !errors.As(err, &answer) || answer.Name != "org.freedesktop.systemd1.NoSuchUnit" {
		t.Errorf("error %v", err)
	}

	if len(fake.conns) != 2 { // one for calls, one for signals
		t.Errorf("%d connections", len(fake.conns))
	}
}

// A stop whose connection breaks in the middle is not begun twice for what is down by then.
func TestSystemdStopsOnce(t *testing.T) {
	fake := startFakeSystemd(t, onJob, 1, lxdUnits())
	unit := &systemd{unit: "lxd.service", triggers: []string{"lxd.socket"}}
	err := unit.Stop(t.Context())
	if jobs := fake.begun(); err != nil || !slices.Equal(jobs, []string{"StopUnit lxd.socket", "StopUnit lxd.service"}) {
		t.Errorf("jobs %q, %v", jobs, err)
	}
}

// The end of the caller's time is told as such, and not as the closed connection that it looks like.
func TestSystemdTimeEnds(t *testing.T) {
	startFakeSystemd(t, onConnect, 1000, nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	_, err := systemdUnit(ctx, "lxd.service")
	if err == nil || !strings.HasPrefix(err.Error(), "enough: ") {
		t.Errorf("error %v", err)
	}
}

// A socket that nobody listens on for a moment, as while systemd is executed again.
func TestAgainRefused(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "socket")
	listen := func() *net.UnixListener {
		listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}

		listener.SetUnlinkOnClose(false)
		return listener
	}

	_ = listen().Close() // leaves a file that refuses
	tries := 0
	err := again(t.Context(), daemonTries, func(ctx context.Context) error {
		tries++
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if tries == 1 {
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("the first try: %v", err)
			}

			_ = syscall.Unlink(socket)
			listener := listen()
			t.Cleanup(func() { _ = listener.Close() })
		}

		if err == nil {
			_ = conn.Close()
		}

		return err
	})
	if err != nil || tries != 2 {
		t.Errorf("%d tries: %v", tries, err)
	}
}
