// SPDX-License-Identifier: AGPL-3.0-only

package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// systemdSocket is systemd's own D-Bus socket; where it is missing, systemd does not run here. Tests put another one there.
var systemdSocket = "/run/systemd/private"

// systemd is a Service: a unit and the units that can start it.
type systemd struct {
	unit     string
	triggers []string // sockets, timers and paths that start the unit
}

// systemdUnit returns a unit with what triggers it.
func systemdUnit(ctx context.Context, unit string) (*systemd, error) {
	var service *systemd
	err := withSystemd(ctx, func(ctx context.Context, conn *dbus.Conn) (err error) {
		service, err = newSystemd(ctx, conn, unit)
		return err
	})

	return service, err
}

func newSystemd(ctx context.Context, conn *dbus.Conn, unit string) (*systemd, error) {
	triggers, err := stringsProperty(ctx, conn, unit, "TriggeredBy")
	if err != nil {
		return nil, fmt.Errorf("ask systemd for unit %s: %w", unit, err)
	}

	return &systemd{unit: unit, triggers: triggers}, nil
}

// findSystemd returns the systemd unit that runs the LXD behind the socket, or nil, and tells whether a socket unit listens
// there in LXD's place. A unit is LXD's when one of its socket units listens on LXD's socket, or when its main process is one
// of the processes that hold the database.
func findSystemd(ctx context.Context, socket string, holders []Process) (Service, bool, error) {
	_, err := os.Stat(systemdSocket)
	if errors.Is(err, os.ErrNotExist) {
		return nil, false, nil
	}

	var service *systemd
	var owns bool
	err = withSystemd(ctx, func(ctx context.Context, conn *dbus.Conn) error {
		service, owns, err = systemdOf(ctx, conn, socket, holders)
		return err
	})

	if err != nil || service == nil { // a nil *systemd is no nil Service
		return nil, owns, err
	}

	return service, owns, nil
}

// systemdOf is findSystemd on a connection.
func systemdOf(ctx context.Context, conn *dbus.Conn, socket string, holders []Process) (*systemd, bool, error) {
	unit, owns, err := unitOfSocket(ctx, conn, socket)
	if err != nil {
		return nil, false, fmt.Errorf("ask systemd for its socket units: %w", err)
	}

	if unit == "" {
		unit, err = unitOfProcess(ctx, conn, holders)
	}

	if err != nil || unit == "" {
		return nil, owns, err
	}

	service, err := newSystemd(ctx, conn, unit)
	return service, owns, err
}

// unitOfSocket returns the unit that is started by connections to a socket, and whether the socket unit listens now.
func unitOfSocket(ctx context.Context, conn *dbus.Conn, socket string) (string, bool, error) {
	units, err := inTime(ctx, func(ctx context.Context) ([]dbus.UnitStatus, error) {
		return conn.ListUnitsByPatternsContext(ctx, nil, []string{"*.socket"})
	})
	if err != nil {
		return "", false, err
	}

	for _, u := range units {
		p, err := inTime(ctx, func(ctx context.Context) (*dbus.Property, error) {
			return conn.GetUnitTypePropertyContext(ctx, u.Name, "Socket", "Listen")
		})
		if err != nil {
			return "", false, err
		}

		listen, _ := p.Value.Value().([][]any)
		listens := slices.ContainsFunc(listen, func(pair []any) bool { return len(pair) == 2 && pair[1] == socket })
		if !listens {
			continue
		}

		started, err := stringsProperty(ctx, conn, u.Name, "Triggers")
		if err != nil || len(started) == 0 {
			return "", false, err
		}

		return started[0], up(u.ActiveState), nil
	}

	return "", false, nil
}

// unitOfProcess returns the service whose main process is among the holders; empty for none. That a holder merely belongs to a unit
// says nothing: it may be the administrator's session, or a test's runner. A process of no unit, or of one that is gone by now, is
// an error of systemd's and no reason to stop; a connection that breaks is one.
func unitOfProcess(ctx context.Context, conn *dbus.Conn, holders []Process) (string, error) {
	for _, h := range holders {
		unit, err := inTime(ctx, func(ctx context.Context) (string, error) { return conn.GetUnitNameByPID(ctx, uint32(h.PID)) })
		if broken(err) {
			return "", fmt.Errorf("ask systemd for the unit of %s: %w", h, err)
		}

		if err != nil || !strings.HasSuffix(unit, ".service") {
			continue
		}

		p, err := inTime(ctx, func(ctx context.Context) (*dbus.Property, error) {
			return conn.GetServicePropertyContext(ctx, unit, "MainPID")
		})
		if broken(err) {
			return "", fmt.Errorf("ask systemd for the main process of %s: %w", unit, err)
		}

		if err == nil && p.Value.Value() == uint32(h.PID) {
			return unit, nil
		}
	}

	return "", nil
}

// Name implements Service.
func (s *systemd) Name() string { return "systemd unit " + s.unit }

// ByHand implements Service. What would wake the unit is stopped first; without the option, units that stop with it, such as the one that
// shuts down all instances, would be stopped as well.
func (s *systemd) ByHand() (stop, start string) {
	units := strings.Join(append(slices.Clone(s.triggers), s.unit), " ")
	return "systemctl stop --job-mode=ignore-dependencies " + units, "systemctl start " + units
}

