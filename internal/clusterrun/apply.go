// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/agent"
	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// Result is what a run has come to.
type Result struct {
	Run       string           `json:"run"`
	Raft      *bundle.Position `json:"raft"`      // last entry of the new database: the fence; null if none was made
	Exchanged []string         `json:"exchanged"` // members with the new database
	Old       []string         `json:"old"`       // members with the one from before the run
	Started   []string         `json:"started"`   // members on which LXD was started
	Ready     []string         `json:"ready"`     // members on which LXD answers
	Left      []string         `json:"left"`      // members on which the run is still open
	Seconds   float64          `json:"seconds"`   // from the first stop until the end
	Warnings  []string         `json:"warnings"`

	Verdict *recovery.ClusterVerdict `json:"verdict"` // null if nobody looked

	rows globaldb.Fingerprint // at the fence
}

// TakenBack says that a run has failed, and that every member has its old database again.
type TakenBack struct {
	Err   error
	Begun bool // the run was at work on all of them
}

func (e *TakenBack) Error() string {
	if !e.Begun { // another run may be at work
		return e.Err.Error() + "; this run has changed nothing"
	}

	return e.Err.Error() + product.Text("; nothing was changed: every member has the database that it had, and LXD runs again where it ran")
}

func (e *TakenBack) Unwrap() error { return e.Err }

// Partly says that a run has not done all. Works tells whether the cluster works.
type Partly struct {
	Err   error
	Works bool
	Left  []string // members on which the run is still open
}

func (e *Partly) Error() string {
	text := e.Err.Error()
	if len(e.Left) > 0 {
		text += fmt.Sprintf("; the run is not ended on %s: `lxd-recover cluster recover resume` goes on with it, "+
			"`lxd-recover cluster recover undo` takes it back",
			strings.Join(e.Left, ", "))
	}

	return text
}

func (e *Partly) Unwrap() error { return e.Err }

// phase does one step on all members at once. The first error of a step that all must take ends the run.
func (s *Session) phase(ctx context.Context, phase recovery.Phase, do func(name string, a agent.Agent) error) error {
	failed := s.each(s.names(), func(name string, a agent.Agent) error {
		err := do(name, a)
		if err == nil {
			s.tellPhase(name, phase)
		}

		return err
	})
	return errors.Join(failed.join(), ctx.Err())
}

// phaseText says what a member has done.
var phaseText = map[recovery.Phase]string{
	recovery.PhaseReached:   "is part of the run",
	recovery.PhaseGated:     "LXD does not start by itself any more",
	recovery.PhaseStopped:   "LXD is down",
	recovery.PhaseStaged:    "the new database lies ready, and was checked",
	recovery.PhaseArmed:     "waits for the exchange",
	recovery.PhaseExchanged: "the new database is in place",
	recovery.PhaseStarted:   "LXD is being started",
}

// byHandText says what a member has done on which nothing is known that starts LXD.
var byHandText = map[recovery.Phase]string{
	recovery.PhaseGated:   "nothing is known here that starts LXD: do not start it yet",
	recovery.PhaseStarted: "start LXD here: nothing is known that does it",
}

// tellPhase tells that a member has come to a phase.
func (s *Session) tellPhase(name string, phase recovery.Phase) {
	text := phaseText[phase]
	if s.byHand(name) {
		text = cmp.Or(byHandText[phase], text)
	}

	s.tell(name, string(phase), "%s", product.Text(text))
}

// byHand tells whether nothing is known that starts LXD on a member that was looked at.
func (s *Session) byHand(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()

	look := s.looks[name]
	return look != nil && look.Service == ""
}

// Apply carries out a plan on the members of the session. After an error that is a *TakenBack all members are as they were; a *Partly says what is
// left.
func (s *Session) Apply(ctx context.Context, p *Plan) (*Result, error) {
	s.run = p.ID
	r := newResult(p)
	began := time.Now()
	defer func() { r.Seconds = time.Since(began).Seconds() }()

	if s.leave != nil {
		err := s.leave(ctx)
		if err != nil {
			return r, err
		}
	}

	err := s.join(ctx, p)
	if err == nil {
		err = s.prepare(ctx, p, r)
	}

	if err != nil {
		return r, s.takeBack(ctx, p, r, err)
	}

	return r, s.exchangeAll(ctx, p, r)
}

