// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/agent"
	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/printable"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// A resync from another machine is no run over the cluster: one member is stopped, and the others go on. On that member it is a resync as by hand, and leaves
// what one by hand leaves. The giver only carries the nonce one way and the backup the other way.

// ResyncPlan is what is done to give one broken member of a working cluster the database of the others.
type ResyncPlan struct {
	ID     string `json:"id"`
	Member string `json:"member"` // the broken one
	From   string `json:"from"`   // the one whose log it gets
	Host   string `json:"host"`   // where ssh reaches Member; empty for this machine

	Seen   *Seen  `json:"seen"`             // what was found on Member
	Unread string `json:"unread,omitempty"` // why its log cannot be read

	DiscardLocal bool `json:"discard_local"` // give up what Member has, even if it is of another history
	NoStart      bool `json:"no_start"`
}

// PlanResync reaches a broken member, and a member that can give it the cluster's database, and stops nothing. The session carries the plan out.
func PlanResync(ctx context.Context, opts Options, name string) (*ResyncPlan, *Session, error) {
	s := newSession(opts)
	p, err := s.planResync(ctx, name)
	if err != nil {
		return nil, nil, errors.Join(err, s.Close())
	}

	return p, s, nil
}

func (s *Session) planResync(ctx context.Context, name string) (*ResyncPlan, error) {
	first, err := s.firstBut(ctx, name)
	if err != nil {
		return nil, err
	}

	list := s.members(first)
	for _, wanted := range slices.Concat([]string{name, cmp.Or(s.opts.From, name)}, slices.Sorted(maps.Keys(s.opts.Hosts))) {
		if !slices.Contains(namesOf(list), wanted) {
			return nil, fmt.Errorf("no member of this cluster is named %q: it has %s", wanted, strings.Join(namesOf(list), ", "))
		}
	}

	if s.opts.From == name {
		return nil, fmt.Errorf("%s cannot be given its own database: --from names another member", name)
	}

	var broken Member
	var others []Member
	for _, m := range list {
		found := Member{ID: m.ID, Name: m.Name, Host: s.hostOf(m)}
		switch {
		case m.Name == name:
			broken = found
		case s.opts.From == "" && m.Name == first: // it is reached already
			others = slices.Insert(others, 0, found)
		case s.opts.From == "" || s.opts.From == m.Name:
			others = append(others, found)
		}
	}

	err = s.connectUnless(ctx, broken)
	if err == nil {
		err = s.canStop(name)
	}

	if err != nil {
		return nil, err
	}

	from, err := s.chooseGiving(ctx, broken, others)
	if err != nil {
		return nil, err
	}

	look := s.looks[name]
	return &ResyncPlan{ID: bundle.NewRun(), Member: name, From: from, Host: s.hosts[name], Seen: seen(look), Unread: look.Unread, NoStart: s.opts.NoStart}, nil
}

// firstBut connects to a member that knows the others. The broken one is the last that is asked.
func (s *Session) firstBut(ctx context.Context, broken string) (string, error) {
	if s.opts.Here {
		return s.connect(ctx, Member{})
	}

	names := slices.Sorted(maps.Keys(s.opts.Hosts))
	rank := func(name string) int {
		switch name {
		case s.opts.From:
			return 0
		case broken:
			return 2
		}

		return 1
	}
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(rank(a), rank(b)) })
	failed := failures{}
	for _, name := range names {
		found, err := s.connect(ctx, Member{Name: name, Host: s.opts.Hosts[name]})
		if err == nil || ctx.Err() != nil {
			return found, err
		}

		failed[name] = err
	}

	if len(failed) > 0 {
		return "", failed.join()
	}

	return "", errNoMember
}

// connectUnless connects to a member, unless that is done.
func (s *Session) connectUnless(ctx context.Context, m Member) error {
	if s.agent(m.Name) != nil {
		return nil
	}

	_, err := s.connect(ctx, m)
	var refusal *recovery.Refusal
	if err == nil || errors.As(err, &refusal) || ctx.Err() != nil {
		return err
	}

	shut := notLetIn(m.Name, err)
	if shut != nil {
		return shut
	}

	return &recovery.Refusal{Code: "unreachable", Member: m.Name, Flag: "--host", Reason: fmt.Sprintf("%s is not reached: %v", m.Name, err),
		Use: fmt.Sprintf("--host %s=DESTINATION says where ssh reaches it", printable.Word(m.Name))}
}

