// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/agent"
	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// Undo takes every member back to before a run: by an exchange back if LXD has run on the new database nowhere; else by another run, whose plan it returns,
// from the database that the chosen member had before. That one is applied with the session, which is nil if there is nothing left to do.
func Undo(ctx context.Context, opts Options, p *Plan) (*Result, *Plan, *Session, error) {
	p, err := p.without(opts.Lost)
	if err != nil {
		return nil, nil, nil, err
	}

	s, err := rejoin(ctx, opts, p)
	if err != nil {
		return nil, nil, nil, err
	}

	r := newResult(p)
	st := s.standing(p)
	if len(st.started) == 0 {
		if len(st.open) == 0 {
			return nil, nil, nil, errors.Join(ErrNoRun, s.Close())
		}

		err = s.takeBack(ctx, p, r, errUndone)
		var back *TakenBack
		if errors.As(err, &back) {
			err = nil
		}

		return r, nil, nil, errors.Join(err, s.Close())
	}

	undo, err := s.undoPlan(ctx, p, st)
	if err == nil {
		err = s.undoLosses(ctx, undo)
	}

	if err != nil {
		return nil, nil, nil, errors.Join(err, s.Close())
	}

	return r, undo, s, nil
}

var errUndone = errors.New("the run is undone")

// undoPlan makes the plan of the run that takes the members back after LXD has run on the new database.
func (s *Session) undoPlan(ctx context.Context, p *Plan, st standing) (*Plan, error) {
	if len(st.unreached) > 0 {
		return nil, &recovery.Refusal{Code: "unreachable", Member: st.unreached[0], Flag: "--lost", Use: lostUse(st.unreached),
			Reason: strings.Join(st.unreached, ", ") + " is not reached: all members are taken back, or none"}
	}

	added := s.addedSince(p)
	if len(added) > 0 {
		return nil, &recovery.Refusal{Code: "members-added", Member: added[0],
			Reason: product.Sprintf("%s joined the cluster after the run, and the database from before it does not know them: LXD there would go on "+
				"with the new one. Remove them first, with `lxc cluster remove`", strings.Join(added, ", "))}
	}

	old, err := s.oldLog(ctx, p)
	if err != nil {
		return nil, err
	}

	undo := &Plan{ID: bundle.NewRun(), Created: time.Now().UTC().Truncate(time.Second), Version: s.opts.Version, Giver: s.opts.Giver,
		From: old.from, Source: old.kept, Undoes: p.ID, UndoesSQL: p.SQL, Reason: old.reason,
		Certain: old.doubt == "", Doubt: old.doubt, NoStart: s.opts.NoStart,
		Losses: append([]Loss{}, old.losses...), Warnings: []string{}}
	inForce := s.members(old.from) // the tarball gets it
	for _, m := range p.Members {
		m.Address, m.Role = m.NewAddress, m.NewRole
		now, ok := inForce.ByID(m.ID)
		if ok {
			m.Address, m.NewAddress, m.Role, m.NewRole = now.Address, now.Address, now.Role.String(), now.Role.String()
		}

		m.Seen = nil
		if !m.Lost {
			m.Seen, m.Host = seen(s.looks[m.Name]), s.hosts[m.Name]
		}

		undo.Members = append(undo.Members, m)
	}

	if !undo.majority(undo.reachable()) { // its list is the one in force
		return nil, &recovery.Refusal{Code: "no-majority", Reason: fmt.Sprintf("%s are no majority of the voters in force: the cluster cannot work. "+
			"Recover it first, with `lxd-recover cluster recover`", strings.Join(undo.reachable(), ", "))}
	}

	s.run = undo.ID
	s.leave = func(ctx context.Context) error { return s.leaveRun(ctx, p, st) }
	return undo, nil
}

// undoLosses names what users have changed since the run that is undone, before anything is stopped.
func (s *Session) undoLosses(ctx context.Context, undo *Plan) error {
	loss, err := s.agent(undo.From).KeptLoss(ctx, undo.Source)
	if err != nil {
		return fmt.Errorf("%s: what would be lost: %w", undo.From, err)
	}

	loss.Found = undo.notByRun(loss.Found)
	lines := loss.Lines()
	if len(lines) > 0 {
		undo.Losses = append(undo.Losses, Loss{Member: strings.Join(s.names(), ", "), Count: recovery.Count(loss.Found).String(), Lines: lines})
	}

	return nil
}