// join reserves the members, in the order of their ids: of two runs at once one gets them all.
func (s *Session) join(ctx context.Context, p *Plan) error {
	data, err := p.Marshal()
	if err != nil {
		return err
	}

	for _, name := range s.names() {
		_, err = s.agent(name).Join(ctx, agent.JoinRun{Run: p.ID, Giver: p.Giver, Plan: string(data), Instead: p.Undoes})
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}

		s.tellPhase(name, recovery.PhaseReached)
	}

	return nil
}

// prepare does all that can be taken back without a trace: up to the point at which every member has staged and checked.
func (s *Session) prepare(ctx context.Context, p *Plan, r *Result) error {
	s.begun = true
	err := s.phase(ctx, recovery.PhaseGated, func(_ string, a agent.Agent) error { return a.Gate(ctx) })
	if err != nil {
		return err
	}

	err = s.phase(ctx, recovery.PhaseStopped, func(name string, a agent.Agent) error {
		killed, err := a.Stop(ctx)
		if killed {
			s.tell(name, "", "%s", product.Text("LXD did not heed SIGTERM, and its process was killed; instances go on running"))
		}

		return err
	})
	if err != nil {
		return err
	}

	err = s.lookAgain(ctx, p)
	if err != nil {
		return err
	}

	made, err := s.distribute(ctx, p)
	if err != nil {
		return err
	}

	r.Raft, r.rows = &made.Export.Raft, made.Rows
	return s.stage(ctx, p, r)
}

// lookAgain reads the logs again, now that nobody writes to them, and asks if they are not as the plan has seen them.
func (s *Session) lookAgain(ctx context.Context, p *Plan) error {
	s.tell("", "", "Reading all logs again")
	failed := s.each(s.names(), func(name string, a agent.Agent) error {
		look, err := a.Look(ctx)
		if err == nil {
			s.mu.Lock()
			s.looks[name] = look
			s.mu.Unlock()
		}

		return err
	})
	err := failed.join()
	if err != nil {
		return err
	}

	if p.Source != "" {
		p.sees(s.looks)
		return nil // what is in force is given up
	}

	now := &Plan{Move: p.Move, Losses: []Loss{}}
	err = s.choose(ctx, now)
	if err != nil {
		return err
	}

	if p.Move { // its logs went on until it was stopped
		p.From, p.Reason, p.Certain, p.Doubt, p.Losses = now.From, now.Reason, now.Certain, now.Doubt, now.Losses
	}

	changes := changed(p, now, s.looks)
	p.sees(s.looks)
	if len(changes) == 0 {
		return nil
	}

	if !now.Certain && p.Certain || now.From != p.From {
		if s.opts.From == "" {
			changes = append(changes, fmt.Sprintf("the database of %s is taken, not that of %s: %s", now.From, p.From, now.Reason))
			p.From, p.Reason = now.From, now.Reason
		}
	}

	p.Certain, p.Doubt, p.Losses = now.Certain, now.Doubt, now.Losses
	return s.ask(ctx, Question{Code: "changed", Lines: changes,
		Text: product.Text("Now that LXD is down everywhere, not all is as the plan has seen it. Go on?")})
}

// sees notes where the members' logs ended when LXD was down everywhere: an undo looks for a log that ended there.
func (p *Plan) sees(looks map[string]*recovery.MemberLook) {
	for i, m := range p.Members {
		if m.Seen == nil || looks[m.Name] == nil {
			continue
		}

		now := seen(looks[m.Name])
		p.Members[i].Seen.Index, p.Members[i].Seen.Term, p.Members[i].Seen.Checksum = now.Index, now.Term, now.Checksum
	}
}

// changed says what is not as a plan has seen it. Terms alone do not count: members without a quorum go on counting them. In a cluster that
// worked the logs went on until it was stopped.
func changed(p *Plan, now *Plan, looks map[string]*recovery.MemberLook) []string {
	var changes []string
	for _, m := range p.Members {
		look := looks[m.Name]
		if m.Seen == nil || look == nil {
			continue
		}

		is := seen(look)
		switch {
		case is.Cluster != m.Seen.Cluster:
			changes = append(changes, m.Name+": the cluster certificate is another one")
		case p.Move:
		case is.Index != m.Seen.Index || is.Term != m.Seen.Term || is.Checksum != m.Seen.Checksum:
			changes = append(changes, fmt.Sprintf("%s: its log ended at index %d, term %d, and ends at index %d, term %d now",
				m.Name, m.Seen.Index, m.Seen.Term, is.Index, is.Term))
		}
	}

	if now.From != p.From && len(changes) == 0 && !p.Move && p.Reason == now.Reason {
		changes = append(changes, "the comparison recommends another member")
	}

	return changes
}

