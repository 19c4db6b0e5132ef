// SPDX-License-Identifier: AGPL-3.0-only

package remote

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"
)

// TestCall calls an agent for which the program was carried, by way of several login shells, one of which prints much before.
func TestCall(t *testing.T) {
	for name, script := range map[string]string{
		"sh":   `exec sh -c "$command"`,
		"dash": `exec dash -c "$command"`,
		"bash": `exec bash -c "$command"`,
		"motd": `seq -f "Welcome to n1, the %.0f. of all" 20000; printf "no end of the line: "; exec sh -c "$command"`,
	} {
		t.Run(name, func(t *testing.T) {
			dir, opts := setUp(t), testOptions()
			opts.SSH = inPlaceOfSSH(script)
			conn := dial(t, opts)
			host, err := os.Hostname()
			must(t, err)
			want := Peer{Arch: runtime.GOARCH, Host: host, UID: os.Getuid(), Version: testVersion, Carried: true}
			if conn.Peer() != want {
				t.Errorf("%+v, wanted %+v", conn.Peer(), want)
			}

			var path string
			must(t, conn.Call(t.Context(), "path", nil, &path))
			found, err := filepath.Glob(filepath.Join(dir, "*", programName))
			must(t, err)
			if !slices.Equal(found, []string{path}) {
				t.Errorf("%s runs, and there is %v", path, found)
			}

			for _, private := range []string{path, filepath.Dir(path), dir, filepath.Dir(dir)} {
				info, err := os.Stat(private)
				must(t, err)
				if info.Mode().Perm() != 0o700 {
					t.Errorf("%s: %s", private, info.Mode())
				}
			}

			must(t, conn.Close())
			wantError(t, conn.Err(), CodeLost, "n1: the connection was closed")
			wantError(t, conn.Call(t.Context(), "path", nil, nil), CodeLost, "n1: the connection was closed")
			_, err = os.Stat(filepath.Dir(dir))
			if !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is still there (%v)", filepath.Dir(dir), err)
			}
		})
	}
}

// TestHere has the agent on this machine, where the program is.
func TestHere(t *testing.T) {
	dir, opts := setUp(t), testOptions()
	opts.Destination, opts.SSH = "", []string{"false"}
	note := noted(t)
	conn := dial(t, opts)
	var path string
	must(t, conn.Call(t.Context(), "path", nil, &path))
	self, err := os.Executable()
	must(t, err)
	if path != self || conn.Peer().Carried {
		t.Errorf("%s runs, carried %t", path, conn.Peer().Carried)
	}

	must(t, conn.Close())
	wantEmpty(t, dir)
	if why := note(); why != "<nil>;" {
		t.Errorf("the agent ended with %s", why)
	}
}

func TestErrors(t *testing.T) {
	setUp(t)
	conn := dial(t, testOptions())
	err := conn.Call(t.Context(), "fail", nil, nil)
	wantError(t, err, "no-quorum", "there is no quorum")
	var e *Error
	if !errors.As(err, &e) || string(e.Detail) != `{"voters":3}` {
		t.Errorf("detail: %v", err)
	}

	wantError(t, conn.Call(t.Context(), "fail-plainly", nil, nil), "", "a plain error")
	wantError(t, conn.Call(t.Context(), "lines", 5, nil), "", "arguments of lines: json: cannot unmarshal number")
	args, reply := map[string]any{"text": "'\\!\n\x00", "list": []any{1.0, nil}}, map[string]any{}
	must(t, conn.Call(t.Context(), "echo", args, &reply))
	if fmt.Sprint(reply) != fmt.Sprint(args) {
		t.Errorf("%v came back as %v", args, reply)
	}
}

