// SPDX-License-Identifier: AGPL-3.0-only

package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fakeService stops when its process has ended, and not before.
type fakeService struct {
	Service
	main    atomic.Int64
	unknown error // why its process is not known
	stop    func(ctx context.Context) error
	stopped int
	forgot  int

	starting bool // somebody starts it, and it has no process yet
}

func (f *fakeService) forget(context.Context) error { //nolint:unparam // of the interface
	f.forgot++
	return f.unknown
}

func (f *fakeService) mains(context.Context) ([]int, error) {
	return []int{int(f.main.Load())}, f.unknown
}

func (f *fakeService) Stop(ctx context.Context) error {
	f.stopped++
	return f.stop(ctx)
}

func (f *fakeService) Activity(context.Context) (Activity, error) {
	return map[bool]Activity{true: Down, false: Up}[f.main.Load() == 0 && !f.starting], nil
}

// fakeDaemon starts a process that has the database open, and does not heed SIGTERM. Two children have it open as well.
func fakeDaemon(t *testing.T, lxdDir string) (daemon *exec.Cmd, gone chan struct{}) {
	t.Helper()
	script := "trap '' TERM; sleep 1000 & sleep 1000 & echo; wait"
	file, err := os.OpenFile(filepath.Join(lxdDir, "database", "local.db"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}

	defer file.Close()
	daemon = exec.Command("sh", "-c", script)
	daemon.ExtraFiles = []*os.File{file}
	daemon.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	lines, err := daemon.StdoutPipe()
	if err == nil {
		err = daemon.Start()
	}

	if err != nil {
		t.Fatal(err)
	}

	_, err = lines.Read(make([]byte, 16)) // the trap is set
	if err != nil {
		t.Fatal(err)
	}

	gone = make(chan struct{})
	go func() {
		_, _ = daemon.Process.Wait()
		close(gone)
	}()
	t.Cleanup(func() {
		_ = unix.Kill(-daemon.Process.Pid, unix.SIGKILL)
		<-gone
	})
	return daemon, gone
}

func fakeLXDDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	err := errors.Join(os.Mkdir(filepath.Join(dir, "database"), 0o700), os.WriteFile(filepath.Join(dir, "database", "local.db"), []byte("x"), 0o600))
	if err != nil {
		t.Fatal(err)
	}

	return dir
}

// until waits for one of two ends.
func until(ctx context.Context, gone chan struct{}) error {
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// One that does not heed SIGTERM is killed, stopped or not, and nothing else that has the database open.
func TestStopFirmly(t *testing.T) {
	for _, frozen := range []bool{false, true} {
		t.Run(fmt.Sprintf("frozen %v", frozen), func(t *testing.T) {
			dir := fakeLXDDir(t)
			daemon, gone := fakeDaemon(t, dir)
			pid := daemon.Process.Pid
			service := &fakeService{}
			service.main.Store(int64(pid))
			service.stop = func(ctx context.Context) error {
				err := errors.Join(unix.Kill(pid, unix.SIGTERM), until(ctx, gone))
				service.main.Store(0)
				return errors.Join(err, errors.New("it has failed"))
			}
			if frozen {
				err := unix.Kill(pid, unix.SIGSTOP)
				if err != nil {
					t.Fatal(err)
				}
			}

			before, err := Holders(filepath.Join(dir, "database"))
			if err != nil || len(before) != 3 {
				t.Fatalf("holders %v, %v", before, err)
			}

			began := time.Now()
			killed, err := StopFirmly(t.Context(), dir, service, 300*time.Millisecond)
			if !killed || err != nil || time.Since(began) < 300*time.Millisecond {
				t.Errorf("killed %v after %s: %v", killed, time.Since(began), err)
			}

			after, err := Holders(filepath.Join(dir, "database"))
			if err != nil || len(after) != 2 || service.stopped != 1 || service.forgot != 1 {
				t.Errorf("holders %v, %v; %d stops", after, err, service.stopped)
			}
		})
	}
}

// One that heeds SIGTERM is not killed, and neither is what somebody else has running.
func TestStopFirmlyGently(t *testing.T) {
	dir := fakeLXDDir(t)
	_, gone := fakeDaemon(t, dir)
	service := &fakeService{stop: func(context.Context) error { return nil }}
	service.main.Store(1)
	killed, err := StopFirmly(t.Context(), dir, service, 0)
	select {
	case <-gone:
		t.Error("the process of somebody else was killed")
	default:
	}

	if killed || err != nil || service.forgot != 0 {
		t.Errorf("killed %v, %v", killed, err)
	}
}

// One that something starts again is stopped again.
func TestStopFirmlyStartedAgain(t *testing.T) {
	dir := fakeLXDDir(t)
	first, gone := fakeDaemon(t, dir)
	second, secondGone := fakeDaemon(t, dir)
	service := &fakeService{}
	service.main.Store(int64(first.Process.Pid))
	service.stop = func(ctx context.Context) error {
		if service.starting {
			gone = secondGone
			service.main.Store(int64(second.Process.Pid))
		}

		err := until(ctx, gone)
		service.main.Store(0)
		service.starting = !service.starting
		if err != nil || !service.starting {
			return err
		}

		return fmt.Errorf("stop it: %w", errCanceled)
	}
	killed, err := StopFirmly(t.Context(), dir, service, 100*time.Millisecond)
	if !killed || err != nil || service.stopped != 2 || service.main.Load() != 0 {
		t.Errorf("killed %v, %v, %d stops", killed, err, service.stopped)
	}
}

// A stop that is refused is told soon, and kills nothing.
func TestStopFirmlyRefused(t *testing.T) {
	dir := fakeLXDDir(t)
	daemon, _ := fakeDaemon(t, dir)
	service := &fakeService{stop: func(context.Context) error { return errors.New("access denied") }}
	service.main.Store(int64(daemon.Process.Pid))
	killed, err := StopFirmly(t.Context(), dir, service, time.Minute)
	if killed || err == nil || err.Error() != "access denied" || service.stopped != stopTries {
		t.Errorf("killed %v, %v, %d stops", killed, err, service.stopped)
	}
}

// Nothing is killed where it is not known which process is LXD.
func TestStopFirmlyUnknown(t *testing.T) {
	dir := fakeLXDDir(t)
	_, gone := fakeDaemon(t, dir)
	service := &fakeService{unknown: errors.New("systemd is silent"), stop: func(ctx context.Context) error { return until(ctx, gone) }}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()

	killed, err := StopFirmly(ctx, dir, service, 0)
	if killed || err == nil || !strings.Contains(err.Error(), "systemd is silent") {
		t.Errorf("killed %v, %v", killed, err)
	}
}

// What cannot be ended in time is named, with what it does.
func TestStopFirmlyTimeEnds(t *testing.T) {
	dir := fakeLXDDir(t)
	daemon, _ := fakeDaemon(t, dir)
	err := unix.Kill(daemon.Process.Pid, unix.SIGSTOP)
	if err != nil {
		t.Fatal(err)
	}

	service := &fakeService{stop: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 500*time.Millisecond, errors.New("enough"))
	defer cancel()

	killed, err := StopFirmly(ctx, dir, service, 0)
	want := fmt.Sprintf("sh (pid %d, has local.db open), in state T (stopped)", daemon.Process.Pid)
	if killed || !errors.Is(err, ErrStillRunning) || !strings.Contains(err.Error(), want) || !strings.HasSuffix(err.Error(), ": enough") {
		t.Errorf("killed %v, %v", killed, err)
	}
}