// distribute has the tarball made on the chosen member, and sends it to all others at once, out of one reading.
func (s *Session) distribute(ctx context.Context, p *Plan) (*recovery.MakeReport, error) {
	list, err := p.List()
	if err != nil {
		return nil, err
	}

	opts := recovery.MakeOptions{Members: list, Lost: p.Lost(), Source: p.Source, AddressAbsent: p.later()}
	for _, name := range s.names() {
		report := s.looks[name].Inspect
		if report == nil {
			continue
		}

		data, err := json.Marshal(report)
		if err != nil {
			return nil, err
		}

		opts.Reports = append(opts.Reports, data)
	}

	s.dropEntries() // of the members' logs one copy is enough

	s.tell(p.From, "", "makes the new database")
	from := s.agent(p.From)
	made, err := from.Make(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.From, err)
	}

	s.tell(p.From, "", "sends it to the other members: %d MiB", made.Size>>20)
	others := slices.DeleteFunc(s.names(), func(name string) bool { return name == p.From })
	return made, s.send(ctx, from, others, made.Digest)
}

// send copies the tarball from one member to others. The slowest one sets the pace.
func (s *Session) send(ctx context.Context, from agent.Agent, others []string, digest string) error {
	if len(others) == 0 {
		return nil
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	var writers []io.Writer
	ends := map[string]*io.PipeReader{}
	var pipes []*io.PipeWriter
	for _, name := range others {
		r, w := io.Pipe()
		ends[name] = r
		writers, pipes = append(writers, w), append(pipes, w)
	}

	read := make(chan error, 1)
	go func() {
		err := from.Tarball(ctx, io.MultiWriter(writers...))
		for _, w := range pipes {
			_ = w.CloseWithError(err) // io.EOF if there is none
		}

		read <- err
	}()
	failed := s.each(others, func(name string, a agent.Agent) error {
		err := a.Receive(ctx, digest, ends[name])
		_ = ends[name].CloseWithError(cmp.Or(err, errReadsNoMore)) // the others are not waited for: the run ends, unless all was read
		return err
	})
	err := failed.join()
	readErr := <-read
	if err == nil {
		err = readErr
	}

	return err
}

var errReadsNoMore = errors.New("a member has not read the whole tarball")

// stage has every member check the new database, and asks if a member has what the plan has not told.
func (s *Session) stage(ctx context.Context, p *Plan, r *Result) error {
	plan, err := p.Marshal() // another member may have been chosen since they joined
	if err != nil {
		return err
	}

	reports := map[string]*recovery.ImportReport{}
	err = s.phase(ctx, recovery.PhaseStaged, func(name string, a agent.Agent) error {
		report, err := a.Stage(ctx, recovery.StageOptions{SQL: p.SQL, AddressAbsent: p.later(), Plan: string(plan)})
		s.mu.Lock()
		reports[name] = report
		s.mu.Unlock()
		return err
	})
	if err != nil {
		return err
	}

	have := map[string][]string{} // members by what they have
	for _, name := range slices.Sorted(maps.Keys(reports)) {
		report := reports[name]
		for _, w := range report.Warnings {
			r.Warnings = append(r.Warnings, name+": "+w)
		}

		lost := p.notByRun(report.Discarded)
		if len(lost) == 0 || p.told(name, lost) {
			continue
		}

		text := recovery.Count(lost).String()
		for _, line := range recovery.Lines(lost) {
			text += "\n  " + line
		}

		have[text] = append(have[text], name)
	}

	var lines []string
	for _, text := range slices.Sorted(maps.Keys(have)) {
		lines = append(lines, strings.Split(strings.Join(have[text], ", ")+": "+text, "\n")...)
	}

	if len(lines) == 0 {
		return nil
	}

	return s.ask(ctx, Question{Code: "losses", Lines: lines, Text: "Members have changes that the new database lacks. They would be lost. Go on?"})
}

// told tells whether the plan has named what a member loses. An undo names every change of a user: LXD has gone on since.
func (p *Plan) told(name string, lost []recovery.Discarded) bool {
	of := func(l Loss) bool { return slices.Contains(strings.Split(l.Member, ", "), name) }
	if p.Undoes == "" {
		return slices.ContainsFunc(p.Losses, of)
	}

	return !slices.ContainsFunc(recovery.Lines(lost), func(line string) bool {
		return !slices.ContainsFunc(p.Losses, func(l Loss) bool { return of(l) && slices.Contains(l.Lines, line) })
	})
}

// takeBack ends a run that LXD has not run on anywhere. Members that are not reached take themselves back, unless they are armed.
//
// All members that are reached note that the run cannot go on before the first one starts LXD on the old database: otherwise those that were not
// taken back yet, and have the new database, could be started on it by another resume beside a cluster that writes to the old one. For the same
// reason nothing is taken back while so many of those that may have the new database are not reached that they could go on alone.
func (s *Session) takeBack(ctx context.Context, p *Plan, r *Result, why error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeBackTime)
	defer cancel()

	noting, noted := context.WithTimeout(ctx, turnBackTime) // a member that does not answer is not to use up the time of all
	defer noted()

	s.back = true
	s.tell("", "", "Taking everything back: %v", why)
	failed := s.cutOff(p)
	tooMany := func() bool { return s.mayBeExchanged(p) && p.majority(slices.Collect(maps.Keys(failed))) }
	if !tooMany() {
		failed = s.each(p.reachable(), func(name string, _ agent.Agent) error {
			return s.persist(noting, name, func(a agent.Agent) error { return a.TurnBack(noting) })
		})
	}

	if tooMany() {
		r.Exchanged, r.Left = []string{}, p.reachable()
		return &Partly{Left: r.Left, Err: fmt.Errorf("%w; nothing is taken back: %s may have the new database, and could go on alone: %w; "+
			"%s", why, strings.Join(slices.Sorted(maps.Keys(failed)), ", "), failed.join(), lostUse(slices.Sorted(maps.Keys(failed))))}
	}

	names := slices.DeleteFunc(p.reachable(), func(name string) bool { return failed[name] != nil })
	maps.Copy(failed, s.each(names, func(name string, _ agent.Agent) error {
		err := s.persist(ctx, name, func(a agent.Agent) error { return a.Withdraw(ctx) })
		if err == nil && (s.begun || s.rejoined) { // of one that was not free nothing is known
			s.tell(name, "", "has the database that it had")
		}

		return err
	}))
	r.Old, r.Exchanged = slices.DeleteFunc(names, func(name string) bool { return failed[name] != nil }), []string{}
	if len(failed) == 0 {
		return &TakenBack{Err: why, Begun: s.begun || s.rejoined}
	}

	r.Left = slices.Sorted(maps.Keys(failed))
	err := fmt.Errorf("%w; taking it back failed: %w", why, failed.join())
	unreached := slices.Sorted(maps.Keys(s.cutOff(p)))
	if len(unreached) > 0 && len(r.Old) > 0 && !s.mayBeExchanged(p) {
		err = fmt.Errorf("%w; %s", err, p.anew(r.Old, unreached))
	}

	return &Partly{Err: err, Left: r.Left}
}

