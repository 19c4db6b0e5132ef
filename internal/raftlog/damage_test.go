// SPDX-License-Identifier: AGPL-3.0-only

package raftlog_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// damaged returns the directory of a case and what raftlog says of it.
func damaged(t *testing.T, c raftlogtest.Case) (string, *raftlog.Log) {
	t.Helper()
	dir := raftlogtest.Make(t, c.Base)
	err := c.Damage(dir)
	if err != nil {
		t.Fatal(err)
	}

	log, err := raftlog.Open(context.Background(), os.DirFS(dir), raftlog.Options{})
	if err != nil {
		t.Fatal(err)
	}

	return dir, log
}

func TestDamage(t *testing.T) {
	names := map[string]bool{}
	for _, c := range raftlogtest.Cases() {
		if names[c.Name] {
			t.Errorf("two cases are called %q", c.Name)
		}

		names[c.Name] = true
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			_, log := damaged(t, c)
			if log.Libdqlite.Load != c.Load {
				t.Errorf("libdqlite %s, want: %s", log.Libdqlite.Load, c.Load)
			}

			if want := max(c.Start, c.Load); log.Libdqlite.Start != want {
				t.Errorf("a member that starts: %s, want: %s", log.Libdqlite.Start, want)
			}

			if c.Load <= raftlog.LoadsButLoses && log.Libdqlite.LastIndex != c.Last && c.Last != 0 {
				t.Errorf("libdqlite's last index %d, want %d", log.Libdqlite.LastIndex, c.Last)
			}

			if log.Healthy() != c.Healthy {
				t.Errorf("healthy: %v, want %v", log.Healthy(), c.Healthy)
			}

			next := log.FirstIndex
			holes := log.Holes()
			for e, err := range log.Entries(context.Background(), 0) {
				if err != nil {
					t.Fatal(err)
				}

				if len(holes) > 0 && next == holes[0].First {
					if holes[0].Last > log.Snapshot().Index {
						t.Errorf("hole %v after the snapshot", holes[0])
					}

					next, holes = holes[0].Last+1, holes[1:]
				}

				if e.Index != next {
					t.Fatalf("an entry has index %d, not %d", e.Index, next)
				}

				next++
			}

			errors := 0
			for _, p := range log.Problems {
				if p.Severity == raftlog.Error {
					errors++
				}

				if p.Text == "" || p.Libdqlite == "" || p.Advice == "" || strings.Contains(p.Text, "%!") {
					t.Errorf("incomplete problem %+v", p)
				}
			}

			if !c.Healthy && errors == 0 {
				t.Error("unhealthy without an error")
			}

			if t.Failed() {
				for _, p := range log.Problems {
					t.Logf("%v; libdqlite %s", p, p.Libdqlite)
				}
			}
		})
	}

	t.Logf("%d damage cases", len(names))
}
