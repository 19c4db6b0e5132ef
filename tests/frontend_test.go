// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// frontEnd is a directory with the front-end, one with a program that stands for LXD's own (testdata/lxd.c), and what both run
// with.
type frontEnd struct {
	ours, theirs string // programs, both called lxd
	launch       string
	report       string // what theirs writes to
	env          []string
}

func newFrontEnd(t testing.TB) *frontEnd {
	t.Helper()
	dir := t.TempDir()
	f := &frontEnd{ours: filepath.Join(dir, "ours/lxd"), theirs: filepath.Join(dir, "theirs/lxd"),
		launch: filepath.Join(dir, "launch"), report: filepath.Join(dir, "report")}
	must(t, os.Mkdir(filepath.Dir(f.ours), 0o755))
	must(t, os.Mkdir(filepath.Dir(f.theirs), 0o755))
	must(t, os.Symlink(tool, f.ours))
	out, err := exec.CommandContext(within(t, time.Minute), "gcc", "-Wall", "-Wextra", "-Werror", "-o", f.theirs, "testdata/lxd.c").CombinedOutput()
	if err != nil {
		t.Fatalf("gcc: %v: %s", err, out)
	}

	must(t, os.Symlink(f.theirs, f.launch))
	f.env = []string{"LANG=C.UTF-8", "PATH=" + filepath.Dir(f.ours) + ":" + filepath.Dir(f.theirs) + ":/usr/bin:/bin", "LXD_TEST_REPORT=" + f.report}
	return f
}

// command is either program, called as lxd.
func (f *frontEnd) command(t testing.TB, program string, then string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(within(t, 20*time.Second), program, args...)
	cmd.Args[0] = "lxd"
	cmd.Env = append(f.env, "LXD_TEST_THEN="+then)
	return cmd
}

// outcome runs a command and returns how it ended, and what LXD's stand-in reported; "" if it was not run.
func (f *frontEnd) outcome(t testing.TB, cmd *exec.Cmd) (state string, report string) {
	t.Helper()
	err := os.Remove(f.report)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}

	err = cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}

	data, err := os.ReadFile(f.report)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}

	return cmd.ProcessState.String(), strings.NewReplacer(f.ours, "PROGRAM", f.theirs, "PROGRAM").Replace(string(data))
}

