// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/daemon"
)

// fakeService is an LXD that runs, stops and starts as it is told to; hangs are the calls that never end by themselves.
type fakeService struct {
	calls []string
	hangs string
	begun func() // called when a call that hangs has begun
}

func (f *fakeService) call(ctx context.Context, name string) error {
	f.calls = append(f.calls, name)
	if f.hangs != name {
		return ctx.Err()
	}

	if f.begun != nil {
		f.begun()
	}

	<-ctx.Done()
	return ctx.Err()
}

func (f *fakeService) Name() string                                      { return "fake" }
func (f *fakeService) ByHand() (stop, start string)                      { return "fake stop", "fake start" }
func (f *fakeService) Activity(context.Context) (daemon.Activity, error) { return daemon.Up, nil }
func (f *fakeService) Stoppable() error                                  { return nil }
func (f *fakeService) Failed(context.Context) error                      { return nil }
func (f *fakeService) Hold(ctx context.Context, _ *daemon.PriorState) error {
	return f.call(ctx, "hold")
}
func (f *fakeService) Gate(ctx context.Context, _ *daemon.PriorState, _ string) error {
	return f.call(ctx, "gate")
}
func (f *fakeService) Ungate(ctx context.Context, _ *daemon.PriorState) error {
	return f.call(ctx, "ungate")
}
func (f *fakeService) Stop(ctx context.Context) error { return f.call(ctx, "stop") }
func (f *fakeService) Start(ctx context.Context, _ *daemon.PriorState) error {
	return f.call(ctx, "start")
}

func (f *fakeService) StartLater(ctx context.Context, _ *daemon.PriorState) error {
	return f.call(ctx, "start later")
}

func (f *fakeService) Release(ctx context.Context, _ *daemon.PriorState) error {
	return f.call(ctx, "release")
}

func (f *fakeService) PriorState(context.Context) (*daemon.PriorState, error) {
	return &daemon.PriorState{Kind: "fake", Name: "lxd", Up: []string{"lxd"}, Daemon: true}, nil
}

// fakeCycle is a cycle around such a service. steps are what it says.
func fakeCycle(t *testing.T, service *fakeService, timeout time.Duration) (cycle *daemonCycle, steps *[]string) {
	t.Helper()
	steps = &[]string{}
	return &daemonCycle{
		dir: directory{path: t.TempDir()}, purpose: purposeImport, status: &daemon.Status{Service: service, Activity: daemon.Up}, timeout: timeout,
		progress: Progress{Step: func(what string) { *steps = append(*steps, what) }},
	}, steps
}

// noted tells whether something is left to be resumed.
func (c *daemonCycle) noted(t *testing.T) bool {
	t.Helper()
	stopped, err := c.dir.readStopped()
	if err != nil {
		t.Fatal(err)
	}

	return stopped != nil
}

// A run that is interrupted at whatever call while it stops LXD has it running again when it ends, and leaves nothing to be resumed.
func TestCycleInterruptedStop(t *testing.T) {
	for _, at := range []string{"hold", "stop"} {
		ctx, interrupt := context.WithCancel(t.Context())
		service := &fakeService{hangs: at, begun: interrupt}
		cycle, steps := fakeCycle(t, service, time.Minute)
		err := cycle.stop(ctx)
		if !errors.Is(err, context.Canceled) || !slices.Equal(service.calls[len(service.calls)-3:], []string{at, "start", "release"}) || cycle.noted(t) {
			t.Errorf("%s: %v, calls %q, noted %v", at, err, service.calls, cycle.noted(t))
		}

		if !slices.ContainsFunc(*steps, func(s string) bool { return strings.HasPrefix(s, "Interrupted: starting LXD again") }) {
			t.Errorf("%s: it says %q", at, *steps)
		}
	}
}

// An LXD that does not stop in time is no interruption.
func TestCycleStopTakesTooLong(t *testing.T) {
	service := &fakeService{hangs: "stop"}
	cycle, steps := fakeCycle(t, service, 100*time.Millisecond)
	err := cycle.stop(t.Context())
	if !errors.Is(err, context.DeadlineExceeded) || cycle.noted(t) || !slices.Contains(*steps, "Starting LXD again") {
		t.Errorf("%v, noted %v, it says %q", err, cycle.noted(t), *steps)
	}
}

// A run that is interrupted after the exchange starts LXD, and does not wait for it.
func TestCycleInterruptedStart(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	service := &fakeService{}
	cycle, _ := fakeCycle(t, service, time.Hour)
	err := cycle.stop(ctx)
	if err != nil || !cycle.noted(t) {
		t.Fatalf("%v, noted %v", err, cycle.noted(t))
	}

	interrupt()
	began := time.Now()
	result, err := cycle.start(ctx, nil)
	if err != nil || !result.started || result.ready || len(result.warnings) != 1 || !strings.Contains(result.warnings[0], "was not waited for") {
		t.Errorf("%+v, %v", result, err)
	}

	if cycle.noted(t) || !slices.Contains(service.calls, "start") || time.Since(began) > time.Minute {
		t.Errorf("noted %v, calls %q, after %s", cycle.noted(t), service.calls, time.Since(began))
	}
}