// TestProgress has two calls at once, whose lines are each in order, and have all come when the call has ended.
func TestProgress(t *testing.T) {
	setUp(t)
	var mu sync.Mutex
	come := map[string][]string{}
	opts := testOptions()
	opts.Progress = func(line string) {
		mu.Lock()
		defer mu.Unlock()

		name, number, _ := strings.Cut(line, " ")
		come[name] = append(come[name], number)
	}

	conn := dial(t, opts)
	var wait sync.WaitGroup
	for _, name := range []string{"a", "b"} {
		wait.Go(func() {
			err := conn.Call(t.Context(), "lines", name, nil)
			mu.Lock()
			defer mu.Unlock()

			var want []string
			for i := range 500 {
				want = append(want, strconv.Itoa(i))
			}

			if err != nil || !slices.Equal(come[name], want) {
				t.Errorf("%s: %v, %d lines: %v", name, err, len(come[name]), come[name])
			}
		})
	}

	wait.Wait()
}

// TestConcurrent has calls of which none ends before all are there.
func TestConcurrent(t *testing.T) {
	setUp(t)
	conn := dial(t, testOptions())
	ctx := bounded(t, 20*time.Second)
	var wait sync.WaitGroup
	for range 50 {
		wait.Go(func() {
			var met int
			err := conn.Call(ctx, "meet", 50, &met)
			if err != nil || met != 50 {
				t.Errorf("%d, %v", met, err)
			}
		})
	}

	wait.Wait()
}