// chooseGiving is the first of the members that can give the broken one the cluster's database.
func (s *Session) chooseGiving(ctx context.Context, broken Member, others []Member) (string, error) {
	var why []string
	for _, m := range others {
		err := s.connectUnless(ctx, m)
		if err == nil {
			err = s.gives(ctx, m.Name, broken)
		}

		if err == nil || ctx.Err() != nil {
			return m.Name, err
		}

		why = append(why, fmt.Sprintf("%s: %v", m.Name, err))
	}

	refusal := &recovery.Refusal{Code: "no-source", Member: cmp.Or(s.opts.From, broken.Name),
		Reason: fmt.Sprintf("no member can give %s the cluster's database: %s", broken.Name, strings.Join(why, "; ")),
		Use:    "if the cluster has lost its quorum, it is `lxd-recover cluster recover` without --resync that recovers it"}
	if s.opts.From != "" {
		refusal.Flag, refusal.Use = "--from", refusal.Use+"; without --from another member is looked for"
	}

	return "", refusal
}

// gives returns why a member cannot give the broken one the cluster's database, nil if it can.
func (s *Session) gives(ctx context.Context, name string, broken Member) error {
	look := s.looks[name]
	if look.Open != nil {
		return errors.New(recovery.OpenRunText(look.Open))
	}

	if look.Status.Cluster == "" || look.Status.Cluster != s.looks[broken.Name].Status.Cluster {
		return fmt.Errorf("its cluster certificate is not that of %s", broken.Name)
	}

	if !look.Answers {
		return errors.New(product.Text("LXD there does not answer"))
	}

	if look.Inspect == nil || !look.Inspect.Healthy {
		return errors.New("its own database is not sound: " + cmp.Or(look.Unread, "see `lxd-recover global-db-inspect` there"))
	}

	self, _ := look.Inspect.Members.ByID(s.idOf(name))
	_, known := look.Inspect.Members.ByID(broken.ID)
	switch {
	case !known:
		return fmt.Errorf("its log has no member with the id %d: the cluster has removed %s", broken.ID, broken.Name)
	case self.Role == raftlog.Spare:
		return errors.New("it is a spare, and gets no log from the leader")
	}

	err := s.agent(name).Quorum(ctx)
	if err != nil {
		return err
	}

	return s.keepsQuorum(ctx, name, broken)
}

// keepsQuorum refuses to stop a voter that the others cannot do without. A member's LXD may answer its peers from memory although its database is broken.
func (s *Session) keepsQuorum(ctx context.Context, name string, broken Member) error {
	alive, voters, votes := 0, 0, false
	var others, addresses []string
	for _, m := range s.looks[name].Inspect.Members {
		if m.Role != raftlog.Voter {
			continue
		}

		voters++
		switch m.ID {
		case broken.ID:
			votes = true
		case s.idOf(name):
			alive++
		default:
			others, addresses = append(others, m.Name), append(addresses, m.Address)
		}
	}

	if !votes {
		return nil
	}

	report, err := s.agent(name).Probe(ctx, agent.ProbeOptions{Others: addresses})
	if err != nil {
		return err
	}

	var down []string
	for i, found := range report.Others {
		if found == daemon.Answers {
			alive++
		} else {
			down = append(down, others[i])
		}
	}

	if 2*alive > voters {
		return nil
	}

	return product.Errorf("without %s %d of %d voters would be left, which is no majority, as LXD does not answer on %s: start it there first",
		broken.Name, alive, voters, strings.Join(down, ", "))
}

// Resync carries out a plan. After an error that is a *TakenBack the member has its old database, and LXD runs there if it ran; after a *Partly it may have
// the new one, and the error says what is left.
func (s *Session) Resync(ctx context.Context, p *ResyncPlan) (*recovery.ResyncReport, error) {
	s.run = p.ID
	s.tell(p.Member, "", "is stopped for the resync")
	prepared, err := s.agent(p.Member).PrepareResync(ctx)
	if err != nil {
		return nil, s.abandon(ctx, p, err)
	}

	s.tellPhase(p.Member, recovery.PhaseStopped)
	s.tell(p.From, "", "has the leader write a mark, and sends its log with it")
	outcome, err := s.sendBackup(ctx, p, prepared.Nonce)
	if err != nil {
		return nil, s.abandon(ctx, p, err)
	}

	s.tellPhase(p.Member, recovery.PhaseExchanged)
	if outcome.Failed != "" {
		return outcome.Report, &Partly{Works: s.works(ctx, p), Err: fmt.Errorf("%s: %s", p.Member, outcome.Failed)}
	}

	if outcome.Report.Follows {
		s.tell(p.Member, "", "its log follows the leader's")
	}

	return outcome.Report, nil
}