// One that cannot start LXD in time leaves word of it.
func TestCycleStartTakesTooLong(t *testing.T) {
	service := &fakeService{hangs: "start"}
	cycle, _ := fakeCycle(t, service, 100*time.Millisecond)
	err := cycle.stop(t.Context())
	if err == nil {
		_, err = cycle.start(t.Context(), nil)
	}

	if err == nil || !cycle.noted(t) {
		t.Errorf("%v, noted %v", err, cycle.noted(t))
	}

	if text := CutOff(cycle.dir.path); !strings.Contains(text, "had stopped LXD") || !strings.Contains(text, "`lxd-recover resume`") {
		t.Errorf("it is said: %q", text)
	}
}

// While the machine starts nobody waits for LXD, which waits for us.
func TestCycleLater(t *testing.T) {
	service := &fakeService{}
	cycle, _ := fakeCycle(t, service, time.Hour)
	cycle.later = true
	err := cycle.stop(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	result, err := cycle.start(t.Context(), nil)
	if err != nil || !result.started || result.ready || len(result.warnings) != 0 || cycle.noted(t) {
		t.Errorf("%+v, %v, noted %v", result, err, cycle.noted(t))
	}

	if slices.Contains(service.calls, "start") || !slices.Contains(service.calls, "start later") {
		t.Errorf("calls %q", service.calls)
	}
}

// What a run that was cut off has left is told as long as nobody is at work on it.
func TestCutOff(t *testing.T) {
	for name, says := range map[string]string{stoppedName: "had stopped LXD", "database.swap.yaml": "at the exchange", stagingName: "has left"} {
		d := directory{path: t.TempDir()}
		t.Setenv("LXD_DIR", d.path)
		if text := CutOff(""); text != "" {
			t.Errorf("nothing is left, and it is said: %q", text)
		}

		var err error
		switch name {
		case stoppedName:
			err = d.writeStopped(Stopped{Purpose: purposeImport})
		case stagingName:
			err = os.Mkdir(d.join(name), 0o700)
		default:
			err = os.WriteFile(d.join(name), []byte("format: 1\npurpose: import\nlive: database\nstaged: database.import\nkeep: database.before\n"), 0o600)
		}

		if err != nil {
			t.Fatal(err)
		}

		for _, path := range []string{"", d.path} {
			if text := CutOff(path); !strings.Contains(text, says) || !strings.Contains(text, d.path) || !strings.Contains(text, "`lxd-recover resume`") {
				t.Errorf("%s: it is said: %q", name, text)
			}
		}

		unlock, err := d.lock(unix.LOCK_EX)
		if err != nil {
			t.Fatal(err)
		}

		if text := CutOff(""); text != "" {
			t.Errorf("%s: somebody is at work, and it is said: %q", name, text)
		}

		unlock()
	}
}

// When the machine starts, what was cut off is finished; what belongs to a run over the whole cluster that is armed, or to one at work, is left alone.
func TestResumeAtBoot(t *testing.T) {
	lxd := lxdDirectory(t)
	d := directory{path: lxd}
	t.Setenv("LXD_DIR", lxd)
	told := 0
	boot := func() error {
		return ResumeAtBoot(t.Context(), ResumeOptions{Timeout: time.Minute}, func(dir string, r *ResumeReport) {
			told++
			if dir != lxd || !r.Found || len(r.Done) != 1 {
				t.Errorf("%s: %+v", dir, r)
			}
		})
	}

	err := errors.Join(boot(), os.Mkdir(d.join(stagingName), 0o700), d.writeOpenRun(&OpenRun{Run: "4f2a", Phase: PhaseArmed}))
	if err != nil || told != 0 {
		t.Fatalf("nothing is left: %v, told %d times", err, told)
	}

	err = boot()
	wantRefused(t, err, "open-run", "4f2a")
	if told != 0 || !exists(d.join(stagingName)) || !strings.Contains(CutOff(""), "`lxd-recover cluster recover resume`") {
		t.Errorf("a run over the whole cluster: %v, told %d times, %s", err, told, CutOff(""))
	}

	err = os.Remove(d.join(openRunName))
	if err != nil {
		t.Fatal(err)
	}

	unlock, err := d.lock(unix.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}

	err = boot()
	unlock()
	if err != nil || told != 0 || !exists(d.join(stagingName)) {
		t.Errorf("a run at work: %v, told %d times", err, told)
	}

	err = boot()
	if err != nil || told != 1 || exists(d.join(stagingName)) {
		t.Errorf("a run that was cut off: %v, told %d times", err, told)
	}

	err = os.WriteFile(d.join(stoppedName), []byte("format: 1000\n"), 0o600)
	if err == nil {
		err = boot()
	}

	if err == nil || !strings.Contains(err.Error(), "its format is 1000") || !exists(d.join(stoppedName)) {
		t.Errorf("what cannot be resumed: %v", err)
	}
}

// lxdDirectory makes one that looks like that of an LXD which is down.
func lxdDirectory(t *testing.T) string {
	t.Helper()
	lxd := t.TempDir()
	err := os.MkdirAll(filepath.Join(lxd, databaseName, globalName), 0o700)
	if err != nil {
		t.Fatal(err)
	}

	return lxd
}
