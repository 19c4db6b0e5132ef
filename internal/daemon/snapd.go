// SPDX-License-Identifier: AGPL-3.0-only

package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/snapcore/snapd/client"
	"golang.org/x/sys/unix"
)

// snapdSocket is where snapd listens; where it is missing, snapd is not installed. Tests put another one there.
var snapdSocket = "/run/snapd.socket"

// snapData is where snaps have their data. Tests put another directory there.
var snapData = "/var/snap"

// holdTime is for how long refreshes are held. It ends by itself, should this process be killed and never be run again.
const holdTime = time.Hour

// mainService is the name of LXD's service in its snap; the others start it or talk to it.
const mainService = "daemon"

// snapDir is a snap's own directory of LXD; the name of the snap is in it.
var snapDir = regexp.MustCompile(`^/var/snap/([a-z0-9_-]+)/common/lxd$`)

// snapd is a Service: a snap that has LXD in it.
type snapd struct{ snap string }

func newSnapd(snap string) *snapd { return &snapd{snap: snap} }

// askSnapd asks snapd one question, and asks it again where the connection breaks or there is no answer in time: the question must be
// one that may be asked twice.
func askSnapd[T any](ctx context.Context, question func(*client.Client) (T, error)) (T, error) {
	var answer T
	err := again(ctx, daemonTries, func(ctx context.Context) (err error) {
		answer, err = inTime(ctx, func(ctx context.Context) (T, error) {
			transport := snapdTransport()
			defer transport.CloseIdleConnections()

			c := client.New(&client.Config{Socket: snapdSocket})
			c.Hijack(func(request *http.Request) (*http.Response, error) {
				return roundTrip(transport, request.WithContext(ctx))
			})
			return question(c)
		})
		return err
	})

	return answer, err
}

// maxAnswer bounds an answer of snapd's, in bytes.
const maxAnswer = 16 << 20

// roundTrip sends a request and reads the whole answer: what breaks in the middle of one has broken, and is no wrong answer.
func roundTrip(transport *http.Transport, request *http.Request) (*http.Response, error) {
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, finalError{err}
	}

	defer response.Body.Close()

	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, finalError{err}
	}

	response.Body = io.NopCloser(bytes.NewReader(body))
	return response, nil
}

// snapdTransport connects to snapd.
func snapdTransport() *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", snapdSocket)
	}}
}

// finalError is an error after which snapd's client, which knows no context, does not go on trying for two minutes: it takes it for
// one of its own.
type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }

func (e finalError) Is(target error) bool {
	_, own := target.(client.InternalClientError)
	return own
}

// findSnapd returns the snap that an LXD directory belongs to, or nil, and tells whether one of its sockets is listened on in
// LXD's place.
func findSnapd(ctx context.Context, lxdDir string) (Service, bool, error) {
	path, err := filepath.EvalSymlinks(lxdDir)
	if err != nil {
		return nil, false, err
	}

	parts := snapDir.FindStringSubmatch(path)
	if parts == nil {
		return nil, false, nil
	}

	_, err = os.Stat(snapdSocket)
	if errors.Is(err, os.ErrNotExist) {
		return nil, false, nil
	}

	s := newSnapd(parts[1])
	services, err := s.services(ctx)
	if err != nil || len(services) == 0 {
		return nil, false, err
	}

	owns := slices.ContainsFunc(services, func(a *client.AppInfo) bool { return listens(a) })
	return s, owns, nil
}

// services are the services of the snap; none where it is not installed.
func (s *snapd) services(ctx context.Context) ([]*client.AppInfo, error) {
	services, err := askSnapd(ctx, func(c *client.Client) ([]*client.AppInfo, error) {
		return c.Apps([]string{s.snap}, client.AppOptions{Service: true})
	})
	var failed *client.Error
	if errors.As(err, &failed) && (failed.Kind == client.ErrorKindSnapNotFound || failed.Kind == client.ErrorKindAppNotFound) {
		return nil, nil
	}

	if err != nil {
		return nil, fmt.Errorf("ask snapd for the services of the snap %s: %w", s.snap, err)
	}

	return services, nil
}

// listens tells whether something of systemd's waits to start a service.
func listens(a *client.AppInfo) bool {
	return slices.ContainsFunc(a.Activators, func(a client.AppActivator) bool { return a.Active })
}

// Name implements Service.
func (s *snapd) Name() string { return "snap " + s.snap }

// ByHand implements Service.
func (s *snapd) ByHand() (stop, start string) { return "snap stop " + s.snap, "snap start " + s.snap }

// Stoppable implements Service.
func (s *snapd) Stoppable() error { return nil }

// Activity implements Service.
func (s *snapd) Activity(ctx context.Context) (Activity, error) {
	prior, err := s.up(ctx)
	if err != nil {
		return Down, err
	}

	return prior.activity(), nil
}

