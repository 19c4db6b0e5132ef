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
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// ErrNoRun says that no member is part of an open run.
var ErrNoRun = errors.New("no run over the cluster is open: there is nothing to finish")

// FindRun finds the plan of the run that is open on the member that is reached first.
func FindRun(ctx context.Context, opts Options) (*Plan, error) {
	s := newSession(opts)
	name, err := s.first(ctx)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}

	open := s.looks[name].Open
	err = s.Close()
	switch {
	case err != nil:
		return nil, err
	case open == nil:
		return nil, fmt.Errorf("%s: %w; the file of a plan names its run", name, ErrNoRun)
	}

	p, err := ParsePlan([]byte(open.Plan))
	if err != nil {
		return nil, fmt.Errorf("%s: the plan of its open run: %w", name, err)
	}

	return p, nil
}

// rejoin reaches the members of a plan that can be reached, and joins the run on them again.
func rejoin(ctx context.Context, opts Options, p *Plan) (*Session, error) {
	s := newSession(opts)
	s.run, s.rejoined = p.ID, true
	failed, err := s.reachMembers(ctx, p)
	if err == nil {
		err = s.oneCluster()
	}

	if err != nil {
		return nil, errors.Join(err, s.Close())
	}

	for _, name := range slices.Sorted(maps.Keys(failed)) {
		s.tell(name, "", "was not reached: %v", failed[name])
	}

	err = s.each(s.names(), func(name string, a agent.Agent) error {
		state, err := s.joinAgain(ctx, a)
		if isBusy(err) { // an agent that is stuck there must not keep all others from going on
			s.tell(name, "", "was not reached: %v", err)
			return s.drop(name)
		}

		s.mu.Lock()
		s.states[name] = state
		s.mu.Unlock()
		return err
	}).join()
	if err == nil && len(s.names()) == 0 {
		err = errors.New("no member was reached on which no other lxd-recover is at work")
	}

	if err != nil {
		return nil, errors.Join(err, s.Close())
	}

	return s, nil
}

// oneCluster refuses members of different clusters: one of another cluster may have the name of one of ours, and is part of no run of ours.
func (s *Session) oneCluster() error {
	names := s.names()
	for _, name := range names[1:] {
		if s.looks[name].Status.Cluster != s.looks[names[0]].Status.Cluster {
			return &recovery.Refusal{Code: "another-cluster", Member: name,
				Reason: fmt.Sprintf("%s is a member of another cluster than %s: their cluster certificates differ", name, names[0])}
		}
	}

	return nil
}

// Reach connects to the members of a plan, all but the lost ones, and checks that a run can begin. The session can apply the plan.
func Reach(ctx context.Context, opts Options, p *Plan) (*Session, error) {
	opts.Move, opts.Lost = p.Move, p.Lost()
	s := newSession(opts)
	err := s.reachPlan(ctx, p)
	if err == nil {
		err = s.check()
	}

	if err != nil {
		return nil, errors.Join(err, s.Close())
	}

	return s, nil
}

func (s *Session) reachPlan(ctx context.Context, p *Plan) error {
	failed, err := s.reachMembers(ctx, p)
	if err != nil {
		return err
	}

	return s.unreached(ctx, failed)
}

// reachMembers connects to the members of a plan, all but the lost ones. It returns those that were not reached; none at all is an error.
func (s *Session) reachMembers(ctx context.Context, p *Plan) (failures, error) {
	here := ""
	if s.opts.Here {
		name, err := s.connect(ctx, Member{})
		if err != nil {
			return nil, err
		}

		here = name
		m := p.member(name)
		if m == nil || m.Lost { // the run is given from a machine that has no part in it
			err = s.drop(name)
		}

		if err != nil {
			return nil, err
		}
	}

	var others []Member
	for _, m := range p.Members {
		if !m.Lost && m.Name != here {
			m.Host = s.hostAgain(m, p)
			others = append(others, m)
		}
	}

	failed := s.connectAll(ctx, others)
	if len(s.names()) == 0 {
		return failed, fmt.Errorf("no member was reached: %w", failed.join())
	}

	return failed, ctx.Err()
}

// drop lets go of a member.
func (s *Session) drop(name string) error {
	s.mu.Lock()
	a := s.agents[name]
	delete(s.agents, name)
	s.mu.Unlock()
	return a.Close()
}

