// SPDX-License-Identifier: AGPL-3.0-only

package daemon

import (
	"context"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/snapcore/snapd/client"
)

// Gate implements Service. The drop-ins keep the services from being started by whatever way; Stop disables them besides, as it finds
// them gated: `snap services` tells that, and snapd does not try to start them at a refresh.
func (s *snapd) Gate(ctx context.Context, prior *PriorState, file string) error {
	services, err := s.services(ctx)
	if err != nil {
		return err
	}

	gates, err := s.gates()
	if err != nil {
		return err
	}

	for _, g := range gates {
		prior.Enabled = union(prior.Enabled, g.Enabled) // an earlier gate's Stop may have disabled them
	}

	var units []string
	for _, a := range services {
		units = append(units, s.units(a)...)
		if enabled(a) {
			prior.Enabled = union(prior.Enabled, []string{s.snap + "." + a.Name})
		}
	}

	prior.Gated = union(prior.Gated, units)
	return withSystemd(ctx, func(ctx context.Context, conn *dbus.Conn) error {
		return closeGate(ctx, conn, units, file, prior.Enabled)
	})
}

// Ungate implements Service. snapd enables a service only when it starts it, and has to be asked, as it notes what was disabled for the
// next refresh. So nothing can be started until that is done.
func (s *snapd) Ungate(ctx context.Context, prior *PriorState) error {
	gates, err := s.gates()
	if err != nil {
		return err
	}

	units, names := union(prior.Gated, []string{s.daemonUnit()}), prior.Enabled
	for _, g := range gates {
		units, names = union(units, []string{g.Unit}), union(names, g.Enabled)
	}

	disabled, err := s.disabled(ctx, names)
	if err != nil {
		return err
	}

	if len(disabled) > 0 {
		err = withSystemd(ctx, func(ctx context.Context, conn *dbus.Conn) error { return block(ctx, conn, units) })
		if err == nil {
			err = s.change(ctx, "enable services of", func(c *client.Client) (string, error) {
				return c.Start(disabled, client.StartOptions{Enable: true})
			})
		}

		if err != nil {
			return err
		}
	}

	return withSystemd(ctx, func(ctx context.Context, conn *dbus.Conn) error { return openGate(ctx, conn, units) })
}

// gates are those of the snap's units.
func (s *snapd) gates() ([]FoundGate, error) {
	gates, err := FindGates()
	return slices.DeleteFunc(gates, func(g FoundGate) bool { return !strings.HasPrefix(g.Unit, "snap."+s.snap+".") }), err
}

// disabled are those of the named services that are there, and that snapd does not start when the machine starts.
func (s *snapd) disabled(ctx context.Context, names []string) ([]string, error) {
	if len(names) == 0 {
		return nil, nil
	}

	services, err := s.services(ctx)
	if err != nil {
		return nil, err
	}

	var found []string
	for _, a := range services {
		if name := s.snap + "." + a.Name; slices.Contains(names, name) && !enabled(a) {
			found = append(found, name)
		}
	}

	return found, nil
}

// enabled tells whether a service, or what would start it, is started when the machine starts.
func enabled(a *client.AppInfo) bool {
	return a.Enabled || slices.ContainsFunc(a.Activators, func(a client.AppActivator) bool { return a.Enabled })
}

// units are a service's own unit, and the sockets and timers that start it.
func (s *snapd) units(a *client.AppInfo) []string {
	unit := "snap." + s.snap + "." + a.Name
	units := []string{unit + ".service"}
	for _, activator := range a.Activators {
		switch activator.Type {
		case "socket":
			units = append(units, unit+"."+activator.Name+".socket")
		case "timer":
			units = append(units, unit+".timer")
		}
	}

	return units
}
