// SPDX-License-Identifier: AGPL-3.0-only

//go:build linux && amd64

package faults

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/swapdir"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
	"github.com/lxd-recover/lxd-recover/tests/faults/systrace"
	"github.com/lxd-recover/lxd-recover/tests/progress"
)

// What a killed import leaves is a database that LXD starts on: three real members, imported on two of them, killed on the
// third and then started, with the second run or, where the new database was in place, also without it. On LXD 6.6 only around the
// exchange: what is in place there is the same as for 5.0.2, to the byte.
func TestStart(t *testing.T) {
	t.Run("LXD 5.0.2", func(t *testing.T) { getLab(t).startAfterKill(t, false) })
	t.Run("LXD 6.6", func(t *testing.T) { getLab6(t).startAfterKill(t, true) })
}

func (l *lab) startAfterKill(t *testing.T, aroundExchange bool) {
	p, err := newPlace(t.TempDir())
	must(t, err)
	must(t, p.reset(l.imported.start)) // for its directory for temporary files
	exchange := call("renameat2", "database")
	for _, test := range []struct {
		name   string
		at     func(*systrace.Call) bool
		action systrace.Action
		again  bool
		around bool // the exchange
	}{
		{"while unpacking", call("write", "metadata2"), systrace.KillAfter, true, false},
		{"before the exchange", exchange, systrace.KillBefore, true, true},
		{"after the exchange", exchange, systrace.KillAfter, true, false},
		{"after the exchange, without a second run", exchange, systrace.KillAfter, false, true},
		{"at the end", call("unlinkat", swapdir.PlanFile), systrace.KillAfter, false, false},
	} {
		if aroundExchange && !test.around {
			continue
		}

		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := progress.Within(t.Context(), 3*time.Minute)
			defer cancel()
			c := l.cluster
			must(t, c.Restore(ctx, "edited"))
			t.Cleanup(func() { c.KillAll() })
			for _, m := range []*cluster.Member{c.Member(1), c.Member(3)} {
				l.importOn(t, m)
			}

			m := c.Member(2)
			r, err := p.traceOn(m.Dir(), l.imported, systrace.Change, func(c *systrace.Call) systrace.Action {
				if test.at(c) {
					return test.action
				}

				return systrace.Proceed
			})
			must(t, err)
			if r.status != -1 {
				t.Fatalf("not killed: %s", r)
			}

			if test.again {
				l.importOn(t, m)
			}

			for _, command := range []string{"global-db-status", "global-db-inspect"} {
				out, err := m.Command(ctx, tool, command).CombinedOutput()
				if err != nil {
					t.Errorf("%s: %v: %s", command, err, out)
				}
			}

			must(t, c.StartAll(ctx))
			for _, m := range c.Members() {
				have, err := m.Profiles(ctx)
				must(t, err)
				for _, row := range l.rows {
					if !slices.Contains(have, row) {
						t.Errorf("%s has lost %s", m.Name, row)
					}
				}
			}

			must(t, m.CreateProfile(ctx, "written-after"))
			table.add("import killed, then real LXDs started", func(row *figures) {
				row.injected++
				row.new++
				if test.again {
					row.again++
				}
			})
		})
	}
}

func (l *lab) importOn(t *testing.T, m *cluster.Member) {
	t.Helper()
	out, err := m.Command(t.Context(), tool, l.imported.args...).CombinedOutput()
	if err != nil {
		t.Fatal(fmt.Errorf("import on %s: %w: %s", m.Name, err, out))
	}
}
