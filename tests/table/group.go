// SPDX-License-Identifier: AGPL-3.0-only

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"
)

// event is a line that `go test -json` writes, as far as the table needs it.
type event struct {
	Time    time.Time
	Action  string
	Package string
	Test    string
	Output  string
}

// group is what became of one group of tests. Tests within tests count, as in gotestsum's own closing line.
type group struct {
	name    string
	ran     bool                // whether there were any events
	tests   int                 // that were begun
	failed  []string            // tests and packages, by package and name
	last    map[string][]string // the last lines of the logs of those that failed and have no test inside that did
	skipped []string
	samples []string // without the word "sample"
	took    time.Duration
}

// sampleLine is what a test writes about its sample. The log begins a line with the place in the source.
var sampleLine = regexp.MustCompile(`^\s*(?:[^\s:]+\.go:[0-9]+: )?sample: (.+)$`)

// reader takes a group's events one by one.
type reader struct {
	group       *group
	first, last time.Time
	open        map[string]bool  // tests that were begun and have not ended yet
	broken      map[string]bool  // packages in which a test has failed
	logs        map[string]*tail // of tests that have not ended yet
}

// readGroup reads the events of a group up to the end. A group that was killed may have left half a line.
func readGroup(name string, events io.Reader) (*group, error) {
	r := reader{group: &group{name: name, last: map[string][]string{}}, open: map[string]bool{}, broken: map[string]bool{}, logs: map[string]*tail{}}
	decoder := json.NewDecoder(events)
	for {
		var e event
		err := decoder.Decode(&e)
		if errors.Is(err, io.EOF) {
			break
		}

		if errors.Is(err, io.ErrUnexpectedEOF) {
			r.group.failed = append(r.group.failed, "the events end in the middle of one")
			break
		}

		if err != nil {
			return nil, err
		}

		r.take(e)
	}

	r.finish()
	return r.group, nil
}

// take counts one event.
func (r *reader) take(e event) {
	r.group.ran = true
	if r.first.IsZero() {
		r.first = e.Time
	}

	if !e.Time.IsZero() {
		r.last = e.Time
	}

	name := nameOf(e)
	switch e.Action {
	case "run":
		r.group.tests++
		r.open[name] = true
	case "pass":
		delete(r.open, name)
		delete(r.logs, name)
	case "skip":
		// A package without tests is skipped, too.
		if e.Test != "" {
			delete(r.open, name)
			r.group.skipped = append(r.group.skipped, name)
		}
	case "fail":
		r.fail(e, name)
	case "output":
		r.output(e.Output)
		if r.logs[name] == nil {
			r.logs[name] = &tail{}
		}

		r.logs[name].add(strings.TrimRight(e.Output, "\n"))
	}
}

// fail counts a test that failed; or a package, if no test of it did: it does not compile, or ended too early.
func (r *reader) fail(e event, name string) {
	if e.Test == "" && r.broken[e.Package] {
		return
	}

	delete(r.open, name)
	r.broken[e.Package] = true
	inside := slices.ContainsFunc(r.group.failed, func(other string) bool { return strings.HasPrefix(other, name+"/") })
	if !inside {
		r.group.last[name] = r.logs[name].lines()
	}

	delete(r.logs, name)
	r.group.failed = append(r.group.failed, name)
}

// output looks for a sample's size. The same one may be told more than once, by tests that share it.
func (r *reader) output(text string) {
	match := sampleLine.FindStringSubmatch(strings.TrimRight(text, "\n"))
	if match != nil && !slices.Contains(r.group.samples, match[1]) {
		r.group.samples = append(r.group.samples, match[1])
	}
}

// finish adds what only the end tells: how long it took, and the tests that never ended.
func (r *reader) finish() {
	r.group.took = r.last.Sub(r.first)
	for name := range r.open {
		r.group.failed = append(r.group.failed, fmt.Sprintf("%s (did not end)", name))
	}

	slices.Sort(r.group.failed)
}

// nameOf is a test's name, after the last part of its package's.
func nameOf(e event) string {
	short := e.Package[strings.LastIndexByte(e.Package, '/')+1:]
	if e.Test == "" {
		return "package " + short
	}

	return short + "." + e.Test
}

// trouble says why a group is no success, if it is none.
func (g *group) trouble() error {
	switch {
	case !g.ran:
		return fmt.Errorf("group %s did not run", g.name)
	case len(g.failed) > 0:
		return fmt.Errorf("group %s: %d failed", g.name, len(g.failed))
	case g.tests == 0:
		return fmt.Errorf("group %s has no test", g.name)
	case len(g.skipped) == g.tests:
		return fmt.Errorf("group %s: every test was skipped", g.name)
	default:
		return nil
	}
}