// snap tells whether the unit is one of snapd's, which must not be stopped behind its back.
func (s *systemd) snap() bool { return strings.HasPrefix(s.unit, "snap.") }

// Stoppable implements Service.
func (s *systemd) Stoppable() error {
	if s.snap() { // findSnapd would have found it, had it been the directory of that snap
		return fmt.Errorf("%s belongs to a snap, and this is not that snap's directory: stop it with `snap stop` and run this command again", s.unit)
	}

	return nil
}

// Activity implements Service.
func (s *systemd) Activity(ctx context.Context) (Activity, error) {
	prior, err := s.PriorState(ctx)
	if err != nil {
		return Down, err
	}

	return prior.activity(), nil
}

// PriorState implements Service.
func (s *systemd) PriorState(ctx context.Context) (*PriorState, error) {
	prior := &PriorState{Kind: kindSystemd, Name: s.unit}
	err := withSystemd(ctx, func(ctx context.Context, conn *dbus.Conn) error {
		names, err := s.active(ctx, conn)
		prior.Up, prior.Daemon = names, slices.Contains(names, s.unit)
		return err
	})

	return prior, err
}

// Hold implements Service: a package has no refreshes that could be held.
func (s *systemd) Hold(context.Context, *PriorState) error { return nil }

// Release implements Service.
func (s *systemd) Release(context.Context, *PriorState) error { return nil }

// Stop implements Service: first what could start the unit again, then the unit. Only these: what requires them is left as it
// is, above all Debian's lxd-containers.service, which requires the socket and shuts down all instances when it is stopped.
func (s *systemd) Stop(ctx context.Context) error {
	return withSystemd(ctx, func(ctx context.Context, conn *dbus.Conn) error {
		names, err := s.active(ctx, conn)
		if err != nil {
			return err
		}

		for _, name := range names {
			result := make(chan string, 1)
			_, err = inTime(ctx, func(ctx context.Context) (int, error) {
				return conn.StopUnitContext(ctx, name, "ignore-dependencies", result)
			})
			if err != nil {
				return fmt.Errorf("stop %s: %w", name, err)
			}

			err = wait(ctx, conn, result)
			if err != nil {
				return fmt.Errorf("stop %s: %w; see `systemctl status %[1]s`", name, err)
			}
		}

		return nil
	})
}

// Start implements Service. It does not wait for the unit's own start-up, which for LXD can mean waiting for other members.
// Failures from before do not count, neither for Failed nor for systemd's limit on starts: a unit is left failed by stopping
// it while its ExecStartPost still waits.
func (s *systemd) Start(ctx context.Context, prior *PriorState) error {
	return withSystemd(ctx, func(ctx context.Context, conn *dbus.Conn) error {
		err := s.waitStopped(ctx, conn)
		if err == nil {
			err = s.start(ctx, conn, prior, true)
		}

		return err
	})
}

// StartLater implements Service. While the machine starts, the units may have to wait for whoever calls this.
func (s *systemd) StartLater(ctx context.Context, prior *PriorState) error {
	return withSystemd(ctx, func(ctx context.Context, conn *dbus.Conn) error { return s.start(ctx, conn, prior, false) })
}

// start begins to start what was up before, and waits for what is up at once, if it is to.
func (s *systemd) start(ctx context.Context, conn *dbus.Conn, prior *PriorState, waits bool) error {
	err := checkOpen(prior.Up)
	if err == nil {
		err = resetFailed(ctx, conn, prior.Up)
	}

	if err != nil {
		return err
	}

	for _, name := range prior.Up {
		var result chan string
		if waits && name != s.unit { // a socket is up at once
			result = make(chan string, 1)
		}

		_, err := inTime(ctx, func(ctx context.Context) (int, error) { return conn.StartUnitContext(ctx, name, "replace", result) })
		if err != nil {
			return fmt.Errorf("start %s: %w", name, err)
		}

		if result == nil {
			continue
		}

		err = wait(ctx, conn, result)
		if err != nil {
			return fmt.Errorf("start %s: %w; see `systemctl status %[1]s`", name, err)
		}
	}

	for _, name := range prior.Companions { // nothing happens to those that are still up; the others wait for LXD
		_, err := inTime(ctx, func(ctx context.Context) (int, error) { return conn.StartUnitContext(ctx, name, "replace", nil) })
		if err != nil {
			return fmt.Errorf("start %s: %w", name, err)
		}
	}

	return nil
}

// resetFailed has systemd forget failures of units, and how often they were started of late.
func resetFailed(ctx context.Context, conn *dbus.Conn, units []string) error {
	for _, name := range units {
		_, err := inTime(ctx, func(ctx context.Context) (any, error) { return nil, conn.ResetFailedUnitContext(ctx, name) })
		if broken(err) { // any other error only means that there is nothing to forget
			return fmt.Errorf("forget failures of %s: %w", name, err)
		}
	}

	return nil
}

