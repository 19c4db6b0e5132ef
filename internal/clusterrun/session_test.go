// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun

import (
	"errors"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/agent"
	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// Where ssh goes: what was said counts most, then the new address, unless the machine is to get that yet.
func TestHostOf(t *testing.T) {
	for name, c := range map[string]struct {
		address, moved string
		opts           Options
		host           string // of the plan
		want, again    string
	}{
		"its address":         {address: "10.78.0.1:8443", want: "10.78.0.1", again: "10.78.0.1"},
		"IPv6":                {address: "[fd42::1]:8443", want: "fd42::1", again: "fd42::1"},
		"new address":         {address: "10.78.0.1:8443", moved: "[fd42::1]:8443", want: "fd42::1", again: "fd42::1"},
		"of a moved cluster":  {address: "10.78.0.1:8443", moved: "10.79.0.1:8443", opts: Options{Move: true}, want: "10.78.0.1", again: "10.78.0.1"},
		"asked for":           {address: "10.78.0.1:8443", opts: Options{Hosts: map[string]string{"a": "me@a"}}, host: "b", want: "me@a", again: "me@a"},
		"as when it was made": {address: "10.78.0.1:8443", moved: "10.79.0.1:8443", host: "b", want: "10.79.0.1", again: "b"},
	} {
		t.Run(name, func(t *testing.T) {
			p := &Plan{Move: c.opts.Move}
			m := Member{Name: "a", Host: c.host, Address: c.address, NewAddress: c.address}
			if c.moved != "" {
				m.NewAddress, c.opts.Addresses = c.moved, map[string]string{"a": c.moved}
			}

			s := newSession(c.opts)
			got, again := s.hostOf(member.Member{Name: "a", Address: c.address}), s.hostAgain(m, p)
			if got != c.want || again != c.again {
				t.Errorf("%s, again %s; want %s, %s", got, again, c.want, c.again)
			}
		})
	}
}

// A working cluster with spares, which have no log, can be moved; one with a member whose log cannot be read cannot.
func TestChooseOfWorking(t *testing.T) {
	look := func(id uint64, index uint64, healthy bool) *recovery.MemberLook {
		l := &recovery.MemberLook{Status: &recovery.StatusReport{Healthy: healthy, Raft: &bundle.Position{Index: index}, Member: &member.Member{ID: id}}}
		if index > 0 {
			l.Inspect = &recovery.InspectReport{}
			l.Inspect.Raft.LastIndex = index
		}

		return l
	}
	s := newSession(Options{})
	for name, l := range map[string]*recovery.MemberLook{"a": look(1, 6, true), "b": look(2, 7, true), "spare": look(3, 0, true)} {
		s.agents[name], s.looks[name] = agent.NewLocal(agent.Options{}), l
	}

	p := &Plan{}
	err := s.chooseOfWorking(p)
	if err != nil || p.From != "b" {
		t.Errorf("%v, from %q, want b", err, p.From)
	}

	s.looks["spare"] = look(3, 0, false)
	err = s.chooseOfWorking(p)
	var refusal *recovery.Refusal
	if !errors.As(err, &refusal) || refusal.Member != "spare" {
		t.Errorf("%v, want a refusal because of the spare", err)
	}
}