// up is what is up, without a look at the hold of refreshes, which takes another request.
func (s *snapd) up(ctx context.Context) (*PriorState, error) {
	services, err := s.services(ctx)
	if err != nil {
		return nil, err
	}

	prior := &PriorState{Kind: kindSnapd, Name: s.snap}
	for _, a := range services {
		if a.Active || listens(a) {
			prior.Up = append(prior.Up, s.snap+"."+a.Name)
		}

		if a.Name == mainService && a.Active {
			prior.Daemon = true
		}
	}

	return prior, nil
}

// PriorState implements Service.
func (s *snapd) PriorState(ctx context.Context) (*PriorState, error) {
	prior, err := s.up(ctx)
	if err != nil {
		return nil, err
	}

	prior.HeldUntil, err = s.heldUntil(ctx)
	if err != nil {
		return nil, err
	}

	// A hold of the administrator's that lasts longer than ours is left alone.
	theirs, err := time.Parse(time.RFC3339, prior.HeldUntil)
	prior.Held = err != nil || theirs.Before(time.Now().Add(holdTime))
	return prior, nil
}

// Hold implements Service.
func (s *snapd) Hold(ctx context.Context, prior *PriorState) error {
	if !prior.Held {
		return nil
	}

	return s.hold(ctx, time.Now().Add(holdTime).UTC().Format(time.RFC3339))
}

func (s *snapd) hold(ctx context.Context, until string) error {
	return s.change(ctx, "hold refreshes of", func(c *client.Client) (string, error) {
		return c.HoldRefreshesMany([]string{s.snap}, &client.SnapOptions{Time: until, HoldLevel: "general"})
	})
}

// Release implements Service.
func (s *snapd) Release(ctx context.Context, prior *PriorState) error {
	if !prior.Held {
		return nil
	}

	theirs, err := time.Parse(time.RFC3339, prior.HeldUntil)
	if err == nil && theirs.After(time.Now()) {
		return s.hold(ctx, prior.HeldUntil)
	}

	return s.change(ctx, "allow refreshes again of", func(c *client.Client) (string, error) { return c.UnholdRefreshesMany([]string{s.snap}, nil) })
}

// Stop implements Service: all services of the snap, and the sockets that start them; where they are gated it disables them, too.
func (s *snapd) Stop(ctx context.Context) error {
	err := s.letDown(ctx)
	if err != nil {
		return fmt.Errorf("stop the snap %s: %w", s.snap, err)
	}

	gates, err := s.gates()
	if err != nil {
		return err
	}

	options := client.StopOptions{Disable: len(gates) > 0}
	return s.change(ctx, "stop", func(c *client.Client) (string, error) { return c.Stop([]string{s.snap}, options) })
}

// letDown ends LXD by SIGTERM, after which instances go on running, before snapd stops the service: its own way of that is to have LXD
// shut down all instances, and to end what they need (LXCFS). Where LXD has ended by then it leaves them alone. The sockets go first, so that
// nobody wakes LXD in between.
func (s *snapd) letDown(ctx context.Context) error {
	processes, err := s.processes(ctx)
	if err != nil || len(processes) == 0 {
		return err
	}

	sockets, err := s.sockets(ctx)
	if err != nil {
		return err
	}

	for _, socket := range sockets {
		err = (&systemd{unit: socket}).Stop(ctx)
		if err != nil {
			return err
		}
	}

	for _, p := range processes {
		_, err = signalHolder(p, s.database(), unix.SIGTERM)
		if err != nil {
			return err
		}
	}

	return s.waitEnded(ctx, processes)
}

// waitEnded waits until processes no longer use the database.
func (s *snapd) waitEnded(ctx context.Context, processes []Process) error {
	for {
		holders, err := Holders(s.database())
		if err != nil {
			return err
		}

		still := slices.DeleteFunc(holders, func(h Process) bool {
			return !slices.ContainsFunc(processes, func(p Process) bool { return p.PID == h.PID })
		})
		if len(still) == 0 {
			return nil
		}

		err = pause(ctx)
		if err != nil {
			return fmt.Errorf("%w: %s: %w", ErrStillRunning, still[0], err)
		}
	}
}

// processes are LXD's own that use the database.
func (s *snapd) processes(ctx context.Context) ([]Process, error) {
	holders, err := Holders(s.database())
	if err != nil || len(holders) == 0 {
		return nil, err
	}

	mains, err := s.mains(ctx)
	return ownProcesses(holders, mains), err
}

// database is LXD's in its snap.
func (s *snapd) database() string { return filepath.Join(snapData, s.snap, "common/lxd/database") }

// daemonUnit is the unit that snapd makes of LXD's service.
func (s *snapd) daemonUnit() string { return "snap." + s.snap + "." + mainService + ".service" }

