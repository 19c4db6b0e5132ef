// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/agent"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// oldLog is the database from before a run that all members get back.
type oldLog struct {
	from   string // the member that has kept it
	kept   string // its name there
	reason string // why it is taken
	doubt  string // why it may lack what the run began with; empty if it does not
	losses []Loss // what was in the others, and is not in it
}

// oldLog finds the database that takes the members back to before a run: the one that the run began with; if its member does not have it, or is lost, one
// with the same log; else the best of those that are kept, by the rules of a comparison. --from takes another one.
func (s *Session) oldLog(ctx context.Context, p *Plan) (*oldLog, error) {
	first := s.cameFrom(p)
	if s.opts.From != "" && s.agent(s.opts.From) == nil {
		return nil, fmt.Errorf("--from %s: that is none of the members that were reached: %s", s.opts.From, strings.Join(s.names(), ", "))
	}

	wanted := cmp.Or(s.opts.From, first)
	kept, err := s.keptReports(ctx, p, []string{wanted})
	if err != nil {
		return nil, err
	}

	switch {
	case kept[wanted] != nil && wanted == first:
		return &oldLog{from: first, kept: s.keptName(first, p), reason: "the run began with its database"}, nil
	case kept[wanted] == nil && s.opts.From != "":
		return nil, fmt.Errorf("--from %s: it has not kept the database from before the run, or not whole: `lxd-recover global-db-kept list` there lists "+
			"what is kept", wanted)
	}

	kept, err = s.keptReports(ctx, p, s.names())
	if err != nil {
		return nil, err
	}

	for _, name := range s.names() {
		if kept[name] != nil && endsAs(kept[name], p.member(first).Seen) && (s.opts.From == "" || s.opts.From == name) {
			return &oldLog{from: name, kept: s.keptName(name, p),
				reason: fmt.Sprintf("its database was the same as that of %s, with which the run began", first)}, nil
		}
	}

	return s.bestKept(ctx, p, first, kept)
}

// bestKept compares the databases that the members have kept, and takes one of them.
func (s *Session) bestKept(ctx context.Context, p *Plan, first string, kept map[string]*recovery.InspectReport) (*oldLog, error) {
	if len(kept) == 0 {
		return nil, errors.New("no member has kept the database from before the run any more: `lxd-recover global-db-kept list` lists what is kept on one")
	}

	chosen := &Plan{Losses: []Loss{}}
	err := s.chooseBy(ctx, chosen, kept, nil)
	if err != nil {
		return nil, err
	}

	old := &oldLog{from: chosen.From, kept: s.keptName(chosen.From, p), reason: chosen.Reason, losses: chosen.Losses,
		doubt: fmt.Sprintf("the run began with the database of %s, which is not there any more, and this is not the same", first)}
	if chosen.Doubt != "" {
		old.doubt += "; " + chosen.Doubt
	}

	began, ends := p.member(first).Seen, kept[old.from].Raft.LastIndex
	if began != nil && !holds(kept, began) {
		old.losses = append(old.losses, Loss{Member: first, Count: "transactions that cannot be told", Lines: []string{fmt.Sprintf(
			"its log ended at index %d, term %d, and no member that is reached has kept that entry; the one that is taken ends at index %d",
			began.Index, began.Term, ends)}})
	}

	return old, nil
}

// keptName is the name of the database that a run has replaced on a member; empty if it is not known.
func (s *Session) keptName(name string, p *Plan) string {
	look, state := s.looks[name], s.states[name]
	switch {
	case look == nil:
		return ""
	case look.Status.Import != nil && look.Status.Import.Run == p.ID:
		return look.Status.Import.Kept
	case state != nil:
		return state.Kept
	}

	return ""
}

// keptReports are what members have kept from before a run, by their names. A member that has kept nothing, or nothing that is whole, has none.
func (s *Session) keptReports(ctx context.Context, p *Plan, names []string) (map[string]*recovery.InspectReport, error) {
	reports := map[string]*recovery.InspectReport{}
	for name, err := range s.each(names, func(name string, a agent.Agent) error {
		kept := s.keptName(name, p)
		if kept == "" {
			return errors.New("it has kept no database from before the run")
		}

		report, err := a.InspectKept(ctx, kept)
		if err == nil && !report.Healthy {
			err = fmt.Errorf("%s is damaged there", kept)
		}

		if err != nil {
			return err
		}

		report.Copy = false // nothing was written to it between the stop and the exchange
		s.mu.Lock()
		defer s.mu.Unlock()

		reports[name] = report
		return nil
	}) {
		if s.agent(name) != nil {
			s.tell(name, "", "cannot give the database from before the run: %v", err)
		}
	}

	return reports, ctx.Err()
}

// endsAs tells whether a log is the one that was seen: raft's logs that have an entry in common are the same up to it.
func endsAs(r *recovery.InspectReport, was *Seen) bool {
	return was != nil && r.Raft.LastIndex == was.Index && r.Raft.LastTerm == was.Term && lastChecksum(r) == was.Checksum
}

// holds tells whether one of some logs has the entry that a log ended with.
func holds(kept map[string]*recovery.InspectReport, was *Seen) bool {
	for _, r := range kept {
		if endsAs(r, was) {
			return true
		}

		for _, e := range r.Entries {
			if e.Index == was.Index && e.Term == was.Term && e.Checksum == was.Checksum {
				return true
			}
		}
	}

	return false
}

// lastChecksum is that of a log's last entry; empty if there is none after the snapshot.
func lastChecksum(r *recovery.InspectReport) string {
	if len(r.Entries) == 0 {
		return ""
	}

	return r.Entries[len(r.Entries)-1].Checksum
}
