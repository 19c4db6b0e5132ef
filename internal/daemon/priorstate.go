// SPDX-License-Identifier: AGPL-3.0-only

package daemon

import (
	"context"
	"slices"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

// PriorState is the state of a service before it was stopped: what Start has to bring back, and Release to let go. It is plain
// data, so that it can be written down before anything is stopped, and used by whoever finds LXD stopped after a crash.
type PriorState struct {
	Kind string   `json:"kind" yaml:"kind"` // what runs LXD: kindSystemd or kindSnapd
	Name string   `json:"name" yaml:"name"` // of the systemd unit, or of the snap
	Up   []string `json:"up" yaml:"up"`     // units, or services of the snap, that were up; in the order in which they are to be started

	// Daemon tells whether LXD itself was up, and not only what would start it on demand.
	Daemon bool `json:"daemon" yaml:"daemon"`

	// Held tells whether Hold has something to do, and Release to undo: refreshes of a snap. HeldUntil is the hold that the
	// administrator had set before, in RFC 3339; empty for none.
	Held      bool   `json:"held,omitempty" yaml:"held,omitempty"`
	HeldUntil string `json:"held_until,omitempty" yaml:"held_until,omitempty"`

	// Gated are the units that Gate keeps from being started. Enabled are the services of the snap that were enabled before: to stop them
	// disables them.
	Gated   []string `json:"gated,omitempty" yaml:"gated,omitempty"`
	Enabled []string `json:"enabled,omitempty" yaml:"enabled,omitempty"`

	// Companions are units that were up, that Stop leaves alone, and that the gate keeps from being started: after a reboot Start has to.
	Companions []string `json:"companions,omitempty" yaml:"companions,omitempty"`
}

const (
	kindSystemd = "systemd"
	kindSnapd   = "snapd"
)

// Service returns the service whose state it is.
func (p *PriorState) Service(ctx context.Context) (Service, error) {
	switch p.Kind {
	case kindSystemd:
		return systemdUnit(ctx, p.Name)
	case kindSnapd:
		return newSnapd(p.Name), nil
	}

	return nil, product.Errorf("no way is known to start LXD through %q: start it by hand, then remove this file", p.Kind)
}

// WantDaemon has Start bring LXD itself up, also where it was down.
func (p *PriorState) WantDaemon() {
	name := p.Name
	if p.Kind == kindSnapd {
		name += "." + mainService
	}

	p.Daemon = true
	if !slices.Contains(p.Up, name) {
		p.Up = append(p.Up, name) // after what would start it on demand
	}
}

// activity is how far up that is.
func (p *PriorState) activity() Activity {
	switch {
	case p.Daemon:
		return Up
	case len(p.Up) > 0:
		return OnDemand
	}

	return Down
}

// Join adds what an earlier run, which was cut short, had noted of the same service: it was the one to stop it first.
func (p *PriorState) Join(earlier *PriorState) {
	if earlier == nil || earlier.Kind != p.Kind || earlier.Name != p.Name {
		return
	}

	p.Up, p.Daemon = union(earlier.Up, p.Up), p.Daemon || earlier.Daemon
	p.Gated, p.Enabled = union(earlier.Gated, p.Gated), union(earlier.Enabled, p.Enabled)
	p.Companions = union(earlier.Companions, p.Companions)
	if earlier.Held {
		p.Held, p.HeldUntil = true, earlier.HeldUntil
	}
}