// sockets are the units that start LXD on demand.
func (s *snapd) sockets(ctx context.Context) ([]string, error) {
	services, err := s.services(ctx)
	if err != nil {
		return nil, err
	}

	var sockets []string
	for _, a := range services {
		if a.Name == mainService {
			sockets = append(sockets, s.units(a)[1:]...)
		}
	}

	return sockets, nil
}

// Start implements Service. snapd starts the sockets of a service that has some, and leaves the service to the first client:
// that is us where it was up before.
func (s *snapd) Start(ctx context.Context, prior *PriorState) error {
	if len(prior.Up) == 0 {
		return nil
	}

	err := checkOpen([]string{s.daemonUnit()})
	if err == nil {
		err = s.waitDown(ctx)
	}

	if err != nil {
		return err
	}

	err = s.change(ctx, "start", func(c *client.Client) (string, error) { return c.Start(prior.Up, client.StartOptions{}) })
	if err == nil && prior.Daemon {
		_ = dial(ctx, filepath.Join(snapData, s.snap, "common/lxd", socketName)) // whether it answers is for WaitReady
	}

	return err
}

// waitDown waits for an LXD to end that letDown was not waited for to the end with: it runs, and its sockets are down. As long as its unit is
// up systemd refuses to start these.
func (s *snapd) waitDown(ctx context.Context) error {
	_, err := os.Stat(systemdSocket)
	if err != nil {
		return nil // no systemd to ask: snapd has its own ways there
	}

	sockets, err := s.sockets(ctx)
	if err != nil || len(sockets) == 0 {
		return err
	}

	return withSystemd(ctx, func(ctx context.Context, conn *dbus.Conn) error {
		names, err := (&systemd{unit: sockets[0], triggers: sockets[1:]}).active(ctx, conn)
		for err == nil && len(names) == 0 {
			var state string
			state, err = stringProperty(ctx, conn, s.daemonUnit(), "ActiveState")
			if err == nil && !up(state) {
				return nil
			}

			if err == nil {
				err = pause(ctx)
			}
		}

		return err
	})
}

// StartLater implements Service: snapd waits for the sockets of a service only.
func (s *snapd) StartLater(ctx context.Context, prior *PriorState) error { return s.Start(ctx, prior) }

// Failed implements Service: what systemd says of the daemon's unit, which snapd does not tell.
func (s *snapd) Failed(ctx context.Context) error {
	unit, err := systemdUnit(ctx, s.daemonUnit())
	if err != nil {
		return nil // no systemd to ask: snapd has its own ways there
	}

	return unit.Failed(ctx)
}

// change has snapd begin a change and waits for it. While another change of the snap is under way, such as a stop that we did not
// wait for to the end, or a refresh, snapd begins none, and is asked again; so it is where the connection breaks, after which the
// change may have begun. A change that has begun goes on when ctx ends.
func (s *snapd) change(ctx context.Context, verb string, begin func(*client.Client) (string, error)) error {
	id, err := askSnapd(ctx, begin)
	for busy := true; err != nil && !broken(err) && busy && pause(ctx) == nil; {
		busy = s.busy(ctx)
		id, err = askSnapd(ctx, begin) // also where nothing is under way any more
	}

	for err == nil {
		var change *client.Change
		change, err = askSnapd(ctx, func(c *client.Client) (*client.Change, error) { return c.Change(id) })
		switch {
		case err != nil:
		case change.Ready && change.Err != "":
			err = fmt.Errorf("%s; see `snap change %s`", change.Err, id)
		case change.Ready:
			return nil
		default:
			err = pause(ctx)
		}
	}

	return fmt.Errorf("%s the snap %s: snapd: %w", verb, s.snap, err)
}

// busy tells whether a change of the snap is under way. An error does not tell: where services are concerned snapd does not name
// its kind.
func (s *snapd) busy(ctx context.Context) bool {
	changes, err := askSnapd(ctx, func(c *client.Client) ([]*client.Change, error) {
		return c.Changes(&client.ChangesOptions{SnapName: s.snap, Selector: client.ChangesInProgress})
	})
	return err == nil && len(changes) > 0
}

// heldUntil is until when the administrator has held refreshes of the snap, in RFC 3339; empty for not at all. snapd's client
// does not know this field yet.
func (s *snapd) heldUntil(ctx context.Context) (string, error) {
	var hold string
	err := again(ctx, daemonTries, func(ctx context.Context) (err error) {
		hold, err = inTime(ctx, s.askHold)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("ask snapd for the snap %s: %w", s.snap, err)
	}

	return hold, nil
}

func (s *snapd) askHold(ctx context.Context) (string, error) {
	transport := snapdTransport()
	defer transport.CloseIdleConnections()

	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/v2/snaps/"+s.snap, nil)
	if err != nil {
		return "", err
	}

	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return "", err
	}

	defer response.Body.Close()

	var answer struct {
		Result struct {
			Hold string `json:"hold"`
		} `json:"result"`
	}

	err = json.NewDecoder(response.Body).Decode(&answer)
	return answer.Result.Hold, err
}
