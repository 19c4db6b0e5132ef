// SPDX-License-Identifier: AGPL-3.0-only

package remote

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/printable"
)

// process is ssh, or on this machine the shell that becomes the agent, as the giving side sees it.
type process struct {
	cmd    *exec.Cmd
	local  bool
	stdin  *os.File
	stdout *os.File
	exited chan struct{} // closed when it has ended, and its last words have been read or nobody waits for them any more

	mu   sync.Mutex
	said []string // the last lines of its standard error
}

// A signal of the terminal goes to the whole process group in its foreground. What ends this program in an orderly way must not cut its
// connections first. An agent on this machine is in a group of its own; ssh, which may have questions for the terminal, must stay in this one, and
// leaves signals ignored that were so when it was started.
const signalsIgnored = `trap "" INT QUIT HUP; exec "$@"`

// lastLines is how many lines of standard error are kept, saidTime how long they are waited for after the end, and killTime how long ssh has
// to end by itself.
const (
	lastLines = 30
	saidTime  = time.Second
	killTime  = time.Second
)

// startProcess starts a command whose arguments are complete, and gives each line of its standard error to line.
func startProcess(argv []string, local bool, line func(string)) (*process, error) {
	p := &process{local: local, exited: make(chan struct{})}
	if local {
		p.cmd = exec.Command(argv[0], argv[1:]...)
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	} else {
		p.cmd = exec.Command("sh", append([]string{"-c", signalsIgnored, "sh"}, argv...)...)
	}

	var ends [3][2]*os.File
	for i := range ends {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}

		ends[i] = [2]*os.File{r, w}
	}

	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = ends[0][0], ends[1][1], ends[2][1]
	p.stdin, p.stdout = ends[0][1], ends[1][0]
	err := p.cmd.Start()
	for _, theirs := range []*os.File{ends[0][0], ends[1][1], ends[2][1]} {
		_ = theirs.Close()
	}

	if err != nil {
		return nil, errors.Join(err, p.stdin.Close(), p.stdout.Close(), ends[2][0].Close())
	}

	read := make(chan struct{})
	go func() {
		defer close(read)
		p.listen(ends[2][0], line)
	}()
	go func() {
		_ = p.cmd.Wait()
		select {
		case <-read:
		case <-time.After(saidTime): // a process that ssh has left in the background keeps it open
			_ = ends[2][0].Close()
		}

		close(p.exited)
	}()
	return p, nil
}

// listen reads standard error, until its end.
func (p *process) listen(from io.Reader, line func(string)) {
	r := bufio.NewReader(from)
	for {
		data, _, err := r.ReadLine() // one that is too long comes in parts
		if err != nil {
			return
		}

		text := printable.Line(strings.TrimRight(string(data), "\r"))
		p.mu.Lock()
		p.said = append(p.said, text)
		p.said = p.said[max(0, len(p.said)-lastLines):]
		p.mu.Unlock()
		if line != nil {
			line(text)
		}
	}
}

// kill ends ssh, which is stuck, and does not wait for that. It is asked first: it may have turned off the terminal's echo. An agent on this
// machine is not killed: it notices by itself that nobody is there any more.
func (p *process) kill() {
	_, _ = p.stdin.Close(), p.stdout.Close()
	if p.local {
		return
	}

	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	go func() {
		if !p.wait(killTime) {
			_ = p.cmd.Process.Kill()
		}
	}()
}

// wait waits for the end of the process, and tells whether that has come.
func (p *process) wait(bound time.Duration) bool {
	select {
	case <-p.exited:
		return true
	case <-time.After(bound):
		return false
	}
}

// forget forgets what was said: it belongs to what has succeeded.
func (p *process) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()

	p.said = nil
}

// lastWords is what standard error ended with, in one line.
func (p *process) lastWords() string {
	p.mu.Lock()
	defer p.mu.Unlock()

	last, offending := "", ""
	for _, line := range p.said {
		line = strings.TrimSpace(line)
		if line != "" {
			last = line
		}

		if strings.HasPrefix(line, "Offending ") { // with the place of the key that ssh knows
			offending = line
		}
	}

	if offending != "" && offending != last {
		return offending + ": " + last
	}

	return last
}
