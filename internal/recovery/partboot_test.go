// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"testing"
	"time"
)

// boot has the machine of a member start: the agent is gone, and the boot unit runs.
func (l *partLab) boot(t *testing.T, i int) (told []*ResumeReport, err error) {
	t.Helper()
	l.parts[i].giveUp()
	l.parts[i].unlock()
	t.Setenv("LXD_DIR", l.dirs[i].path)
	err = ResumeAtBoot(t.Context(), ResumeOptions{Timeout: time.Minute}, func(_ string, r *ResumeReport) { told = append(told, r) })
	return told, err
}

// Before PhaseArmed a member that starts anew takes its part back, and can have none in that run any more. From then on it keeps LXD down.
func TestPartBoot(t *testing.T) {
	for phase, comeTo := range map[Phase]func(l *partLab){
		PhaseReached: func(l *partLab) { l.join(t, false) },
		PhaseGated:   func(l *partLab) { l.join(t, false); must(t, l.parts[1].Gate(t.Context())) },
		PhaseStopped: func(l *partLab) {
			l.join(t, false)
			must(t, l.parts[1].Gate(t.Context()))
			_, err := l.parts[1].Stop(t.Context())
			must(t, err)
		},
		PhaseStaged: func(l *partLab) { l.stage(t) },
	} {
		l := newPartLab(t)
		before := l.contents(t)
		comeTo(l)
		if got := l.parts[1].State().Phase; got != phase {
			t.Fatalf("it has come to %s, want %s", got, phase)
		}

		told, err := l.boot(t, 1)
		if err != nil || len(told) != 1 || !told[0].Found || len(told[0].Done) != 1 || l.contents(t) != before {
			t.Errorf("%s: %v, %+v", phase, err, told)
		}

		l.dirs[0], l.dirs[2] = l.dirs[1], l.dirs[1]
		l.wantNothingLeft(t)
		p := l.joinOne(t, 1, true)
		if p.State() != nil || p.Arm() == nil {
			t.Errorf("%s: it is part of the run again: %+v", phase, p.State())
		}
	}

	l := newPartLab(t)
	l.stage(t)
	for _, p := range l.parts {
		must(t, p.Arm())
	}

	_, err := l.parts[2].Exchange(t.Context(), "")
	must(t, err)
	before := l.contents(t)
	for i, phase := range map[int]Phase{1: PhaseArmed, 2: PhaseExchanged} {
		told, err := l.boot(t, i)
		wantRefused(t, err, "open-run", labRun, string(phase))
		open, readErr := l.dirs[i].readOpenRun()
		if readErr != nil || open == nil || open.Phase != phase || len(told) != 0 || l.contents(t) != before {
			t.Errorf("%+v, %v, %+v", open, readErr, told)
		}
	}
}

// While an agent is at work the boot unit, which the snap starts at other times, too, leaves its member alone.
func TestPartBootBesideAgent(t *testing.T) {
	l := newPartLab(t)
	l.stage(t)
	t.Setenv("LXD_DIR", l.dirs[1].path)
	err := ResumeAtBoot(t.Context(), ResumeOptions{Timeout: time.Minute}, func(string, *ResumeReport) { t.Error("it has done something") })
	must(t, err)
	must(t, l.parts[1].Arm())
}
