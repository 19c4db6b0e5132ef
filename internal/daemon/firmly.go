// SPDX-License-Identifier: AGPL-3.0-only

package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

// firmTime bounds StopFirmly beyond patience, where its context does not.
const firmTime = 5 * time.Minute

// stopTries is how often a stop is begun that ends with an error while LXD goes on running.
const stopTries = 3

// killable is a Service that knows LXD's process.
type killable interface {
	// mains are the process ids of the service: LXD is one of them, or a child. 0 is none.
	mains(ctx context.Context) ([]int, error)

	// forget has the service's failure forgotten, as to be killed is one.
	forget(ctx context.Context) error
}

// StopFirmly stops the service; a daemon that still runs after patience, as one without a quorum may, is killed: its process
// only, inside the stop job; instances go on running. killed tells whether that was needed. Should something start LXD again meanwhile, it is
// stopped again. ctx bounds that.
func StopFirmly(ctx context.Context, lxdDir string, service Service, patience time.Duration) (killed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience+firmTime)
	defer cancel()

	f := &firmStop{database: filepath.Join(lxdDir, "database"), service: service, patience: patience}
	for tries := 1; ; {
		err = f.stop(ctx)
		still, lookErr := f.own(ctx)
		switch {
		case ctx.Err() != nil:
			return f.killed, f.timeEnded(ctx, err)
		case lookErr != nil:
			return f.killed, errors.Join(err, lookErr)
		case errors.Is(err, errCanceled): // somebody is just starting it again
		case len(still) == 0:
			return f.killed, f.isDown(ctx, err)
		case err == nil: // somebody has started it again
		case tries == stopTries:
			return f.killed, err
		default:
			tries++
		}

		_ = pause(ctx)
	}
}

// firmStop is a StopFirmly under way.
type firmStop struct {
	database string
	service  Service
	patience time.Duration // zero once it has ended
	killed   bool
}

// stop has the service stopped once, and kills LXD in the course of it.
func (f *firmStop) stop(ctx context.Context) error {
	stopped := make(chan error, 1)
	go func() { stopped <- f.service.Stop(ctx) }()
	patience := time.NewTimer(f.patience)
	defer patience.Stop()

	select {
	case err := <-stopped:
		return err
	case <-patience.C:
		f.patience = 0
	}

	for {
		err := f.kill(ctx)
		if err != nil && ctx.Err() == nil {
			<-stopped // which goes on for as long as ctx allows
			return err
		}

		select {
		case err := <-stopped:
			return err
		case <-time.After(pollInterval):
		}
	}
}

// kill sends SIGKILL to LXD's own processes that use the database.
func (f *firmStop) kill(ctx context.Context) error {
	processes, err := f.own(ctx)
	for _, p := range processes {
		sent, sendErr := signalHolder(p, f.database, unix.SIGKILL)
		f.killed = f.killed || sent
		err = errors.Join(err, sendErr)
	}

	return err
}

// own are LXD's own processes that use the database.
func (f *firmStop) own(ctx context.Context) ([]Process, error) {
	holders, err := Holders(f.database)
	service, ok := f.service.(killable)
	if err != nil || len(holders) == 0 || !ok {
		return nil, err
	}

	mains, err := service.mains(ctx)
	if err != nil {
		return nil, product.Errorf("find LXD's process: %w", err)
	}

	return ownProcesses(holders, mains), nil
}

// isDown drops the error of a stop that has come to its end all the same, as where LXD was killed in the middle of it. What we have killed is
// not to look as if it had failed.
func (f *firmStop) isDown(ctx context.Context, err error) error {
	if err != nil {
		activity, lookErr := f.service.Activity(ctx)
		if lookErr != nil || activity != Down {
			return errors.Join(err, lookErr)
		}
	}

	service, ok := f.service.(killable)
	if !f.killed || !ok {
		return nil
	}

	return service.forget(ctx)
}

