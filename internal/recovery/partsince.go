// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// ArmedState is the database in force of a member that is armed.
type ArmedState struct {
	Raft  *bundle.Position `json:"raft" yaml:"raft"`   // its last entry; null if its log cannot be read
	State string           `json:"state" yaml:"state"` // see raftState
}

// WrittenSince is what an LXD has written to the database in force of a member that is armed: somebody has started it past the gate.
type WrittenSince struct {
	State   string      `json:"state"`   // of the raft directory with it, see raftState
	Running bool        `json:"running"` // it writes still
	Found   []Discarded `json:"found"`   // what the new database lacks of it
	Untold  []string    `json:"untold"`  // what cannot be told
}

// Lines tells it, a line each: what users have changed before all else.
func (w *WrittenSince) Lines() []string { return linesWith(w.Found, w.Untold) }

// linesWith is Lines, and what cannot be told after them.
func linesWith(found []Discarded, untold []string) []string {
	lines := Lines(found)
	for _, text := range untold {
		lines = append(lines, "what cannot be told: "+text)
	}

	return lines
}

// armedState is the database as it was when all was checked.
func (p *Part) armedState() (*ArmedState, error) {
	state, err := raftState(p.savedGlobal())
	if err != nil {
		return nil, fmt.Errorf("the copy of the database as it was checked: %w", err)
	}

	a := &ArmedState{State: state}
	if p.pending != nil {
		a.Raft = p.pending.local
	}

	return a, nil
}

func (p *Part) savedGlobal() string { return filepath.Join(p.dir.join(runSavedName), globalName) }

// writtenSince finds out what was written to the database in force since the member was armed; nil if nothing was. A vote or a higher term alone is
// nothing: no user has changed it.
func (p *Part) writtenSince(ctx context.Context) (*WrittenSince, error) {
	if p.run.Phase != PhaseArmed || p.run.Armed == nil {
		return nil, nil
	}

	status, err := daemon.Inspect(ctx, p.dir.path)
	if err != nil {
		return nil, err
	}

	w := &WrittenSince{Running: status.Running(), Found: []Discarded{}, Untold: []string{}}
	w.State, err = raftState(p.dir.global())
	switch {
	case err != nil:
		w.Untold = append(w.Untold, "the database in force: "+err.Error())
		return w, nil
	case w.Running:
		return w, nil
	case w.State == p.run.Armed.State:
		return nil, nil
	}

	err = p.tellWritten(ctx, w)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}

	if err != nil { // whoever takes the run back does not need to know
		w.Untold = append(w.Untold, err.Error())
	}

	if len(w.Found)+len(w.Untold) == 0 {
		return nil, nil
	}

	return w, nil
}

// tellWritten compares the database in force with the new one, and leaves out what it had when all was checked.
func (p *Part) tellWritten(ctx context.Context, w *WrittenSince) error {
	report, err := p.Stage(ctx, StageOptions{SQL: p.run.SQL, AddressAbsent: p.run.AddressAbsent})
	if err != nil {
		return err
	}

	if report.Local == nil {
		w.Untold = append(w.Untold, "the database in force, which cannot be read")
	}

	saved, err := readLog(ctx, p.savedGlobal(), p.opts.Progress)
	if err != nil {
		return err
	}

	w.Found, err = without(ctx, report.Discarded, saved)
	return err
}

// refuseWritten refuses an exchange that would give up what was written since the member was armed, unless that was accepted.
func (p *Part) refuseWritten(ctx context.Context, accepted string) error {
	w, err := p.writtenSince(ctx)
	if w == nil || err != nil || accepted == w.State && !w.Running {
		return err
	}

	p.run.Written = w
	return w.Refusal("")
}

// Refusal is that of an exchange. member may be empty.
func (w *WrittenSince) Refusal(member string) *Refusal {
	if w.Running {
		return &Refusal{Code: "lxd-runs", Member: member, Reason: product.Text("LXD was started although this run keeps it down, and writes to the old " +
			"database. Stop it there and run `lxd-recover cluster recover resume`, or take the run back with `lxd-recover cluster recover undo`")}
	}

	return &Refusal{Code: "written-since-armed", Member: member, Entries: w.Found, Flag: "--discard-local-entries",
		Reason: product.Sprintf("LXD was started although this run keeps it down, and has written to the old database what the new one lacks: %s. "+
			"`lxd-recover cluster recover resume` asks about it, `lxd-recover cluster recover undo` takes the run back",
			strings.Join(append([]string{Count(w.Found).String()}, w.Untold...), "; "))}
}
