// SPDX-License-Identifier: AGPL-3.0-only

package remote

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// The program that is started is this test binary. These are what it is, by its first argument; else it runs the tests.
const (
	asAgent = "agent"
	asGiver = "giver" // connects to an agent, and calls it until it is killed
	asRelay = "relay" // in place of ssh: the last argument is a command for the shell, between which and the caller it copies
)

// Of the environment: where carried programs are put, a FIFO to which the agent writes why it has ended, and why its last call has, and
// whether the agent begins late.
const (
	slowVariable = "REMOTE_TEST_SLOW"
	dirVariable  = "REMOTE_TEST_DIR"
	noteVariable = "REMOTE_TEST_NOTE"
)

const testVersion = "1.2.3"

func TestMain(m *testing.M) {
	if dir := os.Getenv(dirVariable); dir != "" {
		agentDir = dir
	}

	if len(os.Args) > 1 {
		switch os.Args[1] {
		case asAgent:
			agentMain()
		case asGiver:
			giverMain()
		case asRelay:
			relayMain()
		}
	}

	os.Exit(m.Run())
}

func agentMain() {
	if os.Getenv(slowVariable) != "" {
		time.Sleep(2 * silentBeats * testBeat)
	}

	handler := &testHandler{meeting: make(chan struct{})}
	err := Serve(context.Background(), testVersion, os.Stdin, os.Stdout, handler)
	note := os.Getenv(noteVariable)
	if note != "" {
		fifo, openErr := os.OpenFile(note, os.O_RDWR, 0) // which does not wait for a reader
		if openErr == nil {
			fmt.Fprintf(fifo, "%v; %s\n", err, handler.cause)
		}
	}

	os.Exit(0)
}

func relayMain() {
	cmd := exec.Command("sh", "-c", os.Args[len(os.Args)-1])
	in, err := cmd.StdinPipe()
	if err != nil {
		panic(err)
	}

	cmd.Stdout, cmd.Stderr = struct{ io.Writer }{os.Stdout}, os.Stderr
	go func() {
		_, _ = io.Copy(in, os.Stdin)
		_ = in.Close()
	}()
	_ = cmd.Run()
	os.Exit(cmd.ProcessState.ExitCode())
}