// TestFrontEndIsNotNoticed runs LXD's stand-in by itself and through the front-end: what it finds must be the same, and what
// the caller sees of it.
func TestFrontEndIsNotNoticed(t *testing.T) {
	f := newFrontEnd(t)
	input := make([]byte, 1<<20)
	rand.Read(input)
	compare := func(t *testing.T, prepare func(program string) *exec.Cmd, says ...string) {
		t.Helper()
		state, report := f.outcome(t, prepare(f.theirs))
		gotState, got := f.outcome(t, prepare(f.ours))
		if gotState != state {
			t.Errorf("ended with %s, want %s", gotState, state)
		}

		if got != report {
			t.Errorf("through the front-end:\n%s\n--- without:\n%s", got, report)
		}

		for _, s := range says {
			numbers, ignored := strings.CutPrefix(s, "ignored ")
			if ignored && ignores(report, strings.Fields(numbers)...) {
				continue
			}

			if !strings.Contains(report, s+"\n") {
				t.Errorf("the report lacks %q:\n%s", s, report)
			}
		}
	}

	for _, closed := range []int{-1, 0, 1, 2} {
		t.Run(fmt.Sprintf("all that a process inherits, file %d closed", closed), func(t *testing.T) {
			compare(t, func(program string) *exec.Cmd {
				cmd := f.command(t, f.launch, "5", strconv.Itoa(closed), program, "cluster", "", "two words", "a\nb", "\xff\xfe'\"$(x)\\", "--", "-d")
				cmd.Args[0] = "launch"
				cmd.Stdin = bytes.NewReader(input)
				return cmd
			},
				"argument <lxd>", "argument <cluster>", "argument <>", `argument <two\20words>`,
				`argument <a\0ab>`, `argument <\ff\fe'"$(x)\>`, "argument <-d>",
				"variable <LXD_TEST_TWICE=first>", "variable <LXD_TEST_TWICE=second>", "variable <>",
				`variable <no\20equals\20sign>`, `variable <BYTES=\ff\fe\0a\01>`,
				"ignored 1 2 3 10 11 13 15 20 22 23 27 31 37 64", "pending 800", "alarm set", "limit 7 100 4000", "directory </usr>")
		})
	}

	t.Run("input", func(t *testing.T) {
		compare(t, func(program string) *exec.Cmd {
			cmd := f.command(t, program, "0", "sql", "global", "-")
			cmd.Stdin = bytes.NewReader(input)
			return cmd
		}, "limit 7 "+openFiles(t))
	})

	// The daemon itself, help, and everything else that is not ours.
	for _, line := range []string{"", "--help", "--version", "cluster", "cluster --help",
		"cluster show", "cluster list-database", "waitready", "--debug --group lxd",
		"frontend install", "hook remove", "resume", "version", "verify-copy x", "__complete cluster"} {
		t.Run("lxd "+line, func(t *testing.T) {
			compare(t, func(program string) *exec.Cmd { return f.command(t, program, "0", strings.Fields(line)...) }, "argument <lxd>")
		})
	}

	for _, then := range []string{"0", "1", "3", "77", "126", "127", "255", "-1", "-2", "-3", "-6", "-9", "-11", "-13", "-15"} {
		t.Run("ends with "+then, func(t *testing.T) {
			compare(t, func(program string) *exec.Cmd {
				cmd := f.command(t, program, then)
				cmd.Args = append([]string{"sh", "-c", `ulimit -c 0; exec "$@"`, "sh"}, program)
				cmd.Path = "/bin/sh"
				return cmd
			})
		})
	}

	t.Run("started with nohup", func(t *testing.T) {
		compare(t, func(program string) *exec.Cmd {
			return f.command(t, "/usr/bin/env", "0", "nohup", program, "init")
		}, "ignored 1")
	})
}

// ignores tells whether a report names these signals as ignored. There may be more, which this process has inherited itself.
func ignores(report string, signals ...string) bool {
	_, rest, _ := strings.Cut(report, "\nignored ")
	line, _, _ := strings.Cut(rest, "\n")
	have := strings.Fields(line)
	return !slices.ContainsFunc(signals, func(s string) bool { return !slices.Contains(have, s) })
}

// openFiles is the limit of open files as a program finds it that a Go program starts: "soft hard".
func openFiles(t testing.TB) string {
	out, err := exec.Command("sh", "-c", "ulimit -Sn; ulimit -Hn").Output()
	must(t, err)
	return strings.Join(strings.Fields(string(out)), " ")
}

// TestFrontEndSignals kills what it has started: it is LXD's own program that gets the signal, under the pid that was started.
func TestFrontEndSignals(t *testing.T) {
	f := newFrontEnd(t)
	for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1, unix.SIGPWR, unix.SIGKILL} {
		cmd := f.command(t, "/usr/bin/env", "wait", "--default-signal", f.ours) // this process may have been started with nohup
		output, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		var pid int
		_, err = fmt.Fscanf(output, "waiting in %d\n", &pid)
		if err != nil || pid != cmd.Process.Pid {
			t.Errorf("pid %d (%v), started was %d", pid, err, cmd.Process.Pid)
		}

		must(t, cmd.Process.Signal(sig))
		cmd.Wait()
		status := cmd.ProcessState.Sys().(syscall.WaitStatus)
		if !status.Signaled() || status.Signal() != sig {
			t.Errorf("%s: ended with %s", sig, cmd.ProcessState)
		}
	}
}

