// SPDX-License-Identifier: AGPL-3.0-only

// Package daemon tells whether LXD runs on this member, and stops and starts it through whatever runs it here.
//
// It must never wake LXD by looking: a socket that systemd or snapd listens on starts the daemon at the first connection.
// So the socket is only dialled when no socket unit owns it, and what counts most is who holds the database's files open,
// recognised by device and inode, which works across the mount namespaces of snaps and containers.
package daemon

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

// socketName is LXD's API socket inside its directory.
const socketName = "unix.socket"

// Service is what runs LXD on this machine: a systemd unit, or a snap.
type Service interface {
	// Name is how the administrator knows it, for messages: `systemd unit lxd.service`, `snap lxd`.
	Name() string

	// ByHand are the commands with which a person stops and starts it, instances and all else left alone.
	ByHand() (stop, start string)

	// Activity tells whether the service is up, or what would start it at the next client's call.
	Activity(ctx context.Context) (Activity, error)

	// Stoppable tells whether Stop may be called: an error says what to do instead.
	Stoppable() error

	// PriorState returns the service's state, to be noted before it is stopped.
	PriorState(ctx context.Context) (*PriorState, error)

	// Hold keeps the service from being updated until Release, where prior says so.
	Hold(ctx context.Context, prior *PriorState) error

	// Gate keeps the service, and all that would start it, from being started as long as file exists, also after a reboot: by hand, on
	// demand, by another unit. It notes in prior what Ungate has to undo; call it before Stop, with prior written down after. After an
	// error call Ungate.
	Gate(ctx context.Context, prior *PriorState, file string) error

	// Ungate takes the gate away. It may be called again, and where there is none.
	Ungate(ctx context.Context, prior *PriorState) error

	// Stop stops the service and everything that could wake it, and returns when they are down. Instances go on running.
	Stop(ctx context.Context) error

	// Start starts what was up before. It does not wait for LXD to answer. What runs already is left alone. The error is ErrGated
	// where a gate is closed.
	Start(ctx context.Context, prior *PriorState) error

	// StartLater is Start for a machine that is just starting: it only has to be begun when this returns.
	StartLater(ctx context.Context, prior *PriorState) error

	// Release ends what Hold began.
	Release(ctx context.Context, prior *PriorState) error

	// Failed returns an error when the service has given up since it was started.
	Failed(ctx context.Context) error
}

// Status is what was found of LXD on this machine.
type Status struct {
	// Holders are the processes that have files of the database open.
	Holders []Process

	// Answers tells whether something accepts connections on LXD's socket. It is not tried, and false, where a socket
	// unit owns the socket.
	Answers bool

	// Service is what runs LXD, nil where that is a plain process or nothing is known.
	Service Service

	// Activity is what the Service said.
	Activity Activity
}

// Activity is how far a service is up.
type Activity int

const (
	Down     Activity = iota // nothing is up
	OnDemand                 // a socket, for instance, would start it
	Up                       // it runs, or is about to
)

// Running tells whether a daemon uses the database now.
func (s *Status) Running() bool { return len(s.Holders) > 0 || s.Answers }

// Wakeable tells whether a daemon runs or could be started behind our back, by a client's call for instance.
func (s *Status) Wakeable() bool { return s.Up() || s.Activity == OnDemand }

// Up tells whether a daemon runs, or is just being started.
func (s *Status) Up() bool { return s.Running() || s.Activity == Up }

// StopByHand is the command that stops LXD here; empty where none is known.
func (s *Status) StopByHand() string {
	if s.Service == nil {
		return ""
	}

	stop, _ := s.Service.ByHand()
	return stop
}

// StartByHand is the command that starts LXD here; empty where none is known.
func (s *Status) StartByHand() string {
	if s.Service == nil {
		return ""
	}

	_, start := s.Service.ByHand()
	return start
}

// String is the status in a few words.
func (s *Status) String() string {
	switch {
	case len(s.Holders) > 0:
		names := make([]string, len(s.Holders))
		for i, p := range s.Holders {
			names[i] = p.String()
		}

		text := "running: " + strings.Join(names, ", ")
		if s.Service != nil {
			text += " (" + s.Service.Name() + ")"
		}

		return text
	case s.Answers:
		return "running: its socket answers"
	case s.Activity == Up:
		return "being started by " + s.Service.Name()
	case s.Activity == OnDemand:
		return "not running, started on demand by " + s.Service.Name()
	}

	return "not running"
}