func TestCancel(t *testing.T) {
	setUp(t)
	opts := testOptions()
	called := make(chan struct{}, 1)
	opts.Progress = func(string) { called <- struct{}{} }
	conn := dial(t, opts)
	errEnough := errors.New("that is enough")
	for _, args := range []any{nil, "finish"} {
		ctx, cancel := context.WithCancelCause(bounded(t, 20*time.Second))
		go func() {
			<-called
			cancel(errEnough)
		}()

		var reply string
		err := conn.Call(ctx, "block", args, &reply)
		if args == nil && !errors.Is(err, errEnough) {
			t.Errorf("cancelled: %v", err)
		}

		if args != nil && (err != nil || reply != "done") {
			t.Errorf("done nevertheless: %q, %v", reply, err)
		}

		var cause string
		must(t, conn.Call(t.Context(), "cause", nil, &cause))
		if cause != errCanceled.Message {
			t.Errorf("at the agent: %s", cause)
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := conn.Call(ctx, "block", nil, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}
}

// TestTransfer sends 100 MiB there and back at once. Neither end holds them in memory.
func TestTransfer(t *testing.T) {
	setUp(t)
	conn := dial(t, testOptions())
	const size = 100 << 20
	source := func() io.Reader { return io.LimitReader(&pattern{}, size) }
	wanted := sha256.New()
	_, err := io.Copy(wanted, source())
	must(t, err)
	var before, after int
	must(t, conn.Call(t.Context(), "memory", nil, &before))
	must(t, os.WriteFile("/proc/self/clear_refs", []byte("5"), 0))
	ownBefore, err := peak(os.Getpid())
	must(t, err)

	back := sha256.New()
	var copied int64
	must(t, conn.Transfer(t.Context(), "copy", nil, &copied, Files{From: source(), To: back}))
	if copied != size || !bytes.Equal(back.Sum(nil), wanted.Sum(nil)) {
		t.Errorf("%d bytes came back, with sum %x", copied, back.Sum(nil))
	}

	var reply sumReply
	must(t, conn.Transfer(t.Context(), "sum", nil, &reply, Files{From: source()}))
	if reply != (sumReply{Size: size, Sum: hex.EncodeToString(wanted.Sum(nil))}) {
		t.Errorf("%+v", reply)
	}

	must(t, conn.Call(t.Context(), "sum", nil, &reply))
	if reply.Size != 0 {
		t.Errorf("no file: %+v", reply)
	}

	must(t, conn.Call(t.Context(), "memory", nil, &after))
	own, err := peak(os.Getpid())
	must(t, err)
	t.Logf("memory: the agent %d KiB, %d before; the giving side %d KiB, %d before", after, before, own, ownBefore)
	if after-before > 48<<10 || own-ownBefore > 48<<10 {
		t.Error("that is too much memory")
	}
}

// pattern is a file without an end.
type pattern struct{ at uint32 }

func (p *pattern) Read(data []byte) (int, error) {
	for i := range data {
		p.at = p.at*1664525 + 1013904223
		data[i] = byte(p.at >> 24)
	}

	return len(data), nil
}

// TestTransferFails has files that end with an error: at neither end is that the end of the file.
func TestTransferFails(t *testing.T) {
	setUp(t)
	conn := dial(t, testOptions())
	errBad := errors.New("bad sector")
	err := conn.Transfer(bounded(t, 20*time.Second), "sum", nil, nil, Files{From: io.MultiReader(io.LimitReader(&pattern{}, 3<<20), iotest.ErrReader(errBad))})
	if !errors.Is(err, errBad) {
		t.Errorf("reading: %v", err)
	}

	var cause string
	must(t, conn.Call(t.Context(), "cause", nil, &cause))
	if cause != errCanceled.Message {
		t.Errorf("at the agent, the reading ended with %s", cause)
	}

	err = conn.Transfer(bounded(t, 20*time.Second), "copy", nil, nil, Files{From: &pattern{}, To: failing{errBad}})
	if !errors.Is(err, errBad) {
		t.Errorf("writing: %v", err)
	}

	var n int
	must(t, conn.Transfer(bounded(t, 20*time.Second), "leave", nil, &n, Files{From: &pattern{}}))
	if n != 1 {
		t.Errorf("%d bytes of an endless file", n)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()

	err = conn.Transfer(ctx, "copy", nil, nil, Files{From: &pattern{}, To: io.Discard})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("in time: %v", err)
	}

	must(t, conn.Call(t.Context(), "echo", nil, nil))
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// TestLost loses the connection in each way during calls: both ends know it soon.
func TestLost(t *testing.T) {
	kill := func(signal unix.Signal, whom string) func(t *testing.T, conn *Conn, pid int) {
		return func(t *testing.T, conn *Conn, pid int) {
			if whom == asRelay {
				pid = conn.process.cmd.Process.Pid
			}

			must(t, unix.Kill(pid, signal))
		}
	}
	const cut, silent = "the other end has ended, or the connection was cut", "nothing was heard from the other end for 900ms"
	for name, test := range map[string]struct {
		lose  func(t *testing.T, conn *Conn, pid int)
		giver string
		agent string // empty: it is dead
	}{
		"agent killed":      {kill(unix.SIGKILL, asAgent), cut, ""},
		"connection cut":    {kill(unix.SIGKILL, asRelay), cut, cut},
		"connection frozen": {kill(unix.SIGSTOP, asRelay), silent, "the connection was lost"},
		"agent frozen":      {kill(unix.SIGSTOP, asAgent), silent, ""},
		"agent exits":       {func(t *testing.T, conn *Conn, _ int) { go conn.Call(t.Context(), "exit", nil, nil) }, `the agent exits\x1b[1m)`, ""},
		"agent terminated":  {kill(unix.SIGTERM, asAgent), "", "terminated signal received"},
	} {
		t.Run(name, func(t *testing.T) {
			setUp(t)
			note := noted(t)
			opts := testOptions()
			opts.SSH, opts.Heartbeat = relay(t), testBeat
			called := make(chan struct{}, 1)
			opts.Progress = func(string) { called <- struct{}{} }
			conn := dial(t, opts)
			var pid int
			must(t, conn.Call(t.Context(), "pid", nil, &pid))
			t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGKILL) })
			calls, ctx := make(chan error, 2), bounded(t, 20*time.Second)
			begun := dropping{first: make(chan struct{})}
			go func() { calls <- conn.Call(ctx, "block", nil, nil) }()
			go func() { calls <- conn.Transfer(ctx, "copy", nil, nil, Files{From: &pattern{}, To: &begun}) }()
			<-called
			<-begun.first
			began := time.Now()
			test.lose(t, conn, pid)
			for range 2 {
				wantLost(t, <-calls, test.giver)
			}

			if !within(ctx, conn.Done()) {
				t.Fatal("the connection has not ended")
			}

			wantError(t, conn.Err(), CodeLost, test.giver)
			if !conn.process.wait(5 * time.Second) {
				t.Error("what stands for ssh still runs")
			}

			if took := time.Since(began); took > 4*time.Second {
				t.Errorf("that was known after %s", took)
			}

			if test.agent == "" {
				return
			}

			if why := note(); !strings.Contains(why, test.agent) {
				t.Errorf("the agent ended with %s", why)
			}
		})
	}
}

