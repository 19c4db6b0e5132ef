// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/raftlog/raftlogtest"
)

// asProgram is the variable that has this test binary be lxd-recover, or, with a value of its own, something that is sent signals.
const asProgram = "LXD_RECOVER_TEST_AS"

// What that variable can be.
const (
	asItself = "lxd-recover"
	asRun    = "run"    // waits for the first signal, then takes back what it has begun until its standard input ends
	asReader = "reader" // heeds no signal at all
)

func TestMain(m *testing.M) {
	switch as := os.Getenv(asProgram); as {
	case asItself:
		os.Exit(Main(append([]string{"lxd-recover"}, os.Args[1:]...)))
	case asRun, asReader:
		ctx, stop := listen(as == asRun)
		fmt.Println("listening")
		<-ctx.Done()
		fmt.Println("heard")
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
		os.Exit(0)
	}

	// Under nohup a hangup is ignored, by children too; one that this process listens to is not.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP)
	code := m.Run()
	raftlogtest.Cleanup()
	os.Exit(code)
}

// program prepares this test binary to be something else.
func program(t *testing.T, as string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), asProgram+"="+as)
	return cmd
}

// signalled sends signals to a program, the first when it listens and the others when it has heard that, and returns what it was ended by; 0
// if it ends by itself, which it does not before nothing is left for it to take back: never, unless lets.
func signalled(t *testing.T, cmd *exec.Cmd, lets bool, signals ...unix.Signal) unix.Signal {
	t.Helper()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}

	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}

	err = cmd.Start()
	if err != nil {
		t.Fatal(err)
	}

	lines := bufio.NewScanner(stdout)
	for i, sig := range signals {
		if i < 2 && !lines.Scan() {
			t.Fatalf("it ended before signal %d", i)
		}

		err = cmd.Process.Signal(sig)
		if err != nil {
			t.Fatal(err)
		}

		waitTaken(t, cmd.Process.Pid)
	}

	if lets {
		_ = stdin.Close()
	} else {
		// Go makes one of two of a kind that come before it has looked: the last one comes again until it is heeded.
		defer insist(cmd.Process, signals[len(signals)-1])()
	}

	_ = cmd.Wait()
	status, _ := cmd.ProcessState.Sys().(interface{ Signal() unix.Signal })
	if cmd.ProcessState.Exited() {
		if code := cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("exit status %d", code)
		}

		return 0
	}

	return status.Signal()
}

// insist sends a signal again and again until stop is called.
func insist(process *os.Process, sig unix.Signal) (stop func()) {
	stopped := make(chan struct{})
	go func() {
		for {
			select {
			case <-stopped:
				return
			case <-time.After(20 * time.Millisecond):
				_ = process.Signal(sig)
			}
		}
	}()

	return func() { close(stopped) }
}

// waitTaken waits until a process has no signal pending, or is gone: two of a kind are one while they are.
func waitTaken(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil || strings.Contains(string(status), "State:\tZ") || strings.Contains(string(status), "ShdPnd:\t0000000000000000") {
			return
		}

		if time.Now().After(deadline) {
			t.Fatalf("a signal is not taken:\n%s", status)
		}
	}
}

// TestSignals: whatever a run is sent, it ends when it has taken back what it had begun, or at a second SIGINT.
func TestSignals(t *testing.T) {
	const (
		hup, term, intr, quit = unix.SIGHUP, unix.SIGTERM, unix.SIGINT, unix.SIGQUIT
		none                  = unix.Signal(0)
	)
	for _, test := range []struct {
		as   string
		sent []unix.Signal
		want unix.Signal
	}{
		{asRun, []unix.Signal{hup, hup}, none}, // from the shell and from the kernel
		{asRun, []unix.Signal{term, hup, term, hup, term}, none},
		{asRun, []unix.Signal{quit, quit, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGXFSZ, unix.SIGPIPE}, none},
		{asRun, []unix.Signal{intr, hup, term}, none},
		{asRun, []unix.Signal{hup, hup, term, intr}, none},
		{asRun, []unix.Signal{intr, intr}, intr},
		{asRun, []unix.Signal{hup, intr, term, intr}, intr},
		{asReader, []unix.Signal{hup, hup}, none},
		{asReader, []unix.Signal{term, term}, term},
		{asReader, []unix.Signal{intr, intr}, intr},
		{asReader, []unix.Signal{hup, intr}, intr},
	} {
		t.Run(fmt.Sprint(test.as, test.sent), func(t *testing.T) {
			t.Parallel()
			if got := signalled(t, program(t, test.as), test.want == none, test.sent...); got != test.want {
				t.Errorf("ended by %v, want %v", got, test.want)
			}
		})
	}
}