// sendBackup has one member make a backup with the nonce, and the other one take it.
func (s *Session) sendBackup(ctx context.Context, p *ResyncPlan, nonce string) (*agent.ResyncOutcome, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	r, w := io.Pipe()
	made := make(chan error, 1)
	go func() {
		_, err := s.agent(p.From).Backup(ctx, nonce, w)
		made <- err
		_ = w.CloseWithError(err) // io.EOF if there is none
	}()
	outcome, err := s.agent(p.Member).Resync(ctx, agent.ResyncOptions{DiscardLocal: p.DiscardLocal, NoStart: p.NoStart}, r)
	if err == nil { // the backup is there as a whole, and is in place
		_ = r.Close()
		return outcome, nil
	}

	select {
	case madeErr := <-made:
		if madeErr != nil { // what the other one says follows from it
			return nil, fmt.Errorf("%s: %w", p.From, madeErr)
		}
	default:
		cancel()
		_ = r.CloseWithError(err)
		<-made
	}

	return nil, fmt.Errorf("%s: %w", p.Member, err)
}

// abandon ends a resync that has failed: LXD runs again on the member if it ran. What has become of the exchange is looked up there, as the answer may
// have been lost.
func (s *Session) abandon(ctx context.Context, p *ResyncPlan, why error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeBackTime)
	defer cancel()

	s.tell(p.Member, "", product.Text("LXD is started again if it ran: %v"), why)
	look, err := s.abandonOn(ctx, p)
	if err != nil {
		return &Partly{Works: s.works(ctx, p), Err: product.Errorf("%w; whether the new database is in place on %s is not known: %w; "+
			"`lxd-recover resume` on %s starts LXD there again if it is down; then give this command again", why, p.Member, err, p.Member)}
	}

	before, now := s.looks[p.Member].Status.Resync, look.Status.Resync
	if now != nil && (before == nil || before.Run != now.Run) {
		return &Partly{Works: s.works(ctx, p), Err: product.Errorf("%w; the new database is in place on %s; "+
			"`lxd-recover global-db-status` there says whether LXD runs", why, p.Member)}
	}

	was := s.looks[p.Member]
	if was.Status.Running && !look.Status.Running || was.Answers && !look.Answers {
		return &Partly{Works: s.works(ctx, p), Err: product.Errorf("%w; the database on %s is the one that it had, and LXD there, "+
			"which ran before, does not answer; "+
			"`lxd-recover global-db-status` there says more", why, p.Member)}
	}

	return &TakenBack{Err: why, Begun: true}
}

// abandonOn has the member start LXD again, by another agent if the connection was lost, and looks at it.
func (s *Session) abandonOn(ctx context.Context, p *ResyncPlan) (*recovery.MemberLook, error) {
	a := s.agent(p.Member)
	if ended(a) {
		err := a.Close()
		if err == nil || ctx.Err() == nil {
			a, err = s.connectAgain(ctx, p.Member)
		}

		if err != nil {
			return nil, err
		}
	}

	ctx, cancel := context.WithTimeout(ctx, s.opts.againTime())
	defer cancel()

	err := whileBusy(ctx, func() error { return a.AbandonResync(ctx) })
	if err != nil {
		return nil, err
	}

	return a.Look(ctx)
}

// connectAgain gives a member a new agent.
func (s *Session) connectAgain(ctx context.Context, name string) (agent.Agent, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.againTime())
	defer cancel()

	a, err := s.opts.Connect(ctx, Member{Name: name, Host: s.hosts[name]})
	if err != nil {
		return nil, err
	}

	s.mu.Lock()
	defer s.mu.Unlock()

	s.agents[name] = a
	return a, nil
}

// works tells whether the other members go on: a majority confirms what the giving one writes.
func (s *Session) works(ctx context.Context, p *ResyncPlan) bool {
	a := s.agent(p.From)
	if ended(a) {
		_ = a.Close()
		again, err := s.connectAgain(context.WithoutCancel(ctx), p.From)
		if err != nil {
			return false
		}

		a = again
	}

	return a.Quorum(context.WithoutCancel(ctx)) == nil
}

// refuseResyncing says what to do about a resync that was cut off: it is no run over the cluster.
func (s *Session) refuseResyncing() error {
	for _, name := range s.names() {
		if s.looks[name].Resyncing {
			return &recovery.Refusal{Code: "resync-cut-off", Member: name,
				Reason: product.Sprintf("LXD on %s is stopped for a resync, which was cut off, is under way, or waits for a backup", name),
				Use: product.Sprintf("`lxd-recover cluster recover --resync %s` begins it anew, `lxd-recover resume` on %s gives it up and starts LXD there",
					printable.Word(name), name)}
		}
	}

	return nil
}