// dropping drops what is written, and tells when that begins.
type dropping struct {
	first chan struct{}
	once  sync.Once
}

func (d *dropping) Write(data []byte) (int, error) {
	d.once.Do(func() { close(d.first) })
	return len(data), nil
}

// TestCutFile cuts the connection while a file is sent: at the agent that is not the end of the file.
func TestCutFile(t *testing.T) {
	setUp(t)
	note := noted(t)
	opts := testOptions()
	opts.SSH = relay(t)
	conn := dial(t, opts)
	r, w := io.Pipe()
	sent := make(chan error, 1)
	go func() { sent <- conn.Transfer(t.Context(), "sum", nil, nil, Files{From: r}) }()
	_, err := w.Write(make([]byte, 10<<20))
	must(t, err)
	must(t, conn.process.cmd.Process.Kill())
	said := note()
	handler := said[strings.LastIndex(said, "; ")+2:]
	if handler != "unexpected EOF" && !strings.Contains(handler, "the connection was lost") {
		t.Errorf("reading the file ended with: %s", handler)
	}

	must(t, w.Close())
	wantError(t, <-sent, CodeLost, "(during sum: it may have been done or not)")
}

// TestStubborn has a call that heeds nothing: nobody waits for it without a bound, and what is known is said.
func TestStubborn(t *testing.T) {
	beforeCancel, beforeClose := cancelTime, closeTime
	t.Cleanup(func() { cancelTime, closeTime = beforeCancel, beforeClose })
	cancelTime, closeTime = 200*time.Millisecond, 200*time.Millisecond
	setUp(t)
	conn := dial(t, testOptions())
	var pid int
	must(t, conn.Call(t.Context(), "pid", nil, &pid))
	t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGKILL) })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()

	err := conn.Call(ctx, "stubborn", nil, nil)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "stubborn does not end, and may go on there") {
		t.Errorf("%v", err)
	}

	wantError(t, conn.Close(), CodeLost, "n1: the agent is still at work, although the connection was closed")
}

// wantLost wants a call to have ended with its connection; if nothing is said of why, the agent itself has cancelled it.
func wantLost(t *testing.T, err error, why string) {
	t.Helper()
	if why == "" {
		wantError(t, err, CodeCanceled, "")
		return
	}

	wantError(t, err, CodeLost, why)
}

// TestGiverGone kills and freezes the giving side.
func TestGiverGone(t *testing.T) {
	for signal, want := range map[unix.Signal]string{
		unix.SIGKILL: "the other end has ended, or the connection was cut",
		unix.SIGSTOP: "nothing was heard from the other end for 900ms",
	} {
		t.Run(unix.SignalName(signal), func(t *testing.T) {
			setUp(t)
			note := noted(t)
			self, err := os.Executable()
			must(t, err)
			giver := exec.Command(self, asGiver)
			out, err := giver.StdoutPipe()
			must(t, err)
			must(t, giver.Start())
			t.Cleanup(func() { _, _ = giver.Process.Kill(), giver.Wait() })
			_, err = io.ReadFull(out, make([]byte, len("called\n")))
			must(t, err)
			began := time.Now()
			must(t, giver.Process.Signal(signal))
			if why := note(); !strings.Contains(why, want) {
				t.Errorf("the agent ended with %s", why)
			}

			if took := time.Since(began); took > 4*time.Second {
				t.Errorf("that was known after %s", took)
			}
		})
	}
}