// ended tells whether an agent can be called no more.
func ended(a agent.Agent) bool {
	select {
	case <-a.Done():
		return true
	default:
		return false
	}
}

// cutOff are the members of a plan that are not reached any more.
func (s *Session) cutOff(p *Plan) failures {
	gone := failures{}
	for _, name := range p.reachable() {
		a := s.agent(name)
		if a == nil || ended(a) {
			gone[name] = errNotReached
		}
	}

	return gone
}

// mayBeExchanged tells whether any member may have the new database: all members stage before the first one is armed, and are armed before the
// first one is exchanged.
func (s *Session) mayBeExchanged(p *Plan) bool {
	s.mu.Lock()
	defer s.mu.Unlock()

	if s.exchanging {
		return true
	}

	for _, name := range p.reachable() {
		state := s.states[name]
		if s.rejoined && state != nil && state.Phase.Before(recovery.PhaseArmed) {
			return false
		}
	}

	return s.rejoined
}

// takeBackTime bounds taking back, start of LXD included; turnBackTime the note before it.
const (
	takeBackTime = 7 * time.Minute
	turnBackTime = 90 * time.Second
)

// exchangeAll does what comes when every member has staged: arm all, exchange all, start all.
func (s *Session) exchangeAll(ctx context.Context, p *Plan, r *Result) error {
	err := s.askLost(ctx, p)
	if err == nil {
		err = s.phase(ctx, recovery.PhaseArmed, func(_ string, a agent.Agent) error { return a.Arm(ctx) })
	}

	if err != nil {
		return s.takeBack(ctx, p, r, err)
	}

	return s.exchange(context.WithoutCancel(ctx), p, r) // from here on the way out is at the end
}

