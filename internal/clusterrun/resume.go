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
	"github.com/lxd-recover/lxd-recover/internal/printable"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// ErrNoRun says that no member is part of an open run.
var ErrNoRun = errors.New("no run over the cluster is open: there is nothing to finish")

// FindRun finds the plan of the run that is open on the members that are reached. Members that are part of different runs are a refusal.
func FindRun(ctx context.Context, opts Options) (*Plan, error) {
	s := newSession(opts)
	p, err := s.findRun(ctx)
	return p, errors.Join(err, s.Close())
}

func (s *Session) findRun(ctx context.Context) (*Plan, error) {
	first, err := s.first(ctx)
	if err != nil {
		return nil, err
	}

	for name, err := range s.reachOthers(ctx, first) {
		s.tell(name, "", "was not reached: %v", err)
	}

	runs := map[string][]string{} // members, by the ids of their runs
	furthest := ""                // its plan is the last one that was written
	for _, name := range s.names() {
		open := s.looks[name].Open
		if open == nil {
			continue
		}

		runs[open.Run] = append(runs[open.Run], name)
		if furthest == "" || s.looks[furthest].Open.Phase.Before(open.Phase) {
			furthest = name
		}
	}

	switch len(runs) {
	case 0:
		err = s.refuseResyncing()
		if err != nil {
			return nil, err
		}

		return nil, fmt.Errorf("%s: %w; the file of a plan names its run", strings.Join(s.names(), ", "), ErrNoRun)
	case 1:
	default:
		var texts []string
		for _, run := range slices.Sorted(maps.Keys(runs)) {
			texts = append(texts, fmt.Sprintf("%s of run %s, given on %s", strings.Join(runs[run], ", "), run, s.looks[runs[run][0]].Open.Giver))
		}

		return nil, &recovery.Refusal{Code: "several-runs", Reason: fmt.Sprintf("members are part of different runs: %s. The file of a plan says which one is "+
			"meant: the machine that gave a run has it in its directory of logs", strings.Join(texts, "; "))}
	}

	p, err := ParsePlan([]byte(s.looks[furthest].Open.Plan))
	if err != nil {
		return nil, fmt.Errorf("%s: the plan of its open run: %w", furthest, err)
	}

	return p, ctx.Err()
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
		err = s.check(ctx)
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

// lostUse says how a member is declared lost.
func lostUse(names []string) string {
	return product.Sprintf("if it is lost for good, and its LXD will not be started again, --lost %s says so", printable.Word(strings.Join(names, ",")))
}

// anew says how to begin again after a run that some members have left, on their old database, and with which others cannot be reached. There is
// no other choice of a database for a run that has begun: only a new one compares the members.
func (p *Plan) anew(left []string, unreached []string) string {
	text := fmt.Sprintf("the database from before the run is in place on %s", strings.Join(left, ", "))
	if p.Undoes != "" { // it is another run that is to be undone
		return text
	}

	lost := printable.Word(strings.Join(slices.Concat(p.Lost(), unreached), ","))
	return text + product.Sprintf(": if %s is lost for good, and its LXD will not be started again, `lxd-recover cluster recover --lost %s` begins another "+
		"run with the others (add --address and --host as before, and --from NAME to choose whose database all get)", strings.Join(unreached, ", "), lost)
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
// takes everything back. Members that are not reached now are left for the next time. What has gone on to the end is judged as after Apply.
func Resume(ctx context.Context, opts Options, p *Plan) (*Result, error) {
	p, err := p.without(opts.Lost)
	if err != nil {
		return nil, err
	}

	s, err := rejoin(ctx, opts, p)
	if err != nil {
		return nil, err
	}

	r := newResult(p)
	began := time.Now()
	err = s.resume(ctx, p, r)
	r.Seconds = time.Since(began).Seconds()
	if err == nil {
		err = s.VerifyRun(ctx, p, r)
	}

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
		return fmt.Errorf("%s: %w; %s was not reached; %s", strings.Join(s.names(), ", "), ErrNoRun, strings.Join(st.unreached, ", "),
			p.anew(st.apart, st.unreached))
	case len(st.open) == 0:
		return ErrNoRun
	case len(st.started) > 0 && len(st.apart) > 0:
		return &Partly{Works: p.majority(st.started), Left: st.open, Err: product.Errorf("%s: the database from before the run is in place, and LXD has been "+
			"started on the new one on %s: start LXD there, and look with `lxd-recover cluster recover verify`; or undo the run",
			strings.Join(st.apart, ", "), strings.Join(st.started, ", "))}
	}

	could := !st.back && len(st.apart) == 0 && p.majority(st.ahead)
	armed := len(st.ahead)+len(st.unreached) == len(p.reachable()) // all that are reached
	if could && armed && len(st.new) == 0 && len(st.unreached) > 0 {
		return &recovery.Refusal{Code: "unreachable", Member: st.unreached[0], Flag: "--lost", Use: lostUse(st.unreached),
			Reason: product.Sprintf("%s is not reached, and the others could go on with the run; until then LXD stays down there. "+
				"`lxd-recover cluster recover undo` takes everything back", strings.Join(st.unreached, ", "))}
	}

	goOn := could && (len(st.new) > 0 || len(st.unreached) == 0 && armed)
	if len(st.started) == 0 && !goOn {
		return s.takeBack(ctx, p, r, errors.New("not every member had come so far that the run could go on"))
	}

	err := s.askLost(ctx, p)
	if err != nil && len(st.started) == 0 {
		return err
	}

	err = s.askWritten(ctx, st.open)
	if err != nil {
		return err
	}

	s.tell("", "", "Going on with the run")
	return s.goOn(context.WithoutCancel(ctx), p, r, st)
}

// askWritten asks about what was written on members since they were armed, before anything is exchanged.
func (s *Session) askWritten(ctx context.Context, names []string) error {
	var lines []string
	for _, name := range names {
		w := s.states[name].Written
		switch {
		case w == nil:
			continue
		case w.Running:
			return w.Refusal(name)
		}

		s.accepted[name] = w.State
		lines = append(lines, name+": "+recovery.Count(w.Found).String())
		for _, line := range w.Lines() {
			lines = append(lines, "  "+line)
		}
	}

	if len(lines) == 0 {
		return nil
	}

	return s.ask(ctx, Question{Code: "losses", Lines: lines, Text: product.Text("LXD was started by hand on members that were ready for the exchange, and " +
		"has written what the new database lacks. That would be lost. Go on?")})
}

// goOn exchanges and starts what is not yet.
func (s *Session) goOn(ctx context.Context, p *Plan, r *Result, st standing) error {
	open := slices.DeleteFunc(slices.Clone(st.open), func(name string) bool { return !slices.Contains(st.ahead, name) })
	failed := s.each(open, func(name string, _ agent.Agent) error { return s.exchangeOne(ctx, name) })
	ended := slices.DeleteFunc(slices.Clone(st.new), func(name string) bool { return slices.Contains(st.open, name) })
	return s.finish(ctx, p, r, exchanging{names: open, failed: failed, ended: ended, started: len(st.started) > 0})
}