// TestInTime is about the default: a connection that has been silent for 10 s is known to be dead.
func TestInTime(t *testing.T) {
	if DefaultHeartbeat*silentBeats+DefaultHeartbeat/looksABeat >= 10*time.Second {
		t.Error("silence is noticed too late")
	}
}

// TestQuiet has an agent that takes longer to begin than silence may, and then such a call, with nothing else on the connection.
func TestQuiet(t *testing.T) {
	setUp(t)
	t.Setenv(slowVariable, "yes")
	opts := testOptions()
	opts.Heartbeat = testBeat
	conn := dial(t, opts)
	ctx, cancel := context.WithTimeout(t.Context(), 2*silentBeats*testBeat)
	defer cancel()

	err := conn.Call(ctx, "block", nil, nil)
	if !errors.Is(err, context.DeadlineExceeded) || conn.Err() != nil {
		t.Errorf("%v, %v", err, conn.Err())
	}
}

// TestHangup sends what a session's end sends, to an agent that has not got them ignored from ssh's stand-in.
func TestHangup(t *testing.T) {
	setUp(t)
	opts := testOptions()
	opts.Destination = ""
	conn := dial(t, opts)
	var pid int
	must(t, conn.Call(t.Context(), "pid", nil, &pid))
	for _, signal := range []unix.Signal{unix.SIGHUP, unix.SIGPIPE, unix.SIGHUP} {
		must(t, unix.Kill(pid, signal))
		var again int
		must(t, conn.Call(t.Context(), "pid", nil, &again))
		if again != pid {
			t.Errorf("after %s it is process %d", signal, again)
		}
	}
}

// TestTerminal sends what a terminal sends for Ctrl-C to all of its foreground: the giving side heeds it as it likes, and the connections
// stay.
func TestTerminal(t *testing.T) {
	for _, destination := range []string{"", "n1"} {
		setUp(t)
		opts := testOptions()
		opts.Destination, opts.SSH = destination, inPlaceOfSSH(`sh -c "$command"; exit $?`)
		conn := dial(t, opts)
		for _, signal := range []unix.Signal{unix.SIGINT, unix.SIGQUIT, unix.SIGHUP} {
			group, err := unix.Getpgid(conn.process.cmd.Process.Pid)
			must(t, err)
			if own := unix.Getpgrp(); destination != "" && group != own || destination == "" && group == own {
				t.Errorf("%q: in process group %d, this one is in %d", destination, group, own)
			}

			if destination != "" {
				must(t, unix.Kill(conn.process.cmd.Process.Pid, signal))
			}

			must(t, conn.Call(t.Context(), "echo", nil, nil))
		}

		must(t, conn.Close())
	}
}

// TestGarbage has something in the session that is none of it.
func TestGarbage(t *testing.T) {
	setUp(t)
	opts := testOptions()
	opts.SSH = inPlaceOfSSH(`sh -c "$command" | { head -n 1; head -n 1; head -c 100000 /dev/urandom; }`)
	_, err := Dial(bounded(t, 20*time.Second), opts)
	if err == nil || !strings.HasPrefix(err.Error(), "n1: ") {
		t.Errorf("%v", err)
	}
}

func TestDecode(t *testing.T) {
	call := Call{Method: "stage", Args: json.RawMessage(`{"name":"n1","extra":1}`)}
	var args struct{ Name string }
	err := call.Decode(&args)
	if err == nil || err.Error() != `arguments of stage: json: unknown field "extra"` {
		t.Errorf("%v", err)
	}
}