// waitStopped waits until a unit that is being stopped has stopped: until then systemd refuses to start its socket.
func (s *systemd) waitStopped(ctx context.Context, conn *dbus.Conn) error {
	for {
		state, err := stringProperty(ctx, conn, s.unit, "ActiveState")
		if err != nil || state != "deactivating" {
			return err
		}

		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is still being stopped: %w", s.unit, ctx.Err())
		case <-time.After(stopPause):
		}
	}
}

// stopPause is how often waitStopped looks.
const stopPause = 50 * time.Millisecond

// errCanceled says that a job of ours has given way to another one, such as that of somebody who starts what we stop.
var errCanceled = errors.New("another job took its place")

// wait waits for the end of a job that starts or stops a unit. Where the connection breaks meanwhile, nobody would tell.
func wait(ctx context.Context, conn *dbus.Conn, result <-chan string) error {
	for {
		select {
		case r := <-result:
			switch r {
			case "done":
				return nil
			case "canceled":
				return fmt.Errorf("systemd says %q: %w", r, errCanceled)
			}

			return fmt.Errorf("systemd says %q", r)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollInterval):
			if !conn.Connected() {
				return godbus.ErrClosed
			}
		}
	}
}

// Failed implements Service. A unit that waits for LXD in ExecStartPost, as Debian's does for ten minutes, is still starting
// when LXD has long ended.
func (s *systemd) Failed(ctx context.Context) error {
	return withSystemd(ctx, func(ctx context.Context, conn *dbus.Conn) error {
		properties, err := inTime(ctx, func(ctx context.Context) (map[string]any, error) {
			return conn.GetAllPropertiesContext(ctx, s.unit)
		})
		if err != nil {
			return err
		}

		why := ""
		ended, _ := properties["ExecMainCode"].(int32) // 0 as long as the main process runs
		switch {
		case properties["ActiveState"] == "failed":
			why = fmt.Sprintf("result %q", properties["Result"])
		case properties["SubState"] == "start-post" && ended != 0:
			why = fmt.Sprintf("its main process ended with status %d", properties["ExecMainStatus"])
		default:
			return nil
		}

		return fmt.Errorf("%s failed to start (%s); see `journalctl -u %s`", s.Name(), why, s.unit)
	})
}

// active returns those of the unit and its triggers that are up, the triggers first.
func (s *systemd) active(ctx context.Context, conn *dbus.Conn) ([]string, error) {
	var names []string
	for _, name := range append(slices.Clone(s.triggers), s.unit) {
		state, err := stringProperty(ctx, conn, name, "ActiveState")
		if err != nil {
			return nil, err
		}

		if up(state) {
			names = append(names, name)
		}
	}

	return names, nil
}

// up tells whether a unit in that state runs, listens, or is about to.
func up(activeState string) bool { return activeState != "inactive" && activeState != "failed" }

// withSystemd does something through a connection to systemd, and does it again through another one while that breaks: it must be
// safe to do twice. Reading is; and so is to start or stop a unit, as systemd makes one job of two.
func withSystemd(ctx context.Context, do func(ctx context.Context, conn *dbus.Conn) error) error {
	return again(ctx, daemonTries, func(ctx context.Context) error {
		open, hangUp := context.WithCancel(ctx)
		defer hangUp()

		conn, err := inTime(ctx, func(answer context.Context) (*dbus.Conn, error) {
			stop := context.AfterFunc(answer, hangUp)
			defer stop()

			conn, err := dbus.NewConnection(func() (*godbus.Conn, error) { return authenticated(open) })
			if err == nil && !conn.Connected() { // it does not notice that its first question, for signals, had no answer
				conn.Close()
				return nil, godbus.ErrClosed
			}

			return conn, err
		})
		if err != nil {
			return fmt.Errorf("connect to systemd: %w", err)
		}

		defer conn.Close()

		return do(ctx, conn)
	})
}

// authenticated returns a connection to systemd's own socket, on which nobody says hello. It ends with ctx.
func authenticated(ctx context.Context) (*godbus.Conn, error) {
	conn, err := godbus.Dial("unix:path="+systemdSocket, godbus.WithContext(ctx))
	if err != nil {
		return nil, err
	}

	err = conn.Auth([]godbus.Auth{godbus.AuthExternal(strconv.Itoa(os.Getuid()))})
	if err != nil {
		_ = conn.Close()
		return nil, err
	}

	return conn, nil
}

func stringProperty(ctx context.Context, conn *dbus.Conn, unit string, name string) (string, error) {
	p, err := inTime(ctx, func(ctx context.Context) (*dbus.Property, error) { return conn.GetUnitPropertyContext(ctx, unit, name) })
	if err != nil {
		return "", err
	}

	value, _ := p.Value.Value().(string)
	return value, nil
}

func stringsProperty(ctx context.Context, conn *dbus.Conn, unit string, name string) ([]string, error) {
	p, err := inTime(ctx, func(ctx context.Context) (*dbus.Property, error) { return conn.GetUnitPropertyContext(ctx, unit, name) })
	if err != nil {
		return nil, err
	}

	value, _ := p.Value.Value().([]string)
	return value, nil
}