// TestFrontEndTerminal has LXD's stand-in in the foreground of a terminal, on which somebody presses control and C.
func TestFrontEndTerminal(t *testing.T) {
	f := newFrontEnd(t)
	var reports []string
	for _, program := range []string{f.theirs, f.ours} {
		master, slave := openTerminal(t)
		cmd := f.command(t, program, "wait", "cluster", "show")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		must(t, cmd.Start())
		must(t, slave.Close())
		var pid int
		_, err := fmt.Fscanf(master, "waiting in %d", &pid)
		if err != nil || pid != cmd.Process.Pid {
			t.Errorf("pid %d (%v), started was %d", pid, err, cmd.Process.Pid)
		}

		_, err = master.Write([]byte{3})
		must(t, err)
		cmd.Wait()
		status := cmd.ProcessState.Sys().(syscall.WaitStatus)
		if !status.Signaled() || status.Signal() != unix.SIGINT {
			t.Errorf("ended with %s", cmd.ProcessState)
		}

		report, err := os.ReadFile(f.report)
		must(t, err)
		for _, s := range []string{"tty 1", "leads its session 1, its group 1; in the foreground 1"} {
			if !bytes.Contains(report, []byte(s)) {
				t.Errorf("the report lacks %q:\n%s", s, report)
			}
		}

		reports = append(reports, strings.ReplaceAll(string(report), slave.Name(), "terminal"))
		must(t, master.Close())
	}

	if reports[0] != reports[1] {
		t.Errorf("through the front-end:\n%s\n--- without:\n%s", reports[1], reports[0])
	}
}

func openTerminal(t testing.TB) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	must(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	must(t, err)
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	return master, slave
}

// TestFrontEndNeverLoops has several copies of lxd-recover before LXD's own, under every kind of name; each is called once.
func TestFrontEndNeverLoops(t *testing.T) {
	f := newFrontEnd(t)
	dir := t.TempDir()
	in := func(name string) string {
		must(t, os.Mkdir(filepath.Join(dir, name), 0o755))
		return filepath.Join(dir, name, "lxd")
	}
	program, err := os.ReadFile(tool)
	must(t, err)
	copied := filepath.Join(dir, "lxd-recover-copy")
	must(t, os.WriteFile(copied, program, 0o755))
	ours := []string{f.ours, in("link-to-copy"), in("hard-link"), in("copy"), in("chain"), in("other-copy")}
	must(t, os.Symlink(copied, ours[1]))
	must(t, os.Link(copied, ours[2]))
	must(t, os.WriteFile(ours[3], program, 0o755))
	must(t, os.Symlink("../link-to-copy/lxd", ours[4]))
	must(t, os.WriteFile(ours[5], append(program, "and more"...), 0o755))
	var path []string
	for _, p := range ours {
		path = append(path, filepath.Dir(p))
	}

	path = append(path, filepath.Dir(f.theirs))
	for _, p := range ours {
		cmd := f.command(t, p, "42", "cluster", "show")
		cmd.Env = append(cmd.Env, "PATH="+strings.Join(path, ":"))
		state, report := f.outcome(t, cmd)
		if state != "exit status 42" || !strings.Contains(report, "argument <lxd>\nargument <cluster>\nargument <show>\n") {
			t.Errorf("%s: %s, report:\n%s", p, state, report)
		}
	}

	// Our own command is ours from each of them, a file called lxd included, which starts itself as a child with another name.
	for _, p := range ours {
		cmd := f.command(t, p, "42", "cluster", "export-db", "--help")
		cmd.Env = append(cmd.Env, "PATH="+strings.Join(path, ":"))
		out, err := cmd.Output()
		if err != nil || !strings.Contains(string(out), "\n  lxd cluster export-db [FILE] [flags]\n") {
			t.Errorf("%s: %v: %s", p, err, out)
		}
	}
}

