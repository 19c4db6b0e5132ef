// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/agent"
	"github.com/lxd-recover/lxd-recover/internal/clusterrun"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
)

// numbered has options count the events of a run, from 1. at is called for each, and no other one happens meanwhile.
func (l *lab) numbered(opts *clusterrun.Options, at func(number int, e clusterrun.Event)) {
	number := 0
	opts.Event = func(e clusterrun.Event) {
		l.mu.Lock()
		defer l.mu.Unlock()

		l.events = append(l.events, e)
		number++
		at(number, e)
	}
}

// haunted is an agent of a member that finds a lost one's LXD at its address.
type haunted struct {
	agent.Agent
	found func() daemon.Reach
}

func (h haunted) Probe(ctx context.Context, opts agent.ProbeOptions) (*agent.ProbeReport, error) {
	r, err := h.Agent.Probe(ctx, opts)
	if err == nil {
		for i := range r.Others {
			r.Others[i] = h.found()
		}
	}

	return r, err
}

// TestLostComesBack has a lost member's LXD come back at each event. Before the others are armed that ends the run; from then on no member asks any more. Its
// own directory stays as it is.
func TestLostComesBack(t *testing.T) {
	for _, number := range sampledOf(4, 9, lostEvents) {
		t.Run(fmt.Sprint(number), func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			before := l.contents()
			var back atomic.Bool
			opts := l.options()
			opts.Lost = []string{"node2"}
			l.down = "node2"
			opts.Connect = func(_ context.Context, m clusterrun.Member) (agent.Agent, error) {
				a, err := l.connect(m)
				return haunted{a, func() daemon.Reach {
					if back.Load() {
						return daemon.Answers
					}

					return daemon.Refused
				}}, err
			}
			armed, armedThen := false, false
			l.numbered(&opts, func(n int, e clusterrun.Event) {
				armed = armed || e.Phase == "armed"
				if n == number {
					back.Store(true)
					armedThen = armed
				}
			})
			p, s, err := clusterrun.MakePlan(t.Context(), opts)
			must(t, err)
			_, err = s.Apply(t.Context(), p)
			must(t, s.Close())
			if l.contents()["node2"] != before["node2"] {
				t.Error("the lost member's own directory was changed")
			}

			if err != nil {
				wantRefusal(t, err, "lost-member-answers")
				l.wantOld(before)
				count("lost member comes back", ending{})
				return
			}

			if !back.Load() {
				t.Errorf("the run had %d events: nothing has happened to it", len(l.events))
			}

			if !armedThen {
				t.Error("a lost member has come back before the others were armed, and the run has gone on")
			}

			l.wantNew("node1", "node3")
			count("lost member comes back", ending{isNew: true})
		})
	}
}

// lostEvents is how many events a run has in which one member is lost.
const lostEvents = 16

// sampledOf is sampled for runs of another length.
func sampledOf(first int, step int, whole int) []int {
	return slices.DeleteFunc(sampled(first, step), func(number int) bool { return number > whole })
}

// fakeDaemon is a process that has a file of a member's database open for writing, by which a running LXD is known. It has no service, and writes nothing.
type fakeDaemon struct{ cmd *exec.Cmd }

const fakeFile = "database/global/metadata1"

func startFakeDaemon(t testing.TB, lxd string) *fakeDaemon {
	t.Helper()
	d := &fakeDaemon{cmd: exec.CommandContext(t.Context(), "sh", "-c", `exec 3<> "$1"; echo; exec sleep 600`, "sh", filepath.Join(lxd, fakeFile))}
	out, err := d.cmd.StdoutPipe()
	must(t, err)
	must(t, d.cmd.Start())
	t.Cleanup(d.stop)
	_, err = out.Read(make([]byte, 1)) // it has the file open
	must(t, err)
	return d
}

// runsOn tells whether the database of a member that is in place is the one that the daemon has open.
func (d *fakeDaemon) runsOn(t testing.TB, lxd string) bool {
	t.Helper()
	has, err := os.Stat(fmt.Sprintf("/proc/%d/fd/3", d.cmd.Process.Pid))
	must(t, err)
	is, err := os.Stat(filepath.Join(lxd, fakeFile))
	must(t, err)
	return os.SameFile(has, is)
}

func (d *fakeDaemon) stop() {
	_ = d.cmd.Process.Kill()
	_ = d.cmd.Wait()
}

// TestStartedByHand has somebody start an LXD by hand on a member, past the gate, at each event, and stop it when the run has ended. No database is exchanged
// under a running LXD.
func TestStartedByHand(t *testing.T) {
	for _, number := range sampledOf(5, 7, wholeEvents) {
		t.Run(fmt.Sprint(number), func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			before := l.contents()
			name := fmt.Sprintf("node%d", number%3+1)
			opts := l.options()
			opts.Connect = func(_ context.Context, m clusterrun.Member) (agent.Agent, error) {
				return agent.NewLocal(agent.Options{LXDDir: l.dirs[cmp.Or(m.Name, "node1")], Version: "test", Timeout: 2 * time.Second}), nil
			}
			var fake *fakeDaemon
			l.numbered(&opts, func(n int, _ clusterrun.Event) {
				if n == number {
					fake = startFakeDaemon(t, l.dirs[name])
				}
			})
			p, s, err := clusterrun.MakePlan(t.Context(), opts)
			if err != nil { // it was there before the plan
				wantRefusal(t, err, "no-service")
				l.wantOld(before)
				count("LXD started by hand", ending{})
				return
			}

			_, err = s.Apply(t.Context(), p)
			must(t, s.Close())
			if fake == nil {
				t.Fatalf("the run had %d events: nothing has happened to it", len(l.events))
			}

			if !fake.runsOn(t, l.dirs[name]) {
				t.Errorf("the database of %s was exchanged under a running LXD: %v", name, err)
			}

			fake.stop()
			e := ending{byResume: slices.ContainsFunc([]string{"node1", "node2", "node3"}, func(n string) bool { return l.phases()[n] != "" })}
			if e.byResume {
				_, resumeErr := clusterrun.Resume(t.Context(), l.options(), p)
				if resumeErr != nil && !errors.As(resumeErr, new(*clusterrun.TakenBack)) {
					t.Errorf("%v, then %v", err, resumeErr)
				}
			}

			if mapsEqual(l.contents(), before) {
				l.wantClean()
			} else {
				l.wantNew("node1", "node2", "node3")
				e.isNew = true
			}

			if t.Failed() {
				t.Fatal(strings.Join(l.said(), "\n"), err)
			}

			count("LXD started by hand", e)
		})
	}
}

// said is what events have told.
func (l *lab) said() (lines []string) {
	for _, e := range l.events {
		lines = append(lines, e.Member+" "+e.Phase+" "+e.Text)
	}

	return lines
}