// A reader that does not heed the first signal is ended by it all the same, a little later; nobody has to insist.
func TestSignalDeafReader(t *testing.T) {
	t.Parallel()
	cmd := program(t, asReader)
	held, err := cmd.StdinPipe() // which stays open: it never ends by itself
	if err != nil {
		t.Fatal(err)
	}

	defer held.Close()

	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}

	err = cmd.Start()
	if err != nil {
		t.Fatal(err)
	}

	began := time.Now()
	_, err = bufio.NewReader(stdout).ReadString('\n')
	if err == nil {
		err = cmd.Process.Signal(unix.SIGINT)
	}

	if err != nil {
		t.Fatal(err)
	}

	_ = cmd.Wait()
	if took := time.Since(began); cmd.ProcessState.String() != "signal: interrupt" || took < heedTime {
		t.Errorf("%s after %s", cmd.ProcessState, took)
	}
}

// What nohup has ignored stays ignored.
func TestSignalNohup(t *testing.T) {
	t.Parallel()
	cmd := program(t, asRun)
	cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", `trap "" HUP; exec "$0"`, os.Args[0]}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}

	err = cmd.Start()
	if err != nil {
		t.Fatal(err)
	}

	lines := bufio.NewScanner(stdout)
	for _, sig := range []unix.Signal{unix.SIGHUP, unix.SIGTERM} {
		if sig == unix.SIGHUP && !lines.Scan() {
			t.Fatal("it does not listen")
		}

		err = cmd.Process.Signal(sig)
		if err != nil {
			t.Fatal(err)
		}

		ignored := func() bool {
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
			_, mask, _ := strings.Cut(string(status), "SigIgn:\t")
			bits, parseErr := strconv.ParseUint(strings.SplitN(mask, "\n", 2)[0], 16, 64)
			return err == nil && parseErr == nil && bits&1 != 0 // the first one is SIGHUP; a shell's background has others ignored as well
		}
		if sig == unix.SIGHUP && !ignored() {
			t.Error("SIGHUP is not ignored any more")
		}
	}

	if !lines.Scan() || lines.Text() != "heard" {
		t.Errorf("SIGTERM: %q", lines.Text())
	}

	_ = cmd.Wait()
}

// Every command is known as a run or as one that changes nothing.
func TestRuns(t *testing.T) {
	readers := []string{
		"export-db", "global-db-status", "global-db-inspect", "global-db-compare", "global-db-sql", "global-db-log", "list", "status", "version",
		"verify-copy", "reconfigure", "agent", "plan", "verify", "support", "cluster", "frontend", "global-db-kept", "global-db-backups", "global-db-backup",
		"backup", "enable", "disable", "run", "forget",
		"global-db-identity",
	}
	var walk func(args []string)
	walk = func(args []string) {
		cmd, _, err := newRootCmd().Find(args)
		if err != nil {
			t.Fatal(err)
		}

		for _, c := range cmd.Commands() {
			words := append(slices.Clone(args), c.Name())
			if isRun(newRootCmd(), append(words, "--yes", "x")) == slices.Contains(readers, c.Name()) {
				t.Errorf("%s: is it a run or not?", c.CommandPath())
			}

			walk(words)
		}
	}
	walk(nil)
}

// closedPipe is a pipe that nobody reads.
func closedPipe(t *testing.T) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}

	_ = r.Close()
	t.Cleanup(func() { _ = w.Close() })
	return w
}

// goneTerminal is one whose other side was closed, as by a lost connection.
func goneTerminal(t *testing.T) *os.File {
	t.Helper()
	theirs, ours := openTerminal(t, 120)
	_ = ours.Close()
	return theirs
}

// Output that nobody reads ends a reading command quietly, and no run: that goes on to its end, and is done.
func TestNobodyReads(t *testing.T) {
	older, _ := keptDatabases(t)
	for name, open := range map[string]func(*testing.T) *os.File{"pipe": closedPipe, "terminal": goneTerminal} {
		reader := program(t, asItself, "version")
		var stderr strings.Builder
		reader.Stdout, reader.Stderr = open(t), &stderr
		_ = reader.Run()
		want := "signal: broken pipe"
		if name == "terminal" {
			want = "exit status 1"
		}

		if reader.ProcessState.String() != want || stderr.String() != "" {
			t.Errorf("%s, a reader: %s, %q", name, reader.ProcessState, stderr.String())
		}

		kept := filepath.Join(os.Getenv("LXD_DIR"), older)
		err := os.MkdirAll(filepath.Join(kept, "global"), 0o700)
		if err != nil {
			t.Fatal(err)
		}

		run := program(t, asItself, "global-db-kept", "remove", "--yes", older)
		run.Stdout, run.Stderr = open(t), open(t)
		err = run.Run()
		_, statErr := os.Lstat(kept)
		if err != nil || !errors.Is(statErr, os.ErrNotExist) {
			t.Errorf("%s, a run: %v, %v", name, err, statErr)
		}
	}
}

