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
