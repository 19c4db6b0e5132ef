package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
)

// systemdSocket is systemd's own D-Bus socket; where it is missing, systemd does not run here.
const systemdSocket = "/run/systemd/private"

// systemd is a Service: a unit and the units that can start it.
type systemd struct {
	unit     string
	triggers []string // sockets, timers and paths that start the unit
}

// systemdUnit returns a unit with what triggers it.
func systemdUnit(ctx context.Context, unit string) (*systemd, error) {
	conn, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to systemd: %w", err)
	}

	defer conn.Close()

	return newSystemd(ctx, conn, unit)
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

	conn, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		return nil, false, fmt.Errorf("connect to systemd: %w", err)
	}

	defer conn.Close()

	unit, owns, err := unitOfSocket(ctx, conn, socket)
	if err != nil {
		return nil, false, fmt.Errorf("ask systemd for its socket units: %w", err)
	}

	if unit == "" {
		unit = unitOfProcess(ctx, conn, holders)
	}

	if unit == "" {
		return nil, owns, nil
	}

	service, err := newSystemd(ctx, conn, unit)
	if err != nil {
		return nil, false, err
	}

	return service, owns, nil
}

// unitOfSocket returns the unit that is started by connections to a socket, and whether the socket unit listens now.
func unitOfSocket(ctx context.Context, conn *dbus.Conn, socket string) (string, bool, error) {
	units, err := conn.ListUnitsByPatternsContext(ctx, nil, []string{"*.socket"})
	if err != nil {
		return "", false, err
	}

	for _, u := range units {
		p, err := conn.GetUnitTypePropertyContext(ctx, u.Name, "Socket", "Listen")
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

// unitOfProcess returns the service whose main process is among the holders. That a holder merely belongs to a unit says
// nothing: it may be the administrator's session, or a test's runner.
func unitOfProcess(ctx context.Context, conn *dbus.Conn, holders []Process) string {
	for _, h := range holders {
		unit, err := conn.GetUnitNameByPID(ctx, uint32(h.PID))
		if err != nil || !strings.HasSuffix(unit, ".service") {
			continue
		}

		p, err := conn.GetServicePropertyContext(ctx, unit, "MainPID")
		if err == nil && p.Value.Value() == uint32(h.PID) {
			return unit
		}
	}

	return ""
}

// Name implements Service.
func (s *systemd) Name() string { return "systemd unit " + s.unit }

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
	before, err := s.Before(ctx)
	if err != nil {
		return Down, err
	}

	return before.activity(), nil
}

// Before implements Service.
func (s *systemd) Before(ctx context.Context) (*Before, error) {
	before := &Before{Kind: kindSystemd, Name: s.unit}
	err := s.with(ctx, func(conn *dbus.Conn) error {
		names, err := s.active(ctx, conn)
		before.Up, before.Daemon = names, slices.Contains(names, s.unit)
		return err
	})

	return before, err
}

// Hold implements Service: a package has no refreshes that could be held.
func (s *systemd) Hold(context.Context, *Before) error { return nil }

// Release implements Service.
func (s *systemd) Release(context.Context, *Before) error { return nil }

// Stop implements Service: first what could start the unit again, then the unit. Only these: what requires them is left as it
// is, above all Debian's lxd-containers.service, which requires the socket and shuts down all instances when it is stopped.
func (s *systemd) Stop(ctx context.Context) error {
	return s.with(ctx, func(conn *dbus.Conn) error {
		names, err := s.active(ctx, conn)
		if err != nil {
			return err
		}

		for _, name := range names {
			result := make(chan string, 1)
			_, err = conn.StopUnitContext(ctx, name, "ignore-dependencies", result)
			if err != nil {
				return fmt.Errorf("stop %s: %w", name, err)
			}

			err = wait(ctx, "stop", name, result)
			if err != nil {
				return err
			}
		}

		return nil
	})
}

// Start implements Service. It does not wait for the unit's own start-up, which for LXD can mean waiting for other members.
// Failures from before do not count, neither for Failed nor for systemd's limit on starts: a unit is left failed by stopping
// it while its ExecStartPost still waits.
func (s *systemd) Start(ctx context.Context, before *Before) error {
	return s.with(ctx, func(conn *dbus.Conn) error {
		err := s.waitStopped(ctx, conn)
		if err != nil {
			return err
		}

		for _, name := range before.Up {
			_ = conn.ResetFailedUnitContext(ctx, name) // an error only means that there is nothing to forget
		}

		for _, name := range before.Up {
			var result chan string
			if name != s.unit { // a socket is up at once
				result = make(chan string, 1)
			}

			_, err := conn.StartUnitContext(ctx, name, "replace", result)
			if err != nil {
				return fmt.Errorf("start %s: %w", name, err)
			}

			if result == nil {
				continue
			}

			err = wait(ctx, "start", name, result)
			if err != nil {
				return err
			}
		}

		return nil
	})
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

// wait waits for the end of a job that starts or stops a unit.
func wait(ctx context.Context, verb string, unit string, result <-chan string) error {
	select {
	case r := <-result:
		if r != "done" {
			return fmt.Errorf("%s %s: systemd says %q; see `systemctl status %s`", verb, unit, r, unit)
		}

		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s %s: %w", verb, unit, ctx.Err())
	}
}

// Failed implements Service. A unit that waits for LXD in ExecStartPost, as Debian's does for ten minutes, is still starting
// when LXD has long ended.
func (s *systemd) Failed(ctx context.Context) error {
	return s.with(ctx, func(conn *dbus.Conn) error {
		properties, err := conn.GetAllPropertiesContext(ctx, s.unit)
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

func (s *systemd) with(ctx context.Context, do func(*dbus.Conn) error) error {
	conn, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		return fmt.Errorf("connect to systemd: %w", err)
	}

	defer conn.Close()

	return do(conn)
}

func stringProperty(ctx context.Context, conn *dbus.Conn, unit string, name string) (string, error) {
	p, err := conn.GetUnitPropertyContext(ctx, unit, name)
	if err != nil {
		return "", err
	}

	value, _ := p.Value.Value().(string)
	return value, nil
}

func stringsProperty(ctx context.Context, conn *dbus.Conn, unit string, name string) ([]string, error) {
	p, err := conn.GetUnitPropertyContext(ctx, unit, name)
	if err != nil {
		return nil, err
	}

	value, _ := p.Value.Value().([]string)
	return value, nil
}
