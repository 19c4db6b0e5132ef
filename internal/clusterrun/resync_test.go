// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/agent"
	"github.com/lxd-recover/lxd-recover/internal/clusterrun"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// resyncLab is a lab in which node1 and node2 work, and node3 is stopped for a resync by the real use case. The backup and the exchange are stand-ins: they
// are tried in package recovery and on real members.
type resyncLab struct {
	*lab
	hook      func(call string) error // with the member's name and a colon before it
	nonce     string                  // of the last PrepareResync
	exchanged string                  // run of the backup that node3 has; empty before
	reads     bool                    // every look reads; else a member is looked at once for all labs, which are alike
}

// looksOnce are looks at the members of a lab that is new, by their names.
var looksOnce sync.Map

func newResyncLab(t testing.TB) *resyncLab {
	t.Helper()
	return &resyncLab{lab: newLab(t), hook: func(string) error { return nil }}
}

func (l *resyncLab) options() clusterrun.Options {
	opts := l.lab.options()
	opts.From = ""
	opts.Connect = func(_ context.Context, m clusterrun.Member) (agent.Agent, error) {
		a, err := l.connect(m)
		if err == nil {
			err = l.hook(m.Name + ":connect")
		}

		name := m.Name
		if name == "" {
			name = "node1"
		}

		return &resyncAgent{hooked: hooked{Agent: a}, lab: l, name: name}, err
	}
	return opts
}

type resyncAgent struct {
	hooked
	lab  *resyncLab
	name string
}

func (a *resyncAgent) call(name string, do func() error) error {
	a.hook = func(string) error { return a.lab.hook(a.name + ":" + name) }
	return a.do(name, do)
}

func (a *resyncAgent) Look(ctx context.Context) (*recovery.MemberLook, error) {
	known, ok := looksOnce.Load(a.name)
	if !ok || a.lab.reads {
		read, err := a.Agent.Look(ctx)
		if err != nil {
			return nil, err
		}

		known = read
		if !a.lab.reads {
			looksOnce.Store(a.name, read)
		}
	}

	look, status := *known.(*recovery.MemberLook), *known.(*recovery.MemberLook).Status
	look.Status = &status
	look.Answers = a.name != "node3" && a.lab.hook(a.name+":answers") == nil
	if a.name == "node3" && a.lab.exchanged != "" {
		look.Status.Resync = &recovery.Record{Run: a.lab.exchanged}
	}

	return &look, nil
}

func (a *resyncAgent) Quorum(context.Context) error {
	return a.call("quorum", func() error { return nil })
}

// Probe finds LXD at all addresses, unless the hook has an error for one.
func (a *resyncAgent) Probe(_ context.Context, opts agent.ProbeOptions) (*agent.ProbeReport, error) {
	r := &agent.ProbeReport{}
	for _, address := range opts.Others {
		found := daemon.Answers
		if a.lab.hook("probe "+address) != nil {
			found = daemon.Silent
		}

		r.Others = append(r.Others, found)
	}

	return r, nil
}

func (a *resyncAgent) PrepareResync(ctx context.Context) (r *recovery.ResyncReport, err error) {
	err = a.call("prepare", func() (err error) {
		r, err = a.Agent.PrepareResync(ctx)
		if err == nil {
			a.lab.nonce = r.Nonce
		}

		return err
	})
	return r, err
}

func (a *resyncAgent) Backup(_ context.Context, nonce string, w io.Writer) (*recovery.BackupReport, error) {
	err := a.call("backup", func() error {
		_, err := io.WriteString(w, "backup with "+nonce)
		return err
	})
	return &recovery.BackupReport{}, err
}

func (a *resyncAgent) Resync(_ context.Context, _ agent.ResyncOptions, r io.Reader) (*agent.ResyncOutcome, error) {
	err := a.call("resync", func() error {
		data, err := io.ReadAll(r)
		if err == nil && string(data) != "backup with "+a.lab.nonce {
			err = errors.New("the backup has another nonce: " + string(data))
		}

		if err == nil {
			a.lab.exchanged = "new"
			err = a.AbandonResync(context.Background()) // nothing is left of it
		}

		return err
	})
	if err != nil {
		return nil, err
	}

	return &agent.ResyncOutcome{Report: &recovery.ResyncReport{Done: true, Source: "of " + a.name}}, nil
}

// run plans and carries out the resync of node3.
func (l *resyncLab) run(opts clusterrun.Options) (*clusterrun.ResyncPlan, error) {
	p, s, err := clusterrun.PlanResync(l.t.Context(), opts, "node3")
	if err != nil {
		return nil, err
	}

	report, err := s.Resync(l.t.Context(), p)
	if err == nil && report.Source != "of node3" {
		l.t.Errorf("%+v", report)
	}

	return p, errors.Join(err, s.Close())
}

// The giver takes the member that it has reached already, or the one that is named; the broken one is asked last who the others are.
func TestResyncGiving(t *testing.T) {
	tests := []struct {
		name string
		with func(*clusterrun.Options)
		want string
	}{
		{"on a member", func(*clusterrun.Options) {}, "node1"},
		{"from another member", func(o *clusterrun.Options) { o.From = "node2" }, "node2"},
		{"on no member", func(o *clusterrun.Options) { o.Here, o.Hosts = false, map[string]string{"node2": "b", "node3": "c"} }, "node2"},
		{"on no member, the broken one alone is named", func(o *clusterrun.Options) { o.Here, o.Hosts = false, map[string]string{"node3": "c"} }, "node1"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l := newResyncLab(t)
			opts := l.options()
			test.with(&opts)
			p, err := l.run(opts)
			must(t, err)
			if p.From != test.want || p.Member != "node3" || l.exchanged == "" {
				t.Errorf("%+v, exchanged %q", p, l.exchanged)
			}

			l.wantClean()
		})
	}
}

