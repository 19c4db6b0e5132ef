// SPDX-License-Identifier: AGPL-3.0-only

//go:build linux && amd64

package faults

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/lxd-recover/lxd-recover/tests/faults/systrace"
)

// busy is what the one that comes too late says.
const busy = "another lxd-recover is working on"

// A second command while the first one stands still, at many moments of its work: before the first one has locked LXD's
// directory the second one does all its work, from then on it is refused, and the first one goes on as if nothing had been.
func TestTogether(t *testing.T) {
	l := getLab(t)
	export := &job{name: "export", start: l.edited}
	export.args = []string{"cluster", "export-db", "--no-verify"}
	for _, test := range []struct {
		name          string
		first, second *job
		every         int // calls from one moment to the next
	}{
		{"import during import", l.imported, l.imported, 100},
		{"export during import", l.imported, export, 100},
		{"rollback during import", l.imported, l.undone, 100},
		{"import during rollback", l.undone, l.imported, 25},
		{"rollback during rollback", l.undone, l.undone, 25},
		{"import during export", export, l.imported, 100},
		{"edit during edit", l.changed, l.changed, 100},
		{"import during edit", l.changed, l.imported, 100},
		{"edit during import", l.imported, l.changed, 100},
		{"edit during rollback", l.undone, l.changed, 25},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, err := newPlace(t.TempDir())
			must(t, err)
			out := filepath.Join(p.tmp(), "tarball")
			export.args = append(export.args[:3:3], out)
			must(t, p.reset(test.first.start))
			n, refused := 0, 0
			locked := false
			r, err := p.trace(test.first, systrace.Change, func(c *systrace.Call) systrace.Action {
				// The first call is the lock, the last one lets go of it by closing.
				if n++; locked && n%test.every == 2 && c.Name != "close" {
					second := p.run(test.second)
					if second.status != 1 || !strings.Contains(second.output, busy) || second.complaint() != "" {
						t.Errorf("at call %d (%s): %s", n, c, second)
					}

					refused++
				}

				locked = locked || c.Name == "flock"
				return systrace.Proceed
			})
			must(t, err)
			if r.status != 0 || refused < 2 {
				t.Errorf("after %d refusals: %s", refused, r)
			}

			if test.first != export {
				if why := test.first.notDone(p); why != "" {
					t.Errorf("%s: %s", why, r)
				}
			}

			table.add(test.name+", refused", func(row *figures) {
				row.injected += refused
				row.new += refused
				row.again += refused
			})
		})
	}
}

// Commands that race for the lock: one does its work, the others say that they cannot, or find nothing left to do.
func TestRace(t *testing.T) {
	l := getLab(t)
	p, err := newPlace(t.TempDir())
	must(t, err)
	rounds := 5
	if everything {
		rounds = 50
	}

	for _, j := range []*job{l.imported, l.changed} {
		for range rounds {
			must(t, p.reset(j.start))
			var results [3]result
			var group sync.WaitGroup
			for i := range results {
				group.Go(func() { results[i] = p.run(j) })
			}

			group.Wait()
			err := winners(results[:])
			why := j.notDone(p)
			if err != nil || why != "" {
				t.Errorf("%s: %v %s: %v", j.name, err, why, results)
			}

			table.add(fmt.Sprintf("three %ss at once", j.name), func(row *figures) {
				row.injected++
				if why == "" {
					row.new++
					row.again++
				} else {
					row.wedged++
				}
			})
		}
	}
}

// winners checks that at least one command succeeded and that all others were refused.
func winners(results []result) error {
	won := 0
	for _, r := range results {
		switch {
		case r.complaint() != "":
			return errors.New(r.complaint() + ": " + r.String())
		case r.status == 0:
			won++
		case !strings.Contains(r.output, busy):
			return errors.New("not refused, and failed: " + r.String())
		}
	}

	if won == 0 {
		return errors.New("none succeeded")
	}

	return nil
}
