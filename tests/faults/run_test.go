// SPDX-License-Identifier: AGPL-3.0-only

//go:build linux && amd64

package faults

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/tests/faults/systrace"
)

// result is how a run of the tool ended.
type result struct {
	output string // standard output and standard error
	status int    // exit status; -1 where a signal ended it
	signal unix.Signal
}

func (r result) String() string {
	if r.status < 0 {
		return fmt.Sprintf("%s: %s", r.signal, r.output)
	}

	return fmt.Sprintf("exit status %d: %s", r.status, r.output)
}

// complaint returns what is wrong with how a run ended that was not killed: it must have succeeded, or have given one error.
func (r result) complaint() string {
	for _, word := range []string{"panic:", "fatal error:", "goroutine "} {
		if strings.Contains(r.output, word) {
			return "it crashed"
		}
	}

	errs := strings.Count("\n"+r.output, "\nError: ")
	switch {
	case r.status < 0:
		return "a signal ended it"
	case r.status == 0 && errs > 0:
		return "an error and exit status 0"
	case r.status != 0 && errs != 1:
		return fmt.Sprintf("%d errors, want one", errs)
	case r.status > 1 && r.status != 3:
		return "not the exit status of a failure or a refusal"
	}

	return ""
}

// environ is what the tool runs with. Go's runtime sends its threads no signals: one that arrives during a copy_file_range makes
// Linux end the copy early (4823 of 5000 copies of 200 kB, with signals all the time), and one more call finishes it.
func (p *place) environ(lxd string) []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains([]string{"LXD_DIR", "TMPDIR", "GODEBUG"}, name)
	})
	return append(env, "LXD_DIR="+lxd, "TMPDIR="+p.tmp(), "GODEBUG=asyncpreemptoff=1")
}

// run runs the tool as a user would.
func (p *place) run(j *job) result {
	r := p.begin(j).finish()
	err := p.ended()
	if err != nil {
		return result{output: err.Error(), status: -1}
	}

	return r
}

// ended does what belongs to this place when a run has ended.
func (p *place) ended() error {
	if p.after == nil {
		return nil
	}

	return p.after()
}

// running is a run of the tool under way.
type running struct {
	cmd    *exec.Cmd
	output bytes.Buffer
	err    error
}

func (p *place) begin(j *job) *running {
	r := &running{cmd: exec.Command(tool, j.args...)}
	input, err := j.openInput()
	if err != nil {
		r.err = err
		return r
	}

	defer input.Close()
	r.cmd.Env, r.cmd.Dir, r.cmd.Stdin = p.environ(p.lxd()), base, input
	r.cmd.Stdout, r.cmd.Stderr = &r.output, &r.output
	r.err = r.cmd.Start()
	return r
}

func (r *running) finish() result {
	if r.err == nil {
		r.err = r.cmd.Wait()
	}

	var exit *exec.ExitError
	if r.err != nil && !errors.As(r.err, &exit) {
		return result{output: r.err.Error(), status: -1}
	}

	return result{output: r.output.String(), status: r.cmd.ProcessState.ExitCode()}
}

// trace runs the tool and steps in at its system calls of one kind.
func (p *place) trace(j *job, kind systrace.Kind, decide func(*systrace.Call) systrace.Action) (result, error) {
	r, err := p.traceOn(p.lxd(), j, kind, decide)
	return r, errors.Join(err, p.ended())
}

// traceOn is trace with another LXD's directory.
func (p *place) traceOn(lxd string, j *job, kind systrace.Kind, decide func(*systrace.Call) systrace.Action) (result, error) {
	input, err := j.openInput()
	if err != nil {
		return result{}, err
	}

	defer input.Close()
	out, err := os.Create(p.output)
	if err != nil {
		return result{}, err
	}

	defer out.Close()
	ws, err := systrace.Run(systrace.Program{
		Path: tool, Args: j.args, Env: p.environ(lxd), Dir: base, Input: input, Output: out, Roots: []string{lxd, p.tmp()},
		Reads: kind == systrace.Read, Processor: p.number, Aside: recovery.VerifyCommand,
	}, func(c *systrace.Call) systrace.Action {
		if c.Kind != kind {
			return systrace.Proceed
		}

		return decide(c)
	})
	if err != nil {
		return result{}, err
	}

	data, err := os.ReadFile(out.Name())
	r := result{output: string(data), status: ws.ExitStatus()}
	if ws.Signaled() {
		r.signal = ws.Signal()
	}

	return r, err
}

// step is one call of a clean run: faults are placed at steps. Which it is in another run is told from its name and how often
// calls of that name came before, which no scheduling of threads changes.
type step struct {
	name    string // the call, with numbers that change from run to run replaced
	nth     int    // from 1
	scratch bool   // it works on temporary files only, or is a lock or the end of reading: LXD's directory does not depend on it
	rename  bool
}

func (s step) String() string { return fmt.Sprintf("%s, no. %d", s.name, s.nth) }

// counter makes steps of the calls of one run.
type counter struct {
	place *place
	seen  map[string]int
}

func newCounter(p *place) *counter { return &counter{p, map[string]int{}} }

// changing are the numbers in names that differ from run to run: random ones, of however many digits, and times.
var changing = regexp.MustCompile(`(lxd-recover-scratch-[a-z]+-|\.lxd-recover-)[0-9]+|[0-9]{6,}`)

func (n *counter) step(c *systrace.Call) step {
	name := changing.ReplaceAllString(c.String(), "${1}#")
	n.seen[name]++
	s := step{name: name, nth: n.seen[name], rename: strings.HasPrefix(c.Name, "rename"), scratch: true}
	for _, file := range c.Files {
		if strings.HasPrefix(file, n.place.lxd()) && c.Name != "fcntl" && c.Name != "close" {
			s.scratch = false
		}
	}

	return s
}

// openInput opens what the job reads from standard input.
func (j *job) openInput() (*os.File, error) { return os.Open(cmp.Or(j.input, os.DevNull)) }

// steps traces a clean run of the job and returns all its calls of one kind.
func (j *job) steps(p *place, kind systrace.Kind) ([]step, error) {
	err := p.reset(j.start)
	if err != nil {
		return nil, err
	}

	var all []step
	n := newCounter(p)
	r, err := p.trace(j, kind, func(c *systrace.Call) systrace.Action {
		all = append(all, n.step(c))
		return systrace.Proceed
	})
	if err != nil {
		return nil, err
	}

	if r.status != 0 {
		return nil, fmt.Errorf("%s, only traced: %s", j.name, r)
	}

	return all, nil
}
