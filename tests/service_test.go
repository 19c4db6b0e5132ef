// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/tests/guest"
)

// serviceHelper is the argument by which this test binary, put into a guest, calls package daemon there, and no test.
const serviceHelper = "service-helper"

// helperPath is where it is in a guest, and priorPath what it notes of the service.
const (
	helperPath = "/root/service.test"
	priorPath  = "/root/prior.json"
)

// helpService is that other program: gate, stop, ungate or start the LXD in a directory.
func helpService(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()

	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()

	err := doService(ctx, args[0], args[1], args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		return 1
	}

	return 0
}

func doService(ctx context.Context, verb, lxdDir string, rest []string) error {
	prior, service, err := priorService(ctx, lxdDir)
	if err != nil {
		return err
	}

	switch verb {
	case "gate":
		return errors.Join(service.Gate(ctx, prior, rest[0]), writePrior(prior))
	case "stop":
		patience, err := time.ParseDuration(rest[0])
		if err != nil {
			return err
		}

		began := time.Now()
		killed, err := daemon.StopFirmly(ctx, lxdDir, service, patience)
		fmt.Printf("killed %v\n", killed)
		fmt.Fprintf(os.Stderr, "stopped within %s\n", time.Since(began))
		if err == nil {
			err = daemon.WaitGone(ctx, lxdDir)
		}

		return err
	case "ungate":
		return service.Ungate(ctx, prior)
	case "start":
		err = service.Start(ctx, prior)
		if err == nil {
			_, err = daemon.WaitReady(ctx, lxdDir, service)
		}

		return err
	}

	return errors.New(verb)
}

// priorService is what was noted, or else what is found.
func priorService(ctx context.Context, lxdDir string) (*daemon.PriorState, daemon.Service, error) {
	text, err := os.ReadFile(priorPath)
	if err == nil {
		prior := &daemon.PriorState{}
		err = json.Unmarshal(text, prior)
		if err != nil {
			return nil, nil, err
		}

		service, err := prior.Service(ctx)
		return prior, service, err
	}

	status, err := daemon.Inspect(ctx, lxdDir)
	if err != nil {
		return nil, nil, err
	}

	prior, err := status.Service.PriorState(ctx)
	return prior, status.Service, err
}

func writePrior(prior *daemon.PriorState) error {
	text, err := json.Marshal(prior)
	if err != nil {
		return err
	}

	return os.WriteFile(priorPath, text, 0o600)
}

// putServiceHelper puts this very program into a guest.
func putServiceHelper(t testing.TB, g *guest.Guest) {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	must(t, g.Put(t.Context(), self, helperPath, 0o755))
}

// service calls package daemon in the guest.
func service(t testing.TB, g *guest.Guest, args ...string) result {
	t.Helper()
	return run(t, g.Command(within(t, 2*time.Minute), helperPath, append([]string{serviceHelper}, args...)...))
}

// mustService is service where anything but success ends the test.
func mustService(t testing.TB, g *guest.Guest, args ...string) result {
	t.Helper()
	r := service(t, g, args...)
	if r.status != 0 {
		t.Fatalf("%s on %s: exit status %d: %s", strings.Join(args, " "), g.Name, r.status, r.stderr)
	}

	return r
}
