// SPDX-License-Identifier: AGPL-3.0-only

package remote

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/newfile"
	"github.com/lxd-recover/lxd-recover/internal/printable"
)

// Options say how a machine is reached, and what is started there.
type Options struct {
	Destination string            // as ssh takes it; empty: this machine, without ssh
	SSH         []string          // the ssh command and options of the user's, split into words; {"ssh"} if empty
	Batch       bool              // ssh asks nothing
	Binaries    map[string]string // files of this program for other architectures, by Go's names for them
	Command     []string          // arguments that make this program an agent, which calls Serve
	Version     string            // of this program
	Stderr      func(line string) // is given what ssh, sudo and the agent print; may be nil
	Progress    func(line string) // is given the lines of progress of all calls, one at a time; may be nil
	Heartbeat   time.Duration     // 0: DefaultHeartbeat
}

// Bounds of connecting. Without Batch, ssh asks for passwords, and people take their time: sshd gives them two minutes.
// Tests make them short.
var (
	batchTime = 30 * time.Second
	askTime   = 150 * time.Second
	stuckTime = 30 * time.Second // nothing moves while the program is sent, or started
)

const tcpTime = "10" // seconds, for ssh

// dialing is a connection that is being made.
type dialing struct {
	opts     Options
	programs map[string]program
	mark     string
	*process
	lines *bufio.Reader // of stdout
	moves *time.Timer   // ends it all when nothing moves
	peer  Peer
}

// Dial starts the program on another machine, or again on this one, and connects to it. What does not work is one error in one line, which
// names the destination: an *Error.
func Dial(ctx context.Context, opts Options) (*Conn, error) {
	if len(opts.SSH) == 0 {
		opts.SSH = []string{"ssh"}
	}

	if opts.Heartbeat == 0 {
		opts.Heartbeat = DefaultHeartbeat
	}

	all, err := programs(opts.Binaries)
	if err != nil {
		return nil, &Error{Code: CodeNoProgram, Message: err.Error()}
	}

	d := &dialing{opts: opts, programs: all, mark: newMark()}
	argv, err := d.command()
	if err != nil {
		return nil, &Error{Code: CodeNotStarted, Message: d.name() + ": " + err.Error()}
	}

	d.process, err = startProcess(argv, opts.Destination == "", opts.Stderr)
	if err != nil {
		return nil, &Error{Code: CodeNotStarted, Message: d.name() + ": " + err.Error()}
	}

	conn, err := d.connect(ctx)
	if err != nil {
		d.kill()
		d.wait(saidTime)
		return nil, err
	}

	return conn, nil
}

// name is the machine, for people.
func (o Options) name() string {
	if o.Destination == "" {
		return "this machine"
	}

	return printable.Line(o.Destination)
}

func (d *dialing) name() string { return d.opts.name() }

// command is what is started: ssh, or a shell here.
func (d *dialing) command() ([]string, error) {
	if d.opts.Destination == "" {
		here, err := os.Executable()
		return append([]string{"sh"}, words(d.mark, here, specs(d.programs), d.opts.Command)...), err
	}

	if strings.HasPrefix(d.opts.Destination, "-") {
		return nil, errors.New("this is no destination of ssh, which would take it for an option")
	}

	line, err := commandLine(words(d.mark, "", specs(d.programs), d.opts.Command))
	if err != nil {
		return nil, err
	}

	// What the user says on the command line comes first, and the first one counts. Nothing of the user's own is lent to that machine.
	argv := append([]string{}, d.opts.SSH...)
	argv = append(argv, "-T", "-a", "-x", "-o", "RemoteCommand=none", "-o", "ClearAllForwardings=yes", "-o", "ConnectTimeout="+tcpTime)
	if d.opts.Batch {
		argv = append(argv, "-o", "BatchMode=yes")
	}

	return append(argv, "--", d.opts.Destination, line), nil
}

// errStuck is the cause of the end of a connection that could not be made in time.
var errStuck = errors.New("nothing moves")

// connect makes a connection of what the process says.
func (d *dialing) connect(ctx context.Context) (*Conn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	bound := askTime
	if d.opts.Batch || d.local {
		bound = batchTime
	}

	d.moves = time.AfterFunc(bound, func() { cancel(errStuck) })
	defer d.moves.Stop()

	stop := context.AfterFunc(ctx, d.kill)
	defer stop()

	conn, err := d.converse(ctx)
	switch {
	case ctx.Err() == nil:
		return conn, err
	case conn != nil:
		_ = conn.Close()
	}

	words := d.lastWords()
	switch {
	case !errors.Is(context.Cause(ctx), errStuck):
		return nil, fmt.Errorf("%s: %w", d.name(), context.Cause(ctx))
	case words == "":
		words = "no answer"
	}

	return nil, errorf(CodeUnreachable, "%s: the connection was not made in time: %s", d.name(), words)
}