// timeEnded says what has kept LXD from being stopped in time. An err that is more than the end of the time is told.
func (f *firmStop) timeEnded(ctx context.Context, err error) error {
	if err == nil || errors.Is(err, ctx.Err()) {
		err = context.Cause(ctx)
	}

	holders, lookErr := Writers(f.database)
	if lookErr != nil || len(holders) == 0 {
		return err
	}

	names := make([]string, len(holders))
	for i, p := range holders {
		names[i] = fmt.Sprintf("%s, in state %s", p, state(p.PID))
	}

	text := strings.Join(names, "; ")
	if f.killed {
		text += product.Text("; LXD was sent SIGKILL, which a process in state D heeds only when what it waits for has come, such as a disk or a file server")
	}

	return fmt.Errorf("%w: %s: %w", ErrStillRunning, text, err)
}

// mains implements killable.
func (s *systemd) mains(ctx context.Context) ([]int, error) {
	var pid uint32
	err := withSystemd(ctx, func(ctx context.Context, conn *dbus.Conn) error {
		p, err := inTime(ctx, func(ctx context.Context) (*dbus.Property, error) {
			return conn.GetServicePropertyContext(ctx, s.unit, "MainPID")
		})
		if err != nil {
			return fmt.Errorf("ask systemd for the main process of %s: %w", s.unit, err)
		}

		pid, _ = p.Value.Value().(uint32)
		return nil
	})

	return []int{int(pid)}, err
}

// forget implements killable.
func (s *systemd) forget(ctx context.Context) error {
	return withSystemd(ctx, func(ctx context.Context, conn *dbus.Conn) error { return resetFailed(ctx, conn, []string{s.unit}) })
}

// forget implements killable.
func (s *snapd) forget(ctx context.Context) error {
	return (&systemd{unit: s.daemonUnit()}).forget(ctx)
}

// mains implements killable. The unit's process is a shell that waits for LXD, and that one is in no cgroup of the unit's: the snap moves itself
// out of it. The snap's note of LXD's process is all that is left of it where the shell was killed.
func (s *snapd) mains(ctx context.Context) ([]int, error) {
	pids, err := (&systemd{unit: s.daemonUnit()}).mains(ctx)
	if err != nil {
		return nil, err
	}

	text, err := os.ReadFile(filepath.Join(snapData, s.snap, "common/lxd.pid"))
	if err == nil {
		pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		pids = append(pids, pid)
	}

	return pids, nil
}

// ownProcesses are those of the holders that are one of the main processes, or the first holder down a line of children of one. So a child of
// LXD's that it has left a file open in is none.
func ownProcesses(holders []Process, mains []int) []Process {
	mains = slices.DeleteFunc(slices.Clone(mains), func(pid int) bool { return pid <= 1 })
	var own []Process
	for _, h := range holders {
		for pid, first := h.PID, true; pid > 1; pid, first = parent(pid), false {
			if !first && slices.ContainsFunc(holders, func(other Process) bool { return other.PID == pid }) {
				break
			}

			if slices.Contains(mains, pid) {
				own = append(own, h)
				break
			}
		}
	}

	return own
}

// signalHolder sends a signal to a process that uses the database, and to no other one that has got its number by now. It tells whether it did.
func signalHolder(p Process, database string, sig syscall.Signal) (sent bool, err error) {
	process, err := os.FindProcess(p.PID) // by a pidfd, where the kernel has them
	if err != nil {
		return false, fmt.Errorf("signal %s: %w", p, err)
	}

	defer func() { _ = process.Release() }()
	files, err := listFiles(database)
	if err != nil {
		return false, err
	}

	_, still := holds(p.PID, files)
	if !still {
		return false, nil
	}

	err = process.Signal(sig)
	if errors.Is(err, os.ErrProcessDone) {
		return false, nil
	}

	if err != nil {
		return false, fmt.Errorf("signal %s: %w", p, err)
	}

	return true, nil
}

// parent is a process's parent; 0 where the process is gone.
func parent(pid int) int {
	number, _ := strconv.Atoi(statusField(pid, "PPid"))
	return number
}

// state is what a process does, in the kernel's words, such as "D (disk sleep)".
func state(pid int) string { return statusField(pid, "State") }

// statusField is one of the fields of a process that the kernel tells; empty where the process is gone.
func statusField(pid int, name string) string {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return ""
	}

	for line := range strings.Lines(string(text)) {
		value, ok := strings.CutPrefix(line, name+":")
		if ok {
			return strings.TrimSpace(value)
		}
	}

	return ""
}
