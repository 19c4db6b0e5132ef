// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/preflight"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// lxdDir is the directory of the LXD that a source is of, empty where it is not that, or a part of it.
func (s *Source) lxdDir() string {
	if !isKind(s.Kind, kindLXD) {
		return ""
	}

	return filepath.Dir(s.nodes)
}

// machine tells of the machine, where the source is an LXD's directory on it.
func (r *InspectReport) machine(ctx context.Context, src *Source, found inDatabase) {
	if src.lxdDir() == "" {
		return
	}

	r.Machine = &InspectMachine{}
	r.Machine.HostName, r.Machine.BootID = machineNames()
	if found.needs != nil {
		r.Machine.LXD = found.needs.facts.Installed
	} else {
		r.Machine.LXD = preflight.Installed(ctx, src.lxdDir())
	}
}

// machineNames are the host's name and the id of its boot; empty where they cannot be told.
func machineNames() (host string, boot string) {
	host, _ = os.Hostname()
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return host, strings.TrimSpace(string(id))
}

// needs says what LXD lacks in order to start on this database with the members that it has. The database itself is no worse for it.
func (r *InspectReport) needs(src *Source, found inDatabase) {
	facts := preflight.Facts{Members: r.Members}
	if found.needs != nil {
		facts = found.needs.facts
		facts.Members = r.Members
	}

	facts.Self, facts.Nodes, facts.InForce = 0, found.rows, nil // what is to come into force is another matter
	if isKind(src.Kind, kindLXD) && r.Member != nil {
		facts.Self = r.Member.ID
	}

	if r.Standalone {
		facts.Members, facts.Nodes = nil, nil
	}

	r.Findings = preflight.Check(facts)
	for _, f := range r.Findings {
		r.Problems = append(r.Problems, raftlog.Problem{Severity: raftlog.Warning, Offset: -1, Text: f.Text,
			Libdqlite: product.Text("loads the database: it is LXD that goes by this"), Advice: f.Advice})
	}
}
