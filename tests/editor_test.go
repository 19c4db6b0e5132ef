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

// What TestEditor's editors do to the list, and what is asked of whoever has edited it.
const (
	changePorts    = `sed -i s/:8443/:9393/ "$1"`
	changeQuestion = "Change the member list? " + question
)

// editorLab is what the parts of TestEditor share: the member, of a cluster that is down, whose list is edited.
type editorLab struct{ m *cluster.Member }

// The edit as a person does it.
func TestEditor(t *testing.T) {
	t.Parallel()
	c := cluster.ForTest(t, cluster.Options{})
	c.KillAll()
	must(t, c.Save(within(t, time.Minute), "down"))
	l := editorLab{c.Member(1)}
	fromDown(t, c, "yes", l.yes)
	fromDown(t, c, "no", l.no)
	fromDown(t, c, "ctrl+c at the question", func(t *testing.T) { l.interrupted(t, changePorts, changeQuestion) })
	fromDown(t, c, "opened again", l.openedAgain)
	fromDown(t, c, "ctrl+c instead of opening it again", func(t *testing.T) { l.interrupted(t, `echo junk > "$1"`, "Press enter") })
	fromDown(t, c, "the terminal goes away instead", l.terminalGone)
	fromDown(t, c, "an editor that fails", l.editorFails)
	fromDown(t, c, "an empty list", l.emptyList)
	fromDown(t, c, "started meanwhile", l.startedMeanwhile)
}

func (l editorLab) yes(t *testing.T) {
	term, dir := withEditor(t, l.m, changePorts)
	term.expect(l.m.IP() + ":8443 -> " + l.m.IP() + ":9393")
	term.expect(changeQuestion)
	term.types("yes\n")
	l.wantMoved(t, term.end())
	seen, err := os.ReadFile(filepath.Join(dir, "seen.1"))
	must(t, err)
	for _, want := range []string{"# The members of the cluster", "name: node3", "role: voter",
		"ends at index " + fmt.Sprint(openLog(t, globalOf(l.m)).LastIndex-1)} {
		if !strings.Contains(string(seen), want) {
			t.Errorf("the editor shows no %q: %s", want, seen)
		}
	}
}

func (l editorLab) no(t *testing.T) {
	check := unchanged(t, l.m.Dir())
	for _, answer := range []string{"no\n", "\n", "yess\n"} {
		term, _ := withEditor(t, l.m, changePorts)
		term.expect(changeQuestion)
		term.types(answer)
		term.end().want(t, 1, "not confirmed: nothing was changed")
	}

	term, _ := withEditor(t, l.m, changePorts)
	term.expect(changeQuestion)
	term.types("\x04") // ctrl+d: the end of the input is no answer
	term.end().want(t, 3, "nobody is there to answer any more, nothing was changed")

	check()
}

// interrupted types ctrl+c once the program has written something after this editor.
func (l editorLab) interrupted(t *testing.T, script, shown string) {
	check := unchanged(t, l.m.Dir())
	term, _ := withEditor(t, l.m, script)
	term.expect(shown)
	term.types("\x03")
	if r := term.end(); r.status == 0 {
		t.Error("success")
	}

	check()
}

// openedAgain makes two mistakes one after the other: the editor is opened again each time, with the list as it was left.
func (l editorLab) openedAgain(t *testing.T) {
	term, dir := withEditor(t, l.m, changePorts+`; sed -i "s/role: voter/role: king/" "$1"`,
		`sed -i "s/role: king/role: voter/; s/`+l.m.IP()+`:9393/bogus/" "$1"`,
		`sed -i "s/bogus/`+l.m.IP()+`:9393/" "$1"`)
	for _, says := range []string{"king", `"bogus" is not HOST:PORT`} {
		term.expect("Config validation error: ")
		term.expect(says)
		term.expect("Press enter to open the editor again or ctrl+c to abort change")
		term.types("\n")
	}

	term.expect(changeQuestion)
	term.types("y\n")
	l.wantMoved(t, term.end())
	for n, left := range map[int]string{2: "role: king", 3: "address: bogus"} {
		seen, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("seen.%d", n)))
		must(t, err)
		if !strings.Contains(string(seen), left) || !strings.Contains(string(seen), "# The members of the cluster") {
			t.Errorf("opened no. %d: not as left: %s", n, seen)
		}
	}
}

// terminalGone ends the input where it is asked whether to open the editor again.
func (l editorLab) terminalGone(t *testing.T) {
	check := unchanged(t, l.m.Dir())
	term, dir := withEditor(t, l.m, `echo junk > "$1"`)
	term.expect("Press enter")
	term.types("\x04")
	if r := term.end(); r.status != 1 {
		t.Errorf("exit status %d", r.status)
	}

	wantMissing(t, filepath.Join(dir, "seen.2"))
	check()
}

func (l editorLab) editorFails(t *testing.T) {
	check := unchanged(t, l.m.Dir())
	term, _ := withEditor(t, l.m, changePorts+"; exit 7")
	term.end().want(t, 1, "editor", "exit status 7", "nothing was changed")
	check()
}

func (l editorLab) emptyList(t *testing.T) {
	check := unchanged(t, l.m.Dir())
	term, _ := withEditor(t, l.m, `: > "$1"`)
	term.expect("the list of members is empty")
	term.types("\x03")
	term.end()
	check()
}

// startedMeanwhile starts LXD on the member before the question is answered.
func (l editorLab) startedMeanwhile(t *testing.T) {
	term, _ := withEditor(t, l.m, changePorts)
	term.expect(changeQuestion)
	must(t, l.m.Spawn())
	defer l.m.Kill()
	waitHolds(t, l.m)
	term.types("yes\n")
	term.end().want(t, 1, "LXD still runs", "nothing was changed")
	l.m.Kill()
	if log := openLog(t, globalOf(l.m)); log.Edited || log.Configuration[0].Role != raftlog.Voter {
		t.Errorf("edited nevertheless")
	}
}

// wantMoved checks that an edit succeeded, and that the member's log has the new port.
func (l editorLab) wantMoved(t testing.TB, r result) {
	t.Helper()
	log := openLog(t, globalOf(l.m))
	if r.status != 0 || !log.Edited || !strings.HasSuffix(log.Configuration[0].Address, ":9393") {
		t.Errorf("exit status %d", r.status)
	}
}