// notByRun leaves out of transactions what the run that is undone has changed itself, when LXD started on its database: the addresses in force, which the
// members keep, and what its own SQL has set. A user's rows in the same transaction stay.
func (p *Plan) notByRun(found []recovery.Discarded) []recovery.Discarded {
	if p.Undoes == "" {
		return found
	}

	var left []recovery.Discarded
	for _, d := range found {
		rows := slices.DeleteFunc(slices.Clone(d.Rows), p.byRun)
		if len(rows) == 0 && len(d.Rows) > 0 && d.Unknown == "" {
			continue
		}

		d.Rows = rows
		left = append(left, d)
	}

	return left
}

// byRun tells whether a run that is undone has changed a row, or would have: that is nobody's loss.
func (p *Plan) byRun(row globaldb.RowChange) bool {
	if row.Before == nil || row.After == nil {
		return false
	}

	if row.Table == "config" {
		return p.UndoesSQL == healingSQL && row.After["key"] == globaldb.Literal(healingKey) && row.After["value"] == globaldb.Literal("0")
	}

	for _, m := range p.Members {
		if row.Table != "nodes" || row.Key != fmt.Sprintf("id=%d", m.ID) || row.After["address"] != globaldb.Literal(m.NewAddress) {
			continue
		}

		rest := row
		rest.Before = maps.Clone(row.Before)
		rest.Before["address"] = row.After["address"]
		return rest.ByLXD()
	}

	return false
}

// cameFrom is the member whose database all got, as they have noted it: that may have been another one than a plan says which was written before LXD
// was stopped.
func (s *Session) cameFrom(p *Plan) string {
	for _, name := range s.names() {
		record := s.looks[name].Status.Import
		if record == nil || record.Run != p.ID {
			continue
		}

		m := p.member(record.Source)
		if m != nil && !m.Lost {
			return m.Name
		}
	}

	return p.From
}

// addedSince are the members that the cluster has and the plan has not, by their names.
func (s *Session) addedSince(p *Plan) (added []string) {
	for _, name := range s.names() {
		for _, m := range s.members(name) {
			known := slices.ContainsFunc(p.Members, func(of Member) bool { return of.ID == m.ID })
			if !known && !slices.Contains(added, m.Name) {
				added = append(added, m.Name)
			}
		}
	}

	return added
}

// endOpen ends a run on the members on which it is open, and makes room for the one that undoes it. What has the new database keeps it. One that is armed
// stays so until that other run takes it over, see recovery.JoinOptions.Instead: LXD does not start on its old database in between.
func (s *Session) endOpen(ctx context.Context, st standing) error {
	return s.each(st.open, func(name string, a agent.Agent) error {
		switch s.states[name].Phase {
		case recovery.PhaseStarted:
			return a.Finish(ctx, false)
		case recovery.PhaseExchanged:
			return a.Finish(ctx, true)
		case recovery.PhaseArmed:
			return nil
		}

		return a.Withdraw(ctx)
	}).join()
}

// leaveRun ends a run on the members, gives them new agents, which are not part of one, and looks at them again.
func (s *Session) leaveRun(ctx context.Context, p *Plan, st standing) error {
	err := s.endOpen(ctx, st)
	if err == nil {
		err = s.newAgents(ctx)
	}

	if err != nil {
		return &Partly{Err: fmt.Errorf("the run that is to be undone cannot be ended everywhere: %w", err), Works: p.majority(st.started), Left: st.open}
	}

	return nil
}

func (s *Session) newAgents(ctx context.Context) error {
	return s.each(s.names(), func(name string, old agent.Agent) error {
		err := old.Close()
		if err != nil {
			return err
		}

		a, err := s.opts.Connect(ctx, Member{Name: name, Host: s.hosts[name]})
		if err != nil {
			return err
		}

		look, err := a.Look(ctx)
		s.mu.Lock()
		defer s.mu.Unlock()

		s.agents[name], s.states[name] = a, nil
		if err == nil {
			s.looks[name] = look
		}

		return err
	}).join()
}
