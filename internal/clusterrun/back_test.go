// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/agent"
	"github.com/lxd-recover/lxd-recover/internal/clusterrun"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// hooked is an agent whose calls fail when a hook says so: before they do anything, or, with an error that is lateError, after they have done it.
type hooked struct {
	agent.Agent
	hook func(call string) error
}

type lateError struct{ error }

// goneError is a lateError with which the member is gone.
type goneError struct{ error }

func (h *hooked) do(name string, call func() error) error {
	err := h.hook(name)
	var late lateError
	var gone goneError
	if errors.As(err, &gone) {
		return errors.Join(gone, call(), h.Close())
	}

	if errors.As(err, &late) {
		return errors.Join(late, call())
	}

	if err != nil {
		return err
	}

	return call()
}

func (h *hooked) Exchange(ctx context.Context, accepted string) (r *recovery.ImportReport, err error) {
	err = h.do("exchange", func() (err error) {
		r, err = h.Agent.Exchange(ctx, accepted)
		return err
	})
	return r, err
}

func (h *hooked) Withdraw(ctx context.Context) error {
	return h.do("withdraw", func() error { return h.Agent.Withdraw(ctx) })
}

func (h *hooked) TurnBack(ctx context.Context) error {
	return h.do("turn-back", func() error { return h.Agent.TurnBack(ctx) })
}

func (h *hooked) Finish(ctx context.Context, noStart bool) error {
	return h.do("finish", func() error { return h.Agent.Finish(ctx, noStart) })
}

var errCut = errors.New("cut off")

// cut gives a run in which calls fail, named MEMBER CALL, and wants it to end in part.
func (l *lab) cut(opts clusterrun.Options, fail map[string]error) (*clusterrun.Plan, *clusterrun.Result) {
	l.t.Helper()
	var mu sync.Mutex
	gone := map[string]bool{}
	opts.Connect = func(_ context.Context, m clusterrun.Member) (agent.Agent, error) {
		mu.Lock()
		defer mu.Unlock()

		name := cmp.Or(m.Name, "node1")
		if gone[name] {
			return nil, errCut
		}

		a, err := l.connect(m)
		return &hooked{a, func(call string) error {
			mu.Lock()
			defer mu.Unlock()

			err := fail[name+" "+call]
			gone[name] = gone[name] || errors.As(err, new(goneError))
			return err
		}}, err
	}
	p, s, err := clusterrun.MakePlan(l.t.Context(), opts)
	must(l.t, err)
	r, err := s.Apply(l.t.Context(), p)
	wantPartly(l.t, err)
	must(l.t, s.Close())
	return p, r
}

func wantPartly(t testing.TB, err error) {
	t.Helper()
	var partly *clusterrun.Partly
	if !errors.As(err, &partly) {
		t.Errorf("%v, want a run that is done in part", err)
	}
}

// phases are how far the members have come, by their names; empty for one that is not part of a run.
func (l *lab) phases() map[string]string {
	l.t.Helper()
	all := map[string]string{}
	for name, dir := range l.dirs {
		look, err := recovery.Look(l.t.Context(), dir, recovery.Progress{})
		must(l.t, err)
		all[name] = ""
		if look.Open != nil {
			all[name] = string(look.Open.Phase)
		}
	}

	return all
}

// from are the options of a run that is given on no member.
func (l *lab) from(first string) clusterrun.Options {
	opts := l.options()
	opts.Here, opts.Hosts = false, map[string]string{first: first}
	return opts
}

// What may have the new database, and could go on alone, keeps the others from LXD's start on the old one.
func TestNothingIsTakenBackBesideAMajority(t *testing.T) {
	l := newLab(t)
	p, r := l.cut(l.options(), map[string]error{"node2 exchange": goneError{errCut}, "node3 exchange": goneError{errCut}})
	if got := l.phases(); got["node1"] != "exchanged" || len(r.Old) != 0 || len(r.Left) != 3 {
		t.Errorf("%v, %+v", got, r)
	}

	_, err := clusterrun.Resume(t.Context(), l.options(), p)
	must(t, err)
	l.wantNew("node1", "node2", "node3")
}

