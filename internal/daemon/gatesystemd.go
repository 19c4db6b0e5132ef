// SPDX-License-Identifier: AGPL-3.0-only

package daemon

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/dbus"
)

// Gate implements Service: for the unit, for what triggers it, and for what else runs LXD's program at its start.
func (s *systemd) Gate(ctx context.Context, prior *PriorState, file string) error {
	return withSystemd(ctx, func(ctx context.Context, conn *dbus.Conn) error {
		companions, err := s.companions(ctx, conn)
		if err != nil {
			return err
		}

		for _, name := range companions {
			state, err := stringProperty(ctx, conn, name, "ActiveState")
			if err != nil {
				return err
			}

			if up(state) {
				prior.Companions = union(prior.Companions, []string{name})
			}
		}

		units := append(append(slices.Clone(s.triggers), s.unit), companions...)
		prior.Gated = union(prior.Gated, units)
		return closeGate(ctx, conn, units, file, nil)
	})
}

// Ungate implements Service.
func (s *systemd) Ungate(ctx context.Context, prior *PriorState) error {
	return withSystemd(ctx, func(ctx context.Context, conn *dbus.Conn) error {
		companions, err := s.companions(ctx, conn)
		if err != nil {
			return err
		}

		return openGate(ctx, conn, union(prior.Gated, append(append(slices.Clone(s.triggers), s.unit), companions...)))
	})
}

// companions are the services that require or want the unit, or what triggers it, and run the same program, such as Debian's
// lxd-containers.service: it looks into LXD's database, and calls LXD, to have instances started. Others that depend on LXD are
// started without it, as far as they can be.
func (s *systemd) companions(ctx context.Context, conn *dbus.Conn) ([]string, error) {
	own, err := program(ctx, conn, s.unit)
	if err != nil || own == "" {
		return nil, err
	}

	var found []string
	for _, unit := range append(slices.Clone(s.triggers), s.unit) {
		for _, dependency := range []string{"RequiredBy", "RequisiteOf", "BoundBy", "WantedBy"} {
			names, err := stringsProperty(ctx, conn, unit, dependency)
			if err != nil {
				return nil, fmt.Errorf("ask systemd what depends on %s: %w", unit, err)
			}

			for _, name := range names {
				if name == s.unit || !strings.HasSuffix(name, ".service") || slices.Contains(found, name) {
					continue
				}

				theirs, err := program(ctx, conn, name)
				if err != nil {
					return nil, err
				}

				if theirs == own {
					found = append(found, name)
				}
			}
		}
	}

	return found, nil
}

// program is the path of what a service runs first; empty where it runs nothing.
func program(ctx context.Context, conn *dbus.Conn, unit string) (string, error) {
	p, err := inTime(ctx, func(ctx context.Context) (*dbus.Property, error) {
		return conn.GetServicePropertyContext(ctx, unit, "ExecStart")
	})
	if err != nil {
		return "", fmt.Errorf("ask systemd what %s runs: %w", unit, err)
	}

	commands, _ := p.Value.Value().([][]any) // path, arguments, and how it went
	if len(commands) == 0 || len(commands[0]) == 0 {
		return "", nil
	}

	path, _ := commands[0][0].(string)
	return path, nil
}