// hostAgain is where ssh is to reach a member of a plan that may have been made on another machine.
func (s *Session) hostAgain(m Member, p *Plan) string {
	host, ok := s.opts.Hosts[m.Name]
	switch {
	case ok:
		return host
	case m.Host != "":
		return m.Host
	case p.Move:
		return hostName(m.Address)
	}

	return hostName(m.NewAddress)
}

// done tells whether a run has ended on a member with its new database in place.
func (s *Session) done(name string, p *Plan) bool {
	record := s.looks[name].Status.Import
	return s.states[name] == nil && record != nil && record.Run == p.ID
}

// standing is how far the members have come.
type standing struct {
	open    []string // are part of the run still
	ahead   []string // have the new database, or can get it: done, exchanged or armed
	new     []string // have the new database
	started []string // LXD may have run on it
	apart   []string // are not part of the run, and have the old database

	unreached []string // cannot be asked
	back      bool     // one of them says that the run is being taken back
}

func (s *Session) standing(p *Plan) (st standing) {
	st.unreached = slices.DeleteFunc(p.reachable(), func(name string) bool { return s.agent(name) != nil })
	for _, name := range s.names() {
		state := s.states[name]
		switch {
		case s.done(name, p):
			st.ahead, st.new, st.started = append(st.ahead, name), append(st.new, name), append(st.started, name)
			continue
		case state == nil:
			st.apart = append(st.apart, name)
			continue
		}

		st.back = st.back || state.Back
		st.open = append(st.open, name)
		if !state.Phase.Before(recovery.PhaseArmed) {
			st.ahead = append(st.ahead, name)
		}

		if !state.Phase.Before(recovery.PhaseExchanged) {
			st.new = append(st.new, name)
		}

		if state.Phase == recovery.PhaseStarted {
			st.started = append(st.started, name)
		}
	}

	return st
}

func (p *Plan) reachable() (names []string) {
	for _, m := range p.Members {
		if !m.Lost {
			names = append(names, m.Name)
		}
	}

	return names
}

// Resume finishes a run that was cut off: it goes on if every member was armed, or has come further, and a majority of the new voters can be had; else it
// takes everything back. Members that are not reached now are left for the next time.
func Resume(ctx context.Context, opts Options, p *Plan) (*Result, error) {
	s, err := rejoin(ctx, opts, p)
	if err != nil {
		return nil, err
	}

	r := newResult(p)
	began := time.Now()
	err = s.resume(ctx, p, r)
	r.Seconds = time.Since(began).Seconds()
	return r, errors.Join(err, s.Close())
}

func newResult(p *Plan) *Result {
	return &Result{Run: p.ID, Exchanged: []string{}, Old: []string{}, Started: []string{}, Ready: []string{}, Left: []string{}, Warnings: []string{}}
}

func (s *Session) resume(ctx context.Context, p *Plan, r *Result) error {
	st := s.standing(p)
	switch {
	case len(st.open) == 0 && len(st.unreached) > 0 && len(st.new) > 0:
		r.Exchanged, r.Left = st.new, st.unreached
		return &Partly{Works: p.majority(st.started), Left: st.unreached, Err: fmt.Errorf("the run has ended on %s, and %s cannot be asked: not reached",
			strings.Join(st.new, ", "), strings.Join(st.unreached, ", "))}
	case len(st.open) == 0 && len(st.unreached) > 0:
		return fmt.Errorf("%s: %w; %s was not reached", strings.Join(s.names(), ", "), ErrNoRun, strings.Join(st.unreached, ", "))
	case len(st.open) == 0:
		return ErrNoRun
	case len(st.started) > 0 && len(st.apart) > 0:
		return &Partly{Works: p.majority(st.started), Left: st.open, Err: fmt.Errorf("%s: the database from before the run is in place, and LXD has been "+
			"started on the new one on %s: start LXD there, and look with `lxd-recover cluster recover verify`; or undo the run",
			strings.Join(st.apart, ", "), strings.Join(st.started, ", "))}
	}

	all := len(st.ahead) == len(p.reachable())
	goOn := !st.back && len(st.apart) == 0 && p.majority(st.ahead) && (len(st.new) > 0 || all)
	if len(st.started) == 0 && !goOn {
		return s.takeBack(ctx, p, r, errors.New("not every member had come so far that the run could go on"))
	}

	err := s.askLost(ctx, p)
	if err != nil && len(st.started) == 0 {
		return err
	}

	s.tell("", "", "Going on with the run")
	return s.goOn(context.WithoutCancel(ctx), p, r, st)
}

