// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/clusterrun"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// What a run over the cluster has come to is in its exit status, and Ctrl-C says nothing else.
func TestRecoverEnds(t *testing.T) {
	canceled := fmt.Errorf("node1: %w", context.Canceled)
	refused := &recovery.Refusal{Code: "open-run", Reason: "no"}
	for _, test := range []struct {
		err    error
		status int
		says   string
	}{
		{&clusterrun.Partly{Err: canceled, Works: true}, exitPartWorks, ""},
		{errors.Join(&clusterrun.Partly{Err: refused, Left: []string{"node1"}}, canceled), exitPartDown, "cluster recover resume"},
		{&clusterrun.TakenBack{Err: canceled, Begun: true}, exitFailed, "every member has the database that it had"},
		{&clusterrun.TakenBack{Err: refused}, exitRefused, "this run has changed nothing"},
	} {
		text := message(test.err)
		if got := exitStatus(test.err); got != test.status || strings.Contains(text, "the old database is in place") || !strings.Contains(text, test.says) {
			t.Errorf("exit status %d, want %d: %s", got, test.status, text)
		}
	}

	if text := message(canceled); !strings.Contains(text, "the old database is in place") {
		t.Error(text)
	}
}

// What a plan says of the logs: a spare that has none is not damaged. A plan for a hundred members has a row for each.
func TestPrintRecoverPlan(t *testing.T) {
	plan := &clusterrun.Plan{ID: "1234", From: "node1", Reason: "it has all"}
	for i := range 100 {
		plan.Members = append(plan.Members, clusterrun.Member{Name: fmt.Sprintf("node%d", i+1), Role: "spare", NewRole: "spare",
			Seen: &clusterrun.Seen{Healthy: true}})
	}

	plan.Members[0].Seen.Index, plan.Members[0].Seen.Term = 7, 2
	plan.Members[1].Seen = &clusterrun.Seen{}
	plan.Members[2].Seen = &clusterrun.Seen{Index: 5, Term: 1}
	var text strings.Builder
	printRecoverPlan(&text, plan)
	rows := map[string]string{}
	for line := range strings.Lines(text.String()) {
		cells := strings.Split(line, "|")
		if len(cells) == 7 {
			rows[strings.Fields(cells[1])[0]] = strings.TrimSpace(cells[4])
		}
	}

	delete(rows, "NAME")
	want := map[string]string{"node1": "index 7, term 2", "node2": "damaged", "node3": "index 5, term 1, damaged", "node4": "none", "node100": "none"}
	for name, log := range want {
		if rows[name] != log {
			t.Errorf("the log of %s is shown as %q, want %q", name, rows[name], log)
		}
	}

	if len(rows) != 100 {
		t.Errorf("%d rows in\n%s", len(rows), text.String())
	}
}
