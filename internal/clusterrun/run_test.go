// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lxd-recover/lxd-recover/internal/clusterrun"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// All three get the database of the one that has everything.
func TestRun(t *testing.T) {
	l := newLab(t)
	before := l.contents()
	p, s, err := clusterrun.MakePlan(t.Context(), l.options())
	must(t, err)
	if now := l.contents(); !mapsEqual(now, before) {
		t.Error("a plan has changed something")
	}

	if p.From == "node3" || !p.Certain || len(p.Losses) != 0 || len(p.Members) != 3 || p.Members[2].NewRole != "voter" {
		t.Errorf("%+v", p)
	}

	r, err := s.Apply(t.Context(), p)
	must(t, err)
	must(t, s.Close())
	if len(r.Exchanged) != 3 || len(r.Left) != 0 || len(l.asked) != 0 {
		t.Errorf("%+v, asked %v", r, l.codes())
	}

	l.wantNew("node1", "node2", "node3")
}

func mapsEqual(a map[string]string, b map[string]string) bool {
	for k := range a {
		if a[k] != b[k] {
			return false
		}
	}

	return len(a) == len(b)
}

// A lost member is not asked, and becomes a spare.
func TestRunWithLost(t *testing.T) {
	l := newLab(t)
	before := l.contents()
	l.down = "node2"
	opts := l.options()
	_, _, err := clusterrun.MakePlan(t.Context(), opts)
	wantRefusal(t, err, "unreachable")
	opts.Lost = []string{"node2"}
	p, s, err := clusterrun.MakePlan(t.Context(), opts)
	must(t, err)
	if p.Certain == (p.Doubt != "") || p.From != "node1" {
		t.Errorf("%+v", p)
	}

	_, err = s.Apply(t.Context(), p)
	must(t, err)
	must(t, s.Close())
	if l.contents()["node2"] != before["node2"] {
		t.Error("the lost member was changed")
	}

	l.wantNew("node1", "node3")
}

func wantRefusal(t testing.TB, err error, code string) {
	t.Helper()
	var refusal *recovery.Refusal
	if !errors.As(err, &refusal) || refusal.Code != code {
		t.Errorf("%v, want a refusal %q", err, code)
	}
}

// What fails before the exchange is taken back everywhere.
func TestRunTakenBack(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, l *lab, p *clusterrun.Plan){
		"a member has no room for what is staged": func(t *testing.T, l *lab, _ *clusterrun.Plan) {
			must(t, os.WriteFile(filepath.Join(l.dirs["node2"], "database.run.saved"), nil, 0o600))
			must(t, os.Mkdir(filepath.Join(l.dirs["node2"], "database.run.tar.gz"), 0o700))
		},
		"no, to what has changed": func(_ *testing.T, l *lab, p *clusterrun.Plan) {
			p.Members[0].Seen.Index--
			l.no = "changed"
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			p, s, err := clusterrun.MakePlan(t.Context(), l.options())
			must(t, err)
			before := l.contents()
			spoil(t, l, p)
			_, err = s.Apply(t.Context(), p)
			var back *clusterrun.TakenBack
			if !errors.As(err, &back) {
				t.Errorf("%v", err)
			}

			must(t, s.Close())
			l.wantOld(before)
		})
	}
}

// A member that has what no other one has is asked about.
func TestRunAsksAboutLosses(t *testing.T) {
	l := newLab(t)
	opts := l.options()
	opts.From = "node3"
	p, s, err := clusterrun.MakePlan(t.Context(), opts)
	must(t, err)
	if p.From != "node3" || p.Certain || p.Doubt == "" {
		t.Errorf("%+v", p)
	}

	p.Losses = nil
	before := l.contents()
	l.no = "losses"
	_, err = s.Apply(t.Context(), p)
	if err == nil || !slices.Equal(l.codes(), []string{"losses"}) || len(l.asked[0].Lines) == 0 {
		t.Errorf("%v, asked %+v", err, l.asked)
	}

	must(t, s.Close())
	l.wantOld(before)
}

// A plan goes through its file.
func TestPlanFile(t *testing.T) {
	l := newLab(t)
	p, s, err := clusterrun.MakePlan(t.Context(), l.options())
	must(t, err)
	must(t, s.Close())
	file := filepath.Join(t.TempDir(), "a plan.yaml")
	must(t, p.Write(file))
	info, err := os.Stat(file)
	must(t, err)
	text, err := os.ReadFile(file)
	must(t, err)
	if info.Mode() != 0o600 || !strings.HasPrefix(string(text), "# A plan of lxd-recover") || !strings.Contains(string(text), "--plan-id "+p.ID) ||
		!strings.Contains(string(text), "\n#   lxd-recover cluster recover apply '"+file+"'\n") {
		t.Errorf("mode %v:\n%s", info.Mode(), text[:500])
	}

	read, err := clusterrun.ReadPlan(file)
	must(t, err)
	a, err := p.Marshal()
	must(t, err)
	b, err := read.Marshal()
	must(t, err)
	if string(a) != string(b) {
		t.Errorf("%s\n---\n%s", a, b)
	}
}

// Where nothing is known that starts LXD, a run says so, and not that it keeps LXD down or starts it.
func TestNothingStartsLXD(t *testing.T) {
	l := newLab(t)
	p, s, err := clusterrun.MakePlan(t.Context(), l.options())
	must(t, err)
	const warning = "nothing is known that starts LXD on node1, node2, node3: "
	if !slices.ContainsFunc(p.Warnings, func(w string) bool {
		return strings.HasPrefix(w, warning) && strings.HasSuffix(w, "when the run is over")
	}) {
		t.Errorf("no warning %q in %q", warning, p.Warnings)
	}

	_, err = s.Apply(t.Context(), p)
	must(t, errors.Join(err, s.Close()))
	gated := 0
	for _, e := range l.events {
		if e.Phase != "gated" {
			continue
		}

		gated++
		if e.Text != "nothing is known here that starts LXD: do not start it yet" {
			t.Errorf("%s: %s", e.Member, e.Text)
		}
	}

	if gated != 3 {
		t.Errorf("%d members are gated, want 3", gated)
	}
}