// A run of which one member was taken back does not go on without that one, whatever majority there is.
func TestResumeAfterTakingBackWasCutOff(t *testing.T) {
	l := newLab(t)
	before := l.contents()
	p, _ := l.cut(l.options(), map[string]error{
		"node2 exchange": lateError{errCut}, "node3 exchange": lateError{errCut}, "node2 withdraw": errCut, "node3 withdraw": errCut,
	})
	if got := l.phases(); got["node1"] != "" || got["node2"] != "exchanged" || got["node3"] != "exchanged" {
		t.Fatalf("%v", got)
	}

	l.down = "node1"
	r, err := clusterrun.Resume(t.Context(), l.from("node2"), p)
	wantPartly(t, err) // node1 was not asked
	if !slices.Equal(r.Left, []string{"node1"}) || !slices.Equal(r.Old, []string{"node2", "node3"}) {
		t.Errorf("%+v", r)
	}

	l.wantOld(before)
}

// A member that was not reached is not said to have its old database.
func TestUndoWithoutAMember(t *testing.T) {
	l := newLab(t)
	before := l.contents()
	fail := map[string]error{"node1 turn-back": errCut, "node2 turn-back": errCut, "node3 turn-back": errCut}
	for name := range l.dirs {
		fail[name+" exchange"] = errCut
	}

	p, _ := l.cut(l.options(), fail)
	l.down = "node3"
	r, _, _, err := clusterrun.Undo(t.Context(), l.options(), p)
	wantPartly(t, err)
	if r == nil || !slices.Equal(r.Left, []string{"node3"}) || !slices.Equal(r.Old, []string{"node1", "node2"}) {
		t.Errorf("%+v", r)
	}

	_, err = clusterrun.Resume(t.Context(), l.options(), p)
	if !errors.Is(err, clusterrun.ErrNoRun) || !strings.Contains(err.Error(), "node3") {
		t.Errorf("%v", err)
	}

	l.down = ""
	_, _, _, err = clusterrun.Undo(t.Context(), l.options(), p)
	must(t, err)
	l.wantOld(before)
}

// Until the question is answered, and the kept database is found, undo changes nothing.
func TestUndoIsRefused(t *testing.T) {
	l := newLab(t)
	p, _ := l.cut(l.options(), map[string]error{"node3 finish": errCut})
	before := l.phases()
	contents := l.contents()
	from := p.From
	p.From = "node3" // another one was chosen after this plan was written
	_, undo, s, err := clusterrun.Undo(t.Context(), l.options(), p)
	must(t, err)
	must(t, s.Close()) // no
	if got := l.phases(); !maps.Equal(got, before) || got["node3"] != "exchanged" || !maps.Equal(l.contents(), contents) || undo.From != from {
		t.Errorf("%v, before %v; %+v", got, before, undo)
	}

	_, undo, s, err = clusterrun.Undo(t.Context(), l.options(), p)
	must(t, err)
	_, err = s.Apply(t.Context(), undo)
	must(t, err)
	must(t, s.Close())
	l.wantNew("node1", "node2", "node3")
}

// A run goes on without the member whose database it began with.
func TestResumeWithoutTheSource(t *testing.T) {
	l := newLab(t)
	l.down = "node2"
	opts := l.options()
	opts.Lost, opts.From = []string{"node2"}, "node3"
	p, _ := l.cut(opts, map[string]error{"node3 exchange": errCut, "node1 finish": errCut, "node3 finish": errCut})
	l.down = "node3"
	r, err := clusterrun.Resume(t.Context(), l.options(), p)
	wantPartly(t, err)
	if r == nil || !slices.Equal(r.Exchanged, []string{"node1"}) || !slices.Equal(r.Left, []string{"node3"}) {
		t.Errorf("%+v", r)
	}
}

// The plan that the members keep names the member whose database they got.
func TestPlanOnMembers(t *testing.T) {
	l := newLab(t)
	p, s, err := clusterrun.MakePlan(t.Context(), l.options())
	must(t, err)
	must(t, s.Close())
	p.From, p.Members[0].Seen.Index = "node3", 1
	fail := map[string]error{}
	for name := range l.dirs {
		fail[name+" exchange"], fail[name+" turn-back"] = errCut, errCut
	}

	opts := l.options()
	opts.Connect = func(_ context.Context, m clusterrun.Member) (agent.Agent, error) {
		a, err := l.connect(m)
		return &hooked{a, func(call string) error { return fail[m.Name+" "+call] }}, err
	}
	opts.Here = false
	s, err = clusterrun.Reach(t.Context(), opts, p)
	must(t, err)
	_, err = s.Apply(t.Context(), p)
	wantPartly(t, err)
	must(t, s.Close())
	if !slices.Equal(l.codes(), []string{"changed"}) {
		t.Errorf("asked %v", l.codes())
	}

	found, err := clusterrun.FindRun(t.Context(), l.from("node2"))
	must(t, err)
	if found.From != "node1" || p.From != "node1" {
		t.Errorf("the members' plan begins with %s, the run with %s", found.From, p.From)
	}
}