// converse follows the scripts, and begins the session when the agent is started.
func (d *dialing) converse(ctx context.Context) (*Conn, error) {
	d.lines = bufio.NewReaderSize(d.stdout, pumpSize)
	for {
		said, err := d.next()
		if err != nil {
			return nil, d.noAnswer()
		}

		d.moves.Reset(stuckTime)
		switch said[0] {
		case saySend:
			err = d.send(d.programs[said[1]])
		case sayStart:
			d.peer.Arch, d.peer.Carried = architecture(said[1]), said[3] != fromHere
			d.peer.UID, err = strconv.Atoi(said[2])
			if err == nil {
				return d.begin(ctx)
			}
		default:
			err = d.refused(said)
		}

		if err != nil {
			return nil, err
		}
	}
}

// bannerSize is how much a login shell may print before the scripts do.
const bannerSize = 1 << 20

// numberOfWords is how many follow the mark and the first word.
var numberOfWords = map[string]int{
	sayNoSudo: 1, saySudo: 1, sayNoProgram: 1, sayUnwritable: 0, saySend: 1, sayDamaged: 0, sayStart: 3,
}

// next is the next line with the mark, in words.
func (d *dialing) next() ([]string, error) {
	for read := 0; read < bannerSize; {
		line, err := d.lines.ReadSlice('\n')
		read += len(line)
		_, rest, found := strings.Cut(string(line), d.mark+" ")
		said := strings.Fields(rest)
		if found && len(said) > 0 && len(said) == 1+numberOfWords[said[0]] {
			return said, nil
		}

		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
	}

	return nil, errors.New("it prints too much")
}

// send sends the program. An error of the writing is not what is wrong: the script, or ssh, says that.
func (d *dialing) send(p program) error {
	file, err := newfile.Open(p.path)
	if err != nil {
		return errorf(CodeNotStarted, "%s: the program cannot be sent: %v", d.name(), err)
	}

	defer file.Close()

	sent, err := io.Copy(&moving{d}, io.LimitReader(file, p.size))
	if err == nil && sent < p.size {
		return errorf(CodeNotStarted, "%s: the program cannot be sent: %s has become shorter meanwhile", d.name(), p.path)
	}

	return nil
}

// moving writes to the process, and tells that something moves.
type moving struct{ d *dialing }

func (m *moving) Write(data []byte) (int, error) {
	n, err := m.d.stdin.Write(data)
	if n > 0 {
		m.d.moves.Reset(stuckTime)
	}

	return n, err
}

// begin begins the session with the agent.
func (d *dialing) begin(ctx context.Context) (*Conn, error) {
	conn, err := newConn(d)
	if err != nil {
		return nil, err
	}

	var hello helloReply
	err = conn.do(ctx, methodHello, helloRequest{Heartbeat: d.opts.Heartbeat}, &hello)
	if err == nil && hello.Version != d.opts.Version {
		err = errorf(CodeOtherVersion, "%s: the program there is %s, this one is %s: give the same one with --binary %s=FILE",
			d.name(), printable.Line(hello.Version), d.opts.Version, d.peer.Arch)
	}

	if err != nil {
		_ = conn.Close()
		if HasCode(err, CodeLost) {
			return nil, d.noAnswer()
		}

		return nil, err
	}

	d.forget()
	go conn.link.watch()
	conn.peer.Version, conn.peer.Host = hello.Version, hello.Host
	return conn, nil
}

// refused is what a script says that gives up.
func (d *dialing) refused(said []string) error {
	d.wait(saidTime)
	words := d.lastWords()
	if words == "" {
		words = "it says nothing more"
	}

	switch said[0] {
	case sayNoSudo:
		return errorf(CodeNotRoot, "%s: the user there is not root (user id %s), and sudo is not installed: connect as root", d.name(), said[1])
	case saySudo:
		return errorf(CodeNotRoot, "%s: the user there is not root (user id %s), and `sudo -n` does not work (%s): connect as root, or allow it with NOPASSWD",
			d.name(), said[1], words)
	case sayNoProgram:
		arch := printable.Line(architecture(said[1]))
		return errorf(CodeNoProgram, "%s: the machine is of the architecture %s, for which there is no program here: give one with --binary %s=FILE",
			d.name(), arch, arch)
	case sayUnwritable:
		return errorf(CodeNotStarted, "%s: no directory can be made below %s: %s", d.name(), agentDir, words)
	default:
		return errorf(CodeNotStarted, "%s: the program has not arrived there as it was sent: %s", d.name(), words)
	}
}

// noAnswer is why a process has ended before the agent answered.
func (d *dialing) noAnswer() error {
	ended := d.wait(saidTime)
	words, status := d.lastWords(), ""
	if ended {
		status = d.cmd.ProcessState.String()
	}

	switch {
	case words == "" && status == "":
		words = "no answer"
	case words == "":
		words = status
	}

	code := CodeUnreachable
	switch {
	case strings.Contains(words, "Host key verification failed"):
		code = CodeHostKey
	case d.local || ended && d.cmd.ProcessState.ExitCode() != sshFailed:
		code = CodeNotStarted
	}

	what := "cannot connect"
	if code == CodeNotStarted {
		what = "the program does not start there"
	}

	return errorf(code, "%s: %s: %s", d.name(), what, words)
}

// sshFailed is ssh's exit status for its own errors; else it has that of the command.
const sshFailed = 255