// A disk that is full is an error, whatever was to be written there.
func TestFullDisk(t *testing.T) {
	older, _ := keptDatabases(t)
	for _, line := range []string{
		"version", "version -f json", "--help", "help", "--version", "global-db-import --help", "help global-db-sql", "cluster",
		"cluster --help", "completion bash",
		"global-db-kept list", "global-db-kept list -f csv", "global-db-kept remove --yes " + older,
	} {
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}

		cmd := program(t, asItself, strings.Fields(line)...)
		var stderr strings.Builder
		cmd.Stdout, cmd.Stderr = full, &stderr
		_ = cmd.Run()
		_ = full.Close()
		if cmd.ProcessState.ExitCode() != exitFailed || !strings.Contains(stderr.String(), "no space left on device") {
			t.Errorf("%s: %s, %q", line, cmd.ProcessState, stderr.String())
		}
	}
}

// A question that nobody answers any more is refused, and changes nothing.
func TestQuestionUnanswered(t *testing.T) {
	older, _ := keptDatabases(t)
	for _, gone := range []string{"end of input", "lost connection", "closed"} {
		theirs, ours := openTerminal(t, 80)
		cmd := program(t, asItself, "global-db-kept", "remove", older)
		var stderr strings.Builder
		cmd.Stdin, cmd.Stderr = theirs, &stderr
		switch gone {
		case "end of input":
			_, err := ours.WriteString("\x04")
			if err != nil {
				t.Fatal(err)
			}

		case "lost connection":
			_ = ours.Close()
		case "closed":
			cmd.Stdin = nil
		}

		_ = cmd.Run()
		if cmd.ProcessState.ExitCode() != exitRefused || !strings.Contains(stderr.String(), "--yes overrides this") {
			t.Errorf("%s: %s, %q", gone, cmd.ProcessState, stderr.String())
		}

		_, err := os.Lstat(filepath.Join(os.Getenv("LXD_DIR"), older))
		if err != nil {
			t.Errorf("%s: %v", gone, err)
		}
	}
}

// What waits for standard input that never ends is ended by the first SIGINT.
func TestInterruptedStdin(t *testing.T) {
	keptDatabases(t)
	for _, args := range [][]string{{"global-db-sql", "-"}, {"cluster", "edit"}} {
		cmd := program(t, asItself, args...)
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}

		var stderr strings.Builder
		cmd.Stderr = &stderr
		err = cmd.Start()
		if err != nil {
			t.Fatal(err)
		}

		_, err = stdin.Write(make([]byte, 1<<20-1)) // more than a pipe holds: it reads
		if err != nil {
			t.Fatal(err)
		}

		began := time.Now()
		err = cmd.Process.Signal(unix.SIGINT)
		if err != nil {
			t.Fatal(err)
		}

		_ = cmd.Wait()
		_ = stdin.Close()
		if cmd.ProcessState.ExitCode() != exitFailed || !strings.Contains(stderr.String(), "interrupted") || time.Since(began) > heedTime {
			t.Errorf("%v: %s after %s, %q", args, cmd.ProcessState, time.Since(began), stderr.String())
		}
	}
}

// A reader who has stopped keeps nobody from going on.
func TestSteady(t *testing.T) {
	r, w := io.Pipe()
	out := &steady{to: w}
	began := time.Now()
	for range 50 {
		n, err := out.Write([]byte("line\n"))
		if n != 5 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	}

	if took := time.Since(began); took < patience || took > 10*patience {
		t.Errorf("50 lines took %s", took)
	}

	read := make(chan string, 2)
	go func() {
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			read <- lines.Text()
		}
	}()

	if got := <-read; got != "line" {
		t.Errorf("the first line is %q", got)
	}

	<-out.writing
	_, _ = out.Write([]byte("next\n"))
	if got := <-read; got != "next" {
		t.Errorf("when there is a reader again: %q", got)
	}
}

// A log file that nobody reads is told before anything is done.
func TestLogFIFO(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	err := unix.Mkfifo(fifo, 0o600)
	if err != nil {
		t.Fatal(err)
	}

	got := run(t, "lxd-recover", "version", "--log-file", fifo)
	if got.status != exitFailed || !strings.Contains(got.stderr, "nothing was done") || got.stdout != "" {
		t.Errorf("%+v", got)
	}
}
