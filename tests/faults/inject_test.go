// SPDX-License-Identifier: AGPL-3.0-only

//go:build linux && amd64

package faults

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/tests/faults/systrace"
)

// fault is one fault in one run of a job.
type fault struct {
	sort   string // its row in the table
	at     step   // where it happens
	kind   systrace.Kind
	action func(p *place, c *systrace.Call) systrace.Action // for the call and, where it lasts, for all later ones
	lasts  bool
	power  bool // the disk forgets what was not synced, and what the program said before may be out of date
}

// workers is how many faults are tried at the same time.
const workers = 2

// eachJob has faults made of the system calls of a kind that each job makes, tries them, and judges what they leave.
func eachJob(t *testing.T, kind systrace.Kind, faults func(j *job, all []step) []fault) {
	l := getLab(t)
	for _, j := range l.jobs() {
		t.Run(j.name, func(t *testing.T) {
			p, err := newPlace(t.TempDir())
			must(t, err)
			all, err := j.steps(p, kind)
			must(t, err)
			t.Logf("%d system calls", len(all))
			j.inject(t, all, faults(j, all))
		})
	}
}

// inject tries faults and judges what they leave.
func (j *job) inject(t *testing.T, all []step, faults []fault) {
	t.Helper()
	j.injectAt(t, newPlaces(t), all, faults)
}

// newPlaces makes a place for each worker.
func newPlaces(t *testing.T) (places []*place) {
	t.Helper()
	for i := range workers {
		p, err := newPlace(t.TempDir())
		must(t, err)
		p.number = i
		places = append(places, p)
	}

	return places
}

// injectAt tries faults at several places at the same time.
func (j *job) injectAt(t *testing.T, places []*place, all []step, faults []fault) {
	t.Helper()
	known := setOf(all)
	tryAt(places, faults, func(p *place, f fault) { j.try(t, p, known, f) })
}

func setOf(all []step) map[step]bool {
	known := map[step]bool{}
	for _, s := range all {
		known[s] = true
	}

	return known
}

// tryAt tries faults at several places at the same time.
func tryAt(places []*place, faults []fault, try func(p *place, f fault)) {
	work := make(chan fault)
	var group sync.WaitGroup
	for _, p := range places {
		group.Go(func() {
			for f := range work {
				try(p, f)
			}
		})
	}

	for _, f := range faults {
		work <- f
	}

	close(work)
	group.Wait()
}

// attempts is how often a fault is tried whose run makes other calls than a clean one: a signal, of a child that ends for
// example, splits a call in two. That says nothing of the fault, and never happens three times unless the program is like that.
const attempts = 3

// try runs the job with one fault, judges, runs it again without, and judges again.
func (j *job) try(t *testing.T, p *place, known map[step]bool, f fault) {
	t.Helper()
	what := fmt.Sprintf("%s at %s", f.sort, f.at)
	r, err := j.attempt(t, p, known, f)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}

	j.verify(t, p, what, f, r)
}

// attempt runs the job with one fault, until its calls are those of a clean run before that.
func (j *job) attempt(t *testing.T, p *place, known map[step]bool, f fault) (result, error) {
	t.Helper()
	for i := 1; ; i++ {
		r, differs, err := j.tryOnce(p, known, f)
		switch {
		case err != nil, differs == "":
			return r, err
		case i == attempts:
			return r, fmt.Errorf("%s: %s", differs, r)
		}

		t.Logf("%s at %s: %s: tried again: %s", f.sort, f.at, differs, r)
	}
}

// tryOnce runs the job with one fault, and says how its calls differ from those of a clean run.
func (j *job) tryOnce(p *place, known map[step]bool, f fault) (r result, differs string, err error) {
	err = p.reset(j.start)
	if err != nil {
		return result{}, "", err
	}

	n, hit := newCounter(p), false
	r, err = p.trace(j, f.kind, func(c *systrace.Call) systrace.Action {
		s := n.step(c)
		switch {
		case hit && f.lasts, s == f.at:
			hit = true
			return f.action(p, c)
		case !hit && !known[s]:
			differs = fmt.Sprintf("a clean run makes no call %s", s)
		}

		return systrace.Proceed
	})
	if differs == "" && !hit && f.at != end {
		differs = "the run made no such call"
	}

	return r, differs, err
}

