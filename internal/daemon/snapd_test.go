// SPDX-License-Identifier: AGPL-3.0-only

package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// Whatever becomes of a few requests to snapd, LXD is stopped and started, each once.
func TestSnapdSpoiledRequests(t *testing.T) {
	shortAnswers(t)
	for _, way := range []string{"broken", "cut", "silent"} {
		for spoiled := range 2 {
			t.Run(fmt.Sprintf("%s %d times", way, spoiled), func(t *testing.T) { stopAndStartSnap(t, way, spoiled) })
		}
	}
}

func stopAndStartSnap(t *testing.T, way string, spoiled int) {
	fake := startFakeSnapd(t, "", 0)
	fake.way = way
	spoil := func() {
		fake.mu.Lock()
		fake.left = spoiled
		fake.mu.Unlock()
	}
	snap := newSnapd("lxd")
	spoil()
	prior, err := snap.PriorState(t.Context())
	if err != nil || !prior.Daemon || !slices.Equal(prior.Up, []string{"lxd.daemon"}) || prior.HeldUntil != "2026-11-26T10:00:00Z" {
		t.Fatalf("prior state %+v, %v", prior, err)
	}

	spoil()
	err = snap.Stop(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	spoil()
	activity, err := snap.Activity(t.Context())
	if err != nil || activity != Down {
		t.Errorf("activity after the stop: %v, %v", activity, err)
	}

	spoil()
	err = snap.Start(t.Context(), &PriorState{Up: []string{"lxd.daemon"}})
	if err != nil {
		t.Fatal(err)
	}

	activity, err = snap.Activity(t.Context())
	if err != nil || activity != Up || !slices.Equal(fake.asked(), []string{"/v2/apps", "/v2/apps"}) {
		t.Errorf("activity after the start: %v, %v; changes %q", activity, err, fake.asked())
	}
}

// A snapd that takes requests and never answers ends every question in a bounded time, with its name.
func TestSnapdSilent(t *testing.T) {
	shortAnswers(t)
	startFakeSnapd(t, "silent", 1000)
	snap := newSnapd("lxd")
	prior := &PriorState{Kind: kindSnapd, Name: "lxd", Up: []string{"lxd.daemon"}, Held: true}
	for name, ask := range map[string]func(context.Context) error{
		"activity":    func(ctx context.Context) error { _, err := snap.Activity(ctx); return err },
		"prior state": func(ctx context.Context) error { _, err := snap.PriorState(ctx); return err },
		"hold":        func(ctx context.Context) error { _, err := snap.heldUntil(ctx); return err },
		"stop":        snap.Stop,
		"start":       func(ctx context.Context) error { return snap.Start(ctx, prior) },
		"start later": func(ctx context.Context) error { return snap.StartLater(ctx, prior) },
		"to hold":     func(ctx context.Context) error { return snap.Hold(ctx, prior) },
		"release":     func(ctx context.Context) error { return snap.Release(ctx, prior) },
	} {
		began := time.Now()
		err := ask(t.Context())
		if !errors.Is(err, errNoAnswer) || !strings.Contains(err.Error(), "snapd") || !strings.Contains(err.Error(), "asked 2 times") {
			t.Errorf("%s: %v", name, err)
		}

		if took := time.Since(began); took > 20*answerTime {
			t.Errorf("%s: %s", name, took)
		}
	}
}

// Somebody who does not want to wait any longer need not.
func TestSnapdSilentInterrupted(t *testing.T) {
	startFakeSnapd(t, "silent", 1000)
	ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, errors.New("enough"))
	defer cancel()

	began := time.Now()
	_, err := newSnapd("lxd").Activity(ctx)
	if err == nil || !strings.Contains(err.Error(), "enough: ") || time.Since(began) > answerTime/2 {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
}
