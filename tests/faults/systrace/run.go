// SPDX-License-Identifier: AGPL-3.0-only

//go:build linux && amd64

package systrace

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Action is what becomes of a call.
type Action struct {
	kind  actionKind
	errno unix.Errno
}

type actionKind int

const (
	proceed actionKind = iota
	killBefore
	killAfter
	fail
	failAfter
)

var (
	// Proceed lets the call be.
	Proceed = Action{}
	// KillBefore kills the program (SIGKILL) before the call is carried out.
	KillBefore = Action{kind: killBefore}
	// KillAfter kills it right after the call was carried out, before it sees the result.
	KillAfter = Action{kind: killAfter}
)

// Fail makes the call return an error without being carried out.
func Fail(errno unix.Errno) Action { return Action{fail, errno} }

// FailAfter lets the call be carried out and then return an error: close(2) is like that, network file systems can be.
func FailAfter(errno unix.Errno) Action { return Action{failAfter, errno} }

// Program is what to run.
type Program struct {
	Path   string
	Args   []string // without the program's own name
	Env    []string
	Dir    string
	Input  *os.File // standard input; nil for none
	Output *os.File // for standard output and standard error

	// Roots are the directories that the program may change. Writing elsewhere, but for Output and devices, ends the run; unless
	// it is Lenient.
	Roots []string

	// Reads tells whether to stop at calls that only read, too.
	Reads bool

	// Lenient tells whether to let be what would be overlooked: calls in no list, and changes elsewhere than below Roots. It is for
	// programs that are not ours.
	Lenient bool

	// Aside is the first argument of a child of the program whose calls are not decided about: they differ from run to run, and it works
	// on scratch files. A change below the first of Roots, or of what is below none of them, ends the run all the same.
	Aside string

	// Processor is the number of the processor to run it on, of those that this process may use.
	Processor int
}

// ErrCoverage says that the program did something that this package would have overlooked.
var ErrCoverage = errors.New("not covered by the tracer")

// Run runs a program to its end. decide is called for every Change below its roots and, where they are wanted, every Read, in
// the order in which the program, with all its threads, enters them. When decide is called the program has not carried the call out yet and, but
// for other threads, stands still.
func Run(p Program, decide func(*Call) Action) (syscall.WaitStatus, error) {
	// The kernel knows a tracer by its thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	unpin, err := pin(p.Processor)
	if err != nil {
		return 0, err
	}

	defer unpin()

	process, err := os.StartProcess(p.Path, append([]string{p.Path}, p.Args...), &os.ProcAttr{
		Dir: p.Dir, Env: p.Env, Files: []*os.File{p.Input, p.Output, p.Output},
		Sys: &syscall.SysProcAttr{Ptrace: true, Setpgid: true},
	})
	if err != nil {
		return 0, err
	}

	pid := process.Pid
	_ = process.Release() // waited for below

	t := &tracer{program: p, pid: pid, decide: decide, after: map[int]Action{}, known: map[int]bool{}}
	err = t.run()
	if err != nil {
		t.kill()
		t.reap()
	}

	return t.status, err
}

// pin keeps this thread, and the program that it starts, on the n-th of the processors that it may use: going back and forth
// between the two is several times faster so, and the program's threads interleave less.
func pin(n int) (unpin func(), err error) {
	var all, one unix.CPUSet
	err = unix.SchedGetaffinity(0, &all)
	if err != nil {
		return nil, fmt.Errorf("processors of this thread: %w", err)
	}

	n %= all.Count()
	for cpu := 0; ; cpu++ {
		if !all.IsSet(cpu) {
			continue
		}

		if n == 0 {
			one.Set(cpu)
			break
		}

		n--
	}

	return func() { _ = unix.SchedSetaffinity(0, &all) }, unix.SchedSetaffinity(0, &one)
}

type tracer struct {
	program Program
	pid     int
	decide  func(*Call) Action
	after   map[int]Action // by thread: what is to be done when its call returns
	known   map[int]bool   // threads that have begun
	status  syscall.WaitStatus
}