// TestFrontEndWithoutLXD has nothing to hand over to, and not even a /proc: nothing but the one file.
func TestFrontEndWithoutLXD(t *testing.T) {
	root := t.TempDir()
	program, err := os.ReadFile(tool)
	must(t, err)
	for _, dir := range []string{"bin", "usr/local/sbin", "usr/bin", "snap/bin"} {
		must(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}

	must(t, os.WriteFile(filepath.Join(root, "bin/lxd-recover"), program, 0o755))
	must(t, os.Symlink("/bin/lxd-recover", filepath.Join(root, "usr/local/sbin/lxd")))
	must(t, os.Symlink("/bin/lxd-recover", filepath.Join(root, "usr/bin/lxd")))
	lxd := func() result {
		cmd := exec.CommandContext(within(t, 20*time.Second), "/usr/local/sbin/lxd", "cluster", "show")
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
		cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/local/sbin:/usr/bin:/bin"}
		return run(t, cmd)
	}
	lxd().want(t, 127, "no LXD", "/snap/bin", "lxd-recover frontend remove")

	must(t, os.WriteFile(filepath.Join(root, "snap/bin/lxd"), []byte("not a program"), 0o755))
	lxd().want(t, 126, "/snap/bin/lxd")
}

// TestFrontEndOfDebiansLXD stands before the real thing.
func TestFrontEndOfDebiansLXD(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{Members: 1})
	m := c.Member(1)
	lxd := filepath.Join(t.TempDir(), "lxd")
	must(t, os.Symlink(tool, lxd))
	same := func(args ...string) {
		t.Helper()
		want := run(t, m.Command(t.Context(), "lxd", args...))
		got := run(t, m.Command(t.Context(), lxd, args...))
		if got != want {
			t.Errorf("lxd %s: %+v, want %+v", strings.Join(args, " "), got, want)
		}
	}
	same("--version")
	same("--help")
	same("cluster", "--help")
	same("cluster", "show")
	same("cluster", "list-database")
	same("waitready", "--timeout", "5")
	same("bogus")
	same("--bogus")

	// LXD's own edit would refuse as well while it runs, in other words.
	for _, args := range [][]string{{"cluster", "edit"}, {"--debug", "cluster", "edit"}, {"cluster", "--logfile", "/dev/null", "edit", "-v"}} {
		cmd := m.Command(t.Context(), lxd, args...)
		cmd.Stdin = strings.NewReader("members: []\n")
		r := run(t, cmd)
		r.want(t, 1, "LXD is running")
	}

	r := run(t, m.Command(t.Context(), lxd, "-d", "global-db-status", "--format", "json"))
	if r.status != 0 || !strings.Contains(r.stdout, m.Name) {
		t.Errorf("lxd global-db-status: %+v", r)
	}

	// The whole way on as typed in the documentation.
	list, err := m.ShowYAML(t.Context())
	must(t, err)
	must(t, c.StopAll(t.Context()))
	cmd := m.Command(t.Context(), lxd, "cluster", "edit")
	cmd.Stdin = bytes.NewReader(list)
	r = run(t, cmd)
	if r.status != 0 || !strings.Contains(r.stdout, "\n    lxd cluster export-db\n") {
		t.Errorf("lxd cluster edit: %+v", r)
	}

	tarball := filepath.Join(t.TempDir(), "recovery.tar.gz")
	r = run(t, m.Command(t.Context(), lxd, "cluster", "export-db", tarball))
	if r.status != 0 {
		t.Errorf("lxd cluster export-db: %+v", r)
	}

	r = run(t, m.Command(t.Context(), lxd, "global-db-import", "--yes", tarball))
	if r.status != 0 {
		t.Errorf("lxd global-db-import: %+v", r)
	}

	must(t, m.Start(t.Context()))

	// And past ourselves, to LXD's own.
	must(t, c.StopAll(t.Context()))
	cmd = m.Command(t.Context(), lxd, "cluster", "edit", "--passthrough")
	cmd.Stdin = bytes.NewReader(list)
	r = run(t, cmd)
	if r.status != 0 || !strings.Contains(r.stdout, "LXD's own command is done") {
		t.Errorf("lxd cluster edit --passthrough: %+v", r)
	}

	must(t, m.Start(t.Context()))
}