// askLost looks once more whether a lost member answers: its LXD would go on with the old database.
func (s *Session) askLost(ctx context.Context, p *Plan) error {
	opts := agent.ProbeOptions{}
	var lost []string
	for _, m := range p.Members {
		if m.Lost {
			lost, opts.Others = append(lost, m.Name), append(opts.Others, m.Address)
		}
	}

	if len(lost) == 0 {
		return nil
	}

	asker := p.From
	if s.agent(asker) == nil { // when a run goes on
		asker = s.names()[0]
	}

	r, err := s.agent(asker).Probe(ctx, opts)
	if err != nil {
		return fmt.Errorf("%s: %w", asker, err)
	}

	for i, found := range r.Others {
		if found == daemon.Answers || found == daemon.Mute {
			return &recovery.Refusal{Code: "lost-member-answers", Member: lost[i],
				Reason: product.Sprintf("LXD answers at %s, the address of %s, which was said to be lost. Stop LXD there, or take %s into the run",
					opts.Others[i], lost[i], lost[i])}
		}
	}

	return nil
}

// exchange puts the new database in place on all members that are armed, and starts LXD if a majority of the new voters has it. Else those that have it
// give it back.
func (s *Session) exchange(ctx context.Context, p *Plan, r *Result) error {
	s.mu.Lock()
	s.exchanging = true
	s.mu.Unlock()
	names := s.names()
	failed := s.each(names, func(name string, _ agent.Agent) error {
		return s.exchangeOne(ctx, name)
	})
	return s.finish(ctx, p, r, exchanging{names: names, failed: failed})
}

// exchangeTime bounds the exchange on a member, which may have to stage once more. Nobody can interrupt it: a disk that hangs must not keep LXD down on
// all members.
const exchangeTime = 15 * time.Minute

// exchangeOne puts the new database in place on a member, unless that has happened.
func (s *Session) exchangeOne(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(s.opts.ExchangeTime, exchangeTime))
	defer cancel()

	err := s.persist(ctx, name, func(a agent.Agent) error {
		s.mu.Lock()
		state := s.states[name]
		s.mu.Unlock()
		if state != nil && !state.Phase.Before(recovery.PhaseExchanged) {
			return nil
		}

		_, err := a.Exchange(ctx, s.accepted[name])
		return err
	})
	if err == nil {
		s.tellPhase(name, recovery.PhaseExchanged)
	}

	return err
}

// persist does a step that must be done; if the connection to the member was lost, it connects once more.
func (s *Session) persist(ctx context.Context, name string, do func(a agent.Agent) error) error {
	a := s.agent(name)
	err := do(a)
	if err == nil || !ended(a) {
		return err
	}

	s.tell(name, "", "the connection was lost: %v", err)
	again, state, connectErr := s.again(ctx, name)
	if connectErr != nil {
		return errors.Join(err, connectErr)
	}

	switch {
	case state != nil:
		return do(again)
	case s.back: // before PhaseArmed a member takes its part back by itself
		return nil
	}

	return fmt.Errorf("it has taken its part in the run back: %w", err)
}

// again connects to a member again, and joins the run there.
func (s *Session) again(ctx context.Context, name string) (agent.Agent, *recovery.OpenRun, error) {
	limited, cancel := context.WithTimeout(ctx, s.opts.againTime())
	defer cancel()

	a, err := s.opts.Connect(limited, Member{Name: name, Host: s.hosts[name]})
	if err != nil {
		return nil, nil, err
	}

	state, err := s.joinAgain(limited, a)
	if err != nil {
		return nil, nil, errors.Join(err, a.Close())
	}

	s.mu.Lock()
	old := s.agents[name]
	s.agents[name], s.states[name] = a, state
	s.mu.Unlock()
	_ = old.Close()
	return a, state, nil
}

// joinAgain joins a run on a member whose former agent may still be ending, or be stuck for good.
func (s *Session) joinAgain(ctx context.Context, a agent.Agent) (*recovery.OpenRun, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.againTime())
	defer cancel()

	var state *recovery.OpenRun
	err := whileBusy(ctx, func() (err error) {
		state, err = a.Join(ctx, agent.JoinRun{Run: s.run, Again: true})
		return err
	})
	return state, err
}

