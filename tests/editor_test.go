// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/tests/cluster"
)

// terminal is a program that runs on a pseudo-terminal, and whoever types on it.
type terminal struct {
	t      testing.TB
	master *os.File
	cmd    *exec.Cmd
	ended  chan struct{} // closed when all output is read

	mu   sync.Mutex
	text string // of the output, what expect has not passed yet
	all  string
}

// onTerminal starts a command on a terminal of its own.
func onTerminal(t testing.TB, cmd *exec.Cmd) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	t.Cleanup(func() { master.Close() })
	must(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	must(t, err)
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	defer slave.Close()

	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	term := &terminal{t: t, master: master, cmd: cmd, ended: make(chan struct{})}
	go term.read()
	return term
}

func (r *terminal) read() {
	defer close(r.ended)
	buf := make([]byte, 4096)
	for {
		n, err := r.master.Read(buf)
		r.mu.Lock()
		r.text += string(buf[:n])
		r.all += string(buf[:n])
		r.mu.Unlock()
		if err != nil { // EIO when nobody has the terminal open any more
			return
		}
	}
}

// expect waits until the program has written something, after what was expected before.
func (r *terminal) expect(what string) {
	r.t.Helper()
	ctx := within(r.t, 30*time.Second)
	for {
		r.mu.Lock()
		_, rest, found := strings.Cut(r.text, what)
		if found {
			r.text = rest
		}

		all := r.all
		r.mu.Unlock()
		if found {
			return
		}

		select {
		case <-ctx.Done():
			r.t.Fatalf("no %q on the terminal:\n%s", what, all)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// types is what a person types.
func (r *terminal) types(text string) {
	r.t.Helper()
	_, err := r.master.WriteString(text)
	must(r.t, err)
}

// end waits for the end of the program.
func (r *terminal) end() result {
	r.t.Helper()
	defer context.AfterFunc(within(r.t, 30*time.Second), func() { r.cmd.Process.Kill() })()
	err := r.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.t.Fatal(err)
	}

	<-r.ended
	r.t.Logf("on the terminal, exit status %d:\n%s", r.cmd.ProcessState.ExitCode(), r.all)
	return result{stderr: r.all, status: r.cmd.ProcessState.ExitCode()}
}

// withEditor starts our `cluster edit` on a terminal with an editor that carries out these scripts, one each time it is opened,
// with the file as $1. It returns the directory where the n-th text that was opened is as seen.N.
func withEditor(t testing.TB, m *cluster.Member, scripts ...string) (*terminal, string) {
	t.Helper()
	dir := t.TempDir()
	editor := "#!/bin/sh\nset -e\nn=$(ls " + dir + " | grep -c seen || true)\nn=$((n + 1))\ncp \"$1\" " + dir + "/seen.$n\n. " + dir + "/script.$n\n"
	must(t, os.WriteFile(filepath.Join(dir, "editor"), []byte(editor), 0o755))
	for i, s := range scripts {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("script.%d", i+1)), []byte(s+"\n"), 0o644))
	}

	cmd := m.Command(context.WithoutCancel(t.Context()), tool, "cluster", "edit")
	cmd.Env = append(cmd.Env, "VISUAL="+filepath.Join(dir, "editor"), "EDITOR=false", "TERM=dumb")
	return onTerminal(t, cmd), dir
}

