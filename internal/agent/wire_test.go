// SPDX-License-Identifier: AGPL-3.0-only

package agent

import (
	"context"
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

func (r raw) MarshalJSON() ([]byte, error) { return []byte(r), nil }

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
