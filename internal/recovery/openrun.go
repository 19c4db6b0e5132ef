// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"errors"
	"fmt"
	"os"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/newfile"
)

// openRunName is the file in LXD's directory that says that this member is part of a run over the whole cluster, which is under way or
// was cut off. What such a run has left is finished or taken back on all members together: nothing else here starts LXD, or changes
// anything, as long as it is there. It is the start gate's condition, too: systemd starts no LXD beside it.
const openRunName = "database.run.yaml"

// openRunTemp is what an agent leaves of it that is killed while it writes; see swapdir.WriteFile.
const openRunTemp = openRunName + ".tmp"

// openRunFormat is the version of its format.
const openRunFormat = 1

// Phase is how far a member has come in a run over the whole cluster. Each is noted on disk before the next step begins.
type Phase string

// Phases in their order.
const (
	PhaseReached   Phase = "reached"   // nothing has been changed
	PhaseGated     Phase = "gated"     // LXD does not start by itself any more
	PhaseStopped   Phase = "stopped"   // LXD is down
	PhaseStaged    Phase = "staged"    // the new database lies beside the one in force, and was checked
	PhaseArmed     Phase = "armed"     // all members have staged: from here on LXD stays down until the run is finished or taken back
	PhaseExchanged Phase = "exchanged" // the new database is in place; LXD has not run on it
	PhaseStarted   Phase = "started"   // the gate is open: LXD may have run on the new database
)

var phases = []Phase{PhaseReached, PhaseGated, PhaseStopped, PhaseStaged, PhaseArmed, PhaseExchanged, PhaseStarted}

// Before tells whether a phase comes before another one. An unknown one comes before all.
func (p Phase) Before(other Phase) bool { return p.place() < other.place() }

func (p Phase) place() int {
	for i, known := range phases {
		if p == known {
			return i
		}
	}

	return -1
}

// OpenRun is what a member knows of a run over the whole cluster that it is part of.
type OpenRun struct {
	Format  int       `json:"format" yaml:"format"`
	Run     string    `json:"run" yaml:"run"`         // id
	Version string    `json:"version" yaml:"version"` // of lxd-recover
	Giver   string    `json:"giver" yaml:"giver"`     // the machine that gave the run
	Since   time.Time `json:"since" yaml:"since"`
	Phase   Phase     `json:"phase" yaml:"phase"`

	// Before is what was up before LXD was stopped; null as long as nothing was, and where nothing is known that could start LXD.
	Before *daemon.PriorState `json:"before" yaml:"before"`

	// Back says that the run is being taken back: from then on it cannot go on. All members note it before LXD is started on the old database
	// of the first one, as members that go on later must not meet a cluster that has begun to write there.
	Back bool `json:"back,omitempty" yaml:"back,omitempty"`

	Digest        string `json:"digest" yaml:"digest"`                                     // SHA-256 of the tarball's file; empty until it is here
	SQL           string `json:"sql" yaml:"sql"`                                           // that is to run on the new database when LXD starts
	AddressAbsent bool   `json:"address_absent,omitempty" yaml:"address_absent,omitempty"` // this machine gets its new address later
	Kept          string `json:"kept" yaml:"kept"`                                         // name of the database that was replaced; empty until the exchange

	// Armed is the database in force as it was checked; null before PhaseArmed. An LXD that somebody starts past the gate changes it.
	Armed *ArmedState `json:"armed,omitempty" yaml:"armed,omitempty"`

	// Written is what has been written since then; null if nothing has. It is found out when a run is joined again.
	Written *WrittenSince `json:"written,omitempty" yaml:"-"`

	// TakenFrom is the run that this one has taken an armed member over from: LXD stays down there without a gap. It is in force again if this one is
	// taken back.
	TakenFrom *OpenRun `json:"-" yaml:"taken_from,omitempty"`

	// Plan is the whole plan, in YAML: with it any machine that reaches the members can finish the run, or take it back.
	Plan string `json:"plan" yaml:"plan"`
}

// String says which run it is and how far it is.
func (o *OpenRun) String() string {
	return fmt.Sprintf("run %s over the cluster, given on %s at %s, has come to %q here", o.Run, o.Giver, o.Since.Format(time.RFC3339), o.Phase)
}

// readOpenRun returns the run that this member is part of, nil if there is none.
func (d directory) readOpenRun() (*OpenRun, error) {
	path := d.join(openRunName)
	data, err := newfile.Read(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}

	if err != nil {
		return nil, err
	}

	o := &OpenRun{}
	err = yaml.Unmarshal(data, o)
	switch {
	case err != nil:
	case o.Format != openRunFormat:
		err = fmt.Errorf("its format is %d, and only %d is known", o.Format, openRunFormat)
	case o.Phase.place() < 0:
		err = fmt.Errorf("%q is no phase of a run", o.Phase)
	}

	if err != nil {
		return nil, fmt.Errorf("%s cannot be used: %w; another version of lxd-recover may have written it: finish that run with it", path, err)
	}

	return o, nil
}

func (d directory) writeOpenRun(o *OpenRun) error {
	o.Format = openRunFormat
	return d.writeNote(openRunName, o)
}

// refuseOpenRun refuses to change anything beside a run over the whole cluster.
func (d directory) refuseOpenRun() error {
	open, err := d.readOpenRun()
	if open == nil || err != nil {
		return err
	}

	return &Refusal{Code: "open-run", Reason: OpenRunText(open)}
}

// OpenRunText says which run a member is part of, and what to do about it.
func OpenRunText(o *OpenRun) string {
	return fmt.Sprintf("%s: `lxd-recover cluster recover resume` finishes it on all members, `lxd-recover cluster recover undo` takes it back on all", o)
}
