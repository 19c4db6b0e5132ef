// SPDX-License-Identifier: AGPL-3.0-only

package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/coreos/go-systemd/v22/dbus"
)

// timerDropIn has the times at which a timer elapses.
const timerDropIn = "50-lxd-recover-every.conf"

// ErrNoTimer says that there is no systemd here, or that it does not know the timer.
var ErrNoTimer = errors.New("no timer")

// Timer is a timer unit of systemd's that a package has installed and not enabled.
type Timer struct{ Unit string }

// Known returns ErrNoTimer where there is none. It changes nothing.
func (t Timer) Known(ctx context.Context) error {
	_, err := os.Stat(systemdSocket)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: systemd does not run here", ErrNoTimer)
	}

	return withSystemd(ctx, func(ctx context.Context, conn *dbus.Conn) error {
		state, err := stringProperty(ctx, conn, t.Unit, "LoadState")
		if err != nil {
			return fmt.Errorf("ask systemd for unit %s: %w", t.Unit, err)
		}

		if state != "loaded" {
			return fmt.Errorf("%w: systemd says that %s is %s", ErrNoTimer, t.Unit, state)
		}

		return nil
	})
}

// Enable has the timer elapse at the times of a calendar expression (systemd.time(7)), also after the next start of the machine. One that runs already takes
// the new times.
func (t Timer) Enable(ctx context.Context, calendar string) error {
	err := t.Known(ctx)
	if err != nil {
		return err
	}

	path := t.dropIn()
	err = os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = replaceFile(path, "# Written by `lxd-recover backup enable`; `lxd-recover backup disable` removes it.\n"+
			"[Timer]\nOnCalendar=\nOnCalendar="+calendar+"\n")
	}

	if err == nil {
		err = syncDir(unitDir)
	}

	if err != nil {
		return fmt.Errorf("set the times of %s: %w", t.Unit, err)
	}

	return withSystemd(ctx, func(ctx context.Context, conn *dbus.Conn) error {
		_, err := inTime(ctx, func(ctx context.Context) (bool, error) {
			_, _, err := conn.EnableUnitFilesContext(ctx, []string{t.Unit}, false, false)
			return true, err
		})
		if err != nil {
			return fmt.Errorf("enable %s: %w", t.Unit, err)
		}

		err = reload(ctx, conn)
		if err != nil {
			return err
		}

		return t.job(ctx, conn, "start", conn.RestartUnitContext)
	})
}

// Disable undoes what Enable has done. It may be called again, and where there is nothing to undo. What the timer has started goes on to its end.
func (t Timer) Disable(ctx context.Context) error {
	err := t.Known(ctx)
	if errors.Is(err, ErrNoTimer) {
		return t.removeDropIn()
	}

	if err != nil {
		return err
	}

	return withSystemd(ctx, func(ctx context.Context, conn *dbus.Conn) error {
		err := t.job(ctx, conn, "stop", conn.StopUnitContext)
		if err != nil {
			return err
		}

		_, err = inTime(ctx, func(ctx context.Context) ([]dbus.DisableUnitFileChange, error) {
			return conn.DisableUnitFilesContext(ctx, []string{t.Unit}, false)
		})
		if err != nil {
			return fmt.Errorf("disable %s: %w", t.Unit, err)
		}

		err = t.removeDropIn()
		if err != nil {
			return err
		}

		return reload(ctx, conn)
	})
}

// job has systemd start or stop the timer, and waits until that is done.
func (t Timer) job(ctx context.Context, conn *dbus.Conn, verb string, begin func(context.Context, string, string, chan<- string) (int, error)) error {
	result := make(chan string, 1)
	_, err := inTime(ctx, func(ctx context.Context) (int, error) { return begin(ctx, t.Unit, "replace", result) })
	if err == nil {
		err = wait(ctx, conn, result)
	}

	if err != nil {
		return fmt.Errorf("%s %s: %w; see `systemctl status %[2]s`", verb, t.Unit, err)
	}

	return nil
}

func (t Timer) dropIn() string { return filepath.Join(unitDir, t.Unit+".d", timerDropIn) }

// removeDropIn removes what sets the times, and its directory if nobody has put something else there.
func (t Timer) removeDropIn() error {
	for _, name := range []string{t.dropIn() + tempSuffix, t.dropIn()} {
		err := os.Remove(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the times of %s: %w", t.Unit, err)
		}
	}

	_ = os.Remove(filepath.Dir(t.dropIn()))
	return syncIfThere(unitDir)
}