// goOn exchanges and starts what is not yet.
func (s *Session) goOn(ctx context.Context, p *Plan, r *Result, st standing) error {
	open := slices.DeleteFunc(slices.Clone(st.open), func(name string) bool { return !slices.Contains(st.ahead, name) })
	failed := s.each(open, func(name string, _ agent.Agent) error { return s.exchangeOne(ctx, name) })
	ended := slices.DeleteFunc(slices.Clone(st.new), func(name string) bool { return slices.Contains(st.open, name) })
	return s.finish(ctx, p, r, exchanging{names: open, failed: failed, ended: ended, started: len(st.started) > 0})
}

// Undo takes every member back to before a run: by an exchange back if LXD has run on the new database nowhere; else by another run, whose plan it returns,
// from the database that the chosen member had before. That one is applied with the session, which is nil if there is nothing left to do.
func Undo(ctx context.Context, opts Options, p *Plan) (*Result, *Plan, *Session, error) {
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

	undo, err := s.undoPlan(p, st)
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
func (s *Session) undoPlan(p *Plan, st standing) (*Plan, error) {
	for _, name := range p.reachable() {
		if s.agent(name) == nil {
			return nil, &recovery.Refusal{Code: "unreachable", Member: name,
				Reason: name + " is not reached: all members are taken back, or none"}
		}
	}

	added := s.addedSince(p)
	if len(added) > 0 {
		return nil, &recovery.Refusal{Code: "members-added", Member: added[0],
			Reason: fmt.Sprintf("%s joined the cluster after the run, and the database from before it does not know them: LXD there would go on "+
				"with the new one. Remove them first, with `lxc cluster remove`", strings.Join(added, ", "))}
	}

	from, source := s.cameFrom(p), ""
	if record := s.looks[from].Status.Import; record != nil && record.Run == p.ID {
		source = record.Kept
	} else if state := s.states[from]; state != nil {
		source = state.Kept
	}

	if source == "" {
		return nil, fmt.Errorf("%s has not kept the database from before the run any more: `lxd-recover global-db-kept list` there lists what is kept", from)
	}

	undo := &Plan{ID: bundle.NewRun(), Created: time.Now().UTC().Truncate(time.Second), Version: s.opts.Version, Giver: s.opts.Giver,
		From: from, Source: source,
		Undoes: p.ID, Reason: "the run began with its database", Certain: true, NoStart: s.opts.NoStart, Losses: []Loss{}, Warnings: []string{}}
	inForce := s.members(from) // the tarball gets it
	for _, m := range p.Members {
		m.Address, m.Role = m.NewAddress, m.NewRole
		now, ok := inForce.ByID(m.ID)
		if ok {
			m.Address, m.NewAddress, m.Role, m.NewRole = now.Address, now.Address, now.Role.String(), now.Role.String()
		}

		if !m.Lost {
			m.Seen, m.Host = seen(s.looks[m.Name]), s.hosts[m.Name]
		}

		undo.Members = append(undo.Members, m)
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

	lines := recovery.Lines(loss.Found)
	for _, text := range loss.Untold {
		lines = append(lines, "what cannot be told: "+text)
	}

	if len(lines) > 0 {
		undo.Losses = append(undo.Losses, Loss{Member: strings.Join(s.names(), ", "), Count: recovery.Count(loss.Found).String(), Lines: lines})
	}

	return nil
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

// endOpen ends a run on the members on which it is open, and makes room for the one that undoes it. What has the new database keeps it.
func (s *Session) endOpen(ctx context.Context, st standing) error {
	return s.each(st.open, func(name string, a agent.Agent) error {
		switch s.states[name].Phase {
		case recovery.PhaseStarted:
			return a.Finish(ctx, false)
		case recovery.PhaseExchanged:
			return a.Finish(ctx, true)
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
