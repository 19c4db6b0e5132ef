// SPDX-License-Identifier: AGPL-3.0-only

package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const testTimer = "lxd-recover-backup.timer"

// The timer takes the times that it is given, even if it runs already, and nothing is left of that when it is disabled.
func TestTimer(t *testing.T) {
	for _, breaks := range []int{0, 2} {
		fake := startFakeSystemd(t, onJob, breaks, map[string]string{testTimer: "inactive"})
		timer := Timer{Unit: testTimer}
		dir := filepath.Join(unitDir, testTimer+".d")
		for _, every := range []string{"hourly", "daily"} {
			_, loads := fake.timer()
			err := timer.Enable(t.Context(), every)
			if err != nil {
				t.Fatal(err)
			}

			text, err := os.ReadFile(filepath.Join(dir, timerDropIn))
			if err != nil || !strings.HasSuffix(string(text), "\n[Timer]\nOnCalendar=\nOnCalendar="+every+"\n") {
				t.Errorf("%q, %v", text, err)
			}

			state, now := fake.timer()
			if now == loads || state != "active" {
				t.Errorf("%s: it is %s; systemd has read its units %d times", every, state, now-loads)
			}
		}

		for range 2 {
			err := timer.Disable(t.Context())
			if err != nil {
				t.Fatal(err)
			}

			_, err = os.Stat(dir)
			if state, _ := fake.timer(); !errors.Is(err, os.ErrNotExist) || state != "inactive" {
				t.Errorf("it is %s, %v", state, err)
			}
		}

		if want := []string{"RestartUnit " + testTimer, "StopUnit " + testTimer}; breaks == 0 &&
			!slices.Equal(slices.Compact(slices.Clone(fake.begun())), want) {
			t.Errorf("jobs %q", fake.begun())
		}

		want := []string{"EnableUnitFiles " + testTimer, "DisableUnitFiles " + testTimer}
		if breaks == 0 && !slices.Equal(slices.Compact(fake.enabling()), want) {
			t.Errorf("files %q", fake.enabling())
		}
	}
}

// Without systemd, or without the package, there is no timer, and nothing is written.
func TestTimerMissing(t *testing.T) {
	timer := Timer{Unit: testTimer}
	check := func(says string) {
		t.Helper()
		err := timer.Enable(t.Context(), "hourly")
		if !errors.Is(err, ErrNoTimer) || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}

		err = timer.Disable(t.Context())
		if err != nil {
			t.Errorf("disable: %v", err)
		}

		_, err = os.Stat(filepath.Join(unitDir, testTimer+".d"))
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a drop-in is there: %v", err)
		}
	}
	check("systemd does not run here")
	fake := startFakeSystemd(t, onConnect, 0, map[string]string{testTimer: "inactive"})
	fake.properties = map[string]map[string]any{testTimer: {"LoadState": "not-found"}}
	check(testTimer + " is not-found")
}
