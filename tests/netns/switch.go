// SPDX-License-Identifier: AGPL-3.0-only

package netns

import (
	"context"
	"fmt"
	"strings"
	"sync"
)

// Switch is a bridge in a namespace of its own. It has no address and no way out, and two switches do not see each other,
// whatever addresses are used on them.
type Switch struct {
	ns *Namespace

	mu    sync.Mutex
	ports int // plugged so far
}

// NewSwitch makes a switch that nothing is plugged into.
func NewSwitch(ctx context.Context) (*Switch, error) {
	ns, err := New()
	if err != nil {
		return nil, err
	}

	err = ns.IP(ctx, "link set lo up", "link add br0 type bridge", "link set br0 up")
	if err != nil {
		ns.Close()
		return nil, err
	}

	return &Switch{ns: ns}, nil
}

// Close cuts all that is plugged in off from each other.
func (s *Switch) Close() error { return s.ns.Close() }

// Plug makes a namespace with one interface, eth0, that is on the switch. cidr is its address, such as 10.78.0.1/16 or fd78::1/64; "" means none.
func (s *Switch) Plug(ctx context.Context, cidr string) (*Namespace, error) {
	ns, err := New()
	if err != nil {
		return nil, err
	}

	s.mu.Lock()
	s.ports++
	port := fmt.Sprintf("port%d", s.ports)
	s.mu.Unlock()

	err = s.ns.IP(ctx,
		fmt.Sprintf("link add %s type veth peer name eth0 netns %s", port, ns.Path()),
		"link set "+port+" master br0 up")
	commands := []string{"link set lo up", "link set eth0 up"}
	if cidr != "" {
		if strings.Contains(cidr, ":") {
			cidr += " nodad" // nobody else has it; LXD does not wait for an address
		}

		commands = append(commands, "addr add "+cidr+" dev eth0")
	}

	if err == nil {
		err = ns.IP(ctx, commands...)
	}

	if err != nil {
		ns.Close()
		return nil, err
	}

	return ns, nil
}