// whileBusy does something again as long as another process is at work on the member, such as its former agent.
func whileBusy(ctx context.Context, do func() error) error {
	for {
		err := do()
		if !isBusy(err) {
			return err
		}

		select {
		case <-ctx.Done():
			return err
		case <-time.After(againPause):
		}
	}
}

// isBusy tells whether a member cannot join a run because another process is at work there.
func isBusy(err error) bool { return errors.Is(err, recovery.ErrBusy) }

// againPause is between two tries to join a run again.
const againPause = 200 * time.Millisecond

// againTime bounds the wait for a member to which the connection was lost.
func (o *Options) againTime() time.Duration { return cmp.Or(o.AgainTime, time.Minute) }

// exchanging is what has come of the exchange.
type exchanging struct {
	names   []string // members that were to be exchanged
	failed  failures // those of them that were not
	ended   []string // others that have the new database, and on which the run has ended
	started bool     // LXD may have run on the new database somewhere
}

// finish starts the members that have the new database. If they are too few, all is taken back, unless LXD may have run on it.
func (s *Session) finish(ctx context.Context, p *Plan, r *Result, x exchanging) error {
	failed := x.failed
	r.Exchanged = slices.DeleteFunc(slices.Clone(x.names), func(name string) bool { return failed[name] != nil })
	few := errors.Join(errors.New("a majority of the new voters cannot be had"), failed.join())
	switch {
	case p.majority(slices.Concat(r.Exchanged, x.ended)):
	case x.started || len(x.ended) > 0:
		r.Left = x.names
		return &Partly{Err: few, Left: r.Left}
	default:
		return s.takeBack(ctx, p, r, few)
	}

	done := s.start
	if p.NoStart {
		done = s.leaveDown
	}

	err := done(ctx, r)
	r.Exchanged = append(r.Exchanged, x.ended...)
	r.Left = s.left(p, r, x.ended)
	err = errors.Join(failed.join(), err)
	if err != nil || len(r.Left) > 0 {
		return &Partly{Err: cmp.Or(err, errNotAll), Works: len(r.Ready) > 0, Left: r.Left}
	}

	return nil
}

var errNotAll = errors.New("not all members are part of the new cluster yet")

// left are the members of the plan on which the run is not ended.
func (s *Session) left(p *Plan, r *Result, done []string) []string {
	return slices.DeleteFunc(p.reachable(), func(name string) bool {
		return slices.Contains(done, name) || slices.Contains(r.Started, name) || p.NoStart && slices.Contains(r.Exchanged, name)
	})
}

// majority tells whether raft can elect a leader among these members.
func (p *Plan) majority(names []string) bool {
	voters, have := 0, 0
	for _, m := range p.Members {
		if m.NewRole != raftlog.Voter.String() {
			continue
		}

		voters++
		if slices.Contains(names, m.Name) {
			have++
		}
	}

	return have > voters/2
}

// start starts LXD on all members that have the new database, and waits until it answers.
func (s *Session) start(ctx context.Context, r *Result) error {
	failed := s.each(r.Exchanged, func(name string, a agent.Agent) error {
		err := a.Start(ctx)
		if err == nil {
			s.tellPhase(name, recovery.PhaseStarted)
		}

		return err
	})
	r.Started = slices.DeleteFunc(slices.Clone(r.Exchanged), func(name string) bool { return failed[name] != nil })
	silent := failures{}
	more := s.each(r.Started, func(name string, a agent.Agent) error {
		listed, err := a.Ready(ctx, s.opts.StartTime)
		if err != nil {
			return err
		}

		s.mu.Lock()
		defer s.mu.Unlock()

		if listed == nil {
			silent[name] = errors.New(product.Text("LXD was started and does not answer yet"))
			return nil
		}

		r.Ready = append(r.Ready, name)
		return nil
	})
	slices.Sort(r.Ready)
	for _, name := range r.Ready {
		s.tell(name, "", "%s", product.Text("LXD answers"))
	}

	// What has come so far does not go back by itself: the run is over there.
	ended := s.each(r.Started, func(_ string, a agent.Agent) error { return a.Finish(ctx, false) })
	return errors.Join(failed.join(), more.join(), silent.join(), ended.join())
}

// leaveDown ends the run without a start.
func (s *Session) leaveDown(ctx context.Context, r *Result) error {
	return s.each(r.Exchanged, func(_ string, a agent.Agent) error { return a.Finish(ctx, true) }).join()
}