// renamed is an agent of a member with another name.
type renamed struct {
	agent.Agent
	name string
}

func (r renamed) Look(ctx context.Context) (*recovery.MemberLook, error) {
	look, err := r.Agent.Look(ctx)
	if err == nil {
		look.Status.Member.Name = r.name
	}

	return look, err
}

// Files are named by members and runs.
func TestHostileNames(t *testing.T) {
	l := newLab(t)
	opts := l.options()
	for _, name := range []string{"../x", "a/b", "-oProxyCommand=x", "a\x1b[2J", "a\nb", strings.Repeat("a", 300)} {
		opts.Connect = func(_ context.Context, m clusterrun.Member) (agent.Agent, error) {
			a, err := l.connect(m)
			return renamed{a, name}, err
		}
		_, _, err := clusterrun.MakePlan(t.Context(), opts)
		if err == nil || !strings.Contains(err.Error(), "no name of a member") {
			t.Errorf("%q: %v", name, err)
		}
	}

	p, s, err := clusterrun.MakePlan(t.Context(), l.options())
	must(t, err)
	must(t, s.Close())
	p.ID = "../" + p.ID[3:]
	file := filepath.Join(t.TempDir(), "plan.yaml")
	must(t, p.Write(file))
	_, err = clusterrun.ReadPlan(file)
	if err == nil || !strings.Contains(err.Error(), "no id of a run") {
		t.Errorf("%v", err)
	}
}

// A plan that was made on a member is carried on elsewhere: its address is where ssh reaches that one.
func TestHostOfAPlan(t *testing.T) {
	l := newLab(t)
	p, s, err := clusterrun.MakePlan(t.Context(), l.options())
	must(t, err)
	must(t, s.Close())
	for i := range p.Members {
		p.Members[i].Host, p.Members[i].NewAddress = "", fmt.Sprintf("[fd00::%d]:8443", i+1)
	}

	opts := l.options()
	opts.Here = false
	hosts := make(chan string, len(p.Members))
	opts.Connect = func(_ context.Context, m clusterrun.Member) (agent.Agent, error) {
		hosts <- m.Host
		return nil, errCut
	}
	_, err = clusterrun.Resume(t.Context(), opts, p)
	if err == nil {
		t.Error("nobody was reached")
	}

	close(hosts)
	var got []string
	for host := range hosts {
		got = append(got, host)
	}

	slices.Sort(got)
	if !slices.Equal(got, []string{"fd00::1", "fd00::2", "fd00::3"}) {
		t.Errorf("%v", got)
	}
}

// A machine that is a member of another cluster, or a lost one, gives a run and has no part in it.
func TestGivenOutside(t *testing.T) {
	l := newLab(t)
	fail := map[string]error{}
	for _, name := range []string{"node1", "node2", "node3"} {
		fail[name+" finish"] = errCut
	}

	p, _ := l.cut(l.options(), fail)
	other := newOtherLab(t)
	opts := l.options()
	opts.Connect = func(_ context.Context, m clusterrun.Member) (agent.Agent, error) {
		if m.Name != "" {
			return l.connect(m)
		}

		a, err := other.connect(m)
		return renamed{a, "elsewhere"}, err
	}
	_, err := clusterrun.Resume(t.Context(), opts, p)
	must(t, err)
	l.wantNew("node1", "node2", "node3")

	// One that has the name of a member is refused.
	opts.Connect = func(_ context.Context, m clusterrun.Member) (agent.Agent, error) {
		if m.Name == "node2" {
			return other.connect(m)
		}

		return l.connect(m)
	}
	_, err = clusterrun.Resume(t.Context(), opts, p)
	wantRefusal(t, err, "another-cluster")
}

// changedLook is an agent of a member that says something else of itself.
type changedLook struct {
	agent.Agent
	change func(look *recovery.MemberLook)
}

func (c changedLook) Look(ctx context.Context) (*recovery.MemberLook, error) {
	look, err := c.Agent.Look(ctx)
	if err == nil {
		c.change(look)
	}

	return look, err
}