// What cannot be done is refused before anything is stopped, and the refusal names the member.
func TestResyncNotBegun(t *testing.T) {
	failing := func(calls ...string) func(string) error {
		return func(call string) error {
			for _, c := range calls {
				if call == c {
					return errors.New("it fails")
				}
			}

			return nil
		}
	}
	tests := []struct {
		name   string
		hook   func(string) error
		from   string
		code   string
		member string
		text   string
	}{
		{"the broken one is not reached", failing("node3:connect"), "", "unreachable", "node3", "--host node3=DESTINATION"},
		{"no quorum", failing("node1:quorum", "node2:quorum"), "", "no-source", "node3", "node1: it fails; node2: it fails"},
		{"the wanted one does not answer", failing("node2:answers"), "node2", "no-source", "node2", "node2: LXD there does not answer"},
		{"from itself", failing(), "node3", "", "", "cannot be given its own database"},
		{"from nobody", failing(), "node9", "", "", `no member of this cluster is named "node9"`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l := newResyncLab(t)
			before := l.contents()
			l.hook = test.hook
			opts := l.options()
			opts.From = test.from
			_, err := l.run(opts)
			refusal := &recovery.Refusal{}
			_ = errors.As(err, &refusal)
			if err == nil || refusal.Code != test.code || refusal.Member != test.member || !strings.Contains(err.Error(), test.text) || l.nonce != "" {
				t.Errorf("%+v: %v", refusal, err)
			}

			l.wantOld(before)
		})
	}
}

// Whatever call fails, before it does anything or after, or with the connection: the run says truly whether the new database is in place, and nothing is left.
func TestResyncCutOff(t *testing.T) {
	failure := errors.New("it fails")
	for _, call := range []string{"node3:prepare", "node1:backup", "node3:resync"} {
		for how, err := range map[string]error{"before": failure, "after": lateError{failure}, "connection": goneError{failure}} {
			t.Run(call+" "+how, func(t *testing.T) {
				l := newResyncLab(t)
				before := l.contents()
				l.hook = func(c string) error {
					if c == call {
						return err
					}

					return nil
				}
				_, got := l.run(l.options())
				var partly *clusterrun.Partly
				var back *clusterrun.TakenBack
				if l.exchanged != "" {
					if !errors.As(got, &partly) || !partly.Works || !strings.Contains(got.Error(), "the new database is in place on node3") {
						t.Errorf("%v", got)
					}
				} else if !errors.As(got, &back) || !strings.Contains(got.Error(), "it fails; nothing was changed") {
					t.Errorf("%v", got)
				}

				l.wantOld(before)
			})
		}
	}
}

// A member that is not reached again may have either database: the error says what to do there.
func TestResyncLost(t *testing.T) {
	l := newResyncLab(t)
	l.hook = func(call string) error {
		switch {
		case call == "node3:resync":
			return goneError{errors.New("it fails")}
		case call == "node3:connect" && l.nonce != "":
			return errors.New("no route to host")
		}

		return nil
	}
	_, err := l.run(l.options())
	var partly *clusterrun.Partly
	if !errors.As(err, &partly) || !partly.Works || !strings.Contains(err.Error(), "is in place on node3 is not known") ||
		!strings.Contains(err.Error(), "`lxd-recover resume` on node3") {
		t.Errorf("%v", err)
	}
}

// `cluster recover resume` knows a resync that was cut off, and says what to do about it.
func TestResyncIsNoRun(t *testing.T) {
	l := newResyncLab(t)
	l.reads = true
	must(t, os.WriteFile(filepath.Join(l.dirs["node3"], "database.resync.yaml"), []byte("nonce: c0ffee\n"), 0o600))
	_, err := clusterrun.FindRun(t.Context(), l.options())
	var refusal *recovery.Refusal
	if !errors.As(err, &refusal) || refusal.Code != "resync-cut-off" || refusal.Member != "node3" ||
		!strings.Contains(err.Error(), "`lxd-recover cluster recover --resync node3` begins it anew") {
		t.Errorf("%v", err)
	}
}

// An agent that ends before the exchange, as when its connection is lost, leaves nothing of the resync.
func TestResyncAgentEnds(t *testing.T) {
	l := newResyncLab(t)
	before := l.contents()
	a, err := l.connect(clusterrun.Member{Name: "node3"})
	must(t, err)
	r, err := a.PrepareResync(t.Context())
	must(t, err)
	_, err = os.Stat(filepath.Join(l.dirs["node3"], "database.resync.yaml"))
	if err != nil || len(r.Nonce) != 32 {
		t.Errorf("%+v, %v", r, err)
	}

	_, err = a.Resync(t.Context(), agent.ResyncOptions{}, strings.NewReader("no backup"))
	if err == nil {
		t.Error("what is no backup was taken")
	}

	must(t, a.Close())
	l.wantOld(before)
}

// A voter that the others cannot do without is not stopped, even if its database is broken.
func TestResyncLastMajority(t *testing.T) {
	l := newResyncLab(t)
	l.hook = func(call string) error {
		if strings.HasPrefix(call, "probe ") {
			return errors.New("nobody answers")
		}

		return nil
	}
	_, session, err := clusterrun.PlanResync(t.Context(), l.options(), "node3")
	if session != nil {
		_ = session.Close()
	}

	var refusal *recovery.Refusal
	if !errors.As(err, &refusal) || refusal.Code != "no-source" || !strings.Contains(refusal.Reason, "1 of 3 voters would be left") {
		t.Errorf("%v", err)
	}
}
