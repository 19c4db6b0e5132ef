// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// emptyLXD is a directory with a database/ and nothing in it.
func emptyLXD(t testing.TB) directory {
	t.Helper()
	dir := directory{t.TempDir()}
	must(t, os.Mkdir(dir.database(), 0o700))
	return dir
}

// The high-water file only ever rises, in term and in time.
func TestHighWater(t *testing.T) {
	dir := emptyLXD(t)
	early, late := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), time.Date(2026, 11, 26, 0, 0, 0, 0, time.UTC)
	h, err := dir.readHighWater()
	if err != nil || h.Term != 0 || !h.Time.IsZero() {
		t.Fatalf("without a file: %+v, %v", h, err)
	}

	must(t, dir.raiseHighWater(t.Context(), 0, late))
	if names := namesIn(t, dir.path); len(names) != 1 {
		t.Errorf("nothing was seen, and there is %q", names)
	}

	for _, step := range []struct {
		term     uint64
		now      time.Time
		wantTerm uint64
		wantTime time.Time
	}{
		{500, early, 500, early},
		{70, late, 500, late},
		{501, early, 501, late},
		{501, late.Add(time.Hour), 501, late.Add(time.Hour)},
	} {
		must(t, dir.raiseHighWater(t.Context(), step.term, step.now))
		h, err := dir.readHighWater()
		if err != nil || h.Term != step.wantTerm || !h.Time.Equal(step.wantTime) {
			t.Errorf("after term %d at %s: %+v, %v", step.term, step.now, h, err)
		}
	}

	if names := namesIn(t, dir.path); len(names) != 2 {
		t.Errorf("beside the file there is %q", names)
	}

	err = dir.raiseHighWater(t.Context(), 1<<62+1, late)
	if err == nil || !strings.Contains(err.Error(), "leaves no room") {
		t.Errorf("a term that no fence lies above: %v", err)
	}
}

// Exports at the same time do not lower it.
func TestHighWaterTogether(t *testing.T) {
	dir := emptyLXD(t)
	var group sync.WaitGroup
	errs := make([]error, 40)
	for i := range errs {
		group.Go(func() { errs[i] = dir.raiseHighWater(t.Context(), uint64(100+(i*17)%40), time.Now()) })
	}

	group.Wait()
	for _, err := range errs {
		must(t, err)
	}

	h, err := dir.readHighWater()
	if err != nil || h.Term != 139 {
		t.Errorf("%+v, %v, want term 139", h, err)
	}
}

// A damaged one is an error that names it, for whatever needs it.
func TestDamagedHighWater(t *testing.T) {
	for name, content := range map[string]string{
		"empty": "", "zeros": strings.Repeat("\x00", 60), "cut": "format: 1\nterm: 17", "no number": "format: 1\nterm: many\ntime: 2026-11-26T00:00:00Z\n",
		"another format": "format: 2\nterm: 5\ntime: 2026-11-26T00:00:00Z\n", "an unknown key": "format: 1\nterm: 5\ntime: 2026-11-26T00:00:00Z\nx: 1\n",
		"no term": "format: 1\nterm: 0\ntime: 2026-11-26T00:00:00Z\n", "no time": "format: 1\nterm: 5\n",
		"too high": "format: 1\nterm: 9223372036854775808\ntime: 2026-11-26T00:00:00Z\n",
		"large":    strings.Repeat("#\n", 3000),
	} {
		dir := emptyLXD(t)
		must(t, os.WriteFile(dir.join(highWaterName), []byte(content), 0o600))
		for what, use := range map[string]func() error{
			"read":  func() error { _, err := dir.readHighWater(); return err },
			"raise": func() error { return dir.raiseHighWater(t.Context(), 7, time.Now()) },
			"seen":  func() error { _, err := dir.seenHere(t.Context(), nil); return err },
			"clock": func() error { _, err := dir.newestTime(); return err },
			"note":  func() error { return dir.noteTerms(t.Context(), 9) },
		} {
			err := use()
			if err == nil || !strings.Contains(err.Error(), dir.join(highWaterName)+" cannot be used: ") {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}

		data, err := os.ReadFile(dir.join(highWaterName))
		if err != nil || string(data) != content {
			t.Errorf("%s: it was changed to %q, %v", name, data, err)
		}
	}

	dir := emptyLXD(t)
	must(t, unix.Mkfifo(dir.join(highWaterName), 0o600)) // must not hang
	_, err := dir.readHighWater()
	if err == nil || !strings.Contains(err.Error(), filepath.Base(highWaterName)) {
		t.Errorf("a pipe: %v", err)
	}
}

// What is known on a member is the highest of all places.
func TestSeenHere(t *testing.T) {
	dir := emptyLXD(t)
	must(t, os.MkdirAll(dir.global(), 0o700))
	must(t, os.MkdirAll(dir.join(keptImport, globalName), 0o700))
	want := func(what string, term uint64) {
		t.Helper()
		got, err := dir.seenHere(t.Context(), nil)
		if err != nil || got != term {
			t.Errorf("%s: %d, %v, want %d", what, got, err, term)
		}
	}
	writeTerm(t, dir.global(), 30)
	want("the live one", 30)
	writeTerm(t, dir.join(keptImport, globalName), 40)
	want("a kept one", 40)
	must(t, dir.noteTerms(t.Context(), 45))
	want("noted", 45)
	must(t, os.RemoveAll(dir.join(keptImport)))
	writeTerm(t, dir.global(), 3)
	want("a run that was taken back", 45)
	must(t, dir.noteTerms(t.Context()))
	want("noted again", 45)
}