// A member whose log has no names is known by those who have reached it, and so is one that says it has another one's name there.
func TestLogsWithoutNames(t *testing.T) {
	for name, change := range map[string]func(look *recovery.MemberLook){
		"no name":   func(look *recovery.MemberLook) { look.Inspect.Member = nil },
		"one name":  func(look *recovery.MemberLook) { look.Inspect.Member.Name = "node3" },
		"no member": func(look *recovery.MemberLook) { look.Inspect.Member.Name = "nobody" },
	} {
		l := newLab(t)
		opts := l.options()
		opts.Connect = func(_ context.Context, m clusterrun.Member) (agent.Agent, error) {
			a, err := l.connect(m)
			return changedLook{a, change}, err
		}
		p, s, err := clusterrun.MakePlan(t.Context(), opts)
		must(t, err)
		must(t, s.Close())
		if p.From != "node1" && p.From != "node2" {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

// Members that joined after a run keep it from being undone: nothing takes them back.
func TestUndoWithNewMembers(t *testing.T) {
	l := newLab(t)
	p, s, err := clusterrun.MakePlan(t.Context(), l.options())
	must(t, err)
	_, err = s.Apply(t.Context(), p)
	must(t, err)
	must(t, s.Close())
	p.Members = p.Members[:2]
	_, _, _, err = clusterrun.Undo(t.Context(), l.options(), p)
	wantRefusal(t, err, "members-added")
}

// deaf is an agent of a member that takes no tarball, or does not exchange, and does not say so.
type deaf struct{ agent.Agent }

func (d deaf) Receive(context.Context, string, io.Reader) error { return nil }

func (d deaf) Exchange(ctx context.Context, _ string) (*recovery.ImportReport, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// hearing is a deaf one that takes the tarball.
type hearing struct{ deaf }

func (h hearing) Receive(ctx context.Context, digest string, r io.Reader) error {
	return h.Agent.Receive(ctx, digest, r)
}

// A member that does not do what it is told keeps nobody waiting.
func TestDeafMembers(t *testing.T) {
	l := newLab(t)
	before := l.contents()
	opts := l.options()
	opts.ExchangeTime = 10 * time.Second
	hears := false
	opts.Connect = func(_ context.Context, m clusterrun.Member) (agent.Agent, error) {
		a, err := l.connect(m)
		switch {
		case m.Name != "node3":
			return a, err
		case hears:
			return hearing{deaf{a}}, err
		}

		return deaf{a}, err
	}
	p, s, err := clusterrun.MakePlan(t.Context(), opts)
	must(t, err)
	_, err = s.Apply(t.Context(), p)
	var back *clusterrun.TakenBack
	if !errors.As(err, &back) || !strings.Contains(err.Error(), "not read the whole tarball") {
		t.Errorf("%v", err)
	}

	must(t, s.Close())
	l.wantOld(before)

	hears = true
	p, s, err = clusterrun.MakePlan(t.Context(), opts)
	must(t, err)
	r, err := s.Apply(t.Context(), p)
	wantPartly(t, err)
	if !slices.Equal(r.Exchanged, []string{"node1", "node2"}) || !slices.Equal(r.Left, []string{"node3"}) {
		t.Errorf("%+v", r)
	}

	must(t, s.Close())
}

// Of two runs at once one is refused, and knows nothing of what the other one does.
func TestTwoRuns(t *testing.T) {
	l := newLab(t)
	p, s, err := clusterrun.MakePlan(t.Context(), l.options())
	must(t, err)
	other, second, err := clusterrun.MakePlan(t.Context(), l.options())
	must(t, err)
	opts := l.options()
	must(t, s.Close())
	opts.Connect = func(_ context.Context, m clusterrun.Member) (agent.Agent, error) {
		a, err := l.connect(m)
		return &hooked{a, func(call string) error {
			if call != "exchange" || m.Name != "node2" {
				return nil
			}

			l.events = nil
			_, err := second.Apply(t.Context(), other)
			if err == nil || !strings.HasSuffix(err.Error(), "this run has changed nothing") || strings.Contains(fmt.Sprint(l.events), "database that it had") {
				t.Errorf("%v; %v", err, l.events)
			}

			return nil
		}}, err
	}
	s, err = clusterrun.Reach(t.Context(), opts, p)
	must(t, err)
	_, err = s.Apply(t.Context(), p)
	must(t, err)
	must(t, errors.Join(s.Close(), second.Close()))
	l.wantNew("node1", "node2", "node3")
}

// A member whose log cannot be read is no place to begin a planned change of addresses from.
func TestMoveOfUnreadLog(t *testing.T) {
	l := newLab(t)
	opts := l.options()
	opts.Move = true
	opts.Connect = func(_ context.Context, m clusterrun.Member) (agent.Agent, error) {
		a, err := l.connect(m)
		return changedLook{a, func(look *recovery.MemberLook) {
			look.Answers = true
			if look.Status.Member.Name == "node2" {
				look.Inspect, look.Unread = nil, "a bad block"
			}
		}}, err
	}
	_, _, err := clusterrun.MakePlan(t.Context(), opts)
	wantRefusal(t, err, "damaged")
}
