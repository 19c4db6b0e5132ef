// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/clusterrun"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// The member whose database all were to get is gone before the others had it: resume takes the rest back, and says how to begin again without it.
func TestResumeWithoutTheChosenMember(t *testing.T) {
	const command = "if node1 is lost for good, and its LXD will not be started again, `lxd-recover cluster recover --lost node1` begins another run with " +
		"the others (add --address and --host as before, and --from NAME to choose whose database all get)"
	for _, phase := range []string{"stopped"} {
		t.Run(phase, func(t *testing.T) {
			l := newLab(t)
			before := l.contents()
			p := l.giveUntil(recovery.PhaseArmed, 3)
			if p.From != "node1" {
				t.Fatalf("the run began with %s", p.From)
			}

			for name := range l.dirs { // as agents leave it that are killed
				file := filepath.Join(l.dirs[name], "database.run.yaml")
				data, err := os.ReadFile(file)
				must(t, err)
				must(t, os.WriteFile(file, []byte(strings.Replace(string(data), "\nphase: armed\n", "\nphase: "+phase+"\n", 1)), 0o600))
			}

			l.down = "node1"
			r, err := clusterrun.Resume(t.Context(), l.from("node2"), p)
			var partly *clusterrun.Partly
			if !errors.As(err, &partly) || !slices.Equal(partly.Left, []string{"node1"}) || !slices.Equal(r.Old, []string{"node2", "node3"}) ||
				!strings.Contains(err.Error(), "the database from before the run is in place on node2, node3: "+command) {
				t.Errorf("%v, %+v", err, r)
			}

			_, err = clusterrun.Resume(t.Context(), l.from("node3"), p) // there is nothing to take back any more
			if !errors.Is(err, clusterrun.ErrNoRun) || !strings.Contains(err.Error(), "in place on node2, node3: "+command) {
				t.Errorf("%v", err)
			}

			opts := l.from("node2")
			opts.Lost = []string{"node1"}
			again, s, err := clusterrun.MakePlan(t.Context(), opts)
			must(t, err)
			must(t, s.Close())
			if again.From != "node2" || !slices.Equal(again.Lost(), []string{"node1"}) {
				t.Errorf("the new plan takes %s, without %v", again.From, again.Lost())
			}

			delete(l.dirs, "node1")
			delete(before, "node1")
			l.wantOld(before)
		})
	}
}