// end is the moment after the last call of a run.
var end = step{name: "the end"}

// verify judges a run with a fault, runs the job again, and judges that.
func (j *job) verify(t *testing.T, p *place, what string, f fault, r result) {
	t.Helper()
	sort := f.sort
	failed := func(why string) { t.Errorf("%s: %s\nthe run: %s", what, why, r) }
	left := p.remains()
	v, why := j.judge(p)
	table.add(sort, func(row *figures) {
		row.injected++
		switch v {
		case wholeOld:
			row.old++
		case wholeNew:
			row.new++
		default:
			row.lost++
		}
	})
	if v == broken {
		failed(why)
		return
	}

	killed := r.signal == unix.SIGKILL
	if !killed && r.status != 0 && strings.Contains(f.sort, "EINTR") {
		t.Logf("%s: not tried again: %s", what, r)
	}

	if !killed {
		complaint := r.complaint()
		if f.power && r.status == 4 {
			complaint = "" // the disk under its temporary database is gone: to SQLite that may look like damage
		}

		if complaint != "" {
			failed(complaint)
		}
	}

	says := strings.Contains(r.output, "in place")
	switch {
	case killed, f.power && r.status != 0:
	case r.status == 0 && v != wholeNew:
		failed("success, and the old database is in place")
	case r.status != 0 && v == wholeNew && !says:
		failed("the error does not say that the new database is in place")
	case r.status != 0 && v == wholeOld && says:
		failed("the error says that a database is in place, and it is the old one")
	}

	temporary := len(p.temporary())
	again := p.run(j)
	switch {
	case again.status != 0:
		why = "it failed"
	case len(p.temporary()) > temporary:
		why = "it left temporary files"
	default:
		why = j.notDone(p)
	}

	final, _ := j.judge(p)
	table.add(sort, func(row *figures) {
		switch {
		case final == broken:
			row.lost++
		case why == "":
			row.again++
		default:
			row.wedged++
		}
	})
	if why != "" {
		failed(fmt.Sprintf("it left %s; the second run: %s: %s", strings.Join(left, ", "), why, again))
	}
}

// remains lists what a run left in LXD's directory, beside what is never touched.
func (p *place) remains() []string { return names(filepath.Join(p.lxd(), "database*")) }

// temporary lists what runs left of their temporary files.
func (p *place) temporary() []string { return names(filepath.Join(p.tmp(), "*")) }

func names(pattern string) []string {
	paths, _ := filepath.Glob(pattern)
	for i, path := range paths {
		paths[i] = filepath.Base(path)
	}

	return paths
}

// sampleEvery is the share of the places that a sample has. No seed is needed: it is the same ones each time.
const sampleEvery = 15

// sampled counts the places of all kinds of faults, and those that were taken.
var sampled places

type places struct{ taken, all atomic.Int64 }

// String is the line that tests/table looks for.
func (p *places) String() string {
	return fmt.Sprintf("sample: places of faults: %d of %d, every %dth and all from the exchange on", p.taken.Load(), p.all.Load(), sampleEvery)
}

// sample reduces the places of a fault to a sample, unless everything is wanted. What changes LXD's directory itself near the
// exchange of the databases always stays.
func sample(all []step, wanted func(step) bool) []step {
	exchange := exchangeOf(all)
	var taken []step
	n := 0
	for i, s := range all {
		if !wanted(s) {
			continue
		}

		n++
		if everything || n%sampleEvery == 0 || exchange >= 0 && i > exchange-8 {
			taken = append(taken, s)
		}
	}

	sampled.taken.Add(int64(len(taken)))
	sampled.all.Add(int64(n))
	return taken
}

// allOf are the places that are always taken, as there are few.
func allOf(all []step, wanted func(step) bool) []step {
	return slices.DeleteFunc(slices.Clone(all), func(s step) bool { return !wanted(s) })
}

// exchangeOf finds the exchange of the databases, -1 where there is none, as among calls that only read.
func exchangeOf(all []step) int {
	return slices.IndexFunc(all, func(s step) bool { return s.rename && strings.Contains(s.name, " database ") })
}

// each wants every call.
func each(step) bool { return true }

// lasting tells whether LXD's directory depends on a call.
func lasting(s step) bool { return !s.scratch }