// giverMain says "called" when its call is under way.
func giverMain() {
	conn, err := Dial(context.Background(), Options{
		Command: []string{asAgent}, Version: testVersion, Heartbeat: testBeat, Progress: func(line string) { fmt.Println(line) },
	})
	if err == nil {
		err = conn.Call(context.Background(), "block", nil, nil)
	}

	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// testBeat is the heartbeat where one is waited for.
const testBeat = 300 * time.Millisecond

// testHandler is what the agent does.
type testHandler struct {
	mu      sync.Mutex
	met     int
	meeting chan struct{}
	cause   string
}

type sumReply struct {
	Size int64  `json:"size"`
	Sum  string `json:"sum"`
}

func (h *testHandler) Handle(ctx context.Context, call Call) (any, error) {
	switch call.Method {
	case "echo":
		return call.Args, nil
	case "path":
		return os.Executable()
	case "pid":
		return os.Getpid(), nil
	case "fail":
		return nil, &Error{Code: "no-quorum", Message: "there is no quorum", Detail: []byte(`{"voters":3}`)}
	case "fail-plainly":
		return nil, errors.New("a plain error")
	case "exit":
		fmt.Fprintln(os.Stderr, "the agent exits\x1b[1m")
		os.Exit(7)
	case "lines":
		return h.lines(call)
	case "block":
		return h.block(ctx, call)
	case "cause":
		h.mu.Lock()
		defer h.mu.Unlock()

		return h.cause, nil
	case "meet":
		return h.meet(ctx, call)
	case "sum":
		return h.sum(call.From)
	case "copy":
		return io.Copy(call.To, call.From)
	case "leave": // reads a byte of what is sent
		return io.ReadFull(call.From, make([]byte, 1))
	case "stubborn":
		time.Sleep(time.Hour)
	case "memory":
		return peak(os.Getpid())
	}

	return nil, errors.New("no such method: " + call.Method)
}

func (h *testHandler) lines(call Call) (any, error) {
	var name string
	err := call.Decode(&name)
	for i := range 500 {
		call.Progress(fmt.Sprintf("%s %d", name, i))
	}

	return nil, err
}

// block waits for the end of its context. With an argument it succeeds then, as something that cannot be stopped any more.
func (h *testHandler) block(ctx context.Context, call Call) (any, error) {
	call.Progress("called")
	<-ctx.Done()
	h.mu.Lock()
	defer h.mu.Unlock()

	h.cause = context.Cause(ctx).Error()
	if string(call.Args) != "null" {
		return "done", nil
	}

	return nil, ctx.Err()
}

// meet waits until so many calls are here.
func (h *testHandler) meet(ctx context.Context, call Call) (any, error) {
	var number int
	err := call.Decode(&number)
	if err != nil {
		return nil, err
	}

	h.mu.Lock()
	h.met++
	if h.met == number {
		close(h.meeting)
	}

	h.mu.Unlock()
	select {
	case <-h.meeting:
		return number, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// sum makes the sum of a file. An error of the reading is noted, and not returned.
func (h *testHandler) sum(from io.Reader) (any, error) {
	digest := sha256.New()
	n, err := io.Copy(digest, from)
	h.mu.Lock()
	defer h.mu.Unlock()

	h.cause = fmt.Sprint(err)
	return sumReply{Size: n, Sum: hex.EncodeToString(digest.Sum(nil))}, nil
}

// peak is the most memory that a process has had, in KiB.
func peak(pid int) (kib int, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}

	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	_, err = fmt.Sscanf(rest, "%d kB", &kib)
	return kib, err
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// setUp makes a directory for carried programs, and returns it.
func setUp(t testing.TB) string {
	t.Helper()
	before, dir := agentDir, filepath.Join(t.TempDir(), "lxd-recover", "agent")
	agentDir = dir
	t.Cleanup(func() { agentDir = before })
	t.Setenv(dirVariable, dir)
	return dir
}

// inPlaceOfSSH runs a script with the command for the other machine in $command.
func inPlaceOfSSH(script string) []string {
	return []string{"sh", "-c", "for command; do :; done; " + script, "ssh"}
}

// relay is this binary in place of ssh.
func relay(t testing.TB) []string {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	return []string{self, asRelay}
}

// testOptions are those of a machine n1 that is this one, by way of a shell.
func testOptions() Options {
	return Options{Destination: "n1", SSH: inPlaceOfSSH(`exec sh -c "$command"`), Command: []string{asAgent}, Version: testVersion}
}

// dial connects, and closes the connection when t ends.
func dial(t testing.TB, opts Options) *Conn {
	t.Helper()
	conn, err := Dial(bounded(t, 20*time.Second), opts)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func bounded(t testing.TB, bound time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	t.Cleanup(cancel)
	return ctx
}

// noted makes a FIFO for the agents that are started from now on, and returns what waits for the note of one.
func noted(t testing.TB) func() string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "note")
	must(t, exec.Command("mkfifo", path).Run())
	t.Setenv(noteVariable, path)
	fifo, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	t.Cleanup(func() { _ = fifo.Close() })
	return func() string {
		t.Helper()
		must(t, fifo.SetReadDeadline(time.Now().Add(10*time.Second)))
		line, err := bufio.NewReader(fifo).ReadString('\n')
		must(t, err)
		return strings.TrimSpace(line)
	}
}

// wantError wants an error with that code and that text in it.
func wantError(t testing.TB, err error, code string, text string) {
	t.Helper()
	if !HasCode(err, code) || !strings.Contains(err.Error(), text) {
		t.Errorf("%v, wanted %q and code %s", err, text, code)
	}

	if err != nil && strings.Contains(err.Error(), "\n") {
		t.Errorf("%q is more than a line", err)
	}
}

// wantEmpty wants nothing to be left where programs are carried to.
func wantEmpty(t testing.TB, dir string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(filepath.Dir(dir), "*", "*"))
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