// Inspect looks for a daemon of the LXD in lxdDir. It changes nothing and wakes nobody.
func Inspect(ctx context.Context, lxdDir string) (*Status, error) {
	holders, err := Writers(filepath.Join(lxdDir, "database"))
	if err != nil {
		return nil, fmt.Errorf("look for processes that use the database: %w", err)
	}

	status := &Status{Holders: holders}
	socket := filepath.Join(lxdDir, socketName)
	service, ownsSocket, err := findSnapd(ctx, lxdDir)
	if err == nil && service == nil {
		service, ownsSocket, err = findSystemd(ctx, socket, holders)
	}

	if err != nil {
		return nil, err
	}

	if service != nil {
		status.Service = service
		status.Activity, err = service.Activity(ctx)
		if err != nil {
			return nil, err
		}
	}

	if !ownsSocket {
		status.Answers = dial(ctx, socket)
	}

	return status, nil
}

// Listening tells whether something listens on a unix socket, for daemons that nothing starts on demand.
func Listening(ctx context.Context, socket string) bool { return dial(ctx, socket) }

// dial tells whether something listens on a unix socket.
func dial(ctx context.Context, socket string) bool {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", socket)
	if err != nil {
		return false
	}

	_ = conn.Close()
	return true
}

// ErrStillRunning says that a daemon, or another process, still uses the database after it should have stopped.
var ErrStillRunning error = product.Error("LXD still runs")

// WaitGone waits until nothing holds the database any more and nothing answers on the socket.
func WaitGone(ctx context.Context, lxdDir string) error {
	var last *Status
	for {
		status, err := Inspect(ctx, lxdDir)
		if err != nil && ctx.Err() != nil && last != nil { // the time ended while it was looked at once more
			return fmt.Errorf("%w: %s", ErrStillRunning, last)
		}

		if err != nil {
			return err
		}

		last = status

		if !status.Running() {
			return nil
		}

		err = pause(ctx)
		if err != nil {
			return fmt.Errorf("%w: %s", ErrStillRunning, status)
		}
	}
}

// ErrNotReady says that LXD was started and has not answered within the time given.
var ErrNotReady error = product.Error("LXD does not answer yet")

// WaitReady waits until LXD answers on its API socket, which a cluster member does once a majority of the voters is up. It
// returns the addresses of the members as LXD lists them, by name: none on a standalone server. The error is ErrNotReady when the context ended first,
// and the service's own when that failed.
func WaitReady(ctx context.Context, lxdDir string, service Service) (map[string]string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	// Looked for while a request is under way, too: where systemd listens for a daemon that has ended, nobody answers, and
	// nobody refuses either.
	failed := make(chan error, 1)
	if service != nil {
		go func() {
			err := waitFailed(ctx, service)
			if err != nil {
				failed <- err
				cancel()
			}
		}()
	}

	for {
		addresses, err := memberAddresses(ctx, filepath.Join(lxdDir, socketName))
		if err == nil {
			return addresses, nil
		}

		if pause(ctx) == nil {
			continue
		}

		select {
		case err := <-failed:
			return nil, err
		default:
			return nil, fmt.Errorf("%w: %w", ErrNotReady, err)
		}
	}
}

// waitFailed waits until a service fails, and returns why; nil when the context ends first.
func waitFailed(ctx context.Context, service Service) error {
	for pause(ctx) == nil {
		err := service.Failed(ctx)
		if err != nil && ctx.Err() == nil {
			return err
		}
	}

	return nil
}

func memberAddresses(ctx context.Context, socket string) (map[string]string, error) {
	members, err := listMembers(ctx, socket)
	if err != nil || members == nil {
		return nil, err
	}

	addresses := map[string]string{}
	for _, m := range members {
		addresses[m.Name] = m.Address
	}

	return addresses, nil
}

// pollInterval is how often a state is looked at that sends no event.
const pollInterval = 100 * time.Millisecond

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pollInterval):
		return nil
	}
}