// The edit as a person does it.
func TestEditor(t *testing.T) {
	c := cluster.ForTest(t, cluster.Options{})
	c.KillAll()
	must(t, c.Save(within(t, time.Minute), "down"))
	m := c.Member(1)
	const port, question = `sed -i s/:8443/:9393/ "$1"`, "Change the member list? (yes/no) [default=no]: "
	moved := func(t *testing.T) bool {
		log := openLog(t, globalOf(m))
		return log.Edited && strings.HasSuffix(log.Configuration[0].Address, ":9393")
	}
	part := func(name string, do func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			must(t, c.Restore(within(t, time.Minute), "down"))
			do(t)
		})
	}

	part("yes", func(t *testing.T) {
		term, dir := withEditor(t, m, port)
		term.expect(m.IP() + ":8443 -> " + m.IP() + ":9393")
		term.expect(question)
		term.types("yes\n")
		if r := term.end(); r.status != 0 || !moved(t) {
			t.Errorf("exit status %d", r.status)
		}

		seen, err := os.ReadFile(filepath.Join(dir, "seen.1"))
		must(t, err)
		for _, want := range []string{"# The members of the cluster", "name: node3", "role: voter",
			"ends at index " + fmt.Sprint(openLog(t, globalOf(m)).LastIndex-1)} {
			if !strings.Contains(string(seen), want) {
				t.Errorf("the editor shows no %q: %s", want, seen)
			}
		}
	})

	part("no", func(t *testing.T) {
		check := unchanged(t, m.Dir())
		for _, answer := range []string{"no\n", "\n", "yess\n", "\x04"} {
			term, _ := withEditor(t, m, port)
			term.expect(question)
			term.types(answer)
			term.end().want(t, 1, "not confirmed: nothing was changed")
		}

		check()
	})

	part("ctrl+c at the question", func(t *testing.T) {
		check := unchanged(t, m.Dir())
		term, _ := withEditor(t, m, port)
		term.expect(question)
		term.types("\x03")
		if r := term.end(); r.status == 0 {
			t.Error("success")
		}

		check()
	})

	part("opened again", func(t *testing.T) {
		term, dir := withEditor(t, m, port+`; sed -i "s/role: voter/role: king/" "$1"`, `sed -i "s/role: king/role: voter/; s/`+m.IP()+`:9393/bogus/" "$1"`,
			`sed -i "s/bogus/`+m.IP()+`:9393/" "$1"`)
		for _, says := range []string{"king", `"bogus" is not HOST:PORT`} {
			term.expect("Config validation error: ")
			term.expect(says)
			term.expect("Press enter to open the editor again or ctrl+c to abort change")
			term.types("\n")
		}

		term.expect(question)
		term.types("y\n")
		if r := term.end(); r.status != 0 || !moved(t) {
			t.Errorf("exit status %d", r.status)
		}

		for n, left := range map[int]string{2: "role: king", 3: "address: bogus"} {
			seen, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("seen.%d", n)))
			must(t, err)
			if !strings.Contains(string(seen), left) || !strings.Contains(string(seen), "# The members of the cluster") {
				t.Errorf("opened no. %d: not as left: %s", n, seen)
			}
		}
	})

	part("ctrl+c instead of opening it again", func(t *testing.T) {
		check := unchanged(t, m.Dir())
		term, _ := withEditor(t, m, `echo junk > "$1"`)
		term.expect("Press enter")
		term.types("\x03")
		if r := term.end(); r.status == 0 {
			t.Error("success")
		}

		check()
	})

	part("the terminal goes away instead", func(t *testing.T) {
		check := unchanged(t, m.Dir())
		term, dir := withEditor(t, m, `echo junk > "$1"`)
		term.expect("Press enter")
		term.types("\x04")
		if r := term.end(); r.status != 1 {
			t.Errorf("exit status %d", r.status)
		}

		wantMissing(t, filepath.Join(dir, "seen.2"))
		check()
	})

	part("an editor that fails", func(t *testing.T) {
		check := unchanged(t, m.Dir())
		term, _ := withEditor(t, m, port+"; exit 7")
		term.end().want(t, 1, "editor", "exit status 7", "nothing was changed")
		check()
	})

	part("an empty list", func(t *testing.T) {
		check := unchanged(t, m.Dir())
		term, _ := withEditor(t, m, `: > "$1"`)
		term.expect("the list of members is empty")
		term.types("\x03")
		term.end()
		check()
	})

	part("started meanwhile", func(t *testing.T) {
		term, _ := withEditor(t, m, port)
		term.expect(question)
		must(t, m.Spawn())
		defer m.Kill()
		waitHolds(t, m)
		term.types("yes\n")
		term.end().want(t, 1, "LXD still runs", "nothing was changed")
		m.Kill()
		if log := openLog(t, globalOf(m)); log.Edited || log.Configuration[0].Role != raftlog.Voter {
			t.Errorf("edited nevertheless")
		}
	})
}