func (t *tracer) run() error {
	var ws syscall.WaitStatus
	_, err := wait(t.pid, &ws)
	if err != nil {
		return err
	}

	t.known[t.pid] = true
	const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACESECCOMP | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK |
		unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_EXITKILL
	err = unix.PtraceSetOptions(t.pid, options)
	if err != nil {
		return fmt.Errorf("ptrace options: %w", err)
	}

	err = installFilter(t.pid, t.program.Reads)
	if err != nil {
		return fmt.Errorf("install the filter: %w", err)
	}

	t.resume(t.pid, 0)
	for {
		tid, err := wait(-t.pid, &ws)
		if errors.Is(err, unix.ECHILD) {
			return nil
		}

		if err != nil {
			return err
		}

		err = t.event(tid, ws)
		if err != nil && !errors.Is(err, unix.ESRCH) { // ESRCH: killed meanwhile
			return err
		}
	}
}

// event handles one stop or end of a thread, and lets it run on.
func (t *tracer) event(tid int, ws syscall.WaitStatus) error {
	if ws.Exited() || ws.Signaled() {
		if tid == t.pid {
			t.status = ws
		}

		return nil
	}

	sig := ws.StopSignal()
	switch {
	case sig == unix.SIGTRAP && ws.TrapCause() == unix.PTRACE_EVENT_SECCOMP:
		return t.enter(tid)
	case sig == unix.SIGTRAP|0x80:
		err := t.leave(tid)
		if err != nil {
			return err
		}

		sig = 0
	case sig == unix.SIGTRAP && ws.TrapCause() > 0: // a thread, process or program begins
		sig = 0
	case !t.known[tid]: // a new thread's first stop
		t.known[tid] = true
		sig = 0
	}

	t.resume(tid, sig)
	return nil
}

// resume lets a thread run to its next call or signal. It may have been killed; then wait tells.
func (t *tracer) resume(tid int, sig syscall.Signal) { _ = unix.PtraceCont(tid, int(sig)) }

// enter handles a thread's way into a call.
func (t *tracer) enter(tid int) error {
	info, err := syscallInfo(tid)
	if err != nil {
		return err
	}

	call, err := t.describe(tid, info)
	if err != nil {
		return err
	}

	if t.aside(tid) && call.Kind != Other {
		call.Kind = Other
	}

	var act Action
	if call.Kind == Change || call.Kind == Read && t.program.Reads {
		act = t.decide(call)
	}

	switch act.kind {
	case killBefore:
		err = skip(tid, 0)
		t.kill()
	case fail:
		err = skip(tid, act.errno)
	case killAfter, failAfter:
		t.after[tid] = act
		return unix.PtraceSyscall(tid, 0)
	}

	t.resume(tid, 0)
	return err
}

// aside tells whether a thread is one of the child that is not decided about.
func (t *tracer) aside(tid int) bool {
	if t.program.Aside == "" {
		return false
	}

	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", tid))
	args := strings.Split(string(line), "\x00")
	return err == nil && len(args) > 1 && args[1] == t.program.Aside
}

// leave handles its way out of a call that enter wanted to see again.
func (t *tracer) leave(tid int) error {
	act := t.after[tid]
	delete(t.after, tid)
	switch act.kind {
	case killAfter:
		t.kill()
	case failAfter:
		return setResult(tid, act.errno)
	}

	return nil
}

// kill kills the program with everything that it has started.
func (t *tracer) kill() { _ = unix.Kill(-t.pid, unix.SIGKILL) }

// reap waits for a killed program.
func (t *tracer) reap() {
	var ws syscall.WaitStatus
	for {
		tid, err := wait(-t.pid, &ws)
		if err != nil {
			return
		}

		if ws.Stopped() {
			t.resume(tid, 0)
		}
	}
}

// wait waits for a process or, where the number is negative, for any thread of a process group. The program has a group of
// its own: this process may have other children, which are for others to wait for.
func wait(pid int, ws *syscall.WaitStatus) (int, error) {
	for {
		tid, err := syscall.Wait4(pid, ws, unix.WALL|unix.WNOTHREAD, nil)
		if !errors.Is(err, unix.EINTR) {
			return tid, err
		}
	}
}
