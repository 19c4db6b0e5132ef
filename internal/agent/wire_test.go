// SPDX-License-Identifier: AGPL-3.0-only

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/internal/remote"
)

// TestMain is an agent that answers each call with its second argument if it was started as one.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "answers" {
		_ = remote.Serve(context.Background(), "test", os.Stdin, os.Stdout, remote.HandlerFunc(func(context.Context, remote.Call) (any, error) {
			return raw(os.Args[2]), nil
		}))
		return
	}

	os.Exit(m.Run())
}

type raw string

func (r raw) MarshalJSON() ([]byte, error) {
	if r == huge {
		return []byte(`"` + strings.Repeat("a", 40<<20) + `"`), nil
	}

	return []byte(r), nil
}

// huge stands for an answer that is larger than any sound one.
const huge raw = "huge"

// A member that answers without end does not fill the giver's memory, and is named.
func TestHugeAnswer(t *testing.T) {
	a, err := Dial(t.Context(), remote.Options{Command: []string{"answers", string(huge)}, Version: "test"})
	if err != nil {
		t.Fatal(err)
	}

	_, err = a.Look(t.Context())
	if !remote.HasCode(err, remote.CodeTooLarge) || !strings.Contains(err.Error(), "this machine: ") {
		t.Errorf("%v", err)
	}

	_ = a.Close() // the connection has ended
}

// Errors that the giver acts on are the same ones on both ends.
func TestErrorsOnWire(t *testing.T) {
	busy := fmt.Errorf("%w on /var/lib/lxd: wait until it is done", recovery.ErrBusy)
	got := offWire(onWire(busy))
	if !errors.Is(got, recovery.ErrBusy) || got.Error() != busy.Error() {
		t.Errorf("%v", got)
	}

	other := offWire(onWire(errors.New("another lxd-recover is working, it says")))
	if errors.Is(other, recovery.ErrBusy) {
		t.Errorf("%v is taken for the lock by its text", other)
	}
}

// A member may answer anything: what is read of an answer is there, or that is an error.
func TestEmptyAnswers(t *testing.T) {
	for _, answer := range []string{"null", "{}", "7"} {
		a, err := Dial(t.Context(), remote.Options{Command: []string{"answers", answer}, Version: "test"})
		if err != nil {
			t.Fatal(err)
		}

		errs := map[string]error{}
		_, errs["look"] = a.Look(t.Context())
		_, errs["make"] = a.Make(t.Context(), recovery.MakeOptions{})
		_, errs["probe"] = a.Probe(t.Context(), ProbeOptions{Others: []string{"10.0.0.1:8443"}})
		if answer != "{}" { // there the zero value is one
			_, errs["stage"] = a.Stage(t.Context(), recovery.StageOptions{})
			_, errs["state"] = a.State(t.Context(), StateOptions{Fence: bundle.Position{}, At: 0})
		}

		for call, err := range errs {
			if err == nil || strings.Contains(err.Error(), "connection") {
				t.Errorf("%s answered with %s: %v", call, answer, err)
			}
		}

		err = a.Close()
		if err != nil {
			t.Error(err)
		}
	}
}
