// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/clusterrun"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// What a resync does with LXD is what can be done with it: one that is down is not stopped.
func TestPrintResyncPlans(t *testing.T) {
	const stays, stopped = "It stays down until the new database is in place.", "It is stopped first; instances go on running."
	for state, want := range map[string]string{
		"not running": stays, "not running, started on demand by systemd": stays, "being started by systemd": stopped,
		"running: lxd (process 77) (systemd)": stopped,
	} {
		var far, here strings.Builder
		printClusterResyncPlan(&far, &clusterrun.ResyncPlan{Member: "node2", From: "node1", Seen: &clusterrun.Seen{Daemon: state}})
		printResyncPlan(&here, &recovery.ResyncReport{Daemon: state})
		if !strings.Contains(far.String(), "\nLXD on node2 is "+state+". "+want+" No other member is stopped.\n") {
			t.Errorf("from another machine: %s", far.String())
		}

		if !strings.Contains(here.String(), "\nLXD is "+state+". "+want+"\n") {
			t.Errorf("here: %s", here.String())
		}
	}
}
