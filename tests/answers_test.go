// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// TestEachMemberAnswers restarts a cluster with stand-bys, and asks each of its members who is in it, time and again: once it was
// recovered, and if it never was. A member that goes on failing while the others answer is one that takes itself for a voter, as LXD
// itself has it (see docs/architecture.md, "LXD's own failing starts"), or a failure of the test. CAMPAIGN=1 does it twenty times each.
func TestEachMemberAnswers(t *testing.T) {
	t.Parallel()
	lxd, err := cluster.LXD6()
	must(t, err)
	restarts := 1
	if os.Getenv("CAMPAIGN") != "" {
		restarts = 20
	}

	for _, recovered := range []bool{true, false} {
		t.Run(fmt.Sprintf("recovered %v", recovered), func(t *testing.T) {
			c := cluster.ForTest(t, cluster.Options{LXD: lxd, Members: 5})
			ctx := within(t, time.Duration(5+restarts)*time.Minute)
			must(t, c.WaitFormed(ctx))
			if recovered {
				c.KillAll()
				must(t, c.Member(1).EditReplace(ctx, ":8443", ":9393"))
				importOn(t, export(t, c.Member(1)), c.Members()...)
			} else {
				must(t, c.StopAll(ctx))
			}

			silent := 0
			for i := range restarts {
				must(t, c.StartAll(ctx))
				silent += askEach(ctx, t, c, i)
				if i%2 == 0 {
					must(t, c.StopAll(ctx))
				} else {
					c.KillAll()
				}
			}

			t.Logf("%d restarts, recovered %v: %d of %d members took themselves for a voter and did not answer", restarts, recovered, silent, 5*restarts)
		})
	}
}

// askEach asks every member for the list until it answers, or for two minutes after all others have. It returns how many did not answer
// as they take themselves for a voter.
func askEach(ctx context.Context, t *testing.T, c *cluster.Cluster, restart int) int {
	t.Helper()
	silent := map[*cluster.Member]error{}
	for _, m := range c.Members() {
		silent[m] = nil
	}

	deadline := time.Time{}
	for len(silent) > 0 && (deadline.IsZero() || time.Now().Before(deadline)) {
		must(t, ctx.Err())
		for m := range silent {
			list, err := m.List(ctx)
			silent[m] = err
			if err == nil && len(list) == len(c.Members()) {
				delete(silent, m)
			}
		}

		if len(silent) <= 1 && deadline.IsZero() {
			deadline = time.Now().Add(2 * time.Minute)
		}
	}

	stale := 0
	for m, err := range silent {
		if m.StaleRole(ctx) {
			t.Logf("restart %d: %s takes itself for a voter: %v", restart, m.Name, err)
			stale++
			continue
		}

		t.Errorf("restart %d: %s does not answer, the others do: %v\n%s", restart, m.Name, err, lastLines(m))
	}

	return stale
}

func lastLines(m *cluster.Member) string { return strings.TrimSpace(m.LogTail(30)) }
